"""A message id as the value of a header, where a header is a line of text: of NATS, of HTTP.

Such a value loses what is blank around it and its line ends, and two ids would become one. An id that is not plain
is written as a JSON string, in ASCII; any other stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from octoserve.connectors.queues.protocol import ID_HEADER


def value_of(id: str) -> str:
    """The value; no two ids have the same one."""
    plain = id.isascii() and id.isprintable() and id == id.strip() and not id.startswith('"')
    return id if plain else json.dumps(id)


def id_of(value: str) -> str:
    """The id; what is no string in quotes was written by somebody else, and is an id as it stands."""
    try:
        told = json.loads(value) if value.startswith('"') else value
    except ValueError:
        return value
    return told if isinstance(told, str) else value


def heard(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers as they came, the message id read."""
    found = dict(headers or {})
    if ID_HEADER in found:
        found[ID_HEADER] = id_of(found[ID_HEADER])
    return found

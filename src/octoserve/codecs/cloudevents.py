"""CloudEvents 1.0 around a prediction, in both of its HTTP modes; the answer is an event in the mode of its request.

Structured: the whole event is the body, `application/cloudevents+json`. Binary: its attributes are `ce-` headers, and
its data is the body. Source: the CloudEvents specification and its HTTP binding; KServe, for an answer's attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from octoserve.codecs.json_values import decode_frame
from octoserve.core.errors import InvalidInput

STRUCTURED = "application/cloudevents+json"
REQUIRED = ("specversion", "id", "source", "type")
_encode = msgspec.json.encode


class _Event(msgspec.Struct):
    specversion: str
    id: str
    source: str
    type: str
    data: msgspec.Raw = msgspec.Raw()
    data_base64: bytes | None = None


_event = msgspec.json.Decoder(_Event).decode


def is_binary(headers: Mapping[str, str]) -> bool:
    """Whether a request's headers hold an event's attributes."""
    return "ce-specversion" in headers


def is_structured(headers: Mapping[str, str]) -> bool:
    """Whether a request's body is an event."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == STRUCTURED


def check_attributes(headers: Mapping[str, str]) -> None:
    """Raise InvalidInput unless a binary event's attributes are whole."""
    for name in REQUIRED:
        if not headers.get(f"ce-{name}"):
            raise InvalidInput(f"a CloudEvent's header ce-{name} is missing; {', '.join(REQUIRED)} are wanted")
    _check_version(headers["ce-specversion"])


def data_of(body: bytes) -> bytes:
    """The data of a structured event. Raises InvalidInput, TooLarge."""
    event: _Event = decode_frame(body, _event, "a CloudEvent with specversion, id, source, type and data")
    _check_version(event.specversion)
    if event.data_base64 is not None:
        return event.data_base64
    if not len(event.data):
        raise InvalidInput("the CloudEvent has no data")
    return bytes(event.data)


def _check_version(version: str) -> None:
    if not version.startswith("1."):
        raise InvalidInput(f"CloudEvents 1.0 is taken, specversion {version!r} came")


def _attributes(model: str, id: str, seconds: float) -> dict[str, str]:
    return {
        "specversion": "1.0",
        "id": id,
        "source": f"io.kserve.inference.{model}",
        "type": "io.kserve.inference.response",
        "time": datetime.fromtimestamp(seconds, UTC).isoformat(),
    }


def event_with(data: bytes, model: str, id: str, seconds: float) -> bytes:
    """A structured answer. data: JSON; seconds: Unix time."""
    attributes = _encode({**_attributes(model, id, seconds), "datacontenttype": "application/json"})
    return b'%b,"data":%b}' % (attributes[:-1], data)


def event_headers(model: str, id: str, seconds: float) -> str:
    """Header lines of a binary answer."""
    attributes = _attributes(model, id, seconds)
    return "\r\n".join(f"ce-{name}: {_escaped(value)}" for name, value in attributes.items())


def _escaped(value: str) -> str:
    """A header's value: what is not printable ASCII, and space, quote and percent sign, goes percent-encoded."""
    plain = [chr(b) if 0x21 <= b <= 0x7E and b not in (0x22, 0x25) else f"%{b:02X}" for b in value.encode()]
    return "".join(plain)

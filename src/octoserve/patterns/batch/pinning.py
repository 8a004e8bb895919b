"""The route plan that a job pins: where it comes from, what of it shapes a row, which column holds its key.

See docs/decisions/0013-rollouts-in-batch.md.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from octoserve.connectors.arrow import Schema
from octoserve.control.store import FILE, plans_in
from octoserve.core.errors import NotFound, SettingsError, Unavailable
from octoserve.core.evidence import CANDIDATE, STABLE
from octoserve.patterns.batch.matching import datatype_of
from octoserve.routing.key import INPUT, parse_key
from octoserve.routing.plan import RoutePlan

ADMIN = "http://127.0.0.1:8082"
URL_VARIABLE = "OCTOSERVE_ADMIN_URL"
TOKEN_VARIABLE = "OCTOSERVE_ADMIN_TOKEN"
_TIMEOUT = 10.0


def plan_from(place: str | None, endpoint: str) -> RoutePlan:
    """What an admin API's address, a state directory or a file says of the endpoint. Blocking.

    place: None for the admin API that other commands would ask
    Raises SettingsError, NotFound, Unavailable.
    """
    place = place or os.environ.get(URL_VARIABLE) or ADMIN
    path = Path(place)
    if path.is_dir():
        found = next((plan for plan in plans_in(path) if plan.endpoint == endpoint), None)
        if found is None:
            raise NotFound(f"--plan: {path / FILE} says nothing of the endpoint {endpoint!r}; did it ever serve here?")
        return found
    return _decoded(path.read_bytes() if path.is_file() else _asked(place, endpoint), place, endpoint)


def _decoded(data: bytes, place: str, endpoint: str) -> RoutePlan:
    try:
        plan: RoutePlan = msgspec.json.decode(data, type=RoutePlan)
    except msgspec.DecodeError as error:
        raise SettingsError(f"--plan: {place} holds no route plan: {error}") from None
    if plan.endpoint != endpoint:
        raise SettingsError(f"--plan: {place} is of the endpoint {plan.endpoint!r}; that of {endpoint!r} is wanted")
    return plan


def _asked(place: str, endpoint: str) -> bytes:
    url = place if "//" in place else f"http://{place}"
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"--plan {place!r}: an address like {ADMIN}, a state directory or a file is wanted")
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/api/models/{quote(endpoint, safe='')}/plan", None, headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        told = error.read(2000).decode("utf-8", "replace")
        hint = f"; the token comes from {TOKEN_VARIABLE}" if error.code in (401, 403) else ""
        raise SettingsError(f"--plan: the service at {place} answered {error.code} {told.strip()}{hint}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        raise Unavailable(
            f"--plan: neither a file nor a folder is called {place}, and no service answers there ({why}); name one, "
            "or a service's state directory"
        ) from None


def shaping(plan: RoutePlan) -> RoutePlan:
    """What of a plan says who answers a row; what only says how it is watched is left out."""
    arms = tuple(arm for arm in plan.arms if arm.hi > arm.lo or arm.role == STABLE)
    one = len(arms) == 1 and not plan.overrides
    return RoutePlan(
        plan.endpoint, 0, arms, "" if one else plan.seed, "" if one else plan.key, overrides=dict(plan.overrides)
    )


def candidate_of(plan: RoutePlan) -> int:
    """The version on trial. Raises SettingsError if there is none."""
    arms = [arm.version for arm in plan.arms if arm.role == CANDIDATE]
    found = arms + [mirror.version for mirror in plan.mirrors]
    if not found:
        raise SettingsError(
            f"--shadow candidate: no rollout of {plan.endpoint!r} is under way, all goes to version {plan.stable}; "
            "name the version"
        )
    return found[0]


def key_column(plan: RoutePlan, asked: str, schema: Schema) -> str:
    """The column whose values a plan's buckets go by; "" where it has but one version. Raises SettingsError."""
    if not plan.versions() - {plan.stable}:
        return ""
    name = asked
    if not name:
        source = parse_key(plan.key) if plan.key else None
        if source is None or source.kind != INPUT or source.name not in schema.names:
            why = f"goes by {plan.key}, which is no column of the table" if plan.key else "draws by chance"
            raise SettingsError(
                f"--plan-key: the route plan of {plan.endpoint!r} {why}; name the column that holds the key, of "
                f"{_few(schema.names)}"
            )
        name = source.name
    if name not in schema.names:
        raise SettingsError(f"--plan-key: the table has no column {name!r}; it has {_few(schema.names)}")
    datatype = datatype_of(schema.field(name).type)
    if datatype is None or datatype.startswith("FP"):
        raise SettingsError(
            f"--plan-key: text, whole numbers or booleans are wanted, {name} is {schema.field(name).type}, which "
            "can be written in more than one way"
        )
    return name


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")

"""Where a route plan comes from that somebody else carries out: a service's admin API, its state directory, a file.

For batch jobs and queues, which split as the service does. See docs/decisions/0013-rollouts-in-batch.md.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import msgspec

from octoserve.control.store import FILE, plans_in
from octoserve.core.errors import NotFound, SettingsError, Unavailable
from octoserve.core.evidence import STABLE
from octoserve.routing.plan import RoutePlan
from octoserve.security.trust import client_context

ADMIN = "http://127.0.0.1:8082"
URL_VARIABLE = "OCTOSERVE_ADMIN_URL"
TOKEN_VARIABLE = "OCTOSERVE_ADMIN_TOKEN"
_TIMEOUT = 10.0


def plan_from(place: str | None, endpoint: str) -> RoutePlan:
    """What an admin API's address, a state directory or a file says of the endpoint. Blocking.

    place: None for the admin API that other commands would ask
    Raises SettingsError, NotFound, Unavailable.
    """
    place = place_of(place)
    path = Path(place)
    if path.is_dir():
        found = next((plan for plan in plans_in(path) if plan.endpoint == endpoint), None)
        if found is None:
            raise NotFound(f"--plan: {path / FILE} says nothing of the endpoint {endpoint!r}; did it ever serve here?")
        return found
    return _decoded(path.read_bytes() if path.is_file() else _asked(place, endpoint), place, endpoint)


def place_of(asked: str | None) -> str:
    """Where to ask: what was named, else the admin API that other commands would ask."""
    return asked or os.environ.get(URL_VARIABLE) or ADMIN


def is_service(place: str) -> bool:
    """Whether it is the address of a service, and no file or folder."""
    return not Path(place).exists()


def _decoded(data: bytes, place: str, endpoint: str) -> RoutePlan:
    try:
        plan: RoutePlan = msgspec.json.decode(data, type=RoutePlan)
    except msgspec.DecodeError as error:
        raise SettingsError(f"--plan: {place} holds no route plan: {error}") from None
    if plan.endpoint != endpoint:
        raise SettingsError(f"--plan: {place} is of the endpoint {plan.endpoint!r}; that of {endpoint!r} is wanted")
    return plan


def _asked(place: str, endpoint: str) -> bytes:
    return call(place, f"/api/models/{quote(endpoint, safe='')}/plan")


def call(place: str, path: str, body: bytes | None = None, timeout: float = _TIMEOUT) -> bytes:
    """What a service's admin API answers; POST where there is a body. Blocking.

    Raises SettingsError for a refusal, Unavailable where nobody answers, or not now.
    """
    url = place if "//" in place else f"http://{place}"
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"--plan {place!r}: an address like {ADMIN}, a state directory or a file is wanted")
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}{path}", body)
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")  # it is of this service alone
        context = client_context() if url.startswith("https://") else None
        with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        told = error.read(2000).decode("utf-8", "replace")
        hint = f"; the token comes from {TOKEN_VARIABLE}" if error.code in (401, 403) else ""
        said = f"--plan: the service at {place} answered {error.code} {told.strip()}{hint}"
        raise (Unavailable if error.code >= 500 else SettingsError)(said) from None
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

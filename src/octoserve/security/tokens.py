"""Tokens of an identity provider (JWT, RFC 7519), by the keys that it publishes (JWKS, RFC 7517).

The only user of PyJWT. Only asymmetric algorithms, only those of the settings, and only with a key of the type that
belongs to them (RFC 8725).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from octoserve.core.clock import Clock
from octoserve.core.errors import SettingsError, Unauthenticated, Unavailable
from octoserve.security.caller import RESERVED, Caller
from octoserve.security.settings import Jwt

log = logging.getLogger(__name__)

MAX_TOKEN = 16 << 10
_REMEMBERED = 4096
_OF_TYPE: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
_OPTIONS = {"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
"""Times are checked here, by a clock that is injected."""


class PublicKey(NamedTuple):
    """One of the provider's. algorithms: those that it may be used with."""

    key: Any
    algorithms: tuple[str, ...]


def library() -> Any:
    """PyJWT. Raises SettingsError where it is not installed."""
    try:
        import cryptography  # noqa: F401 - PyJWT itself comes without it, and then knows HMAC alone
        import jwt
    except ImportError:
        raise SettingsError("security.jwt: PyJWT is missing; pip install 'octoserve[jwt]'") from None
    return jwt


def public_keys(content: bytes, where: str) -> dict[str, PublicKey]:
    """The keys of a JWKS that can verify something, by their `kid`. Raises SettingsError."""
    jwt = library()
    try:
        listed = json.loads(content)["keys"]
        found = {str(one.get("kid", "")): one for one in listed}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SettingsError(f'security.jwt.jwks: {where}: no JWKS; {{"keys": [...]}} is wanted') from None
    keys: dict[str, PublicKey] = {}
    for kid, one in found.items():
        kind = (str(one.get("kty")), str(one.get("crv", "")) if one.get("kty") in ("EC", "OKP") else "")
        algorithms = _OF_TYPE.get(kind, ())
        if one.get("alg") is not None:
            algorithms = tuple(name for name in algorithms if name == one["alg"])
        if not algorithms or one.get("use", "sig") != "sig":
            continue
        try:
            keys[kid] = PublicKey(jwt.PyJWK(one, algorithm=algorithms[0]).key, algorithms)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            log.warning("security.jwt.jwks: %s: a key cannot be used and is passed over", where)
    if not keys:
        raise SettingsError(f"security.jwt.jwks: {where}: no key that can verify a token (RSA, EC, Ed25519, Ed448)")
    return keys


class TokenVerifier:
    """By one set of keys; made anew when they change. missed: a token named a key that is not among them."""

    def __init__(
        self,
        settings: Jwt,
        keys: Mapping[str, PublicKey],
        missed: Callable[[], None] = lambda: None,
        wall: Clock = time.time,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._missed = missed
        self._wall = wall
        self._jwt = library()
        self._known: dict[bytes, Caller] = {}

    def caller(self, token: str, digest: bytes) -> Caller:
        """Who it names. Raises Unauthenticated, whose text repeats nothing of the token."""
        now = self._wall()
        known = self._known.get(digest)
        if known is None:
            known = self._verified(token, now)
            if len(self._known) >= _REMEMBERED:
                self._forget(now)
            self._known[digest] = known
        if now >= known.until:
            self._known.pop(digest, None)
            raise Unauthenticated("the token has expired", given=True)
        return known

    def _forget(self, now: float) -> None:
        """Those that have expired; if none has, all: they are verified again."""
        self._known = {digest: caller for digest, caller in self._known.items() if caller.until > now}
        if len(self._known) >= _REMEMBERED:
            self._known.clear()

    def _verified(self, token: str, now: float) -> Caller:
        jwt, settings = self._jwt, self._settings
        if len(token) > MAX_TOKEN:
            raise Unauthenticated(f"a token has at most {MAX_TOKEN} bytes", given=True)
        try:
            header = jwt.get_unverified_header(token)
            key = self._key(header)
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[name for name in settings.algorithms if name in key.algorithms],
                audience=list(settings.audience),
                issuer=settings.issuer,
                options=_OPTIONS,
            )
        except jwt.InvalidAudienceError:
            raise Unauthenticated("the token is for another audience", given=True) from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated("the token is of another issuer", given=True) from None
        except jwt.MissingRequiredClaimError as error:
            raise Unauthenticated(f"the token lacks the claim {error.claim}", given=True) from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated("the token is malformed, or its signature is wrong", given=True) from None
        return self._named(claims, now)

    def _key(self, header: Mapping[str, Any]) -> PublicKey:
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._settings.algorithms:
            wanted = ", ".join(self._settings.algorithms)
            raise Unauthenticated(f"the token is signed with an algorithm that is not taken here; {wanted}", given=True)
        key = self._keys.get(str(kid)) if kid is not None else None
        if kid is None and len(self._keys) == 1:
            key = next(iter(self._keys.values()))
        if key is None:
            self._missed()
            raise Unauthenticated("the token is signed with a key that the issuer does not list", given=True)
        if algorithm not in key.algorithms:
            raise Unauthenticated("the token's algorithm is not its key's", given=True)
        return key

    def _named(self, claims: Mapping[str, Any], now: float) -> Caller:
        settings = self._settings
        try:
            until, since = float(claims["exp"]) + settings.skew, float(claims.get("nbf", 0)) - settings.skew
        except (TypeError, ValueError, OverflowError):
            until = since = math.nan
        if not (math.isfinite(until) and math.isfinite(since)):  # JSON of Python's has NaN, which is never over
            raise Unauthenticated("the token's exp or nbf is no number", given=True) from None
        if now >= until:
            raise Unauthenticated("the token has expired", given=True)
        if now < since:
            raise Unauthenticated("the token is not valid yet", given=True)
        told = claims.get(settings.models_claim, ())
        values = told.split() if isinstance(told, str) else told if isinstance(told, list) else ()
        names = [value for value in values if isinstance(value, str)]
        if settings.mapping:
            names = [model for name in names for model in settings.mapping.get(name, ())]
        name = str(claims.get(settings.name_claim) or "a token")[:200]
        if name in RESERVED or not name.isprintable():
            name = repr(name)
        return Caller(name, names, settings.may, until=until)


class NoKeysYet:
    """In place of a verifier, until the provider's keys have come for the first time."""

    def caller(self, token: str, digest: bytes) -> Caller:
        """Nobody can be known."""
        raise Unavailable("the identity provider's keys have not come yet; try again")

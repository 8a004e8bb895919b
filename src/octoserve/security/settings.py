"""What a process is told of security, once: where its files lie. `octoserve.spec` makes it."""

from __future__ import annotations

import msgspec


class Tls(msgspec.Struct, frozen=True):
    """PEM files. client_ca: who signs the certificates that clients must show; "" wants none."""

    certificate: str
    key: str
    client_ca: str = ""


class Jwt(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of an identity provider. jwks: a file, wherever its content comes from. skew: seconds."""

    jwks: str
    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    name_claim: str = "sub"
    models_claim: str = "models"
    mapping: dict[str, tuple[str, ...]] = {}
    """Value of the claim -> models; empty: the claim's values are models."""
    may: tuple[str, ...] = ("infer",)
    skew: float = 30.0


class Security(msgspec.Struct, frozen=True):
    """keys: the keys' file, "" for none. inside: a folder's path and the beginning of a name, for the Unix sockets by
    which the service asks itself."""

    tls: Tls | None = None
    keys: str = ""
    jwt: Jwt | None = None
    inside: str = ""

    @property
    def on(self) -> bool:
        """Whether there is any of it."""
        return self.tls is not None or self.wants_callers

    @property
    def wants_callers(self) -> bool:
        """Whether a request must say who makes it."""
        return bool(self.keys) or self.jwt is not None

"""The section `security` of `octoserve.yaml`: certificates, keys, tokens. See docs/security.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from octoserve.core.names import is_loopback
from octoserve.spec.batch import Words
from octoserve.spec.values import Duration, Section

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip
Right = Literal["infer", "read", "manage"]


def _place(value: str) -> str:
    """A file, or an address that nobody on the way can answer for."""
    if "://" in value:
        parts = urlsplit(value)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise ValueError("a file, or an https:// address")
        if parts.username or parts.password or not parts.hostname:
            raise ValueError("an https:// address with a host, without a name and password")
    return value


class TlsSection(Section):
    """Certificates of the HTTP, the gRPC and the admin port; read anew when the files change."""

    certificate: Path
    """PEM: the certificate, its chain behind it."""
    key: Path
    """PEM: its key, without a password."""
    client_ca: Path | None = None
    """PEM: who signs the certificates that clients of the HTTP and the gRPC port must show; unset: they show none."""


class JwtSection(Section):
    """Tokens of an identity provider."""

    jwks: Annotated[str, AfterValidator(_place)]
    """The provider's keys: a file, or an https:// address that is asked every `refresh`."""
    issuer: str
    """What the claim `iss` must be."""
    audience: Annotated[Words, Field(min_length=1)]
    """One of these must be in the claim `aud`."""
    algorithms: Annotated[list[Algorithm], Field(min_length=1)] = Field(default=["RS256", "ES256", "EdDSA"])
    """How tokens may be signed."""
    name_claim: str = "sub"
    """The claim that names the caller."""
    models_claim: str = "models"
    """The claim that says which models: a list, or words in a text; `*` stands for any letters."""
    mapping: dict[str, Words] = Field(default_factory=dict)
    """Models by the claim's values, `{fraud-team: [fraud, "risk-*"]}`; unset: its values are models themselves."""
    may: Annotated[list[Right], Field(min_length=1)] = Field(default=["infer"])
    """What a token's holder may do with these models."""
    skew: Annotated[Duration, Field(ge=0, le=600)] = 30.0
    """By how much the provider's clock and ours may differ."""
    refresh: Annotated[Duration, Field(ge=10)] = 300.0
    """How often an address is asked for its keys; also when a token names one that is not known."""
    ca: Path | None = None
    """PEM: who signs the address's certificate; unset: the system's authorities."""

    @property
    def is_address(self) -> bool:
        """Whether the keys are fetched."""
        return "://" in self.jwks


class SecuritySection(Section):
    """Who may ask. With nothing set everybody may, and nothing is encrypted."""

    tls: TlsSection | None = None
    """Certificates of our ports."""
    keys: Path | None = None
    """File of hashed keys, each with rights on models or a role on the admin API; read anew when it changes."""
    jwt: JwtSection | None = None
    """Tokens that an identity provider has signed."""

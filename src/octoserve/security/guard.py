"""All that one process has to know of security: its ports' certificates and its callers, followed through changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octoserve.security.access import Access, Tokens
from octoserve.security.caller import Caller
from octoserve.security.keys import read_keys
from octoserve.security.settings import Jwt, Security
from octoserve.security.watched import Told, Watched

if TYPE_CHECKING:
    from octoserve.security.certificates import Certificates


class Guard:
    """`open`, or `look` until it is `ready`; then `look` about once a second.

    extra:     keys beside those of the file
    missed:    a token named a key that the provider's keys lack
    told:      see `watched`
    """

    def __init__(
        self,
        settings: Security,
        *,
        extra: Mapping[bytes, Caller] | None = None,
        missed: Callable[[], None] = lambda: None,
        told: Told = lambda what, good: None,
    ) -> None:
        self.certificates: Certificates | None = None
        if settings.tls is not None:
            from octoserve.security.certificates import Certificates

            self.certificates = Certificates(settings.tls, told)
        ring = dict(extra or {})
        self._keys: Watched[dict[bytes, Caller]] | None = None
        if settings.keys:
            path = Path(settings.keys)
            self._keys = Watched("security.keys", (settings.keys,), lambda: {**read_keys(path), **ring}, told)
        self._jwks = Path(settings.jwt.jwks) if settings.jwt is not None else None
        self._tokens: Watched[Tokens] | None = None
        if settings.jwt is not None:
            jwt = settings.jwt
            self._tokens = Watched("security.jwt.jwks", (jwt.jwks,), lambda: _verifier(jwt, missed), told)
        self.access: Access | None = None
        """None where nobody has to say who they are."""
        if settings.wants_callers or ring:
            self.access = Access(
                lambda: (self._keys.value or {}) if self._keys is not None else ring, self._tokens_in_force
            )

    def open(self) -> None:
        """Read all files now. Raises SettingsError. A provider's keys may come later."""
        for files in self._files:
            if files is not self._tokens or self._has_jwks():
                files.open()

    def look(self) -> bool:
        """Read what has changed. Where that is something, what was worked out for a caller before holds no more."""
        changed = [files.look() for files in self._files]  # each of them, whatever came of the others
        return any(changed)

    @property
    def ready(self) -> bool:
        """Whether each of the files could be used once. Until then no door may open."""
        return all(files.value is not None for files in self._files if files is not self._tokens or self._has_jwks())

    def stale(self) -> dict[tuple[str, ...], float]:
        """By what it is: 1 where the files, as they are, cannot be used."""
        return {(files.what,): float(files.stale) for files in self._files}

    @property
    def _files(self) -> list[Watched[Any]]:
        tls = self.certificates.files if self.certificates is not None else None
        return [files for files in (tls, self._keys, self._tokens) if files is not None]

    def _has_jwks(self) -> bool:
        return self._jwks is not None and self._jwks.exists()

    def _tokens_in_force(self) -> Tokens | None:
        if self._tokens is None:
            return None
        if self._tokens.value is None:
            from octoserve.security.tokens import NoKeysYet

            return NoKeysYet()
        return self._tokens.value


def _verifier(settings: Jwt, missed: Callable[[], None]) -> Tokens:
    from octoserve.core.errors import SettingsError
    from octoserve.security.tokens import TokenVerifier, public_keys

    try:
        content = Path(settings.jwks).read_bytes()
    except OSError as error:
        raise SettingsError(f"security.jwt.jwks: cannot read {settings.jwks}: {error.strerror}") from None
    return TokenVerifier(settings, public_keys(content, settings.jwks), missed)

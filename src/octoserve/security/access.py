"""From a request's headers to a caller: by key, else by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from octoserve.core.errors import Unauthenticated
from octoserve.security.caller import Caller
from octoserve.security.keys import Ring, digest_of

WANTED = "a key or token is wanted: Authorization: Bearer KEY, or X-API-Key: KEY"


class Tokens(Protocol):
    """Knows tokens by their signatures."""

    def caller(self, token: str, digest: bytes) -> Caller:
        """Raises Unauthenticated, Unavailable."""
        ...


class Access:
    """keys, tokens: what is in force now; asked for each caller."""

    def __init__(self, keys: Callable[[], Ring], tokens: Callable[[], Tokens | None] = lambda: None) -> None:
        self._keys = keys
        self._tokens = tokens

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """headers: names in lower case, values in Latin-1. Raises Unauthenticated, Unavailable."""
        given = headers.get("authorization")
        if given is None:
            credential = headers.get("x-api-key", "")
        else:
            kind, _, credential = given.partition(" ")
            if kind.lower() != "bearer":
                raise Unauthenticated(WANTED)
        credential = credential.strip()
        if not credential:
            raise Unauthenticated(WANTED)
        digest = digest_of(credential)
        caller = self._keys().get(digest)
        if caller is not None:
            return caller
        tokens = self._tokens()
        if tokens is not None and credential.count(".") == 2:
            return tokens.caller(credential, digest)
        raise Unauthenticated("this key is not known here", given=True)

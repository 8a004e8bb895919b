"""The supervisor's part in security: who may use the admin API, its certificate, and the identity provider's keys.

Workers read the same files by themselves. A provider's keys are fetched here and left in a file of the state directory,
which outlives an outage of the provider, and this process.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from octoserve.core.errors import OctoserveError, SettingsError
from octoserve.core.names import is_loopback
from octoserve.patterns.online.supervisor.service_files import write_atomically
from octoserve.security.caller import ADMIN, ADMIN_API, Caller
from octoserve.security.guard import Guard
from octoserve.security.keys import digest_of
from octoserve.security.settings import Jwt, Security, Tls

if TYPE_CHECKING:
    from octoserve.spec import JwtSection, ServeSettings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PATIENCE = 10.0
"""That a start has with the provider."""
AGAIN_SECONDS = 10.0
"""Between two questions to the provider at least, whatever tokens come."""


class SecurityWatch:
    """inside: the beginning of the sockets' path by which the service asks itself. fetch: as `fetching.fetch`."""

    def __init__(self, settings: ServeSettings, inside: Path, fetch: Callable[[str, str], bytes] | None = None) -> None:
        section = settings.security
        self._jwt = section.jwt
        self._fetch = fetch or _fetch
        self._jwks = _jwks_file(section.jwt, settings.state_dir) if section.jwt is not None else Path()
        self._complaint = ""
        self._asked_at = float("-inf")
        self._wanted = False
        tls = None
        if section.tls is not None:
            ca = section.tls.client_ca
            tls = Tls(_whole(section.tls.certificate), _whole(section.tls.key), _whole(ca) if ca else "")
        keys = _whole(section.keys) if section.keys is not None else ""
        jwt = _told(section.jwt, self._jwks) if section.jwt is not None else None
        self.told = Security(tls, keys, jwt, str(inside))
        """What a worker is told."""
        extra = {}
        if settings.admin_token:
            token = settings.admin_token.encode().decode("latin-1")  # as a header has it
            extra = {digest_of(token): Caller(ADMIN_API, may=(), role=ADMIN)}
        self.guard = Guard(Security(tls, keys), extra=extra)
        """Of the admin API."""
        if self.told.wants_callers and tls is None and not is_loopback(settings.host):
            log.warning("security: keys and tokens come in clear text to %s; set security.tls", settings.host)

    def open(self) -> None:
        """Read all files once. Raises SettingsError."""
        self.guard.open()
        if self._jwt is not None:
            Guard(Security(jwt=self.told.jwt)).open()

    async def prepare(self) -> None:
        """Have the provider's keys before the first worker needs them, or say that they will come later."""
        if self._jwt is not None and self._jwt.is_address:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._refresh(self._jwt)
            except TimeoutError:
                log.error("security.jwt.jwks: %s does not answer; no token is known until it does", self._jwt.jwks)

    async def run(self) -> None:
        """Follow the files, and the provider's keys. Ends by cancellation."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._follow_files())
            if self._jwt is not None and self._jwt.is_address:
                both.create_task(self._follow_provider(self._jwt))

    async def _follow_files(self) -> None:
        while True:
            await asyncio.to_thread(self.guard.look)
            await asyncio.sleep(LOOK_SECONDS)

    async def _follow_provider(self, jwt: JwtSection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            every = AGAIN_SECONDS if self._complaint or self._wanted else jwt.refresh
            if loop.time() - self._asked_at >= every:
                await self._refresh(jwt)
            await asyncio.sleep(LOOK_SECONDS)

    def missed(self) -> None:
        """A token named a key that is not known: ask the provider soon."""
        self._wanted = True

    async def _refresh(self, jwt: JwtSection) -> None:
        """Fetch, check, and leave it for the workers. What cannot be used leaves what was there."""
        self._wanted = False
        self._asked_at = asyncio.get_running_loop().time()
        try:
            changed = await asyncio.to_thread(self._take, jwt)
        except (OctoserveError, OSError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                known = "the keys that are known go on" if self._jwks.exists() else "no token is known until they come"
                log.error("%s; %s", error, known)
            return
        if self._complaint or changed:
            log.info("security.jwt.jwks: %s: %s", jwt.jwks, "its keys have changed" if changed else "answers again")
        self._complaint = ""

    def _take(self, jwt: JwtSection) -> bool:
        """Whether it is new. Raises Unavailable, SettingsError, OSError."""
        from octoserve.security.tokens import public_keys

        content = self._fetch(jwt.jwks, str(jwt.ca or ""))
        public_keys(content, jwt.jwks)
        if self._jwks.exists() and self._jwks.read_bytes() == content:
            return False
        self._jwks.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._jwks, content)
        return True


def _fetch(url: str, ca: str) -> bytes:
    from octoserve.security.fetching import fetch

    return fetch(url, ca)


def _jwks_file(jwt: JwtSection, state_dir: Path) -> Path:
    from octoserve.security.tokens import library

    library()
    if not jwt.is_address:
        if not Path(jwt.jwks).exists():
            raise SettingsError(f"security.jwt.jwks: {jwt.jwks} is not there")
        return Path(jwt.jwks).absolute()
    return state_dir.absolute() / f"jwks-{hashlib.sha256(jwt.jwks.encode()).hexdigest()[:16]}.json"


def _told(jwt: JwtSection, jwks: Path) -> Jwt:
    return Jwt(
        jwks=str(jwks),
        issuer=jwt.issuer,
        audience=tuple(jwt.audience),
        algorithms=tuple(jwt.algorithms),
        name_claim=jwt.name_claim,
        models_claim=jwt.models_claim,
        mapping={value: tuple(models) for value, models in jwt.mapping.items()},
        may=tuple(jwt.may),
        skew=jwt.skew,
    )


def _whole(path: Path) -> str:
    """Links are followed when the file is read: an orchestrator swaps them."""
    return str(path.absolute())

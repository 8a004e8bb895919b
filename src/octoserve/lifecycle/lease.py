"""A handle on a ready version, and counted leases: no version unloads while a request holds it."""

from __future__ import annotations

from collections.abc import Callable

from octoserve.core.signature import Signature
from octoserve.lifecycle.states import VersionRef
from octoserve.runtimes.protocol import LoadedModel


class Handle:
    """A loaded version. Single-threaded: leases are taken and released on the event loop only."""

    __slots__ = ("_idle", "lanes", "leases", "loaded", "ref", "signature")

    def __init__(self, ref: VersionRef, loaded: LoadedModel) -> None:
        self.ref = ref
        self.loaded = loaded
        self.signature: Signature = loaded.signature
        self.lanes: int = getattr(loaded, "lanes", 0)  # runtimes of others may not know of them
        self.leases = 0
        """Who takes one adds one, and holds it briefly: a plain sum, since every request does."""
        self._idle: Callable[[], None] | None = None

    def release(self, count: int = 1) -> None:
        """Give leases back; the last one of a draining version lets it unload."""
        self.leases -= count
        if self._idle is not None and self.leases == 0:
            idle, self._idle = self._idle, None
            idle()

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call back once no lease is held; at once if none is."""
        if self.leases == 0:
            callback()
        else:
            self._idle = callback

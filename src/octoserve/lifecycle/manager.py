"""Holds the versions of one worker: loads what is wanted and missing, drains and unloads what is not.

`apply` states the desired set; the manager gets there. Loading, digests, warm-up and freeing run in one
dedicated thread, one version at a time and at low priority, so that they leave the hot path alone.
Everything else runs on the event loop, and every change of state goes through `states.advance`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from octoserve.core.errors import BrokenVersion, OctoserveError
from octoserve.lifecycle.lease import Handle
from octoserve.lifecycle.loading import load
from octoserve.lifecycle.states import State, VersionRef, VersionReport, advance
from octoserve.lifecycle.warmup import Warm, warm
from octoserve.repository.digest import folder_digest, stamp
from octoserve.runtimes.protocol import LoadedModel, Runtime

log = logging.getLogger(__name__)

DRAIN_DEADLINE = 30.0
LOADER_NICENESS = 5
"""About a quarter of a contended core: requests go first, and a load still ends in reasonable time."""

Key = tuple[str, int]
Post = Callable[[Callable[[], None]], None]


class Loader(Protocol):
    """Where blocking work goes."""

    def __call__(self, work: Callable[[], None]) -> None:
        """Run `work` later, one at a time, in the order of submission."""
        ...


class _Entry:
    """One version in this worker."""

    __slots__ = ("handle", "reason", "ref", "state", "tried")

    def __init__(self, ref: VersionRef) -> None:
        self.ref = ref
        self.state = State.NEW
        self.reason = ""
        self.tried = ref.attempt
        self.handle: Handle | None = None


class Manager:
    """See the module. Lives on one event loop.

    on_ready:  a version may be queued to
    on_retire: it may not any more; what holds a lease finishes
    on_report: all versions with their states, after every change
    digest:    of a folder's contents
    files:     what tells whether a folder's files are the same as before
    """

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        loop: asyncio.AbstractEventLoop,
        *,
        on_ready: Callable[[Handle], None],
        on_retire: Callable[[Handle], None],
        on_report: Callable[[list[VersionReport]], None],
        drain_deadline: float = DRAIN_DEADLINE,
        loader: Loader | None = None,
        digest: Callable[[Path], str] = folder_digest,
        files: Callable[[Path], object] = stamp,
        warm_up: Warm = warm,
    ) -> None:
        self._runtimes = runtimes
        self._loop = loop
        self._on_ready = on_ready
        self._on_retire = on_retire
        self._on_report = on_report
        self._drain_deadline = drain_deadline
        self._loader = loader or LoaderThread()
        self._digest = digest
        self._stamp = files
        self._warm = warm_up
        self._entries: dict[Key, _Entry] = {}
        self._wanted: dict[Key, VersionRef] = {}
        self._loading: Key | None = None
        self.cut_leases = 0
        """Leases that were still held when a drain deadline passed."""

    def apply(self, versions: Sequence[VersionRef]) -> None:
        """Make this the desired set. Versions are loaded in the given order."""
        self._wanted = {(ref.model, ref.version): ref for ref in versions}
        self._step()

    def reports(self) -> list[VersionReport]:
        """All versions with their states."""
        return [VersionReport(e.ref.model, e.ref.version, e.state, e.reason, e.tried) for e in self._entries.values()]

    # One observe-decide-act step; called after every change, and does nothing when nothing is to be done.

    def _step(self) -> None:
        before = self.reports()
        for key, entry in list(self._entries.items()):
            ref = self._wanted.get(key)
            if ref is None:
                self._leave(key, entry)
            elif entry.state is State.READY:
                entry.ref, entry.tried = ref, ref.attempt
            elif entry.state in (State.NEW, State.FAILED):
                entry.ref = ref
        for key, ref in self._wanted.items():
            if key not in self._entries:
                self._entries[key] = _Entry(ref)
        self._load_next()
        if self.reports() != before:
            self._on_report(self.reports())

    def _leave(self, key: Key, entry: _Entry) -> None:
        """It is not wanted: one that is loading is dropped when its load ends, one that drains goes on."""
        if entry.state in (State.NEW, State.FAILED):
            entry.state = advance(entry.state, State.UNLOADED)
            del self._entries[key]
        elif entry.state is State.READY:
            self._drain(key, entry)

    def _drain(self, key: Key, entry: _Entry) -> None:
        handle = entry.handle
        assert handle is not None
        entry.state = advance(entry.state, State.DRAINING)
        self._on_retire(handle)
        timer = self._loop.call_later(self._drain_deadline, self._drained, key, entry, True)

        def idle() -> None:
            timer.cancel()
            self._drained(key, entry, False)

        handle.when_idle(idle)

    def _drained(self, key: Key, entry: _Entry, cut: bool) -> None:
        if entry.state is not State.DRAINING:
            return
        handle = entry.handle
        assert handle is not None
        entry.state = advance(entry.state, State.UNLOADED)
        entry.handle = None
        if cut:
            # Not closed: a run may still be inside. It is freed when the last holder lets go.
            self.cut_leases += handle.leases
            log.warning("%s: unloaded while %d requests held it", entry.ref, handle.leases)
        else:
            self._loader(handle.loaded.close)
            log.info("%s: unloaded", entry.ref)
        del self._entries[key]
        self._loop.call_soon(self._step_and_report)

    def _step_and_report(self) -> None:
        self._on_report(self.reports())
        self._step()

    # Loading.

    def _load_next(self) -> None:
        if self._loading is not None:
            return
        for key in self._wanted:
            entry = self._entries[key]
            again = entry.state is State.FAILED and entry.ref.attempt != entry.tried
            if entry.state is State.NEW or again:
                entry.state = advance(entry.state, State.LOADING)
                entry.tried, entry.reason = entry.ref.attempt, ""
                self._loading = key
                self._loader(partial(self._load, entry, entry.ref))
                return

    def _load(self, entry: _Entry, ref: VersionRef) -> None:
        """In the loader thread."""
        loaded: LoadedModel | None = None
        try:
            loaded = self._load_checked(ref)
            self._post(lambda: self._warming(entry))
            note = self._warm(loaded, ref.max_batch_rows, Path(ref.path))
        except OctoserveError as error:
            reason = str(error)
            self._post(lambda: self._failed(entry, reason))
        except BaseException as error:
            log.exception("%s: loading failed", ref)
            reason = f"{type(error).__name__}: {error}"
            self._post(lambda: self._failed(entry, reason))
        else:
            done = loaded
            self._post(lambda: self._loaded(entry, Handle(ref, done), note))

    def _load_checked(self, ref: VersionRef) -> LoadedModel:
        folder = Path(ref.path)
        try:
            before = self._stamp(folder)
            came = self._digest(folder) if ref.digest else ""
        except OSError as error:
            raise BrokenVersion(f"{folder} cannot be read: {error}") from None
        if came != ref.digest:
            raise BrokenVersion(
                f"the files changed: digest {ref.digest[:19]} was announced, {came[:19]} is there; "
                "copy the version again, or publish it under a new number"
            )
        loaded = load(self._runtimes, ref.runtime, folder, ref.threads, ref.batching)
        try:
            changed = self._stamp(folder) != before
        except (OSError, OctoserveError):
            changed = True
        if changed:  # the runtime has read the files after the digest did
            loaded.close()
            raise BrokenVersion(
                f"the files changed while loading: {folder}; copy the version again, or publish it under a new number"
            )
        return loaded

    def _post(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: the process is leaving
            pass

    def _warming(self, entry: _Entry) -> None:
        entry.state = advance(entry.state, State.WARMING)
        self._on_report(self.reports())

    def _failed(self, entry: _Entry, reason: str) -> None:
        entry.state = advance(entry.state, State.FAILED)
        entry.reason = reason
        log.warning("%s: %s", entry.ref, reason)
        self._done(entry)

    def _loaded(self, entry: _Entry, handle: Handle, note: str) -> None:
        key = (entry.ref.model, entry.ref.version)
        if key not in self._wanted:
            entry.state = advance(entry.state, State.UNLOADED)
            del self._entries[key]
            self._loader(handle.loaded.close)
        else:
            entry.state = advance(entry.state, State.READY)
            entry.handle, entry.reason = handle, note
            log.info("%s: ready%s", entry.ref, f" ({note})" if note else "")
            self._on_ready(handle)
        self._done(entry)

    def _done(self, entry: _Entry) -> None:
        self._loading = None
        self._on_report(self.reports())
        self._step()


class LoaderThread:
    """One thread at low priority, started with its first work. It never keeps a process from leaving.

    Best effort: where priorities are per process, nothing is lowered.
    """

    def __init__(self, niceness: int = LOADER_NICENESS) -> None:
        self._niceness = niceness
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, work: Callable[[], None]) -> None:
        """See `Loader`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
            self._thread.start()
        self._queue.put(work)

    def _run(self) -> None:
        self._lower()
        while True:
            try:
                self._queue.get()()
            except Exception:
                log.exception("in the loader thread")

    def _lower(self) -> None:
        if sys.platform != "linux":
            return
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        except OSError:
            pass

"""One worker as the supervisor knows it, and its place."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from octoserve.control.snapshot import Key, WorkerView
from octoserve.core.evidence import Seen
from octoserve.lifecycle.states import VersionReport
from octoserve.patterns.online.link.messages import Hello
from octoserve.patterns.online.link.unix_socket import frame
from octoserve.patterns.online.supervisor.worker_process import WorkerProcess


class Member:
    """A process and what it has said."""

    def __init__(
        self, process: WorkerProcess, index: int, fingerprint: str, born: float, adopted: bool = False
    ) -> None:
        self.process = process
        self.index = index
        self.fingerprint = fingerprint
        self.born = born
        self.adopted = adopted
        self.pid_known = False
        """It has said Hello to this supervisor."""
        self.generation = 0
        self.hello: Hello | None = None
        self.reports: Mapping[Key, VersionReport] | None = None
        """None until it has told its state on this connection."""
        self.snapshot = b""
        self.collected = 0
        self.seen: tuple[Seen, ...] = ()
        """What it has last told of each split."""
        self.observed = 0
        self.heard_at = born
        self.lost_at = born
        self.asked_at: float | None = None
        """When the oldest unanswered Collect was sent."""
        self.draining = False
        self.leave_by: float | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def connected(self) -> bool:
        """Whether it can be spoken to."""
        return self._writer is not None

    def connect(self, hello: Hello, writer: asyncio.StreamWriter, now: float) -> None:
        """A new connection replaces an old one."""
        if self._writer is not None:
            self._writer.close()
        self._writer = writer
        self.hello, self.generation, self.reports = hello, hello.generation, None
        self.pid_known = True
        self.heard_at, self.asked_at = now, None

    def disconnect(self, writer: asyncio.StreamWriter, now: float) -> None:
        """That connection is gone."""
        writer.close()
        if self._writer is writer:
            self._writer, self.reports, self.asked_at, self.lost_at = None, None, None, now

    def send(self, message: Any) -> None:
        """Write, if it is connected."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    def view(self) -> WorkerView:
        """What `reconcile` may know of it."""
        return WorkerView(index=self.index, generation=self.generation, reports=self.reports or {})


class Slot:
    """A worker's place: who is in it, and how often that failed."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.member: Member | None = None
        self.successor: Member | None = None
        self.failures = 0
        self.restarts = 0
        self.retry_at = 0.0

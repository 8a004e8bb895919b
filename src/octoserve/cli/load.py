"""A load generator for one HTTP endpoint: raw connections on one event loop, nothing between it and the socket.

Closed loop: each connection sends its next request when the answer to the last is there. Open loop
(`rate`): requests are due at fixed times, and latency counts from when a request was *due*, so that a server
which stalls is charged for the requests that it kept waiting (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import cast

_GIVE_UP = 5.0  # seconds to wait for the last answers


@dataclass
class Outcome:
    """What came of a run. Latencies in seconds, of answers with status 200 only."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    """Connections that ended before their answer."""
    unanswered: int = 0
    """Requests that were due or sent and had no answer when the run ended."""
    lags: list[float] = field(default_factory=list)
    """Of an open loop: by how much each request was noticed late, which is the generator's own doing."""
    sample: bytes = b""
    """One answer with status 200, or, if there was none, with another."""

    def percentile(self, q: float) -> float:
        """The latency that a share `q` of the answers did not exceed; NaN without answers."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


class Load:
    """One run against one endpoint."""

    def __init__(
        self,
        host: str,
        port: int,
        request: bytes,
        connections: int,
        rate: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._host = host
        self._port = port
        self.request = request
        self._connections = connections
        self._rate = rate
        self._due: deque[float] = deque()
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self.outcome = Outcome()
        self.running = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float, warm_up: float = 0.0) -> Outcome:
        """Load for `warm_up + seconds`; only what is sent after the warm-up counts."""
        loop = asyncio.get_running_loop()
        for _ in range(self._connections):
            await loop.create_connection(lambda: _Connection(self), self._host, self._port, ssl=self._tls)
        self.running = True
        if self._rate is None:
            for connection in list(self._all):
                connection.send(time.perf_counter())
        else:
            self._idle = list(self._all)
        await self._pace(warm_up)
        self.outcome = Outcome()
        start = time.perf_counter()
        await self._pace(seconds)
        self.running = False
        self.outcome.seconds = time.perf_counter() - start
        await self._finish()
        return self.outcome

    async def _pace(self, seconds: float) -> None:
        if self._rate is None:
            await asyncio.sleep(seconds)
            return
        start, sent = time.perf_counter(), 0
        while (now := time.perf_counter()) < start + seconds:
            while (due := start + sent / self._rate) <= now:
                self._due.append(due)
                self.outcome.lags.append(now - due)
                sent += 1
            self._send_due()
            await asyncio.sleep(min(0.001, 1 / self._rate))

    def _send_due(self) -> None:
        while self._due and self._idle:
            self._idle.pop().send(self._due.popleft())

    async def _finish(self) -> None:
        end = time.perf_counter() + _GIVE_UP
        while any(c.busy for c in self._all) and time.perf_counter() < end:
            await asyncio.sleep(0.01)
        self.outcome.unanswered = len(self._due) + sum(c.busy for c in self._all)
        for connection in list(self._all):
            connection.close()

    # --- connections report here ------------------------------------------------------------------------

    def opened(self, connection: _Connection) -> None:
        """A connection is there."""
        self._all.add(connection)

    def answered(self, connection: _Connection, status: int, since: float, body: bytes) -> None:
        """An answer is whole."""
        now = time.perf_counter()
        outcome = self.outcome
        outcome.statuses[status] += 1
        if status == 200:
            outcome.latencies.append(now - since)
        if not outcome.sample:
            outcome.sample = body
        if not self.running:
            return
        if self._rate is None:
            connection.send(now)
        elif self._due:
            connection.send(self._due.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        """A connection ended; while the run goes on another takes its place."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.busy:
            self.outcome.broken += 1
        if self.running:
            self._later_replace()

    def _later_replace(self) -> None:
        task = asyncio.get_running_loop().create_task(self._replace())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self) -> None:
        await asyncio.sleep(0.05)
        if not self.running:
            return
        loop = asyncio.get_running_loop()
        try:
            _, protocol = await loop.create_connection(lambda: _Connection(self), self._host, self._port, ssl=self._tls)
        except OSError:
            self.outcome.broken += 1
            self._later_replace()
            return
        if self._rate is None:
            protocol.send(time.perf_counter())
        else:
            self._idle.append(protocol)


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport
        self._buffer = b""
        self._since = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._load.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self)

    def close(self) -> None:
        self._transport.close()

    def send(self, since: float) -> None:
        self._since = since
        self.busy = True
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        head, separator, body = data.partition(b"\r\n\r\n")
        lower = head.lower()
        at = lower.find(b"content-length:")
        if not separator or at < 0 or len(body) < int(lower[at + 15 :].split(b"\r\n", 1)[0]):
            self._buffer = data
            return
        self._buffer = b""
        self.busy = False
        self._load.answered(self, int(head[9:12]), self._since, body)

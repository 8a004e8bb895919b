"""Starts the workers of a queue, starts them again when one dies, and adds up what they count.

It runs no model and holds no message, so what kills a worker does not kill it. How each died is passed on to the next
one, which writes it into the history of the messages that were running.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

import msgspec

from octoserve.control.rollout.following import Route
from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.patterns.message_queue.following import Deaths, Followed, Follower, said_of, seen_by
from octoserve.patterns.message_queue.settings import QueueSettings, WorkerConfig, owner_of
from octoserve.patterns.message_queue.worker import ASKED_WRONGLY, DONE, FENCED, Report
from octoserve.telemetry.families import Family, Labels, Sample
from octoserve.telemetry.prometheus import merge

log = logging.getLogger(__name__)

_LARGEST = 1 << 20
_LONGEST = 30.0
"""Seconds before a worker that dies again and again is started again, at most."""
_TRIES = 5
"""Deaths of workers of which none was ever ready, after which it is not tried again."""
_SOON = 0.2
_ENDS = 100
"""Deaths that are remembered for the histories of messages."""

Spawn = Callable[[WorkerConfig, socket.socket], "subprocess.Popen[bytes]"]


class _Place:
    """One worker after the other."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.link: socket.socket | None = None
        self.snapshot: list[Family] = []
        self.error = ""
        self.deaths = 0
        """In a row, without anything done in between."""
        self.due = 0.0
        self.over = False
        self.followed: Followed | None = None
        """What its worker says, where the queue follows a service; None of one that has said nothing yet."""
        self.told: Route | None = None
        """The last route that its worker was told."""


class Figures(msgspec.Struct, frozen=True):
    """Of all workers, those that have ended included, since the run began. oldest: seconds."""

    stored: int = 0
    repeated: int = 0
    retried: int = 0
    dead: int = 0
    behind: int = 0
    in_hand: int = 0
    oldest: float = 0.0

    @property
    def done(self) -> int:
        """Messages that have come to an end."""
        return self.stored + self.repeated + self.dead


class Supervisor:
    """Of one run of a queue."""

    def __init__(
        self,
        settings: QueueSettings,
        workers: int,
        spawn: Spawn,
        *,
        log_level: str = "info",
        log_format: str = "text",
        on_promise: Callable[[str], None] = lambda promise: None,
        on_figures: Callable[[Figures], None] = lambda figures: None,
        follower: Follower | None = None,
        clock: Clock = monotonic,
        look: float = _SOON,
    ) -> None:
        """follower: where the queue follows a service. look: seconds between looks at what has ended."""
        self._settings = settings
        self._spawn = spawn
        self._log = (log_level, log_format)
        self._on_promise = on_promise
        self._on_figures = on_figures
        self._follower = follower
        self._deaths = Deaths()
        self._clock = clock
        self._look = look
        self._places = [_Place(index) for index in range(workers)]
        self._past: list[Family] = []
        self._ends: dict[str, str] = {}
        self._selector = selectors.DefaultSelector()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Report).decode
        self._families = msgspec.msgpack.Decoder(list[Family]).decode
        self._ready = False
        self._promised = False
        self._stopping = False
        self.restarts = 0

    def stop(self) -> None:
        """Let the workers finish what they have in hand, and end. May be called by a signal's handler."""
        self._stopping = True
        for place in self._places:
            if place.process is not None and place.process.poll() is None:
                place.process.send_signal(signal.SIGTERM)

    def run(self) -> Figures:
        """Until every worker has ended well. Raises SettingsError, and Unavailable if none could ever start."""
        if self._follower is not None:
            self._follower.begin()
        try:
            while not all(place.over for place in self._places):
                for place in self._places:
                    if not place.over and place.process is None and self._clock() >= place.due:
                        self._start(place)
                for key, _ in self._selector.select(self._look):
                    self._hear(key.data)
                for place in self._places:
                    if place.process is not None and place.process.poll() is not None:
                        self._ended(place)
                self._follow()
        finally:
            self._end_all()
            if self._follower is not None:
                self._follow()
                self._follower.end()
        figures = self.figures()
        self._on_figures(figures)
        return figures

    def _follow(self) -> None:
        """Workers are told what the service says, and the service what they say."""
        if self._follower is None:
            return
        route = self._follower.route
        for place in self._places:
            if place.link is not None and place.told is not route:
                try:
                    place.link.send(self._encode(route), socket.MSG_DONTWAIT)
                except OSError:  # it is busy, or ends: the next look finds out
                    continue
                place.told = route
        words = [place.followed for place in self._places if not place.over]
        said = said_of(route, words, self._deaths.failed(route))
        self._follower.say(said, seen_by(route, words, self._deaths))

    def _start(self, place: _Place) -> None:
        if self._stopping:
            place.over = True
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LARGEST)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
        config = WorkerConfig(
            settings=self._settings,
            index=place.index,
            ends=self._ends,
            route=self._follower.route if self._follower is not None else None,
            log_level=self._log[0],
            log_format=self._log[1],
        )
        with theirs:
            place.process = self._spawn(config, theirs)
        place.link, place.error = ours, ""
        place.followed, place.told = None, config.route
        self._selector.register(ours, selectors.EVENT_READ, place)
        if self._stopping:  # the signal came while it was started, and did not find it
            self.stop()

    def _hear(self, place: _Place) -> bool:
        """One report; whether there was one."""
        if place.link is None:
            return False
        try:
            packet = place.link.recv(_LARGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            self._selector.unregister(place.link)
            place.link.close()
            place.link = None
            return False
        report = self._decode(packet)
        place.error = report.error or place.error
        if report.promise and not self._promised:
            self._promised = True
            self._on_promise(report.promise)
        if report.ready:
            self._ready = True
        if report.followed is not None:
            place.followed = report.followed
        if report.running is not None and place.followed is not None:
            place.followed = msgspec.structs.replace(place.followed, running=report.running)
        if report.snapshot:
            before = _done(place.snapshot)
            place.snapshot = self._families(report.snapshot)
            if _done(place.snapshot) > before:
                place.deaths = 0
            self._on_figures(self.figures())
        return True

    def _ended(self, place: _Place) -> None:
        assert place.process is not None
        while self._hear(place):
            pass
        if place.link is not None:
            self._selector.unregister(place.link)
            place.link.close()
            place.link = None
        code = place.process.returncode
        if code < 0:
            ended = owner_of(place.process.pid), how(code, self._settings.run_timeout)
            self._ends = dict([*self._ends.items(), ended][-_ENDS:])
        if place.followed is not None and self._follower is not None:
            self._deaths.of(self._follower.route, place.followed, killed=code < 0)
            place.followed = None
        place.process = None
        self._past = merge([*self._past, *(f for f in place.snapshot if f.kind != "gauge")])
        place.snapshot = []
        if code == DONE or self._stopping:
            place.over = True
            return
        if code == ASKED_WRONGLY:
            raise SettingsError(place.error)
        place.deaths += 1
        if not self._ready and (place.error or place.deaths >= _TRIES):
            raise Unavailable(place.error or f"the worker {how(code, self._settings.run_timeout)} before it was ready")
        again = 0.0 if code == FENCED and place.deaths == 1 else min(_LONGEST, 0.1 * 2 ** (place.deaths - 1))
        place.due = self._clock() + again
        self.restarts += 1
        log.warning(
            "worker %d: %s; it is started again", place.index, place.error or how(code, self._settings.run_timeout)
        )

    def _end_all(self) -> None:
        """However `run` is left, no worker stays."""
        self.stop()
        end = time.monotonic() + self._settings.run_timeout + 10.0
        for place in self._places:
            if place.process is not None:
                try:
                    place.process.wait(max(0.1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    place.process.kill()
                    place.process.wait()
            if place.link is not None:
                place.link.close()
        self._selector.close()

    def families(self) -> list[Family]:
        """The metrics of all workers since the run began."""
        living: list[Family] = []
        known: set[tuple[str, Labels]] = set()
        for place in self._places:
            for family in place.snapshot:
                if family.name in _GAUGES:
                    # Two tell of one partition where each tells of the whole queue, or when it has just moved: one
                    # word is enough. Of a log each tells of its own partitions, and all are wanted.
                    new = tuple(each for each in family.samples if (family.name, each.labels) not in known)
                    known |= {(family.name, each.labels) for each in new}
                    family = msgspec.structs.replace(family, samples=new)
                living.append(family)
        return merge([*self._past, *living, self._own()])

    def _own(self) -> Family:
        return Family(
            "octoserve_queue_worker_restarts_total", "counter", "Workers that died and were started again.", (), (),
            (Sample((), float(self.restarts)),),
        )  # fmt: skip

    def figures(self) -> Figures:
        """The same as a few numbers."""
        return figures(self.families())


def figures(families: Sequence[Family]) -> Figures:
    """What people look at."""
    found: dict[str, float] = {}
    for family in families:
        if family.name == "octoserve_queue_messages_total":
            for sample in family.samples:
                found[sample.labels[1]] = found.get(sample.labels[1], 0.0) + sample.total
        elif family.name in _GAUGES:
            totals = [sample.total for sample in family.samples]
            found[_GAUGES[family.name]] = max(totals) if family.name == _OLDEST and totals else sum(totals)
    whole = {name: int(value) for name, value in found.items() if name != "oldest"}
    return Figures(**whole, oldest=found.get("oldest", 0.0))


_OLDEST = "octoserve_queue_oldest_seconds"
_GAUGES = {"octoserve_queue_lag": "behind", "octoserve_queue_in_hand": "in_hand", _OLDEST: "oldest"}


def _done(families: Sequence[Family]) -> int:
    seen = figures(families)
    return seen.done + seen.retried


def how(code: int, run_timeout: float) -> str:
    """How a process ended, by its exit code."""
    if code == -signal.SIGALRM:
        return f"it ran longer than {run_timeout:g} s and was ended"
    if code < 0:
        try:
            return f"the process was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"the process was ended by signal {-code}"
    return f"the process ended with exit code {code}"

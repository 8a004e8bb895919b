"""The supervisor of a queue: who is started again and when, what is passed on, and how counts add up."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from octoserve.core.errors import SettingsError, Unavailable
from octoserve.patterns.message_queue.settings import QueueSettings, WorkerConfig, owner_of
from octoserve.patterns.message_queue.statistics import DEAD, STORED, Statistics
from octoserve.patterns.message_queue.supervisor import Figures, Supervisor, how
from octoserve.patterns.message_queue.worker import ASKED_WRONGLY, AWAY, DONE, FENCED, Link, Report
from octoserve.telemetry.metrics import Registry
from support.queues import Ticking

SETTINGS = QueueSettings(repository="r", model="m", source="embedded", sink="sqlite:///x?table=t", run_timeout=2.0)


class Process:
    """One that has told what it had to tell, and ended by `code`."""

    pids = 100

    def __init__(self, code: int) -> None:
        Process.pids += 1
        self.pid = Process.pids
        self.returncode = code
        self.signals: list[int] = []

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def report(**outcomes: int) -> Report:
    """Of a worker that has done so much."""
    registry = Registry()
    statistics = Statistics(registry, "m", lambda: 0.0)
    for word, count in outcomes.items():
        statistics.outcomes[word].add(count)
    return Report(snapshot=registry.snapshot(), ready=True)


class Stage:
    """Workers that end as it is written, one after the other. Each line: exit code, reports."""

    def __init__(self, *lines: tuple[int, list[Report]], workers: int = 1) -> None:
        self.lines = list(lines)
        self.configs: list[WorkerConfig] = []
        self.processes: list[Process] = []
        self.started: list[float] = []
        self.clock = Ticking()
        self.told: list[Figures] = []
        self.promises: list[str] = []
        self.on_start: Callable[[], None] = lambda: None
        self.supervisor = Supervisor(
            SETTINGS, workers, self.spawn, on_promise=self.promises.append, on_figures=self.told.append,
            clock=self.tick, look=0.0,
        )  # fmt: skip

    def tick(self) -> float:
        """Time passes whenever it is asked."""
        self.clock.pass_(0.05)
        return self.clock.now

    def spawn(self, config: WorkerConfig, link: socket.socket) -> Any:
        code, reports = self.lines.pop(0)
        self.configs.append(config)
        self.started.append(self.clock.now)
        for each in reports:
            link.send(msgspec.msgpack.encode(each))
        self.processes.append(Process(code))
        self.on_start()
        return self.processes[-1]

    def pauses(self) -> list[float]:
        return [b - a for a, b in zip(self.started, self.started[1:], strict=False)]


def test_one_that_ends_well_is_not_started_again():
    stage = Stage((DONE, [Report(promise="word: why"), report(stored=5)]))
    assert stage.supervisor.run() == Figures(stored=5)
    assert stage.promises == ["word: why"]
    assert stage.told[-1].stored == 5


def test_one_that_dies_is_started_again_and_the_next_is_told_how():
    stage = Stage(
        (-signal.SIGKILL, [report(stored=3)]), (-signal.SIGALRM, [report(dead=1)]), (DONE, [report(stored=2)])
    )
    figures = stage.supervisor.run()
    assert (figures.stored, figures.dead, stage.supervisor.restarts) == (5, 1, 2)
    first, second = (owner_of(process.pid) for process in stage.processes[:2])
    assert stage.configs[0].ends == {}
    assert stage.configs[2].ends == {
        first: "the process was ended by SIGKILL",
        second: "it ran longer than 2 s and was ended",
    }


def test_those_that_get_nothing_done_are_started_less_and_less_often():
    stage = Stage((DONE, []))
    stage.lines = [(AWAY, [report()])] * 12 + [(DONE, [])]
    stage.supervisor.run()
    pauses = stage.pauses()
    assert pauses[0] < 1.0
    assert pauses == sorted(pauses)
    assert 29 < pauses[-1] < 33


def test_progress_makes_it_quick_again():
    stage = Stage((DONE, []))
    stage.lines = [(AWAY, [report()])] * 8 + [(AWAY, [report(stored=1)]), (DONE, [])]
    stage.supervisor.run()
    assert stage.pauses()[-1] < 1.0 < stage.pauses()[-2]


def test_a_fenced_one_begins_anew_at_once():
    stage = Stage((FENCED, [report(), Report(error="no longer ours")]), (DONE, []))
    stage.supervisor.run()
    assert stage.pauses()[0] < 0.5


def test_what_was_asked_wrongly_ends_it():
    stage = Stage((ASKED_WRONGLY, [Report(error="sink: no")]))
    with pytest.raises(SettingsError, match="sink: no"):
        stage.supervisor.run()


def test_what_never_was_there_ends_it_and_what_was_does_not():
    with pytest.raises(Unavailable, match="cannot connect"):
        Stage((AWAY, [Report(error="cannot connect")])).supervisor.run()
    Stage((AWAY, [report(), Report(error="cannot connect")]), (DONE, [])).supervisor.run()


def test_one_that_dies_again_and_again_before_it_is_ready_ends_it():
    stage = Stage(*[(-signal.SIGSEGV, [])] * 5)
    with pytest.raises(Unavailable, match="SIGSEGV"):
        stage.supervisor.run()
    assert stage.lines == []


def test_a_stop_lets_them_finish_and_starts_none():
    stage = Stage((DONE, [report(stored=1)]), (-signal.SIGTERM, []), workers=2)
    stage.on_start = lambda: stage.supervisor.stop() if len(stage.processes) == 2 else None
    for process in stage.processes:
        process.returncode = 0
    assert stage.supervisor.run().stored == 1
    assert len(stage.processes) == 2


def test_counts_of_workers_add_up_and_the_lag_is_told_once():
    registry = Registry()
    statistics = Statistics(registry, "m", lambda: 100.0)
    from octoserve.connectors.queues.protocol import Lag

    statistics.outcomes[STORED].add(2)
    statistics.outcomes[DEAD].add(1)
    statistics.stands([Lag(partition="0", behind=4, in_hand=1, oldest=90.0), Lag(partition="1", behind=3, oldest=70.0)])
    one = Report(snapshot=registry.snapshot(), ready=True)
    stage = Stage((DONE, [one]), (DONE, [one]), workers=2)
    assert stage.supervisor.run() == Figures(stored=4, dead=2), "nobody knows how far behind it is any more"
    both = [f for f in stage.told if f.stored == 4]
    assert (both[0].behind, both[0].in_hand, both[0].oldest) == (7, 1, 30.0)


def test_of_a_log_each_worker_tells_of_its_own_partitions():
    from octoserve.connectors.queues.protocol import Lag

    def told(partition: str, behind: int) -> Report:
        registry = Registry()
        Statistics(registry, "m", lambda: 100.0).stands(
            [Lag(partition=partition, behind=behind, oldest=100.0 - behind)]
        )
        return Report(snapshot=registry.snapshot(), ready=True)

    stage = Stage((DONE, [told("q/0", 4)]), (DONE, [told("q/1", 3)]), workers=2)
    stage.supervisor.run()
    assert (7, 4.0) in [(f.behind, f.oldest) for f in stage.told]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGALRM, "it ran longer than 2.5 s and was ended"),
        (-signal.SIGSEGV, "the process was ended by SIGSEGV"),
        (-99, "the process was ended by signal 99"),
        (7, "the process ended with exit code 7"),
    ],
)
def test_how_it_ended(code: int, words: str):
    assert how(code, 2.5) == words


def test_what_must_be_told_waits_for_a_supervisor_that_is_slow():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = Link(theirs, threading.Event())
    heard: list[Report] = []

    def read() -> None:
        while not heard or heard[-1].error != "last":
            heard.append(msgspec.msgpack.decode(ours.recv(1 << 20), type=Report))

    for _ in range(10_000):  # more than the socket holds
        link.tell(Report(error="first"), patience=0.0)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    link.tell(Report(error="last"), patience=60.0)
    reader.join(60)
    assert [report.error for report in heard[-2:]] == ["first", "last"]
    assert len(heard) < 10_000, "what did not have to be told was left out"
    ours.close()
    theirs.close()

"""What an endpoint promises: how it is written, what follows from it, and which requests keep or break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from octoserve import spec
from octoserve.core.admission import Admission
from octoserve.core.errors import DeadlineExceeded, InvalidInput, NotFound, Overloaded, SettingsError
from octoserve.core.slo import BAD, DAY, GOOD, WINDOWS, Slo, Slos, alerts, burn
from octoserve.dataplane.call import NEVER
from octoserve.dataplane.endpoint import DataPlane
from octoserve.patterns.online.supervisor.deadlines import deadline_of, deadlines_of, default_deadline_of
from octoserve.patterns.online.supervisor.supervisor import fingerprint_of
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, ManualExecutor, drive, loop, ticks
from support.models import Asked, FakeModel, answer, floats, handle_of, publish

PROMISE = Slo(latency=0.02, availability=0.999)


def settings(text: str, tmp_path: Path) -> spec.ServeSettings:
    path = tmp_path / "octoserve.yaml"
    path.write_text("repository: models\n" + text)
    return spec.load({}, {}, path)


# The spec


def test_a_models_promise_is_taken_whole_and_may_be_none(tmp_path: Path) -> None:
    slos = settings(
        """
slo: {latency_p99: 100ms, availability: 99.9%, window: 28d}
models:
  fraud: {slo: {latency_p99: 20ms}}
  echo: {slo: false}
  wine: {threads: 2}
""",
        tmp_path,
    ).slos()
    assert slos.of("fraud") == Slo(latency=pytest.approx(0.02), availability=None, window=30 * DAY)
    assert slos.of("echo") is None
    assert slos.of("wine") == slos.of("other") == Slo(latency=0.1, availability=0.999, window=28 * DAY)
    assert slos.any()
    assert not settings("", tmp_path).slos().any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slo: {}", "slo: latency_p99, availability or both wanted"),
        ("slo: {window: 30d}", "latency_p99, availability or both wanted"),
        ("slo: {latency_p99: 0}", "slo.latency_p99: a duration of more than 0, such as 20ms wanted, 0 came"),
        ("slo: {latency_p99: fast}", "a duration such as 20ms, 30s or 2m wanted, 'fast' came"),
        ("slo: {availability: 100%}", "a share from 90% to 99.9999%, such as 99.9%"),
        ("slo: {availability: 99.9}", "slo.availability: a share such as 5%, 0.05 wanted, 99.9 came"),
        ("slo: {availability: 50%}", "a share from 90% to 99.9999%"),
        ("slo: {availability: 99%, window: 1h}", "a window from 7d to 90d, such as 30d wanted, '1h' came"),
        ("slo: {latency_p90: 1s}", "unknown field; did you mean 'latency_p99'?"),
        ("models: {m: {slo: {latency: 1s}}}", "models.m.slo.latency: unknown field; did you mean 'latency_p99'?"),
        ("slo: fast", "slo: a mapping"),
    ],
)
def test_what_cannot_be_promised_is_said(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        settings(text, tmp_path)
    assert words in str(error.value)


# The deadline that follows


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", None),
        ("slo: {latency_p99: 20ms}", 0.04),
        ("slo: {availability: 99%}", None),
        ("slo: {latency_p99: 20ms}\ndefault_deadline: 250ms", 0.25),
        ("slo: {latency_p99: 20ms}\nmodels: {fraud: {deadline: 30ms}}", 0.03),
        ("slo: {latency_p99: 20ms}\nmodels: {fraud: {slo: {latency_p99: 50ms}}}", 0.1),
        ("slo: {latency_p99: 20ms}\nmodels: {fraud: {slo: false}}", None),
        ("slo: {latency_p99: 20ms}\nmodels: {fraud: {slo: {availability: 99%}}}", None),
        ("models: {fraud: {slo: {latency_p99: 50ms}}}", 0.1),
        ("default_deadline: 250ms\nmodels: {fraud: {slo: {latency_p99: 50ms}}}", 0.25),
        ("default_deadline: 250ms\nmodels: {fraud: {slo: {latency_p99: 50ms}, deadline: 1s}}", 1.0),
        ("models: {other: {slo: {latency_p99: 50ms}}}", None),
    ],
)
def test_the_deadline_of_a_request_that_brings_none(text: str, wanted: float | None, tmp_path: Path) -> None:
    made = settings(text, tmp_path)
    assert deadline_of("fraud", made) == (None if wanted is None else pytest.approx(wanted))
    admission = Admission(default_deadline=default_deadline_of(made), deadlines=deadlines_of(made), slos=made.slos())
    told = msgspec.json.decode(msgspec.json.encode(admission), type=Admission)
    assert told == admission
    plane = DataPlane(
        Registry(),
        loop(),
        ManualExecutor(),
        told,
        clock=FakeClock(),
    )
    publish(plane, handle_of(FakeModel(), "fraud"))
    call = Asked([floats([[1]])], model="fraud")
    plane.submit(call)
    assert call.deadline == (NEVER if wanted is None else pytest.approx(call.arrived + wanted))
    brought = Asked([floats([[1]])], model="fraud", deadline=call.arrived + 0.007)
    plane.submit(brought)
    assert brought.deadline == call.arrived + 0.007
    call.cancel()
    brought.cancel()


def test_workers_are_replaced_where_the_promise_has_changed(tmp_path: Path) -> None:
    none, two, three = ({}, {"slo": {"latency_p99": 0.02}}, {"slo": {"latency_p99": 0.03}})
    prints = {fingerprint_of(spec.check({"repository": "r", "models": {"m": m}}, {}), 1, 2) for m in (none, two, three)}
    assert len(prints) == 3


# What counts


def counts(registry: Registry) -> dict[tuple[str, ...], tuple[int, int]]:
    """(model, objective) -> good and bad."""
    by_name = {f.name: {s.labels: int(s.total) for s in f.samples} for f in registry.families()}
    good, bad = by_name.get(GOOD, {}), by_name.get(BAD, {})
    assert good.keys() == bad.keys()
    return {labels: (good[labels], bad[labels]) for labels in good}


class Played:
    """A data plane whose runs take as long as the test says, on its clock."""

    def __init__(self, slos: Slos, **more: Any) -> None:
        self.registry, self.clock = Registry(), FakeClock()
        self.seconds = 0.0
        self.model = FakeModel(function=self._run)
        self.plane = DataPlane(self.registry, loop(), InlineExecutor(), Admission(slos=slos, **more), clock=self.clock)
        publish(self.plane, handle_of(self.model))

    def _run(self, rows: Any) -> Any:
        self.clock.advance(self.seconds)
        return answer(rows)

    def submit(self, *, door: str = "http", value: float = 1.0, **more: Any) -> Asked:
        call = Asked([floats([[value]])], **more)
        call.door = door
        self.plane.submit(call)
        return call

    def ask(self, seconds: float = 0.0, **more: Any) -> Asked:
        self.seconds = seconds
        call = self.submit(**more)
        drive(ticks())
        return call


def test_an_answer_is_good_up_to_the_target_and_bad_beyond() -> None:
    played = Played(Slos(default=PROMISE))
    for seconds in (0.001, 0.019, 0.021, 1.0):
        assert played.ask(seconds).error is None
    assert counts(played.registry) == {("m", "latency"): (2, 2), ("m", "availability"): (4, 0)}


def test_a_series_is_there_before_its_first_request() -> None:
    assert counts(Played(Slos(default=PROMISE)).registry) == {("m", "latency"): (0, 0), ("m", "availability"): (0, 0)}


def test_failures_of_ours_break_availability_and_nothing_else() -> None:
    played = Played(Slos(models={"m": PROMISE}), max_queue=1)
    played.model.poison = {13.0}
    assert played.ask(value=13.0).error is not None  # internal
    waiting = played.submit(deadline=played.clock() + 0.05)
    assert isinstance(played.submit().error, Overloaded)
    drive(ticks())
    assert waiting.error is None
    assert isinstance(played.submit(deadline=played.clock() - 1).error, DeadlineExceeded)
    assert counts(played.registry) == {("m", "latency"): (1, 0), ("m", "availability"): (1, 3)}


def test_a_model_that_is_not_ready_breaks_availability() -> None:
    played = Played(Slos(default=PROMISE))
    played.plane.route([], {}, [("m", 1), ("loading", 1)])
    played.ask(model="loading")
    assert counts(played.registry)["loading", "availability"] == (0, 1)


def test_the_clients_own_mistakes_count_in_neither() -> None:
    played = Played(Slos(default=PROMISE))
    wrong = Asked([floats([[1]], name="nope")])
    wrong.door = "http"
    played.plane.submit(wrong)
    assert isinstance(wrong.error, InvalidInput)
    for model, version in (("nobody", ""), ("m", "9")):
        assert isinstance(played.ask(model=model, version=version).error, NotFound)
    played.submit().cancel()
    drive(ticks())
    assert counts(played.registry) == {("m", "latency"): (0, 0), ("m", "availability"): (0, 0)}


def test_what_the_process_asks_itself_counts_in_neither() -> None:
    played = Played(Slos(default=PROMISE))
    drive(played.plane.infer("m", [floats([[1]])]))
    played.model.poison = {13.0}
    with pytest.raises(Exception, match="failed on this input"):
        drive(played.plane.infer("m", [floats([[13]])]))
    assert counts(played.registry) == {("m", "latency"): (0, 0), ("m", "availability"): (0, 0)}


def test_of_two_doors_in_one_run_each_is_counted_once() -> None:
    played = Played(Slos(default=Slo(latency=0.02)))
    played.seconds = 0.01
    calls = [played.submit(door=door) for door in ("http", "grpc", "internal", "http", "grpc")]
    drive(ticks())
    assert all(call.answers == 1 for call in calls)
    assert played.model.batches == [5]
    assert counts(played.registry) == {("m", "latency"): (4, 0)}


def test_without_a_promise_there_is_no_series() -> None:
    played = Played(Slos())
    played.ask(0.5)
    assert counts(played.registry) == {}
    assert GOOD not in {family.name for family in played.registry.families()}
    assert counts(Played(Slos(default=PROMISE, models={"m": None})).registry) == {}


# How fast a budget burns


def test_burn_is_one_where_the_budget_lasts_its_window() -> None:
    assert burn(999, 1, 0.999) == pytest.approx(1.0)
    assert burn(0, 10, 0.999) == pytest.approx(1000.0)
    assert burn(100, 0, 0.999) == burn(0, 0, 0.999) == 0.0


def test_thirty_days_alert_as_the_workbook_has_it() -> None:
    assert [(a.severity, a.long, a.short, a.factor) for a in alerts(30 * DAY, 0.999)] == [
        ("page", "1h", "5m", 14.4),
        ("page", "6h", "30m", 6.0),
        ("ticket", "3d", "6h", 1.0),
    ]


@pytest.mark.parametrize("target", [0.9, 0.95, 0.99, 0.999, 0.99999])
@pytest.mark.parametrize("days", [7, 28, 30, 90])
def test_an_outage_always_alerts_and_a_budget_that_lasts_never_pages(target: float, days: int) -> None:
    made = alerts(days * DAY, target)
    for alert in made:
        assert burn(0, 100, target) > alert.factor >= 1.0
        assert WINDOWS[alert.short] < WINDOWS[alert.long] < 7 * DAY
    assert [a.factor for a in made] == sorted((a.factor for a in made), reverse=True)

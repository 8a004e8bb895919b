"""The consumers that a service runs: of the version that is trusted, started again, and left in good order."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from octoserve.core.errors import SettingsError, Unavailable
from octoserve.patterns.message_queue.consumers import Consumers
from octoserve.telemetry.families import Family, Sample
from support.queues import Ticking
from support.supervised import until


class Supervisor:
    """One that runs until it is stopped, or raises."""

    def __init__(self, model: str, version: int, error: Exception | None) -> None:
        self.model, self.version, self.error = model, version, error
        self.stops = 0
        self._over = threading.Event()

    def run(self) -> None:
        if self.error is not None:
            raise self.error
        self._over.wait()

    def stop(self) -> None:
        self.stops += 1

    def end(self) -> None:
        """What it had in hand is finished."""
        self._over.set()

    def families(self) -> list[Family]:
        counted = Sample((self.model, "stored"), 1.0)
        return [
            Family("octoserve_queue_messages_total", "counter", "", ("model", "outcome"), (), (counted,)),
            Family("octoserve_queue_lag", "gauge", "", ("partition",), (), (Sample(("",), 5.0),)),
            Family("octoserve_requests_total", "counter", "", ("door",), (), (Sample(("internal",), 9.0),)),
            Family("octoserve_queue_seconds", "counter", "", ("door",), (), (Sample(("internal",), 9.0),)),
        ]


class Keeper:
    """Does nothing."""

    def __init__(self) -> None:
        self.closed = False

    async def run(self) -> None:
        await asyncio.Event().wait()

    def close(self) -> None:
        self.closed = True


class House:
    """Consumers whose supervisors are kept in `made`."""

    def __init__(self, workers: int = 1) -> None:
        self.clock, self.keeper = Ticking(), Keeper()
        self.made: list[Supervisor] = []
        self.errors: list[Exception] = []
        self.consumers = Consumers(("a", "b"), None, workers, None, self.keeper, clock=self.clock)  # type: ignore[arg-type]
        self.consumers._make = self._make  # type: ignore[method-assign,assignment]

    def _make(self, model: str, version: int) -> Any:
        made = Supervisor(model, version, self.errors.pop(0) if self.errors else None)
        self.made.append(made)
        return made

    def want(self, **stable: int) -> list[tuple[str, int]]:
        """All that were made so far, after a look."""
        self.consumers.want(stable)
        return [(made.model, made.version) for made in self.made]

    def ended(self, place: int) -> None:
        """It has ended, and this was noticed."""
        self.made[place].end()
        group = self.consumers._groups[self.made[place].model]
        until(lambda: not group.alive, 60)


def test_a_model_has_consumers_once_it_has_a_version():
    house = House()
    assert house.want() == []
    assert house.want(a=1) == [("a", 1)]
    assert house.want(a=1, b=4, other=2) == [("a", 1), ("b", 4)]
    assert house.want(a=1, b=4) == [("a", 1), ("b", 4)], "each once"


def test_another_version_has_its_turn_when_the_old_one_has_finished():
    house = House()
    house.want(a=1)
    assert house.want(a=2) == [("a", 1)]
    assert house.want(a=2) == [("a", 1)]
    assert house.made[0].stops == 1
    house.ended(0)
    assert house.want(a=2) == [("a", 1), ("a", 2)]


def test_a_model_whose_plan_is_gone_keeps_what_it_has():
    house = House()
    house.want(a=1)
    assert house.want() == [("a", 1)]
    assert house.made[0].stops == 0


def test_what_could_not_start_is_tried_again_after_a_while(caplog: pytest.LogCaptureFixture):
    house = House()
    house.errors = [Unavailable("the broker is away")]
    house.want(a=1)
    until(lambda: not house.consumers._groups["a"].alive, 60)
    assert len(house.want(a=1)) == 1
    assert "the broker is away" in caplog.text
    house.clock.pass_(4.9)
    assert len(house.want(a=1)) == 1
    house.clock.pass_(0.2)
    assert len(house.want(a=1)) == 2


def test_none_are_started_where_others_run_them():
    assert House(workers=0).want(a=1) == []


def test_it_waits_for_what_is_in_hand_and_starts_nothing_more():
    house = House()
    house.want(a=1, b=1)

    async def leave() -> None:
        leaving = asyncio.create_task(house.consumers.leave(30.0))
        await asyncio.sleep(0)
        assert [made.stops for made in house.made] == [1, 1]
        assert len(house.want(a=2, b=1)) == 2
        assert not leaving.done()
        for made in house.made:
            made.end()
        await leaving

    asyncio.run(leave())
    assert house.keeper.closed


def test_metrics_are_the_queues_alone_and_outlive_a_version():
    house = House()
    house.want(a=1)
    house.want(a=2)
    house.ended(0)
    house.want(a=2, b=1)
    found = {family.name: {s.labels: s.total for s in family.samples} for family in house.consumers.families()}
    assert found == {
        "octoserve_queue_messages_total": {("a", "stored"): 2.0, ("b", "stored"): 1.0},
        "octoserve_queue_lag": {("a",): 5.0, ("b",): 5.0},
    }


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"source": "ftp://h/x"}, "async.source: unknown kind 'ftp'"),
        ({"source": "embedded:a.b"}, "a name for the stream"),
        ({"store": "parquet:///x"}, "async.store: unknown kind 'parquet'"),
        ({"store": "sqlite:///x.db"}, "table= is wanted"),
        ({"kept": "1d"}, "async.kept: unknown field; did you mean 'keep'?"),
        ({"workers": -1}, "async.workers: a number, at least 0 wanted"),
    ],
)
def test_what_is_set_wrongly_is_said_before_anything_starts(section: dict[str, Any], why: str, tmp_path: Path):
    from octoserve import app, spec

    with pytest.raises(SettingsError, match=re.escape(why)):
        app.consumers(
            spec.check({"repository": tmp_path, "state_dir": tmp_path, "async": {"models": ["m"], **section}}, {})
        )


def test_where_no_model_is_named_there_are_none(tmp_path: Path):
    from octoserve import app, spec

    assert app.consumers(spec.check({"repository": tmp_path, "state_dir": tmp_path}, {})) is None
    assert list(tmp_path.iterdir()) == []


def test_the_flag_and_the_variable_name_models(tmp_path: Path):
    from octoserve import spec

    (tmp_path / "o.yaml").write_text("repository: m\nasync: {models: [a], keep: 7d}\n")
    path = tmp_path / "o.yaml"
    assert spec.load({}, {}, path).asynchronous.models == ["a"]
    named = spec.load({"async_models": ["b", "c"]}, {}, path).asynchronous
    assert (named.models, named.keep) == (["b", "c"], 7 * 86400.0)
    assert spec.load({}, {"OCTOSERVE_ASYNC": "d,e"}, path).asynchronous.models == ["d", "e"]

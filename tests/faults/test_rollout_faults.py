"""The controller is killed at every commit of a rollout, and started again, while clients ask.

What must hold whatever happens: clients see no error, what was decided stands and what was not is decided again,
nothing goes on without a PASS, one rollout lives at a time, and the audit log is one chain that replays to the same.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from octoserve.control.rollout.values import Phase, Result, Rollout
from support.hammer import Hammer, hammering
from support.kill_points import AFTER, BEFORE, PLANS, ROLLOUTS, program
from support.lives import CANARY, QUICK, Drive, approving, chronicle, events, lives, put
from support.rolling import Rolling
from support.scale import FULL
from support.supervised import until

RIGHT_WITHIN = 5.0
"""Seconds after a restart in which the state must be what was decided; on a machine that is busy, three times what
the first start took there."""

ENDLESS = {**CANARY, "steps": [{"weight": "20%", "samples": 10**9}]}
BLUE_GREEN = {**QUICK, "strategy": "blue-green", "approval": True}


def aborting(it: Rolling) -> None:
    """A person who has seen enough once the candidate has traffic."""
    rollout = it.rollout()
    if rollout.get("phase") == "running" and rollout["settled"] is not None:
        it.command("abort", reason="enough")


def rolling_back(it: Rolling) -> None:
    """A person who regrets the switch."""
    approving(it)
    if it.rollout().get("phase") == "retaining":
        it.command("rollback", reason="numbers look odd")


class Story(NamedTuple):
    """A rollout from its start to its end. commits: how many decisions lead there."""

    section: dict[str, Any]
    drive: Drive
    result: Result
    commits: int

    @property
    def winner(self) -> int:
        """The version that answers in the end."""
        return 2 if self.result is Result.PROMOTED else 1


STORIES = {
    "canary": Story(CANARY, approving, Result.PROMOTED, 10),
    "blue-green": Story(BLUE_GREEN, approving, Result.PROMOTED, 8),
    "aborted": Story(ENDLESS, aborting, Result.ABORTED, 6),
    "rolled-back": Story({**BLUE_GREEN, "retain": "120s"}, rolling_back, Result.ROLLED_BACK, 9),
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put(tmp_path / "models", 1)
    return tmp_path / "models"


CHAINS = list(itertools.product(STORIES, (ROLLOUTS, PLANS)))


@pytest.mark.parametrize(("name", "store"), CHAINS if FULL else [("canary", ROLLOUTS), ("rolled-back", PLANS)])
def test_a_controller_that_lives_for_one_commit_at_a_time(
    name: str, store: str, repository: Path, tmp_path: Path
) -> None:
    """Each supervisor is killed at its first commit, before it or after it, until the rollout has ended.

    Of plans, later commits too: a supervisor's first is that of the plan which it found.
    """
    story = STORIES[name]
    deaths = 0
    with lives(repository, tmp_path / "s", story.section) as many:
        it = many.start()
        until(lambda: it.status()["stable"] == 1)
        with hammering(it.service, http=2) as hammer:
            it.service.kill()
            put(repository, 2)
            numbers = (1,) if store == ROLLOUTS else (1, 2, 3)
            points = itertools.cycle(itertools.product(numbers, (BEFORE, AFTER)))
            while not many.ended():
                number, when = next(points)
                many.start(program(store, when, number), wait=False)
                until(lambda: many.dead() or many.drives(story.drive) or many.ended(), 240, many.now.output)
                deaths += many.dead()
                many.now.kill()
            it = many.start()
            ends_well(it, story, hammer)
        assert hammer.errors == []
        assert deaths >= (story.commits if store == ROLLOUTS else 4)
        log = events(chronicle(many.state_dir))
        assert len(log) == story.commits, log


POINTS = [
    (name, when, n) for name, story in STORIES.items() for n in range(1, story.commits + 1) for when in (BEFORE, AFTER)
]
SOME = [("canary", AFTER, 5), ("blue-green", BEFORE, 6), ("aborted", AFTER, 5)]


@pytest.mark.parametrize(("name", "when", "number"), POINTS if FULL else SOME)
def test_the_state_is_right_soon_after_a_restart(
    name: str, when: str, number: int, repository: Path, tmp_path: Path
) -> None:
    story = STORIES[name]
    with lives(repository, tmp_path / "s", story.section) as many:
        it = many.start(program(ROLLOUTS, when, number))
        limit = max(RIGHT_WITHIN, 3 * (time.monotonic() - many.began))
        with hammering(it.service, http=2, grpc=1) as hammer:
            put(repository, 2)
            until(lambda: many.drives(story.drive) or many.dead(), 240, many.now.output)
            decided = many.record()
            assert (-1 if decided is None else decided.version) == number - (2 if when == BEFORE else 1)
            it = many.start()
            until(lambda: stands(it, decided), limit, "what was decided stands, and every worker follows")
            took = time.monotonic() - many.began
            print(f"{name}, {when} commit {number}: right {took:.2f} s after the restart")
            until(lambda: many.drives(story.drive) or many.ended(), 240, many.now.output)
            ends_well(it, story, hammer)
        assert took < limit
        assert hammer.errors == []
        assert len(events(chronicle(many.state_dir))) == story.commits


def stands(it: Rolling, decided: Rollout | None) -> bool:
    """Whether the service is where the record says, or further."""
    status = it.status()
    if not status["acknowledged"] or decided is None:
        return bool(status["acknowledged"])
    order = [str(phase) for phase in Phase]
    now = status["rollout"]
    reached = (order.index(now["phase"]), now["step"]) >= (order.index(decided.phase), decided.step)
    weight = sum(route["share"] for route in status["routes"] if route["version"] == decided.candidate)
    bound = {"waiting": 0.0, "preparing": 0.0, "aborting": 0.0}.get(now["phase"], 1.0)
    return bool(now["id"] == decided.id and reached and weight <= bound)


def ends_well(it: Rolling, story: Story, hammer: Hammer) -> None:
    """The story's end has been reached, and every client sees it."""
    until(lambda: it.rollout().get("result") == story.result, 10, "the end is what the story says")
    until(lambda: it.shares() == {(story.winner, "stable"): 1.0}, 10, "everything goes to one version")
    until(hammer.all_answered(5), 20, "clients go on")
    until(lambda: hammer.all_at(story.winner), 10, "and see the version that won")
    assert it.status()["stable"] == story.winner
    assert it.status()["refused"] == ([] if story.winner == 2 else [2])

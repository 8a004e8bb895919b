"""Who looks after answers: callbacks are told until they are taken, old answers are forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.answer_databases import sqlite_answers
from octoserve.connectors.queues.answers import Answer, Asked, SqlAnswers
from octoserve.connectors.queues.protocol import DeadLetter
from octoserve.core.errors import Unavailable
from octoserve.patterns.message_queue.keeper import Keeper
from support.queues import Ticking


@pytest.fixture
def store(tmp_path: Path) -> SqlAnswers:
    return sqlite_answers(parse(f"sqlite:///{tmp_path / 'x.db'}?table=t", "store"))


def failed(store: SqlAnswers, id: str, at: float, callback: str = "") -> None:
    store.accept(Asked(id=id, digest="d", callback=callback), at)
    letter = DeadLetter(id=id, source="s", origin="o", attempts=3, history=(), published=at, buried=at)
    store.fail([letter])


def test_a_callback_is_told_until_it_is_taken(store: SqlAnswers):
    clock, heard = Ticking(), []
    takes = [False, False, True]

    def tell(answer: Answer) -> bool:
        heard.append((clock.now, answer.id, answer.state))
        return takes.pop(0)

    keeper = Keeper(store, 1e6, tell, clock)
    failed(store, "m/a", clock.now, "https://h.example/")
    failed(store, "m/quiet", clock.now)
    for _ in range(10):
        keeper.step()
        clock.pass_(0.5)
    assert heard == [(1000.0, "m/a", "failed"), (1001.0, "m/a", "failed"), (1003.0, "m/a", "failed")]
    keeper.close()


def test_what_is_pending_is_told_to_nobody(store: SqlAnswers):
    keeper = Keeper(store, 1e6, lambda answer: pytest.fail("nothing is to be told"), Ticking())
    store.accept(Asked(id="m/a", digest="d", callback="https://h.example/"), 1.0)
    assert keeper.step() is False
    keeper.close()


def test_old_answers_are_forgotten_now_and_then(store: SqlAnswers):
    clock = Ticking()
    keeper = Keeper(store, 100.0, None, clock)
    failed(store, "m/a", clock.now)
    keeper.step()
    clock.pass_(99.0)
    keeper.step()
    assert store.look("m/a") is not None
    clock.pass_(5.0)
    keeper.step()
    assert store.look("m/a") is not None, "it has just looked"
    clock.pass_(5.0)
    keeper.step()
    assert store.look("m/a") is None
    keeper.close()


def test_a_store_that_is_away_is_said_and_does_not_end_it(store: SqlAnswers, caplog: pytest.LogCaptureFixture):
    keeper = Keeper(store, 100.0, None, Ticking())

    def forget(before: float) -> int:
        raise Unavailable("the database is away")

    store.forget = forget  # type: ignore[method-assign]

    async def until_it_is_said() -> bool:
        task = asyncio.create_task(keeper.run())
        while "the database is away" not in caplog.text:
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return ended

    assert asyncio.run(until_it_is_said()) is False

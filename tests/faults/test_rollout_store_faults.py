"""What a rollout store keeps when its writer is killed, or PostgreSQL itself, in the middle of commits."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from octoserve.control.rollout.postgres_store import PostgresStore
from octoserve.core.errors import Unavailable
from support import postgres
from support.rollouts import a_rollout, after, an_entry
from support.scale import scale
from support.store_child import opened, stable_of

TESTS = Path(__file__).parents[1]


def killed_while_committing(place: str, seconds: float) -> tuple[int, int]:
    """Run a child until it has committed for so long, kill -9; its id, and the last number that it was sure of."""
    child = subprocess.Popen(
        [sys.executable, "-m", "support.store_child", place], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"}, cwd=TESTS,
    )  # fmt: skip
    assert child.stdout is not None
    first = child.stdout.readline()
    assert first, "the child has not committed anything"
    time.sleep(seconds)
    child.kill()
    rest = child.stdout.read()
    child.stdout.close()
    child.wait()
    return child.pid, int((first + rest[: rest.rfind("\n") + 1]).split()[-1])


def test_kill_9_leaves_all_of_a_commit_or_nothing(place):
    rounds = scale(4, 25)
    chance = random.Random(place)
    for _ in range(rounds):
        pid, sure = killed_while_committing(place, chance.uniform(0.0, 0.3))
        with closing(opened(place)) as store:
            last = store.history("m", 1)[0]
            number = stable_of(last)
            assert number in (sure, sure + 1), "what was acknowledged is there, and at most the one under way"
            assert store.endpoints()["m"].stable == number
            assert [entry.view["number"] for entry in store.audit(last.id)][-2:] == [number, number]
            assert len(store.lines("m", limit=10**6)) == 2 * number
            assert store.verify("m") is None
            left = [asked.reason for asked in store.asked()]
            assert f"{pid} for {number}" not in left, "an answered command is gone"
            assert [reason for reason in left if reason.startswith(f"{pid} ")] in ([], [f"{pid} for {number + 1}"])


@pytest.fixture
def own_server() -> Iterator[postgres.Postgres]:
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL of our own: Debian's package postgresql is not installed")
    server = postgres.Postgres()
    yield server
    server.close()


def test_postgres_comes_back_and_so_does_the_store(own_server):
    with closing(PostgresStore(own_server.url)) as store:
        token = store.lead("a")
        store.commit(token, a_rollout(), [an_entry(a_rollout())])
        own_server.kill()
        for _ in range(2):
            with pytest.raises(Unavailable, match=f"127.0.0.1:{own_server.port}"):
                store.live()
        own_server.start()
        assert store.live() == [a_rollout()]
        own_server.kill()
        own_server.start()
        store.commit(token, after(a_rollout()), [])  # the old connection is dead, which nobody has noticed yet
        assert store.verify("m") is None


def test_postgres_that_dies_while_committing_leaves_all_or_nothing(own_server):
    place = f"postgres octoserve {own_server.url}"
    for _ in range(scale(2, 10)):
        killer = threading.Timer(0.4, own_server.kill)
        with closing(opened(place)) as store:
            token = store.lead("a")
            (last,) = store.history("m", 1) or [None]
            rollout = a_rollout() if last is None else after(last)
            try:
                while True:
                    store.commit(token, rollout, [an_entry(rollout)])
                    sure, rollout = rollout.version, after(rollout)
                    if killer.ident is None:
                        killer.start()
            except Unavailable:
                pass
            killer.join()
            own_server.start()
            assert store.live()[0].version in (sure, sure + 1)
            assert len(store.audit("r1")) == store.live()[0].version + 1
            assert store.verify("m") is None

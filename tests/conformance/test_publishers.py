"""What the door of asynchronous requests relies on of every publisher: on return the broker has it, id and all.

A new publisher joins by an address in `source`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from octoserve.app import async_way, queue_kinds
from octoserve.connectors.queues.nats_server import EmbeddedBroker
from octoserve.core.errors import SettingsError, TooLarge, Unavailable
from octoserve.dataplane.deferred import LENGTH_HEADER
from octoserve.patterns.message_queue import opening
from octoserve.patterns.message_queue.scoring import identity
from octoserve.patterns.message_queue.settings import QueueSettings
from octoserve.patterns.online.settings import AsyncRequests
from support import kafka
from support.queues import opened, polled


@pytest.fixture(params=("embedded", "kafka"))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "kafka":
        yield f"kafka://{kafka.shared()}/{kafka.topic('async')}-{{model}}?create=2"
        return
    yield "embedded:async-{model}"
    broker = EmbeddedBroker(tmp_path)
    broker.join()
    broker.leave()


def publisher(source: str, state_dir: Path) -> Any:
    store = f"sqlite:///{state_dir / 'x.db'}?table=t"
    way = async_way(AsyncRequests(models=("m",), source=source, store=store, state_dir=str(state_dir)))
    return way.publishers["m"]


def consumer(source: str, state_dir: Path) -> Any:
    address = source.replace("{model}", "m")
    return opening.source(
        queue_kinds(state_dir),
        QueueSettings(repository="", model="m", source=address, sink="", state_dir=str(state_dir)),
    )


def test_what_is_published_comes_with_its_id_and_its_headers(source: str, tmp_path: Path):
    made = publisher(source, tmp_path)
    made.check()
    made.prepare()
    ids = ["m/a", "m/é 水", 'm/"q"', "m/a/b"]
    for id in ids:
        made.publish(id.encode(), id, {LENGTH_HEADER: "7"})
    made.close()
    with opened(consumer(source, tmp_path)) as taken:
        came = polled(taken, len(ids), 60.0)
    assert {identity(message, None): message.value for message in came} == {id: id.encode() for id in ids}
    assert {message.headers[LENGTH_HEADER] for message in came} == {"7"}


def test_any_thread_may_publish_and_the_first_one_connects(source: str, tmp_path: Path):
    made = publisher(source, tmp_path)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: made.publish(b"x", f"m/{n}", {}), range(50)))
    made.close()
    with opened(consumer(source, tmp_path)) as taken:
        came = polled(taken, 50, 60.0)
    assert {identity(message, None) for message in came} == {f"m/{n}" for n in range(50)}


def test_an_id_may_come_twice_and_then_both_are_there(source: str, tmp_path: Path):
    """The sink is who keeps one result; a broker that dropped the second would lose an id that is used again."""
    made = publisher(source, tmp_path)
    made.publish(b"1", "m/a", {})
    made.publish(b"2", "m/a", {})
    made.close()
    with opened(consumer(source, tmp_path)) as taken:
        assert sorted(message.value for message in polled(taken, 2, 60.0)) == [b"1", b"2"]


def test_what_is_too_large_is_said(source: str, tmp_path: Path):
    made = publisher(source, tmp_path)
    with pytest.raises(TooLarge, match="the request has 20000000 bytes"):
        made.publish(os.urandom(20_000_000), "m/a", {})  # which nothing makes smaller
    made.publish(b"x", "m/b", {})
    made.close()


@pytest.mark.parametrize("source", ["nats://127.0.0.1:9/s", "kafka://127.0.0.1:9/t?message.timeout.ms=1000"])
def test_a_broker_that_is_away_is_unavailable_again_and_again(source: str, tmp_path: Path):
    made = publisher(source, tmp_path)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
            made.publish(b"x", "m/a", {})
    made.close()


def test_a_stream_that_is_not_there_and_may_not_be_made_is_said(tmp_path: Path):
    broker = EmbeddedBroker(tmp_path)
    try:
        made = publisher(f"{broker.join()}/nobodys", tmp_path)
        with pytest.raises(Unavailable, match="has no stream 'nobodys'"):
            made.publish(b"x", "m/a", {})
        made.close()
    finally:
        broker.leave()


def test_a_topic_that_is_not_there_is_said(tmp_path: Path):
    made = publisher(f"kafka://{kafka.shared()}/{kafka.topic('none')}", tmp_path)
    with pytest.raises((Unavailable, SettingsError), match="there is no topic"):
        made.publish(b"x", "m/a", {})
    made.close()

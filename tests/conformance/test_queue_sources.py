"""What a queue relies on of every source: nothing lost, what is done stays done, what is not comes again.

A new broker joins by a `Backend` in the fixture: how to make a fresh queue in it, a source on it, and the tools.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from octoserve.app import queue_kinds
from octoserve.connectors.queues.nats_server import EmbeddedBroker
from octoserve.connectors.queues.protocol import ID_HEADER, DeadLetter, Failure, Message
from octoserve.patterns.message_queue import opening
from octoserve.patterns.message_queue.settings import QueueSettings
from support import kafka
from support.queues import Grants, opened, polled
from support.supervised import until

OURS_FOR = 2.0
"""Seconds after which messages of a source that vanished come again, where the broker goes by time."""


class Backend:
    """One queue of a broker. `address` names it; sources of it share one group."""

    def __init__(self, address: str, state_dir: Path) -> None:
        self.address = address
        self.state_dir = state_dir
        self.kinds = queue_kinds()

    def source(self) -> Any:
        """One more of the group."""
        settings = QueueSettings(
            repository="", model="", source=self.address, sink="", redeliver_after=OURS_FOR,
            state_dir=str(self.state_dir),
        )  # fmt: skip
        return opening.source(self.kinds, settings)

    def tools(self) -> Any:
        """For people."""
        return opening.tools(self.kinds, self.address, self.state_dir)

    def send(self, *values: bytes) -> None:
        """All of them are there on return."""
        with closing(self.tools()) as tools:
            assert tools.send(iter(values), lambda count: None) == len(values)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One server for all tests here."""
    state_dir = tmp_path_factory.mktemp("state")
    broker = EmbeddedBroker(state_dir)
    broker.join()
    yield state_dir
    broker.leave()


@pytest.fixture(params=["embedded", "nats", "kafka", "kafka KIP-848"])
def backend(request: pytest.FixtureRequest, embedded: Path) -> Iterator[Backend]:
    name = f"q{uuid4().hex[:12]}"
    if request.param.startswith("kafka"):
        # The last messages of a log are known within a partition only.
        partitions = 1 if "the_last" in request.node.name else 3
        protocol = "consumer" if "848" in request.param else "classic"
        yield Backend(f"kafka://{kafka.shared()}/{name}?create={partitions}&protocol={protocol}", embedded)
        return
    if request.param == "embedded":
        yield Backend(f"embedded:{name}", embedded)
        return
    broker = EmbeddedBroker(embedded)  # a server, as somebody else runs one: only its address is used
    yield Backend(f"{broker.join()}/{name}?subject={name}.in", embedded)
    broker.leave()


def values(count: int) -> list[bytes]:
    return [b'{"x": %d}' % i for i in range(count)]


def a_letter(message: Message, id: str) -> DeadLetter:
    return DeadLetter(
        id=id,
        source="s",
        origin=message.name,
        attempts=2,
        history=(Failure(at=1.5, error="first"), Failure(at=2.5, error="second", by="m version 1")),
        published=message.published,
        buried=time.time(),
        key=message.key,
        headers=dict(message.headers),
        value=message.value,
    )


def settle_all(source: Any, count: int) -> list[Message]:
    messages = polled(source, count)
    source.settle(messages)
    return messages


def test_everything_comes_once_in_order_with_a_position(backend: Backend):
    sent = values(300)
    before = time.time()
    backend.send(*sent)
    with opened(backend.source()) as source:
        messages = settle_all(source, 300)
        assert source.poll(10, 1 << 20, 0.5) == []
    assert len({m.position for m in messages}) == len({m.name for m in messages}) == 300
    assert sorted(m.value for m in messages) == sorted(sent)
    for partition in {m.position.partition for m in messages}:
        offsets = [m.position.offset for m in messages if m.position.partition == partition]
        assert offsets == sorted(offsets)
    assert all(before - 5 <= m.published <= time.time() + 5 for m in messages)


def test_what_is_settled_does_not_come_again_and_the_rest_does(backend: Backend):
    backend.send(*values(20))
    with opened(backend.source()) as source:
        messages = polled(source, 20)
        source.settle(messages[:12])
    with opened(backend.source()) as source:
        again = settle_all(source, 8)
        assert source.poll(10, 1 << 20, OURS_FOR + 1) == []
    if source.traits.shape == "acks":  # what comes again has lost its order
        again.sort(key=lambda m: m.position)
    assert [m.position for m in again] == [m.position for m in messages[12:]]
    assert [m.value for m in again] == [m.value for m in messages[12:]]


def test_a_poll_keeps_to_its_bounds_and_gives_one_of_any_size(backend: Backend):
    backend.send(*[b"%04d" % i + b"x" * 996 for i in range(10)])
    with opened(backend.source()) as source:
        came: list[Message] = []
        end = time.monotonic() + 20
        while len(came) < 10 and time.monotonic() < end:
            some = source.poll(4, 2500, 0.5)
            assert len(some) <= 2
            came += some
        assert len(came) == 10
        source.settle(came)
        backend.send(b"y" * 100_000)
        (large,) = polled(source, 1)
        assert len(large.value) == 100_000
        source.settle([large])


def test_what_is_in_hand_stays_ours_while_it_is_held(backend: Backend):
    backend.send(*values(5))
    with opened(backend.source()) as source:
        messages = polled(source, 5)
        for _ in range(8):
            source.hold(OURS_FOR / 4)
        assert source.poll(10, 1 << 20, 0.2) == []
        with opened(backend.source()) as other:
            assert other.poll(10, 1 << 20, 1.0) == []
        source.settle(messages)


def test_a_retry_comes_again_after_its_delay(backend: Backend):
    backend.send(*values(3))
    with opened(backend.source()) as source:
        messages = polled(source, 3)
        began = time.monotonic()
        source.retry(messages[1], "m1", 1, 1.0)
        done = [messages[0], messages[2]]
        source.settle(messages if source.traits.shape == "log" else done)
        (again,) = polled(source, 1)
        assert time.monotonic() - began > 0.8
        assert again.value == messages[1].value
        # Known by its position, or by what is written on it.
        same = again.position == messages[1].position and again.deliveries > 1
        assert same or (again.headers[ID_HEADER] == "m1" and again.attempt == 1)
        source.settle([again])
    with closing(backend.tools()) as tools:
        until(lambda: not any(lag.behind or lag.in_hand for lag in tools.lag()))


def test_a_dead_letter_lies_there_with_its_history_and_is_replayed(backend: Backend):
    backend.send(b'{"x": 1}', b"\xff no text")
    with opened(backend.source()) as source:
        first, second = sorted(polled(source, 2), key=lambda m: m.value)
        letters = [a_letter(first, "m1"), a_letter(second, "m2")]
        source.bury(letters)
        source.bury(letters[:1])  # after a crash it is buried again
        source.settle([first, second])
    with closing(backend.tools()) as tools:
        found = tools.dead()
        assert [(d.id, d.origin, d.attempts, d.value) for d in found] == [
            ("m1", first.name, 2, first.value),
            ("m2", second.name, 2, second.value),
        ]
        assert found[0].history == letters[0].history
        assert tools.replay(found[:1]) == 1
        assert [d.id for d in tools.dead()] == ["m2"]
    with opened(backend.source()) as source:
        (again,) = settle_all(source, 1)
    assert again.value == first.value
    assert again.headers[ID_HEADER] == "m1"
    assert again.position != first.position


def test_many_dead_letters_are_listed_and_replayed(backend: Backend):
    many = 150
    backend.send(*values(many))
    with opened(backend.source()) as source:
        messages = polled(source, many)
        source.bury([a_letter(each, f"m{i}") for i, each in enumerate(messages)])
        source.settle(messages)
    with closing(backend.tools()) as tools:
        found = {letter.id: letter.value for letter in tools.dead()}
        assert found == {f"m{i}": each.value for i, each in enumerate(messages)}
        assert tools.replay(tools.dead()) == many
        assert tools.dead() == []
    with opened(backend.source()) as source:
        again = settle_all(source, many)
    assert {each.headers[ID_HEADER]: each.value for each in again} == found


def test_how_far_behind_it_is(backend: Backend):
    with closing(backend.tools()) as tools:
        assert sum(lag.behind + lag.in_hand for lag in tools.lag()) == 0
        assert all(lag.oldest is None for lag in tools.lag())
        backend.send(*values(6))
        assert sum(lag.behind for lag in tools.lag()) == 6
        ages = [time.time() - lag.oldest for lag in tools.lag() if lag.oldest is not None]
        assert ages
        assert all(-5 < age < 60 for age in ages)
        with opened(backend.source()) as source:
            messages = polled(source, 6)
            source.settle(messages[:5])
        # A broker that is told without an answer may need a moment.
        until(lambda: sum(lag.behind + lag.in_hand for lag in tools.lag()) == 1)


def test_the_last_messages_are_shown_and_stay(backend: Backend):
    backend.send(*values(5))
    with closing(backend.tools()) as tools:
        assert [m.value for m in tools.tail(2, False)] == values(5)[3:]
        assert len(list(tools.tail(100, False))) == 5
        assert list(tools.tail(0, False)) == []
    with opened(backend.source()) as source:
        settle_all(source, 5)


def test_two_share_what_comes(backend: Backend):
    desk = Grants()
    with opened(backend.source(), desk) as one, opened(backend.source(), desk) as two:
        backend.send(*values(200))
        came: list[Message] = []
        end = time.monotonic() + 30
        while len({m.position for m in came}) < 200 and time.monotonic() < end:
            for source in (one, two):
                some = source.poll(20, 1 << 20, 0.1)
                source.settle(some)
                came += some
    assert sorted(m.value for m in came) == sorted(values(200))

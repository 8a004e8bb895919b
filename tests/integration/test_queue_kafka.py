"""What Kafka alone has: transactions, partitions that come and go, secrets, topics that are not there."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octoserve.app import queue_kinds
from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.protocol import Fenced, Message, Move, Position, Results, Unwritable
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.signature import TensorSpec
from octoserve.patterns.message_queue import opening
from octoserve.patterns.message_queue.settings import QueueSettings
from support import kafka
from support.queues import Grants, opened, polled
from support.supervised import until

OUTPUTS = (TensorSpec("y", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 2)))


class Pair:
    """A topic with messages, and a topic of their results."""

    def __init__(self, address: str, partitions: int = 2) -> None:
        self.address = address
        self.topic, self.results = kafka.topic("in"), kafka.topic("out")
        self.source_at = f"kafka://{address}/{self.topic}?group=g&create={partitions}"
        self.sink_at = f"kafka://{address}/{self.results}?create=2"

    def settings(self) -> QueueSettings:
        return QueueSettings(repository="", model="", source=self.source_at, sink=self.sink_at, redeliver_after=3.0)

    def source(self) -> Any:
        return opening.source(queue_kinds(), self.settings())

    def both(self) -> tuple[Any, Any]:
        """Of one worker: the source leaves offsets and retries to the sink."""
        kinds = queue_kinds()
        source, sink = opening.source(kinds, self.settings()), opening.sink(kinds, self.settings())
        sink.open(source.name, OUTPUTS)
        return source, sink

    def send(self, *values: bytes) -> None:
        with closing(opening.tools(queue_kinds(), self.source_at, Path("."))) as tools:
            tools.send(iter(values), lambda count: None)

    def lane(self, partition: int = 0) -> str:
        return f"{self.topic}/{partition}"


@pytest.fixture
def pair() -> Pair:
    return Pair(kafka.shared())


def results(messages: Sequence[Message], ids: Sequence[str], outputs: Any = OUTPUTS, **columns: Any) -> Results:
    made = {"y": np.arange(len(ids)), "scores": np.full((len(ids), 2), 0.5, np.float32), **columns}
    return Results(
        model="m", outputs=outputs, messages=messages, ids=ids, columns=[made[spec.name] for spec in outputs],
        versions=np.full(len(ids), 3, np.int64), scored_at=1_700_000_000.25,
    )  # fmt: skip


def message(lane: str, offset: int, **fields: Any) -> Message:
    return Message(position=Position(lane, offset), value=b"{}", name=f"{lane}/{offset}", **fields)


def insist(sink: Any, rows: Results, move: Move) -> None:
    """Store as the loop does: what is away for the moment is tried again."""
    for _ in range(5):
        try:
            sink.store(rows, [move])
            return
        except Unavailable:
            time.sleep(0.2)
    raise AssertionError("it stays away")


def stored(pair: Pair) -> list[str]:
    return sorted(json.loads(each.value())["message_id"] for each in kafka.read(pair.address, pair.results))


def test_a_result_is_a_json_object_with_the_messages_headers(pair: Pair):
    pair.send(b"{}")
    _, sink = pair.both()
    lane = pair.lane()
    with closing(sink):
        claim = sink.claim([lane], None)[lane]
        came = message(lane, 0, headers={"traceparent": "00-1", "octoserve-attempt": "1"})
        sink.store(results([came], ["m1"]), [Move(lane, claim.epoch, 1)])
    (found,) = kafka.read(pair.address, pair.results)
    assert json.loads(found.value()) == {
        "message_id": "m1", "y": 0, "scores": [0.5, 0.5], "model": "m", "version": 3,
        "scored_at": "2023-11-14T22:13:20.250000Z",
    }  # fmt: skip
    assert found.key() == b"m1"
    assert dict(found.headers()) == {"traceparent": b"00-1", "octoserve-message-id": b"m1"}


def test_who_had_a_partition_before_is_refused(pair: Pair):
    pair.send(b"{}")
    (_, old), (_, new) = pair.both(), pair.both()
    lane = pair.lane()
    with closing(old), closing(new):
        before = old.claim([lane], None)[lane]
        assert before.offset is None
        old.store(results([message(lane, 0)], ["m0"]), [Move(lane, before.epoch, 1)])
        now = new.claim([lane], None)[lane]
        assert now.offset == 1
        with pytest.raises(Fenced):
            old.store(results([message(lane, 1)], ["zombie"]), [Move(lane, before.epoch, 2)])
        new.store(results([message(lane, 1)], ["m1"]), [Move(lane, now.epoch, 2)])
        new.store(results([message(lane, 1)], ["again"]), [Move(lane, now.epoch, 2)])  # a repetition
    assert stored(pair) == ["m0", "m1"]


def test_the_producer_of_a_partition_that_went_is_ended(pair: Pair):
    class Claiming(Grants):
        def granted(self, lanes: Sequence[str]) -> Mapping[str, int | None]:
            super().granted(lanes)
            return {lane: claim.offset for lane, claim in sink.claim(lanes, None).items()}

    pair.send(*[b"%d" % i for i in range(20)])
    source, sink = pair.both()
    desk = Claiming()
    ended: list[str] = []
    with closing(sink), opened(source, desk):
        until(lambda: source.poll(1, 1, 0.2), 60)
        for lane in desk.granted_now:
            weakref.finalize(sink._lanes[lane], ended.append, lane)
        with opened(pair.source()) as other:
            until(lambda: (other.poll(1, 1, 0.1), source.hold(0.1), desk.revoked_ever)[-1], 60)
            kept = set(desk.granted_now)
            lane = min(kept)
            sink.store(results([], []), [Move(lane, sink._lanes[lane].epoch, 0)])
            assert set(sink._lanes) == kept
            assert set(ended) == set(desk.revoked_ever)


def test_what_the_topic_does_not_take_is_refused_and_its_mates_are_written_once(pair: Pair):
    pair.send(b"{}")
    _, sink = pair.both()
    lane = pair.lane()
    text = (TensorSpec("y", "BYTES", (-1,)),)
    large = np.array([b"small", os.urandom(3 << 20).hex().encode()], dtype=object)
    came = [message(lane, 0), message(lane, 1)]
    with closing(sink):
        sink.open(f"kafka:{pair.topic}/g", text)
        epoch = sink.claim([lane], None)[lane].epoch
        whole = results(came, ["m0", "m1"], text, y=large)
        with pytest.raises(Unwritable, match=r"max\.message\.bytes"):
            insist(sink, whole, Move(lane, epoch, 2))
        insist(sink, whole.part(0, 1), Move(lane, epoch))  # as the loop bisects: no offset yet
        with pytest.raises(Unwritable):
            insist(sink, whole.part(1, 2), Move(lane, epoch))
        assert stored(pair) == []
        insist(sink, whole.part(0, 0), Move(lane, epoch, 2))
        assert sink.claim([lane], None)[lane].offset == 2
    assert stored(pair) == ["m0"]


def test_a_retry_and_its_offset_are_one_transaction(pair: Pair):
    pair.send(b"{}")
    source, sink = pair.both()
    with closing(sink), opened(source, _Claims(sink)) as source:
        (came,) = polled(source, 1)
        lane = came.position.partition
        source.retry(came, "m0", 1, 0.0)
        retries = f"{pair.topic}.g.retry.1"
        assert kafka.read(pair.address, retries) == []
        epoch = source._desk.claims[lane].epoch
        sink.store(results([], []), [Move(lane, epoch, came.position.offset + 1)])
        source.settle([came])
        (again,) = polled(source, 1)
        assert (again.attempt, again.name) == (1, came.name)
        assert len(kafka.read(pair.address, retries)) == 1
        # A transaction's mark lies behind the last message: it is nothing that is left to do.
        source.settle([again])
        end = time.monotonic() + 20
        while any(lag.behind or lag.in_hand for lag in source.lag()) and time.monotonic() < end:
            assert source.poll(10, 1 << 20, 0.1) == []
        assert not any(lag.behind or lag.in_hand for lag in source.lag())


class _Claims(Grants):
    """A desk that claims in a sink."""

    def __init__(self, sink: Any) -> None:
        super().__init__()
        self._sink = sink
        self.claims: dict[str, Any] = {}

    def granted(self, lanes: Sequence[str]) -> Mapping[str, int | None]:
        self.claims.update(self._sink.claim(lanes, None))
        return {lane: self.claims[lane].offset for lane in lanes}


def test_where_a_partition_begins_is_said_by_the_sink(pair: Pair):
    pair = Pair(pair.address, partitions=1)
    pair.send(*[b"%d" % i for i in range(10)])
    with opened(pair.source(), Grants({pair.lane(): 7})) as source:
        assert [m.value for m in polled(source, 3)] == [b"7", b"8", b"9"]
    with closing(opening.tools(queue_kinds(), pair.source_at, Path("."))) as tools:
        assert sum(lag.behind for lag in tools.lag()) == 3, "committed is what the sink has, and no more"


def test_partitions_wait_for_a_sink_that_is_away(pair: Pair):
    class Away(Grants):
        tries = 0

        def granted(self, lanes: Sequence[str]) -> Mapping[str, int | None]:
            self.tries += 1
            if self.tries < 3:
                raise Unavailable("the sink is away")
            return super().granted(lanes)

    pair = Pair(pair.address, partitions=1)
    pair.send(*[b"%d" % i for i in range(5)])
    desk = Away({pair.lane(): 2})
    with opened(pair.source(), desk) as source:
        with pytest.raises(Unavailable):
            source.lag()
        assert [m.value for m in polled(source, 3)] == [b"2", b"3", b"4"]
    assert desk.tries == 3


def test_a_partition_that_goes_while_it_is_in_hand_is_said(pair: Pair):
    class InHand(Grants):
        def revoked(self, lanes: Sequence[str]) -> None:
            super().revoked(lanes)
            raise Fenced("in hand")

    pair.send(*[b"%d" % i for i in range(20)])
    with opened(pair.source(), InHand()) as source:
        polled(source, 20)
        with opened(pair.source()) as other:
            other.poll(1, 1, 0.0)
            with pytest.raises(Fenced):
                source.hold(30.0)


def test_a_topic_that_is_not_there(pair: Pair):
    source_at = f"kafka://{pair.address}/{pair.topic}"
    with pytest.raises(SettingsError, match="&create="):
        opening.tools(queue_kinds(), source_at, Path("."))
    kinds = queue_kinds()
    sink = kinds.sinks["kafka"](parse(f"kafka://{pair.address}/{pair.results}?create=1", "sink"))
    with closing(sink), pytest.raises(SettingsError, match="one cluster"):
        sink.open("kafka:elsewhere/g", OUTPUTS)


def test_who_may_not_is_told_and_no_secret_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    secret = kafka.PASSWORD.replace("/", "%2F")
    with kafka.own(sasl=True) as broker:
        at = f"{broker.address}/t?create=1&security.protocol=SASL_PLAINTEXT"
        with pytest.raises(SettingsError, match=r"(?i)authentication") as raised:
            opening.tools(queue_kinds(), f"kafka://octoserve:wrong{secret}@{at}", tmp_path)
        told = str(raised.value) + caplog.text
        assert kafka.PASSWORD not in told
        assert secret not in told
        with closing(opening.tools(queue_kinds(), f"kafka://octoserve:{secret}@{at}", tmp_path)) as tools:
            assert tools.send(iter([b"1"]), lambda count: None) == 1
        file = tmp_path / "client.properties"
        file.write_text(f"sasl.mechanisms=PLAIN\nsasl.username=octoserve\nsasl.password={kafka.PASSWORD}\n")
        with closing(opening.tools(queue_kinds(), f"kafka://{at}&config={file}", tmp_path)) as tools:
            assert [each.value for each in tools.tail(1, False)] == [b"1"]
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        opening.tools(queue_kinds(), f"kafka://{broker.address}/t", tmp_path)


def test_a_static_member_takes_the_place_of_who_had_its_name(pair: Pair):
    pair.source_at += "&instance=a"
    pair.send(b"0", b"1")
    with opened(pair.source()) as old:
        old.settle(polled(old, 2))
        pair.send(b"2")
        with opened(pair.source()) as new:
            new.settle(polled(new, 1))
            with pytest.raises(Fenced):
                polled(old, 2)  # the third message it may have fetched before it heard; a fourth there is not

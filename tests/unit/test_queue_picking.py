"""Which version a message belongs to: the split's own answer, by whatever the message carries as its key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octoserve.connectors.queues.protocol import ID_HEADER, Message
from octoserve.core.errors import SettingsError
from octoserve.core.evidence import ALL, BASELINE, CANDIDATE, STABLE
from octoserve.patterns.message_queue.picking import Picker, judged, rekeyed
from octoserve.routing.plan import RoutePlan
from octoserve.routing.split import pick
from support.queue_versions import Twice, body, canary, plane_of
from support.queues import message


def picked(plan: RoutePlan, messages: list[Message], payload: str = "json", tried: bool = False) -> list[int]:
    """Of each message its version."""
    plane = plane_of(plan, {1: Twice(1), 2: Twice(2)})
    versions: dict[int, int] = {}
    for part in Picker(plane, "m", payload).parts(messages, tried):
        assert len(part.calls) in (0, len(part.places))
        for place in part.places:
            assert versions.setdefault(place, part.version) == part.version
    assert sorted(versions) == list(range(len(messages))), "every message in one part"
    return [versions[place] for place in range(len(messages))]


@pytest.mark.parametrize(
    ("key", "made"),
    [
        ("message:key", lambda i: {"value": body(i), "key": b"k%d" % i}),
        ("header:X-Who", lambda i: {"value": body(i), "headers": {"X-Who": f"k{i}"}}),
        ("column:who", lambda i: {"value": body(i, who=f"k{i}")}),
        ("input:who", lambda i: {"value": body(i, who=[f"k{i}", "other"])}),
    ],
)
def test_a_key_meets_the_version_that_it_meets_online(key: str, made: Any):
    plan = canary(key=key)
    messages = [message(i, **made(i)) for i in range(300)]
    expected = [pick(plan, b"k%d" % i) for i in range(300)]
    assert picked(plan, messages) == expected
    assert 50 < expected.count(2) < 130


@pytest.mark.parametrize("value", [7, True, False, 2**70])
def test_numbers_and_booleans_are_keys_as_the_split_writes_them(value: Any):
    plan = canary(5000, key="column:who")
    text = {True: b"true", False: b"false"}[value] if isinstance(value, bool) else str(value).encode()
    assert picked(plan, [message(0, body(0, who=value))]) == [pick(plan, text)]


def test_a_float_is_no_key_and_goes_to_the_stable_version():
    assert set(picked(canary(9000, key="column:who"), [message(i, body(i, who=i + 0.5)) for i in range(50)])) == {1}


@pytest.mark.parametrize("key", ["", "header:x-who", "column:who", "message:key", "parameter:who"])
def test_what_has_no_key_goes_by_its_id_so_that_it_comes_to_the_same_version_again(key: str):
    plan = canary(key=key)
    messages = [message(i, body(i)) for i in range(200)]
    expected = [pick(plan, f"m{i}".encode()) for i in range(200)]
    assert picked(plan, messages) == expected
    assert picked(plan, messages) == expected
    unread = [message(i, b"no json", headers={ID_HEADER: f"m{i}"}) for i in range(200)]
    assert picked(plan, unread) == expected, "a payload that cannot be read has the id of its header"


def test_requests_are_split_by_a_tensor_or_a_parameter():
    def request(i: int) -> bytes:
        x = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}
        who = {"name": "who", "shape": [1], "datatype": "BYTES", "data": [f"k{i}"]}
        return json.dumps({"id": f"m{i}", "inputs": [x, who], "parameters": {"user": f"u{i}"}}).encode()

    messages = [message(i, request(i)) for i in range(100)]
    for key, prefix in (("input:who", "k"), ("parameter:user", "u")):
        plan = canary(key=key)
        expected = [pick(plan, f"{prefix}{i}".encode()) for i in range(100)]
        assert picked(plan, messages, "open-inference") == expected


def test_testers_see_what_they_are_to_see():
    plan = canary(0, key="message:key", overrides={"ann": 2})
    assert picked(plan, [message(0, key=b"ann"), message(1, key=b"bob")]) == [2, 1]


def test_what_was_tried_before_is_the_stable_version_s_and_counted_for_nobody():
    plane = plane_of(canary(10_000), {1: Twice(1), 2: Twice(2)})
    picker = Picker(plane, "m", "json")
    (part,) = picker.parts([message(0, body(0))], tried=True)
    assert (part.version, part.arm) == (1, None)
    (part,) = picker.parts([message(0, body(0))], tried=False)
    assert part.version == 2
    (seen,) = plane.splits.seen()
    assert {role: arm[ALL].assigned for role, arm in seen.evidence.arms.items() if arm[ALL].assigned} == {CANDIDATE: 1}


def test_a_version_that_is_not_ready_here_leaves_its_messages_to_the_stable_one():
    plane = plane_of(canary(10_000), {1: Twice(1)})
    (part,) = Picker(plane, "m", "json").parts([message(0, body(0))], tried=False)
    assert (part.version, part.role) == (1, STABLE)


def test_the_baseline_is_an_arm_of_its_own():
    plane = plane_of(canary(), {1: Twice(1), 2: Twice(2)})
    parts = Picker(plane, "m", "json").parts([message(i, body(i)) for i in range(300)], tried=False)
    assert {part.role: part.version for part in parts} == {STABLE: 1, BASELINE: 1, CANDIDATE: 2}


def test_whose_latencies_are_compared():
    assert [judged(canary(), role) for role in (CANDIDATE, BASELINE, STABLE)] == [True, True, False]
    half = canary(6000)
    assert [judged(half, role) for role in (CANDIDATE, STABLE)] == [True, True], "no baseline fits beside it"
    assert not judged(canary(stratum=""), CANDIDATE), "nobody looks"


def test_another_key_may_be_asked_for():
    assert rekeyed(canary(key="header:x"), "who", "json").key == "column:who"
    assert rekeyed(canary(key="header:x", by_proxy=True), "", "json") == canary(key="header:x")
    with pytest.raises(SettingsError, match="a payload of json has no parameters"):
        rekeyed(canary(), "parameter:who", "json")
    with pytest.raises(SettingsError, match="a raw payload has no fields"):
        rekeyed(canary(), "who", "raw")
    with pytest.raises(SettingsError, match="'who:me' came"):
        rekeyed(canary(), "who:me", "json")

"""The audit log: every change of a chain shows, and nothing that went in comes out otherwise."""

from __future__ import annotations

import hashlib
import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.control.analysis.reading import ArmSums, Reading
from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.rollout.audit import (
    GENESIS,
    AuditEntry,
    chain,
    decode,
    digest_of,
    encode,
    verify,
    verify_lines,
)
from octoserve.control.rollout.values import Phase
from support.rollouts import a_rollout, after, an_entry

floats = st.floats(allow_nan=True, allow_infinity=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | floats | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
readings = st.builds(
    Reading,
    candidate=st.none() | st.builds(ArmSums, n=floats, total=floats, squares=floats),
    age=st.none() | floats,
    error=st.text(max_size=5),
)
verdicts = st.builds(
    Verdict, check=st.text(max_size=5), outcome=st.sampled_from(Outcome), estimate=st.none() | floats, low=floats
)
entries = st.builds(
    AuditEntry,
    rollout=st.text(max_size=5),
    endpoint=st.just("m"),
    time=floats | st.integers(0, 2**40),
    who=st.text(max_size=5),
    event=st.text(max_size=5),
    reason=st.text(),
    record=st.none() | st.just(a_rollout()) | st.just(after(a_rollout(), phase=Phase.RUNNING, settled=3)),
    readings=st.dictionaries(st.text(max_size=5), readings, max_size=2),
    verdicts=st.lists(verdicts, max_size=2).map(tuple),
    view=st.dictionaries(st.text(), json_values, max_size=3),
)


def a_chain(items: list[AuditEntry]) -> list[AuditEntry]:
    linked: list[AuditEntry] = []
    for item in items:
        linked.append(chain(linked[-1] if linked else None, item))
    return linked


@given(st.lists(entries, min_size=1, max_size=5))
def test_a_chain_verifies_and_reads_back_to_the_same_bytes(items):
    linked = a_chain(items)
    assert verify(linked) is None
    assert [entry.seq for entry in linked] == list(range(1, len(items) + 1))
    for entry in linked:
        assert encode(decode(encode(entry))) == encode(entry)


@given(st.lists(entries, min_size=1, max_size=4), st.data())
def test_no_bit_of_a_line_can_be_changed(items, data):
    lines = [encode(entry) for entry in a_chain(items)]
    which = data.draw(st.integers(0, len(lines) - 1))
    at, bit = data.draw(st.integers(0, len(lines[which]) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(lines[which])
    changed[at] ^= 1 << bit
    lines[which] = bytes(changed)
    assert verify_lines(lines) is not None


def with_another_reason(line: bytes) -> bytes:
    """What a forger who knows the format writes: another reason, and the digest that goes with it."""
    fields = json.loads(line) | {"reason": "all was well"}
    forged = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return forged.replace(fields["digest"].encode(), digest_of(forged).encode(), 1)


def test_where_a_chain_breaks_is_said():
    lines = [encode(entry) for entry in a_chain([an_entry(a_rollout(version=n)) for n in range(6)])]
    assert verify_lines(lines) is None
    assert verify_lines(lines[2:]) is None, "what lies before the first line is not judged"
    assert verify_lines(lines[:2] + lines[3:]) == 4, "3 was taken out"
    assert verify_lines([*lines[:3], lines[2], *lines[3:]]) == 3, "3 comes twice"
    assert verify_lines([lines[0], lines[2], lines[1], *lines[3:]]) == 3
    assert verify_lines([*lines[:4], b"", lines[5]]) == 5, "a line that is none counts as the one that had to come"
    forged = with_another_reason(lines[2])
    assert verify_lines([forged]) is None, "by itself it is as good as the true one"
    assert verify_lines([*lines[:2], forged, *lines[3:]]) == 4, "the next one knows better"


def test_an_entry_of_another_endpoint_does_not_continue_a_chain():
    first = chain(None, an_entry(a_rollout()))
    assert verify([first, chain(first, an_entry(a_rollout(endpoint="other")))]) == 2


def test_a_first_entry_that_names_one_before_it_is_none():
    first = chain(None, an_entry(a_rollout()))
    second = chain(first, an_entry(a_rollout()))
    assert verify([chain(msgspec.structs.replace(second, seq=0), an_entry(a_rollout()))]) == 1


def test_a_second_digest_in_a_line_deceives_nobody():
    line = encode(chain(None, an_entry(a_rollout())))
    rest = b'"digest":"' + GENESIS.encode() + b'",' + line[77:]
    assert verify_lines([b'{"digest":"' + hashlib.sha256(b"{" + rest).hexdigest().encode() + b'",' + rest]) == 1


def test_the_documented_bytes():
    """The example in docs/audit.md: if this changes, old logs cannot be verified by hand as the page says."""
    view = {"b": 1, "a": 2.0}
    entry = chain(
        None,
        AuditEntry(rollout="7f3a", endpoint="iris", time=1700000000.25, who="ada", event="note", view=view),
    )
    rest = (
        '"endpoint":"iris","event":"note","evidence":null,"from_phase":"","from_step":0,'
        f'"previous":"{GENESIS}","readings":{{}},"reason":"","record":null,"rollout":"7f3a","seq":1,'
        '"time":1700000000.25,"to_phase":"","to_step":0,"verdicts":[],"view":{"a":2.0,"b":1},"who":"ada"}'
    )
    digest = hashlib.sha256(f"{{{rest}".encode()).hexdigest()
    assert encode(entry) == f'{{"digest":"{digest}",{rest}'.encode()
    assert digest == "47cf41d0c0a46bf4d4f84cf0740330ac1817d9d060e8d958055aa57593384d73"


def test_a_line_with_fields_of_a_later_release_still_verifies():
    line = encode(chain(None, an_entry(a_rollout())))
    rest = line[77:].replace(b'"who":', b'"whither":1,"who":')
    later = b'{"digest":"' + hashlib.sha256(b"{" + rest).hexdigest().encode() + b'",' + rest
    assert verify_lines([later]) is None
    assert decode(later).who == "controller"


def test_what_no_json_has_is_kept():
    entry = an_entry(
        a_rollout(),
        who="half a pair: \ud800",
        readings={"m": Reading(candidate=ArmSums(n=1, total=math.nan), age=math.inf)},
        verdicts=(Verdict(check="c", outcome=Outcome.PASS, estimate=np.float64(0.5), low=-math.inf, n=np.int64(3)),),
        view={"share": np.float32(0.5)},
    )
    back = decode(encode(chain(None, entry)))
    assert back.who == "half a pair: ?"
    sums = back.readings["m"].candidate
    assert sums is not None
    assert math.isnan(sums.total)
    assert back.readings["m"].age == math.inf
    assert back.verdicts == (Verdict(check="c", outcome=Outcome.PASS, estimate=0.5, low=-math.inf, n=3),)
    assert back.view == {"share": 0.5}
    with pytest.raises(TypeError, match="object has no place"):
        encode(an_entry(a_rollout(), view={"x": object()}))

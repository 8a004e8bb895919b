"""`traceparent` and `tracestate`, as W3C Trace Context has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.trace_context import TraceContext, carried, context_in, left_out

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_read_and_written() -> None:
    said = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7"}
    context = context_in(said)
    assert context == TraceContext(int(TRACE, 16), int(SPAN, 16), 1, said["tracestate"])
    assert context.headers() == carried(said) == said


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 3))
def test_there_and_back(trace: int, span: int, flags: int) -> None:
    context = TraceContext(trace, span, flags)
    assert context_in(context.headers()) == context
    assert left_out(context.headers()) is not context.sampled


@pytest.mark.parametrize(
    "said",
    [
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        "nonsense",
        "",
    ],
)
def test_what_is_none_begins_a_new_trace(said: str) -> None:
    assert context_in({"traceparent": said}) is None
    assert carried({"traceparent": said}) == {}
    assert not left_out({"traceparent": said})


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    context = context_in({"traceparent": f"cc-{TRACE}-{SPAN}-ff-what-comes-then"})
    assert context is not None
    assert context.sampled
    assert context.headers()["traceparent"] == f"00-{TRACE}-{SPAN}-03"


@pytest.mark.parametrize("state", ["a=b\r\nx-evil: 1", "a=\x00", "a=é", "a=" + "b" * 600])
def test_a_state_that_no_header_can_hold_is_left_out(state: str) -> None:
    assert carried({"traceparent": f"00-{TRACE}-{SPAN}-00", "tracestate": state}) == {
        "traceparent": f"00-{TRACE}-{SPAN}-00"
    }

"""Who is let in, and when to come back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.errors import DeadlineExceeded, Overloaded
from octoserve.dataplane.admission import MAX_RETRY_AFTER, admit, retry_after

NEVER = math.inf


def test_an_empty_queue_lets_in() -> None:
    admit(100.0, NEVER, 0, 1, 0, 0.0)
    admit(100.0, 100.001, 0, 1, 0, 5.0)


def test_a_full_queue_sheds_before_anything_else() -> None:
    with pytest.raises(Overloaded) as caught:
        admit(100.0, 50.0, 10, 10, 10, 0.3)
    assert caught.value.reason == "queue_full"
    assert caught.value.retry_after == 3
    assert "10" in str(caught.value)


def test_a_deadline_that_has_passed() -> None:
    for deadline in (100.0, 99.0, 0.0, -math.inf):
        with pytest.raises(DeadlineExceeded):
            admit(100.0, deadline, 0, 10, 0, 0.0)


def test_a_deadline_that_the_queue_cannot_meet() -> None:
    admit(100.0, 101.1, 3, 10, 10, 0.1)
    with pytest.raises(Overloaded) as caught:
        admit(100.0, 100.9, 3, 10, 10, 0.1)
    assert caught.value.reason == "deadline_unmeetable"
    assert caught.value.retry_after == 1


def test_nobody_is_shed_for_a_deadline_before_anything_was_measured() -> None:
    admit(100.0, 100.001, 9, 10, 1000, 0.0)


@given(st.floats(0, 1e9))
def test_retry_after_is_whole_seconds_within_bounds(seconds: float) -> None:
    wait = retry_after(seconds)
    assert isinstance(wait, int)
    assert 1 <= wait <= MAX_RETRY_AFTER
    assert wait >= min(seconds, MAX_RETRY_AFTER)


@given(
    st.floats(0, 1e6),
    st.one_of(st.floats(-10, 1e6), st.just(NEVER)),
    st.integers(0, 20),
    st.integers(0, 1000),
    st.floats(0, 10),
)
def test_who_is_let_in_has_room_and_time(now: float, deadline: float, pending: int, ahead: int, cost: float) -> None:
    try:
        admit(now, deadline, pending, 10, ahead, cost)
    except Overloaded as error:
        assert error.retry_after >= 1  # noqa: PT017
        assert pending >= 10 or now + ahead * cost > deadline
    except DeadlineExceeded:
        assert deadline <= now
    else:
        assert pending < 10
        assert deadline > now
        assert now + ahead * cost <= deadline


def test_overloaded_never_says_come_back_at_once() -> None:
    assert Overloaded("x", 0).retry_after == 1
    assert Overloaded("x", -5).retry_after == 1

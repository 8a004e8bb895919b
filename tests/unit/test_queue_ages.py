"""How old the oldest message is that is not done, as far as a consumer of Kafka knows."""

from __future__ import annotations

from octoserve.connectors.queues.kafka_ages import Ages
from octoserve.connectors.queues.protocol import Message
from support.loops import FakeClock
from support.queues import message

LANE = "t/0"


def published(*at: float) -> list[Message]:
    return [message(offset, partition=LANE, published=seconds) for offset, seconds in enumerate(at)]


def test_the_oldest_is_in_work_or_has_come_or_is_no_older_than_what_is_done() -> None:
    wall = FakeClock(100.0)
    ages = Ages(wall)
    assert ages.oldest(LANE, 5, None) is None, "nobody knows yet"
    first, second, third = published(90, 91, 95)
    ages.in_work([first, second])
    assert ages.oldest(LANE, 5, None) == 90
    assert ages.oldest(LANE, 5, third) == 90
    ages.done(second)
    assert ages.oldest(LANE, 3, third) == 95
    assert ages.oldest(LANE, 3, None) == 91, "what has not come is younger than what is done"


def test_two_in_work_and_one_half_done() -> None:
    ages = Ages(FakeClock(100.0))
    first, second, third, fourth = published(10, 11, 20, 30)
    ages.in_work([first, second])
    ages.in_work([third, fourth])
    assert ages.oldest(LANE, 4, None) == 10
    ages.done(first)
    assert ages.oldest(LANE, 3, None) == 10, "at most so old"
    ages.done(second)
    assert ages.oldest(LANE, 2, None) == 20
    ages.done(fourth)
    assert ages.oldest(LANE, 1, None) == 30


def test_times_need_not_rise() -> None:
    ages = Ages(FakeClock(100.0))
    first, second, third = published(10, 90, 50)
    ages.in_work([first, second])
    ages.in_work([third])
    ages.done(second)
    assert ages.oldest(LANE, 1, None) == 50


def test_a_broker_that_keeps_no_times_makes_nobody_old() -> None:
    ages = Ages(FakeClock(100.0))
    ages.in_work(published(-0.001))
    assert ages.oldest(LANE, 1, None) is None


def test_what_comes_after_a_quiet_hour_is_young() -> None:
    wall = FakeClock(100.0)
    ages = Ages(wall)
    ages.in_work(published(90))
    ages.done(*published(90))
    wall.now += 3600
    assert ages.oldest(LANE, 0, None) is None
    wall.now += 5
    assert ages.oldest(LANE, 1, None) == 3700


def test_what_went_to_another_is_forgotten() -> None:
    ages = Ages(FakeClock(100.0))
    ages.in_work(published(90))
    ages.gone(LANE)
    assert ages.oldest(LANE, 1, None) is None

"""Answers to a topic: under the request's id, again while the broker is away, without what it cannot take."""

from __future__ import annotations

import json
from collections.abc import Mapping

from octoserve.connectors.queues.answer_topic import AnswerTopic
from octoserve.connectors.queues.answers import Answer
from octoserve.core.errors import TooLarge, Unavailable

DONE = Answer(id="penguins/b1", state="done", answer=b'{"outputs":[1,2,3]}')


class Topic:
    """Takes messages of `most` bytes. trouble: what the next ones raise."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.trouble: list[Exception] = []
        self.got: list[tuple[str, object]] = []
        self.closed = False

    def check(self) -> None:
        """See `Publisher.check`."""

    def prepare(self) -> None:
        """See `Publisher.prepare`."""

    def publish(self, value: bytes, id: str, headers: Mapping[str, str]) -> None:
        if self.trouble:
            raise self.trouble.pop(0)
        if len(value) > self.most:
            raise TooLarge("too large")
        self.got.append((id, json.loads(value)))

    def close(self) -> None:
        self.closed = True


def test_it_says_what_a_poll_would():
    topic = Topic()
    assert AnswerTopic(topic).tell(DONE)
    failed = Answer(id="penguins/b2", state="failed", error="no", attempts=3)
    assert AnswerTopic(topic).tell(failed)
    done = {"id": "b1", "model": "penguins", "state": "done", "answer": {"outputs": [1, 2, 3]}}
    assert topic.got == [
        ("penguins/b1", done),
        ("penguins/b2", {"id": "b2", "model": "penguins", "state": "failed", "error": "no", "attempts": 3}),
    ]


def test_a_broker_that_is_away_is_told_again():
    topic = Topic()
    topic.trouble = [Unavailable("away")]
    told = AnswerTopic(topic)
    assert [told.tell(DONE), told.tell(DONE)] == [False, True]
    told.close()
    assert topic.closed


def test_an_answer_that_is_too_large_is_left_out():
    topic = Topic(most=65)
    assert AnswerTopic(topic).tell(DONE)
    assert topic.got == [("penguins/b1", {"id": "b1", "model": "penguins", "state": "done", "answer": None})]
    topic.most = 10
    assert AnswerTopic(topic).tell(DONE), "it will never fit"

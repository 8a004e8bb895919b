"""Tells a topic, or a stream, that a request is done or failed: a message of what a poll would say, under its id."""

from __future__ import annotations

import logging

import msgspec

from octoserve.connectors.queues.answers import Answer
from octoserve.connectors.queues.protocol import Publisher
from octoserve.core.errors import OctoserveError, TooLarge

log = logging.getLogger(__name__)


class AnswerTopic:
    """Where answers go that named no callback. Any thread may tell it."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.close = publisher.close

    def tell(self, answer: Answer) -> bool:
        """Whether there is nothing more to do. Blocking; never raises.

        An answer that is too large for the broker is left out of its message: a poll has it.
        """
        try:
            try:
                self._publisher.publish(answer.told(), answer.id, {})
            except TooLarge:
                log.warning("the answer of %s is too large for the topic of results: it is told without", answer.id)
                self._publisher.publish(msgspec.structs.replace(answer, answer=b"null").told(), answer.id, {})
        except OctoserveError as error:
            log.info("the topic of results is not told of %s: %s", answer.id, error)
            return isinstance(error, TooLarge)
        return True

"""What becomes of a message that failed: tried again after a delay, or buried with its history. Pure."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from octoserve.connectors.queues.protocol import DeadLetter, Failure, Message
from octoserve.core.errors import InvalidInput, NotFound, OctoserveError, Unsupported
from octoserve.patterns.message_queue.ledger import Attempts

MAX_DELAY = 300.0
_PERMANENT = (InvalidInput, Unsupported, NotFound)
"""What can never succeed as it is. Anything else may have been the moment's fault."""


class Fate(StrEnum):
    """Of a failed message."""

    RETRY = "retry"
    BURY = "bury"


class Failed(msgspec.Struct, frozen=True):
    """A message that did not succeed. attempts: with this one; unfit: it never could."""

    message: Message
    id: str
    attempts: Attempts
    fate: Fate
    delay: float = 0.0
    unfit: bool = False


class Policy(msgspec.Struct, frozen=True):
    """How often, and how long apart. delay: seconds before the second attempt; doubled before each further one."""

    max_attempts: int
    delay: float

    def spent(self, attempts: Attempts) -> bool:
        """Whether there have been enough: it is not run again."""
        return attempts.count >= self.max_attempts

    def judge(self, message: Message, id: str, known: Attempts, error: Exception, now: float, by: str) -> Failed:
        """After a run of it that raised."""
        attempts = known.failed(Failure(at=now, error=text_of(error), by=by))
        unfit = isinstance(error, _PERMANENT)
        if unfit or self.spent(attempts):
            return Failed(message, id, attempts, Fate.BURY, unfit=unfit)
        return Failed(message, id, attempts, Fate.RETRY, min(MAX_DELAY, self.delay * 2 ** (attempts.count - 1)))


def letter(failed: Failed, source: str, now: float) -> DeadLetter:
    """The dead letter of a message."""
    message = failed.message
    return DeadLetter(
        id=failed.id,
        source=source,
        origin=message.name,
        attempts=failed.attempts.count,
        history=failed.attempts.history,
        published=message.published,
        buried=now,
        key=message.key,
        headers=dict(message.headers),
        value=message.value,
    )


def text_of(error: Exception) -> str:
    """What an error says, bounded; with its type where it is not ours."""
    text = " ".join(str(error).split())[:500] or type(error).__name__
    return text if isinstance(error, OctoserveError) else f"{type(error).__name__}: {text}"

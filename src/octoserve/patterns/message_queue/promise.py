"""What a source and a sink promise together, computed from what each of them can. Pure."""

from __future__ import annotations

import msgspec

from octoserve.connectors.queues.protocol import SinkTraits, SourceTraits

EXACTLY_ONCE = "exactly once"
EXACTLY_ONCE_EFFECT = "exactly-once effect"
IDEMPOTENT = "at-least-once, idempotent"
AT_LEAST_ONCE = "at-least-once"


class Promise(msgspec.Struct, frozen=True):
    """word: one of the four above; why: what it rests on."""

    word: str
    why: str

    def __str__(self) -> str:
        return f"{self.word}: {self.why}"


def promise(source: SourceTraits, sink: SinkTraits) -> Promise:
    """The strongest that holds whatever is killed, and whenever."""
    if source.system in sink.commits_for and source.shape == "log":
        return Promise(
            EXACTLY_ONCE,
            "results and the source's offsets are committed in one transaction of the broker; readers of committed "
            "messages see each result once",
        )
    if sink.transactional and sink.idempotent:
        position = "its position and its owner's epoch" if source.shape == "log" else "its owner's epoch"
        return Promise(
            EXACTLY_ONCE_EFFECT,
            f"a result is stored in one transaction with {position}; one whose message id is there is not stored again",
        )
    if sink.idempotent:
        return Promise(IDEMPOTENT, "a result may be written again after a crash, which changes nothing")
    return Promise(
        AT_LEAST_ONCE, "a result may come again after a crash; it carries its message id, by which a reader drops it"
    )

"""What a broker offers a queue (`QueueSource`), and what a place for results offers it (`QueueSink`).

Written for two shapes of broker: a log with partitions and offsets (Kafka), and messages that are acknowledged one by
one (NATS JetStream). What follows from a pair of them is computed from their traits: `patterns.message_queue.promise`.
Every method blocks, and is called by one thread. See docs/decisions/0014-message-queue.md for the order of the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from octoserve.core.errors import InvalidInput, OctoserveError, Unavailable
from octoserve.core.signature import TensorSpec
from octoserve.core.tensors import Array

ID_HEADER = "octoserve-message-id"
"""The message's id as it was first known, on retries and replays."""
ORIGIN_HEADER = "octoserve-origin"
"""Position of the message that a dead letter or a retry was made of, as `Position` writes it."""
ATTEMPT_HEADER = "octoserve-attempt"
"""How often a message of a retry topic was tried."""
HISTORY_HEADER = "octoserve-history"
"""JSON of a `DeadLetter`, its payload left out, on what lies in a dead-letter queue."""


class Fenced(OctoserveError):
    """Somebody else owns what this process took to be its own; nothing of the transaction was written."""

    reason = "fenced"


class NotYet(Unavailable):
    """Nobody can know so early, and nothing is wrong."""

    reason = "not_yet"


class Unwritable(InvalidInput):
    """The sink is well, and can never hold these results as they are."""

    reason = "unwritable"


class Position(NamedTuple):
    """Where a message lies in its source: a log's partition and offset, a JetStream stream's ("", sequence)."""

    partition: str
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}" if self.partition else str(self.offset)


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One message as it came.

    name:       the position as its sources' users write it, e.g. `orders/3/17`; the message id of last resort
    published:  when the broker got it, Unix seconds
    deliveries: how often the broker has given it out, this time included, as far as it knows
    attempt:    how often it was tried before, where that is written on it (a retry topic); else 0
    history:    how those failed, as far as it is written there; on a message that is retried: how all did
    token:      what the source acknowledges it by
    """

    position: Position
    value: bytes
    name: str
    key: bytes | None = None
    headers: Mapping[str, str] = {}
    published: float = 0.0
    deliveries: int = 1
    attempt: int = 0
    history: tuple[Failure, ...] = ()
    token: str = ""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt that failed. at: Unix seconds; by: `model version n`, or "" before one was chosen."""

    at: float
    error: str
    by: str = ""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is given up, with how that came.

    origin: the position, as `Message.name`; sequence: its place in the dead-letter queue, once it lies there
    """

    id: str
    source: str
    origin: str
    attempts: int
    history: tuple[Failure, ...]
    published: float
    buried: float
    key: bytes | None = None
    headers: dict[str, str] = {}
    value: bytes = b""
    sequence: str = ""


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How far behind a partition is.

    behind:      messages that nobody has taken yet
    in_hand:     taken and not yet done, of all who take from it; retries that wait count here
    oldest:      when the oldest message that is not done was published, Unix seconds; None if all are done or
                 nobody knows
    """

    partition: str
    behind: int
    in_hand: int = 0
    oldest: float | None = None


class SourceTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What a source is.

    system:  `kafka`, `nats`: what a sink that commits a source's offsets goes by
    shape:   log: done is a prefix of each partition, and partitions move. acks: each message is done by itself
    ours_for: seconds that a message stays ours without a word from us, where that is limited
    """

    system: str
    shape: Literal["log", "acks"]
    ours_for: float | None = None


class SinkTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What a sink can.

    transactional: results, positions and epochs are written in one transaction, and a stale epoch refuses it
    idempotent:    of results with one message id the first stays, however often one comes
    commits_for:   systems whose offsets it commits in its own transaction (Kafka to Kafka)
    gathers:       seconds that it pays to wait for more messages, where each write costs much (a file)
    aside:         `store` may be called in another thread, while nobody calls anything else
    """

    transactional: bool = False
    idempotent: bool = False
    commits_for: tuple[str, ...] = ()
    gathers: float = 0.0
    aside: bool = False


class Claim(msgspec.Struct, frozen=True):
    """A lane that is ours. epoch: raised by each claim. offset: the first that is not stored; None if none ever was."""

    epoch: int
    offset: int | None = None


class Move(msgspec.Struct, frozen=True):
    """How a lane goes on with a transaction. offset: the first not done after it; None where lanes have none."""

    lane: str
    epoch: int
    offset: int | None = None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Scored messages, row by row.

    outputs, columns: of each output its kind and its values; versions: who answered each row
    scored_at:        Unix seconds
    """

    model: str
    outputs: tuple[TensorSpec, ...]
    messages: Sequence[Message]
    ids: Sequence[str]
    columns: Sequence[Array]
    versions: NDArray[np.int64]
    scored_at: float

    def part(self, start: int, stop: int) -> Results:
        """Rows `start` to `stop`."""
        return msgspec.structs.replace(
            self,
            messages=self.messages[start:stop],
            ids=self.ids[start:stop],
            columns=[column[start:stop] for column in self.columns],
            versions=self.versions[start:stop],
        )


class Stored(msgspec.Struct, frozen=True):
    """written: rows that are there now and were not; repeated: those whose message id was there."""

    written: int
    repeated: int = 0


class Desk(Protocol):
    """What a source tells of its lanes; the loop's side."""

    def granted(self, lanes: Sequence[str]) -> Mapping[str, int | None]:
        """These are ours from now on. The offset to go on from, of each; None: from the broker's own."""
        ...

    def revoked(self, lanes: Sequence[str]) -> None:
        """They no longer are. Raises Fenced if something of theirs is in hand: drop it, let the exception pass."""
        ...


class QueueSource(Protocol):
    """Where messages come from."""

    @property
    def traits(self) -> SourceTraits:
        """What it is."""
        ...

    @property
    def name(self) -> str:
        """Its identity, the same in every process: what attempts and positions are kept under. No secrets."""
        ...

    def open(self, desk: Desk) -> None:
        """Take part. Raises SettingsError, Unavailable."""
        ...

    def poll(self, rows: int, nbytes: int, timeout: float) -> list[Message]:
        """What is there, at most so many and so much (one at least, of any size); waits `timeout` s for the first.

        A broker that is away has nothing; the source says so in the log and goes on trying. Raises Fenced.
        """
        ...

    def hold(self, timeout: float) -> None:
        """Wait so long, taking nothing, and keep what is in hand ours. Call it every few seconds when not polling."""
        ...

    def settle(self, messages: Sequence[Message]) -> None:
        """They are done: acknowledge them, or commit their offsets. Lost with the process, they come again."""
        ...

    def retry(self, message: Message, id: str, attempt: int, delay: float) -> None:
        """Let it come again after so many seconds, tried `attempt` times by then; durable on return.

        The loop does not settle it on its own if `traits.shape` is acks; in a log it is settled as done.
        """
        ...

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Lay these in the dead-letter queue; there on return. The loop settles their messages after."""
        ...

    def lag(self) -> list[Lag]:
        """As it stands; asked for rarely. Raises Unavailable."""
        ...

    def close(self) -> None:
        """Give back what is in hand, see that what was settled has arrived, and leave."""
        ...


class QueueTools(Protocol):
    """What people do to a queue at a terminal, without taking part in it."""

    def send(self, values: Iterator[bytes], sent: Callable[[int], None]) -> int:
        """Add messages, all acknowledged on return; how many. `sent` is told now and then. Raises Unavailable."""
        ...

    def tail(self, last: int, follow: bool) -> Iterator[Message]:
        """The last messages, then, if wanted, those that come."""
        ...

    def lag(self) -> list[Lag]:
        """Of the group, or of the durable consumer, that the address names."""
        ...

    def dead(self) -> list[DeadLetter]:
        """What lies in the dead-letter queue, oldest first, one a message."""
        ...

    def replay(self, letters: Sequence[DeadLetter]) -> int:
        """Send these again under their message ids, and take them out of the dead-letter queue."""
        ...

    def close(self) -> None:
        """The last call."""
        ...


class Publisher(Protocol):
    """Who puts single messages into a queue; any thread may. Connects with the first one, unless it is prepared."""

    def check(self) -> None:
        """What is needed is installed. Raises SettingsError."""
        ...

    def prepare(self) -> None:
        """Connect. Raises Unavailable, SettingsError."""
        ...

    def publish(self, value: bytes, id: str, headers: Mapping[str, str]) -> None:
        """On the broker's disk on return, under this message id. Raises TooLarge; Unavailable, of which it may be there
        all the same."""
        ...

    def close(self) -> None:
        """The last call."""
        ...


class QueueSink(Protocol):
    """Where results go."""

    @property
    def traits(self) -> SinkTraits:
        """What it can."""
        ...

    @property
    def label(self) -> str:
        """Its address as people may see it."""
        ...

    def open(self, source: str, outputs: Sequence[TensorSpec]) -> None:
        """For results of these outputs of messages of this source. Makes what is missing, such as the table.

        Raises SettingsError for what cannot hold them, Unavailable.
        """
        ...

    def claim(self, lanes: Sequence[str], seconds: float | None) -> dict[str, Claim]:
        """Make lanes ours; who had them before is refused from here on. Raises Unavailable.

        seconds: how long a claim holds unless it is used; None: until the next one
        """
        ...

    def store(self, results: Results, moves: Sequence[Move]) -> Stored:
        """Durable on return. Without rows, too: it moves and renews claims.

        Raises Fenced, Unwritable, and Unavailable for anything that may pass.
        """
        ...

    def close(self) -> None:
        """The last call."""
        ...

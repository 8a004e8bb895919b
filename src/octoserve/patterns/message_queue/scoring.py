"""A micro-batch through the model: what fails is bisected down to the messages that fail, and their mates succeed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from octoserve.codecs.json_rows import Decoded
from octoserve.connectors.queues.protocol import ID_HEADER, Fenced, Message
from octoserve.core.clock import monotonic
from octoserve.core.errors import InvalidInput, Unavailable
from octoserve.core.signature import TensorSpec
from octoserve.core.tensors import Array, Tensor
from octoserve.dataplane.table import ScoredTable

ID_HEADERS = ("message-id", "Nats-Msg-Id")
"""Headers that name a message, where its payload does not."""


class Named(Protocol):
    """Whose results they are."""

    @property
    def name(self) -> str:
        """The model's."""
        ...

    @property
    def version(self) -> int:
        """Which of it scores, or is trusted where several do."""
        ...


class Scorer(Named, Protocol):
    """The way through the data plane."""

    def score(self, columns: Sequence[Tensor]) -> ScoredTable:
        """All rows, or an exception."""
        ...


Decode = Callable[[Sequence[bytes]], Decoded]
Guard = Callable[[], contextlib.AbstractContextManager[None]]
"""Within it a run of the model has its deadline."""


class Run(NamedTuple):
    """One run that came back. places: of its messages, in the order of its rows; columns: what it was given."""

    places: Sequence[int]
    columns: Sequence[Tensor]
    gave: ScoredTable
    seconds: float


OnRun = Callable[[Run], None]


def _nobody(run: Run) -> None:
    """Nobody watches."""


class Scored(msgspec.Struct, frozen=True):
    """good: places of the messages that have a result; columns, versions: those results, in that order.

    ids: of every message. failed: place -> why
    """

    good: list[int]
    columns: list[Array]
    versions: NDArray[np.int64]
    ids: list[str]
    failed: dict[int, Exception]


def identity(message: Message, own: str | None) -> str:
    """The message's id; own: what its payload says. See docs/decisions/0014-message-queue.md."""
    headers = message.headers
    if headers:
        if ID_HEADER in headers:
            return headers[ID_HEADER]
        if own is None:
            own = next((headers[name] for name in ID_HEADERS if headers.get(name)), None)
    return own or message.name


def score(
    scorer: Scorer,
    decode: Decode,
    outputs: Sequence[TensorSpec],
    messages: Sequence[Message],
    guard: Guard,
    on_run: OnRun = _nobody,
    block: int | None = None,
) -> Scored:
    """Decode and run, at most `block` rows at once.

    Raises what is no message's fault: MemoryError, Fenced, Unavailable.
    """
    decoded = decode([message.value for message in messages])
    ids = [identity(message, own) for message, own in zip(messages, decoded.ids, strict=True)]
    failed: dict[int, Exception] = {place: InvalidInput(reason) for place, reason in decoded.unfit.items()}
    good: list[int] = []
    runs: list[ScoredTable] = []
    for group in decoded.groups:
        rows = len(group.rows)
        for start, stop, ran in _bisected(scorer, group.columns, rows, guard, block or rows):
            if isinstance(ran, _Ran):
                good += group.rows[start:stop]
                runs.append(ran.gave)
                on_run(Run(group.rows[start:stop], ran.columns, ran.gave, ran.seconds))
            else:
                failed[group.rows[start]] = ran
    columns = [joined([ran.outputs[spec.name] for ran in runs]) for spec in outputs]
    versions = joined([ran.versions for ran in runs]) if runs else np.empty(0, np.int64)
    if len(decoded.groups) > 1:  # in the order that they came
        order = np.argsort(good, kind="stable")
        good = [good[at] for at in order]
        columns, versions = [column[order] for column in columns], versions[order]
    return Scored(good, columns, versions, ids, failed)


def joined(parts: Sequence[Array]) -> Array:
    """All rows; where their shapes differ, an object array of nested lists."""
    if not parts:
        return np.empty(0)
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    rows = [row.tolist() for part in parts for row in part]
    ragged = np.empty(len(rows), dtype=object)
    ragged[:] = rows
    return ragged


class _Ran(NamedTuple):
    columns: Sequence[Tensor]
    gave: ScoredTable
    seconds: float


def _bisected(
    scorer: Scorer, columns: Sequence[Tensor], rows: int, guard: Guard, block: int
) -> Iterator[tuple[int, int, _Ran | Exception]]:
    """Ranges of rows in order, each with its results, or a single row with why it has none."""
    arrays = [tensor.array() for tensor in columns]
    waiting = [(start, min(start + block, rows)) for start in range(0, rows, max(1, block))][::-1]
    while waiting:
        start, stop = waiting.pop()
        part = columns
        if (start, stop) != (0, rows):
            part = [Tensor.of(t.name, a[start:stop], t.datatype) for t, a in zip(columns, arrays, strict=True)]
        try:
            with guard():
                began = monotonic()
                gave = scorer.score(part)
                seconds = monotonic() - began
        except (MemoryError, Fenced, Unavailable):
            raise  # no message's fault
        except Exception as error:
            if stop - start == 1:
                yield start, stop, error
            else:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
        else:
            yield start, stop, _Ran(part, gave, seconds)

"""A micro-batch whose messages belong to several versions: parted, scored, and put together again in order.

What the candidate fails on is scored by the stable version at once: the failure is the candidate's, the message is not
lost by it. What was tried before is the stable version's too, so that a candidate that kills its process kills it once
for each message. See docs/decisions/0016-rollouts-in-queues.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np

from octoserve.connectors.queues.protocol import Message
from octoserve.core.errors import InvalidInput
from octoserve.core.evidence import CANDIDATE
from octoserve.core.results import Ran, Result
from octoserve.core.signature import Signature, TensorSpec
from octoserve.patterns.message_queue import scoring
from octoserve.patterns.message_queue.picking import Part, Picker, judged
from octoserve.patterns.message_queue.scoring import Decode, Guard, Run, Scored, Scorer

T = TypeVar("T")

BLOCK = 16
"""Rows of a run in arms whose latencies are compared: one run is one measurement, and those of both are of a size."""


class Voice(NamedTuple):
    """A version: what scores with it, and how payloads become its inputs."""

    scorer: Scorer
    decode: Decode
    signature: Signature


class OnLoop(Protocol):
    """Does something where the data plane lives."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Its result, or what it raises."""
        ...


class Here:
    """Where that is this thread."""

    def __call__(self, work: Callable[[], T]) -> T:
        """See `OnLoop`."""
        return work()


class Routed:
    """See the module.

    voices: by version, each that the plan in force may name
    on_loop: where splits are asked and count
    before: told the role of an arm whose run is about to begin, "" when it is over
    failed: told the version that failed on a message
    """

    def __init__(
        self,
        picker: Picker,
        voices: Callable[[int], Voice],
        outputs: Sequence[TensorSpec],
        guard: Guard,
        *,
        on_loop: OnLoop = Here(),
        before: Callable[[str], None] = lambda role: None,
        failed: Callable[[int], None] = lambda version: None,
    ) -> None:
        self._picker = picker
        self._voices = voices
        self._outputs = outputs
        self._guard = guard
        self._on_loop = on_loop
        self._before = before
        self._failed = failed

    def score(self, messages: Sequence[Message], tried: bool) -> Scored:
        """See `scoring.score`. tried: these have failed before."""
        stable = self._picker.stable
        parts = self._on_loop(lambda: self._picker.parts(messages, tried))
        if len(parts) == 1:
            return self._part(parts[0], messages, stable)
        return together([(part.places, self._part(part, messages, stable)) for part in parts], len(messages))

    def _part(self, part: Part, messages: Sequence[Message], stable: int) -> Scored:
        mine = [messages[place] for place in part.places]
        voice = self._voices(part.version)

        def ran(run: Run) -> None:
            if part.arm is not None:
                calls = [part.calls[place] for place in run.places]
                if part.arm.split.mirror is not None:
                    whole = Ran(
                        voice.scorer.name, part.version, voice.signature,
                        [run.gave.outputs[spec.name] for spec in voice.signature.outputs],
                    )  # fmt: skip
                    for row, call in enumerate(calls):
                        call.ran_as(run.columns, Result(whole, row, 1))
                arm = part.arm
                self._on_loop(lambda: arm.ran(calls, run.seconds))

        compared = part.arm is not None and judged(part.arm.split.plan, part.role)
        if part.role:
            self._before(part.role)
        scored = scoring.score(
            voice.scorer, voice.decode, self._outputs, mine, self._guard, ran, BLOCK if compared else None
        )
        if part.role:
            self._before("")
        for _ in scored.failed:
            self._failed(part.version)
        if not scored.failed:
            return scored
        if part.version == stable:
            self._count(part, scored, set())
            return scored
        return self._by_stable(part, mine, scored, stable)

    def _by_stable(self, part: Part, mine: Sequence[Message], scored: Scored, stable: int) -> Scored:
        """The same, with what the stable version makes of what failed."""
        places = sorted(scored.failed)
        voice = self._voices(stable)
        again = scoring.score(voice.scorer, voice.decode, self._outputs, [mine[p] for p in places], self._guard)
        for _ in again.failed:
            self._failed(stable)
        self._count(part, scored, {places[at] for at in again.good})
        good = msgspec.structs.replace(scored, failed={})
        return together([(range(len(mine)), good), (places, again)], len(mine))

    def _count(self, part: Part, scored: Scored, taken: set[int]) -> None:
        """Failures of an arm. taken: places that the stable version has scored after all.

        What is malformed for both is the sender's doing, and counted for none.
        """
        arm = part.arm
        if arm is None:
            return
        for place, error in scored.failed.items():
            call = part.calls[place]
            if not isinstance(error, InvalidInput):
                self._on_loop(lambda call=call: arm.failed(call, "internal"))  # type: ignore[misc]
            elif part.role == CANDIDATE and place in taken:
                self._on_loop(lambda call=call: arm.failed(call, "refused"))  # type: ignore[misc]


def together(parts: Sequence[tuple[Sequence[int], Scored]], rows: int) -> Scored:
    """One micro-batch of `rows` messages. Of each part its messages' places in it, and what came of them.

    A later part's word on a message counts.
    """
    ids = [""] * rows
    failed: dict[int, Exception] = {}
    good: list[int] = []
    for places, scored in parts:
        for at, id in enumerate(scored.ids):
            ids[places[at]] = id
        failed.update({places[at]: error for at, error in scored.failed.items()})
        good += [places[at] for at in scored.good]
    with_rows = [scored for _, scored in parts if scored.good]
    order = np.argsort(good, kind="stable")
    columns = [scoring.joined(list(of))[order] for of in zip(*(s.columns for s in with_rows), strict=True)]
    versions = np.concatenate([s.versions for s in with_rows])[order] if with_rows else np.empty(0, np.int64)
    if not with_rows and parts:
        columns = list(parts[0][1].columns)
    return Scored([good[at] for at in order], columns, versions, ids, failed)

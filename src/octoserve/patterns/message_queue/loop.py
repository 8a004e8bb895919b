"""One micro-batch after another. See docs/decisions/0014-message-queue.md for what a crash after each step means.

The order of a micro-batch: received -> schemas that it names fetched -> attempt persisted (`Ledger.begin`) -> decoded
and scored -> failures noted, retries and dead letters acknowledged by the broker -> results, position and epoch stored
-> settled with the broker. The record of the attempt goes with the next one's, or when nothing comes.

Behind a log and with a sink that can, results are stored in a thread while the next micro-batch is taken, tried and
scored: see `_storing`. Nothing of the next one is written before that is done and settled.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from octoserve.connectors.queues.protocol import (
    DeadLetter,
    Fenced,
    Lag,
    Message,
    Move,
    NotYet,
    Position,
    QueueSink,
    QueueSource,
    Results,
    Stored,
    Unwritable,
)
from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import OctoserveError, Unavailable
from octoserve.core.signature import TensorSpec
from octoserve.patterns.message_queue import scoring
from octoserve.patterns.message_queue.ledger import Attempts, Ledger
from octoserve.patterns.message_queue.outcome import Failed, Fate, Policy, letter
from octoserve.patterns.message_queue.pace import Pace
from octoserve.patterns.message_queue.statistics import RETRIED, Statistics
from octoserve.patterns.message_queue.traced import Traced

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL = 0.5
"""Seconds that a poll waits: how soon a stop is noticed."""
_LOOK = 5.0
"""Seconds between looks at the lag."""
_LEDGER = "the ledger of attempts"
_LONGEST = 30.0
"""Seconds between tries of a sink that is away, at most; one at first."""


class Stopped(OctoserveError):
    """Told to stop while a sink was away: what is in hand comes again."""

    reason = "stopped"


class Limits(NamedTuple):
    """Of a micro-batch, and of the run. idle: seconds without a message, and with nothing left, that end it."""

    rows: int
    nbytes: int
    seconds: float
    idle: float | None


class Work(NamedTuple):
    """What is done with each message."""

    model: scoring.Named
    decode: scoring.Decode
    outputs: Sequence[TensorSpec]
    policy: Policy
    score: Callable[[Sequence[Message], bool], scoring.Scored]
    """Told the messages, and whether they have failed before. Raises what `scoring.score` does."""
    give_up: Callable[[Sequence[DeadLetter]], None] = lambda letters: None
    """Told of dead letters before they are buried; raises Unavailable to be told again."""
    ready: Callable[[Sequence[Message]], None] | None = None
    """Fetches what these need to be read, before they are tried; raises Unavailable to be told again."""


class Storing(NamedTuple):
    """A micro-batch whose results are on their way. None of its messages failed, or has a history."""

    portion: Sequence[Message]
    results: Results
    moves: Sequence[Move]
    first: Future[Stored]
    """The first try."""


class Loop:
    """The loop's state: lanes that are ours, and how far it is. `Desk` for its source."""

    def __init__(
        self,
        source: QueueSource,
        sink: QueueSink,
        ledger: Ledger,
        work: Work,
        limits: Limits,
        statistics: Statistics,
        *,
        lane: str,
        stop: Callable[[], bool] = lambda: False,
        beat: Callable[[bool], None] = lambda now: None,
        turns: Callable[[], bool] = lambda: False,
        turn: Callable[[], None] = lambda: None,
        note: Callable[[Sequence[Message]], None] = lambda messages: None,
        traced: Traced | None = None,
        clock: Clock = monotonic,
        wall: Clock = time.time,
    ) -> None:
        """lane: what we are called in the sink, where the source has no partitions; of this process alone
        beat: called every now and then, whatever else takes its time; with True before what may end the process
        turns: whether `turn` will change anything: nothing is being stored then
        turn: called between two micro-batches, when nothing is in hand
        note: told of messages that are about to be scored for the first time; raises Unavailable to be told again
        """
        self._source = source
        self._sink = sink
        self._ledger = ledger
        self._work = work
        self._limits = limits
        self._statistics = statistics
        self._lane = lane
        self._stop = stop
        self._beat = beat
        self._turns = turns
        self._turn = turn
        self._note = note
        self._traced = traced
        self._clock = clock
        self._wall = wall
        self._is_log = source.traits.shape == "log"
        self._pace = Pace(limits.rows, limits.seconds)
        self._epochs: dict[str, int] = {}
        self._history: dict[Position, Attempts] = {}
        """Of a log's partitions that are ours: what was known when they came."""
        self._unread: set[str] = set()
        """Partitions of which no message has come yet."""
        # Whose last attempt it is may not be a suspect for what another does.
        can = self._is_log and sink.traits.aside and work.policy.max_attempts > 1
        self._aside = ThreadPoolExecutor(1, "store") if can else None
        self._storing: Storing | None = None
        self._in_hand: frozenset[str] = frozenset()
        """Partitions of the micro-batch that is being worked on."""
        self._last = 0
        """Messages of the last poll."""
        self._renewed = clock()
        self._came = clock()
        self._looked = -_LOOK

    def run(self) -> None:
        """Until told to stop, or idle. Raises Fenced, Unavailable, Stopped; the source is left in good order."""
        self._sink.open(self._source.name, self._work.outputs)
        self._source.open(self)
        try:
            while not self._stop() and not self.is_idle():
                self.step()
            self._have_stored()
        finally:
            # What ended by an exception has not killed the process: it is no suspect.
            with contextlib.suppress(Unavailable):
                self._ledger.end()
            self._source.close()
            if self._aside is not None:
                self._aside.shutdown()
            self._sink.close()

    # --- lanes ---------------------------------------------------------------------------------------

    def granted(self, lanes: Sequence[str]) -> Mapping[str, int | None]:
        """See `Desk.granted`."""
        self._await_store()  # the sink does one thing at a time
        wanted = list(lanes) if self._is_log else [self._lane]
        claims = self._sink.claim(wanted, self._source.traits.ours_for)
        self._renewed = self._clock()
        for lane, claim in claims.items():
            self._epochs[lane] = claim.epoch
            if self._is_log:
                if claim.offset is not None:
                    self._ledger.forget_before(lane, claim.offset)
                self._history.update(self._ledger.history(lane))
                self._unread.add(lane)
        return {lane: claim.offset for lane, claim in claims.items()}

    def revoked(self, lanes: Sequence[str]) -> None:
        """See `Desk.revoked`. What is being stored is, before anybody else has the lane: or the sink refuses it."""
        self._await_store()
        for lane in lanes:
            self._epochs.pop(lane, None)
        gone = set(lanes)
        self._unread -= gone
        self._history = {p: known for p, known in self._history.items() if p.partition not in gone}
        storing = self._storing
        if storing is not None and storing.first.exception() and gone & self._partitions(storing.portion):
            raise Fenced(f"{self._source.name}: {', '.join(sorted(gone))} went to another, and was not stored")
        lost = self._in_hand.intersection(lanes)
        if lost:
            raise Fenced(f"{self._source.name}: {', '.join(sorted(lost))} went to another while it was in work")

    def _moves(self, messages: Sequence[Message]) -> list[Move]:
        if not self._is_log:
            return [Move(self._lane, self._epochs[self._lane])]
        ends: dict[str, int] = {}
        for message in messages:
            partition, offset = message.position
            if offset >= ends.get(partition, 0):
                ends[partition] = offset + 1
        return [Move(partition, self._epochs[partition], offset) for partition, offset in ends.items()]

    def renew(self) -> None:
        """Keep the claims that run out, whatever else takes its time. Raises Fenced, Unavailable."""
        limit = self._source.traits.ours_for
        if limit is None or self._is_log or self._clock() - self._renewed < limit / 3:
            return
        self._sink.store(self._results([], None), self._moves(()))
        self._renewed = self._clock()

    def keep(self) -> None:
        """While a run takes its time. Raises Fenced."""
        self._beat(False)
        try:
            self.renew()
        except Unavailable as error:
            log.warning("the claim on %s is not renewed: %s", self._sink.label, error)

    # --- a micro-batch -------------------------------------------------------------------------------

    def step(self) -> int:
        """One poll, and everything that is to be done with what it gave; how many messages that was."""
        if self._turns():
            self._have_stored()  # by whoever scored it
        self._turn()
        self._gather()
        messages = self._source.poll(self._pace.rows, self._limits.nbytes, 0.0 if self._storing else POLL)
        if self._traced is not None:
            messages = self._traced.received(messages)
        self._last = len(messages)
        if not messages:
            self._have_stored()
            self._rest()
            return 0
        self._in_hand = self._partitions(messages)
        known = self._known(messages)
        for portion in portions(messages, known):
            self._do(portion, known)
            self._insist("the sink", self.renew)
        self._in_hand = frozenset()
        self._came = self._clock()
        self._look()
        return len(messages)

    def _gather(self) -> None:
        """Let more come before they are taken, where the sink asks for it and few came the last time."""
        self._beat(False)
        end = self._clock() + self._sink.traits.gathers
        if 2 * self._last < self._pace.rows:
            while (left := end - self._clock()) > 0 and not self._stop():
                self._source.hold(min(left, POLL))
                self._beat(False)

    def _known(self, messages: Sequence[Message]) -> dict[Position, Attempts]:
        """Those with a history. Where messages are acknowledged, one that was never given out before has none."""
        if self._is_log:
            if new := self._in_hand & self._unread:
                self._forget_done(messages, new)
            history = self._history
            found = {m.position: history[m.position] for m in messages if m.position in history} if history else {}
        else:
            asked = [m.position for m in messages if m.deliveries > 1]
            found = dict(self._insist(_LEDGER, lambda: self._ledger.suspects(asked))) if asked else {}
        for message in messages:  # of a retry topic: tried under another position
            if message.attempt:
                here = found.get(message.position, Attempts())
                if here.count <= message.attempt:  # else they are among those noted here
                    count = message.attempt + here.count
                    found[message.position] = Attempts(count, (*message.history, *here.history))
        return found

    def _forget_done(self, messages: Sequence[Message], lanes: frozenset[str]) -> None:
        """Of partitions whose first message has come: all below it has been done, whoever had it running last."""
        first: dict[str, int] = {}
        for message in messages:
            if message.position.partition in lanes:
                first.setdefault(message.position.partition, message.position.offset)
        for lane, offset in first.items():
            done = [p for p in self._history if p.partition == lane and p.offset < offset]
            if done:
                self._insist(_LEDGER, partial(self._ledger.forget_before, lane, offset))
            for position in done:
                self._history.pop(position, None)
            self._unread.discard(lane)

    def _do(self, portion: Sequence[Message], known: Mapping[Position, Attempts]) -> None:
        tried = [message for message in portion if message.position in known] if known else []
        if tried or (self._storing is not None and self._storing.first.done()):
            self._have_stored()  # who has a history is alone with it; and what is there need be no suspect any more
        began = self._clock()
        if (ready := self._work.ready) is not None:
            self._insist("the schema registry", lambda: ready(portion), renewing=True)
        spent = [message for message in tried if self._work.policy.spent(known[message.position])]
        if spent:
            self._give_up(spent, known)
        else:
            if tried:
                self._beat(True)  # what was counted is not to be lost with us
            else:
                self._insist(_LEDGER, lambda: self._note(portion))
            work = portion if self._storing is None else [*self._storing.portion, *portion]
            self._insist(_LEDGER, lambda: self._ledger.begin([message.position for message in work]))
            self._statistics.attempts.add(len(portion))
            self._score_and_store(portion, known)
            seconds = self._clock() - began
            self._pace.took(len(portion), seconds)
            self._statistics.rows.observe(len(portion))
            self._statistics.batch_seconds.observe(seconds)

    def _give_up(self, messages: Sequence[Message], known: Mapping[Position, Attempts]) -> None:
        """They have had their attempts, and killed their process the last time: they are not run again."""
        self._insist(_LEDGER, self._ledger.end)
        failed = []
        for message in messages:
            try:
                own = self._work.decode([message.value]).ids[0]
            except Exception:
                own = None
            id = scoring.identity(message, own)
            failed.append(Failed(message, id, known[message.position], Fate.BURY))
        self._settle_failures(failed)
        self._finish(messages, self._results([], None), known)

    def _score_and_store(self, portion: Sequence[Message], known: Mapping[Position, Attempts]) -> None:
        work = self._work
        tried = portion[0].position in known
        if self._traced is None:
            scored = work.score(portion, tried)
        else:
            scored = self._traced.score(work.score, portion, tried)
        self._have_stored()
        failed = [
            self._judge(portion[place], scored.ids[place], known, error)
            for place, error in sorted(scored.failed.items())
        ]
        self._settle_failures(failed)
        results = self._results(portion, scored)
        if self._aside is None or tried or failed or 2 * len(portion) < self._pace.rows:
            self._finish(portion, results, known, failed)
        else:  # there is more where this comes from
            moves = self._moves(portion)
            self._storing = Storing(portion, results, moves, self._aside.submit(self._sink.store, results, moves))

    def _partitions(self, portion: Sequence[Message]) -> frozenset[str]:
        return frozenset(message.position.partition for message in portion) if self._is_log else frozenset()

    def _await_store(self) -> None:
        """Until nobody uses the sink but us, whatever came of it; no more, since the source waits for its callback."""
        if self._storing is not None:
            wait([self._storing.first])

    def _have_stored(self) -> None:
        """The micro-batch that was being stored is, and is settled. Raises Fenced, Stopped."""
        if self._storing is None:
            return
        (portion, results, moves, first), self._storing = self._storing, None
        before = self._in_hand
        self._in_hand = before | self._partitions(portion)
        self._finish(portion, results, {}, moves=moves, first=first.result)
        self._in_hand = before

    def _results(self, portion: Sequence[Message], scored: scoring.Scored | None) -> Results:
        outputs = tuple(self._work.outputs)
        if scored is None or not scored.good:
            empty = [np.empty((0, *(max(1, d) for d in spec.shape[1:]))) for spec in outputs]
            scored = scoring.Scored([], empty, np.empty(0, np.int64), [], {})
        return Results(
            model=self._work.model.name,
            outputs=outputs,
            messages=[portion[place] for place in scored.good],
            ids=[scored.ids[place] for place in scored.good],
            columns=scored.columns,
            versions=scored.versions,
            scored_at=self._wall(),
        )

    def _judge(self, message: Message, id: str, known: Mapping[Position, Attempts], error: Exception) -> Failed:
        model = self._work.model
        by = f"{model.name} version {model.version}"
        return self._work.policy.judge(message, id, known.get(message.position, Attempts()), error, self._wall(), by)

    def _settle_failures(self, failed: Sequence[Failed]) -> None:
        """Noted first, then given to the broker, which has acknowledged them on return."""
        if not failed:
            return
        if self._traced is not None:
            self._traced.failed(failed)
        noted = {each.message.position: each.attempts for each in failed}
        self._insist(_LEDGER, lambda: self._ledger.failed(noted))
        buried = [each for each in failed if each.fate is Fate.BURY]
        if buried:
            now = self._wall()
            letters = [letter(each, self._source.name, now) for each in buried]
            self._insist("the store of answers", lambda: self._work.give_up(letters))
            self._insist("the dead-letter queue", lambda: self._source.bury(letters))
            self._statistics.dead(len(buried), sum(each.unfit for each in buried))
            self._beat(True)  # rare, and somebody is woken by it: it is not to be lost with us
            for each in buried:
                last = each.attempts.history[-1].error if each.attempts.history else "tried often enough"
                log.warning(
                    "dead letter: %s (%s), attempt %d: %s", each.id, each.message.name, each.attempts.count, last
                )
        retried = [each for each in failed if each.fate is Fate.RETRY]
        if retried and not self._is_log:
            self._insist(_LEDGER, self._ledger.end)  # before they can come again: they ran, and ended
        for each in retried:
            self._insist("the source", lambda each=each: self._retry(each))  # type: ignore[misc]
        self._statistics.outcomes[RETRIED].add(len(retried))

    def _retry(self, each: Failed) -> None:
        message = msgspec.structs.replace(each.message, history=each.attempts.history)
        self._source.retry(message, each.id, each.attempts.count, each.delay)

    def _finish(
        self,
        portion: Sequence[Message],
        results: Results,
        known: Mapping[Position, Attempts],
        failed: Sequence[Failed] = (),
        moves: Sequence[Move] = (),
        first: Callable[[], Stored] | None = None,
    ) -> None:
        """Store, settle, forget. moves, first: of a first try elsewhere, and what came of it."""
        moves = moves or self._moves(portion)
        stored, refused = self._store(results, moves, first)
        if refused:
            self._settle_failures(
                [self._judge(results.messages[row], results.ids[row], known, error) for row, error in refused]
            )
            self._insist("the sink", lambda: self._sink.store(results.part(0, 0), moves))
        self._renewed = self._clock()
        bad = {row for row, _ in refused}
        published = [message.published for row, message in enumerate(results.messages) if row not in bad]
        self._statistics.stored(published, stored.repeated)
        self._statistics.scored_by(results.versions)
        again = {each.message.position for each in failed if each.fate is Fate.RETRY and not self._is_log}
        done = [message for message in portion if message.position not in again] if again else portion
        self._source.settle(done)
        over = [m.position for m in done if m.position in known] if known else []
        over += [each.message.position for each in failed if each.message.position not in again]
        over += [results.messages[row].position for row in bad]
        if over:
            self._insist(_LEDGER, self._ledger.end)  # first: what is over must not be found running
            self._insist(_LEDGER, lambda: self._ledger.forget(over))
            for position in over:
                self._history.pop(position, None)
        if self._traced is not None:
            self._traced.over(portion)

    def _store(
        self, results: Results, moves: Sequence[Move], first: Callable[[], Stored] | None
    ) -> tuple[Stored, list[tuple[int, Unwritable]]]:
        """All rows but those that the sink can never hold, which are found by bisection. first: the first try."""
        tries = iter([first] if first is not None else [])
        try:
            return self._insist("the sink", lambda: next(tries, partial(self._sink.store, results, moves))()), []
        except Unwritable as error:
            if len(results.ids) == 1:
                return Stored(0), [(0, error)]
        written = repeated = 0
        refused: list[tuple[int, Unwritable]] = []
        # Positions move with the last store, once what is refused has been buried; what is there is not stored again.
        still = [msgspec.structs.replace(move, offset=None) for move in moves]
        waiting = [(0, len(results.ids))]
        while waiting:
            start, stop = waiting.pop()
            part = results.part(start, stop)
            try:
                stored = self._insist("the sink", lambda part=part: self._sink.store(part, still))  # type: ignore[misc]
            except Unwritable as error:
                if stop - start == 1:
                    refused.append((start, error))
                else:
                    middle = (start + stop) // 2
                    waiting += [(middle, stop), (start, middle)]
            else:
                written, repeated = written + stored.written, repeated + stored.repeated
        return Stored(written, repeated), refused

    def _insist(self, what: str, do: Callable[[], T], renewing: bool = False) -> T:
        """Do it until it is done, holding the source. Raises Stopped, and what is not Unavailable.

        renewing: the sink is not what is away, and our claims there are kept
        """
        pause = 1.0
        while True:
            try:
                return do()
            except Unavailable as error:
                self._statistics.sink_retries.add()
                verb = "asked" if renewing else "written to"
                log.warning("%s cannot be %s, again in %g s: %s", what, verb, pause, error)
                self._have_stored()  # it need not wait for this
            end = self._clock() + pause
            while (left := end - self._clock()) > 0:
                if self._stop():
                    raise Stopped(f"stopped while {what} was away; what was in work comes again")
                if renewing:
                    self.keep()
                else:
                    self._beat(False)
                self._source.hold(min(left, POLL))
                if self._is_log or not renewing:  # to ask may take longer than a claim holds
                    self._look()  # what waits grows older meanwhile
            pause = min(_LONGEST, pause * 2)

    # --- between micro-batches -----------------------------------------------------------------------

    def _rest(self) -> None:
        """Nothing came."""
        self._insist(_LEDGER, self._ledger.end)
        self._insist("the sink", self.renew)
        self._look()

    def _look(self) -> list[Lag] | None:
        """At the lag, now and then; None if it is not time yet, or nobody knows."""
        now = self._clock()
        if now - self._looked < _LOOK:
            return None
        self._looked = now
        try:
            lags = self._source.lag()
        except Unavailable as error:
            log.log(logging.DEBUG if isinstance(error, NotYet) else logging.WARNING, "%s", error)
            return None
        self._statistics.stands(lags)
        return lags

    def is_idle(self) -> bool:
        """Whether nothing came for long enough, and nothing is left that would."""
        if self._limits.idle is None or self._storing or self._clock() - self._came < self._limits.idle:
            return False
        self._looked = -_LOOK
        lags = self._look()
        if lags is not None and not any(lag.behind or lag.in_hand for lag in lags):
            return True
        self._came = self._clock() - self._limits.idle + min(1.0, self._limits.idle)  # look again in a second
        return False


def portions(messages: Sequence[Message], known: Mapping[Position, Attempts]) -> Iterator[Sequence[Message]]:
    """Runs of messages without a history together, each with one alone, in the order that they came."""
    if not known:
        if messages:
            yield messages
        return
    fresh: list[Message] = []
    for message in messages:
        if message.position in known:
            if fresh:
                yield fresh
                fresh = []
            yield [message]
        else:
            fresh.append(message)
    if fresh:
        yield fresh

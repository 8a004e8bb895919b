"""A queue that follows a service's rollouts: what it says to the admin API, and what it hears.

The conversation has a thread of its own. A service that is away changes nothing: messages are scored as was said last.
See docs/decisions/0016-rollouts-in-queues.md.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

import msgspec

from octoserve.control.plan_source import call
from octoserve.control.rollout.following import FollowerWord, Route
from octoserve.control.rollout.replica_tables import Said
from octoserve.core.errors import OctoserveError, SettingsError, Unavailable
from octoserve.core.evidence import ALL, CANDIDATE, ArmEvidence, Seen, Stratum, seen_of
from octoserve.patterns.message_queue.picking import rekeyed

log = logging.getLogger(__name__)

EVERY, EVERY_EXPOSED = 1.0, 0.5
"""Seconds between two words; the second while evidence is gathered."""
_TIMEOUT = 5.0
DEATHS = 3
"""So many workers that die over a candidate are no accident any more."""

READY, LOADING, FAILED, ABSENT = "ready", "loading", "failed", "absent"


class VersionWord(msgspec.Struct, frozen=True):
    """How a version stands in a worker: one of the words above; why it failed; the digest of its files."""

    state: str
    reason: str = ""
    digest: str = ""


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker says of the route that it was told.

    rollout, record: of the last route that it carries out
    behind:  why it does not carry out a newer one yet, "" if it does
    running: the role of the arm whose run is under way; a death is counted against it
    """

    rollout: str = ""
    record: int = -1
    behind: str = ""
    versions: Mapping[int, VersionWord] = {}
    seen: tuple[Seen, ...] = ()
    running: str = ""


class Follower:
    """The conversation with one service.

    ask:   sends a word, gives the answer; see `asking`
    key, payload: see `picking.rekeyed`
    """

    def __init__(self, ask: Callable[[FollowerWord], Route], id: str, key: str, payload: str) -> None:
        self._ask = ask
        self._id = id
        self._key = key
        self._payload = payload
        self._word = FollowerWord(id=id)
        self._due = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.route = Route()
        """The last one that was heard; replaced whole."""

    def begin(self) -> None:
        """The first exchange. Raises SettingsError, Unavailable."""
        self.route = self._heard(self._ask(self._word))
        if self.route.plan is None:
            raise Unavailable("--plan: nothing answers for the model in that service now; try again when it does")
        self._thread = threading.Thread(target=self._converse, name="follower", daemon=True)
        self._thread.start()

    def say(self, said: Said | None, seen: Seen | None) -> None:
        """From now on this is what is told of the route's rollout; at once, if it is something new."""
        word = FollowerWord(id=self._id, rollout=self.route.rollout, said=said, seen=seen)
        news = _urgent(word) != _urgent(self._word)
        self._word = word
        if news:
            self._due.set()

    def end(self) -> None:
        """Nobody is to wait for this queue any more."""
        self._over.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(_TIMEOUT)
            try:
                self._ask(msgspec.structs.replace(self._word, leaves=True))
            except OctoserveError as error:
                log.warning("the service was not told that this queue has ended: %s", error)

    def _heard(self, route: Route) -> Route:
        if route.plan is None:
            return msgspec.structs.replace(route, plan=self.route.plan)
        return msgspec.structs.replace(route, plan=rekeyed(route.plan, self._key, self._payload))

    def _converse(self) -> None:
        complaint = ""
        while not self._over.is_set():
            plan = self.route.plan
            self._due.wait(EVERY_EXPOSED if plan is not None and plan.stratum else EVERY)
            self._due.clear()
            if self._over.is_set():
                return
            try:
                self.route = self._heard(self._ask(self._word))
                if complaint:
                    log.warning("the service answers again")
                complaint = ""
            except OctoserveError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.warning("messages are scored as was said last: %s", error)
                self._over.wait(EVERY)


def _urgent(word: FollowerWord) -> tuple[str, Said | None, str]:
    """What is told at once when it changes; counts wait for the next word."""
    return word.rollout, word.said, word.seen.cut if word.seen is not None else ""


def asking(place: str, endpoint: str) -> Callable[[FollowerWord], Route]:
    """How a follower asks the service at this address."""
    path = f"/api/rollouts/{quote(endpoint, safe='')}/follow"

    def ask(word: FollowerWord) -> Route:
        answer = call(place, path, msgspec.json.encode(word), _TIMEOUT)
        try:
            route: Route = msgspec.json.decode(answer, type=Route)
        except msgspec.MsgspecError as error:
            raise SettingsError(f"--plan: the service at {place} gave no route: {error}") from None
        return route

    return ask


class Deaths:
    """Workers that died: what they had told stays, and what they were running has failed."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._over_candidate: dict[str, int] = {}
        self._over_load: dict[tuple[str, int], int] = {}
        """By rollout and version: that were loading it."""

    def of(self, route: Route, followed: Followed, killed: bool) -> None:
        """One has ended. killed: by a signal, its own deadline's included."""
        self._seen += followed.seen
        plan = route.plan
        for version, word in followed.versions.items():
            if killed and word.state == LOADING:
                key = route.rollout, version
                self._over_load[key] = self._over_load.get(key, 0) + 1
        if not killed or plan is None or not plan.stratum:
            return
        if followed.running:
            failure = ArmEvidence(assigned=0, attempts=1, failures=1)
            arms = {followed.running: {ALL: failure}}
            stratum = Stratum(endpoint=plan.endpoint, name=plan.stratum, arms=arms)
            self._seen.append(Seen(evidence=stratum, seed=plan.seed))
        if followed.running == CANDIDATE or (plan.mirrors and not followed.running):
            self._over_candidate[plan.seed] = self._over_candidate.get(plan.seed, 0) + 1

    def failed(self, route: Route) -> str:
        """Why the route's candidate cannot be loaded, if workers have died of that."""
        deaths = self._over_load.get((route.rollout, route.candidate), 0)
        return f"{deaths} workers of a queue have died while they loaded it" if deaths >= DEATHS else ""

    def told(self, route: Route) -> list[Seen]:
        """Of the route's rollout; of others nothing is remembered."""
        plan = route.plan
        self._seen = [seen for seen in self._seen if seen.seed == route.rollout]
        deaths = self._over_candidate.get(route.rollout, 0)
        if plan is None or deaths < DEATHS:
            return self._seen
        cut = f"{deaths} workers of a queue have died over it"
        return [*self._seen, Seen(evidence=Stratum(endpoint=plan.endpoint, name=""), seed=route.rollout, cut=cut)]


def said_of(route: Route, workers: Sequence[Followed | None], failed: str = "") -> Said | None:
    """What holds in all workers of the route's rollout; None of a worker that has said nothing yet.

    failed: why the candidate cannot be loaded, where that is known already
    """
    if not route.rollout:
        return None
    known = [worker for worker in workers if worker is not None]
    words = [worker.versions.get(route.candidate, VersionWord(ABSENT)) for worker in known]
    stable = [worker.versions.get(route.stable, VersionWord(ABSENT)) for worker in known]
    everybody = len(known) == len(workers) and bool(workers)
    return Said(
        version=route.record,
        behind=_behind(route, workers),
        present=bool(words) and all(word.state != ABSENT for word in words),
        ready=everybody and all(word.state == READY for word in words),
        stable_ready=everybody and all(word.state == READY for word in stable),
        failed=failed or next((word.reason for word in words if word.state == FAILED), ""),
        digest=next((word.digest for word in words if word.digest), ""),
    )


def _behind(route: Route, workers: Sequence[Followed | None]) -> str:
    if not workers:
        return "the queue's workers"
    for number, worker in enumerate(workers):
        if worker is None:
            return f"worker {number} of the queue, which starts"
        if (worker.rollout, worker.record) != (route.rollout, route.record):
            return f"worker {number} of the queue" + (f": {worker.behind}" if worker.behind else "")
    return ""


def seen_by(route: Route, workers: Sequence[Followed | None], deaths: Deaths) -> Seen | None:
    """What all have seen of the route's rollout, dead ones included."""
    plan = route.plan
    if plan is None or not route.rollout:
        return None
    seen = [each for worker in workers if worker is not None for each in worker.seen]
    return seen_of(route.rollout, plan.endpoint, plan.stratum, [*seen, *deaths.told(route)])

"""A route plan with more than one arm, or a mirror, as requests meet it: compiled when it is published.

A request binds its arm once (`choose`); what becomes of it is counted on that arm whatever is published
meanwhile. The pick itself is `routing.split`; under a plan that a proxy carries out it is `dataplane.drawn`.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence

import xxhash

from octoserve.core.errors import InvalidInput
from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE
from octoserve.dataplane.batcher import Batcher
from octoserve.dataplane.breaker import STALL_SECONDS, Recent, should_cut
from octoserve.dataplane.call import Call
from octoserve.dataplane.drawn import Drawn
from octoserve.dataplane.exposure import FAILURES, FRESH, Exposure
from octoserve.dataplane.key_reader import key_reader
from octoserve.dataplane.mirror import Mirror
from octoserve.routing.key import parse_key
from octoserve.routing.plan import BUCKETS, OVERRIDE, RoutePlan

log = logging.getLogger(__name__)

_hash = xxhash.xxh64_intdigest
_draw = random.random


class ArmRoute:
    """One arm: where its requests go, and what is counted of them.

    counted_as: the arm of the evidence; "" for the role itself
    """

    __slots__ = ("batcher", "counted_as", "counts", "fresh", "recent", "role", "split", "version")

    def __init__(
        self, split: Split, role: str, version: int, batcher: Batcher | None, recent: Recent, counted_as: str = ""
    ) -> None:
        self.split = split
        self.role = role
        self.counted_as = counted_as or role
        self.version = version
        self.batcher = batcher
        self.recent = recent
        self.counts = split.exposure.counts(self.counted_as)
        self.fresh = FRESH

    def join(self, call: Call) -> None:
        """One more request goes this way."""
        self.counts.assigned += 1
        for segment in call.segments:
            self.split.exposure.counts(self.counted_as, segment).assigned += 1

    def answered(self, calls: Sequence[Call], seconds: Sequence[float]) -> None:
        """Requests of one run were answered; counted together, since this is the hot path."""
        self.recent.ok(len(calls))
        fresh = min(self.fresh, len(calls))
        self.fresh -= fresh
        self.counts.answered(seconds[fresh:] if fresh else seconds, len(calls))
        split = self.split
        if split.segmented:
            for place, (call, took) in enumerate(zip(calls, seconds, strict=True)):
                for segment in call.segments:
                    split.exposure.counts(self.counted_as, segment).answered((took,) if place >= fresh else (), 1)
        mirror = split.mirror
        if mirror is not None and self.role in (STABLE, BASELINE):
            for call, took in zip(calls, seconds, strict=True):
                mirror.offer(call, took)

    def ran(self, calls: Sequence[Call], seconds: float) -> None:
        """Rows of a table that were one run: one measurement of the latency, however many they are."""
        self.recent.ok(len(calls))
        measured = () if self.fresh > 0 else (seconds,)
        self.fresh -= min(self.fresh, len(calls))
        self.counts.answered(measured, len(calls))
        split = self.split
        if split.segmented:
            for segment, count in Counter(segment for call in calls for segment in call.segments).items():
                split.exposure.counts(self.counted_as, segment).answered(measured, count)
        if split.mirror is not None and self.role in (STABLE, BASELINE):
            for call in calls:
                split.mirror.offer(call, seconds)

    def turned_away(self, call: Call, reason: str) -> None:
        """Its request was refused at the door. That counts against a candidate that refuses what stable takes."""
        if reason == "invalid" and self.role == CANDIDATE and self.split.stable_takes(call):
            reason = "refused"
        self.failed(call, reason)

    def failed(self, call: Call, reason: str) -> None:
        """Its request was not answered; counted if that is the version's doing."""
        if reason not in FAILURES:
            return
        self.recent.failed()
        self.counts.failed()
        for segment in call.segments:
            self.split.exposure.counts(self.counted_as, segment).failed()
        if self.role == CANDIDATE:
            self.split.look()


class Split:
    """See the module.

    batchers: of a version and a role; None where the version is not ready here, and stable answers instead
    recent:   role -> its last attempts; given, since they outlive a plan that only changes shares
    """

    def __init__(
        self,
        plan: RoutePlan,
        batchers: Callable[[int, str], Batcher | None],
        exposure: Exposure,
        mirror: Mirror | None,
        recent: dict[str, Recent],
    ) -> None:
        self.plan = plan
        self.exposure = exposure
        self.mirror = mirror
        self.cut = ""
        """Why the candidate was cut in this worker; "" if it was not."""
        self.key_source = parse_key(plan.key) if plan.key else None
        """What requests are assigned by; None for chance."""
        self._key = key_reader(self.key_source) if self.key_source is not None else None
        self._seed = plan.seed.encode() + b":"
        self._segments = [(str(source.name), key_reader(source)) for source in map(parse_key, plan.segments)]

        def route(version: int, role: str, counted_as: str = "") -> ArmRoute:
            attempts = recent.setdefault(role, Recent(plan.breaker[0]))
            batcher = batchers(version, role)
            if batcher is not None:
                batcher.counted = True
            return ArmRoute(self, role, version, batcher, attempts, counted_as)

        arms = [(arm.hi, route(arm.version, arm.role)) for arm in plan.arms if arm.hi > arm.lo]
        by_role = {arm.role: arm for _, arm in arms}
        self.stable = by_role.get(STABLE) or route(plan.stable, STABLE)
        self._arms = [(hi, arm if arm.batcher is not None else self.stable) for hi, arm in arms]
        """Upper bounds of buckets, in order; the stable version answers for one that is not ready here."""
        self._roles = {**by_role, STABLE: self.stable}
        self._overrides = {
            # A role of their own: whom somebody chose by hand says nothing of the shares.
            key.encode("utf-8", "surrogateescape"): route(version, OVERRIDE)
            for key, version in plan.overrides.items()
        }
        self._drawn = Drawn(plan, route) if plan.by_proxy else None
        self.segmented = bool(self._segments)
        self._by_chance = self._key is None and self._drawn is None and not self.segmented
        self._complained = False

    # --- the pick ------------------------------------------------------------------------------------

    def choose(self, call: Call) -> Batcher | None:
        """Bind the call to an arm; its batcher, None where not even the stable version is ready here."""
        if self._by_chance and call.key is None:  # the hot path of most splits, without a call more
            bucket, arm = _draw() * BUCKETS, self.stable
            for hi, owner in self._arms:
                if bucket < hi:
                    arm = owner
                    break
            call.arm = arm
            arm.counts.assigned += 1
            return arm.batcher
        drawn = self._drawn
        call.arm = arm = self._arm(call) if drawn is None else self._named(call, drawn)
        if self.segmented:
            call.segments = self._segments_of(call)
            arm.join(call)
        else:
            arm.counts.assigned += 1
        return arm.batcher

    def _arm(self, call: Call) -> ArmRoute:
        key = call.key
        if key is None and self._key is not None:
            try:
                key = call.key = self._key(call)  # kept: a copy of the request says whose it was
            except InvalidInput as error:
                return self._without_key(error)
        if key is None:
            bucket, place, sample = int(_draw() * BUCKETS), 0, None
        else:
            if self._overrides:
                override = self._overrides.get(key)
                if override is not None and override.batcher is not None:
                    return override
            place, bucket = divmod(_hash(self._seed + key), BUCKETS)
            sample = self.exposure.sample
        arm = self.stable
        for hi, owner in self._arms:
            if bucket < hi:
                arm = owner
                break
        if sample is not None and not place & sample.mask:
            sample.add(place, arm.role)
        return arm

    def _without_key(self, error: InvalidInput) -> ArmRoute:
        """A key that cannot be one: the spec's mistake or a malformed request, and no reason to try a candidate."""
        if not self._complained:
            self._complained = True
            log.warning("%s: %s; such requests go to the stable version", self.plan.endpoint, error)
        return self.stable

    def _named(self, call: Call, drawn: Drawn) -> ArmRoute:
        """What a proxy has drawn; its key is sampled as if it had been drawn here."""
        arm = drawn.arm_of(call, self.cut)
        sample = self.exposure.sample
        if sample is not None and self._key is not None and arm.counted_as in self._roles:
            try:
                key = call.key = self._key(call)
            except InvalidInput as error:
                self._without_key(error)
                return arm
            if key is not None:
                place = _hash(self._seed + key) // BUCKETS
                if not place & sample.mask:
                    sample.add(place, arm.role)
        return arm

    def _segments_of(self, call: Call) -> tuple[str, ...]:
        found = []
        for name, read in self._segments:
            try:
                value = read(call)
            except InvalidInput:  # a float, or malformed: the request is none the worse for how it is counted
                continue
            if value is not None:
                text = value[:64].decode("utf-8", "replace")
                found.append(self.exposure.segment(f"{name}={text}"))
        return tuple(found)

    def stable_takes(self, call: Call) -> bool:
        """Whether the stable version's signature accepts what came."""
        batcher = self.stable.batcher
        if batcher is None:
            return False
        try:
            batcher.handle.signature.check(call.inputs)
        except InvalidInput:
            return False
        return True

    def takes_part(self, version: int) -> bool:
        """Whether requests may be sent to this version: named by the plan, ready here, and not cut."""
        if version == self.stable.version:
            return True
        arms = [arm for _, arm in self._arms] + list(self._overrides.values())
        return any(arm.version == version and arm.batcher is not None for arm in arms)

    # --- the breaker ---------------------------------------------------------------------------------

    def look(self) -> None:
        """Cut the candidate if it fails outright."""
        candidate = self._roles.get(CANDIDATE)
        if candidate is not None and not self.cut:
            other = self.stable if self.stable.recent.attempts else self._roles.get(BASELINE, self.stable)
            self.cut_candidate(should_cut(candidate.recent, other.recent, *self.plan.breaker))

    def look_for_stalls(self) -> None:
        """Cut the candidate if a run of it has hung while the stable version runs."""
        candidate = self._roles.get(CANDIDATE)
        if candidate is None or self.cut or candidate.batcher is None:
            return
        hung = candidate.batcher.run_age
        stable = self.stable.batcher
        if hung > STALL_SECONDS and (stable is None or stable.run_age < STALL_SECONDS / 2):
            self.cut_candidate(f"a run of it has not come back for {hung:.0f} s")

    def cut_candidate(self, why: str) -> None:
        """From now on the stable version answers in its place."""
        if why:
            self.cut = why
            self._arms = [(hi, self.stable if arm.role == CANDIDATE else arm) for hi, arm in self._arms]
            version = self._roles[CANDIDATE].version
            self._overrides = {key: arm for key, arm in self._overrides.items() if arm.version != version}

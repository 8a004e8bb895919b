"""What a rollout is: a course of steps with its checks, and the record of where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from octoserve.control.analysis.verdict import Verdict
from octoserve.routing.plan import BUCKETS

IN_PROCESS = "in-process"


class Phase(StrEnum):
    """Where a rollout stands. See docs/decisions/0007-rollouts.md for what each means and promises."""

    WAITING = "waiting"
    PREPARING = "preparing"
    RUNNING = "running"
    PROMOTING = "promoting"
    RETAINING = "retaining"
    ABORTING = "aborting"
    ENDED = "ended"


class Result(StrEnum):
    """How a rollout ended; NONE while it has not."""

    NONE = ""
    PROMOTED = "promoted"
    OBSERVED = "observed"
    """A shadow that was not to promote: its evidence is complete, nobody was switched."""
    ABORTED = "aborted"
    ROLLED_BACK = "rolled back"
    SUPERSEDED = "superseded"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of shares, and what must be true before the next one.

    weight:   the candidate's buckets of BUCKETS
    mirror:   share (of BUCKETS) of stable's answered requests that are copied to the candidate
    noise:    share (of BUCKETS) of copied requests that also run on the stable version again
    samples:  answered attempts of the candidate (pairs, at weight 0) before the checks may say PASS
    pause:    seconds that the step lasts at least
    approval: whether a person must say yes before the next step
    analysis: whether the checks must PASS before the next step (FAIL aborts in every step all the same)
    """

    weight: int = 0
    mirror: int = 0
    noise: int = 0
    samples: int = 0
    pause: float = 0.0
    approval: bool = False
    analysis: bool = True


class RateCheck(msgspec.Struct, frozen=True, kw_only=True, tag="rate"):
    """Failed attempts: the candidate's share may exceed its comparison's by `margin` at most."""

    name: str = "error_rate"
    margin: float = 0.01


class LatencyCheck(msgspec.Struct, frozen=True, kw_only=True, tag="latency"):
    """A quantile of latency: the candidate's may be 1 + `ratio` times the baseline's plus `seconds`, at most."""

    name: str = "latency_p99"
    quantile: float = 0.99
    ratio: float = 0.25
    seconds: float = 0.0


class PredictionCheck(msgspec.Struct, frozen=True, kw_only=True, tag="prediction"):
    """Pairs that differ beyond tolerance: their share may exceed the noise floor's by `margin` at most."""

    name: str = "disagreement"
    margin: float = 0.02


class MetricCheck(msgspec.Struct, frozen=True, kw_only=True, tag="metric"):
    """A number of the business, or a delayed label, from `provider`: see `control.providers`.

    queries: {"rows": SQL} or {"n": PromQL, "total": PromQL, "squares": PromQL, "newest": PromQL}; see
             docs/metric-providers.md
    kind:   "rate" (successes of n) or "mean" (n, sum, sum of squares)
    better: "higher" or "lower": which direction is good
    margin: how much worse the candidate may be, in the metric's unit
    delayed: labels come late: in a step only its FAIL counts, and it is judged on after promotion, until its labels
             are complete
    """

    name: str
    provider: str
    queries: Mapping[str, str]
    kind: str = "rate"
    better: str = "higher"
    margin: float = 0.0
    delayed: bool = False
    max_age: float = 300.0
    """Seconds; older data is NO_DATA."""


Check = RateCheck | LatencyCheck | PredictionCheck | MetricCheck


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout is to do, fixed at its start. Made from the spec by the strategy that gives it its name.

    strategy:  blue-green | canary | shadow
    steps:     at least one
    promotes:  whether the end of the steps makes the candidate the stable version
    checks:    guardrails; alpha is shared among them and their segments
    alpha:     false alarms accepted in a step, over all checks and segments, however often one looks
    baseline:  whether the candidate is compared with an arm of its own size
    min_samples: fewer samples than this are NO_DATA
    key, segments: see RoutePlan
    overrides:   key -> version, or "stable" or "candidate": what testers see
    golden:    whether the version's golden samples must pass before the first step
    replay:    how many recorded requests the preview must answer before the first step
    retain:    seconds that the old version stays hot after promotion
    deadline:  seconds that one step may take; 0 for no limit
    on_deadline: "abort" or "pause"
    breaker:   (window, failures) of a worker's own breaker; see RoutePlan
    tolerance: what counts as equal, by output name; "" for all others (`core.comparison`)
    backend:   who carries out the shares: the workers (`IN_PROCESS`), or something in front of them
    """

    strategy: str
    steps: tuple[Step, ...]
    promotes: bool = True
    checks: tuple[Check, ...] = ()
    alpha: float = 0.05
    baseline: bool = True
    min_samples: int = 50
    key: str = ""
    segments: tuple[str, ...] = ()
    overrides: Mapping[str, int | str] = {}
    golden: bool = True
    replay: int = 0
    retain: float = 600.0
    deadline: float = 3600.0
    on_deadline: str = "abort"
    breaker: tuple[int, int] = (20, 10)
    tolerance: Mapping[str, Mapping[str, float]] = {}
    backend: str = IN_PROCESS


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """The durable record. Everything the data plane does for a rollout follows from this value alone.

    id:        fresh for each; also the seed of its split
    version:   of the record: each committed change adds one
    step:      index into course.steps
    entered:   wall clock seconds when the phase, or the step, was entered
    since:     wall clock seconds that the deadline counts from: `entered`, or the last resume
    settled:   wall clock seconds since when every worker follows this phase or step; None until then
    paused:    why the rollout stands still although it could go on; "" if it does not
    approved:  whether a person has said yes in this step
    forced:    a person asked to promote without waiting for the remaining steps
    reason:    why it was started; once that is settled, why it was aborted, promoted or only observed. For people
    result:    how it ended or will end once ABORTING is over
    by:        who started it; "" where nobody did, or in records of releases before
    """

    id: str
    endpoint: str
    stable: int
    candidate: int
    course: Course
    version: int = 0
    phase: Phase = Phase.WAITING
    step: int = 0
    started: float = 0.0
    entered: float = 0.0
    since: float = 0.0
    settled: float | None = None
    paused: str = ""
    approved: bool = False
    forced: bool = False
    reason: str = ""
    result: Result = Result.NONE
    by: str = ""
    verdicts: tuple[Verdict, ...] = ()
    """The last ones that were acted on."""

    @property
    def now(self) -> Step:
        """The current step."""
        return self.course.steps[self.step]

    @property
    def weight(self) -> int:
        """The candidate's buckets that this record asks for."""
        if self.phase is Phase.RUNNING:
            return self.now.weight
        return BUCKETS if self.phase in (Phase.PROMOTING, Phase.RETAINING) else 0

    @property
    def mirror(self) -> int:
        """The share of requests that this record asks to be copied to the candidate."""
        return self.now.mirror if self.phase is Phase.RUNNING else 0

    @property
    def stratum(self) -> str:
        """What evidence is counted as now: one step of one rollout."""
        return f"{self.id}/{self.step}" if self.phase is Phase.RUNNING else ""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives rollouts: the trusted version, and candidates that must not come back by themselves."""

    name: str
    stable: int
    refused: tuple[int, ...] = ()


class Command(StrEnum):
    """What a person may ask of a rollout."""

    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"
    ROLLBACK = "rollback"

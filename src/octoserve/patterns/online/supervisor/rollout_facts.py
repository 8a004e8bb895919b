"""The facts of a rollout, as the repository, the workers and the metrics tell them now: what the machine decides on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec

from octoserve.control.analysis.reading import Reading
from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.catalog import problem
from octoserve.control.readiness import failure, ready_everywhere
from octoserve.control.reconcile import carries
from octoserve.control.rollout.conditions import previews
from octoserve.control.rollout.machine import wish_of
from octoserve.control.rollout.replica_tables import Asked, Said
from octoserve.control.rollout.values import Command, MetricCheck, Phase, Rollout
from octoserve.control.rollout.view import Preview, View
from octoserve.core.evidence import ALL, CANDIDATE, Seen, Stratum, merge, unite
from octoserve.patterns.online.supervisor.control_room import ControlRoom
from octoserve.repository.layout import DiskState, VersionOnDisk

log = logging.getLogger(__name__)

EVERYBODY = "every worker"
_ORDER = {Command.ABORT: 0, Command.ROLLBACK: 0, Command.PAUSE: 1}
"""What is heard before what was asked earlier: whoever stops something must not wait for who goes on."""

Previewer = Callable[[Rollout, VersionOnDisk], Awaitable[Preview]]
Readings = Callable[[Rollout], Mapping[str, Reading]]

DEATHS = 3
"""So many workers that die in one step are no accident any more."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What one rollout's last step has seen, for those who watch."""

    view: View
    stratum: Stratum | None = None
    verdicts: tuple[Verdict, ...] = ()
    readings: Mapping[str, Reading] = {}


class Facts:
    """What is true of rollouts in this service.

    preview:  tries the candidate before a client does
    readings: the newest ones of a rollout's metric checks
    wake:     a preview has ended
    joined:   what this replica says of a rollout, and all others
    deaths:   how many workers have died since a time
    """

    def __init__(
        self,
        room: ControlRoom,
        preview: Previewer,
        readings: Readings,
        now: Callable[[], float],
        wake: Callable[[], None],
        joined: Callable[[Rollout, Said], Said],
        deaths: Callable[[float], int],
    ) -> None:
        self._room = room
        self._preview = preview
        self._readings = readings
        self._now = now
        self._wake = wake
        self._joined = joined
        self._deaths = deaths
        self._previews: dict[str, Preview | asyncio.Task[Preview]] = {}
        self._complaint = ""

    def forget(self, rollout_id: str) -> None:
        """It has ended."""
        self._previews.pop(rollout_id, None)

    def close(self) -> None:
        """Stop what is under way."""
        for task in self._previews.values():
            if isinstance(task, asyncio.Task):
                task.cancel()
        self._previews.clear()

    def look(
        self, rollout: Rollout, seen: Sequence[Seen], asked: Sequence[Asked], *, superseded: bool = False
    ) -> tuple[Look, Asked | None]:
        """The facts of one rollout, now."""
        disk = self._on_disk(rollout.endpoint, rollout.candidate)
        said = self._joined(rollout, self.say(rollout))
        command = min(asked, key=lambda a: (_ORDER.get(a.command, len(_ORDER)), a.seq), default=None)
        stratum = stratum_of(rollout, seen) if rollout.settled is not None else None
        readings = self._readings(rollout)
        verdicts = self._verdicts(rollout, stratum, readings) if self._judged(rollout) else ()
        view = View(
            now=self._now(),
            present=said.present,
            ready=said.ready,
            failed=said.failed,
            stable_ready=said.stable_ready,
            settled=not said.behind,
            behind=said.behind or EVERYBODY,
            preview=self._preview_of(rollout, disk if said.ready else None),
            verdicts=verdicts,
            samples=samples_of(rollout, stratum),
            breaker=next((s.cut for s in seen if s.seed == rollout.id and s.cut), "") or self._deaths_of(rollout),
            command=command.command if command is not None else None,
            command_reason=command.reason if command is not None else "",
            superseded=superseded,
            labels_complete=labels_complete(rollout, readings, self._now()),
        )
        return Look(view=view, stratum=stratum, verdicts=verdicts, readings=readings), command

    def _deaths_of(self, rollout: Rollout) -> str:
        """Why the candidate is cut where workers die while it is tried: what a dead one had last is in no evidence."""
        if not rollout.weight and not rollout.mirror:
            return ""
        since = rollout.settled or rollout.entered
        deaths = self._deaths(since)
        return f"{deaths} workers have died since it got requests" if deaths >= DEATHS else ""

    def say(self, rollout: Rollout) -> Said:
        """What holds in this replica."""
        snapshot = self._room.snapshot()
        disk = self._on_disk(rollout.endpoint, rollout.candidate)
        whole = disk is not None and disk.state is DiskState.WHOLE
        return Said(
            version=rollout.version,
            behind=self.behind(rollout),
            present=whole,
            ready=ready_everywhere(snapshot, (rollout.endpoint, rollout.candidate)),
            stable_ready=ready_everywhere(snapshot, (rollout.endpoint, rollout.stable)),
            failed=self._failure(rollout, disk),
            digest=disk.digest if disk is not None and whole else "",
        )

    def _verdicts(
        self, rollout: Rollout, stratum: Stratum | None, readings: Mapping[str, Reading]
    ) -> tuple[Verdict, ...]:
        """What the analysis says. Whatever goes wrong in it promotes nothing, and is in nobody's way who aborts."""
        try:
            return _judge(rollout, stratum, readings)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if said != self._complaint:
                self._complaint = said
                log.exception("the evidence of %s cannot be judged", rollout.endpoint)
            return (Verdict(check="analysis", outcome=Outcome.PROVIDER_ERROR, note=said[:200]),)

    def _judged(self, rollout: Rollout) -> bool:
        if rollout.phase is Phase.RUNNING:
            return rollout.settled is not None
        return rollout.phase is Phase.RETAINING and any(isinstance(c, MetricCheck) for c in rollout.course.checks)

    def _failure(self, rollout: Rollout, disk: VersionOnDisk | None) -> str:
        """Why the candidate cannot be what it is to be, if something says so."""
        if disk is None or disk.state is DiskState.SETTLING:
            return ""
        snapshot = self._room.snapshot()
        why = problem(snapshot, disk)
        if why:
            return why
        if disk.settings.effects == "external" and any(step.mirror for step in rollout.course.steps):
            return "its model.yaml says `effects: external`: a copied request would act on the world twice"
        ref = next((r for r in self._room.current.versions if (r.model, r.version) == (disk.model, disk.version)), None)
        return failure(snapshot, ref) if ref is not None else ""

    def follows(self, rollout: Rollout) -> bool:
        """Whether everybody routes by the plan that this record asks for: workers, and what stands in front of them."""
        return not self.behind(rollout)

    def behind(self, rollout: Rollout) -> str:
        """Who does not route by it yet, for people; "" if everybody does."""
        plan = next((p for p in self._room.current.plans if p.endpoint == rollout.endpoint), None)
        if not self._room.all_follow():
            return EVERYBODY
        if plan is None:  # nothing of it is routed: its files are gone, or somebody has unloaded it
            return "" if rollout.phase is Phase.ABORTING else EVERYBODY
        if not carries(plan, wish_of(rollout)):
            return EVERYBODY
        return self._room.fronts.behind(rollout, plan)

    def _preview_of(self, rollout: Rollout, disk: VersionOnDisk | None) -> Preview | None:
        if rollout.phase is not Phase.PREPARING or not previews(rollout.course):
            return None
        known = self._previews.get(rollout.id)
        if known is None and disk is not None:
            task = asyncio.ensure_future(self._preview(rollout, disk))
            task.add_done_callback(lambda _: self._wake())
            self._previews[rollout.id] = task
        if isinstance(known, asyncio.Task) and known.done():
            error = None if known.cancelled() else known.exception()
            if error is not None:
                log.error("the preview of %s: %s", rollout.endpoint, error, exc_info=error)
            broke = known.cancelled() or error is not None
            known = Preview(False, f"it could not be made: {error}") if broke else known.result()
            self._previews[rollout.id] = known
        return known if isinstance(known, Preview) else None

    def _on_disk(self, endpoint: str, version: int) -> VersionOnDisk | None:
        if self._room.scan is None:
            return None
        return next((v for v in self._room.scan.models.get(endpoint, ()) if v.version == version), None)


def _judge(rollout: Rollout, stratum: Stratum | None, readings: Mapping[str, Reading]) -> tuple[Verdict, ...]:
    from octoserve.control.analysis.judge import judge  # numbers take long to import, and a start must not wait

    return judge(rollout, stratum, readings)


def stratum_of(rollout: Rollout, seen: Iterable[Seen]) -> Stratum | None:
    """What all workers have seen of the rollout's current step, as one."""
    mine = [s for s in seen if s.evidence.name == rollout.stratum and rollout.stratum]
    if not mine:
        return None
    total = mine[0].evidence
    for other in mine[1:]:
        total = merge(total, other.evidence)
    keys = [s.keys for s in mine if s.keys is not None]
    return msgspec.structs.replace(total, keys=unite(keys) if keys else None)


def samples_of(rollout: Rollout, stratum: Stratum | None) -> int:
    """The candidate's answered attempts; pairs, at weight 0."""
    if stratum is None:
        return 0
    if rollout.weight == 0:
        return stratum.pairs[ALL].compared if ALL in stratum.pairs else 0
    counts = stratum.arms.get(CANDIDATE, {}).get(ALL)
    return counts.attempts if counts is not None else 0


def labels_complete(rollout: Rollout, readings: Mapping[str, Reading], now: float) -> bool:
    """Whether every delayed check has data up to the promotion: until then a label may still come in."""
    late = [c for c in rollout.course.checks if isinstance(c, MetricCheck) and c.delayed]
    for check in late:
        reading = readings.get(check.name)
        if reading is None or reading.error or reading.age is None or now - reading.age < rollout.entered:
            return False
    return True

"""One observe-decide step: a snapshot in, the next desired state out. Pure and stateless.

Per model: choose candidates (what lies whole on disk, or is already held), select by policy and labels,
route to the highest one that is ready everywhere, and keep whatever some worker may still route to.
The invariants are listed in docs/decisions/0004-versions-and-generations.md and tested as properties.
"""

from __future__ import annotations

from msgspec import structs

from octoserve.control.catalog import catalog, problem
from octoserve.control.policy import select
from octoserve.control.readiness import (
    all_applied,
    failure,
    held_somewhere,
    ready_everywhere,
    ready_in_service,
)
from octoserve.control.rollout.values import Endpoint
from octoserve.control.rollout.wish import Wish
from octoserve.control.snapshot import Aspired, Key, Snapshot
from octoserve.core.evidence import STABLE
from octoserve.lifecycle.states import VersionRef
from octoserve.repository.layout import DiskState, VersionOnDisk
from octoserve.routing.plan import RoutePlan

DEFAULT_BATCH_ROWS = 64


def reconcile(snapshot: Snapshot) -> Aspired:
    """The next desired state; the current one itself if nothing changes."""
    current = snapshot.current
    refs: dict[Key, VersionRef] = {}
    plans: list[RoutePlan] = []
    labels: dict[str, dict[str, int]] = {}
    for model in sorted(snapshot.disk.keys() - snapshot.holds):
        candidates = _candidates(snapshot, model)
        selected = _selected(snapshot, model, candidates)
        plan = _plan(snapshot, model, candidates, selected)
        if plan is not None:
            plans.append(plan)
        model_labels = _labels(snapshot, model, candidates)
        if model_labels:
            labels[model] = model_labels
        asked = set(_label_wishes(snapshot, model).values()) | _kept_by_rollout(snapshot, model)
        wanted = selected | asked & candidates.keys()
        refs.update({(model, version): candidates[version] for version in wanted})
    _keep_routed(snapshot, refs, plans, labels)
    versions = tuple(refs[key] for key in sorted(refs, key=_load_order))
    next_ = Aspired(
        generation=current.generation,
        versions=versions,
        plans=tuple(plans),
        labels=labels,
        catalog=catalog(snapshot, versions),
    )
    return current if next_ == current else structs.replace(next_, generation=current.generation + 1)


def _load_order(key: Key) -> Key:
    """Newest first within a model: it is what the policy wants to answer."""
    return key[0], -key[1]


def _candidates(snapshot: Snapshot, model: str) -> dict[int, VersionRef]:
    """Versions that may be loaded or stay loaded, with the artifact that each one means.

    The version that answers now is one of them even if its files are gone, as long as the model has others:
    deleting a version is a way back to the one before, and that one must load first.
    """
    known = {ref.version: ref for ref in snapshot.current.versions if ref.model == model}
    candidates: dict[int, VersionRef] = {}
    for disk in snapshot.disk[model]:
        ref = _ref(snapshot, disk, known.get(disk.version))
        if ref is not None:
            candidates[disk.version] = ref
    now = _answering(snapshot, model)
    if now in known and snapshot.disk[model]:
        candidates.setdefault(now, known[now])
    return candidates


def _ref(snapshot: Snapshot, disk: VersionOnDisk, known: VersionRef | None) -> VersionRef | None:
    key = (disk.model, disk.version)
    held = held_somewhere(snapshot, key) or not snapshot.workers  # who is not heard may hold it still
    in_use = known is not None and (held or key in snapshot.current.routed())
    if in_use and (disk.state is not DiskState.WHOLE or known is None or disk.digest != known.digest):
        return known  # what is in memory is not changed under its users, whatever happens to its files
    wishes = snapshot.wishes_of(disk.model)
    if disk.state is not DiskState.WHOLE or problem(snapshot, disk):
        return None
    mine = disk.settings
    attempt = snapshot.base_attempt + disk.edition + snapshot.retries.get(disk.model, 0)
    return VersionRef(
        model=disk.model,
        version=disk.version,
        path=disk.path,
        digest=disk.digest,
        runtime=disk.runtime,
        threads=wishes.threads or mine.threads or 1,
        batching=mine.batching if wishes.batching is None else wishes.batching,
        max_batch_rows=wishes.max_batch_rows or mine.max_batch_rows or DEFAULT_BATCH_ROWS,
        attempt=max(attempt, known.attempt) if known is not None else attempt,
        cached=wishes.cached,
    )


def _selected(snapshot: Snapshot, model: str, candidates: dict[int, VersionRef]) -> set[int]:
    """Selected by policy, and the one that answers now until one of those is ready everywhere."""
    now = _answering(snapshot, model)
    present = sorted(disk.version for disk in snapshot.disk[model] if disk.version in candidates)
    broken = {version for version in present if version != now and failure(snapshot, candidates[version])}
    endpoint = _endpoint(snapshot, model)
    refused = set(endpoint.refused) if endpoint is not None else set()
    selected = select(snapshot.wishes_of(model).policy, present, broken | refused)
    if now in candidates and not any(ready_everywhere(snapshot, (model, version)) for version in selected):
        selected.add(now)
    return selected


def _answering(snapshot: Snapshot, model: str) -> int:
    plan = _current_plan(snapshot, model)
    return plan.stable if plan is not None else 0


def _endpoint(snapshot: Snapshot, model: str) -> Endpoint | None:
    """Its record. Where new versions wait and there is none, what a plan in force trusts is trusted.

    So a candidate does not get everything because the file that says who is stable has been lost.
    """
    known, plan = snapshot.endpoints.get(model), _current_plan(snapshot, model)
    if known is not None or plan is None or snapshot.wishes_of(model).on_new_version == "switch":
        return known
    return Endpoint(name=model, stable=plan.stable)


def _current_plan(snapshot: Snapshot, model: str) -> RoutePlan | None:
    return next((plan for plan in snapshot.current.plans if plan.endpoint == model), None)


def _plan(snapshot: Snapshot, model: str, candidates: dict[int, VersionRef], selected: set[int]) -> RoutePlan | None:
    """Route to the highest selected version that is ready everywhere; without one, stay.

    While a worker joins, the version that answers is not ready in it yet: going down to a lower one for
    that would be a flap, so a plan goes down only if its version is no longer selected or lost in a worker.
    """
    current = _current_plan(snapshot, model)
    wish = snapshot.rollouts.get(model)
    if wish is not None:
        plan = _plan_of_rollout(snapshot, wish, candidates)
        if plan is not None:
            return plan
    now = _answering(snapshot, model)
    best = _best(snapshot, model, candidates, selected)
    if current is not None and (len(current.arms) > 1 or current.seed) and best:
        return RoutePlan.to(model, best, snapshot.current.generation + 1)  # what a rollout left behind
    if current is not None and now in candidates:
        healthy = now in selected and ready_in_service(snapshot, (model, now))
        if best in (0, now) or (healthy and best < now):
            return current
    return RoutePlan.to(model, best, snapshot.current.generation + 1) if best else None


def _best(snapshot: Snapshot, model: str, candidates: dict[int, VersionRef], selected: set[int]) -> int:
    """The version that should answer where no rollout says otherwise; 0 if none can.

    The trusted one, where new versions do not come by themselves or one of them is on trial; else the highest one that
    no rollout refused. A candidate and a refused version load first, being newer: they do not answer while another one
    may still come.
    """
    endpoint, wish = _endpoint(snapshot, model), snapshot.rollouts.get(model)
    waits = snapshot.wishes_of(model).on_new_version != "switch"
    trusted = wish.stable if wish is not None else endpoint.stable if waits and endpoint is not None else 0
    if trusted in candidates and ready_everywhere(snapshot, (model, trusted)):
        return trusted
    ready = {v for v in selected if ready_everywhere(snapshot, (model, v))}
    if trusted in candidates and (waits or not failure(snapshot, candidates[trusted])):
        return _answering(snapshot, model) if _answering(snapshot, model) in ready else 0
    shunned = set(endpoint.refused) if endpoint is not None else set()
    if wish is not None:
        shunned.add(wish.candidate)
    if ready - shunned:
        return max(ready - shunned)
    awaited = any(not failure(snapshot, candidates[v]) for v in selected - shunned)
    return 0 if awaited else max(ready, default=0)


def _kept_by_rollout(snapshot: Snapshot, model: str) -> set[int]:
    """Versions that are wanted whatever the policy says: a rollout's two, and the trusted one."""
    wish, endpoint = snapshot.rollouts.get(model), _endpoint(snapshot, model)
    kept = set(wish.keep) if wish is not None else set()
    if endpoint is not None and snapshot.wishes_of(model).on_new_version != "switch":
        kept.add(endpoint.stable)
    return kept


def carries(plan: RoutePlan, wish: Wish) -> bool:
    """Whether this plan is what the wish asks for."""
    return plan == as_plan(wish, plan.generation)


def as_plan(wish: Wish, generation: int) -> RoutePlan:
    """What a wish asks for. Arms that own nothing are left out, but for the stable one, which says who is trusted."""
    return RoutePlan(
        wish.endpoint,
        generation,
        tuple(arm for arm in wish.arms if arm.hi > arm.lo or arm.role == STABLE),
        seed=wish.seed,
        key=wish.key,
        mirrors=wish.mirrors,
        overrides=wish.overrides,
        segments=wish.segments,
        stratum=wish.stratum,
        tolerance=wish.tolerance,
        breaker=wish.breaker,
        by_proxy=wish.by_proxy,
    )


def _plan_of_rollout(snapshot: Snapshot, wish: Wish, candidates: dict[int, VersionRef]) -> RoutePlan | None:
    """What the rollout asks for, if every version that would answer is ready; else what is in force.

    None if that cannot serve either: then it is as if there were no rollout, and the stable version answers.
    """
    current = _current_plan(snapshot, wish.endpoint)
    if current is not None and carries(current, wish):
        return current
    plan = as_plan(wish, snapshot.current.generation + 1)
    needed = {arm.version for arm in plan.arms if arm.hi > arm.lo}
    ready = ready_in_service if current is not None else ready_everywhere
    if needed <= candidates.keys() and all(ready(snapshot, (wish.endpoint, version)) for version in needed):
        return plan
    return current if current is not None and current.stable in candidates else None


def _label_wishes(snapshot: Snapshot, model: str) -> dict[str, int]:
    aliases = snapshot.aliases.get(model, {})
    return {**aliases, **snapshot.wishes_of(model).labels, **snapshot.labels.get(model, {})}


def _labels(snapshot: Snapshot, model: str, candidates: dict[int, VersionRef]) -> dict[str, int]:
    """Each label at its wish if that is ready everywhere, else where it was, else nowhere."""
    before = snapshot.current.labels.get(model, {})
    labels: dict[str, int] = {}
    for label, wish in sorted(_label_wishes(snapshot, model).items()):
        now = before.get(label)
        if wish in candidates and (wish == now or ready_everywhere(snapshot, (model, wish))):
            labels[label] = wish
        elif now is not None and now in candidates:
            labels[label] = now
    return labels


def _keep_routed(
    snapshot: Snapshot,
    refs: dict[Key, VersionRef],
    plans: list[RoutePlan],
    labels: dict[str, dict[str, int]],
) -> None:
    """Keep what the new plans or the current ones name, and, until all have applied, whatever is held."""
    current = snapshot.current
    named = current.routed() | Aspired(plans=tuple(plans), labels=labels).routed()
    acked = all_applied(snapshot)
    for ref in current.versions:
        key = (ref.model, ref.version)
        if key not in refs and (key in named or not acked):
            refs[key] = ref

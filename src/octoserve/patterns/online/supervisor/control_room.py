"""Observe, decide, push: the repository's scans and the workers' reports in, one `Desired` out.

A decision is committed to the store before it is pushed. Files and the database are touched in threads of
their own: one for scans and the store, one for digests, which may take long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from msgspec import structs

from octoserve.control.catalog import problem
from octoserve.control.policy import VersionPolicy
from octoserve.control.readiness import failure, ready_everywhere, ready_somewhere, settled_everywhere
from octoserve.control.reconcile import reconcile
from octoserve.control.rollout.values import Endpoint
from octoserve.control.rollout.wish import Wish
from octoserve.control.snapshot import Aspired, Key, ModelWishes, Snapshot
from octoserve.control.store import Store
from octoserve.core.errors import BrokenVersion, InvalidInput, NotFound, Unavailable, Unsupported
from octoserve.core.names import label_problem
from octoserve.lifecycle.states import VersionRef
from octoserve.patterns.online.link.messages import CatalogEntry, Desired
from octoserve.patterns.online.supervisor.fleet import Fleet
from octoserve.patterns.online.supervisor.route_backend import RouteBackends
from octoserve.repository.layout import DiskState, Scan, VersionOnDisk
from octoserve.repository.local import LocalRepository

log = logging.getLogger(__name__)

SCAN_EVERY = 1.0
FIRST_SCANS = 0.1
FIRST_PATIENCE = 3.0
"""Seconds that a start waits for files that still change: a stale `.tmp` never ends."""
RIVAL_PATIENCE = 1.0
"""The same for a model that has another version."""
OPERATION_TIMEOUT = 110.0
T = TypeVar("T")


class ControlRoom:
    """One service's control loop; `step` is one iteration."""

    def __init__(
        self,
        repository: LocalRepository,
        open_store: Callable[[], Store],
        fleet: Fleet,
        default: ModelWishes,
        wishes: Mapping[str, ModelWishes],
        scan_every: float = SCAN_EVERY,
    ) -> None:
        self.repository = repository
        self._open_store = open_store
        self.fleet = fleet
        self._default = default
        self._wishes = wishes
        self._scan_every = scan_every
        self._files = ThreadPoolExecutor(1, "files")
        self._digesting = ThreadPoolExecutor(1, "digests")
        self._store: Store | None = None
        self.scan: Scan | None = None
        self._digests: dict[Key, str] = {}
        self.holds: frozenset[str] = frozenset()
        self._labels: dict[str, dict[str, int]] = {}
        self.rollouts: Mapping[str, Wish] = {}
        self.endpoints: Mapping[str, Endpoint] = {}
        """Both written by who drives rollouts, from committed records."""
        self._retries: dict[str, int] = {}
        self._noted: frozenset[str] = frozenset()
        self._first_look: float | None = None
        self._looks_begun = 0
        self.looks = 0
        """Of the repository, that have ended."""
        self._trusted: set[str] = set()
        self._in_digest: set[tuple[Key, str]] = set()
        self._base_attempt = 0
        self.current = Aspired()
        self.floor = 0
        """The highest generation that anything beside the workers has seen."""
        self.fronts = RouteBackends(self, lambda _: None, {})
        """What stands in front of the workers; set by who makes it."""
        self.complete: Callable[[], bool] = lambda: True
        """Whether what lies here is what there is; a cache that begins empty is not. Set by who follows the origin."""
        self.refresh: Callable[[str], Awaitable[None]] | None = None
        """Where the repository is a cache: fetch what there is now of a model. Set by who follows the origin."""
        self._wake = asyncio.Event()
        self._turned = asyncio.Condition()
        self._due = 0.0
        self._pushed = 0

    # Life.

    async def open(self, adopting: bool) -> None:
        """Take up what was stored. What was last desired counts only if workers of then are still there."""
        self._store = await self._in_files(self._open_store)
        store = self._store
        last, self._digests, self.holds, self._labels = await self._in_files(
            lambda: (store.aspired(), store.digests(), store.holds(), store.labels())
        )
        if adopting:
            self.current = last
            self._base_attempt = max((ref.attempt for ref in last.versions), default=-1) + 1
        else:
            self.current = Aspired(generation=last.generation + 1)

    async def run(self) -> None:
        """Step whenever something changed, and scan on the beat. Ends by cancellation."""
        loop = asyncio.get_running_loop()
        complaint = ""
        while True:
            self._wake.clear()
            try:
                look = loop.time() >= self._due
                await self.step(look)
                complaint = "" if look else complaint
            except OSError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("cannot read the repository: %s; what is served stays", error)
                self._due = loop.time() + self._scan_every
            except Exception:
                log.exception("a control step failed; the next one starts anew")
                self._due = loop.time() + self._scan_every
            try:
                async with asyncio.timeout(max(0.01, self._due - loop.time())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def wake(self) -> None:
        """Something changed."""
        self._wake.set()

    def look_now(self) -> int:
        """The repository changed; `looks` from where on that has been seen."""
        self._due = 0.0
        self.wake()
        return self._looks_begun + 1

    def begin_anew(self) -> int:
        """The same, and a start waits for what is there now as if it had just begun."""
        self._first_look = None
        return self.look_now()

    def named(self, model: str) -> set[int]:
        """Versions that are loaded, routed, trusted or labelled, whatever the policy says of new ones."""
        wish, endpoint = self.rollouts.get(model), self.endpoints.get(model)
        named = {ref.version for ref in self.current.versions if ref.model == model}
        named |= set(wish.keep) if wish is not None else set()
        named |= {endpoint.stable} if endpoint is not None else set()
        return named | {*self._wishes.get(model, self._default).labels.values(), *self._labels.get(model, {}).values()}

    def policy_of(self, model: str) -> VersionPolicy:
        """Which versions of it the operator wants."""
        return self._wishes.get(model, self._default).policy

    async def close(self) -> None:
        """Close the store; threads that are busy are left to end with the process."""
        if self._store is not None:
            await self._in_files(self._store.close)
        self._files.shutdown(wait=False, cancel_futures=True)
        self._digesting.shutdown(wait=False, cancel_futures=True)

    # One step.

    async def step(self, look: bool = True) -> None:
        """Scan if it is time, record what has loaded, decide, commit, push."""
        if look or self.scan is None:
            await self._look()
        if self.scan is None or self.fleet.awaiting_adoption() or not self.complete():
            return
        if look:
            await self._keep_store()
        await self._record()
        highest = max(self.floor, *(m.generation for m in self.fleet.serving()), 0)
        if highest > self.current.generation:
            self.current = structs.replace(self.current, generation=highest)
        next_ = reconcile(self.snapshot())
        if next_.generation > self._pushed:
            store = self._opened()
            await self._in_files(lambda: store.commit(next_))
            self.current = next_
            self._pushed = next_.generation
            self.fleet.push(desired_of(next_))
            self.fronts.wake()
        async with self._turned:
            self._turned.notify_all()

    async def _keep_store(self) -> None:
        """Make the database again if somebody has removed it: what is known here is written into it."""
        store = self._opened()
        if await self._in_files(store.is_there):
            return
        log.error("the state database is gone; it is made again from what is known")
        labels = {model: dict(named) for model, named in self._labels.items()}
        known = (dict(self._digests), self.holds, labels, self.current)
        await self._in_files(lambda: store.make_again(*known))

    async def _look(self) -> None:
        trust = frozenset(self._trusted)
        self._looks_begun += 1
        mine = self._looks_begun
        scan = await self._in_files(lambda: self.repository.scan(trust))
        self.scan = scan
        self.looks = mine
        for note in set(scan.notes) - self._noted:
            log.info("repository: %s", note)
        self._noted = frozenset(scan.notes)
        loop = asyncio.get_running_loop()
        self._first_look = self._first_look or loop.time()
        young = any(v.state is DiskState.SETTLING for versions in scan.models.values() for v in versions)
        self._due = loop.time() + (min(FIRST_SCANS, self._scan_every) if young else self._scan_every)
        for version in self.repository.undigested(scan):
            self._digest(version)

    def _digest(self, version: VersionOnDisk) -> None:
        job = ((version.model, version.version), version.fingerprint)
        if job in self._in_digest:
            return
        self._in_digest.add(job)
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._digesting, self.repository.digest, version)

        def done(ended: asyncio.Future[bool]) -> None:
            self._in_digest.discard(job)
            if ended.cancelled():
                return
            error = ended.exception()
            if error is not None:
                log.error("the digest of %s version %d: %s", version.model, version.version, error)
            elif ended.result():
                self._due = 0.0
                self.wake()

        future.add_done_callback(done)

    async def _record(self) -> None:
        """Record digests of versions that have loaded, from the very files that still lie there."""
        assert self.scan is not None
        disk = {(v.model, v.version): v for versions in self.scan.models.values() for v in versions}
        snapshot = self.snapshot()
        store = self._opened()
        for ref in self.current.versions:
            key = (ref.model, ref.version)
            lies = disk.get(key)
            if key in self._digests or lies is None or not lies.rested or lies.digest != ref.digest:
                continue
            if ref.digest and ready_somewhere(snapshot, key):
                await self._in_files(lambda key=key, ref=ref: store.record_digest(key, ref.digest))  # type: ignore[misc]
                self._digests[key] = ref.digest

    def snapshot(self) -> Snapshot:
        """Everything that is known now."""
        return Snapshot(
            disk=self.scan.models if self.scan is not None else {},
            workers=tuple(member.view() for member in self.fleet.serving()),
            current=self.current,
            digests=self._digests,
            holds=self.holds,
            retries=self._retries,
            base_attempt=self._base_attempt,
            wishes=self._wishes,
            default=self._default,
            labels=self._labels,
            aliases=self.scan.labels if self.scan is not None else {},
            rollouts=self.rollouts,
            endpoints=self.endpoints,
        )

    # What may be asked.

    async def load(self, model: str) -> None:
        """End a hold, try failed versions again, take the files as whole; wait until the model answers.

        A model that is loaded as it lies there is left alone.

        Raises NotFound, BrokenVersion with the newest version's reason, Unavailable if it takes too long.
        """
        self._trusted.add(model)
        self._due = 0.0
        try:
            if self.refresh is not None:
                await self.refresh(model)
            await self._in_files(lambda: self.repository.read_again(model))
            await self._look_for(model)
            self._known(model)
            store = self._opened()
            self._digests = await self._in_files(store.digests)  # `model verify --accept` writes there
            if model not in self.holds and self._is_loaded(model):
                return
            await self._in_files(lambda: store.release(model))
            self.holds -= {model}
            self._retries[model] = self._retries.get(model, 0) + 1
            self.wake()
            await self._until(lambda: self._load_outcome(model), f"load {model!r}")
        finally:
            self._trusted.discard(model)

    async def _look_for(self, model: str) -> None:
        try:
            await self._look()
        except OSError as error:
            raise Unavailable(f"load {model!r}: cannot read the repository: {error}; try again") from None

    def _is_loaded(self, model: str) -> bool:
        """Every version that is wanted is ready everywhere, from the files that lie there, and followed."""
        snapshot = self.snapshot()
        refs = {ref.version: ref for ref in self.current.versions if ref.model == model}
        disk = snapshot.disk.get(model, ())
        if not refs or any(problem(snapshot, version) for version in disk):
            return False
        ready = all(ready_everywhere(snapshot, (model, version)) for version in refs)
        same = all(version.digest == refs[version.version].digest for version in disk if version.version in refs)
        return ready and same and self.all_follow() and reconcile(snapshot) == self.current

    def _load_outcome(self, model: str) -> bool:
        snapshot = self.snapshot()
        if any(v.state is DiskState.SETTLING for v in snapshot.disk.get(model, ())):
            return False
        refs = [ref for ref in self.current.versions if ref.model == model]
        if not refs:
            reasons = [problem(snapshot, v) for v in snapshot.disk.get(model, ())]
            raise BrokenVersion(f"no version of {model!r} can be loaded: {next(filter(None, reasons), '?')}")
        if not all(settled_everywhere(snapshot, ref) for ref in refs) or not self.all_follow():
            return False
        newest = max(refs, key=lambda ref: ref.version)
        failed = failure(snapshot, newest)
        if failed:
            raise BrokenVersion(f"{newest}: {failed}")
        return any(plan.endpoint == model for plan in self.current.plans)

    async def unload(self, model: str) -> None:
        """Hold the model unloaded; wait until no worker routes to it. Raises NotFound, Unavailable."""
        self._known(model)
        store = self._opened()
        await self._in_files(lambda: store.hold(model))
        self.holds |= {model}
        self.wake()
        await self._until(lambda: self._unrouted(model), f"unload {model!r}")

    def _unrouted(self, model: str) -> bool:
        gone = all(plan.endpoint != model for plan in self.current.plans)
        return gone and all(r.model != model for r in self.current.versions) and self.all_follow()

    async def set_label(self, model: str, label: str, version: int) -> None:
        """Point a label to a version that is ready in every worker; wait until all follow."""
        self._known(model)
        wanted = label_problem(label)
        if wanted:
            raise InvalidInput(f"label: {wanted} wanted, {label!r} came")
        listed = next((e for e in self.current.catalog if (e.model, e.version) == (model, version)), None)
        if listed is None:
            raise NotFound(f"model {model!r} has no version {version}")
        if listed.state != "READY":
            raise Unsupported(
                f"label {label!r} cannot point to {model} version {version}: it is {listed.state}"
                f"{' (' + listed.reason + ')' if listed.reason else ''}; a label needs a version that is ready"
            )
        store = self._opened()
        await self._in_files(lambda: store.set_label(model, label, version))
        self._labels.setdefault(model, {})[label] = version
        self.wake()
        await self._until(
            lambda: self.current.labels.get(model, {}).get(label) == version and self.all_follow(),
            f"label {label!r} of {model!r}",
        )

    async def remove_label(self, model: str, label: str) -> None:
        """Take away a label that was set by API; one of that name in the spec is in force again.

        Wait until all follow. Raises NotFound, Unsupported for one that only the spec has.
        """
        self._known(model)
        spec = self._wishes.get(model, self._default).labels
        registry = self.scan.labels.get(model, {}) if self.scan is not None else {}
        if label not in self._labels.get(model, {}):
            if label in registry and label not in spec:
                raise Unsupported(f"label {label!r} of {model!r} is an alias of the registry; take it away there")
            if label in spec:
                raise Unsupported(f"label {label!r} of {model!r} is set in the spec; take it out there")
            raise NotFound(f"model {model!r} has no label {label!r}")
        store = self._opened()
        await self._in_files(lambda: store.remove_label(model, label))
        self._labels[model].pop(label, None)
        self.wake()
        await self._until(
            lambda: (
                (label in spec or label in registry or label not in self.current.labels.get(model, {}))
                and self.all_follow()
            ),
            f"removal of label {label!r} of {model!r}",
        )

    def initially_settled(self) -> bool:
        """Every version that is wanted has loaded or failed everywhere, and every worker follows."""
        if self.scan is None or self.fleet.desired is None:
            return False
        if any(self._worth_waiting(versions) for versions in self.scan.models.values()):
            return False
        snapshot = self.snapshot()
        loaded = all(settled_everywhere(snapshot, ref) for ref in self.current.versions)
        everyone = len(snapshot.workers) >= len(self.fleet.slots)
        return loaded and everyone and self.all_follow() and reconcile(snapshot) == self.current

    def _worth_waiting(self, versions: Sequence[VersionOnDisk]) -> bool:
        """Whether a model's files are read, or still come in and a start should wait for them a little."""
        since = asyncio.get_running_loop().time() - (self._first_look or 0.0)
        limit = RIVAL_PATIENCE if any(v.state is DiskState.WHOLE for v in versions) else FIRST_PATIENCE
        return any(
            v.state is DiskState.SETTLING
            and (since < limit or ((v.model, v.version), v.fingerprint) in self._in_digest)
            for v in versions
        )

    def all_follow(self) -> bool:
        """Whether every worker that serves has acknowledged what is desired."""
        members = self.fleet.serving()
        return bool(members) and all(m.generation >= self.current.generation for m in members)

    def _known(self, model: str) -> None:
        if self.scan is None or model not in self.scan.models:
            raise NotFound(f"no model {model!r} in the repository")

    async def _until(self, reached: Callable[[], bool], what: str) -> None:
        """Wait for a step after which `reached` holds; at least one step passes first."""
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT), self._turned:
                while True:
                    await self._turned.wait()
                    if reached():
                        return
        except TimeoutError:
            raise Unavailable(f"{what}: not done after {OPERATION_TIMEOUT:.0f} s; it goes on") from None

    def _opened(self) -> Store:
        assert self._store is not None, "open() comes first"
        return self._store

    async def _in_files(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work)


def desired_of(aspired: Aspired) -> Desired:
    """As it goes to the workers."""
    versions: tuple[VersionRef, ...] = aspired.versions
    catalog = tuple(CatalogEntry(e.model, e.version, e.state, e.reason) for e in aspired.catalog)
    return Desired(aspired.generation, versions, aspired.plans, aspired.labels, catalog)

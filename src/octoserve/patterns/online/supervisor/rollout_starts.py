"""How rollouts begin: by a person, by a new version, and each after the one before; and which version is trusted.

Whoever wants a start leaves a proposal in the store; who leads makes a rollout of it, once the endpoint has none.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from octoserve.control.rollout.machine import start
from octoserve.control.rollout.store import Conflict
from octoserve.control.rollout.values import Course, Endpoint, Phase, Rollout
from octoserve.core.errors import InvalidInput, NotFound, SettingsError
from octoserve.patterns.online.supervisor.control_room import ControlRoom
from octoserve.patterns.online.supervisor.rollout_entries import entry_of
from octoserve.patterns.online.supervisor.rollout_ledger import RolloutLedger
from octoserve.patterns.online.supervisor.rollout_state import InForce
from octoserve.repository.layout import DiskState
from octoserve.security.caller import ADMIN_API, CONTROLLER

if TYPE_CHECKING:
    from octoserve.spec import RolloutSection

log = logging.getLogger(__name__)

NEW_VERSION = "a new version in the repository"

Strategy: TypeAlias = "Callable[[RolloutSection], Course]"
Sections: TypeAlias = "Callable[[str], RolloutSection]"


class Starts:
    """sections: the rollout settings of an endpoint; strategies: name -> what makes a section's course."""

    def __init__(
        self,
        ledger: RolloutLedger,
        state: InForce,
        room: ControlRoom,
        sections: Sections,
        strategies: Mapping[str, Strategy],
        now: Callable[[], float],
    ) -> None:
        self._ledger, self._state, self._room = ledger, state, room
        self._sections, self._strategies, self._now = sections, strategies, now
        self._refusals: dict[str, int] = {}
        """By endpoint: the new version whose rollout the spec does not allow."""

    # What anybody may do.

    def make(
        self,
        endpoint: str,
        candidate: int,
        strategy: str | None = None,
        stable: int | None = None,
        reason: str = "",
        by: str = "",
    ) -> Rollout:
        """The first record of a rollout. Raises NotFound, InvalidInput, SettingsError."""
        section = self._sections(endpoint)
        name = strategy or section.strategy
        make_course = self._strategies.get(name)
        if make_course is None:
            raise InvalidInput(f"strategy: {', '.join(self._strategies)} wanted, {name!r} came")
        trusted = self.trusted(endpoint)
        if stable not in (None, trusted):
            raise InvalidInput(
                f"stable: version {trusted} is what a rollout of {endpoint!r} starts from, {stable} came"
            )
        now = self._now()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
        id = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', endpoint)}-{stamp}-{os.urandom(4).hex()}"
        course = make_course(section if strategy is None else section.model_copy(update={"strategy": name}))
        course = msgspec.structs.replace(course, backend=self._room.fronts.kind_of(endpoint))
        self._room.fronts.refuse_unless_able(endpoint, course)
        return msgspec.structs.replace(start(endpoint, trusted, candidate, course, id, now), reason=reason, by=by)

    def trusted(self, endpoint: str) -> int:
        """The version that is stable now. Raises NotFound where nothing answers yet."""
        live, known = self._state.live.get(endpoint), self._state.endpoints.get(endpoint)
        if live is not None:
            return live.stable
        plan = next((p for p in self._room.current.plans if p.endpoint == endpoint), None)
        # A plan with a seed is what an ended rollout has left, for a moment: its record is newer.
        if known is not None and (plan is None or plan.seed or self._sections(endpoint).on_new_version != "switch"):
            return known.stable
        if plan is None:
            raise NotFound(f"endpoint {endpoint!r} has no version that answers; a rollout needs a stable one")
        return plan.stable

    async def propose(self, rollout: Rollout) -> None:
        """It starts once the one before has ended, instead of what was proposed before."""
        await self._ledger.do(lambda store: store.propose(rollout))
        self._state.proposed[rollout.endpoint] = rollout

    # What the leader does, in each step.

    async def due(self) -> None:
        """Remember what is stable, propose what is new, start what can be started."""
        await self._remember_stable()
        await self._propose_new_versions()
        await self._start_proposed()

    async def _remember_stable(self) -> None:
        """Where new versions do not come by themselves, the first one that answers is the trusted one.

        Where they do, a record that a rollout has left follows them: it must not bring an old version back.
        """
        for plan in self._room.current.plans:
            name, known = plan.endpoint, self._state.endpoints.get(plan.endpoint)
            switches = self._sections(name).on_new_version == "switch"
            if known is None:
                endpoint = None if switches else Endpoint(name=name, stable=plan.stable)
            else:
                live = name in self._state.live
                follows = switches and not plan.seed and not live and plan.stable not in known.refused
                endpoint = msgspec.structs.replace(known, stable=plan.stable) if follows else None
            if endpoint is not None and endpoint != known:
                await self._ledger.set_endpoint(endpoint)
                self._state.endpoints[endpoint.name] = endpoint
                self._state.publish()

    async def _propose_new_versions(self) -> None:
        assert self._room.scan is not None
        for name, versions in self._room.scan.models.items():
            section, endpoint = self._sections(name), self._state.endpoints.get(name)
            if section.on_new_version != "rollout" or endpoint is None or name in self._room.holds:
                continue
            whole = [v.version for v in versions if v.state is DiskState.WHOLE and v.version not in endpoint.refused]
            newest = max(whole, default=0)
            planned = self._state.proposed.get(name) or self._state.live.get(name)
            if newest > endpoint.stable and (planned is None or newest > planned.candidate):
                if self._refusals.get(name) == newest:
                    continue
                log.info("%s: version %d is new, and starts a rollout", name, newest)
                try:
                    made = self.make(name, newest, reason=NEW_VERSION)
                except SettingsError as error:
                    self._refusals[name] = newest  # it stays so until the spec changes, which takes a new start
                    log.error("the rollout of %s to version %d does not start: %s", name, newest, error)
                    continue
                await self.propose(made)

    async def _start_proposed(self) -> None:
        state = self._state
        for name, rollout in list(state.proposed.items()):
            if name in state.live:
                continue
            stable = self.trusted(name) if name in state.endpoints else rollout.stable
            if rollout.candidate == stable:  # the one before was promoted meanwhile, and is this version
                await self._ledger.withdraw(rollout.id)
                del state.proposed[name]
                continue
            rollout = msgspec.structs.replace(rollout, stable=stable if name in state.last else rollout.stable)
            who = CONTROLLER if rollout.reason == NEW_VERSION else rollout.by or ADMIN_API
            entry = entry_of(rollout, rollout, "started", rollout.reason or "by a person", self._now(), who=who)
            endpoint = state.endpoints.get(name) or Endpoint(name=name, stable=rollout.stable)
            endpoint = msgspec.structs.replace(
                endpoint, refused=tuple(v for v in endpoint.refused if v != rollout.candidate)
            )
            try:
                await self._ledger.commit(rollout, entry, endpoint)
            except Conflict as error:
                past = await self._ledger.do(lambda store, id=rollout.id: store.rollout(id))  # type: ignore[misc]
                if past is None or past.phase is not Phase.ENDED:
                    raise
                # Its id is another one's: it can never start, and nobody else's rollout must wait for it.
                log.error("the rollout of %s to version %d does not start: %s", name, rollout.candidate, error)
                await self._ledger.withdraw(rollout.id)
                del state.proposed[name]
                continue
            del state.proposed[name]
            state.take(rollout, endpoint)

"""What is committed, as this replica has taken it up; the control room makes the plans from it.

Nothing comes in here that is not stored: a crash between commit and effect is repaired by taking up what is stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from octoserve.control.rollout.machine import wish_of
from octoserve.control.rollout.replica_tables import Survey
from octoserve.control.rollout.values import Endpoint, Phase, Rollout
from octoserve.control.rollout.wish import EXPOSED
from octoserve.patterns.online.supervisor.control_room import ControlRoom
from octoserve.patterns.online.supervisor.rollout_facts import Look

History = Callable[[str, int], Awaitable[list[Rollout]]]
"""An endpoint's rollouts, newest first, and how many at most."""


class InForce:
    """room: gets what follows; ended: told the id of a rollout that is not live any more."""

    def __init__(self, room: ControlRoom, ended: Callable[[str], None]) -> None:
        self._room = room
        self._ended = ended
        self.live: dict[str, Rollout] = {}
        self.last: dict[str, Rollout] = {}
        """By endpoint: the rollout that ended last."""
        self.endpoints: dict[str, Endpoint] = {}
        self.proposed: dict[str, Rollout] = {}
        """By endpoint: what starts once the one before has ended."""
        self.looks: dict[str, Look] = {}
        """By rollout id, of live ones."""
        self.waiting: set[int] = set()
        """Numbers of commands whose answer somebody waits for."""

    @property
    def exposed(self) -> bool:
        """Whether any candidate has clients, or their copies."""
        return any(rollout.phase in EXPOSED for rollout in self.live.values())

    async def open(self, survey: Survey, history: History) -> None:
        """The first time."""
        await self.take_up(survey, history)
        for name in self.endpoints:
            newest = await history(name, 1)
            if newest and newest[0].phase is Phase.ENDED:
                self.last[name] = newest[0]
        self.publish()

    async def take_up(self, survey: Survey, history: History) -> None:
        """What is stored is in force."""
        live = {rollout.endpoint: rollout for rollout in survey.live}
        self.proposed = dict(survey.proposed)
        self.waiting &= {asked.seq for asked in survey.asked}
        before = self.live
        if _versions(live) == _versions(before) and self.endpoints == survey.endpoints:
            return
        self.live, self.endpoints = live, dict(survey.endpoints)
        self.publish()
        for rollout in before.values():
            if rollout.endpoint not in live or live[rollout.endpoint].id != rollout.id:
                self._forget(rollout.id)
                self.last[rollout.endpoint] = rollout
                past = await history(rollout.endpoint, 2)
                self.last[rollout.endpoint] = next((r for r in past if r.phase is Phase.ENDED), rollout)

    def take(self, rollout: Rollout, endpoint: Endpoint | None = None) -> None:
        """What was committed is in force."""
        if endpoint is not None:
            self.endpoints[endpoint.name] = endpoint
        if rollout.phase is Phase.ENDED:
            self.live.pop(rollout.endpoint, None)
            self.last[rollout.endpoint] = rollout
            self._forget(rollout.id)
        else:
            self.live[rollout.endpoint] = rollout
        self.publish()

    def publish(self) -> None:
        """The way out: wishes and endpoints to the control room."""
        self._room.rollouts = {name: wish_of(rollout) for name, rollout in self.live.items()}
        self._room.endpoints = dict(self.endpoints)
        self._room.wake()

    def _forget(self, rollout_id: str) -> None:
        self.looks.pop(rollout_id, None)
        self._ended(rollout_id)


def _versions(live: Mapping[str, Rollout]) -> set[tuple[str, int]]:
    return {(rollout.id, rollout.version) for rollout in live.values()}

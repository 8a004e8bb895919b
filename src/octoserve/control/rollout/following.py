"""What a follower and a service say to each other: docs/decisions/0016-rollouts-in-queues.md.

A follower scores by a service's rollouts without being one of its workers: a queue, on this machine or another. To
the rollout it is a replica that never leads: it is waited for, and its evidence counts.
"""

from __future__ import annotations

import msgspec

from octoserve.control.rollout.replica_tables import Said
from octoserve.core.evidence import Seen
from octoserve.routing.plan import RoutePlan

PREFIX = "queue "
"""Of the ids of followers, so that none is taken for a replica that serves."""
MAX_ID = 200


class FollowerWord(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower says, every second or so.

    id:      its name, another one each time it starts
    rollout: which one the rest is about, "" for none
    said:    what holds there, as of a replica
    seen:    what was seen there of the rollout's current stratum, by all its processes, dead ones included
    leaves:  it stops in good order; nobody waits for it any more
    """

    id: str
    rollout: str = ""
    said: Said | None = None
    seen: Seen | None = None
    leaves: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What a service answers: who scores what, from now on.

    plan:    None where nothing answers for the endpoint now; a follower goes on as before
    keep:    versions to hold beside those that the plan names
    stable, candidate: of the live rollout, 0 without one
    rollout: its id, "" where none is under way; record: the version of its record that the plan follows from
    host, spool: the service's machine, and the folder on it where pairs of a shadow are left
    """

    plan: RoutePlan | None = None
    keep: tuple[int, ...] = ()
    stable: int = 0
    candidate: int = 0
    rollout: str = ""
    record: int = -1
    host: str = ""
    spool: str = ""

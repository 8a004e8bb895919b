"""What the other replicas of this service say, and what they say together: docs/decisions/0009-several-replicas.md.

No wall clocks are compared: a replica's word is as old as this process has seen it unchanged, and only time in which
it could look counts. Pure but for the injected clock.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from octoserve.control.rollout.replica_tables import ReplicaRow, Said, Survey
from octoserve.control.rollout.values import Rollout
from octoserve.control.rollout.wish import Wish, wish_of
from octoserve.core.clock import Clock, monotonic
from octoserve.core.evidence import Seen, seen_of
from octoserve.patterns.online.supervisor.service_files import write_atomically

LEADER_GONE = 4.0
"""Seconds without a word after which a leader is replaced."""
REPLICA_GONE = 10.0
"""The same, after which nobody waits for a replica."""
FORGOTTEN = 600.0
"""The same, after which its row is dropped."""
BEAT, BEAT_EXPOSED = 1.0, 0.5
"""Seconds between two words of a replica; the second while evidence is gathered."""
MAX_GAP = 1.0
"""Seconds between two looks, at most, that count as attended."""
_UNKNOWN = Said(version=-1, behind="it has not taken up the rollout")


class Watch:
    """How long beats have stood still. Who could not look (stopped, no database) has seen nobody stand still."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._attended = 0.0
        self._looked: float | None = None
        self._seen: dict[str, tuple[int, float]] = {}

    def look(self, beats: Mapping[str, int]) -> None:
        """The beats, just read."""
        now = self._clock()
        if self._looked is not None:
            self._attended += min(now - self._looked, MAX_GAP)
        self._looked = now
        before = self._seen
        self._seen = {
            id: before[id] if id in before and before[id][0] == beat else (beat, self._attended)
            for id, beat in beats.items()
        }

    def age(self, id: str) -> float:
        """Seconds since its last word; infinite for who has no row."""
        return self._attended - self._seen[id][1] if id in self._seen else float("inf")


class Replicas:
    """The replicas beside this one, as last read.

    me: this replica's id
    """

    def __init__(self, me: str, clock: Clock = monotonic) -> None:
        self.me = me
        self._watch = Watch(clock)
        self._rows: tuple[ReplicaRow, ...] = ()
        self._leader = ""
        self._followed: dict[str, tuple[Wish, int, int]] = {}
        """By rollout: what it asks for, since which version without a break, and the last version looked at."""

    def heard(self, survey: Survey) -> None:
        """The store was read."""
        self._rows, self._leader = survey.replicas, survey.leader
        self._watch.look({row.id: row.beat for row in survey.replicas})

    def leader_is_gone(self, survey: Survey, token: int) -> bool:
        """Whether to take over: nobody leads, this one did before it started again, or the leader is silent.

        token: what this one leads with; 0 if it does not.
        """
        if survey.leader == self.me:
            return token == 0
        return token == 0 and self._watch.age(survey.leader) > LEADER_GONE

    def forget(self) -> None:
        """This replica begins to lead, or stops to: what it knew of versions may have holes."""
        self._followed.clear()

    @property
    def others(self) -> bool:
        """Whether anybody else is known: replicas, or followers."""
        return any(row.id != self.me for row in self._rows)

    def silent(self) -> list[str]:
        """Those without a word for so long that their rows may go."""
        return [row.id for row in self._rows if row.id != self.me and self._watch.age(row.id) > FORGOTTEN]

    def joined(self, rollout: Rollout, mine: Said) -> Said:
        """What this replica says, and every other one that is waited for. Call it for every version of a record."""
        others = [row for row in self._rows if row.id != self.me and self._counts(row, rollout.endpoint)]
        return agree(rollout.id, mine, others, self._since(rollout))

    def _counts(self, row: ReplicaRow, endpoint: str) -> bool:
        serves = row.report.serves
        return self._watch.age(row.id) <= REPLICA_GONE and (serves is None or endpoint in serves)

    def _since(self, rollout: Rollout) -> int:
        """The first version since which every one has asked for the same as this one."""
        wish = wish_of(rollout)
        before, since, last = self._followed.get(rollout.id, (None, 0, -1))
        if before != wish or not last <= rollout.version <= last + 1:
            since = rollout.version
        self._followed[rollout.id] = wish, since, rollout.version
        return since

    def view(self, rollout: Rollout | None) -> list[dict[str, Any]]:
        """For people: who is there, and whom the rollout waits for."""
        rows = []
        for row in self._rows:
            said = row.report.rollouts.get(rollout.id, _UNKNOWN) if rollout is not None else _UNKNOWN
            age = self._watch.age(row.id)
            shown = {
                "id": row.id,
                "leads": row.id == self._leader,
                "here": row.id == self.me,
                "silent": round(age, 1),
                "counts": row.id == self.me or (rollout is not None and self._counts(row, rollout.endpoint)),
                "record": said.version,
            }
            rows.append({**shown, **{name: getattr(said, name) for name in Said.__struct_fields__[1:-1]}})
        return rows


def agree(rollout_id: str, mine: Said, others: Sequence[ReplicaRow], since: int) -> Said:
    """What holds everywhere, and what is wrong anywhere.

    since: an acknowledgement of an older version of the record does not count.
    """
    told = [(row.id, row.report.rollouts.get(rollout_id, _UNKNOWN)) for row in others]
    late = next((f"replica {name}" for name, said in told if said.behind or said.version < since), "")
    return Said(
        version=mine.version,
        behind=mine.behind or late,
        present=mine.present and all(said.present for _, said in told),
        ready=mine.ready and all(said.ready for _, said in told),
        stable_ready=mine.stable_ready and all(said.stable_ready for _, said in told),
        failed=mine.failed or next(filter(None, (_failure(name, said, mine) for name, said in told)), ""),
        digest=mine.digest,
    )


def _failure(name: str, said: Said, mine: Said) -> str:
    if said.failed:
        return f"{said.failed} (replica {name})"
    if said.digest and mine.digest and said.digest != mine.digest:
        return f"replica {name} has other content under this version number; publish it under a new one"
    return ""


def seen_here(rollouts: Iterable[Rollout], seen: Sequence[Seen]) -> dict[str, Seen]:
    """By rollout id: what this replica's workers, those that are gone included, have seen of its current stratum."""
    told = {rollout.id: seen_of(rollout.id, rollout.endpoint, rollout.stratum, seen) for rollout in rollouts}
    return {id: one for id, one in told.items() if one is not None}


def identity(state_dir: Path, service: str, goes_on: bool) -> tuple[str, str]:
    """This replica's id, and the one that it had before and has no longer, if any: the host's name, and a random word.

    goes_on: workers of the last supervisor live on, and with them what they have counted: it is the same replica. Who
    starts without them is a new one, or it would write its empty counts over what the dead ones had told.
    """
    path = state_dir / f"{service}.replica"
    try:
        last = path.read_text().strip()
    except OSError:
        last = ""
    if goes_on and last:
        return last, ""
    mine = f"{socket.gethostname()}/{os.urandom(4).hex()}"
    write_atomically(path, mine.encode())
    return mine, last

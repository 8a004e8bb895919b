"""What of the past may go: whole rollouts that ended long ago, from the beginning of an endpoint's chain.

`prune` is one transaction:

1. the fence, as for every write
2. which rollouts go: the longest beginning of the chain that holds nothing but rollouts that ended before a moment,
   each of them whole. The endpoint's last rollout stays, however old, and so does all that comes after it
3. the anchor, appended to the chain like any entry: the number and the digest of the last line that goes, and which
   rollouts went. What is left is verified against it, and who forges it has to write the whole chain again
4. lines and records are deleted

A crash before its end leaves all as it was. After it the anchor is there and the lines are gone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager

from octoserve.control.rollout.audit import PRUNED, AuditEntry
from octoserve.control.rollout.replica_tables import Execute, read_record
from octoserve.control.rollout.values import Rollout

BATCH = 10
"""Rollouts that go in one transaction: nobody who wants to decide waits long for it."""

WHO = "retention"


class Retention:
    """The part of a ledger that forgets. `_fence`, `_append` and the transactions are the ledger's."""

    _now: Callable[[], float]

    @abstractmethod
    def writing(self) -> AbstractContextManager[Execute]:
        """A transaction that is on disk when the block ends, and has changed nothing if it raises."""

    @abstractmethod
    def _fence(self, execute: Execute, token: int) -> None: ...

    @abstractmethod
    def _append(self, execute: Execute, entries: Sequence[AuditEntry]) -> None: ...

    def prune(self, token: int, endpoint: str, before: float) -> int:
        """Forget rollouts that ended before this moment (wall clock seconds), see the module; how many. Raises Fenced.

        At most BATCH: call again until it is 0.
        """
        with self.writing() as execute:
            self._fence(execute, token)
            old = self._old(execute, endpoint, before)
            if not old:
                return 0
            spans = execute(
                "select rollout, min(seq), max(seq) from audit where endpoint = ? and rollout <> '' group by rollout",
                endpoint,
            )
            end, gone = beginning({id: (int(first), int(last)) for id, first, last in spans}, old, BATCH)
            if not gone:
                return 0
            ((digest,),) = execute("select digest from audit where endpoint = ? and seq = ?", endpoint, end)
            self._append(execute, [self._anchor(endpoint, end, digest, [old[id] for id in gone])])
            execute("delete from audit where endpoint = ? and seq <= ?", endpoint, end)
            for id in gone:
                execute("delete from rollout where id = ?", id)
        return len(gone)

    def _old(self, execute: Execute, endpoint: str, before: float) -> dict[str, Rollout]:
        rows = execute(
            "select record from rollout where endpoint = ? and ended = 1 and started < ? order by started, id",
            endpoint, before,
        )  # fmt: skip
        last = execute("select id from rollout where endpoint = ? order by started desc, id desc limit 1", endpoint)
        past = [read_record(record, Rollout) for (record,) in rows]
        return {r.id: r for r in past if r.entered < before and (r.id,) != tuple(last[0])}

    def _anchor(self, endpoint: str, end: int, digest: str, gone: Sequence[Rollout]) -> AuditEntry:
        return AuditEntry(
            rollout="",
            endpoint=endpoint,
            time=self._now(),
            who=WHO,
            event=PRUNED,
            reason=f"entries up to {end}, of rollouts that ended long ago: {', '.join(r.id for r in gone)}",
            view={
                "seq": end,
                "digest": digest,
                "rollouts": {r.id: f"{r.stable} -> {r.candidate}: {r.result}" for r in gone},
            },
        )


def beginning(spans: Mapping[str, tuple[int, int]], may_go: Collection[str], most: int) -> tuple[int, list[str]]:
    """The longest beginning of a chain that is made of at most `most` rollouts that may go, each of them whole.

    spans: by rollout, its first and last number. What belongs to none goes with what is around it
    Gives its last number and the rollouts, by their first numbers; (0, []) where there is none.
    """
    goes = sorted((id for id in spans if id in may_go), key=lambda id: spans[id])[:most]
    while goes:
        end = max(spans[id][1] for id in goes)
        stays = set(spans) - set(goes)
        if all(spans[id][0] > end for id in stays):
            return end, goes
        goes.pop()
    return 0, []

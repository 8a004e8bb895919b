"""What replicas tell each other through the store: docs/decisions/0009-several-replicas.md.

Facts and wishes, written over again and again, by anybody, outside the audit chain. Nothing here decides anything.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from octoserve.control.rollout import audit
from octoserve.control.rollout.values import Command, Endpoint, Rollout
from octoserve.core.errors import SettingsError
from octoserve.core.evidence import Seen

Execute = Callable[..., list[Any]]
"""execute(sql, *values): the rows. Values stand for `?`, in order."""

REPLICA_TABLES = """
create table if not exists proposed (endpoint text primary key, id text not null, record text not null);
create table if not exists look (rollout text primary key, look text not null);
create table if not exists evidence (
  replica text not null, rollout text not null, seen text not null, primary key (replica, rollout));
create table if not exists replica (id text primary key, beat bigint not null, report text not null);
"""
"""`replica` comes last: where it is, all others are."""

SILENT = 3.0
"""Seconds without a word of a replica, some beats of it, after which people are told so."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A command that waits for the controller.

    fence: what the person was looking at, a rollout's id or its stratum `id/step`; "" for whatever is there. A command
           whose fence no longer holds is answered by dropping it, with a note in the audit log.
    time:  wall clock seconds
    """

    seq: int
    endpoint: str
    command: Command
    who: str
    reason: str = ""
    fence: str = ""
    time: float = 0.0


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica says of one rollout.

    version: the record's version that it has taken up
    behind:  who there has not acknowledged the plan that this record asks for, "" if everybody has
    failed:  why the candidate cannot be loaded there, "" if nothing says so
    digest:  of the candidate's files there, "" where they have not been read
    Everything else: see View.
    """

    version: int
    behind: str = ""
    present: bool = False
    ready: bool = False
    stable_ready: bool = False
    failed: str = ""
    digest: str = ""


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica says.

    rollouts: by rollout id
    serves:   endpoints whose files lie in its repository; None before it has looked
    """

    rollouts: Mapping[str, Said] = {}
    serves: tuple[str, ...] | None = None


class ReplicaRow(msgspec.Struct, frozen=True, kw_only=True):
    """A replica as the store has it; `beat` grows with each word from it."""

    id: str
    beat: int
    report: ReplicaReport


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a step starts from, as it stood at one moment.

    proposed: what is to start, by endpoint
    """

    token: int
    leader: str
    live: tuple[Rollout, ...] = ()
    endpoints: Mapping[str, Endpoint] = {}
    asked: tuple[Asked, ...] = ()
    proposed: Mapping[str, Rollout] = {}
    replicas: tuple[ReplicaRow, ...] = ()


class ReplicaTables:
    """The part of a ledger that replicas share. `_fence` and the transactions are the ledger's."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Execute]:
        """A transaction that sees one state and changes nothing."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Execute]:
        """A transaction that is on disk when the block ends, and has changed nothing if it raises."""

    @abstractmethod
    def _fence(self, execute: Execute, token: int) -> None: ...

    def survey(self) -> Survey:
        """See Survey."""
        with self.reading() as execute:
            ((token, leader),) = execute("select token, holder from leader")
            live = execute("select record from rollout where ended = 0 order by started, id")
            endpoints = execute("select name, record from endpoint order by name")
            asked = execute("select seq, endpoint, command, who, reason, fence, time from asked order by seq")
            proposed = execute("select endpoint, record from proposed order by endpoint")
            replicas = execute("select id, beat, report from replica order by id")
        return Survey(
            token=int(token),
            leader=leader,
            live=tuple(read_record(record, Rollout) for (record,) in live),
            endpoints={name: read_record(record, Endpoint) for name, record in endpoints},
            asked=tuple(asked_of(row) for row in asked),
            proposed={name: read_record(record, Rollout) for name, record in proposed},
            replicas=tuple(
                ReplicaRow(id=id, beat=int(beat), report=read_record(report, ReplicaReport))
                for id, beat, report in replicas
            ),
        )

    def take_over(self, after: int, holder: str) -> int:
        """Lead, if nobody has since token `after`: the new token, or 0."""
        with self.writing() as execute:
            rows = execute(
                "update leader set token = token + 1, holder = ? where one = 1 and token = ? returning token",
                holder, after,
            )  # fmt: skip
        return int(rows[0][0]) if rows else 0

    def tell(self, replica: str, report: ReplicaReport, seen: Mapping[str, Seen]) -> None:
        """One replica's word: its report, and its evidence by rollout id; evidence that is left out stays."""
        with self.writing() as execute:
            execute(
                "insert into replica values (?, 1, ?) "
                "on conflict (id) do update set beat = replica.beat + 1, report = excluded.report",
                replica, audit.canonical(report).decode(),
            )  # fmt: skip
            for rollout, evidence in seen.items():
                execute(
                    "insert into evidence values (?, ?, ?) "
                    "on conflict (replica, rollout) do update set seen = excluded.seen",
                    replica, rollout, audit.canonical(evidence).decode(),
                )  # fmt: skip

    def leave(self, replica: str) -> None:
        """It stops in good order: nobody waits for it. Its evidence stays."""
        with self.writing() as execute:
            execute("delete from replica where id = ?", replica)

    def evidence(self) -> list[tuple[str, Seen]]:
        """Replica and what it has seen, one for each rollout, of replicas that are gone too."""
        with self.reading() as execute:
            rows = execute("select replica, seen from evidence order by replica, rollout")
        return [(replica, read_record(seen, Seen)) for replica, seen in rows]

    def propose(self, rollout: Rollout) -> None:
        """What is to start on its endpoint once the one before has ended, instead of what was proposed before.

        On disk before this returns. From any replica, unfenced. Gone once a rollout of this id is committed.
        """
        with self.writing() as execute:
            execute(
                "insert into proposed values (?, ?, ?) "
                "on conflict (endpoint) do update set id = excluded.id, record = excluded.record",
                rollout.endpoint, rollout.id, audit.canonical(rollout).decode(),
            )  # fmt: skip

    def withdraw(self, token: int, rollout_id: str) -> None:
        """A proposal that needs no start any more. Raises Fenced."""
        with self.writing() as execute:
            self._fence(execute, token)
            execute("delete from proposed where id = ?", rollout_id)

    def show(self, token: int, looks: Mapping[str, bytes]) -> None:
        """The leader's last looks, by rollout id, for the other replicas' admin APIs. Raises Fenced."""
        with self.writing() as execute:
            self._fence(execute, token)
            for rollout, look in looks.items():
                execute(
                    "insert into look values (?, ?) on conflict (rollout) do update set look = excluded.look",
                    rollout, look.decode(),
                )  # fmt: skip

    def looks(self) -> dict[str, bytes]:
        """What the leader showed, by rollout id."""
        with self.reading() as execute:
            return {rollout: look.encode() for rollout, look in execute("select rollout, look from look")}

    def forget(self, token: int, live: Collection[str], replicas: Sequence[str]) -> None:
        """Drop evidence and looks of rollouts that are not `live`, and replicas long gone. Raises Fenced."""
        with self.writing() as execute:
            self._fence(execute, token)
            for table in ("evidence", "look"):
                for (rollout,) in execute(f"select distinct rollout from {table}"):
                    if rollout not in live:
                        execute(f"delete from {table} where rollout = ?", rollout)
            for replica in replicas:
                execute("delete from replica where id = ?", replica)


def asked_of(row: Sequence[Any]) -> Asked:
    """A row of the table `asked`."""
    return msgspec.convert(dict(zip(Asked.__struct_fields__, row, strict=True)), Asked)


def read_record(record: str, kind: type[Any]) -> Any:
    """A stored value. Raises SettingsError."""
    try:
        return msgspec.json.decode(record, type=kind, strict=False)
    except msgspec.MsgspecError as error:
        raise SettingsError(f"rollouts: a stored {kind.__name__} cannot be read by this release: {error}") from None

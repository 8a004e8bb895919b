"""Where asynchronous requests and their answers are kept: a sink's table of answers, and beside it one of requests.

The sink writes `TABLE` (a row an answer, see `ANSWER`); `TABLE_request` is written here: by the door when it accepts,
by a consumer when a request has failed, by who tells callbacks. All calls block, may come from any thread, and raise
Unavailable while the database is away. See docs/decisions/0015-async-requests.md for their order.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import msgspec

from octoserve.connectors.queues import columns
from octoserve.connectors.queues.protocol import DeadLetter
from octoserve.core.signature import TensorSpec

ANSWER = TensorSpec("answer", "BYTES", (-1,))
"""What a sink stores of a whole request: the protocol's answer, as JSON."""
TOPIC = "topic"
"""In place of an address to call: the answer goes to the results' topic."""
State = Literal["pending", "done", "failed"]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it is accepted. digest: of its content; callback: whom to tell, `TOPIC`, or ""."""

    id: str
    digest: str
    callback: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request.

    accepted: when, Unix seconds; None for one that was taken and never accepted, or came another way
    answer:   JSON of the protocol's response, once it is done; error, attempts: once it has failed
    """

    id: str
    state: State
    digest: str | None = None
    accepted: float | None = None
    answer: bytes = b""
    error: str = ""
    attempts: int = 0
    callback: str = ""
    tries: int = 0
    """How often `callback` was told in vain."""

    def told(self) -> bytes:
        """What a poll, and a callback, says of it."""
        model, _, id = self.id.partition("/")
        about: dict[str, Any] = {"id": id, "model": model, "state": self.state}
        if self.state == "done":
            about["answer"] = msgspec.Raw(self.answer)
        elif self.state == "failed":
            about.update(error=self.error, attempts=self.attempts)
        return msgspec.json.encode(about)


class AnswerStore(Protocol):
    """What door, consumers and keeper ask. Opened by its first call, unless it is prepared."""

    def prepare(self) -> None:
        """Connect, and make the tables. Raises Unavailable, SettingsError."""
        ...

    def take(self, asked: Asked, now: float) -> Answer:
        """Make the id this request's, unless it is another's; what is known of it then."""
        ...

    def accept(self, asked: Asked, now: float) -> Answer:
        """The broker has it; what is known of it then. Its digest is another's if the id was taken meanwhile."""
        ...

    def look(self, id: str) -> Answer | None:
        """What is known of it; None for nothing that a client was promised."""
        ...

    def fail(self, letters: Sequence[DeadLetter]) -> None:
        """These are given up."""
        ...

    def owed(self, now: float, patience: float, limit: int) -> list[Answer]:
        """Whose callbacks are due. They are ours for `patience` seconds, then due again."""
        ...

    def told(self, id: str, again: float | None) -> None:
        """The callback was told; or not, and is due again at `again`."""
        ...

    def forget(self, before: float) -> int:
        """Remove what was done or failed before then, and what was taken and never accepted; how many requests."""
        ...

    def close(self) -> None:
        """The last call."""
        ...


def digest_of(*parts: bytes | str) -> str:
    """Of a request: equal for equal parts only."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(b"%d:" % len(data))
        whole.update(data)
    return whole.hexdigest()


Run = Callable[[str, Sequence[Any]], Sequence[Sequence[Any]]]


class Dialect(Protocol):
    """What SQLite and PostgreSQL do each in its own way. lock: a statement that keeps others from making tables."""

    mark: str
    lock: str

    def prepare(self) -> None:
        """The sink's own tables are there. Raises SettingsError, Unavailable."""
        ...

    def transaction(self) -> AbstractContextManager[Run]:
        """Within it, what runs a statement and returns its rows. Raises Unavailable on the way."""
        ...

    def moment(self, at: float) -> Any:
        """As the sink's `scored_at` is compared."""
        ...

    def close(self) -> None:
        """The last call."""
        ...


class SqlAnswers:
    """The store, over either."""

    def __init__(self, dialect: Dialect, table: str) -> None:
        self._sql = dialect
        self._lock = threading.Lock()
        self._opened = False
        name = table.rpartition(".")[2]
        self._a, self._r = columns.quoted(table), columns.quoted(f"{table}_request")
        self._indexes = [
            f"create index if not exists {columns.quoted(f'{name}_scored')} on {self._a} (scored_at)",
            f"create index if not exists {columns.quoted(f'{name}_request_due')} on {self._r} (due) "
            "where due is not null",
        ]
        self._known = (
            "select i.id, a.answer, r.digest, r.accepted, r.error, r.attempts, r.failed, r.callback, r.tries from "
            f"(select cast(? as text) as id) i left join {self._a} a on a.message_id = i.id "
            f"left join {self._r} r on r.message_id = i.id"
        )

    def _open(self) -> None:
        if self._opened:
            return
        self._sql.prepare()
        with self._sql.transaction() as run:
            if self._sql.lock:
                run(self._sql.lock, ())
            run(
                f"create table if not exists {self._r} (message_id text not null primary key, digest text, "
                "taken double precision, accepted double precision, callback text, due double precision, "
                "tries integer not null default 0, error text, attempts integer not null default 0, "
                "failed double precision)",
                (),
            )
            for index in self._indexes:
                run(index, ())
        self._opened = True

    def _ask(self, *statements: tuple[str, Sequence[Any]]) -> list[list[Sequence[Any]]]:
        """Their rows, of one transaction."""
        with self._lock:
            self._open()
            with self._sql.transaction() as run:
                return [list(run(text.replace("?", self._sql.mark), values)) for text, values in statements]

    def _told_of(self, rows: Sequence[Sequence[Any]]) -> Answer:
        id, answer, digest, accepted, error, attempts, failed, callback, tries = rows[0]
        done = answer is not None
        return Answer(
            id=id,
            state="done" if done else "failed" if failed is not None else "pending",
            digest=digest,
            accepted=accepted,
            answer=answer.encode() if done else b"",
            error="" if done else error or "",
            attempts=attempts or 0,
            callback=callback or "",
            tries=tries or 0,
        )

    def prepare(self) -> None:
        """See `AnswerStore.prepare`."""
        with self._lock:
            self._open()

    def take(self, asked: Asked, now: float) -> Answer:
        """See `AnswerStore.take`."""
        taking = (
            f"insert into {self._r} as r (message_id, digest, taken) values (?, ?, ?) "
            "on conflict (message_id) do update set digest = coalesce(r.digest, excluded.digest)"
        )
        return self._told_of(self._ask((taking, (asked.id, asked.digest, now)), (self._known, (asked.id,)))[1])

    def accept(self, asked: Asked, now: float) -> Answer:
        """See `AnswerStore.accept`."""
        accepting = (
            f"insert into {self._r} as r (message_id, digest, taken, accepted, callback, due) "
            "values (?, ?, ?, ?, ?, ?) on conflict (message_id) do update set "
            "digest = coalesce(r.digest, excluded.digest), accepted = coalesce(r.accepted, excluded.accepted), "
            "due = case when r.accepted is null then excluded.due else r.due end, "
            "callback = case when r.accepted is null then excluded.callback else r.callback end"
        )
        due = now if asked.callback else None
        values = (asked.id, asked.digest, now, now, asked.callback or None, due)
        return self._told_of(self._ask((accepting, values), (self._known, (asked.id,)))[1])

    def look(self, id: str) -> Answer | None:
        """See `AnswerStore.look`."""
        found = self._told_of(self._ask((self._known, (id,)))[0])
        return None if found.state == "pending" and found.accepted is None else found

    def fail(self, letters: Sequence[DeadLetter]) -> None:
        """See `AnswerStore.fail`."""
        failing = (
            f"insert into {self._r} as r (message_id, error, attempts, failed) values (?, ?, ?, ?) "
            "on conflict (message_id) do update set error = excluded.error, attempts = excluded.attempts, "
            "failed = excluded.failed"
        )
        self._ask(*((failing, (each.id, _why(each), each.attempts, each.buried)) for each in letters))

    def owed(self, now: float, patience: float, limit: int) -> list[Answer]:
        """See `AnswerStore.owed`."""
        over = (
            f"select message_id from {self._r} r where r.due <= ? and (r.failed is not null or exists "
            f"(select 1 from {self._a} a where a.message_id = r.message_id)) order by r.due limit ?"
        )
        claiming = f"update {self._r} set due = ? where message_id in ({over}) returning message_id"
        ids = [row[0] for row in self._ask((claiming, (now + patience, now, limit)))[0]]
        return [self._told_of(rows) for rows in self._ask(*((self._known, (id,)) for id in ids))]

    def told(self, id: str, again: float | None) -> None:
        """See `AnswerStore.told`."""
        self._ask((f"update {self._r} set due = ?, tries = tries + 1 where message_id = ?", (again, id)))

    def forget(self, before: float) -> int:
        """See `AnswerStore.forget`."""
        old = f"select message_id from {self._a} where scored_at < ?"
        never = f"not exists (select 1 from {self._a} a where a.message_id = r.message_id)"
        gone = self._ask(
            (
                f"delete from {self._r} as r where (r.failed < ? or (r.accepted is null and r.taken < ?)) and {never} "
                "returning message_id",
                (before, before),
            ),
            (f"delete from {self._r} where message_id in ({old})", (self._sql.moment(before),)),
            (f"delete from {self._a} where scored_at < ? returning message_id", (self._sql.moment(before),)),
        )
        return len(gone[0]) + len(gone[2])

    def close(self) -> None:
        """See `AnswerStore.close`."""
        with self._lock:
            self._sql.close()


def _why(letter: DeadLetter) -> str:
    return letter.history[-1].error if letter.history else "it ended its process each time it was tried"

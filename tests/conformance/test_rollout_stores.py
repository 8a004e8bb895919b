"""What every RolloutStore promises, over each of them: fenced, whole or not at all, and a log that shows tampering."""

from __future__ import annotations

import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octoserve.control.rollout.audit import PRUNED, AuditEntry, decode, verify, verify_lines
from octoserve.control.rollout.postgres_store import PostgresStore
from octoserve.control.rollout.store import FILE, MOST_ASKED, Conflict, Fenced, RolloutStore, SqliteStore
from octoserve.control.rollout.values import Command, Endpoint, Phase, Rollout
from octoserve.core.errors import Overloaded, SettingsError, Unavailable
from support import postgres
from support.rollouts import a_rollout, after, an_entry, ended
from support.scale import scale
from support.store_child import opened


@pytest.fixture
def store(place) -> Iterator[RolloutStore]:
    with closing(opened(place)) as store:
        yield store


def rows_of(place: str, sql: str) -> list[Any]:
    """Behind the store's back."""
    kind, _, rest = place.partition(" ")
    if kind == "sqlite":
        with closing(sqlite3.connect(Path(rest) / FILE, isolation_level=None)) as db:
            return db.execute(sql).fetchall()
    schema, _, url = rest.partition(" ")
    with psycopg.connect(url, autocommit=True, options=f"-csearch_path={schema}") as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def test_what_is_committed_is_there_after_a_restart(place, store):
    token = store.lead("a")
    rollout, endpoint = a_rollout(), Endpoint(name="m", stable=1, refused=(3, 4))
    store.commit(token, rollout, [an_entry(rollout, "started")], endpoint)
    following = after(rollout, phase=Phase.RUNNING, step=1, settled=7.25, verdicts=an_entry(rollout).verdicts)
    store.commit(token, following, [an_entry(following)])
    store.close()
    with closing(opened(place)) as again:
        assert again.live() == [following]
        assert again.rollout("r1") == following
        assert again.rollout("r2") is None
        assert again.history("m") == [following]
        assert again.endpoints() == {"m": endpoint}
        entries = again.audit("r1")
        assert [(e.seq, e.event, e.record) for e in entries] == [(1, "started", rollout), (2, "advanced", following)]
        assert entries[1].evidence == an_entry(following).evidence
        assert verify(entries) is None
        assert again.leader() == (token, "a")


def test_only_the_last_leader_writes(place, store):
    old = store.lead("a")
    store.commit(old, a_rollout(), [])
    with closing(opened(place)) as other:
        new = other.lead("b")
        assert new > old
        for write in (
            lambda: store.commit(old, after(a_rollout()), [an_entry(a_rollout())]),
            lambda: store.note(old, [an_entry(a_rollout())]),
            lambda: store.set_endpoint(old, Endpoint(name="m", stable=9)),
            lambda: store.commit(new + 1, after(a_rollout()), []),
        ):
            with pytest.raises(Fenced, match=f"b leads with {new}"):
                write()
        assert other.live() == [a_rollout()]
        assert other.endpoints() == {}
        assert other.audit("r1") == []
        other.commit(new, after(a_rollout()), [])


def test_nobody_writes_before_somebody_leads(store):
    with pytest.raises(Fenced, match="nobody leads"):
        store.commit(0, a_rollout(), [])


def test_a_record_follows_the_stored_one_or_is_refused(store):
    token = store.lead("a")
    first = a_rollout()
    for version in (1, -1):
        with pytest.raises(Conflict, match="not there"):
            store.commit(token, a_rollout(version=version), [])
    store.commit(token, first, [])
    second = after(first)
    for wrong in (first, after(second), after(first, endpoint="other")):
        with pytest.raises(Conflict, match="version 0"):
            store.commit(token, wrong, [an_entry(wrong)])
    store.commit(token, second, [])
    assert store.live() == [second]
    assert store.audit("r1") == []


def test_ended_is_final(store):
    token = store.lead("a")
    last = ended(a_rollout())
    store.commit(token, a_rollout(), [])
    store.commit(token, last, [])
    with pytest.raises(Conflict, match="has ended"):
        store.commit(token, after(last, phase=Phase.RUNNING), [])
    assert store.live() == []
    assert store.rollout("r1") == last


def test_one_live_rollout_an_endpoint(place, store):
    token = store.lead("a")
    store.commit(token, a_rollout("r1"), [])
    with pytest.raises(Conflict, match=r"r2: r1 of endpoint 'm' has not ended"):
        store.commit(token, a_rollout("r2"), [])
    store.commit(token, a_rollout("r3", "other"), [])
    store.commit(token, ended(a_rollout("r1")), [])
    store.commit(token, a_rollout("r2", started=2000.0), [])
    assert [rollout.id for rollout in store.history("m")] == ["r2", "r1"]
    assert [rollout.id for rollout in store.history("m", limit=1)] == ["r2"]
    assert [rollout.id for rollout in store.live()] == ["r3", "r2"]
    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.UniqueViolation)):
        rows_of(place, "update rollout set ended = 0 where id = 'r1'")  # the index holds whoever writes


def test_commands_wait_for_the_commit_that_answers_them(place, store):
    token = store.lead("a")
    with closing(opened(place)) as replica:
        one = replica.ask("m", Command.APPROVE, "ada", "looks\0 well", "r1/0")
        two = replica.ask("m", Command.ABORT, "bob")
        assert replica.ask("other", Command.PAUSE, "ada") > two > one
    asked = store.asked()
    assert [(a.command, a.who, a.reason, a.fence) for a in asked[:2]] == [
        (Command.APPROVE, "ada", "looks well", "r1/0"),
        (Command.ABORT, "bob", "", ""),
    ]
    assert abs(asked[0].time - time.time()) < 60
    with pytest.raises(Conflict):
        store.commit(token, a_rollout(version=5), [], commands_done=[one])
    assert len(store.asked()) == 3
    store.commit(token, a_rollout(), [], commands_done=[one])
    store.note(token, [], commands_done=[two])
    assert [a.endpoint for a in store.asked()] == ["other"]
    last = store.asked()[0].seq
    store.note(token, [], commands_done=[last])
    assert store.ask("m", Command.PAUSE, "ada") > last, "a number never comes twice"


def test_a_change_by_hand_is_recorded_whoever_leads(store):
    store.note(store.lead("a"), [an_entry(a_rollout(), "look")])
    endpoint = a_rollout().endpoint
    for event in ("unload", "load"):
        store.record(AuditEntry(rollout="", endpoint=endpoint, time=1.0, who="ada", event=event))
    lines = [decode(line) for line in store.lines(endpoint)]
    assert [(line.seq, line.who, line.event) for line in lines[1:]] == [(2, "ada", "unload"), (3, "ada", "load")]
    assert store.verify(endpoint) is None


def test_a_flood_of_commands_keeps_no_abort_out(store):
    for _ in range(MOST_ASKED):
        store.ask("m", Command.APPROVE, "script")
    with pytest.raises(Overloaded, match="approve waits already"):
        store.ask("m", Command.APPROVE, "script")
    store.ask("m", Command.ABORT, "ada")


def test_the_chain_goes_on_over_rollouts_of_an_endpoint(store):
    token = store.lead("a")
    first, second, other = a_rollout("r1"), a_rollout("r2", started=2000.0), a_rollout("r3", "other")
    store.commit(token, first, [an_entry(first), an_entry(first, "look"), an_entry(other, "look")])
    store.commit(token, ended(first), [an_entry(ended(first), "ended")])
    store.note(token, [an_entry(other, "look")])
    store.set_endpoint(token, Endpoint(name="m", stable=2), [an_entry(first, "stable set", rollout="")])
    store.commit(token, second, [an_entry(second, "started")])
    assert [entry.seq for entry in store.audit("r1")] == [1, 2, 3]
    assert [entry.seq for entry in store.audit("r2")] == [5]
    assert [entry.seq for entry in store.audit("r3")] == [1, 2]
    assert len(store.lines("m")) == 5
    assert verify_lines(store.lines("m")) is None
    assert store.lines("m", after=2, limit=2) == store.lines("m")[2:4]
    assert store.verify("m") is None
    assert store.verify("other") is None
    assert store.verify("unheard of") is None


@pytest.mark.parametrize(
    ("tamper", "broken"),
    [
        ("update audit set line = replace(line, 'HOLD', 'PASS') where seq = 3", 3),
        ("update audit set line = replace(line, 'controller', 'someone') where seq = 1", 1),
        ("delete from audit where seq = 4", 5),
        ("delete from audit where seq < 3", 1),
        ("update audit set line = (select b.line from audit b where b.seq = 2) where seq = 5", 2),
        ("update audit set line = 'nothing' where seq = 2", 2),
    ],
)
def test_tampering_shows(place, store, tamper, broken):
    store.note(store.lead("a"), [an_entry(a_rollout(), "look") for _ in range(6)])
    assert store.verify("m") is None
    rows_of(place, tamper)
    assert store.verify("m") == broken


def lived(store: RolloutStore, token: int, id: str, ended_at: float, looks: int = 2) -> None:
    """A rollout of m from its start to its end."""
    rollout = a_rollout(id, started=ended_at - 10)
    store.commit(token, rollout, [an_entry(rollout, "started")])
    store.note(token, [an_entry(rollout, "look")] * looks)
    last = after(rollout, phase=Phase.ENDED, entered=ended_at)
    store.commit(token, last, [an_entry(last, "ended")])


def test_old_rollouts_go_whole_and_an_anchor_stays(place, store):
    token = store.lead("a")
    for number in range(1, 5):
        lived(store, token, f"r{number}", 1000.0 * number)
    store.note(token, [an_entry(a_rollout("r9", "other"), "look")])
    whole = store.lines("m")
    assert store.prune(token, "m", before=1000.0) == 0, "what ended then did not end before"
    assert store.prune(token, "m", before=2500.0) == 2
    assert [rollout.id for rollout in store.history("m")] == ["r4", "r3"]
    assert store.rollout("r1") is None
    assert store.audit("r2") == []
    assert len(store.audit("r3")) == 4
    left = store.lines("m")
    assert left[:-1] == whole[8:], "not a byte of what stays has changed"
    anchor = decode(left[-1])
    assert (anchor.event, anchor.rollout, anchor.seq) == (PRUNED, "", 17)
    assert anchor.view == {
        "seq": 8,
        "digest": decode(whole[7]).digest,
        "rollouts": {"r1": "1 -> 2: ", "r2": "1 -> 2: "},
    }
    assert verify_lines(left) is None
    assert store.verify("m") is None
    assert store.verify("other") is None
    assert store.prune(token, "m", before=2500.0) == 0
    # Once more, and the chain goes on.
    assert store.prune(token, "m", before=1e9) == 1, "the last one stays, however old"
    lived(store, token, "r5", 9000.0)
    assert store.prune(token, "m", before=1e9) == 1, "and goes once there is a later one"
    assert store.verify("m") is None
    lived(store, token, "r6", 9900.0)
    assert store.prune(token, "m", before=1e9) == 1
    assert store.verify("m") is None
    events = [decode(line).event for line in store.lines("m")]
    assert events == [PRUNED, "started", "look", "look", "ended", PRUNED], "older anchors went with what was after them"
    with closing(opened(place)) as again:
        assert again.verify("m") is None
        token = again.lead("b")
    with pytest.raises(Fenced):
        store.prune(token - 1, "m", before=1e9)


def test_what_still_matters_is_not_pruned(store):
    token = store.lead("a")
    live = a_rollout("live")
    lived(store, token, "first", 1000.0)
    store.commit(token, live, [an_entry(live, "started")])
    lived_long = an_entry(a_rollout("first"), "dropped")
    store.note(token, [lived_long])  # of the first one, after the next has begun
    assert store.prune(token, "m", before=1e9) == 0, "a rollout goes whole, and what began before its end stays"
    store.commit(token, after(live, phase=Phase.ENDED, entered=2000.0), [])
    lived(store, token, "last", 3000.0)
    assert store.prune(token, "m", before=1500.0) == 0
    assert store.prune(token, "m", before=2500.0) == 2
    assert store.verify("m") is None


@pytest.mark.parametrize(
    ("tamper", "broken"),
    [
        ("delete from audit where seq = 9", 9),
        ("delete from audit where seq < 12", 9),
        ("delete from audit where seq = 17", 1),
        ("update audit set line = replace(line, 'r1, r2', 'r2, r1') where seq = 17", 17),
        ("update audit set line = replace(line, 'HOLD', 'PASS') where seq = 10", 10),
    ],
)
def test_tampering_shows_in_what_is_left(place, store, tamper, broken):
    token = store.lead("a")
    for number in range(1, 5):
        lived(store, token, f"r{number}", 1000.0 * number)
    assert store.prune(token, "m", before=2500.0) == 2
    assert store.verify("m") is None
    rows_of(place, tamper)
    assert store.verify("m") == broken


def test_lines_of_one_rollout_come_in_pages(store):
    token = store.lead("a")
    for number in (1, 2):
        lived(store, token, f"r{number}", 1000.0 * number, looks=5)
    assert store.lines("m", rollout_id="r2") == store.lines("m")[7:]
    page = store.lines("m", rollout_id="r2", limit=3)
    assert page == store.lines("m")[7:10]
    assert store.lines("m", after=decode(page[-1]).seq, limit=9, rollout_id="r2") == store.lines("m")[10:]
    assert store.lines("m", after=14, rollout_id="r2") == []
    assert store.lines("other", rollout_id="r2") == []


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["commit", "stale", "skip", "end", "new", "lead", "note"]), st.sampled_from(["m", "other"])
    ),
    max_size=25,
)


@settings(max_examples=scale(15, 100))  # of up to 25 commits to a disk each
@given(operations=OPERATIONS)
def test_any_order_of_calls_leaves_what_a_plain_model_of_it_has(new_place, operations):
    with closing(opened(new_place())) as store:
        tokens = [store.lead("first")]
        live: dict[str, Rollout] = {}
        logged = {"m": 0, "other": 0}
        for number, (what, name) in enumerate(operations):
            rollout = live.get(name)
            new = a_rollout(f"r{number}", name, started=float(number))
            if what == "lead":
                tokens.append(store.lead("next"))
                assert tokens[-1] > tokens[-2]
            elif what == "note":
                store.note(tokens[-1], [an_entry(new)] * 2)
                logged[name] += 2
            elif what == "stale" and len(tokens) > 1:
                with pytest.raises(Fenced):
                    store.commit(tokens[-2], after(rollout or new), [an_entry(new)])
            elif what == "skip" or (what == "new" and rollout is not None):
                with pytest.raises(Conflict):
                    store.commit(tokens[-1], new if what == "new" else after(after(rollout or new)), [an_entry(new)])
            elif what in ("new", "commit", "end") and (rollout is not None or what == "new"):
                put = new if rollout is None else ended(rollout) if what == "end" else after(rollout)
                store.commit(tokens[-1], put, [an_entry(put)])
                logged[name] += 1
                live[name] = put
                if what == "end":
                    del live[name]
            assert sorted(store.live(), key=lambda r: r.id) == sorted(live.values(), key=lambda r: r.id)
        for name, count in logged.items():
            assert len(store.lines(name)) == count
            assert store.verify(name) is None


def test_of_two_replicas_that_race_one_commits(place):
    for round_ in range(scale(5, 25)):
        rollout = a_rollout(f"r{round_}", f"m{round_}")
        ready, won, lost = threading.Barrier(2), [], []

        def replica(rollout=rollout, ready=ready, won=won, lost=lost) -> None:
            with closing(opened(place)) as store:
                ready.wait()
                token = store.lead("replica")
                ready.wait()
                try:
                    store.commit(token, rollout, [an_entry(rollout)])
                    won.append(token)
                except Fenced:
                    lost.append(token)

        run_together(replica, replica)
        assert len(won) == len(lost) == 1
        assert won > lost, "the later one"


def test_a_storm_of_take_overs_loses_and_doubles_nothing(place):
    committed: list[tuple[int, int]] = []

    def replica() -> None:
        with closing(opened(place)) as store:
            for _ in range(15):
                token = store.lead("replica")
                known = store.rollout("r1")
                try:
                    put = a_rollout() if known is None else after(known)
                    store.commit(token, put, [an_entry(put)])
                    committed.append((token, put.version))
                except (Fenced, Conflict):
                    pass

    opened(place).close()
    run_together(replica, replica, replica)
    with closing(opened(place)) as store:
        versions = sorted(version for _, version in committed)
        assert versions == list(range(len(committed))), "each version once, none left out"
        assert sorted(committed) == sorted(committed, key=lambda pair: pair[1]), "a later token, a later version"
        assert len(store.audit("r1")) == len(committed)
        assert store.verify("m") is None
        assert store.leader()[0] == 45


def run_together(*works: Callable[[], None]) -> None:
    """In a thread each; what one raises is raised here."""
    raised: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if raised:
        raise raised[0]


def test_many_may_open_a_new_place_at_once(new_place):
    for _ in range(scale(5, 50)):
        place, ready = new_place(), threading.Barrier(4)

        def replica(place=place, ready=ready) -> None:
            ready.wait()
            with closing(opened(place)) as store:
                assert store.live() == []

        run_together(*[replica] * 4)


def test_a_store_of_a_later_release_is_left_alone(place, store):
    store.lead("a")
    rows_of(place, "update leader set format = 99")
    with pytest.raises(SettingsError, match="format 99"), closing(opened(place)) as later:
        later.live()


# What only one of them has


def test_sqlite_is_private_and_durable(tmp_path):
    with closing(SqliteStore(tmp_path / "state")) as store:
        assert stat.S_IMODE((tmp_path / "state" / FILE).stat().st_mode) == 0o600
        assert store._db.execute("pragma synchronous").fetchone() == (2,)
        assert store._db.execute("pragma journal_mode").fetchone() == ("wal",)


def test_sqlite_that_cannot_be_opened_names_the_setting(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(SettingsError, match="--state-dir"):
        SqliteStore(tmp_path)


def test_sqlite_that_was_removed_takes_nothing_more(tmp_path):
    with closing(SqliteStore(tmp_path)) as store:
        token = store.lead("a")
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(Unavailable, match="removed"):
            store.commit(token, a_rollout(), [])


def test_sqlite_that_is_held_by_another_is_unavailable(tmp_path):
    with closing(SqliteStore(tmp_path)) as store:
        store._db.execute("pragma busy_timeout = 10")
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("begin immediate")
            with pytest.raises(Unavailable, match="locked"):
                store.lead("a")
            other.execute("rollback")
        assert store.lead("a") == 1


def test_postgres_cuts_off_a_leader_that_hangs(server):
    schema = f"t{uuid4().hex}"
    with closing(PostgresStore(server, schema)) as hung, closing(PostgresStore(server, schema)) as successor:
        token = hung.lead("hung")
        assert hung._connection is not None
        hung._connection.execute("set idle_in_transaction_session_timeout = 200")

        def hang() -> None:
            with hung.writing() as execute:
                hung._fence(execute, token)
                assert successor.lead("successor") == token + 1
                execute("select 1")

        with pytest.raises(Unavailable, match="nothing was changed"):
            hang()
        with pytest.raises(Fenced):
            hung.commit(token, a_rollout(), [])
        rows_of(f"postgres {schema} {server}", f"drop schema {schema} cascade")


def test_postgres_shows_no_password(server):
    for url, error in (
        ("postgresql://u:hush%2Fhush@127.0.0.1:1/db", Unavailable),
        ("postgresql://u:hush%ZZhush@127.0.0.1/db", SettingsError),
        ("postgresql://u:hushhush@127.0.0.1/db?hushhush=1", SettingsError),
        ("mysql://u:hushhush@127.0.0.1/db", SettingsError),
    ):
        with pytest.raises(error) as raised:
            PostgresStore(url).live()
        assert "hush" not in str(raised.value)
        assert "hush" not in repr(raised.value.__cause__)
    with pytest.raises(Unavailable, match="authentication failed") as raised:
        PostgresStore(server.replace(postgres.PASSWORD.partition("/")[0], "hush")).live()
    assert "hush" not in str(raised.value)


def test_postgres_without_its_client_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsError, match=r"pip install 'octoserve\[postgres\]'"):
        PostgresStore("postgresql://127.0.0.1/db")


def test_postgres_refuses_a_schema_that_is_no_name():
    with pytest.raises(SettingsError, match="schema"):
        PostgresStore("postgresql://127.0.0.1/db", 'x"; drop table audit; --')

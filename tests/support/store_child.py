"""A controller that does nothing but commit, to be killed: `python -m support.store_child PLACE`.

Every decision changes the record, the endpoint and the log, and answers one command. Prints the version it has
committed; ends a rollout and starts the next one at each tenth.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from octoserve.control.rollout.postgres_store import PostgresStore
from octoserve.control.rollout.store import RolloutStore, SqliteStore
from octoserve.control.rollout.values import Command, Endpoint, Rollout
from support.rollouts import a_rollout, after, an_entry, ended

PER_ROLLOUT = 10


def opened(place: str) -> RolloutStore:
    """`sqlite FOLDER` or `postgres SCHEMA URL`."""
    kind, _, rest = place.partition(" ")
    if kind == "sqlite":
        return SqliteStore(Path(rest))
    schema, _, url = rest.partition(" ")
    return PostgresStore(url, schema)


def following(rollout: Rollout) -> Rollout:
    """The next record: one version on, the end at PER_ROLLOUT, then a new rollout."""
    if rollout.version + 1 == PER_ROLLOUT:
        return ended(rollout)
    if rollout.version == PER_ROLLOUT:
        return a_rollout(f"r{int(rollout.id[1:]) + 1}", started=rollout.started + 1)
    return after(rollout)


def stable_of(rollout: Rollout) -> int:
    """A number that tells how many commits there have been."""
    return int(rollout.id[1:]) * (PER_ROLLOUT + 1) + rollout.version + 1


def main(place: str) -> None:
    store = opened(place)
    token = store.lead("child")
    (last,) = store.history("m", 1) or [None]
    while True:
        rollout = a_rollout("r0") if last is None else following(last)
        number = stable_of(rollout)
        asked = store.ask("m", Command.APPROVE, "ada", f"{os.getpid()} for {number}")
        entries = [an_entry(rollout, view={"number": number}), an_entry(rollout, "look", view={"number": number})]
        store.commit(token, rollout, entries, Endpoint(name="m", stable=number), [asked])
        print(number, flush=True)
        last = rollout


if __name__ == "__main__":
    main(sys.argv[1])

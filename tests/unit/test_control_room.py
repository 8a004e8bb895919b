"""The control loop over a real folder and store; the fleet does at once what it is told."""

from __future__ import annotations

import asyncio
import os
import shutil
from types import SimpleNamespace

import pytest

from octoserve.control.snapshot import ModelWishes, WorkerView
from octoserve.control.store import FILE, Store
from octoserve.core.errors import BrokenVersion, InvalidInput, NotFound, Unavailable, Unsupported
from octoserve.lifecycle.states import State, VersionReport
from octoserve.patterns.online.supervisor import control_room
from octoserve.patterns.online.supervisor.control_room import ControlRoom
from octoserve.repository.layout import ARTIFACTS
from octoserve.repository.local import LocalRepository


class Fleet:
    """One worker in which everything loads."""

    def __init__(self):
        self.desired, self.slots, self.pushes = None, [0], 0

    def serving(self):
        if self.desired is None:
            return [SimpleNamespace(generation=0, view=lambda: WorkerView(index=0, generation=0))]
        done = self.desired
        reports = {
            (r.model, r.version): VersionReport(r.model, r.version, State.READY, "", r.attempt) for r in done.versions
        }
        view = WorkerView(index=0, generation=done.generation, reports=reports)
        return [SimpleNamespace(generation=done.generation, view=lambda: view)]

    def awaiting_adoption(self):
        return False

    def push(self, desired):
        self.desired = desired
        self.pushes += 1
        asyncio.get_running_loop().call_soon(self.room.wake)


class House:
    def __init__(self, root, wishes=None, wall=lambda: 1e12):
        self.root, self.state = root, root.parent / "state"
        root.mkdir(exist_ok=True)
        self.fleet = Fleet()
        repository = LocalRepository(root, ARTIFACTS, wall=wall)
        self.room = ControlRoom(
            repository, lambda: Store(self.state, root), self.fleet, ModelWishes(), wishes or {}, scan_every=0.05
        )
        self.fleet.room = self.room

    def put(self, version, name="model.onnx", content="model", model="m"):
        folder = self.root / model / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    def run(self, work, limit=10.0):
        async def main():
            await self.room.open(adopting=False)
            running = asyncio.ensure_future(self.room.run())
            try:
                async with asyncio.timeout(limit):
                    return await work()
            finally:
                running.cancel()
                await self.room.close()

        return asyncio.run(main())

    async def until(self, reached):
        while not reached():
            await asyncio.sleep(0.01)

    def routes(self):
        return {plan.endpoint: plan.arms[0].version for plan in self.room.current.plans}

    async def settled(self):
        await self.until(self.room.initially_settled)


@pytest.fixture
def house(tmp_path):
    return House(tmp_path / "models")


def test_a_name_that_is_no_text_stops_no_step(house):
    house.put(1)
    os.mkdir(os.fsencode(house.root) + b"/bad\xff")
    os.mkdir(os.fsencode(house.root) + b"/bad\xff/1")
    (house.root / "odd" / "1").mkdir(parents=True)
    with open(os.fsencode(house.root) + b"/odd/1/\xfe.tmp", "w"):
        pass
    house.run(lambda: house.until(lambda: house.routes() == {"m": 1}))


def test_files_that_cannot_be_read_are_said_and_read_no_second_time(house, monkeypatch):
    house.put(1)
    house.put(1, model="secret")
    read, real = [], house.room.repository.digest

    def unreadable(folder):
        read.append(folder)
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(
        house.room.repository,
        "digest",
        lambda version: real(version, unreadable) if version.model == "secret" else real(version),
    )

    async def work():
        await house.settled()
        await asyncio.sleep(0.3)
        assert len(read) == 1
        (entry,) = [e for e in house.room.current.catalog if e.model == "secret"]
        assert entry.state == "UNAVAILABLE"
        assert "Permission denied" in entry.reason
        with pytest.raises(BrokenVersion, match="Permission denied"):
            await house.room.load("secret")
        assert len(read) == 2

    house.run(work)


def test_a_digest_that_came_to_nothing_wakes_nobody(house, monkeypatch):
    house.put(1)
    calls = []
    monkeypatch.setattr(house.room.repository, "digest", lambda version: calls.append(1) or False)

    async def work():
        await house.until(lambda: calls)
        await asyncio.sleep(0.5)
        assert len(calls) < 15

    house.run(work)


def test_a_stale_neighbour_holds_up_no_start(tmp_path, monkeypatch):
    monkeypatch.setattr(control_room, "FIRST_PATIENCE", 0.5)
    monkeypatch.setattr(control_room, "RIVAL_PATIENCE", 0.2)
    house = House(tmp_path / "models")
    house.put(1)
    house.put(2)
    house.put(2, name="x.tmp")
    house.put(1, model="other", name="x.tmp")
    house.run(house.settled, limit=5)
    assert house.routes() == {"m": 1}


def test_accepted_digest_counts_for_the_next_load(house):
    house.put(1)

    async def work():
        await house.until(lambda: ("m", 1) in house.room._digests)
        house.put(1, content="other")
        await house.room.unload("m")
        with pytest.raises(BrokenVersion, match="its files changed"):
            await house.room.load("m")
        (version,) = house.room.scan.models["m"]
        store = Store(house.state, house.root)
        store.record_digest(("m", 1), version.digest, replace=True)
        store.close()
        await house.room.load("m")

    house.run(work)


def test_load_of_what_is_loaded_changes_nothing(house):
    house.put(1)

    async def work():
        await house.settled()
        before = house.room.current
        await house.room.load("m")
        assert house.room.current is before
        await house.room.unload("m")
        await house.room.load("m")
        assert house.room.current.generation > before.generation

    house.run(work)


def test_load_while_the_repository_is_away(house):
    house.put(1)

    async def work():
        await house.settled()
        shutil.move(house.root, house.root.with_name("away"))
        with pytest.raises(Unavailable, match="cannot read the repository"):
            await house.room.load("m")

    house.run(work)


def test_labels_come_and_go(tmp_path):
    house = House(tmp_path / "models", {"m": ModelWishes(labels={"stable": 1})})
    house.put(1)

    async def work():
        await house.settled()
        await house.room.set_label("m", "trial", 1)
        await house.room.set_label("m", "stable", 1)
        await house.room.remove_label("m", "trial")
        await house.room.remove_label("m", "stable")
        assert house.room.current.labels == {"m": {"stable": 1}}
        with pytest.raises(NotFound, match="no label"):
            await house.room.remove_label("m", "trial")
        with pytest.raises(Unsupported, match="spec"):
            await house.room.remove_label("m", "stable")
        for name in ("1", "a b", "", "x" * 201):
            with pytest.raises(InvalidInput, match="label"):
                await house.room.set_label("m", name, 1)

    house.run(work)
    assert Store(house.state, house.root).labels() == {}


def test_a_database_that_was_removed_is_made_again(house):
    house.put(1)
    house.put(1, model="held")

    async def work():
        await house.settled()
        await house.room.set_label("m", "stable", 1)
        await house.room.unload("held")
        shutil.rmtree(house.state)
        await house.until((house.state / FILE).exists)
        await house.room.set_label("m", "trial", 1)

    house.run(work)
    store = Store(house.state, house.root)
    assert store.labels() == {"m": {"stable": 1, "trial": 1}}
    assert store.holds() == {"held"}
    assert store.digests().keys() == {("m", 1), ("held", 1)}
    assert store.aspired().generation >= house.room.current.generation

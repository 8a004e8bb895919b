"""The durable state: what is kept, for whom, and that the generation never goes back."""

from __future__ import annotations

import shutil
import sqlite3
import stat

import pytest

from octoserve.control.snapshot import Aspired
from octoserve.control.store import FILE, Store
from octoserve.core.errors import SettingsError
from octoserve.lifecycle.states import VersionRef
from octoserve.routing.plan import RoutePlan


def test_everything_survives_a_restart(tmp_path):
    store = Store(tmp_path / "state", tmp_path / "models")
    store.record_digest(("m", 1), "sha256:a")
    store.hold("m")
    store.set_label("m", "stable", 1)
    aspired = Aspired(generation=7, versions=(VersionRef("m", 1, "/p", "d"),), plans=(RoutePlan.to("m", 1, 6),))
    store.commit(aspired)
    store.close()
    store = Store(tmp_path / "state", tmp_path / "models")
    assert store.digests() == {("m", 1): "sha256:a"}
    assert store.holds() == {"m"}
    assert store.labels() == {"m": {"stable": 1}}
    assert store.aspired() == aspired


def test_first_digest_stays_unless_it_is_accepted(tmp_path):
    store = Store(tmp_path, tmp_path)
    store.record_digest(("m", 1), "a")
    store.record_digest(("m", 1), "b")
    assert store.digests() == {("m", 1): "a"}
    store.record_digest(("m", 1), "b", replace=True)
    assert store.digests() == {("m", 1): "b"}


def test_release_ends_a_hold(tmp_path):
    store = Store(tmp_path, tmp_path)
    store.release("m")
    store.hold("m")
    store.hold("m")
    store.release("m")
    assert store.holds() == frozenset()


def test_repositories_and_services_are_kept_apart(tmp_path):
    one, two = Store(tmp_path, tmp_path / "a", "s1"), Store(tmp_path, tmp_path / "b", "s2")
    one.hold("m")
    one.commit(Aspired(generation=9))
    assert two.holds() == frozenset()
    assert two.aspired().versions == ()
    assert two.aspired().generation == 9, "a new service starts above what was seen"


def test_the_generation_never_goes_back(tmp_path):
    store = Store(tmp_path, tmp_path)
    store.commit(Aspired(generation=5))
    store.commit(Aspired(generation=4))
    assert store.aspired().generation == 5


def test_a_state_of_another_release_keeps_its_number(tmp_path):
    store = Store(tmp_path, tmp_path)
    store.commit(Aspired(generation=5))
    sqlite3.connect(tmp_path / FILE).execute("update service set aspired = x'00'").connection.commit()
    assert store.aspired() == Aspired(generation=5)


def test_the_file_is_private_and_durable(tmp_path):
    store = Store(tmp_path / "state", tmp_path)
    assert stat.S_IMODE((tmp_path / "state" / FILE).stat().st_mode) == 0o600
    assert store._db.execute("pragma synchronous").fetchone() == (2,)
    assert store._db.execute("pragma journal_mode").fetchone() == ("wal",)


def test_an_unusable_state_directory_is_said(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(SettingsError, match="--state-dir"):
        Store(tmp_path, tmp_path)


def test_a_label_is_removed(tmp_path):
    store = Store(tmp_path, tmp_path)
    store.set_label("m", "stable", 1)
    store.set_label("m", "trial", 2)
    store.remove_label("m", "trial")
    assert store.labels() == {"m": {"stable": 1}}


def test_a_file_that_was_removed_is_made_again_from_what_is_known(tmp_path):
    store = Store(tmp_path / "state", tmp_path)
    store.hold("old")
    assert store.is_there()
    shutil.rmtree(tmp_path / "state")
    assert not store.is_there()
    other = Store(tmp_path / "state", tmp_path)
    assert not store.is_there(), "another service has made its own"
    store.make_again({("m", 1): "sha256:a"}, {"m"}, {"m": {"stable": 1}}, Aspired(generation=7))
    assert store.is_there()
    assert other.holds() == {"m"}
    assert other.digests() == {("m", 1): "sha256:a"}
    assert other.labels() == {"m": {"stable": 1}}
    assert store.aspired().generation == 7

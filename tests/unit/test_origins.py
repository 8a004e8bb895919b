"""The cache of a repository elsewhere: what is fetched when, what stays, what an outage changes (nothing)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.errors import SettingsError
from octoserve.origins import cache as cache_module
from octoserve.origins.cache import Cache
from octoserve.origins.cached import CachedRepository
from octoserve.origins.follower import Follower
from octoserve.origins.objects import ObjectOrigin, name_problem
from octoserve.origins.opening import root_here
from octoserve.origins.protocol import Away
from octoserve.repository.layout import ARTIFACTS, DiskState, Refused
from support.origins import Mirror, Shelf, newest

ONE, TWO = ("m", 1), ("m", 2)


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    shelf = Shelf()
    shelf.put(ONE, model_onnx=b"one")
    return Mirror(tmp_path, shelf)


def test_a_version_is_taken_once_it_rests(mirror: Mirror) -> None:
    assert mirror.look().young == [ONE]
    assert mirror.look(after=1.9).young == [ONE]
    mirror.shelf.put(ONE, model_yaml=b"threads: 2")
    assert mirror.look(after=1.0).young == [ONE], "it grew"
    assert mirror.look(after=2.1).fetched == [ONE]
    assert mirror.content(ONE) == {"model.onnx": b"one", "model.yaml": b"threads: 2"}
    assert mirror.look(after=100).fetched == []
    assert len(mirror.shelf.fetched) == 2, "what is here is not fetched again"


def test_what_somebody_vouches_for_is_taken_at_once(mirror: Mirror) -> None:
    assert mirror.look(trust="m").fetched == [ONE]
    mirror.shelf.put(("n", 1), model_onnx=b"n")
    mirror.shelf.whole = True
    assert mirror.look().fetched == [("n", 1)]


@pytest.mark.parametrize("restart", [False, True])
def test_an_outage_changes_nothing(mirror: Mirror, restart: bool) -> None:
    mirror.settled()
    said = mirror.cache.said
    if restart:
        mirror.restart()
    mirror.shelf.away = "no route"
    for _ in range(3):
        with pytest.raises(Away, match="no route"):
            mirror.look(after=60)
    assert mirror.content(ONE) == {"model.onnx": b"one"}
    assert mirror.cache.said == said
    mirror.shelf.away = ""
    mirror.shelf.put(TWO, model_onnx=b"two")
    assert mirror.settled().fetched == [TWO]


def test_an_empty_answer_is_taken_for_a_failure(mirror: Mirror) -> None:
    mirror.settled()
    files, mirror.shelf.files = mirror.shelf.files, {}
    for _ in range(3):
        with pytest.raises(Away, match="shows no version at all, and 1 are in the cache"):
            mirror.look(after=60)
    assert mirror.content(ONE)
    mirror.shelf.files = files
    assert mirror.look().removed == []


def test_what_is_gone_is_gone_after_two_looks(mirror: Mirror) -> None:
    mirror.shelf.put(("n", 1), model_onnx=b"n")
    mirror.settled()
    kept = mirror.shelf.files.pop(("n", 1))
    assert mirror.look().removed == []
    mirror.shelf.files["n", 1] = kept
    mirror.look()
    del mirror.shelf.files["n", 1]
    assert mirror.look().removed == []
    assert mirror.look().removed == [("n", 1)]
    assert not (mirror.cache.root / "n").exists()
    assert mirror.cache.record(("n", 1)) is None


def test_only_what_is_wanted_is_here(mirror: Mirror) -> None:
    for number in range(2, 8):
        mirror.shelf.put(("m", number), model_onnx=b"%d" % number)
    mirror.shelf.aliases = {"m": {"champion": 2}}
    mirror.settled(newest(3))
    assert mirror.cache.cached() == {("m", n) for n in (2, 5, 6, 7)}
    mirror.shelf.aliases = {"m": {"champion": 6}}
    reader = Cache(mirror.folder, mirror.shelf)
    reader.hold([("m", 5)])
    assert mirror.look(newest(1)).removed == [("m", 2)], "one is read by another"
    reader.hold([])
    assert mirror.look(newest(1)).removed == [("m", 5)]
    assert mirror.cache.cached() == {("m", 6), ("m", 7)}


def test_only_what_changed_is_fetched_and_the_same_bytes_change_nothing(mirror: Mirror) -> None:
    mirror.shelf.put(ONE, model_yaml=b"threads: 2")
    mirror.settled()
    place = mirror.cache.place(ONE)
    inode = place.stat().st_ino
    mirror.shelf.fetched.clear()
    mirror.shelf.put(ONE, model_yaml=b"threads: 2")
    assert mirror.settled().fetched == [ONE]
    assert place.stat().st_ino == inode, "the very folder"
    mirror.shelf.put(ONE, model_yaml=b"threads: 3")
    mirror.settled()
    assert mirror.content(ONE) == {"model.onnx": b"one", "model.yaml": b"threads: 3"}
    assert mirror.shelf.fetched == ["m/1/model.yaml"] * 2
    place = mirror.cache.place(ONE)
    (place / "model.onnx").write_bytes(b"???")
    mirror.shelf.put(ONE, model_yaml=b"threads: 4")
    mirror.settled()
    assert mirror.content(ONE)["model.onnx"] == b"one", "what is damaged here is not passed on"


def test_one_that_cannot_be_fetched_does_not_stand_in_the_way(mirror: Mirror) -> None:
    mirror.shelf.put(TWO, model_onnx=b"two")
    mirror.shelf.put(("a", 1), model_onnx=b"a")
    mirror.shelf.cut = {("a", 1)}
    mirror.look()
    first = mirror.look(after=5)
    assert (first.fetched, first.error) == ([], "the connection was cut")
    second = mirror.look()
    assert second.fetched == [TWO, ONE]
    assert second.missing == [("a", 1)]
    mirror.shelf.cut = set()
    mirror.shelf.moved = {("a", 1)}
    third = mirror.look()
    assert (third.missing, third.error) == ([("a", 1)], ""), "replaced meanwhile: no failure of the origin"
    mirror.shelf.moved = set()
    assert mirror.look().fetched == [("a", 1)]


def test_what_was_refused_is_tried_again_when_it_changes(mirror: Mirror) -> None:
    mirror.shelf.refuse[ONE] = Refused("a pickle")
    mirror.settled()
    assert mirror.cache.refused == {ONE: "a pickle"}
    mirror.shelf.refuse.clear()
    assert mirror.look(after=60).fetched == []
    assert mirror.cache.refused == {ONE: "a pickle"}
    assert mirror.look(trust="m").fetched == [ONE]
    mirror.shelf.refuse[TWO] = OSError("No space left on device")
    mirror.shelf.put(TWO, model_onnx=b"two")
    mirror.settled()
    assert mirror.cache.refused == {TWO: "No space left on device"}
    mirror.shelf.refuse.clear()
    assert mirror.look().fetched == [TWO], "that may pass"


def test_no_room(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "ROOM", 1 << 60)
    mirror.settled()
    assert "has room for" in mirror.cache.refused[ONE]
    assert mirror.content(ONE) == {}


def _dies(folder: Path, shelf: Shelf, number: int) -> bool:
    """A round in a process that is killed at the number-th step that touches the disk; whether it was."""
    child = os.fork()
    if not child:
        try:
            _doomed(folder, shelf, number)
        except BaseException:
            os._exit(1)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), ended
    return ended != 0


def _doomed(folder: Path, shelf: Shelf, number: int) -> None:
    mirror = Mirror(folder, shelf)
    steps = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **named)

        return step

    cache_module._synchronise = deadly(cache_module._synchronise)
    cache_module._write = deadly(cache_module._write)
    cache_module.shutil.rmtree = deadly(cache_module.shutil.rmtree)  # type: ignore[attr-defined]
    for name in ("rename", "replace", "write_bytes", "unlink"):
        setattr(Path, name, deadly(getattr(Path, name)))
    mirror.look(newest(1), trust="m")


def test_killed_at_any_step_a_version_is_whole_or_not_there(tmp_path: Path) -> None:
    """The old version, the new one and a change under an old number at once, killed at every step of the round."""
    for number in range(1, 100):
        shelf = Shelf()
        shelf.put(ONE, model_onnx=b"one", model_yaml=b"1")
        mirror = Mirror(tmp_path / str(number), shelf)
        mirror.look(newest(1), trust="m")
        assert mirror.content(ONE)
        shelf.put(ONE, model_onnx=b"changed")
        shelf.put(("n", 1), model_onnx=b"n")
        shelf.whole = True
        killed = _dies(tmp_path / str(number), shelf, number)
        mirror.restart()
        for key in mirror.cache.cached():
            files = {path.name: path.read_bytes() for path in mirror.cache.place(key).iterdir()}
            assert files in (
                {"model.onnx": b"one", "model.yaml": b"1"},
                {"model.onnx": b"changed", "model.yaml": b"1"},
                {"model.onnx": b"n"},
            ), (number, key)
        _digested(CachedRepository(mirror.cache, ARTIFACTS))
        mirror.look(newest(1))
        assert mirror.content(ONE) == {"model.onnx": b"changed", "model.yaml": b"1"}, number
        assert mirror.content(("n", 1)) == {"model.onnx": b"n"}
        assert not (mirror.cache.folder / "gone").exists()
        if not killed:
            assert number > 10
            return
    raise AssertionError("no round ended")


def _digested(repository: CachedRepository) -> dict[tuple[str, int], tuple[DiskState, str]]:
    for version in repository.undigested(repository.scan()):
        repository.digest(version)
    scan = repository.scan()
    return {(v.model, v.version): (v.state, v.reason) for versions in scan.models.values() for v in versions}


def test_a_damaged_copy_is_refused_and_fetched_anew(mirror: Mirror) -> None:
    mirror.settled()
    (mirror.cache.place(ONE) / "model.onnx").write_bytes(b"oNe")
    mirror.restart()
    repository = CachedRepository(mirror.cache, ARTIFACTS)
    state, reason = _digested(repository)[ONE]
    assert state is DiskState.REFUSED
    assert "is not what was fetched" in reason
    assert mirror.settled().fetched == [ONE]
    assert _digested(repository)[ONE] == (DiskState.WHOLE, "")
    assert mirror.content(ONE) == {"model.onnx": b"one"}
    (mirror.cache.place(ONE) / "model.yaml").write_bytes(b"{")
    assert "is not YAML" in _digested(repository)[ONE][1], "damage that looks like a fault of the version"
    assert mirror.look().fetched == [ONE]
    assert _digested(repository)[ONE] == (DiskState.WHOLE, "")


def test_what_somebody_put_into_the_cache_is_not_served(mirror: Mirror) -> None:
    mirror.settled()
    stranger = mirror.cache.root / "m" / "9"
    stranger.mkdir()
    (stranger / "model.onnx").write_bytes(b"x")
    repository = CachedRepository(mirror.cache, ARTIFACTS)
    assert _digested(repository)["m", 9][0] is DiskState.REFUSED
    mirror.look()
    assert mirror.look().removed == [("m", 9)]


def test_what_was_not_fetched_is_listed_with_its_reason_and_aliases_are_labels(mirror: Mirror) -> None:
    mirror.shelf.aliases = {"m": {"champion": 1, "7": 1, "bad name": 1}}
    mirror.settled()
    mirror.shelf.put(TWO, model_pkl=b"two")
    mirror.shelf.refuse[TWO] = Refused("a pickle")
    mirror.settled()
    repository = CachedRepository(mirror.cache, ARTIFACTS)
    assert _digested(repository) == {
        ONE: (DiskState.WHOLE, ""),
        TWO: (DiskState.REFUSED, "not fetched: a pickle"),
    }
    assert repository.scan().labels == {"m": {"champion": 1}}
    mirror.shelf.away = "no route"
    mirror.restart()
    assert CachedRepository(mirror.cache, ARTIFACTS).scan().labels == {"m": {"champion": 1}}, "known without the origin"


def test_one_writer_at_a_time(mirror: Mirror) -> None:
    other = Cache(mirror.folder, mirror.shelf)
    with mirror.cache.writing() as mine, other.writing(lambda: False) as theirs:
        assert (mine, theirs) == (True, False)
    with other.writing(lambda: False) as theirs:
        assert theirs


def test_a_follower_says_a_trouble_once_and_how_old_the_answer_is(
    mirror: Mirror, caplog: pytest.LogCaptureFixture
) -> None:
    follower = Follower(mirror.cache, newest(3), 10.0, wall=lambda: mirror.now)
    mirror.shelf.whole = True
    follower.step()
    mirror.shelf.away = "no route"
    mirror.now += 40
    follower.step()
    follower.step()
    standing = follower.standing()
    assert (standing.good, standing.failed, standing.fetched, standing.size) == (1, 2, 1, 3)
    assert standing.error == "no route"
    assert follower.age() == 40
    mirror.shelf.away = ""
    follower.step()
    assert follower.age() == 0
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said == ["repository: no route; what is in the cache is served, tried again every 10 s"]


def test_a_follower_looks_when_it_is_asked(mirror: Mirror) -> None:
    follower = Follower(mirror.cache, newest(3), 1000.0)
    follower.start()
    try:
        follower.refresh("m", 30)  # whole, says who asks; the first round may have been on its way
        assert mirror.content(ONE)
        mirror.shelf.put(TWO, model_onnx=b"two")
        follower.refresh("m", 30)
        assert mirror.content(TWO)
    finally:
        follower.stop()


@pytest.mark.parametrize(
    "name", ["", "a//b", "/etc/passwd", "../x", "a/../b", "a/.", "a\\b", "a\nb", "a\0b", "x" * 256, "d/" * 20 + "x"]
)
def test_names_that_are_refused(name: str) -> None:
    assert name_problem(name)


@given(st.text(max_size=30))
def test_a_name_that_is_taken_stays_in_its_folder(name: str) -> None:
    if not name_problem(name):
        inside = os.path.normpath(f"/root/m/1/{name}")
        assert inside == f"/root/m/1/{name}"


def test_what_an_address_may_be(tmp_path: Path) -> None:
    assert root_here("models") == Path("models")
    assert root_here("s3://b/m", tmp_path) == root_here("s3://b/m/", tmp_path) != root_here("s3://b/n", tmp_path)
    with pytest.raises(SettingsError, match=r"s3://bucket/folder wanted"):
        ObjectOrigin("s3://")
    from octoserve.origins.opening import origin_of

    with pytest.raises(SettingsError, match="mlflow") as raised:
        origin_of("mlflow+http://me:secret@host")
    assert "secret" not in str(raised.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cache: a folder that can be written"):
        Cache(tmp_path / "file", Shelf())

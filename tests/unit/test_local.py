"""The local repository: what is whole, what is refused, what is ignored. Time is a list that we move."""

from __future__ import annotations

import os

import pytest

from octoserve.core.errors import SettingsError
from octoserve.repository.digest import folder_digest
from octoserve.repository.layout import ARTIFACTS, DiskState, Refused, version_number
from octoserve.repository.local import LocalRepository
from octoserve.repository.model_yaml import parse


class Watch:
    """A repository and a clock. `young`: files count as written just now, whatever the machine's clock says."""

    def __init__(self, root, young=True, **more):
        self.now = 100.0
        self.root = root
        root.mkdir(exist_ok=True)
        wall = (lambda: 0.0) if young else (lambda: 1e12)
        self.repository = LocalRepository(root, ARTIFACTS, clock=lambda: self.now, wall=wall, **more)

    def look(self, after=0.0, trust=()):
        self.now += after
        scan = self.repository.scan(trust)
        for version in self.repository.undigested(scan):
            self.repository.digest(version)
        scan = self.repository.scan(trust)
        return {(v.model, v.version): v for versions in scan.models.values() for v in versions}

    def put(self, name, content="model"):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path


@pytest.fixture
def watch(tmp_path):
    started = Watch(tmp_path / "models")
    started.look()
    started.now += 10
    return started


def test_young_folder_is_waited_for(watch):
    watch.put("m/1/model.onnx")
    assert watch.look()["m", 1].state is DiskState.SETTLING
    assert watch.look(after=1.9)["m", 1].state is DiskState.SETTLING
    seen = watch.look(after=0.2)["m", 1]
    assert seen.state is DiskState.WHOLE
    assert (seen.runtime, seen.digest) == ("onnx", folder_digest(watch.root / "m" / "1"))


def test_a_folder_that_still_grows_starts_the_wait_anew(watch):
    watch.put("m/1/model.onnx")
    watch.look()
    watch.put("m/1/model.onnx", "more of it")
    assert watch.look(after=1.9)["m", 1].state is DiskState.SETTLING
    assert watch.look(after=1.9)["m", 1].state is DiskState.SETTLING
    assert watch.look(after=0.2)["m", 1].state is DiskState.WHOLE


@pytest.mark.parametrize("name", ["weights.tmp", "weights.part", "sub/x.tmp"])
def test_half_written_file_is_waited_for(watch, name):
    watch.put("m/1/model.onnx")
    partial = watch.put(f"m/1/{name}")
    watch.look()
    seen = watch.look(after=60)["m", 1]
    assert seen.state is DiskState.SETTLING
    assert name in seen.reason
    partial.unlink()
    watch.look(after=1)
    assert watch.look(after=2)["m", 1].state is DiskState.WHOLE


def test_old_files_are_whole_at_first_sight(tmp_path):
    watch = Watch(tmp_path / "models", young=False)
    watch.put("m/1/model.onnx")
    assert watch.look()["m", 1].state is DiskState.WHOLE


def test_young_files_at_a_start_wait_a_quarter_second_and_are_not_rested(tmp_path):
    watch = Watch(tmp_path / "models")
    watch.put("m/1/model.onnx")
    assert watch.look()["m", 1].state is DiskState.SETTLING
    seen = watch.look(after=0.3)["m", 1]
    assert (seen.state, seen.rested) == (DiskState.WHOLE, False)
    assert watch.look(after=2)["m", 1].rested


def test_trusted_model_is_whole_at_once(watch):
    watch.put("m/1/model.onnx")
    assert watch.look(trust={"m"})["m", 1].state is DiskState.WHOLE


def test_edition_grows_with_settled_changes(watch):
    watch.put("m/1/model.onnx")
    watch.look()
    assert watch.look(after=3)["m", 1].edition == 0
    watch.put("m/1/model.onnx", "other")
    first = watch.look(after=1)["m", 1]
    assert (first.edition, first.state, first.digest) == (1, DiskState.SETTLING, "")
    assert watch.look(after=3)["m", 1].state is DiskState.WHOLE


def test_names_that_are_no_versions_are_noted(watch):
    for name in ("m/1/model.onnx", "m/v2/model.onnx", "m/02/model.onnx", "m/0/model.onnx", "m/.hidden/x", "m/3.tmp/x"):
        watch.put(name)
    watch.look()
    assert [key for key in watch.look(after=3) if key[0] == "m"] == [("m", 1)]
    notes = watch.repository.scan().notes
    assert [note.split()[0] for note in notes] == ["m/0", "m/02", "m/v2"]


@pytest.mark.parametrize(
    ("name", "number"), [("1", 1), ("10", 10), ("01", None), ("0", None), ("²", None), ("1a", None)]
)
def test_version_number(name, number):
    assert version_number(name) == number


def test_missing_artifact_and_bad_yaml_are_refused_with_the_reason(watch):
    watch.put("m/1/weights.bin")
    watch.put("m/2/model.onnx")
    watch.put("m/2/model.yaml", "bathcing: true")
    watch.look()
    seen = watch.look(after=3)
    assert "holds no model.onnx" in seen["m", 1].reason
    assert "did you mean 'batching'?" in seen["m", 2].reason
    assert {v.state for v in seen.values()} == {DiskState.REFUSED}


def test_links_that_leave_the_root_are_refused_and_those_inside_are_not(watch, tmp_path):
    outside = tmp_path / "secret"
    outside.write_text("secret")
    watch.put("m/1/.keep")
    os.symlink(outside, watch.root / "m" / "1" / "model.onnx")
    shared = watch.put("_blobs/abc")
    watch.put("m/2/.keep")
    os.symlink(shared, watch.root / "m" / "2" / "model.onnx")
    os.symlink(tmp_path, watch.root / "m" / "3")
    watch.look()
    seen = watch.look(after=3)
    assert "leaves the repository" in seen["m", 1].reason
    assert seen["m", 2].state is DiskState.WHOLE
    assert "leaves the repository" in seen["m", 3].reason


def test_link_in_a_circle_is_refused(watch):
    watch.put("m/1/model.onnx")
    os.symlink(watch.root / "m" / "1", watch.root / "m" / "1" / "loop")
    assert "circle" in watch.look()["m", 1].reason


def test_published_digest_is_checked(watch):
    watch.put("m/1/model.onnx")
    right = folder_digest(watch.root / "m" / "1")
    watch.put("m/1/model.yaml", f"digest: {right}")
    watch.put("m/2/model.onnx")
    watch.put("m/2/model.yaml", "digest: sha256:" + "0" * 64)
    watch.look()
    seen = watch.look(after=3)
    assert seen["m", 1].state is DiskState.WHOLE
    assert "the files have" in seen["m", 2].reason


def test_digest_is_over_names_and_contents(tmp_path):
    def digest(**files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        return folder_digest(folder)

    one = digest(a="1", b="2")
    assert one == digest(b="2", a="1")
    assert one != digest(a="2", b="1")
    assert one != digest(a="12", b="")


def test_models_can_be_chosen_and_a_missing_root_is_said(tmp_path):
    watch = Watch(tmp_path / "models", models=["b"])
    watch.put("a/1/model.onnx")
    watch.put("b/1/model.onnx")
    assert {model for model, _ in watch.look()} == {"b"}
    with pytest.raises(SettingsError, match="a folder is wanted"):
        LocalRepository(tmp_path / "nowhere", ARTIFACTS)


def test_unreadable_root_is_an_error_and_not_an_empty_repository(tmp_path):
    watch = Watch(tmp_path / "models")
    (tmp_path / "models").rmdir()
    with pytest.raises(OSError):
        watch.repository.scan()


def test_model_yaml():
    settings = parse({"runtime": "onnx", "threads": 2, "batching": {"enabled": False, "max_rows": 8}})
    assert (settings.runtime, settings.threads, settings.batching, settings.max_batch_rows) == ("onnx", 2, False, 8)
    assert parse({"batching": False}).batching is False
    for bad, words in (
        ({"threads": "2"}, "threads: a whole number wanted, '2' came"),
        ({"threads": 0}, "threads: 1 or more wanted"),
        ({"batching": {"max_row": 1}}, "did you mean 'max_rows'"),
        ({"digest": "md5:1"}, "'sha256:' and 64"),
        ([1], "a mapping of"),
    ):
        with pytest.raises(Refused, match=words):
            parse(bad)


@pytest.mark.parametrize("name", [b"bad\xff", b"a\nb", b"x" * 201, b"del\x7f"])
def test_names_that_no_protocol_carries_are_refused_with_a_note(watch, name):
    os.makedirs(os.fsencode(watch.root) + b"/" + name + b"/1")
    watch.put("m/1/model.onnx")
    scan = watch.repository.scan()
    assert list(scan.models) == ["m"]
    (note,) = scan.notes
    assert note.isascii()
    assert note.isprintable()
    assert "a model's name" in note


def test_unreadable_files_are_a_problem_until_they_change_or_are_asked_for(watch):
    def fail(folder):
        raise PermissionError(13, "Permission denied")

    path = watch.put("m/1/model.onnx")
    watch.now += 10
    watch.repository.scan()
    (version,) = watch.repository.scan(trust={"m"}).models["m"]
    assert watch.repository.digest(version, fail) is True
    (version,) = watch.repository.scan().models["m"]
    assert (version.state, "Permission denied" in version.reason) == (DiskState.REFUSED, True)
    assert watch.repository.undigested(watch.repository.scan()) == []
    watch.repository.read_again("m")
    assert watch.look()["m", 1].state is DiskState.WHOLE
    watch.repository.digest(version, fail)
    path.chmod(0o640)
    assert watch.look()["m", 1].state is DiskState.WHOLE

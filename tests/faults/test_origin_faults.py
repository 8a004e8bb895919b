"""A repository in S3 whose store fails in every way that a store does: a version is fetched whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from octoserve.core.errors import SettingsError
from octoserve.origins.cache import Cache, Round
from octoserve.origins.objects import ObjectOrigin
from octoserve.origins.protocol import Away
from octoserve.repository.digest import folder_digest
from support import s3
from support.origins import newest
from support.s3 import CUT, SLOW_DOWN, Proxy

KEY = ("m", 1)
LARGE = bytes(range(256)) * (70 << 10)
"""More than two pieces."""


@pytest.fixture(scope="module")
def store() -> Iterator[s3.S3]:
    with s3.a_store() as found:
        yield found


class Room:
    """A cache of a folder of the bucket, asked through a proxy."""

    def __init__(self, store: s3.S3, folder: Path) -> None:
        self.prefix = folder.name
        self.proxy = Proxy(store)
        self.bucket = s3.client(store.url)
        client = s3.client(self.proxy.url, patience=3.0)
        self.cache = Cache(folder, ObjectOrigin(f"s3://{s3.BUCKET}/{self.prefix}", client))

    def put(self, name: str, content: bytes) -> None:
        self.bucket.put(f"{self.prefix}/{name}", content)

    def look(self) -> Round:
        with self.cache.writing():
            return self.cache.round(newest(9), trust=lambda model: True)

    def content(self) -> dict[str, bytes]:
        place = self.cache.place(KEY)
        record = self.cache.record(KEY)
        assert record is not None
        assert record.digest == folder_digest(place)
        return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


@pytest.fixture
def room(store: s3.S3, tmp_path: Path) -> Iterator[Room]:
    made = Room(store, tmp_path)
    made.put("m/1/model.onnx", b"graph")
    made.put("m/1/weights/a.bin", LARGE)
    yield made
    made.proxy.close()


@pytest.mark.parametrize("fault", [SLOW_DOWN, CUT])
def test_every_other_request_fails(room: Room, fault: str) -> None:
    room.proxy.rule = lambda number, method, path: (
        fault if number % 2 and (fault != CUT or "list-type" not in path) else None
    )
    assert room.look().fetched == [KEY]
    assert room.content() == {"model.onnx": b"graph", "weights/a.bin": LARGE}
    assert room.proxy.counts[fault] >= 2


def test_a_download_that_always_breaks_off_leaves_nothing(room: Room) -> None:
    room.proxy.rule = lambda number, method, path: CUT if path.endswith("a.bin") else None
    done = room.look()
    assert (done.fetched, done.missing) == ([], [KEY])
    assert done.error
    assert not room.cache.place(KEY).exists()
    room.proxy.rule = lambda number, method, path: None
    assert room.look().fetched == [KEY]


def test_an_object_that_is_replaced_in_the_middle_is_not_mixed(room: Room) -> None:
    """The last piece of it is asked for after it has become another."""
    pieces: list[str] = []

    def rule(number: int, method: str, path: str) -> None:
        if path.endswith("a.bin"):
            pieces.append(path)
            if len(pieces) == 2:
                room.put("m/1/weights/a.bin", LARGE[::-1])

    room.proxy.rule = rule
    done = room.look()
    assert (done.missing, done.error) == ([KEY], "")
    assert not room.cache.place(KEY).exists()
    assert room.look().fetched == [KEY]
    assert room.content()["weights/a.bin"] == LARGE[::-1]


def test_a_store_that_is_stopped_and_started_again(room: Room, store: s3.S3, tmp_path: Path) -> None:
    room.look()
    store.close()
    direct = Cache(tmp_path, ObjectOrigin(room.cache.origin.name, s3.client(store.url, patience=1.0)))
    with pytest.raises(Away), direct.writing():
        direct.round(newest(9))
    assert direct.cached() == {KEY}
    store.start()
    room.put("m/2/model.onnx", b"second")
    with direct.writing():
        assert direct.round(newest(9), trust=lambda model: True).fetched == [("m", 2)]


def test_only_the_object_that_changed_is_asked_for(room: Room) -> None:
    room.look()
    room.proxy.requests.clear()
    room.put("m/1/model.yaml", b"threads: 2")
    room.look()
    asked = [path for _, path in room.proxy.requests if "list-type" not in path]
    assert [path.rpartition("/")[2] for path in asked] == ["model.yaml"]
    assert len(room.proxy.requests) == 2, "one listing, one object"


@pytest.mark.parametrize("name", ["m/1/a\\b", "m/1/" + "d/" * 20 + "x", "m/1/model.onnx/inside", "m/1/" + "x" * 300])
def test_odd_names_refuse_the_version_and_nothing_else(room: Room, name: str) -> None:
    room.put("n/1/model.onnx", b"n")
    room.put("n/zero/model.onnx", b"n")
    room.put(name, b"x")
    assert room.look().fetched == [("n", 1)]
    assert KEY in room.cache.refused


@pytest.mark.parametrize("name", ["m/2/../../../x", "m/2//x"])
def test_a_key_that_leads_elsewhere_fails_the_look_and_changes_nothing(room: Room, store: s3.S3, name: str) -> None:
    room.look()
    client = boto3.client(
        "s3", endpoint_url=store.url, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )
    key = f"{room.prefix}/{name}"
    client.put_object(Bucket=s3.BUCKET, Key=key, Body=b"x")
    with pytest.raises(SettingsError, match="invalid path"):
        room.look()
    assert room.cache.cached() == {KEY}
    client.delete_object(Bucket=s3.BUCKET, Key=key)
    room.look()

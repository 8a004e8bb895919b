"""The client of S3 against a server that speaks it and a proxy that fails: what is written is there once and whole."""

from __future__ import annotations

import glob
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from octoserve.connectors import discovery
from octoserve.connectors.objects import PIECE, Bucket, Changed, Exists, Missing, StoreTrouble
from octoserve.connectors.opening import opened
from octoserve.connectors.source import SourceFile
from octoserve.connectors.uploads import Upload
from octoserve.core.errors import SettingsError
from support import s3
from support.s3 import BUCKET, CUT, DENIED, S3, SLOW_DOWN, STALL, UNANSWERED, Proxy


@pytest.fixture(scope="module")
def store() -> Iterator[S3]:
    with s3.a_store() as found:
        yield found


@pytest.fixture
def bucket(store: S3) -> Bucket:
    return s3.client(store.url)


@pytest.fixture
def proxy(store: S3) -> Iterator[Proxy]:
    before = Proxy(store)
    yield before
    before.close()


def test_the_stand_in_takes_notice_of_conditions(bucket: Bucket) -> None:
    """What the guarantees rest on; were it not so here, the tests of jobs would show nothing."""
    first = bucket.create("c/one", b"1")
    with pytest.raises(Exists):
        bucket.create("c/one", b"2")
    second = bucket.replace("c/one", b"2", first)
    with pytest.raises(Changed):
        bucket.replace("c/one", b"3", first)
    with pytest.raises(Changed):
        bucket.replace("c/none", b"3", first)
    assert bucket.get("c/one") == (b"2", second)


def test_the_stand_in_lets_one_of_many_win(bucket: Bucket) -> None:
    for number in range(10):
        wins: list[int] = []

        def attempt(who: int, key: str = f"race/{number}", wins: list[int] = wins) -> None:
            try:
                bucket.create(key, b"%d" % who)
                wins.append(who)
            except Exists:
                pass

        threads = [threading.Thread(target=attempt, args=(who,)) for who in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert bucket.get(f"race/{number}")[0] == b"%d" % wins[0]


@pytest.mark.parametrize("fault", [SLOW_DOWN, CUT, UNANSWERED])
def test_every_other_request_fails(store: S3, proxy: Proxy, fault: str) -> None:
    def rule(number: int, method: str, path: str) -> str | None:
        begins = method == "POST" and "?uploads" in path
        return (
            fault if number % 2 and not (begins and fault == CUT) else None
        )  # a cut beginning ends the job, see below

    proxy.rule = rule
    bucket = s3.client(proxy.url)
    folder = f"f-{fault}"
    data = bytes(range(256)) * 40_000  # 10 MB: two parts
    upload = Upload(bucket, f"{folder}/big")
    for at in range(0, len(data), 1 << 20):
        upload.write(data[at : at + (1 << 20)])
    upload.finish()
    upload.publish()
    etag = bucket.create(f"{folder}/small", b"small")
    bucket.replace(f"{folder}/small", b"other", etag)
    assert bucket.get(f"{folder}/small")[0] == b"other"
    found = bucket.head(f"{folder}/big")
    assert found.size == len(data)
    assert bytes(bucket.read(f"{folder}/big", 1_000_000, 9_000_000, found.etag)) == data[1_000_000:9_000_000]
    assert {found.key for found in bucket.list(folder)} == {f"{folder}/big", f"{folder}/small"}
    bucket.delete([f"{folder}/small"])
    with pytest.raises(Missing):
        s3.client(store.url).head(f"{folder}/small")
    assert proxy.counts[fault] >= 4


def test_an_upload_that_cannot_be_begun_is_said(proxy: Proxy) -> None:
    """The client does not repeat this one, whose answer names the upload; the job ends, and is resumed."""
    proxy.rule = lambda number, method, path: CUT if method == "POST" and "?uploads" in path else None
    upload = Upload(s3.client(proxy.url), "cut/begin")

    def write() -> None:
        for _ in range(3 * PIECE >> 20):
            upload.write(bytes(1 << 20))
        upload.publish()

    with pytest.raises(StoreTrouble, match="s3://scores/cut/begin"):
        write()
    upload.abandon()


def test_a_request_that_is_never_answered(proxy: Proxy) -> None:
    proxy.rule = lambda number, method, path: STALL if number in (1, 3) else None
    bucket = s3.client(proxy.url, request=0.5)
    bucket.put("stall/one", b"here")
    assert bucket.get("stall/one")[0] == b"here"
    assert proxy.counts[STALL] == 2


def test_a_store_that_never_recovers_ends_the_wait(proxy: Proxy) -> None:
    proxy.rule = lambda number, method, path: SLOW_DOWN
    with pytest.raises(StoreTrouble, match="s3://scores/never"):
        s3.client(proxy.url, patience=0.5).put("never", b"1")
    assert len(proxy.requests) > 1


def test_no_right_to_it(proxy: Proxy) -> None:
    proxy.rule = lambda number, method, path: DENIED
    with pytest.raises(SettingsError, match="AWS_PROFILE"):
        s3.client(proxy.url).put("denied", b"1")
    assert len(proxy.requests) == 1, "what is permanent is not asked again"


def test_another_put_is_not_taken_for_ours(bucket: Bucket, proxy: Proxy) -> None:
    bucket.create("mine/lease", b"another's")
    with pytest.raises(Exists):
        s3.client(proxy.url).create("mine/lease", b"ours")


def test_an_upload_is_not_seen_before_it_is_published_and_leaves_nothing_if_abandoned(
    store: S3, bucket: Bucket
) -> None:
    boto = boto3.client(
        "s3", endpoint_url=store.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    upload = Upload(bucket, "up/one")
    for _ in range(2 * PIECE // (1 << 20) + 1):
        upload.write(bytes(1 << 20))

    def under_way() -> list[str]:
        found = boto.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [upload["Key"] for upload in found if upload["Key"].startswith("up/")]

    assert under_way() == ["up/one"]
    with pytest.raises(Missing):
        bucket.head("up/one")
    upload.abandon()
    assert under_way() == []
    with pytest.raises(Missing):
        bucket.head("up/one")


def test_an_object_that_changes_while_it_is_read(store: S3) -> None:
    with s3.used(store.url):
        bucket = s3.client(store.url)
        bucket.put("read/me", b"0123456789")
        file = discovery.identify(f"s3://{BUCKET}/read/me")
        with opened(file) as raw:
            assert raw.read(4) == b"0123"
            assert (raw.seek(-2, 2), raw.read(), raw.read(1)) == (8, b"89", b"")
            bucket.put("read/me", b"abcdefghij")
            raw.seek(4)
            with pytest.raises(Changed):
                raw.read(4)
        with pytest.raises(SettingsError, match="no such object"):
            discovery.identify(f"s3://{BUCKET}/read/nothing")


NAMES = (
    "a.parquet", "b.parquet", "c.csv", ".hidden.parquet", "_meta.parquet", "day=1/a.parquet", "day=1/hour=0/x.parquet",
    "day=2/b.parquet", ".git/x.parquet", "_temporary/y.parquet", "z[1].parquet",
)  # fmt: skip
PATTERNS = (
    "*.parquet",
    "**/*.parquet",
    "day=?/*.parquet",
    "day=[!2]/*",
    "day=1/**/*.parquet",
    "[ab].*",
    "a.parquet",
    "",
    "day=1",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_on_a_disk(store: S3, tmp_path: Path, pattern: str) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    endings = (".parquet",)
    with s3.used(store.url):
        s3.put_folder(tmp_path, "names")
        local = discovery.find([str(tmp_path / pattern)], endings)
        far = discovery.find([f"s3://{BUCKET}/names/{pattern}".rstrip("/")], endings)
    assert glob.glob(str(tmp_path / pattern), recursive=True)
    assert [file.path.removeprefix(f"s3://{BUCKET}/names/") for file in far] == [
        str(Path(file.path).relative_to(tmp_path)) for file in local
    ]
    assert [file.partitions for file in far] == [file.partitions for file in local]
    assert all(file.etag and not file.mtime_ns for file in far)


def test_a_pattern_that_matches_nothing(store: S3) -> None:
    with s3.used(store.url), pytest.raises(SettingsError, match="matches none"):
        discovery.find([f"s3://{BUCKET}/nowhere/*.parquet"], (".parquet",))


def test_files_without_an_etag_are_read_as_they_are(store: S3) -> None:
    with s3.used(store.url):
        s3.client(store.url).put("plain", b"xyz")
        with opened(SourceFile(f"s3://{BUCKET}/plain", 3, 0)) as raw:
            assert raw.read() == b"xyz"

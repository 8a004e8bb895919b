"""Objects in S3, and in whatever speaks it: a bucket, one method a step that a crash may fall behind.

The client (obstore) repeats what failed for a moment - 503 SlowDown, 5xx, timeouts, cut connections - with growing,
jittered pauses. What it does not repeat, a body that was cut short, is repeated here. Every write can be repeated: a
whole object appears or none, and a conditional one that was done and not answered is recognised by what it wrote.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec

from octoserve.connectors import aws
from octoserve.core.errors import NotFound, OctoserveError, SettingsError

PIECE = 8 << 20
"""Bytes of a multipart upload's part: up to 80 GB in the 10,000 that S3 allows."""
AT_ONCE = 2
"""Parts of one upload that are under way; with the one being filled, that is what an upload holds in memory."""
REQUEST = timedelta(seconds=60)
"""For one request and its answer, at most."""
PATIENCE = timedelta(minutes=2)
"""For a request with all its repetitions: then the job ends, to be resumed."""
_PAUSE, _LONGEST, _TIMES = 0.2, 5.0, 5
T = TypeVar("T")


class StoreTrouble(OctoserveError):
    """The store could not be reached, or went on failing; what was published stays."""

    reason = "store"


class Missing(NotFound):
    """No such object or bucket."""


class Exists(OctoserveError):
    """Create-only, and somebody was there first."""

    reason = "exists"


class Changed(OctoserveError):
    """The object is not the one that was meant."""

    reason = "changed"


class Found(msgspec.Struct, frozen=True):
    """An object. modified: Unix time, by the store's clock, in whole seconds."""

    key: str
    size: int
    etag: str
    modified: float


STORES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
"""Scheme -> the client's class. Only the first is tested."""


def split_url(url: str) -> tuple[str, str]:
    """`s3://bucket/key` -> bucket, key. Raises SettingsError."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in ("s3", "s3a", "s3n") or not bucket:
        raise SettingsError(f"s3://bucket/name wanted, {url!r} came")
    return bucket, key


def obstore(part: str = "") -> Any:
    """The library, or a part of it. Raises SettingsError."""
    try:
        return importlib.import_module(f"obstore.{part}" if part else "obstore")
    except ImportError:
        raise SettingsError("s3:// needs obstore, which is not installed: pip install 'octoserve[s3]'") from None


class Bucket:
    """The steps. Each raises StoreTrouble, SettingsError (no right to it), and what it says."""

    def __init__(
        self,
        name: str,
        *,
        request: timedelta = REQUEST,
        patience: timedelta = PATIENCE,
        settings: aws.Aws | None = None,
        sleep: Callable[[float], None] = time.sleep,
        scheme: str = "s3",
    ) -> None:
        """settings: where S3 is; unset: as the environment says. scheme: one of STORES."""
        self.name = name
        self._scheme = scheme
        self._lib = obstore()
        self._sleep = sleep
        self._patience = patience.total_seconds()
        retry = {
            "max_retries": 20,
            "retry_timeout": patience,
            "backoff": {
                "init_backoff": timedelta(seconds=_PAUSE),
                "max_backoff": timedelta(seconds=_LONGEST),
                "base": 2,
            },
        }
        try:
            self._store = self._opened(request, retry, settings)
        except obstore("exceptions").BaseError as error:
            raise SettingsError(f"{scheme}://{name}: {_text(error)}") from None
        errors = obstore("exceptions")
        self._no_right = (errors.PermissionDeniedError, errors.UnauthenticatedError)
        self._temporary = (errors.GenericError, errors.JoinError)

    def _opened(self, request: timedelta, retry: Any, settings: aws.Aws | None) -> Any:
        """The client."""
        if self._scheme != "s3":  # these two find by themselves who asks
            return getattr(obstore("store"), STORES[self._scheme])(
                self.name, client_options={"timeout": request}, retry_config=retry
            )
        said = aws.found() if settings is None else settings
        config = {
            "access_key_id": said.key, "secret_access_key": said.secret, "session_token": said.token,
            "region": said.region, "endpoint": said.endpoint,
        }  # fmt: skip
        return obstore("store").S3Store(
            self.name,
            config={setting: value for setting, value in config.items() if value},
            client_options={"timeout": request, "allow_http": said.endpoint.startswith("http://")},
            retry_config=retry,
            credential_provider=_boto3(said) if said.asks_elsewhere else None,
        )

    def url(self, key: str) -> str:
        """As people write it."""
        return f"{self._scheme}://{self.name}/{key}"

    def head(self, key: str) -> Found:
        """Raises Missing."""
        return self._found(self._said(key, lambda: self._lib.head(self._store, key)))

    def list(self, prefix: str) -> Iterator[Found]:
        """All below the folder `prefix`, in no order. A list that is cut short is begun anew."""
        seen: set[str] = set()
        until = time.monotonic() + self._patience
        for attempt in range(_TIMES):
            try:
                for found in self._list(prefix):
                    if found.key not in seen:
                        seen.add(found.key)
                        yield found
                return
            except StoreTrouble:
                if attempt + 1 == _TIMES or time.monotonic() > until:
                    raise
                self._sleep(_pause(attempt))

    def _list(self, prefix: str) -> Iterator[Found]:
        stream = self._said(prefix, lambda: self._lib.list(self._store, prefix or None))
        while (batch := self._said(prefix, lambda: next(stream, None))) is not None:
            for meta in batch:
                yield self._found(meta)

    def get(self, key: str) -> tuple[bytes, str]:
        """A small object and its ETag. Raises Missing."""

        def whole() -> tuple[bytes, str]:
            result = self._lib.get(self._store, key)
            return bytes(result.bytes()), str(result.meta["e_tag"])

        return self._again(lambda: self._said(key, whole))

    def read(self, key: str, start: int, stop: int, etag: str = "") -> Any:
        """Bytes `start` to `stop`, as a buffer. Raises Changed if the object's ETag is not `etag`; Missing."""
        options: dict[str, Any] = {"range": (start, stop)}
        if etag:
            options["if_match"] = etag

        def body() -> Any:
            data = self._lib.get(self._store, key, options=options).bytes()
            if len(data) != stop - start:
                raise StoreTrouble(f"{self.url(key)}: {stop - start} bytes wanted, {len(data)} came")
            return memoryview(data)

        return self._again(lambda: self._said(key, body))

    def put(self, key: str, data: bytes) -> str:
        """A whole object, over what is there; its ETag."""
        return self._write(key, data, "overwrite")

    def create(self, key: str, data: bytes) -> str:
        """A whole object where there is none; its ETag. Raises Exists; not if what exists is this very data, for the
        answer to an earlier attempt may have been lost: who must be told apart writes something of his own."""
        try:
            return self._write(key, data, "create")
        except (Exists, Changed):
            etag = self._is(key, data)
            if etag:
                return etag
            raise Exists(f"{self.url(key)} exists") from None

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """A whole object over the one with that ETag; the new one's. Raises Changed; see `create` about repetitions."""
        try:
            return self._write(key, data, {"e_tag": etag})
        except (Changed, Exists, Missing):
            new = self._is(key, data)
            if new:
                return new
            raise Changed(f"{self.url(key)} was changed by another") from None

    def delete(self, keys: Sequence[str]) -> None:
        """Those that are there."""
        if keys:
            self._again(lambda: self._said(keys[0], lambda: self._lib.delete(self._store, list(keys))))

    def open_writer(self, key: str) -> Any:
        """An upload in parts, of which nothing is seen before `complete`."""
        return self._lib.open_writer(self._store, key, buffer_size=PIECE, max_concurrency=AT_ONCE)

    def write(self, key: str, writer: Any, data: bytes) -> None:
        """More of an upload; blocks while enough of it is under way."""
        self._said(key, lambda: writer.write(data))

    def complete(self, key: str, writer: Any, size: int) -> None:
        """The object is there. A completion that was done and not answered is recognised by the object's size: what
        has its name has its bytes, as a split has one result."""
        try:
            self._said(key, writer.close)
        except (StoreTrouble, Missing):
            try:
                if self.head(key).size == size:
                    return
            except OctoserveError:
                pass
            raise

    def _write(self, key: str, data: bytes, mode: Any) -> str:
        def put() -> Any:
            return self._lib.put(self._store, key, data, mode=mode, use_multipart=False)

        return str(self._again(lambda: self._said(key, put))["e_tag"])

    def _is(self, key: str, data: bytes) -> str:
        """The object's ETag, if it holds this data."""
        try:
            there, etag = self.get(key)
        except Missing:
            return ""
        return etag if there == data else ""

    def _found(self, meta: Any) -> Found:
        modified: datetime = meta["last_modified"]
        return Found(str(meta["path"]), int(meta["size"]), str(meta["e_tag"] or ""), modified.timestamp())

    def _again(self, ask: Callable[[], T]) -> T:
        """For answers that were cut short, after which the client does not ask again."""
        until = time.monotonic() + self._patience
        for attempt in range(_TIMES):
            try:
                return ask()
            except StoreTrouble:
                if attempt + 1 == _TIMES or time.monotonic() > until:
                    raise
                self._sleep(_pause(attempt))
        raise AssertionError("unreachable")

    def _said(self, key: str, ask: Callable[[], T]) -> T:
        """Errors by their kind, in our words."""
        errors = obstore("exceptions")
        url = self.url(key)
        try:
            return ask()
        except (errors.NotFoundError, FileNotFoundError):
            raise Missing(f"{url}: no such object or bucket") from None
        except errors.AlreadyExistsError:
            raise Exists(f"{url} exists") from None
        except (errors.PreconditionError, errors.NotModifiedError):
            raise Changed(f"{url} is not what it was") from None
        except self._no_right as error:
            raise SettingsError(
                f"{url}: no right to it ({_text(error)}); check AWS_PROFILE or AWS_ACCESS_KEY_ID, "
                "and the bucket's policy"
            ) from None
        except (*self._temporary, OSError) as error:
            raise StoreTrouble(f"{url}: {_text(error)}") from None
        except errors.BaseError as error:
            raise SettingsError(f"{url}: {_text(error)}") from None


_buckets: dict[str, Bucket] = {}
_lock = threading.Lock()


def bucket(name: str) -> Bucket:
    """The bucket, as the environment says where it is; one client for all threads."""
    with _lock:
        if name not in _buckets:
            _buckets[name] = Bucket(name)
        return _buckets[name]


def forget() -> None:
    """Look at the environment anew."""
    with _lock:
        _buckets.clear()


def _pause(attempt: int) -> float:
    return float(min(_LONGEST, _PAUSE * 2**attempt))


def _boto3(said: aws.Aws) -> Any:
    try:
        boto3 = importlib.import_module("boto3")
        provider = importlib.import_module("obstore.auth.boto3").Boto3CredentialProvider
    except ImportError:
        raise SettingsError(
            f"AWS profile {said.profile or 'default'} gets its credentials by {said.asks_elsewhere}, which needs "
            "boto3: pip install boto3, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    return provider(boto3.session.Session(profile_name=said.profile or None))


def _text(error: BaseException) -> str:
    """What it says, without the client's own debugging, which stands behind a blank line."""
    text = " ".join(str(error).partition("\n\n")[0].split())
    return text[:400] or type(error).__name__

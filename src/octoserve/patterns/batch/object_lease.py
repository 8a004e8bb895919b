"""Who may work on a sink in an object store: one object, replaced only by who has read it, renewed while it is held.

No lock there dies with its holder, so a lease ends by not being renewed. Its age is told by the store's clock alone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import msgspec

from octoserve.connectors.objects import Bucket, Changed, Exists, Found, Missing
from octoserve.core.errors import OctoserveError, SettingsError
from octoserve.patterns.batch.job import Busy, Fenced
from octoserve.patterns.batch.lease import LEASE, Holder, is_gone, me

LASTS = 30.0
"""Seconds without renewal, after which another may take it."""
RENEWED = 10.0
"""Seconds between renewals."""
CLOCK, PROBE = "clock", "probe"


class ObjectLease:
    """Held from construction to `release`; renewed by a thread of its own."""

    def __init__(self, bucket: Bucket, folder: str, now: float) -> None:
        """folder: the work folder's key. Raises Busy, SettingsError for a store that cannot keep two runs apart."""
        self._bucket = bucket
        self._folder = folder
        self._key = f"{folder}/{LEASE}"
        self._over = threading.Event()
        self._etag = self._take(now)
        self._renewal = threading.Thread(target=self._renew, name="octoserve-lease", daemon=True)
        self._renewal.start()

    @property
    def token(self) -> int:
        """Grows with every holder."""
        return self._me.token

    def check(self) -> None:
        """Before anything is published. Raises Fenced."""
        now = holder(self._bucket, self._folder)
        if now is None or now.word != self._me.word:
            who = f"by {now}" if now is not None else "with its work folder"
            raise Fenced(f"this run has lost its lease: it was taken over {who}; nothing more is written")

    def release(self) -> None:
        """Let others in; what cannot be said now is told by time."""
        self._over.set()
        self._renewal.join()
        left = msgspec.structs.replace(self._me, released=True)
        with contextlib.suppress(OctoserveError):
            self._bucket.replace(self._key, msgspec.json.encode(left), self._etag)

    def forget(self) -> None:
        """Remove it: the sink is committed, and nobody needs one."""
        self._over.set()
        self._renewal.join()
        self._bucket.delete([self._key])

    def _take(self, now: float) -> str:
        try:
            data, etag = self._bucket.get(self._key)
        except Missing:
            self._me = me(1, now)
            try:
                etag = self._bucket.create(self._key, msgspec.json.encode(self._me))
            except Exists:
                raise Busy(f"another run works on this sink: {holder(self._bucket, self._folder)}") from None
            self._refuse_careless_store()
            return etag
        last = _decode(data)
        self._me = me((last.token if last is not None else 0) + 1, now)
        if last is not None and not last.released and not is_gone(last):
            left = LASTS - self._age()
            if left > 0:
                raise Busy(
                    f"another run works on this sink: {last}; should it be dead, its lease ends in {left + 1:.0f} s"
                )
        try:
            return self._bucket.replace(self._key, msgspec.json.encode(self._me), etag)
        except Changed:
            raise Busy(f"another run works on this sink: {holder(self._bucket, self._folder)}") from None

    def _age(self) -> float:
        """Of the lease, by the store's clock, which is read off an object that was just put."""
        clock = f"{self._folder}/{CLOCK}"
        self._bucket.put(clock, self._me.word.encode())
        try:
            return self._bucket.head(clock).modified - self._bucket.head(self._key).modified
        except Missing:
            return 0.0

    def _refuse_careless_store(self) -> None:
        """Once a job: whether the store takes notice of the conditions that everything here rests on."""
        probe = f"{self._folder}/{PROBE}"
        self._bucket.put(probe, b"1")
        attempts: dict[str, Callable[[], str]] = {
            "If-None-Match": lambda: self._bucket.create(probe, b"2"),
            "If-Match": lambda: self._bucket.replace(probe, b"3", '"00000000000000000000000000000000"'),
        }
        for name, attempt in attempts.items():
            try:
                attempt()
            except (Exists, Changed):
                continue
            self._bucket.delete([self._key, probe])
            raise SettingsError(
                f"sink: a store with conditional writes wanted; s3://{self._bucket.name} takes no notice of {name}, "
                "so that two runs could not be kept apart"
            )

    def _renew(self) -> None:
        while not self._over.wait(RENEWED):
            with contextlib.suppress(OctoserveError):  # lost or late: `check` finds it out
                self._etag = self._bucket.replace(self._key, msgspec.json.encode(self._me), self._etag)


def holder(bucket: Bucket, folder: str) -> Holder | None:
    """What the lease says, whether its holder lives or not."""
    try:
        return _decode(bucket.get(f"{folder}/{LEASE}")[0])
    except Missing:
        return None


def lease_object(bucket: Bucket, folder: str) -> Found | None:
    """The lease as an object."""
    try:
        return bucket.head(f"{folder}/{LEASE}")
    except Missing:
        return None


def _decode(data: bytes) -> Holder | None:
    try:
        return msgspec.json.decode(data, type=Holder)
    except msgspec.DecodeError:
        return None

"""An object being written, in parts, hashed on the way."""

from __future__ import annotations

import contextlib
from typing import Any

from octoserve.connectors.gathering import Gathering
from octoserve.connectors.objects import Bucket
from octoserve.core.errors import OctoserveError


class Upload(Gathering):
    """See `files.OutFile`. Its parts are in the store before `publish`, and the object is not.

    A process that dies leaves parts that nobody sees and somebody pays for: a lifecycle rule of the bucket
    (AbortIncompleteMultipartUpload) removes them.
    """

    def __init__(self, bucket: Bucket, key: str) -> None:
        super().__init__()
        self.key = key
        self._bucket = bucket
        self._writer: Any = bucket.open_writer(key)

    @property
    def closed(self) -> bool:
        """For pyarrow, which asks."""
        return self._writer is None

    def finish(self) -> str:
        """All bytes are with the client; the SHA-256 of them in hexadecimal."""
        self._flush()
        return self._hash.hexdigest()

    def publish(self) -> None:
        """The object is there, whole. Raises StoreTrouble."""
        writer, self._writer = self._writer, None
        try:
            self._bucket.complete(self.key, writer, self.bytes)
        except BaseException as error:
            _abort(writer, error)
            raise

    def abandon(self) -> None:
        """Take its parts back, if that is possible."""
        writer, self._writer = self._writer, None
        if writer is not None:
            _abort(writer, OctoserveError("abandoned"))

    def _put(self, data: bytes) -> None:
        self._bucket.write(self.key, self._writer, data)


def _abort(writer: Any, error: BaseException) -> None:
    with contextlib.suppress(Exception):
        writer.__exit__(type(error), error, error.__traceback__)

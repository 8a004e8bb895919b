"""What pyarrow writes to, wherever it goes: small pieces are gathered, and everything is hashed on the way."""

from __future__ import annotations

import hashlib
from abc import abstractmethod

BUFFER = 1 << 20


class Gathering:
    """A file for pyarrow. Who derives puts what was gathered somewhere (`_put`), and says what ends it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    @property
    @abstractmethod
    def closed(self) -> bool:
        """For pyarrow, which asks."""

    @abstractmethod
    def _put(self, data: bytes) -> None: ...

    def write(self, data: bytes) -> int:
        """Take `data`; raises what the place raises."""
        piece = bytes(data)
        self._waiting.append(piece)
        self._waiting_bytes += len(piece)
        self.bytes += len(piece)
        if self._waiting_bytes >= BUFFER:
            self._flush()
        return len(piece)

    def tell(self) -> int:
        """Bytes so far."""
        return self.bytes

    def flush(self) -> None:
        """Nothing: the end does it, once."""

    def close(self) -> None:
        """Nothing: pyarrow closes what it was given, and the file is not finished by that."""

    def _flush(self) -> None:
        data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._hash.update(data)
        self._put(data)

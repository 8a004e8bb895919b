"""What every SQLite file that several processes share needs when it is opened."""

from __future__ import annotations

import sqlite3
import time


def use_wal(db: sqlite3.Connection, seconds: float = 5.0) -> None:
    """WAL, synchronous FULL: a commit is on disk before it returns. Raises sqlite3.Error.

    Of two processes that open a new file at once, SQLite refuses one the switch without waiting: ask again.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            db.execute("pragma journal_mode = wal")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
    db.execute("pragma synchronous = full")

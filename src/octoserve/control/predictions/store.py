"""The store of one model's predictions: a folder or a place in S3, filled from the workers' spool.

    <to>/model=NAME/day=2026-11-24/SEGMENT-v3.parquet    or .jsonl; what of a segment belongs there

Commit order and crashes: `telemetry.taking_up`. In S3 a file is one put, whole or not there, under the name that its
segment gives it: what is put a second time after a crash takes its own place. The day is that of a block's first
request, of which others are at most moments away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import msgspec

from octoserve.connectors import objects
from octoserve.connectors.arrow import pyarrow
from octoserve.connectors.opening import is_object
from octoserve.control.predictions import files
from octoserve.core.errors import Unavailable
from octoserve.core.observation import LogSettings
from octoserve.telemetry.predictions import Block
from octoserve.telemetry.taking_up import Kept, TakenUp, day_of, drop_old, publish_files, take_up, to_drop

_DAY = 86400.0
_REQUEST, _PATIENCE = timedelta(seconds=15), timedelta(seconds=5)
"""For a request of a store in S3, and for its repetitions: what it does not take now it is offered again in moments."""
_decode = msgspec.msgpack.Decoder(Block).decode


class Place(Protocol):
    """Where files of one model lie. Names are relative: `day=2026-11-24/x.parquet`."""

    def publish(self, made: dict[str, bytes]) -> None:
        """Files, each whole or not at all. Raises OSError, OctoserveError."""
        ...

    def files(self) -> list[Kept]:
        """All that are there."""
        ...

    def drop(self, names: Sequence[str]) -> None:
        """Remove them."""
        ...


class Folder:
    """On disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def publish(self, made: dict[str, bytes]) -> None:
        """See `Place`."""

        def write(path: Path, data: Sequence[bytes]) -> int:
            files.write(path, data[0])
            return 1

        publish_files(self._folder, {self._folder / name: [data] for name, data in made.items()}, write, len(made))

    def files(self) -> list[Kept]:
        """See `Place`."""
        found = []
        for path in self._folder.glob("day=*/*"):
            if not path.name.startswith("."):
                size = path.stat()
                name = f"{path.parent.name}/{path.name}"
                found.append(Kept(name, _day(name), size.st_size, (size.st_mtime_ns, path.name)))
        return found

    def drop(self, names: Sequence[str]) -> None:
        """See `Place`."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)
        for folder in {(self._folder / name).parent for name in names}:
            with contextlib.suppress(OSError):  # gone, or somebody has put something there
                folder.rmdir()


class InS3:
    """In a bucket, below a prefix."""

    def __init__(self, url: str, bucket: objects.Bucket | None = None) -> None:
        name, prefix = objects.split_url(url)
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        self._bucket = bucket or objects.Bucket(name, request=_REQUEST, patience=_PATIENCE)

    def publish(self, made: dict[str, bytes]) -> None:
        """See `Place`."""
        try:
            for name, data in made.items():
                self._bucket.put(self._prefix + name, data)
        except objects.StoreTrouble as error:
            raise Unavailable(str(error)) from None

    def files(self) -> list[Kept]:
        """See `Place`."""
        return [
            Kept(name, _day(name), found.size, (found.modified, name))
            for found in self._bucket.list(self._prefix.rstrip("/"))
            for name in [found.key.removeprefix(self._prefix)]
            if name.startswith("day=")
        ]

    def drop(self, names: Sequence[str]) -> None:
        """See `Place`."""
        self._bucket.delete([self._prefix + name for name in names])


class PredictionStore:
    """See the module. Blocking: for a thread of its own."""

    def __init__(self, model: str, settings: LogSettings, spool: Path, place: Place | None = None) -> None:
        """Raises SettingsError where what it needs is not installed."""
        pyarrow("parquet")
        self.model = model
        self._settings = settings
        self.spool = spool
        self._damaged = spool.parent.parent / "damaged"
        self._folder: Path | None = None
        if place is None and is_object(settings.to):
            place = InS3(f"{settings.to.rstrip('/')}/model={model}")
        elif place is None:
            self._folder = Path(settings.to) / f"model={model}"
            place = Folder(self._folder)
        self._place = place
        self.rows = 0
        """Stored by this process."""

    def take_up(self) -> TakenUp:
        """Move every whole segment into the store, those of dead workers included."""
        if not self.spool.is_dir() or not any(self.spool.iterdir()):
            return TakenUp()
        return take_up(self.spool, self._damaged, _decode, self._publish, self.spool.parent, self._folder)

    def _publish(self, segment: str, blocks: Sequence[Block]) -> None:
        groups: dict[tuple[str, int], list[Block]] = {}
        for block in blocks:
            groups.setdefault((day_of(block.times[0]), block.version), []).append(block)
        made, rows = {}, 0
        for (day, version), some in groups.items():
            table = files.table_of(some)
            rows += table.num_rows
            made[f"day={day}/{segment}-v{version}.{self._settings.format}"] = files.as_bytes(
                table, self._settings.format
            )
        self._place.publish(made)
        self.rows += rows

    def retain(self, now: float) -> int:
        """Drop what is too old or too much; how many files went."""
        gone = to_drop(self._place.files(), self._settings.keep_days, self._settings.keep_size, now)
        if gone:
            self._place.drop([file.name for file in gone])
        drop_old(self._damaged, now - self._settings.keep_days * _DAY)
        return len(gone)


def _day(name: str) -> str:
    return name.partition("/")[0].removeprefix("day=")

"""Which sinks this machine has been asked to fill: only where to look, never how a job stands."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from octoserve.connectors.files import LocalFiles, write_whole


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A sink that a run began to work on. at: Unix time."""

    sink: str
    model: str
    version: int
    source: tuple[str, ...]
    at: float


def record(files: LocalFiles, state_dir: Path, entry: Entry) -> None:
    """Remember the sink; a sink has one entry. Raises OSError."""
    folder = state_dir / "batch"
    files.make_folder(folder)
    name = hashlib.sha256(entry.sink.encode(errors="surrogateescape")).hexdigest()[:16]
    write_whole(files, folder / f"{name}.json", msgspec.json.encode(entry), folder)


def entries(state_dir: Path) -> list[Entry]:
    """All of them, the newest first; what cannot be read is passed over."""
    found: list[Entry] = []
    folder = state_dir / "batch"
    for name in os.listdir(folder) if folder.is_dir() else ():
        if name.endswith(".json"):
            try:
                found.append(msgspec.json.decode((folder / name).read_bytes(), type=Entry))
            except (OSError, msgspec.DecodeError):
                continue
    return sorted(found, key=lambda entry: -entry.at)

"""`_SUCCESS`: what a committed sink holds. No dates, no paths of the sink: the same job gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from octoserve.core.errors import NotFound, OctoserveError
from octoserve.patterns.batch.job import Job, JobSettings, ModelIdentity, Routing
from octoserve.patterns.batch.journal import Finished, Part

SUCCESS = "_SUCCESS"


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A source file, by identity, and the parts that its rows are in."""

    path: str
    size: int
    mtime_ns: int
    etag: str = ""
    parts: tuple[int, int]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """rows_in = rows + bad_rows. run: the job's id; it is in every file's metadata too."""

    format: int = 1
    run: str
    model: ModelIdentity
    rows_in: int
    rows: int
    bad_rows: int
    parts: tuple[Part, ...]
    bad: tuple[Part, ...]
    inputs: tuple[Input, ...]
    schema: tuple[str, ...]
    settings: JobSettings
    software: dict[str, str]
    routing: Routing | msgspec.UnsetType = msgspec.UNSET
    """Only where it is not one version alone that answers."""
    arrow_schema: str | msgspec.UnsetType = msgspec.UNSET
    """Only where files hold no types: the columns of the parts, as Arrow serializes a schema, in base64."""


class DamagedManifest(OctoserveError):
    """`_SUCCESS` is there and says nothing that octoserve wrote."""

    reason = "damaged"


def make(job: Job, finished: Sequence[Finished], arrow_schema: str | msgspec.UnsetType = msgspec.UNSET) -> Manifest:
    """Of a job whose every split is finished, in order."""
    parts = tuple(line.part for line in finished)
    bad = tuple(line.bad for line in finished if line.bad is not None)
    inputs = []
    for number, file in enumerate(job.files):
        mine = [split.index for split in job.splits if split.file == number]
        span = (mine[0], mine[-1] + 1) if mine else (0, 0)
        inputs.append(Input(path=file.path, size=file.size, mtime_ns=file.mtime_ns, etag=file.etag, parts=span))
    return Manifest(
        run=job.id(),
        model=job.model,
        rows_in=sum(part.rows for part in (*parts, *bad)),
        rows=sum(part.rows for part in parts),
        bad_rows=sum(part.rows for part in bad),
        parts=parts,
        bad=bad,
        inputs=tuple(inputs),
        schema=job.schema,
        settings=job.settings,
        software=job.software,
        routing=msgspec.UNSET if job.routing is None else job.routing,
        arrow_schema=arrow_schema,
    )


def encode(manifest: Manifest) -> bytes:
    """Its bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1) + b"\n"


def read(folder: Path) -> Manifest | None:
    """Of a sink; None if it is not committed. Raises DamagedManifest."""
    try:
        return decode((folder / SUCCESS).read_bytes(), str(folder / SUCCESS))
    except (FileNotFoundError, NotADirectoryError):
        return None


def decode(data: bytes, where: str) -> Manifest:
    """Raises DamagedManifest."""
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise DamagedManifest(f"{where} is not a manifest of octoserve: {error}") from None


def wanted(folder: Path) -> Manifest:
    """The same, where there must be one."""
    manifest = read(folder)
    if manifest is None:
        raise NotFound(f"{folder} holds no {SUCCESS}: no batch job was committed there")
    return manifest

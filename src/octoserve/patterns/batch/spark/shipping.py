"""What executors are sent: the model's version folder, and octoserve's own code. Equal content has an equal name."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import octoserve
from octoserve.patterns.batch.job import ModelIdentity
from octoserve.patterns.batch.spark.session import Spark

_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNCHECKED = 1
"""Flags of compiled code that is taken as it is (PEP 552)."""


def ship(spark: Spark, repository: Path, models: Sequence[ModelIdentity]) -> str:
    """Send what executors need to score with `models`; the name of the archive that has them."""
    model = model_archive(repository, models, _scratch())
    spark.ship_archive(model)
    code = None if spark.local else code_archive(_scratch())
    if code is not None:
        spark.ship_code(code)
    return model.name


@functools.cache
def _scratch() -> Path:
    """Kept until the process ends: a session reads a file again for every executor that joins, however late."""
    folder = tempfile.mkdtemp(prefix="octoserve-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def model_archive(repository: Path, models: Sequence[ModelIdentity], folder: Path) -> Path:
    """`<model>/<version>/...` of all of them as a zip file in `folder`, named by their digests."""
    digest = hashlib.sha256("\n".join(f"{m.name}/{m.version} {m.digest}" for m in models).encode()).hexdigest()
    path = folder / f"octoserve-model-{digest[:24]}.zip"
    if path.exists():
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for model in models:
            root = repository / model.name / str(model.version)
            for file in _files(root):
                _add(archive, file, f"{model.name}/{model.version}/{file.relative_to(root)}")
    return path


def code_archive(folder: Path) -> Path | None:
    """octoserve as a zip file that can be imported from; None if this one is no folder, and so was shipped itself."""
    root = Path(octoserve.__file__).parent
    if not root.is_dir():
        return None
    hashed = hashlib.sha256()
    members: list[tuple[str, bytes]] = []
    for file in _files(root):
        name = f"octoserve/{file.relative_to(root)}"
        data = file.read_bytes()
        hashed.update(f"{name} {len(data)}\n".encode() + data)
        members.append((name, data))
        compiled = _compiled(file, data) if name.endswith(".py") else None
        if compiled is not None:
            members.append((f"{name}c", compiled))
    path = folder / f"octoserve-{octoserve.__version__}-{hashed.hexdigest()[:16]}.zip"
    if path.exists():
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, compress_type=zipfile.ZIP_DEFLATED)
    return path


def _compiled(file: Path, source: bytes) -> bytes | None:
    """What this Python has compiled of it, to be taken as it is; without, every worker process compiles it anew.

    A Python of another version passes over it and takes the source.
    """
    try:
        data = Path(importlib.util.cache_from_source(str(file))).read_bytes()
        info = file.stat()
    except OSError:
        return None
    same = int(info.st_mtime).to_bytes(8, "little")[:4] + (info.st_size & 0xFFFFFFFF).to_bytes(4, "little")
    if data[:8] != importlib.util.MAGIC_NUMBER + bytes(4) or data[8:16] != same:
        return None
    return data[:4] + _UNCHECKED.to_bytes(4, "little") + importlib.util.source_hash(source) + data[16:]


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    with file.open("rb") as data, archive.open(info, "w", force_zip64=True) as out:
        while block := data.read(1 << 20):
            out.write(block)


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            yield Path(folder, name)

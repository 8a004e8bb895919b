"""Packages for the tests that do not go together with octoserve's own: an environment of their own, made once from
`requirements/NAME.txt` and kept under .cache. `mlflow` is one.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_CACHE = _ROOT / ".cache" / "environments"


def python_of(name: str) -> Path:
    """The interpreter that has these packages. Raises RuntimeError with what uv said."""
    pinned = _ROOT / "requirements" / f"{name}.txt"
    made_from = hashlib.sha256(sys.version.encode() + pinned.read_bytes()).hexdigest()[:16]
    python = _CACHE / f"{name}-{made_from}" / "bin" / "python"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (python.parent / "whole").exists():
            _make(python.parents[1], pinned)
            (python.parent / "whole").touch()
    return python


def _make(folder: Path, pinned: Path) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise RuntimeError("uv is wanted, which `make` puts beside Python")
    shutil.rmtree(folder, ignore_errors=True)
    into = ["--python", str(folder / "bin" / "python")]
    for command in (
        [uv, "venv", "-q", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "-q", *into, "--require-hashes", "-r", str(pinned)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")

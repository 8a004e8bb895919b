"""One virtual environment for each peer, made on first use and kept under .cache/bench/.

A peer's packages are named in `peers/<peer>.txt`, the bench's own tools in `tools.txt`; an environment is
made anew when that file or the Python changes.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent
CHECKOUT = BENCH.parent
CACHE = CHECKOUT / ".cache" / "bench"


def python_for(name: str) -> Path:
    """The interpreter of the environment `name`, made if need be."""
    file = BENCH / f"{name}.txt" if name == "tools" else BENCH / "peers" / f"{name}.txt"
    return _environment(name, ["-r", str(file)], file.read_text())


def octoserve_command(override: str | None) -> list[str]:
    """How to call octoserve: as told, or beside this Python, or from an environment of its own."""
    if override:
        return shlex.split(override)
    beside = Path(sys.executable).with_name("octoserve")
    if beside.exists():
        return [str(beside)]
    pyproject = (CHECKOUT / "pyproject.toml").read_text()
    python = _environment("octoserve", ["-e", str(CHECKOUT)], pyproject)
    return [str(python.with_name("octoserve"))]


def all_packages() -> dict[str, dict[str, str]]:
    """For each environment made so far, its packages' versions."""
    code = "import importlib.metadata as m\nfor d in m.distributions(): print(d.name, d.version)"
    found = {}
    for folder in sorted((CACHE / "environments").iterdir()):
        listing = subprocess.run([folder / "bin" / "python", "-c", code], capture_output=True, text=True, check=False)
        found[folder.name] = dict(sorted(line.split(" ", 1) for line in listing.stdout.splitlines()))
    return found


def _environment(name: str, install: list[str], key: str) -> Path:
    folder = CACHE / "environments" / name
    python = folder / "bin" / "python"
    stamp = folder / "made-from"
    made_from = hashlib.sha256(f"{sys.version}\n{key}".encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == made_from:
        return python
    print(f"making the environment {name} ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    uv = shutil.which("uv") or _uv_beside()
    if uv:
        _call([uv, "venv", "-q", "--python", sys.executable, str(folder)])
        _call([uv, "pip", "install", "-q", "--python", str(python), *install])
    else:
        _call([sys.executable, "-m", "venv", str(folder)])
        _call([str(python), "-m", "pip", "install", "-q", *install])
    stamp.write_text(made_from)
    return python


def _uv_beside() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else None


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")

"""Apache Kafka's jars for the tests: resolved by Maven from Maven Central once, checked against pinned sums, and kept
under .cache.

`python tests/support/kafka_jars.py` fetches them; `... --pin` writes the sums anew after a change of kafka_pom.xml.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_POM = _HERE / "kafka_pom.xml"
_SUMS = _HERE / "kafka_jars.sha256"
_CACHE = _HERE.parents[1] / ".cache" / "kafka"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_LONGEST = 540
"""Seconds that Maven may take."""


def pinned() -> dict[str, str]:
    """Jar -> SHA-256."""
    pairs = (line.split() for line in _SUMS.read_text().splitlines())
    return {name: digest for digest, name in pairs}


def folder() -> Path:
    """Where this set of jars lies once it has been fetched: another set of sums is another folder."""
    return _CACHE / hashlib.sha256(_SUMS.read_bytes()).hexdigest()[:16]


def missing() -> str:
    """Why they are not here and cannot be fetched; empty if they are or can."""
    if folder().is_dir() or shutil.which("mvn"):
        return ""
    return "no jars of Apache Kafka under .cache, and no `mvn` to fetch them with (Debian's package maven)"


def jars() -> Path:
    """The folder, filled if it was not. Raises RuntimeError with what Maven said, or which sum is wrong."""
    there = folder()
    if there.is_dir():
        return there
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not there.is_dir():
            fetched = _fetch(_CACHE / "fetched")
            _check(fetched)
            fetched.rename(there)
    return there


def _fetch(into: Path) -> Path:
    shutil.rmtree(into, ignore_errors=True)
    done = subprocess.run(
        ["mvn", "-B", "-q", "-f", str(_POM), _PLUGIN, "-DincludeScope=runtime", f"-DoutputDirectory={into}"],
        capture_output=True, text=True, timeout=_LONGEST, env={**os.environ, "MAVEN_OPTS": "-XX:TieredStopAtLevel=1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"Maven could not fetch Apache Kafka:\n{(done.stdout + done.stderr)[-2000:]}")
    return into


def _sums(of: Path) -> dict[str, str]:
    return {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in sorted(of.glob("*.jar"))}


def _check(fetched: Path) -> None:
    want, have = pinned(), _sums(fetched)
    wrong = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
    if wrong:
        raise RuntimeError(f"Maven fetched something else than {_SUMS.name} says: {', '.join(wrong)}")


def main() -> None:
    """Fetch, and say where they are."""
    if "--pin" in sys.argv[1:]:
        sums = _sums(_fetch(_CACHE / "fetched"))
        _SUMS.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    print(jars())


if __name__ == "__main__":
    main()

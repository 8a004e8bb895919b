"""The comparison: octoserve against what users would pick instead, in one run on one machine.

    python bench/run.py [online] [grpc] [workers] [doors] [memory] [rollouts] [batch] [queue] [--seconds 5] [--rounds 5]

README.md beside this file says what is compared and how to read it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import environments
import processes
from contest import Contest, say
from parts import PARTS, ROWS

RESULTS = environments.BENCH / "results" / "latest.json"
LONG = ("batch", "queue")
"""Parts that run only if they are named: they take long."""
DEBIAN_PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client", "nginx": "nginx-light"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    tools = environments.python_for("tools")
    cores = processes.two_cores()
    if cores is None:
        say("no second core to pin to: server and load generator share what there is, so expect low ratios")
    contest = Contest(
        seconds=options.seconds,
        rounds=options.rounds,
        octoserve=None if options.peers_only else environments.octoserve_command(options.octoserve_command),
        material=_material(tools),
        tools=tools,
        server_cores=cores[0] if cores else None,
        load_cores=cores[1] if cores else None,
        missing=_missing(),
    )
    began = datetime.now(UTC).isoformat(timespec="seconds")
    for part in options.parts or [part for part in PARTS if part not in LONG]:
        contest.rows = options.rows or ROWS.get(part, 0)
        PARTS[part](contest)

    report, machine = contest.report, _machine()
    settings = {"began": began, "seconds": options.seconds, "rounds": options.rounds}
    document = {**settings, "machine": machine, "packages": environments.all_packages(), **report.document()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1))
    print(report.text())
    print(f"\n{machine['cpu']}, {machine['cores']} cores. All samples and package versions: {options.output}")
    bars_held = all(row.verdict not in ("missed", "not measured") for row in report.rows)
    return 1 if report.failures or (options.strict and not bars_held) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare octoserve with what users would pick instead.")
    default = f"(default: all but {', '.join(LONG)})"
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} {default}")
    parser.add_argument("--seconds", type=float, default=5.0, help="of load a sample (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each server (default: %(default)s)")
    usual = ", ".join(f"{part} {rows:,}" for part, rows in ROWS.items())
    parser.add_argument("--rows", type=int, help=f"of a batch job, messages of a queue (default: {usual})")
    parser.add_argument("--octoserve-command", metavar="COMMAND", help="how to call octoserve, without `serve`")
    parser.add_argument("--peers-only", action="store_true", help="measure the peers without octoserve")
    parser.add_argument("--strict", action="store_true", help="exit 1 also when a bar is missed")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON results (default: %(default)s)")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.rounds < 1 or options.seconds <= 0 or (options.rows is not None and options.rows < 1):
        parser.error("--rounds, --seconds and --rows must be above 0")
    return options


def _missing() -> set[str]:
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin"  # where Debian keeps nginx
    missing = {tool for tool in DEBIAN_PACKAGES if shutil.which(tool) is None}
    for tool in sorted(missing):
        say(f"{tool} is not installed; its rows are skipped. On Debian: apt-get install {DEBIAN_PACKAGES[tool]}")
    return missing


def _material(tools: Path) -> Path:
    """The models, requests and answers, made once for each state of what makes them."""
    sources = [environments.BENCH / "prepare.py", environments.BENCH / "tools.txt"]
    sources.append(environments.CHECKOUT / "examples" / "models" / "build.py")
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = environments.CACHE / "material" / digest
    if not folder.exists():
        say("training the models ...")
        unfinished = folder.with_suffix(f".{os.getpid()}")
        subprocess.run([tools, environments.BENCH / "prepare.py", unfinished], check=True)
        unfinished.rename(folder)
    return folder


def _machine() -> dict[str, object]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    versions = {"system": platform.platform(), "python": platform.python_version()}
    return {"cpu": cpu, "cores": processes.cores(), **versions}


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # unwinds the contexts, which end the servers


if __name__ == "__main__":
    sys.exit(main())

"""What Linux says about processes: which core they may use, their CPU time, their memory.

Where these facts are not to be had (no /proc, no affinity), pinning does nothing and figures are 0.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_TICK = os.sysconf("SC_CLK_TCK")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def two_cores() -> tuple[set[int], set[int]] | None:
    """A core for the server and another for the load generator; None where pinning is impossible."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    first = allowed[0]
    siblings = _siblings(first)
    others = [core for core in allowed if core not in siblings] or allowed[1:]
    return ({first}, {others[0]}) if others else None


def _siblings(core: int) -> set[int]:
    """Hardware threads of one physical core, itself included."""
    file = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        parts = [part.split("-") for part in file.read_text().strip().split(",")]
    except OSError:
        return {core}
    return {number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)}


def pinned(cores: set[int] | None) -> Callable[[], None]:
    """For `preexec_fn`: the child runs on `cores` (None: any) and dies with this process."""
    libc = ctypes.CDLL(None) if os.uname().sysname == "Linux" else None

    def prepare() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if cores is not None:
            os.sched_setaffinity(0, cores)

    return prepare


def tree(pid: int) -> list[int]:
    """`pid` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for known in found:
        found.extend(children.get(known, []))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of `pid` and its living descendants."""
    stats = [fields for process in tree(pid) if (fields := _stat(process))]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / _TICK


def busy_seconds() -> float:
    """CPU time that all processes and the kernel have used since the machine started."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / _TICK


def memory(pid: int) -> dict[str, float]:
    """Resident and proportional set size of `pid` and its descendants together, in MB of 10^6 bytes.

    RSS counts a page once for every process that maps it; PSS shares it out among them.
    """
    total = {"rss": 0.0, "pss": 0.0}
    for process in tree(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        sizes = {line.split(":")[0].lower(): int(line.split()[1]) * 1024 / 1e6 for line in lines}
        for name in total:
            total[name] += sizes.get(name, 0.0)
    return total


def resident(pid: int) -> float:
    """RSS of `pid` and its descendants together, in MB of 10^6 bytes; far quicker to read than `memory`."""
    total = 0
    for process in tree(pid):
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / 1e6


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: [0] state, [1] parent, [11] user, [12] system ticks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


def started(pid: int) -> str | None:
    """When `pid` started, in the kernel's ticks: tells a process from a later one with its number."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else None

"""One worker's operating-system process: spawned here, or adopted from a supervisor that is gone."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from octoserve.patterns.online.settings import WorkerConfig

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "octoserve.app")
"""A worker waits for its configuration on standard input; end of input without one lets it leave.

-P: modules are not looked for in the folder that the service was started in.
"""


def spawn_blank(command: Sequence[str] = COMMAND) -> subprocess.Popen[bytes]:
    """Start a worker that has not been told anything yet: it imports what it needs meanwhile.

    In a session of its own, so that Ctrl-C in a terminal reaches the supervisor only, which drains it.
    """
    return subprocess.Popen(list(command), stdin=subprocess.PIPE, start_new_session=True)


class WorkerProcess:
    """A process by pid and start time, which together are never used twice."""

    def __init__(self, pid: int, started: str, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.started = started
        self._child = child

    @classmethod
    def configured(cls, blank: subprocess.Popen[bytes], config: WorkerConfig) -> WorkerProcess:
        """Tell a blank worker what to be."""
        process = cls(blank.pid, start_time(blank.pid), blank)
        assert blank.stdin is not None
        try:
            blank.stdin.write(msgspec.json.encode(config) + b"\n")
            blank.stdin.close()
        except OSError as error:  # it died already; `exit_code` says how
            log.debug("worker %d does not listen: %s", blank.pid, error)
        return process

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal, as in subprocess; -1000 for an adopted one that is gone."""
        if self._child is not None:
            return self._child.poll()
        return None if is_alive(self.pid, self.started) else -1000

    def signal(self, number: int) -> None:
        """Send a signal, unless it is gone."""
        if self._child is not None:
            self._child.send_signal(number)
        elif self.exit_code() is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)


def start_time(pid: int) -> str:
    """What tells this process from a later one of the same pid; empty where the system does not say."""
    fields = _stat(pid) or []
    return fields[19] if len(fields) > 19 else ""


def is_alive(pid: int, started: str) -> bool:
    """Whether this very process runs; a zombie does not."""
    fields = _stat(pid)
    if fields:
        return fields[0] not in "ZX" and (not started or fields[19] == started)
    if sys.platform == "linux" and fields is not None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on: the name before it may hold spaces and brackets.

    Empty for a process that is not there; None when the system will not say, out of descriptors for one.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    except OSError:
        return None

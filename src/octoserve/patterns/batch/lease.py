"""Who may work on a sink: a lock that dies with its holder, and a token that grows with each.

The lock keeps a second run out on any file system with working locks. The token is for the others, and for a run that
was taken for dead: it is compared before everything that others see.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import time
from pathlib import Path

import msgspec

from octoserve.connectors.files import LocalFiles, write_whole
from octoserve.patterns.batch.job import Busy, Fenced

LOCK, LEASE = "lock", "lease.json"
_TRIES = 20


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has, or last had, the lease. since: Unix time.

    Where no lock dies with its holder, also:
    word:     random, of one run: no two holders are equal
    machine:  one boot of one kernel and one of its process namespaces; empty: not known
    began:    when the process began, as its kernel counts
    released: whether it has let go
    """

    token: int
    host: str
    pid: int
    since: float
    word: str = ""
    machine: str = ""
    began: str = ""
    released: bool = False

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {when}"


def me(token: int, now: float) -> Holder:
    """This process, with a word of its own."""
    return Holder(
        token=token,
        host=socket.gethostname(),
        pid=os.getpid(),
        since=now,
        word=secrets.token_hex(8),
        machine=_machine(),
        began=_began(os.getpid()),
    )


def is_gone(holder: Holder) -> bool:
    """Whether its process is known to have ended: it was one of this machine's, and there is none of its number that
    began when it did."""
    return bool(holder.machine) and holder.machine == _machine() and _began(holder.pid) != holder.began


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """Field 22 of proc(5)'s stat; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Lease:
    """Held from construction to `release`."""

    def __init__(self, files: LocalFiles, work: Path, now: float) -> None:
        """Raises Busy, with who holds it; FileNotFoundError if the work folder goes away under our hands."""
        self._work = work
        self._descriptor = _lock(work)
        last = holder(work)
        self.token = (last.token if last is not None else 0) + 1
        self.me = Holder(token=self.token, host=socket.gethostname(), pid=os.getpid(), since=now)
        try:
            write_whole(files, work / LEASE, msgspec.json.encode(self.me), work)
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        """Before anything is published. Raises Fenced."""
        now = holder(self._work)
        if now is None or now.token != self.token:
            who = f"by {now}" if now is not None else "with its work folder"
            raise Fenced(f"this run has lost its lease: it was taken over {who}; nothing more is written")

    def release(self) -> None:
        """Let others in."""
        os.close(self._descriptor)


def holder(work: Path) -> Holder | None:
    """What the lease says, whether its holder lives or not."""
    try:
        return msgspec.json.decode((work / LEASE).read_bytes(), type=Holder)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def is_held(work: Path) -> bool:
    """Whether somebody holds the lock now."""
    try:
        descriptor = os.open(work / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _lock(work: Path) -> int:
    for attempt in range(_TRIES):
        descriptor = os.open(work / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the folder, lock and all, while we waited for its lock.
            if os.fstat(descriptor).st_ino == os.stat(work / LOCK).st_ino:
                return descriptor
        except BlockingIOError:
            if attempt + 1 == _TRIES:
                os.close(descriptor)
                raise Busy(f"another run works on this sink: {holder(work) or 'it has just begun'}") from None
            time.sleep(0.005)  # `is_held` holds it for a moment
        except FileNotFoundError:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise Busy("another run works on this sink")

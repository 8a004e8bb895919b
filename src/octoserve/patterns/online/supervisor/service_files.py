"""What one service keeps in the state directory beside the store: its lock, its socket, its workers' record.

    serve-<http port>.lock   held by the supervisor as long as it lives
    serve-<http port>.sock   the control socket
    serve-<http port>.inside.<worker>.sock   by which the service asks a worker for predictions
    serve-<http port>.json   ports and workers, for a supervisor that finds them alive

Several services may share a state directory. The record is replaced by rename, after every change.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from pathlib import Path

import msgspec

from octoserve.core.errors import SettingsError
from octoserve.patterns.online.supervisor.worker_process import is_alive


class WorkerRecord(msgspec.Struct, frozen=True):
    """A worker as it was spawned; `config` is a digest of what it was told."""

    pid: int
    started: str
    index: int
    config: str


class ServiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A service: what was asked for, what it got, who works for it."""

    root: str
    host: str
    asked_http: int
    http_port: int
    grpc_port: int
    admin_port: int
    supervisor: int
    workers: tuple[WorkerRecord, ...] = ()

    def living(self) -> tuple[WorkerRecord, ...]:
        """Workers that still run."""
        return tuple(worker for worker in self.workers if is_alive(worker.pid, worker.started))


class ServiceFiles:
    """The files of one service, locked by this process."""

    def __init__(self, state_dir: Path, name: str, lock: int) -> None:
        self.name = name
        self.socket = state_dir / f"{name}.sock"
        self.inside = state_dir.absolute() / f"{name}.inside"
        """The beginning of the sockets by which the service asks its workers; one each."""
        self._record = state_dir / f"{name}.json"
        self._lock = lock

    @classmethod
    def claim(cls, state_dir: Path, http_port: int) -> ServiceFiles:
        """Lock the service of this port. Raises SettingsError if a supervisor already has it."""
        name = f"serve-{http_port}"
        lock = _lock(state_dir / f"{name}.lock")
        if lock is None:
            record = _read(state_dir / f"{name}.json")
            who = f" (pid {record.supervisor})" if record is not None else ""
            raise SettingsError(
                f"http_port: octoserve{who} already serves port {http_port} from {state_dir}; stop that one, "
                "or choose another --http-port or --state-dir"
            )
        return cls(state_dir, name, lock)

    @classmethod
    def find_orphan(cls, state_dir: Path, root: str) -> ServiceFiles | None:
        """A service on a picked port (0 was asked for) whose supervisor is gone and whose workers serve on."""
        for path in sorted(state_dir.glob("serve-*.json")):
            if not re.fullmatch(r"serve-\d+", path.stem):
                continue
            record = _read(path)
            if record is None or record.asked_http or record.root != root or not record.living():
                continue
            lock = _lock(path.with_suffix(".lock"))
            if lock is not None:
                return cls(state_dir, path.stem, lock)
        return None

    def read(self) -> ServiceRecord | None:
        """The record that the last supervisor left."""
        return _read(self._record)

    def write(self, record: ServiceRecord) -> None:
        """Replace the record. Raises OSError, and then the last one stands."""
        if not self._record.parent.is_dir():
            self.restore()
        write_atomically(self._record, msgspec.json.encode(record))

    def restore(self) -> None:
        """Make the state directory again that somebody has removed."""
        self._record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def close(self, workers_left: bool = False) -> None:
        """Let go of the lock; the files go too, unless workers are left that a successor should find."""
        if not workers_left:
            self._record.unlink(missing_ok=True)
            self.socket.unlink(missing_ok=True)
            for inside in self.inside.parent.glob(f"{self.name}.inside.*.sock"):
                inside.unlink(missing_ok=True)
        os.close(self._lock)


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a neighbour, then rename: a reader sees the old file or the new one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _lock(path: Path) -> int | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _read(path: Path) -> ServiceRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServiceRecord)
    except (OSError, msgspec.MsgspecError):
        return None

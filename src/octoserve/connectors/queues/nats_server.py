"""The embedded broker: a real NATS server over files in the state directory, shared by all commands that name it.

Whoever uses it holds a shared lock on `users.lock`. Who comes first starts the server, who leaves last stops it; both
under `start.lock`, so that two never start two. A user that is killed leaves it running, and the next takes it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from octoserve.core.errors import SettingsError, Unavailable

REMEDY = "pip install 'octoserve[nats]'"
_START = 30.0
"""Seconds: a server with large streams reads them all before it answers."""
_STOP = 15.0
MAX_PAYLOAD = 8 << 20

_CONFIG = """# Written by octoserve each time it starts this server.
listen: "127.0.0.1:{port}"
server_name: "{name}"
authorization {{ token: "{token}" }}
max_payload: {max_payload}
jetstream {{
  store_dir: "{store}"
  sync_interval: always   # a message is on disk before it is acknowledged
}}
"""


class _Address(msgspec.Struct):
    name: str
    port: int
    token: str
    pid: int = 0


def binary() -> str:
    """The server's program: of the wheel beside this Python, else on the path. Raises SettingsError."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise SettingsError(f"source: the embedded broker is the NATS server, which is not installed: {REMEDY}")
    return found


class EmbeddedBroker:
    """One use of the broker in `state_dir`, from `join` to `leave`."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "broker"
        self._users: int | None = None

    def join(self) -> str:
        """Its URL, with its token; started if need be. May be asked again. Raises Unavailable, SettingsError."""
        program = binary()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._starting():
                if self._users is None:
                    self._users = os.open(self.folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
                    fcntl.flock(self._users, fcntl.LOCK_SH)
                address = self._running() or self._start(program)
        except OSError as error:
            raise SettingsError(
                f"state-dir: cannot keep a broker in {self.folder}: {error.strerror or error}; name another --state-dir"
            ) from None
        return f"nats://{address.token}@127.0.0.1:{address.port}"

    def leave(self) -> None:
        """Stop the server if nobody else uses it."""
        if self._users is None:
            return
        with self._starting():
            os.close(self._users)
            self._users = None
            users = os.open(self.folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                address = self._running()
                if address is not None:
                    _stop(address.pid)
            except BlockingIOError:
                pass  # others use it
            finally:
                os.close(users)

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        lock = os.open(self.folder / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _recorded(self) -> _Address | None:
        try:
            return msgspec.json.decode((self.folder / "address.json").read_bytes(), type=_Address)
        except (OSError, msgspec.MsgspecError):
            return None

    def _running(self) -> _Address | None:
        """The server that was recorded, if it is the one that answers there."""
        address = self._recorded()
        return address if address is not None and greeting(address.port).get("server_name") == address.name else None

    def _start(self, program: str) -> _Address:
        before = self._recorded()
        # The old port, so that those who were connected to a server that died find the next one.
        port = before.port if before is not None and _is_free(before.port) else _free_port()
        token = before.token if before is not None else secrets.token_hex(16)
        address = _Address(f"octoserve-{secrets.token_hex(4)}", port, token)
        config = self.folder / "server.conf"
        config.write_text(
            _CONFIG.format(
                port=port,
                name=address.name,
                token=token,
                max_payload=MAX_PAYLOAD,
                store=json.dumps(os.path.abspath(self.folder / "data"))[1:-1],
            )
        )
        config.chmod(0o600)
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [program, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C at a command is not for the broker
            )
        address.pid = process.pid
        _write(self.folder / "address.json", msgspec.json.encode(address))
        end = time.monotonic() + _START
        while greeting(port).get("server_name") != address.name:
            if process.poll() is not None or time.monotonic() > end:
                why = "ended" if process.poll() is not None else f"does not answer after {_START:g} s"
                process.kill()
                raise Unavailable(f"the embedded broker {why}; its log is {self.folder / 'server.log'}")
            time.sleep(0.02)
        return address


def greeting(port: int) -> dict[str, Any]:
    """What a NATS server says first (INFO); empty if none does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            line = connection.makefile("rb").readline(1 << 16)
        word, _, rest = line.partition(b" ")
        return dict(json.loads(rest)) if word == b"INFO" else {}
    except (OSError, ValueError):
        return {}


def _stop(pid: int) -> None:
    """By SIGTERM, until it is gone."""
    end = time.monotonic() + _STOP
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < end:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # where it is our own child, it stays until it is asked for
            os.kill(pid, 0)
            time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _write(path: Path, content: bytes) -> None:
    ahead = path.with_suffix(".tmp")
    ahead.write_bytes(content)
    ahead.chmod(0o600)
    ahead.rename(path)

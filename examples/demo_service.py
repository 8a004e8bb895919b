"""The demo's service: its models, its ports, the process, and its end.

Everything lies under `.cache/demo`:

    models/    the model repository that is served
    next/      later versions of fraud and wine, until the demo puts them into the repository
    state/     the service's state directory, new for every run
    serve.log  what the service printed
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".cache" / "demo"
MODELS = HOME / "models"
NEXT = HOME / "next"
SPEC = ROOT / "examples" / "demo.yaml"
BUILD = ROOT / "examples" / "models" / "build.py"
NAMES = ("fraud", "wine", "penguins", "content_type", "passage_match")
LATER = (("fraud", 2), ("wine", 2), ("wine", 3))
"""What comes while the service runs; version 3 of wine is made to be worse."""
WANTED = {"http": 8080, "grpc": 8081, "admin": 8082}
READY_SECONDS = 90.0
STOP_SECONDS = 35.0


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


# --- models ------------------------------------------------------------------------------------------


def artifact(model: str, version: int = 1, repository: Path = MODELS) -> Path:
    """Where a version's ONNX file lies."""
    return repository / model / str(version) / "model.onnx"


def take_back_later_versions() -> None:
    """Undo what an earlier run published, so that this one has something to publish."""
    for model, version in LATER:
        published, waiting = artifact(model, version).parent, artifact(model, version, NEXT).parent
        if published.exists():
            shutil.rmtree(waiting, ignore_errors=True)
            waiting.parent.mkdir(parents=True, exist_ok=True)
            published.rename(waiting)


def publish(model: str, version: int) -> None:
    """Put a version into the repository whole, by one rename."""
    artifact(model, version, NEXT).parent.rename(artifact(model, version).parent)


def build_missing() -> list[str]:
    """Build what is not there yet, side by side. Returns the names of what was built."""
    jobs: list[tuple[str, Sequence[str]]] = []
    missing = [name for name in NAMES if not artifact(name).exists()]
    if missing:
        jobs.append((", ".join(missing), [str(MODELS), "--only", *missing]))
    twos = [name for name in ("fraud", "wine") if not artifact(name, 2, NEXT).exists()]
    if twos:
        jobs.append((f"version 2 of {', '.join(twos)}", [str(NEXT), "--only", *twos, "--version", "2"]))
    if not artifact("wine", 3, NEXT).exists():
        jobs.append(("version 3 of wine", [str(NEXT), "--only", "wine", "--version", "3", "--worse"]))
    running = [
        subprocess.Popen(
            [sys.executable, str(BUILD), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _, arguments in jobs
    ]
    try:
        for (what, _), process in zip(jobs, running, strict=True):
            output, _ = process.communicate()
            if process.returncode:
                raise DemoError(f"building {what} failed:\n{output.strip()[-2000:]}")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    return [what for what, _ in jobs]


# --- one demo at a time --------------------------------------------------------------------------------


def lock() -> int:
    """Hold `.cache/demo` for this process. Raises DemoError if another demo has it."""
    HOME.mkdir(parents=True, exist_ok=True)
    handle = os.open(HOME / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.pread(handle, 32, 0).decode().strip()
        os.close(handle)
        raise DemoError(
            f"another demo (pid {pid or 'unknown'}) runs from this checkout; stop it with Ctrl-C in its terminal"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


def end_leftover() -> int | None:
    """End the service of a demo that was killed before it could; its pid, or None if there is none."""
    try:
        pid = int((HOME / "serve.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    if str(MODELS).encode() not in command:
        return None
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    return pid


# --- the process ---------------------------------------------------------------------------------------


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def choose_ports() -> dict[str, int]:
    """The usual ports; 0, which picks a free one, for each that is taken."""
    return {door: port if is_free(port) else 0 for door, port in WANTED.items()}


class Service:
    """`octoserve serve` as a process of its own. `with` it, once started: it is stopped in every case."""

    def __init__(self, asked: dict[str, int]) -> None:
        self.asked = asked
        self.ports: dict[str, int] = {}
        self.ready_after = 0.0
        self._ports_file = HOME / "ports.json"
        self._log = HOME / "serve.log"
        self._process: subprocess.Popen[bytes] | None = None

    def arguments(self) -> list[str]:
        """What comes after `octoserve` on the command line."""
        doors = [part for door in WANTED for part in (f"--{door}-port", str(self.asked[door]))]
        files = ["--state-dir", str(HOME / "state"), "--ports-file", str(self._ports_file)]
        return ["serve", "--spec", str(SPEC), "--repository", str(MODELS), *doors, *files]

    def __enter__(self) -> Service:
        return self

    def start(self) -> None:
        """Start the process and wait until it is ready; nothing is left running if that fails."""
        shutil.rmtree(HOME / "state", ignore_errors=True)
        self._ports_file.unlink(missing_ok=True)
        began = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "octoserve", *self.arguments()],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment(),
                start_new_session=True,  # Ctrl-C is for the demo, which stops the service in order
            )
        (HOME / "serve.pid").write_text(str(self._process.pid))
        try:
            self._wait_for_ports(began)
        except BaseException:
            self.stop()
            raise

    def _wait_for_ports(self, began: float) -> None:
        assert self._process is not None
        while not self._ports_file.exists():
            if self._process.poll() is not None:
                raise DemoError(f"octoserve serve ended with exit code {self._process.returncode}:\n{self.tail()}")
            if time.monotonic() - began > READY_SECONDS:
                raise DemoError(f"octoserve serve was not ready after {READY_SECONDS:.0f} s:\n{self.tail()}")
            time.sleep(0.01)
        self.ready_after = time.monotonic() - began
        self.ports = json.loads(self._ports_file.read_text())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def http(self) -> str:
        """URL of the HTTP door."""
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def grpc(self) -> str:
        """Address of the gRPC door."""
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def admin(self) -> str:
        """URL of the admin API."""
        return f"http://127.0.0.1:{self.ports['admin']}"

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process is not None else None

    def tail(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace").strip()[-2000:] or "(it printed nothing)"

    def stop(self) -> int | None:
        """SIGTERM, and SIGKILL for the whole process group if that does not help. Its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        (HOME / "serve.pid").unlink(missing_ok=True)
        return process.returncode


def environment() -> dict[str, str]:
    """This process's, without settings that are meant for another service."""
    return {key: value for key, value in os.environ.items() if not key.startswith("OCTOSERVE_")}

"""`octoserve rollout` on a real terminal: what it leaves there, and that a restart of the service does not end it."""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from support.rollout_api import NEW, RolloutApi, ended, status


@pytest.fixture
def api():
    server = RolloutApi()
    yield server
    server.close()


@contextmanager
def terminal(*arguments, columns=80, rows=24):
    """The command in a pseudo-terminal: `read(until)` gives what it wrote up to then."""
    import fcntl
    import pty
    import termios

    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environ = {
        k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "OCTOSERVE_ADMIN_TOKEN")
    }
    environ |= {"TERM": "xterm-256color", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "octoserve", "rollout", *arguments]
    process = subprocess.Popen(command, stdin=there, stdout=there, stderr=there, env=environ, start_new_session=True)
    os.close(there)
    came = bytearray()

    def read(until=None):
        """Up to and with this text, or to the end."""
        start, end = len(came), time.monotonic() + 60
        while until is None or until.encode() not in came[start:]:
            assert select.select([here], [], [], max(0.0, end - time.monotonic()))[0], came.decode(errors="replace")
            try:
                part = os.read(here, 65536)
            except OSError:
                part = b""
            if not part:
                assert until is None, came.decode(errors="replace")
                break
            came.extend(part)
        return came[start:].decode(errors="replace")

    try:
        yield process, read
    finally:
        process.kill()
        process.wait()
        os.close(here)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_watch_on_a_terminal_survives_a_restart_and_leaves_it_clean(api, stop):
    api.script = [status(), status(step=2, waiting_for="the second look")]
    with terminal("status", "fraud", "--watch", "--interval", "0.1", "--admin-url", api.url) as (process, read):
        text = read("the second look")
        assert "\x1b[?1049h" in text
        assert "\x1b[?25l" in text
        api.stop()
        read("no answer for ")
        api.script = [status(step=3, waiting_for="the third look")]
        api.start()
        read("the third look")
        os.kill(process.pid, stop)
        rest = read()
        assert process.wait() == 0
    assert "\x1b[?1049l" in rest
    assert "\x1b[?25h" in rest
    left = rest.split("\x1b[?1049l")[-1]
    assert "step 4 of 4" in left
    assert "Traceback" not in rest
    plain = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", left)
    assert max(len(line.rstrip("\r")) for line in plain.split("\n")) <= 80


def test_waiting_on_a_terminal_ends_with_the_rollout(api):
    api.script = [ended("promoted"), status(**NEW), ended("promoted", "well done", **NEW)]
    arguments = ("start", "fraud", "--candidate", "2", "--wait", "--interval", "0.1", "--admin-url", api.url)
    with terminal(*arguments, columns=120, rows=40) as (process, read):
        text = read()
        assert process.wait() == 0
    assert "well done" in text.split("\x1b[?1049l")[-1]

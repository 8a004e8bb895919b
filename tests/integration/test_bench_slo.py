"""`octoserve bench --verify-slo` against a server that answers so many requests a second and sheds the others.

The server keeps its limit by the clock, so what is claimed to be kept can be checked against it on any machine, however
busy: no answer of the tool may say more than the server can do.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octoserve.cli.main import run
from octoserve.core.errors import SettingsError

A_SECOND = 200.0
BURST = 60.0
MAY_FAIL = 0.1


class Bucket(asyncio.Protocol):
    """Answers 200 while there are tokens, else 429."""

    tokens, at, wrong = BURST, 0.0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        kind = type(self)
        for _ in range(data.count(b"\r\n\r\n")):
            now = time.monotonic()
            kind.tokens = min(BURST, kind.tokens + (now - kind.at) * A_SECOND)
            kind.at = now
            status = b"400 Bad" if kind.wrong else b"200 OK" if kind.tokens >= 1 else b"429 Later"
            kind.tokens -= kind.tokens >= 1
            self._transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\n{}")  # type: ignore[attr-defined]


@pytest.fixture
def server() -> Iterator[tuple[str, type[Bucket]]]:
    kind = type("Played", (Bucket,), {"tokens": BURST, "at": time.monotonic()})
    loop = asyncio.new_event_loop()
    made = loop.run_until_complete(loop.create_server(kind, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.sockets[0].getsockname()[1]}/v2/models/m/infer", kind
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def bench(server: str, folder: Path, *words: str) -> int:
    body = folder / "body.json"
    body.write_text("{}")
    with pytest.raises(SystemExit) as ended:
        run(["bench", server, "--verify-slo", "--body", str(body), "--warm-up", "0.1", "-c", "8", *words])
    return int(ended.value.code or 0)


PROMISE = ("--availability", "90%")


def test_the_report_is_true_of_a_server_that_is_loaded_past_its_limit(
    server: tuple[str, type[Bucket]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = server
    code = bench(url, tmp_path, *PROMISE, "--rate", "100", "-d", "1", "--json")
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["slo"] == {"latency": None, "availability": 0.9, "window": 30 * 86400.0}
    assert code == (0 if told["at"]["verdict"] == "KEPT" else 1)
    highest, broken = told["highest"], told["broken"]
    assert highest["verdict"] == "KEPT"
    assert highest["rate"] < broken["rate"]
    most = (A_SECOND * highest["seconds"] + BURST) / (1 - MAY_FAIL) / highest["seconds"]
    assert highest["rate"] <= most * 1.02, "no load is claimed that the server cannot have answered"
    assert told["replicas"]["carry"] * 0.8 * highest["rate"] >= 100
    assert told["replicas"]["total"] == told["replicas"]["carry"] + 1
    # Past the limit: three times what the server can do.
    assert bench(url, tmp_path, *PROMISE, "--rate", str(3 * A_SECOND), "-d", "1", "--no-find", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["at"]["verdict"] == "BROKEN"
    assert told["highest"] is None


def test_people_are_told_what_was_tried_and_what_to_set(
    server: tuple[str, type[Bucket]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(server[0], tmp_path, *PROMISE, "--rate", "100", "-d", "0.3")
    out = capsys.readouterr().out
    assert "promised   90 % answered" in out
    for word in ("at ", "tried ", "highest ", "replicas ", "not answered"):
        assert word in out


def test_what_cannot_be_verified_is_said(server: tuple[str, type[Bucket]], tmp_path: Path) -> None:
    url, kind = server
    body = tmp_path / "body.json"
    body.write_text("{}")
    told = [url, "--verify-slo", "--body", str(body), "-d", "0.2", "--warm-up", "0"]
    with pytest.raises(SettingsError, match="--latency-p99: a duration such as 20ms, 30s or 2m wanted, 'soon' came"):
        run(["bench", *told, "--latency-p99", "soon"])
    with pytest.raises(SettingsError, match="--availability: a share from 90% to"):
        run(["bench", *told, "--availability", "100%"])
    kind.wrong = True
    with pytest.raises(SettingsError, match="refuses the request itself"):
        run(["bench", *told, "--availability", "90%"])

"""The preview: golden samples and recorded requests, against a door that answers as it is told."""

from __future__ import annotations

import asyncio
import json
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from octoserve.control.rollout.machine import start
from octoserve.control.rollout.values import Course, Step
from octoserve.control.rollout.view import Preview
from octoserve.core.tensors import Tensor
from octoserve.patterns.online.supervisor.rollout_preview import Previewer
from octoserve.repository.layout import DiskState, VersionOnDisk
from support.rolling import golden


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """On a worker's socket inside."""

    daemon_threads = True


class Door:
    """Answers `plus = x + 2`; the first `statuses` say otherwise."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                door.bodies.append(body)
                door.paths.append(self.path)
                status = door.statuses.pop(0) if door.statuses else 200
                self.send_response(status)
                answer = json.dumps(door.answer(body) if status == 200 else {"error": f"status {status}"}).encode()
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "inside")
        self.server = Server(str(self.path), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, body: bytes) -> dict[str, Any]:
        try:
            [x] = json.loads(body)["inputs"]
        except ValueError:
            return {"outputs": []}
        data = [[v + 2 for v in row] for row in x["data"]]
        return {"outputs": [{"name": "plus", "datatype": "FP32", "shape": x["shape"], "data": data}]}


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.folder.cleanup()


def preview(door: Door, folder: Path, recorded: list[list[Tensor]] | None = None, **course: Any) -> Preview:
    made = start("a/b", 1, 2, Course(strategy="blue-green", steps=(Step(),), **course), "r1", 0.0)
    disk = VersionOnDisk(model="a/b", version=2, path=str(folder), state=DiskState.WHOLE)
    previewer = Previewer([door.path], lambda *_: recorded or [], pause=lambda _: None)
    return asyncio.run(previewer(made, disk))


def test_golden_samples_are_compared(door: Door, tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text(golden([[1, 2]], 2))
    assert preview(door, tmp_path).ok
    assert door.paths == ["/v2/models/a%2Fb/versions/2/infer"]
    (tmp_path / "golden.json").write_text(golden([[1, 2]], 3))
    failed = preview(door, tmp_path)
    assert not failed.ok
    assert "golden.json, sample 1: output 'plus'" in failed.reason


@pytest.mark.parametrize("text", ["{", "[]x", '[{"inputs": []}]', "[1]"])
def test_a_golden_file_that_is_none_says_what_was_wanted(door: Door, tmp_path: Path, text: str) -> None:
    (tmp_path / "golden.json").write_text(text)
    failed = preview(door, tmp_path)
    assert not failed.ok
    assert "golden.json" in failed.reason or "could not be" in failed.reason, failed.reason


def test_a_busy_service_is_not_the_candidates_doing(door: Door, tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text(golden([[1, 2]], 2))
    door.statuses = [429, 503, 503]
    assert preview(door, tmp_path).ok
    assert len(door.bodies) == 4
    door.statuses = [503] * 9
    assert "answered 503" in preview(door, tmp_path).reason
    door.statuses = [500]
    assert "sample 1: answered 500" in preview(door, tmp_path).reason


def test_recorded_requests_are_sent_bit_by_bit(door: Door, tmp_path: Path) -> None:
    x = Tensor.of("x", np.array([[1.5, -0.0]], "<f4"))
    assert preview(door, tmp_path, [[x], [x]], replay=2).ok
    [first, _] = door.bodies
    assert first.endswith(x.array().tobytes())
    head = msgspec.json.decode(first[: -x.array().nbytes])
    assert head["inputs"][0]["parameters"] == {"binary_data_size": 8}


def test_nothing_recorded_is_no_pass(door: Door, tmp_path: Path) -> None:
    failed = preview(door, tmp_path, [], replay=10)
    assert not failed.ok
    assert "none is stored" in failed.reason


def test_nobody_there(tmp_path: Path) -> None:
    door = Door()
    door.server.shutdown()
    door.server.server_close()
    (tmp_path / "golden.json").write_text(golden([[1, 2]], 2))
    assert "could not be asked" in preview(door, tmp_path).reason

"""What a queue relies on of sinks without transactions: all of it has arrived on return, each under its message id; who
is away is told from who says no.

A new sink joins by a `Backend` in `BACKENDS`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from octoserve.app import queue_kinds
from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.headers import id_of
from octoserve.connectors.queues.nats_server import EmbeddedBroker
from octoserve.connectors.queues.protocol import ID_HEADER, QueueSink, Unwritable
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.signature import TensorSpec
from octoserve.patterns.message_queue.opening import tools
from support.queues import OUTPUTS, results


class Stream:
    """An embedded broker's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = "embedded:results"
        self.broker = EmbeddedBroker(folder)
        self.broker.join()

    def rows(self) -> list[dict[str, Any]]:
        with closing(tools(queue_kinds(), self.address, self.folder)) as opened:
            messages = list(opened.tail(10_000, False))
        rows = [json.loads(message.value) for message in messages]
        assert [m.headers[ID_HEADER] for m in messages] == [row["message_id"] for row in rows]
        return rows

    def close(self) -> None:
        self.broker.leave()


class Files:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"parquet:///{folder}/results"

    def rows(self) -> list[dict[str, Any]]:
        found = sorted(self.folder.rglob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
        assert not [path for path in found if path.name.startswith(".")]
        return [row for path in found for row in pq.ParquetFile(path).read().to_pylist()]

    def close(self) -> None:
        pass


class Hook:
    """A server that takes what it is sent. answers: status codes for the next requests, by message id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.took: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[str] = []
        self.answers: dict[str, list[int]] = {}
        self.headers: dict[str, str] = {}
        lock = threading.Lock()
        hook = self

        class Page(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                id = body["message_id"]
                with lock:
                    hook.asked.append(id)
                    hook.headers = dict(self.headers)
                    status = hook.answers[id].pop(0) if hook.answers.get(id) else 200
                    if status == 200:
                        hook.took.append((self.headers["Idempotency-Key"], body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://me:pass%2Fword@127.0.0.1:{self.server.server_address[1]}/hook?a=1"

    def rows(self) -> list[dict[str, Any]]:
        assert all(id_of(key) == body["message_id"] for key, body in self.took)
        return [body for _, body in self.took]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


BACKENDS = {"embedded": Stream, "parquet": Files, "http": Hook}


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = BACKENDS[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Hook]:
    made = Hook(tmp_path)
    yield made
    made.close()


def opened(backend: Any, outputs: Any = OUTPUTS, address: str = "") -> QueueSink:
    where = parse(address or backend.address, "sink")
    sink = queue_kinds(backend.folder).sinks[where.scheme](where)
    sink.open("memory:q", outputs)
    return sink


def test_everything_has_arrived_on_return_under_its_message_id(backend: Any):
    ids = [f"m{i}" for i in range(500)]
    with closing(opened(backend)) as sink:
        claims = sink.claim(["a", "b"], 5.0)
        assert set(claims) == {"a", "b"}
        assert sink.store(results(ids), []).written == 500
        assert sink.store(results([]), []).written == 0
    rows = {row["message_id"]: row for row in backend.rows()}
    assert sorted(rows) == sorted(ids)
    first = rows["m7"]
    assert (first["label"], first["scores"], first["model"], first["version"]) == (1, [0.5, 1.0], "m", 3)
    assert str(first["scored_at"]).replace("T", " ").startswith("2023-11-14 22:13:20.25")


def test_a_result_that_is_a_message_carries_its_trace_on(backend: Any):
    if isinstance(backend, Files):
        return
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b"}
    some = results(["m1"])
    traced = [msgspec.structs.replace(message, headers={**trace, "other": "x"}) for message in some.messages]
    with closing(opened(backend)) as sink:
        sink.store(msgspec.structs.replace(some, messages=traced), [])
    if isinstance(backend, Hook):
        told = {name.lower(): value for name, value in backend.headers.items()}
    else:
        with closing(tools(queue_kinds(), backend.address, backend.folder)) as there:
            (message,) = there.tail(1, False)
        told = dict(message.headers)
    assert trace.items() <= told.items()
    assert "other" not in told


def test_ids_that_headers_cannot_hold_stay_apart(backend: Any):
    ids = ["a\nb", "a b", "a\\nb", " a", "a", "a\r\nx: y", "Zürich", '"a"', "\\x0a"]
    with closing(opened(backend)) as sink:
        assert sink.store(results(ids), []).written == len(ids)
    assert sorted(row["message_id"] for row in backend.rows()) == sorted(ids)


def test_text_and_numbers_come_as_they_are(backend: Any):
    specs = (TensorSpec("word", "BYTES", (-1,)), TensorSpec("words", "BYTES", (-1, 2)), TensorSpec("n", "INT64", (-1,)))
    given = {
        "word": np.array(["Zürich".encode()], dtype=object),
        "words": np.array([[b"a", b""]], dtype=object),
        "n": np.array([-(2**53)]),
    }
    with closing(opened(backend, specs)) as sink:
        sink.store(results(["m1"], outputs=specs, **given), [])
    (row,) = backend.rows()
    assert (row["word"], row["words"], row["n"]) == ("Zürich", ["a", ""], -(2**53))


def test_what_it_can_never_hold_is_refused_and_nothing_of_it_arrives(backend: Any):
    text = (TensorSpec("word", "BYTES", (-1,)),)
    with closing(opened(backend, text)) as sink, pytest.raises(Unwritable, match="UTF-8"):
        sink.store(results(["m1"], outputs=text, word=np.array([b"\xff"], dtype=object)), [])
    assert backend.rows() == []


def test_an_outputs_name_that_is_ours_is_said(backend: Any):
    with pytest.raises(SettingsError, match="version"):
        opened(backend, (TensorSpec("version", "INT64", (-1,)),))


def test_a_stream_drops_what_comes_again_soon(tmp_path: Path):
    with closing(Stream(tmp_path)) as backend, closing(opened(backend)) as sink:
        sink.store(results(["m1", "m2"]), [])
        again = sink.store(results(["m2", "m3"], label=2), [])
        assert (again.written, again.repeated) == (1, 1)
        assert [(row["message_id"], row["label"]) for row in backend.rows()] == [("m1", 1), ("m2", 1), ("m3", 2)]


def test_a_hook_that_is_busy_gets_the_rest_again_and_only_that(hook: Hook):
    hook.answers = {"m1": [503], "m2": [429, 500]}
    with closing(opened(hook)) as sink:
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"503|429|500"):
                sink.store(results(["m0", "m1", "m2", "m3"]), [])
        assert sink.store(results(["m0", "m1", "m2", "m3"]), []).written == 4
        assert sorted(hook.asked) == ["m0", "m1", "m1", "m2", "m2", "m2", "m3"]
        sink.store(results(["m0"]), [])
        assert hook.asked.count("m0") == 2, "a message of the same id later is another matter"
    assert hook.headers["Authorization"] == "Basic bWU6cGFzcy93b3Jk"


def test_a_hook_that_says_no_refuses_that_result(hook: Hook):
    hook.answers = {"m1": [404, 404]}
    with closing(opened(hook)) as sink:
        assert "pass" not in sink.label
        with pytest.raises(Unwritable, match="404"):
            sink.store(results(["m0", "m1"]), [])
        with pytest.raises(Unwritable):
            sink.store(results(["m1"]), [])
        sink.store(results(["m0"]), [])
    assert [row["message_id"] for row in hook.rows()] == ["m0"]


def test_a_hook_that_is_not_there_is_away(hook: Hook):
    with closing(opened(hook)) as sink:
        sink.store(results(["m0"]), [])
        hook.close()
        with closing(opened(hook)) as other, pytest.raises(Unavailable):
            other.store(results(["m1"]), [])


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backend = Files(tmp_path)
    with closing(opened(backend)) as sink:
        sink.store(results(["m1"]), [])

        def full(*args: Any, **named: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pyarrow.parquet.write_table", full)
        with pytest.raises(Unavailable, match="No space left"):
            sink.store(results(["m2"]), [])
    assert [row["message_id"] for row in backend.rows()] == ["m1"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_files_are_gathered_for_a_while(tmp_path: Path):
    folder = f"parquet:///{tmp_path}/r"
    backend = Files(tmp_path)
    assert opened(backend).traits.gathers == 5.0
    assert opened(backend, address=f"{folder}?every=0.5s").traits.gathers == 0.5
    with pytest.raises(SettingsError, match="every"):
        opened(backend, address=f"{folder}?every=often")

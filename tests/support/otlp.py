"""Spans as a collector gets them. `Receiver` stands in for one: it takes OTLP over HTTP and decodes it, as the standard
says, by opentelemetry-proto. `collector` is the real one, where it is installed."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.supervised import until

OTELCOL = shutil.which("octoserve-otelcol") or shutil.which("octoserve-otelcol", path=str(Path.home() / "go" / "bin"))
"""Built by `go install` in tests/support/otelcol; see there."""


class Seen(NamedTuple):
    """A span as it arrived. Ids in hexadecimal; parent "": none. kind: as OTLP names it, SPAN_KIND_SERVER."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    attributes: Mapping[str, Any]
    links: list[tuple[str, str]]
    error: bool
    start: int
    end: int
    state: str
    resource: Mapping[str, Any]


class Spans:
    """What has arrived, in any order."""

    def all(self) -> list[Seen]:
        """So far."""
        raise NotImplementedError

    def wait(self, *names: str, patience: float = 30.0, **attributes: Any) -> list[Seen]:
        """One span of each name, once they are there; names may come more than once."""
        found: list[Seen] = []

        def there() -> bool:
            left = self.all()
            found.clear()
            for name in names:
                one = next((s for s in left if s.name == name and attributes.items() <= s.attributes.items()), None)
                if one is None:
                    return False
                left.remove(one)
                found.append(one)
            return True

        until(there, patience, f"{names}; there are {[s.name for s in self.all()]}")
        return found

    def trace(self, trace: str) -> list[Seen]:
        """All of one trace."""
        return [span for span in self.all() if span.trace == trace]


def spans_in(request: Mapping[str, Any], ids: Any = lambda text: text) -> list[Seen]:
    """Those of an ExportTraceServiceRequest in its JSON form. ids: makes hexadecimal of an id."""
    found = []
    for group in request.get("resourceSpans", []):
        resource = _attributes(group["resource"].get("attributes", []))
        for scope in group["scopeSpans"]:
            for span in scope["spans"]:
                found.append(
                    Seen(
                        span["name"], ids(span["traceId"]), ids(span["spanId"]), ids(span.get("parentSpanId", "")),
                        _KINDS.get(span["kind"], span["kind"]), _attributes(span.get("attributes", [])),
                        [(ids(link["traceId"]), ids(link["spanId"])) for link in span.get("links", [])],
                        span.get("status", {}).get("code") in ("STATUS_CODE_ERROR", 2),
                        int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"]), span.get("traceState", ""),
                        resource,
                    )
                )  # fmt: skip
    return found


_KINDS = {
    1: "SPAN_KIND_INTERNAL", 2: "SPAN_KIND_SERVER", 3: "SPAN_KIND_CLIENT", 4: "SPAN_KIND_PRODUCER",
    5: "SPAN_KIND_CONSUMER",
}  # fmt: skip


def _attributes(said: list[Any]) -> dict[str, Any]:
    found = {}
    for each in said:
        ((kind, value),) = each["value"].items()
        found[each["key"]] = int(value) if kind == "intValue" else value
    return found


class Receiver(Spans):
    """A stand-in for a collector. `away` refuses, `hung` does not answer until it is set free."""

    def __init__(self) -> None:
        self._spans: list[Seen] = []
        self.away = False
        self.free = threading.Event()
        self.free.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.free.wait(60)
                if not receiver.away and self.path == "/v1/traces":
                    receiver.take(body)
                self.send_response(503 if receiver.away else 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        """One request."""
        from base64 import b64decode

        told = MessageToDict(ExportTraceServiceRequest.FromString(body))
        self._spans += spans_in(told, lambda text: b64decode(text).hex())

    def all(self) -> list[Seen]:
        """See `Spans.all`."""
        return list(self._spans)

    def close(self) -> None:
        """The last call."""
        self.free.set()
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver for this block."""
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.close()


class Collector(Spans):
    """The OpenTelemetry Collector: OTLP in, a file out."""

    def __init__(self, folder: Path) -> None:
        assert OTELCOL is not None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._file = folder / "spans.json"
        self.url = f"http://127.0.0.1:{port}"
        config = folder / "otelcol.yaml"
        config.write_text(
            f"receivers: {{otlp: {{protocols: {{http: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\n"
            f"exporters: {{file: {{path: '{self._file}', flush_interval: 100ms}}}}\n"
            "service:\n  telemetry: {metrics: {level: none}}\n"
            "  pipelines: {traces: {receivers: [otlp], exporters: [file]}}\n"
        )
        self._log = open(folder / "otelcol.log", "wb")  # noqa: SIM115
        self._process = subprocess.Popen([OTELCOL, "--config", str(config)], stdout=self._log, stderr=self._log)
        until(lambda: self._listens(port), 60, "the collector")

    def _listens(self, port: int) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    def all(self) -> list[Seen]:
        """See `Spans.all`."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        found: list[Seen] = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the last one is being written
                found += spans_in(json.loads(line))
        return found

    def close(self) -> None:
        """The last call."""
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


@contextlib.contextmanager
def collecting(folder: Path) -> Iterator[Collector]:
    """A collector for this block."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Collector(folder)
    try:
        yield made
    finally:
        made.close()

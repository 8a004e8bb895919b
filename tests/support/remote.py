"""A server that a remote runtime asks: x FP32[-1, 3] -> y = 2x, by Open Inference or by TensorFlow Serving's REST."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


class Doubling:
    """A server for a `with` block. What it is told to do instead of answering stands in its fields.

    status: answers this, with `{"error": "no room"}` and Retry-After 3
    hang:   an answer waits for this event; `waiting` counts those that do
    closes: each connection is closed after its answer, without saying so before
    """

    def __init__(self, binary: bool = False) -> None:
        self.binary = binary
        self.status = 200
        self.hang: threading.Event | None = None
        self.waiting = threading.Semaphore(0)
        self.closes = False
        self.requests: list[tuple[str, bytes, dict[str, str]]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Doubling:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hang is not None:
            self.hang.set()
        self.server.shutdown()
        self.server.server_close()

    def document(self, path: str) -> Any:
        """What a GET is answered."""
        tensor = {"datatype": "FP32", "shape": [-1, 3]}
        if path == "/v2":
            return {"name": "doubling", "extensions": ["binary_tensor_data"] if self.binary else []}
        if path.startswith("/v2/models/m"):
            return {"name": "m", "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}
        info = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "3"}]}}
        signature = {"inputs": {"x": info}, "outputs": {"y": info}, "method_name": "tensorflow/serving/predict"}
        return {"metadata": {"signature_def": {"signature_def": {"serving_default": signature}}}}

    def doubled(self, path: str, body: bytes, headers: Any) -> tuple[bytes, dict[str, str]]:
        """What a POST is answered: body and headers."""
        length = int(headers.get("Inference-Header-Content-Length", len(body)))
        asked = json.loads(body[:length])
        if path.endswith(":predict"):
            return json.dumps({"outputs": (np.array(asked["inputs"]["x"]) * 2).tolist()}).encode(), {}
        tensor = asked["inputs"][0]
        if length == len(body):
            values = np.array(tensor["data"], np.float32) * 2
            given = {"name": "y", "datatype": "FP32", "shape": tensor["shape"], "data": values.tolist()}
            return json.dumps({"outputs": [given]}).encode(), {}
        values = np.frombuffer(body[length:], "<f4") * 2
        given = {"name": "y", "datatype": "FP32", "shape": tensor["shape"],
                 "parameters": {"binary_data_size": values.nbytes}}  # fmt: skip
        head = json.dumps({"outputs": [given]}).encode()
        return head + values.tobytes(), {"Inference-Header-Content-Length": str(len(head))}

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(200, json.dumps(server.document(self.path)).encode(), {})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((self.path, body, dict(self.headers)))
                if server.hang is not None:
                    server.waiting.release()
                    server.hang.wait(60)
                if server.status != 200:
                    self.answer(server.status, b'{"error": "no room"}', {"Retry-After": "3"})
                else:
                    self.answer(200, *server.doubled(self.path, body, self.headers))
                self.close_connection = server.closes

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        return Handler

"""A server that speaks S3 (moto, a stand-in for the real one), and a proxy before it that fails as the real one does.

moto takes notice of If-None-Match and If-Match on puts; `test_object_stores` makes sure of it, and of its being atomic.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from octoserve.connectors import aws, objects
from octoserve.patterns.batch.run import resume, run
from support.batch import AFTER, BORNE, HALF, forks, tools
from support.supervised import until

BUCKET = "scores"
SLOW_DOWN, CUT, STALL, UNANSWERED, CARELESS, DENIED = "503", "cut", "stall", "unanswered", "careless", "403"
"""Answered 503 SlowDown and nothing done; the body cut in its middle; no answer for a while; done, and answered 503;
done without its conditions; answered 403."""
Rule = Callable[[int, str, str], str | None]
"""Number of the request from 1, method, path with query -> what goes wrong."""
_XML = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message></Error>"


class S3:
    """One bucket of a server of its own."""

    def __init__(self) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.start()
        _request(self.host, self.port, "PUT", f"/{BUCKET}")

    def start(self) -> None:
        """Again where it was, with what it had: its objects outlive its server."""
        from moto.moto_server.threaded_moto_server import ThreadedMotoServer

        self._server = ThreadedMotoServer(self.host, self.port, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        self._server.stop()


@contextlib.contextmanager
def a_store_apart() -> Iterator[str]:
    """In a process of its own, for clients that hold the interpreter's lock while they wait; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None, "moto ended"
        with contextlib.suppress(OSError):
            _request("127.0.0.1", port, "PUT", f"/{BUCKET}")
            return True
        return False

    try:
        until(answers, 120, "moto")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _request(host: str, port: int, method: str, path: str) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request(method, path)
    assert connection.getresponse().status < 300
    connection.close()


@contextlib.contextmanager
def a_store() -> Iterator[S3]:
    """moto logs every request; its logger is told not to."""
    import logging

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    store = S3()
    try:
        yield store
    finally:
        store.close()


def variables(endpoint: str) -> dict[str, str]:
    """As the AWS tools take them."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextlib.contextmanager
def used(endpoint: str) -> Iterator[None]:
    """`s3://` is this server, in this process and those that it starts."""
    before = {name: os.environ.get(name) for name in variables(endpoint)}
    os.environ.update(variables(endpoint))
    objects.forget()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        objects.forget()


def client(
    endpoint: str, request: float = 30.0, patience: float = 30.0, kind: type[objects.Bucket] | None = None
) -> Any:
    """The bucket, with other patience."""
    settings = aws.found(variables(endpoint))
    limits = {"request": timedelta(seconds=request), "patience": timedelta(seconds=patience)}
    return (kind or objects.Bucket)(BUCKET, settings=settings, **limits)


def tree(prefix: str, bucket: objects.Bucket | None = None) -> dict[str, bytes]:
    """All objects below, by name."""
    held = bucket or objects.bucket(BUCKET)
    keys = sorted(found.key for found in held.list(prefix))
    return {key[len(prefix) + 1 :]: held.get(key)[0] for key in keys}


def put_folder(folder: Any, prefix: str) -> None:
    """The files of a folder as objects."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            objects.bucket(BUCKET).put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


class Proxy:
    """Before a server. `rule` says what goes wrong; `counts` what did."""

    def __init__(self, store: S3, rule: Rule = lambda number, method, path: None, stall: float = 3.0) -> None:
        self.rule = rule
        self.counts: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self._numbers = itertools.count(1)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                outer._answer(self, store, stall)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # clients that gave up

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, asked: BaseHTTPRequestHandler, store: S3, stall: float) -> None:
        number = next(self._numbers)
        body = asked.rfile.read(int(asked.headers.get("Content-Length") or 0))
        self.requests.append((asked.command, asked.path))
        wrong = self.rule(number, asked.command, asked.path)
        if wrong:
            self.counts[wrong] = self.counts.get(wrong, 0) + 1
        if wrong == SLOW_DOWN:
            _say(asked, 503, _XML.format("SlowDown", "Please reduce your request rate."))
            return
        if wrong == DENIED:
            _say(asked, 403, _XML.format("AccessDenied", "Access Denied"))
            return
        if wrong == STALL:
            time.sleep(stall)
            asked.close_connection = True
            return
        headers = {name: value for name, value in asked.headers.items() if name.lower() != "connection"}
        if wrong == CARELESS:
            headers = {
                name: value for name, value in headers.items() if name.lower() not in ("if-match", "if-none-match")
            }
        connection = http.client.HTTPConnection(store.host, store.port, timeout=60)
        connection.request(asked.command, asked.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if wrong == UNANSWERED:
            _say(asked, 503, _XML.format("InternalError", "done, and you will not know"))
            return
        asked.send_response(answer.status)
        length = answer.headers.get("Content-Length") if asked.command == "HEAD" else str(len(data))
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                asked.send_header(name, value)
        asked.send_header("Content-Length", length or "0")
        asked.end_headers()
        if asked.command == "HEAD":
            return
        if wrong == CUT:
            asked.wfile.write(data[: len(data) // 2])
            asked.wfile.flush()
            asked.close_connection = True
            asked.connection.shutdown(socket.SHUT_RDWR)
            return
        asked.wfile.write(data)


def _say(asked: BaseHTTPRequestHandler, status: int, text: str) -> None:
    data = text.encode()
    asked.send_response(status)
    asked.send_header("Content-Type", "application/xml")
    asked.send_header("Content-Length", str(len(data)))
    asked.end_headers()
    if asked.command != "HEAD":
        asked.wfile.write(data)


STEPS = ("put", "create", "replace", "delete", "open_writer", "write", "complete")


class CountedBucket(objects.Bucket):
    """Calls `at` with the number of each step that changes something, its name, and the way to do it."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.steps = 0
        self.at: Callable[[int, str, Callable[[], Any], tuple[Any, ...]], Any] = lambda number, name, do, args: do()
        self._counting = threading.Lock()
        for name in STEPS:
            setattr(self, name, self._counted(name, getattr(self, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            with self._counting:
                self.steps += 1
                number = self.steps
            return self.at(number, name, lambda: real(*args), args)

        return step


def dies(asked: Any, endpoint: str, step: int, when: str, again: bool = False) -> bool:
    """Run (or resume) in a process that dies at the step; whether it did, or ended before it."""
    process = forks.Process(target=_child, args=(asked, endpoint, step, when, again))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), f"the process ended with {process.exitcode}"
    return process.exitcode != 0


def _child(asked: Any, endpoint: str, step: int, when: str, again: bool) -> None:
    bucket = client(endpoint, kind=CountedBucket)

    def at(number: int, name: str, do: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if number != step:
            return do()
        if when == HALF and name == "write":
            args[1].write(args[2][: len(args[2]) // 2])
        if when == AFTER:
            do()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")

    bucket.at = at
    with used(endpoint):
        equipment = tools(buckets=lambda name: bucket)
        if again:
            resume(asked.sink, BORNE, equipment)
        else:
            run(asked, BORNE, equipment)

"""Where a route plan comes from: what is sent to whom."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from octoserve.control import plan_source


@pytest.fixture
def servers():
    """Two: the first sends everybody on to the second, which answers `{}`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server: Any = self.server
            server.asked.append(self.headers.get("Authorization"))
            self.send_response(302 if server.onwards else 200)
            if server.onwards:
                self.send_header("Location", server.onwards)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    made: list[Any] = []
    for _ in range(2):
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked, server.onwards = [], ""
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        made.append(server)
    made[0].onwards = f"http://127.0.0.1:{made[1].server_port}/"
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def test_a_token_goes_to_the_service_that_was_named_and_not_where_that_sends_us(servers, monkeypatch):
    monkeypatch.setenv(plan_source.TOKEN_VARIABLE, "secret")
    assert plan_source.call(f"http://127.0.0.1:{servers[0].server_port}", "/x") == b"{}"
    assert [server.asked for server in servers] == [["Bearer secret"], [None]]

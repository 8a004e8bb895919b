"""Prometheus metrics of what runs in a terminal, a batch job or a queue: one thread, one page."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from octoserve.core.errors import SettingsError
from octoserve.telemetry.families import Family
from octoserve.telemetry.prometheus import CONTENT_TYPE, render


class MetricsServer:
    """Until `close`. families: what holds now; asked anew for each reader."""

    def __init__(self, host: str, port: int, families: Callable[[], list[Family]]) -> None:
        """Raises SettingsError if the port cannot be had."""

        class Page(BaseHTTPRequestHandler):
            timeout = 10  # seconds for a request to come

            def do_GET(self) -> None:
                known = self.path.split("?")[0] == "/metrics"
                body = render((), families()) if known else b"metrics are at /metrics\n"
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        if not host:
            raise SettingsError("metrics_host: an address is wanted, such as 127.0.0.1, or 0.0.0.0 for all; none came")

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        try:
            self._server = Server((host, port), Page)
        except OSError as error:
            raise SettingsError(
                f"metrics_port: cannot listen on {host}:{port}: {error.strerror}; 0 picks a free one, and metrics_host "
                "says where"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/metrics"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

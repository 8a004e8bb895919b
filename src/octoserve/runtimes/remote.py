"""A model that runs on another server: a Triton, a vLLM, a TensorFlow Serving, often on a GPU.

    runtime: remote
    options:
      url: http://gpu-1:8000           # the server; the path to it too, where it is behind a prefix
      protocol: open-inference         # or tensorflow-serving
      model: fraud                     # there; its version as `version: 3`, else the one that answers there

What it takes and gives is asked of it, or declared in `model.yaml` (`inputs:`, `outputs:`): then it need not be there
when the version loads. Requests are merged here and sent over kept connections, so many at a time as `lanes:` says
(16). A server that cannot be reached, or has no room, is `Unavailable` or `Overloaded` here, and never tried twice for
one request, except where a kept connection turns out to have been closed.
"""

from __future__ import annotations

import http.client
import os
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from octoserve.core.errors import BrokenVersion, InvalidInput, OctoserveError, Overloaded, Unavailable
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array
from octoserve.runtimes.library import first_line
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings
from octoserve.runtimes.remote_dialects import Dialect, OpenInference, RemoteOptions, TensorFlowServing
from octoserve.telemetry.tracing import part

_SHOWN = 300
MAX_LANES = 1024
MAX_TIMEOUT = 3600
TOKEN = "OCTOSERVE_REMOTE_"
"""How a variable begins that a version may send to a server: whoever writes a repository is not let at the others."""


class RemoteRuntime:
    """Stands for a server that `model.yaml` names."""

    name = "remote"
    artifacts: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """Raises BrokenVersion, also where the server must be asked what the model takes, and does not answer."""
        try:
            options = msgspec.convert(dict(settings.options), RemoteOptions)
        except msgspec.ValidationError as error:
            known = ", ".join(RemoteOptions.__struct_fields__)
            raise BrokenVersion(f"model.yaml: options: {error}; `runtime: remote` knows {known}") from None
        dialects: dict[str, type[OpenInference] | type[TensorFlowServing]] = {
            "open-inference": OpenInference,
            "tensorflow-serving": TensorFlowServing,
        }
        if options.protocol not in dialects:
            wanted = " or ".join(dialects)
            raise BrokenVersion(f"model.yaml: options: protocol: {wanted} wanted, {options.protocol!r} came")
        if not 1 <= options.lanes <= MAX_LANES or not 0 < options.timeout <= MAX_TIMEOUT:
            raise BrokenVersion(
                f"model.yaml: options: lanes: 1 to {MAX_LANES}, timeout: more than 0, at most {MAX_TIMEOUT} s wanted"
            )
        return RemoteModel(Connections(options), dialects[options.protocol](options), settings, options.lanes)


class RemoteModel:
    """One model of the server."""

    def __init__(self, server: Connections, dialect: Dialect, settings: RuntimeSettings, lanes: int) -> None:
        self._server = server
        self._dialect = dialect
        self.platform = "remote"
        self.lanes = lanes
        inputs, outputs = settings.inputs, settings.outputs
        if inputs is None or outputs is None:
            try:
                inputs, outputs = dialect.describe(server.document)
            except BrokenVersion:
                raise
            except OctoserveError as error:
                raise BrokenVersion(
                    f"{server}: {error}. Load the version again when it answers, or declare inputs and outputs in "
                    "model.yaml"
                ) from error
            except Exception as error:
                raise BrokenVersion(
                    f"{server}: what it says of the model cannot be read: {first_line(error)}"
                ) from error
        rows = all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
        self.signature = Signature(inputs, outputs, bool(inputs) and rows and settings.batching is not False)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `runtimes.protocol.LoadedModel.run`; safe from many threads at a time."""
        path, body, headers = self._dialect.request(self.signature, inputs)
        answer, came = self._server.post(path, body, headers)
        try:
            return self._dialect.answer(self.signature, answer, came)
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"{self._server} gave something that is no answer: {first_line(error)}") from error

    def close(self) -> None:
        """See `runtimes.protocol.LoadedModel.close`."""
        self._server.close()


class Connections:
    """Kept connections to one server, one a thread."""

    def __init__(self, options: RemoteOptions) -> None:
        parts = urllib.parse.urlsplit(options.url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query:
            shown = options.url.rpartition("@")[2]  # without a password
            raise BrokenVersion(f"model.yaml: options: url: http://host:port wanted, {shown!r} came")
        self._host, self._port, self._secure = parts.hostname, port, parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._timeout = options.timeout
        self._headers: dict[str, str] = {}
        if options.token_env:
            self._headers["Authorization"] = f"Bearer {_token(options.token_env)}"
        self._local = threading.local()
        self._all: list[http.client.HTTPConnection] = []
        self._name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def __str__(self) -> str:
        return self._name

    def document(self, path: str) -> Any:
        """See `Ask`."""
        return msgspec.json.decode(self._exchange("GET", path, None, {})[0])

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
        """Body and headers of a good answer. Raises OctoserveError for any other."""
        with part(f"POST {self}", "client") as span:  # the server behind is told of it
            return self._exchange("POST", path, body, headers if span is None else {**headers, **span.headers()})

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[bytes, dict[str, str]]:
        try:
            status, came, answer = self._once(method, path, body, headers)
        except TimeoutError:
            raise Unavailable(f"{self} did not answer within {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self} cannot be reached: {first_line(error)}") from None
        if status == 200:
            return answer, came
        reason = f"{self} answered {status}: {_reason(answer)}"
        if status == 429:
            wait = came.get("retry-after", "1")
            raise Overloaded(reason, int(wait) if wait.isdigit() else 1)
        if status in (400, 413, 422):
            raise InvalidInput(f"the model refuses these inputs: {_reason(answer)}")
        raise Unavailable(reason)

    def _once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        kept = connection is not None and connection.sock is not None
        if connection is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            connection = self._local.connection = kind(self._host, self._port, timeout=self._timeout)
            self._all.append(connection)
        try:
            return self._send(connection, method, path, body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            connection.close()
            if not kept:
                raise
            # A kept connection that the server has closed meanwhile: it has not seen the request.
            return self._send(connection, method, path, body, headers)
        except BaseException:
            connection.close()
            raise

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> tuple[int, dict[str, str], bytes]:
        connection.request(method, self._prefix + path, body, {**self._headers, **headers})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def close(self) -> None:
        """Every connection."""
        for connection in self._all:
            connection.close()


def _token(variable: str) -> str:
    """Raises BrokenVersion, which does not say what the variable holds."""
    where = "model.yaml: options: token_env"
    if not variable.startswith(TOKEN):
        raise BrokenVersion(f"{where}: a variable {TOKEN}... is wanted, {variable} came; no other is sent to a server")
    token = os.environ.get(variable, "").strip()
    if not token:
        raise BrokenVersion(f"{where}: {variable} is not set here")
    if not (token.isascii() and token.isprintable()):
        raise BrokenVersion(f"{where}: {variable} holds what no header can; one line of printable ASCII is wanted")
    return token


def _reason(answer: bytes) -> str:
    try:
        said = msgspec.json.decode(answer)["error"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        said = answer.decode("utf-8", "replace")
    return " ".join(str(said).split())[:_SHOWN]

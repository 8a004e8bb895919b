"""`/invocations` and `/ping`: MLflow's scoring server, and the contract of SageMaker's containers.

The two share their paths. SageMaker's multi-model containers are asked at `/models/{m}/invoke`.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from octoserve import __version__
from octoserve.codecs import mlflow as codec
from octoserve.codecs.value_reader import ValueReader
from octoserve.core import errors
from octoserve.core.errors import NotFound, OctoserveError
from octoserve.core.results import Result
from octoserve.core.tensors import Tensor
from octoserve.patterns.online.errors import headers_of, status_of
from octoserve.patterns.online.http.body_door import JSON, BodyDoor
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Head
from octoserve.patterns.online.http.routes import Route, allow, method, open_to_all
from octoserve.security.caller import INFER, SEE

_LINES = (codec.LINES, "application/x-jsonlines", "application/jsonl")
_SAGEMAKER_TOGETHER = 100
"""MB that SageMaker lets concurrent transforms have in all."""
_encode = msgspec.json.encode

_CODES: tuple[tuple[type[OctoserveError], str], ...] = (
    (errors.InvalidInput, "BAD_REQUEST"),
    (errors.Unauthenticated, "UNAUTHENTICATED"),
    (errors.Forbidden, "PERMISSION_DENIED"),
    (errors.NotFound, "RESOURCE_DOES_NOT_EXIST"),
    (errors.Unsupported, "NOT_IMPLEMENTED"),
    (errors.Unavailable, "TEMPORARILY_UNAVAILABLE"),
    (errors.Overloaded, "REQUEST_LIMIT_EXCEEDED"),
    (errors.DeadlineExceeded, "DEADLINE_EXCEEDED"),
)
"""MLflow's words, or such as it would use."""


class UnsupportedMedia(OctoserveError):
    """A content type that is not taken: 415."""

    reason = "invalid"


def refuse(connection: Connection, error: OctoserveError) -> None:
    """MLflow's shape of an error."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "INTERNAL_ERROR")
    status = status_of(error)
    if isinstance(error, UnsupportedMedia):
        code, status = "BAD_REQUEST", 415
    more = headers_of(error)
    headers = f"{JSON}\r\n{more}" if more else JSON
    connection.respond(status, _encode({"error_code": code, "message": str(error)}), headers)


class Invocations:
    """One pair of formats. header: whether CSV has one, None to see for oneself."""

    door = "mlflow"

    def __init__(self, reads: str, writes: str, header: bool | None) -> None:
        self._reads = reads
        self._writes = writes
        self._header = header

    def decode(self, body: bytes, reader: ValueReader) -> tuple[list[Tensor], bool]:
        """See `Dialect`."""
        if self._reads == codec.JSON:
            return codec.decode_json(body, reader)
        if self._reads == codec.CSV:
            return codec.decode_csv(body, reader, self._header), False
        return codec.decode_lines(body, reader), False

    def encode(self, result: Result, form: bool) -> tuple[bytes, str]:
        """See `Dialect`."""
        if self._writes == codec.CSV:
            return codec.encode_csv(result), "content-type: text/csv"
        if self._writes == codec.LINES:
            return codec.encode_lines(result), "content-type: application/jsonlines"
        return codec.encode_json(result, form), JSON

    def refuse(self, connection: Connection, error: OctoserveError) -> None:
        """See `Dialect`."""
        refuse(connection, error)


class MlflowDoor:
    """See the module."""

    def __init__(self, bodies: BodyDoor) -> None:
        self._bodies = bodies
        self._service = bodies.service

    def find(self, head: Head, parts: list[str]) -> Route:
        """See `Family`."""
        match parts:
            case ["ping" | "health"]:
                open_to_all(head)
                return method(head, "GET"), self._ping
            case ["version"]:
                allow(head)
                return method(head, "GET"), lambda c, _: c.respond(
                    200, __version__.encode(), "content-type: text/plain"
                )
            case ["execution-parameters"]:
                allow(head)
                return method(head, "GET"), self._parameters
            case ["invocations"]:
                return self._invocations(head, "")
            case ["models", model, "invoke"]:
                return self._invocations(head, model)
        raise NotFound(f"no such path: {head.path}")

    def _invocations(self, head: Head, model: str) -> Route:
        try:
            allow(head, INFER if model else SEE, model)
            if head.method != "POST":
                return method(head, "POST"), None
            return self._bodies.route(head, model, "", formats(head.headers))
        except OctoserveError as error:
            return self._refused, error

    def _refused(self, connection: Connection, head: Head, _: bytes) -> None:
        self._service.dataplane.refused("", "mlflow", head.binding)
        refuse(connection, head.binding)

    def _ping(self, connection: Connection, _: bytes) -> None:
        connection.respond(200 if self._service.ready() else 503, b"\n", "content-type: text/plain")

    def _parameters(self, connection: Connection, _: bytes) -> None:
        """What SageMaker's batch transform should do, unless it was told."""
        together = os.cpu_count() or 1
        most = min(self._service.max_body, codec.MAX_CSV) >> 20
        payload = max(1, min(most, _SAGEMAKER_TOGETHER // together))
        connection.respond_json(
            _encode({"MaxConcurrentTransforms": together, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": payload})
        )


def formats(headers: dict[str, str]) -> Invocations:
    """What a head's Content-Type and Accept ask for. Raises UnsupportedMedia."""
    content, _, parameters = headers.get("content-type", codec.JSON).lower().partition(";")
    content = content.strip()
    options: dict[str, Any] = dict(p.strip().partition("=")[::2] for p in parameters.split(";"))
    if content in _LINES:
        reads = codec.LINES
    elif content in (codec.JSON, codec.CSV):
        reads = content
    else:
        raise UnsupportedMedia(f"content type {content!r}; {codec.JSON}, {codec.CSV} and {codec.LINES} are taken")
    accept = headers.get("accept", "*/*").lower().partition(",")[0].partition(";")[0].strip()
    if accept == codec.CSV:
        writes = codec.CSV
    elif accept in _LINES or (accept == "*/*" and reads == codec.LINES):
        writes = codec.LINES
    else:
        writes = codec.JSON
    return Invocations(reads, writes, {"present": True, "absent": False}.get(options.get("header", "")))

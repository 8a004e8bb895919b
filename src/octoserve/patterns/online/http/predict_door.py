"""`/predict` and `/models/{m}/predict`: rows in by feature name, predictions out by output name."""

from __future__ import annotations

from octoserve.codecs.simple_json import decode_rows, encode_rows
from octoserve.codecs.value_reader import ValueReader
from octoserve.core.errors import NotFound, OctoserveError
from octoserve.core.results import Result
from octoserve.core.tensors import Tensor
from octoserve.patterns.online.http.body_door import JSON, BodyDoor
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Head
from octoserve.patterns.online.http.routes import Route, allow, method, respond_to
from octoserve.security.caller import INFER, SEE


class Rows:
    """Plain JSON."""

    door = "predict"

    def decode(self, body: bytes, reader: ValueReader) -> tuple[list[Tensor], bool]:
        """See `Dialect`."""
        return decode_rows(body, reader)

    def encode(self, result: Result, form: bool) -> tuple[bytes, str]:
        """See `Dialect`."""
        return encode_rows(result, form), JSON

    def refuse(self, connection: Connection, error: OctoserveError) -> None:
        """See `Dialect`."""
        respond_to(connection, error)


class PredictDoor:
    """See the module."""

    def __init__(self, bodies: BodyDoor) -> None:
        self._bodies = bodies
        self._rows = Rows()

    def find(self, head: Head, parts: list[str]) -> Route:
        """See `Family`."""
        match parts:
            case ["predict"]:
                model, version = "", ""
            case ["models", model, "predict"]:
                version = ""
            case ["models", model, "versions", version, "predict"]:
                pass
            case _:
                raise NotFound(f"no such path: {head.path}")
        allow(head, INFER if model else SEE, model)
        if head.method != "POST":
            return method(head, "POST"), None
        return self._bodies.route(head, model, version, self._rows)

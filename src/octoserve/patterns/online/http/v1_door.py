"""`/v1`: KServe V1 and TensorFlow Serving's REST API, which share their paths.

Where they differ, one answer has the keys of both, so that either's clients find theirs.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from octoserve.codecs import cloudevents
from octoserve.codecs import tensorflow_serving as codec
from octoserve.codecs.value_reader import ValueReader
from octoserve.core.clock import Clock
from octoserve.core.errors import InvalidInput, NotFound, OctoserveError, Unsupported
from octoserve.core.results import Result
from octoserve.core.tensors import Tensor
from octoserve.patterns.online.http.body_door import JSON, BodyDoor
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Head
from octoserve.patterns.online.http.routes import Route, allow, get, method, open_to_all, respond_to, seen_by
from octoserve.security.caller import INFER, SEE

_VERB = re.compile(r"(.+):(predict|classify|regress|explain)$", re.DOTALL)
_encode = msgspec.json.encode


class Predict:
    """`:predict`."""

    door = "v1"

    def decode(self, body: bytes, reader: ValueReader) -> tuple[list[Tensor], str]:
        """See `Dialect`."""
        return codec.decode_predict(body, reader)

    def encode(self, result: Result, form: str) -> tuple[bytes, str]:
        """See `Dialect`."""
        return codec.encode_predict(result, form), JSON

    def refuse(self, connection: Connection, error: OctoserveError) -> None:
        """See `Dialect`."""
        respond_to(connection, error)


class Examples(Predict):
    """`:classify` and `:regress`."""

    def __init__(self, verb: str) -> None:
        self._encode = codec.encode_classify if verb == "classify" else codec.encode_regress

    def decode(self, body: bytes, reader: ValueReader) -> tuple[list[Tensor], str]:
        """See `Dialect`."""
        return codec.decode_examples(body, reader), codec.ROWS

    def encode(self, result: Result, form: str) -> tuple[bytes, str]:
        """See `Dialect`."""
        return self._encode(result), JSON


class Events(Predict):
    """`:predict` in CloudEvents, of either mode. KServe's errors are no events."""

    def __init__(self, binary: bool, wall: Clock = time.time, new_id: Callable[[], object] = uuid.uuid4) -> None:
        self._binary = binary
        self._wall = wall
        self._new_id = new_id

    def decode(self, body: bytes, reader: ValueReader) -> tuple[list[Tensor], str]:
        """See `Dialect`."""
        return codec.decode_predict(body if self._binary else cloudevents.data_of(body), reader)

    def encode(self, result: Result, form: str) -> tuple[bytes, str]:
        """See `Dialect`."""
        body = codec.encode_predict(result, form)
        about = result.ran.model, str(self._new_id()), self._wall()
        if self._binary:
            return body, f"{JSON}\r\n{cloudevents.event_headers(*about)}"
        return cloudevents.event_with(body, *about), f"content-type: {cloudevents.STRUCTURED}"


class V1Door:
    """See the module."""

    def __init__(self, bodies: BodyDoor) -> None:
        self._bodies = bodies
        self._service = bodies.service
        self._predict = Predict()

    def find(self, head: Head, parts: list[str]) -> Route:
        """See `Family`."""
        match parts[1:]:
            case [] if parts == [""]:
                open_to_all(head)
                return get(head, lambda _: b'{"status":"alive"}')
            case ["models"]:
                allow(head)
                sees = seen_by(head)
                return get(head, lambda _: _encode({"models": [m for m in self._service.models() if sees(m)]}))
            case ["models", *rest] if rest:
                verb = _VERB.fullmatch(rest[-1])
                if verb is not None:
                    return self._act(head, [*rest[:-1], verb[1]], verb[2])
                if len(rest) > 1 and rest[-1] == "metadata":
                    model, version = _named(rest[:-1], head)
                    allow(head, SEE, model)
                    return get(head, lambda _: self._metadata(model, version))
                model, version = _named(rest, head)
                allow(head, SEE, model)
                return method(head, "GET"), lambda connection, _: self._status(connection, model, version)
        raise NotFound(f"no such path: {head.path}")

    def _act(self, head: Head, rest: list[str], verb: str) -> Route:
        model, version = _named(rest, head)
        allow(head, INFER, model)
        if head.method != "POST":
            return method(head, "POST"), None
        if verb == "explain":
            raise Unsupported("explanations are not offered")
        return self._bodies.route(head, model, version, self._dialect(head, verb))

    def _dialect(self, head: Head, verb: str) -> Predict:
        if verb != "predict":
            return Examples(verb)
        if cloudevents.is_binary(head.headers):
            head.once = True  # its id names one event
            cloudevents.check_attributes(head.headers)
            return Events(binary=True)
        return Events(binary=False) if cloudevents.is_structured(head.headers) else self._predict

    def _status(self, connection: Connection, model: str, version: str) -> None:
        ready = self._service.model_ready(model, version)
        entries = [
            codec.version_status(entry.version, entry.state, entry.reason)
            for entry in self._service.versions(model, version)
        ]
        body: dict[str, Any] = {"name": model, "ready": ready, "model_version_status": entries}
        connection.respond(200 if ready else 503, _encode(body))

    def _metadata(self, model: str, version: str) -> bytes:
        handle = self._service.dataplane.bind(model, version).handle
        return _encode(codec.metadata(model, handle.ref.version, handle.signature))


def _named(rest: list[str], head: Head) -> tuple[str, str]:
    """Model, and version or label. Raises NotFound, InvalidInput."""
    match rest:
        case [model]:
            return model, ""
        case [model, "versions", version]:
            if not (version.isascii() and version.isdigit()):
                raise InvalidInput(f"a version is a whole number, {version!r} came; labels are at /labels/{version}")
            return model, version
        case [model, "labels", label]:
            if label.isdigit():
                raise NotFound(f"model {model!r} has no label {label!r}")
            return model, label
    raise NotFound(f"no such path: {head.path}")

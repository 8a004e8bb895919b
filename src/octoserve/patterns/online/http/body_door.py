"""One prediction whose body a codec reads by the version's signature: what every door but V2's has in common.

A protocol adds a `Dialect`. The data plane, deadlines, codings and limits are the same for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from octoserve.codecs.value_reader import ValueReader
from octoserve.core.errors import Internal, OctoserveError
from octoserve.core.results import Result
from octoserve.core.signature import Signature
from octoserve.core.tensors import Tensor
from octoserve.dataplane.call import Call
from octoserve.patterns.online.http.coding import COMPRESS_FROM, COMPRESS_TO, Inflater, compress
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Handler, Head
from octoserve.patterns.online.http.infer_head import InferHead
from octoserve.patterns.online.http.routes import CACHE_HEADER, Route
from octoserve.patterns.online.service import Service
from octoserve.patterns.online.traced import handled

log = logging.getLogger(__name__)

JSON = "content-type: application/json"
_MAX_READERS = 1024
_OTHER = "/"
"""In place of a version, which has no slash: the arm of a split that is not the stable one."""


class Dialect(Protocol):
    """How a protocol says a request, an answer and an error. door: the metrics' label."""

    door: str

    def decode(self, body: bytes, reader: ValueReader) -> tuple[list[Tensor], Any]:
        """Tensors, and what the answer depends on. Raises OctoserveError."""
        ...

    def encode(self, result: Result, form: Any) -> tuple[bytes, str]:
        """Body and header lines. Raises OctoserveError."""
        ...

    def refuse(self, connection: Connection, error: OctoserveError) -> None:
        """Answer an error."""
        ...


class BodyHead(InferHead):
    """What a head says, and in which dialect. model "": the service's default model."""

    __slots__ = ("dialect",)

    def __init__(self, model: str, version: str, head: Head, dialect: Dialect) -> None:
        super().__init__(model, version, head)
        self.dialect = dialect


class BodyCall(Call):
    """A request; its answer is a response on its connection."""

    def __init__(self, connection: Connection, infer: BodyHead, model: str, inputs: list[Tensor], form: Any) -> None:
        self.model = model  # not by super(): once a request
        self.version = infer.version
        self.inputs = inputs
        self.door = infer.dialect.door
        self.connection = connection
        self.infer = infer
        self.form = form
        self.again: Callable[[Signature], list[Tensor]] | None = None
        """Reads the body once more; of a split, until it is bound."""

    def remake(self, signature: Signature) -> None:
        """See `Call.remake`."""
        assert self.again is not None
        self.inputs = self.again(signature)

    def header(self, name: str) -> str | None:
        """See `Call.header`."""
        return self.infer.headers.get(name)

    def answered(self) -> None:
        """Write the response."""
        connection, infer = self.connection, self.infer
        if self.error is not None:
            infer.dialect.refuse(connection, self.error)
            return
        assert self.result is not None
        try:
            body, headers = infer.dialect.encode(self.result, self.form)
        except OctoserveError as error:
            self.error = error
            infer.dialect.refuse(connection, error)
            return
        except Exception:
            log.exception("an answer could not be encoded")
            self.error = Internal("the answer could not be encoded; the server's log has the reason")
            infer.dialect.refuse(connection, self.error)
            return
        if infer.accept and COMPRESS_FROM <= len(body) <= COMPRESS_TO:
            body = compress(body, infer.accept)
            headers += f"\r\ncontent-encoding: {infer.accept}"
        if self.cache:
            headers += f"\r\n{CACHE_HEADER}: {self.cache}"
        if headers is JSON:
            connection.respond_json(body)
        else:
            connection.respond(200, body, headers)


class BodyDoor:
    """Predictions in any dialect, of one worker."""

    def __init__(self, service: Service, inflater: Inflater) -> None:
        self.service = service
        self._dataplane = service.dataplane
        self._inflater = inflater
        tracer = service.dataplane.tracer
        self._infer: Handler = self._take if tracer is None else handled(tracer, self._take)
        self._readers: dict[tuple[str, str], ValueReader] = {}

    def route(self, head: Head, model: str, version: str, dialect: Dialect) -> Route:
        """The route of a prediction."""
        infer = BodyHead(model, version, head, dialect)
        infer.plain = self._infer
        return self._compressed if infer.encoding else self._infer, infer

    def _take(self, connection: Connection, head: Head, body: bytes) -> None:
        infer: BodyHead = head.binding
        model = infer.model
        try:
            model = model or self.service.default_model()
            reader = self._reader(model, infer.version)
            inputs, form = infer.dialect.decode(body, reader)
            call = BodyCall(connection, infer, model, inputs, form)
            if not infer.version and model in self._dataplane.splits.by_endpoint:
                call.made_for = reader.signature
                call.again = lambda signature: infer.dialect.decode(body, self._made((model, _OTHER), signature))[0]
            if infer.timeout is not None:
                call.deadline = self._dataplane.clock() + infer.timeout
        except OctoserveError as error:
            self._refuse(connection, infer, error, model)
            return
        connection.call = call
        self._dataplane.submit(call)
        call.again = None

    def _compressed(self, connection: Connection, head: Head, body: bytes) -> None:
        self._inflater.inflate(connection, head, body, self._refuse)

    def _refuse(self, connection: Connection, infer: BodyHead, error: OctoserveError, model: str = "") -> None:
        self._dataplane.refused(model or infer.model, infer.dialect.door, error)
        infer.dialect.refuse(connection, error)

    def _reader(self, model: str, version: str) -> ValueReader:
        """Of the version that answers; of a split, the stable one. Raises NotFound, Unavailable."""
        return self._made((model, version), self._dataplane.bind(model, version).handle.signature)

    def _made(self, key: tuple[str, str], signature: Signature) -> ValueReader:
        reader = self._readers.get(key)
        if reader is None or reader.signature is not signature:
            if len(self._readers) >= _MAX_READERS:
                self._readers.clear()
            reader = ValueReader(signature, signature.features, signature.missing or "refuse")
            self._readers[key] = reader
        return reader

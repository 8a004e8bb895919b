"""The schemas that messages name, fetched before these are tried: a registry that is away costs no message an attempt.

See docs/decisions/0025-schema-registry.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from octoserve.codecs import avro, protobuf
from octoserve.codecs.framed import body, schema_number
from octoserve.connectors.queues.schema_registry import AVRO, PROTOBUF, Schema
from octoserve.core.errors import InvalidInput, NotFound, OctoserveError
from octoserve.patterns.message_queue.waiting import ticked

T = TypeVar("T")

KINDS: dict[str, tuple[str, Callable[[str, Mapping[str, str]], Readable], Callable[[], Any]]] = {
    "avro": (AVRO, avro.AvroSchema, avro.library),
    "protobuf": (PROTOBUF, protobuf.ProtobufSchema, protobuf.library),
}
"""Payload -> the kind of its schemas in a registry, what reads by one, and what says whether that can be had."""
MOST = 256
"""Schemas that are kept, beside those of the micro-batch in hand."""


class Readable(Protocol):
    """A schema that records are read and written by."""

    def read(self, content: bytes) -> Mapping[str, Any]:
        """A record's fields. Raises InvalidInput."""
        ...

    def write(self, record: Mapping[str, Any]) -> bytes:
        """A record's bytes. Raises InvalidInput."""
        ...


class Registry(Protocol):
    """Where schemas are."""

    def schema(self, number: int) -> Schema:
        """Raises NotFound, Unavailable, SettingsError. Blocking."""
        ...


class Schemas:
    """Of one worker."""

    def __init__(self, payload: str, registry: Registry) -> None:
        """payload: avro or protobuf. Raises SettingsError if the library for it is missing."""
        self._kind, self._reader, library = KINDS[payload]
        library()
        self._registry = registry
        self._known: dict[int, Readable | InvalidInput] = {}
        """In the order of their last use; those that cannot be read by, with the reason."""
        self._threads = ThreadPoolExecutor(1, "schemas")
        self.tick: Callable[[], None] = lambda: None
        """Called every second while a schema is waited for."""

    def ready(self, payloads: Sequence[bytes]) -> None:
        """Have what these name. Raises Unavailable, SettingsError, and what `tick` does."""
        wanted = dict.fromkeys(number for payload in payloads if (number := _number(payload)) is not None)
        for number in wanted:
            known = self._known.pop(number, None)
            if known is None or isinstance(known, InvalidInput):  # it may have been registered meanwhile
                known = self._waited(lambda number=number: self._fetched(number))  # type: ignore[misc]
            self._known[number] = known
        for number in list(self._known)[: max(0, len(self._known) - max(MOST, len(wanted)))]:
            del self._known[number]

    def read(self, payload: bytes) -> Mapping[str, Any]:
        """A record's fields. Raises InvalidInput."""
        known = self._known.get(schema_number(payload))
        if known is None or isinstance(known, InvalidInput):
            raise known or InvalidInput("its schema was not fetched")
        return known.read(body(payload))

    def _fetched(self, number: int) -> Readable | InvalidInput:
        try:
            schema = self._registry.schema(number)
            if schema.kind != self._kind:
                raise InvalidInput(f"schema {number} is {schema.kind}, {self._kind} is wanted")
            return self._reader(schema.text, schema.references)
        except NotFound as error:
            return InvalidInput(f"schema {number} is not in the registry: {error}")
        except InvalidInput as error:
            return InvalidInput(f"schema {number}: {error}")

    def _waited(self, work: Callable[[], T]) -> T:
        """In a thread, so that what is in hand stays ours meanwhile."""
        return ticked(self._threads.submit(work), self.tick)


def _number(payload: bytes) -> int | None:
    try:
        return schema_number(payload)
    except OctoserveError:
        return None  # whoever reads it says why

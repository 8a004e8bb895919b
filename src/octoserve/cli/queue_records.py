"""`octoserve queue send --schema`: JSON lines as records of a schema, which is registered first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from octoserve.core.errors import InvalidInput, SettingsError

_PAYLOADS = {".avsc": "avro", ".proto": "protobuf"}


def records_of(
    lines: Iterator[bytes], source: str, file: Path | None, registry: str | None, subject: str | None
) -> Iterator[bytes]:
    """What is sent. Raises SettingsError, Unavailable, InvalidInput; of a line when its turn comes."""
    from octoserve.codecs.framed import framed
    from octoserve.connectors.queues.address import parse
    from octoserve.connectors.queues.schema_registry import Schema, SchemaRegistry
    from octoserve.patterns.message_queue.schemas import KINDS

    if file is None or not registry:
        missing = "schema: a .avsc or .proto file" if file is None else "schema_registry: an address"
        raise SettingsError(f"{missing} is wanted too, none was given; records want --schema and --schema-registry")
    if file.suffix not in _PAYLOADS:
        raise SettingsError(f"schema: a file that ends in {' or '.join(_PAYLOADS)} is wanted, {file} came")
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    kind, reader, _ = KINDS[_PAYLOADS[file.suffix]]
    schema = reader(text, {})
    topic = parse(source, "source").path.strip("/")
    number = SchemaRegistry(registry, os.environ).register(subject or f"{topic}-value", Schema(kind=kind, text=text))
    read = msgspec.json.Decoder(dict[str, Any]).decode

    def records() -> Iterator[bytes]:
        for count, line in enumerate(lines, 1):
            try:
                yield framed(number, schema.write(read(line)))
            except (msgspec.MsgspecError, InvalidInput) as error:
                raise InvalidInput(f"message {count}: {error}") from None

    return records()

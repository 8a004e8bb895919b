"""Results as columns, or as JSON objects: one an output, between `message_id` and `model`, `version`, `scored_at`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from octoserve.connectors.queues.protocol import Results, Unwritable
from octoserve.core.errors import SettingsError
from octoserve.core.signature import TensorSpec
from octoserve.core.tensors import Array, from_bf16

FIXED = ("message_id", "model", "version", "scored_at")
LANES = "octoserve_lane"
"""The table of positions and epochs, beside the results'."""


def names(outputs: Sequence[TensorSpec], prefix: str = "", remedy: str = "give all a prefix: &prefix=p_") -> list[str]:
    """The outputs' columns. Raises SettingsError where a name is one of ours."""
    columns = [prefix + spec.name for spec in outputs]
    taken = [name for name in columns if name.lower() in FIXED]
    if taken:
        raise SettingsError(f"sink: the output {taken[0]!r} has the name of a column of ours; {remedy}")
    return columns


def is_scalar(spec: TensorSpec) -> bool:
    """Whether a row of it is one element."""
    return spec.shape[1:] in ((), (1,))


def quoted(name: str) -> str:
    """An identifier, `schema.table` as two."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def values(array: Array, spec: TensorSpec) -> list[Any]:
    """Python values, row by row: elements, or JSON of nested lists. Raises Unwritable for text that is none."""
    array = plain(array, spec)
    if is_scalar(spec):
        return list(array.reshape(len(array)).tolist())
    return [msgspec.json.encode(row).decode() for row in array.tolist()]


def plain(array: Array, spec: TensorSpec) -> Array:
    """As numbers, or text that is `str`. Raises Unwritable for text that is none."""
    if spec.datatype == "BF16" and array.dtype != object:
        return from_bf16(array)
    return _texts(array, spec) if spec.datatype == "BYTES" else array


def objects(results: Results, names: Sequence[str]) -> list[bytes]:
    """A JSON object a row, with `message_id`, the outputs under `names`, `model`, `version` and `scored_at`."""
    cells = []
    for array, spec in zip(results.columns, results.outputs, strict=True):
        found = values(array, spec)
        cells.append(found if is_scalar(spec) else [msgspec.Raw(text.encode()) for text in found])
    at = datetime.fromtimestamp(results.scored_at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    encode = msgspec.json.Encoder().encode
    return [
        encode(
            {
                "message_id": id,
                **dict(zip(names, row, strict=True)),
                "model": results.model,
                "version": version,
                "scored_at": at,
            }
        )
        for id, version, *row in zip(results.ids, results.versions.tolist(), *cells, strict=True)
    ]


def _texts(array: Array, spec: TensorSpec) -> Array:
    texts = np.empty(array.size, dtype=object)
    try:
        texts[:] = [_text(item) for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise Unwritable(f"output {spec.name!r} is bytes that are not UTF-8; a table's column is text") from None
    return texts.reshape(array.shape)


def _text(item: Any) -> Any:
    """Of an element, or of lists of them, where rows differ in shape."""
    if isinstance(item, list):
        return [_text(each) for each in item]
    return item.decode() if isinstance(item, bytes) else str(item)

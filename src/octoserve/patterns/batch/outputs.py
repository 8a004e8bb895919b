"""Predictions as columns beside the keys, and bad rows as a table of their own."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from octoserve.connectors.arrow import Array as ArrowArray
from octoserve.connectors.arrow import DataType, RecordBatch, Schema, pyarrow, width_of
from octoserve.connectors.formats import SINK_FORMATS
from octoserve.connectors.written import SinkFormat
from octoserve.core.errors import Internal
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.patterns.batch.job import Job

GROUP_BYTES = 8 << 20
GROUP_ROWS = 1 << 17
_REASONS = {"reason": "string", "file": "string", "row": "int64"}


class Layout(msgspec.Struct, frozen=True):
    """The output's schemas. dictionary: columns whose values repeat; group_rows: in a row group of a part.

    format: of parts that are files
    """

    format: SinkFormat
    schema: Schema
    bad_schema: Schema
    passed: tuple[str, ...]
    keys: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    dictionary: tuple[str, ...]
    group_rows: int


def layout(
    signature: Signature,
    source: Schema,
    passed: Sequence[str],
    keys: Sequence[str],
    job: Job,
    beside: Sequence[Any] = (),
) -> Layout:
    """Of a job's output. beside: fields that stand behind the model's own outputs."""
    pa = pyarrow()
    metadata = {"octoserve.model": job.model.name, "octoserve.version": str(job.model.version)}
    metadata |= {"octoserve.digest": job.model.digest, "octoserve.run": job.id()}
    kept = [_plain(source.field(name)) for name in passed]
    made = [pa.field(job.settings.prefix + spec.name, arrow_type(spec), nullable=False) for spec in signature.outputs]
    made += beside
    schema = pa.schema([*kept, *made], metadata=metadata)
    bad = bad_schema({name: _plain(source.field(name)) for name in keys}).with_metadata(metadata)
    format_ = SINK_FORMATS[job.settings.written]
    format_.refuse(schema)
    format_.refuse(bad)
    types = pa.types
    dictionary = [f.name for f in kept if types.is_dictionary(f.type)]
    dictionary += [f.name for f in made if types.is_string(f.type) or types.is_integer(f.type)]
    return Layout(
        format_,
        schema,
        bad,
        tuple(passed),
        tuple(bad.names[: -len(_REASONS)]),
        signature.outputs,
        tuple(dictionary),
        _group_rows(schema),
    )


def noted_schema(shape: Layout) -> str | msgspec.UnsetType:
    """For the manifest of parts that hold no types. See `manifest.Manifest.arrow_schema`."""
    if not shape.format.text:
        return msgspec.UNSET
    return base64.b64encode(shape.format.written(shape.schema).serialize()).decode()


def schema_of(noted: str) -> Schema:
    """What was noted."""
    pa = pyarrow()
    return pyarrow("ipc").read_schema(pa.py_buffer(base64.b64decode(noted)))


def bad_schema(keys: Mapping[str, Any]) -> Schema:
    """Of the table of bad rows. keys: fields by name, of which those that have a name of its own give way."""
    pa = pyarrow()
    reasons = [pa.field(name, pa.type_for_alias(type_), nullable=False) for name, type_ in _REASONS.items()]
    return pa.schema([*(field for name, field in keys.items() if name not in _REASONS), *reasons])


def _plain(field: Any) -> Any:
    return field.remove_metadata()


def _group_rows(schema: Schema) -> int:
    width = sum(width_of(field.type) or 32 for field in schema)
    return max(1, min(GROUP_ROWS, GROUP_BYTES // max(1, width)))


def arrow_type(spec: TensorSpec) -> DataType:
    """The column type of an output: its element, or lists of its dimensions within a row."""
    pa = pyarrow()
    types = {
        "BOOL": pa.bool_(), "INT8": pa.int8(), "INT16": pa.int16(), "INT32": pa.int32(), "INT64": pa.int64(),
        "UINT8": pa.uint8(), "UINT16": pa.uint16(), "UINT32": pa.uint32(), "UINT64": pa.uint64(), "BF16": pa.uint16(),
        "FP16": pa.float16(), "FP32": pa.float32(), "FP64": pa.float64(), "BYTES": pa.string(),
    }  # fmt: skip
    type_ = types[spec.datatype]
    for size in reversed(inner_shape(spec)):
        item = pa.field("item", type_, nullable=False)
        type_ = pa.list_(item, size) if size >= 0 else pa.list_(item)
    return type_


def inner_shape(spec: TensorSpec) -> tuple[int, ...]:
    """An output's dimensions within a row; one of a single element is none."""
    return () if spec.shape[1:] == (1,) else spec.shape[1:]


def column_of(array: Array, spec: TensorSpec, type_: DataType, rows: int) -> ArrowArray:
    """An output as a column; numbers are not copied. Raises Internal if it is not what the signature says."""
    fits = array.ndim >= 1 and array.shape[0] == rows and array.ndim == len(spec.shape)
    if not fits or any(want not in (-1, came) for want, came in zip(spec.shape[1:], array.shape[1:], strict=True)):
        raise Internal(f"output {spec.name!r}: {rows} rows of {spec} wanted, shape {list(array.shape)} came")
    pa = pyarrow()
    inner = inner_shape(spec)
    sizes = array.shape[1:] if inner else ()
    types = [type_]
    for _ in sizes:
        types.append(types[-1].value_type)
    column = _flat(array, types[-1])
    for level in range(len(sizes) - 1, -1, -1):
        size, outer = sizes[level], types[level]
        if inner[level] >= 0:
            column = pa.FixedSizeListArray.from_arrays(column, type=outer)
        else:
            lists = rows * math.prod(sizes[:level])
            offsets = np.arange(lists + 1, dtype=np.int32) * np.int32(size)
            column = pa.ListArray.from_arrays(pa.array(offsets), column, type=outer)
    return column


def _flat(array: Array, type_: DataType) -> ArrowArray:
    pa = pyarrow()
    flat = np.ascontiguousarray(array).reshape(-1)
    if array.dtype.kind in "OSU":
        try:
            words = [item.decode() if isinstance(item, bytes) else str(item) for item in flat.tolist()]
        except UnicodeDecodeError:
            raise Internal("an output that is text holds what is not UTF-8") from None
        return pa.array(words, type=type_)
    if array.dtype.kind == "b":
        packed = np.packbits(flat, bitorder="little")
        return pa.Array.from_buffers(type_, len(flat), [None, pa.py_buffer(packed)])
    return pa.Array.from_buffers(type_, len(flat), [None, pa.py_buffer(flat)])


def together(
    kept: RecordBatch, outputs: Sequence[Array], shape: Layout, beside: Sequence[ArrowArray] = ()
) -> RecordBatch:
    """The output's rows. beside: columns behind the outputs, as `layout` was told of them."""
    columns = [kept.column(name) for name in shape.passed]
    for spec, array in zip(shape.outputs, outputs, strict=True):
        type_ = shape.schema.field(len(columns)).type
        columns.append(column_of(array, spec, type_, kept.num_rows))
    columns += beside
    return pyarrow().RecordBatch.from_arrays(columns, schema=shape.schema)


def bad_rows(batch: RecordBatch, reasons: Mapping[int, str], path: str, first_row: int, shape: Layout) -> RecordBatch:
    """The rows of `reasons`, ascending, with their keys."""
    pa = pyarrow()
    rows = sorted(reasons)
    keys = batch.select(list(shape.keys)).take(pa.array(rows, pa.int64())) if shape.keys else None
    columns = [] if keys is None else list(keys.columns)
    columns.append(pa.array([reasons[row] for row in rows], pa.string()))
    columns.append(pa.array([path] * len(rows), pa.string()))
    columns.append(pa.array([first_row + row for row in rows], pa.int64()))
    return pa.RecordBatch.from_arrays(columns, schema=shape.bad_schema)

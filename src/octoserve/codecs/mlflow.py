"""Bodies of `/invocations`: MLflow's scoring server, and what SageMaker's clients send.

JSON with exactly one of `dataframe_split`, `dataframe_records`, `instances` (rows) and `inputs` (whole inputs), beside
`params`, which no model here has and which are passed over; or a bare array of rows. CSV with or without a header. JSON
lines, a row each. The answer is `{"predictions": ...}`, CSV or JSON lines.

Source: MLflow's "Local Inference Server Specification", SageMaker's "Common Data Formats for Inference".
"""

from __future__ import annotations

import csv
import io
import itertools
from typing import Any

import msgspec

from octoserve.codecs.json_answers import AnswerStyle, by_output, by_row, row_texts
from octoserve.codecs.json_values import decode_frame
from octoserve.codecs.large_json import no_collections
from octoserve.codecs.value_reader import ValueReader
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, TooLarge
from octoserve.core.results import Result
from octoserve.core.tensors import Tensor

JSON, CSV, LINES = "application/json", "text/csv", "application/jsonlines"
MAX_CSV = 8 << 20
"""Bytes of a body of CSV: its cells become texts one by one, which holds up all other requests. SageMaker sends 6 MB
at most."""
_STYLE = AnswerStyle()
_CELLS = AnswerStyle(bare=True, single=True)


class _Split(msgspec.Struct):
    data: msgspec.Raw
    columns: list[str | int] | None = None


class _Frame(msgspec.Struct):
    dataframe_split: _Split | None = None
    dataframe_records: msgspec.Raw = msgspec.Raw()
    instances: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()


_frame = msgspec.json.Decoder(_Frame).decode
_raw = msgspec.json.Decoder(msgspec.Raw).decode


def decode_json(body: bytes, reader: ValueReader) -> tuple[list[Tensor], bool]:
    """Tensors, and whether whole outputs are wanted rather than rows. Raises InvalidInput, TooLarge."""
    if body.lstrip()[:1] == b"[":
        return reader.rows(memoryview(decode_frame(body, _raw, "an array of rows")), "rows"), False
    what = "an object with one of dataframe_split, dataframe_records, instances and inputs"
    frame: _Frame = decode_frame(body, _frame, what)
    given = [name for name in _FORMS if _given(frame, name)]
    if len(given) != 1:
        raise InvalidInput(f"{what} is wanted, {' and '.join(given) or 'none of them'} came")
    if frame.dataframe_split is not None:
        split = frame.dataframe_split
        data = memoryview(split.data)
        if split.columns is None:
            return reader.rows(data, "data"), False
        return reader.table(list(map(str, split.columns)), data, "data"), False
    text = memoryview(getattr(frame, given[0]))
    return (reader.columns(text, "inputs"), True) if given == ["inputs"] else (reader.rows(text, given[0]), False)


_FORMS = _Frame.__struct_fields__


def _given(frame: _Frame, name: str) -> bool:
    value = getattr(frame, name)
    return value is not None and (name == "dataframe_split" or len(value) > 0)


def decode_lines(body: bytes, reader: ValueReader) -> list[Tensor]:
    """JSON lines, a row each. Raises InvalidInput, TooLarge."""
    while b"\n\n" in body:  # each would be an element of a list
        body = body.replace(b"\n\n", b"\n")
    lines = [line for line in body.split(b"\n") if line.strip()]
    if not lines:
        raise InvalidInput("a JSON row a line is wanted, nothing came")
    return reader.rows(memoryview(decode_frame(b"[%b]" % b",".join(lines), _raw, "a JSON row a line")), "lines")


def decode_csv(body: bytes, reader: ValueReader, header: bool | None) -> list[Tensor]:
    """header: whether the first line is one; None: if it holds the model's fields or, where those have no names, any
    cell that is no number. Raises InvalidInput, TooLarge."""
    if len(body) > MAX_CSV:
        raise TooLarge(
            f"{len(body)} bytes of CSV came, at most {MAX_CSV} are taken at a time; send fewer rows, or JSON"
        )
    with no_collections():
        return _csv(body, reader, header)


def _csv(body: bytes, reader: ValueReader, header: bool | None) -> list[Tensor]:
    try:
        rows = [row for row in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True) if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"text/csv is wanted: {error}") from None
    if not rows:
        raise InvalidInput("a line of CSV for each row is wanted, nothing came")
    if header is None:
        header = not all(map(_is_number, rows[0])) if reader.nameless else set(reader.fields) <= set(rows[0])
    columns = rows.pop(0) if header else None
    return reader.texts(columns, rows)


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def encode_json(result: Result, whole: bool) -> bytes:
    """`{"predictions": ...}`. Raises InvalidInput, Unsupported."""
    predictions = by_output(result, _STYLE) if whole else b"[%b]" % b",".join(by_row(result, _STYLE))
    return b'{"predictions":%b}' % predictions


def encode_lines(result: Result) -> bytes:
    """A JSON line a row. Raises InvalidInput, Unsupported."""
    return b"\n".join(by_row(result, _STYLE)) + b"\n"


def encode_csv(result: Result) -> bytes:
    """A line a row, without a header: the elements of all outputs in order. Raises InvalidInput, Unsupported."""
    specs = result.ran.signature.outputs
    columns: list[list[list[Any]]] = []
    for i, spec in enumerate(specs):
        texts = row_texts(result, i, _CELLS)
        if DATATYPES[spec.datatype].kind == "bytes":
            columns.append([_flat(msgspec.json.decode(text)) for text in texts])
        else:
            columns.append([text.translate(None, b"[]").decode().split(",") for text in texts])
    if len(set(map(len, columns))) > 1:
        raise InvalidInput("the outputs differ in their number of rows; ask for JSON")
    out = io.StringIO(newline="")
    rows = zip(*columns, strict=True)
    csv.writer(out, lineterminator="\n").writerows([list(itertools.chain.from_iterable(cells)) for cells in rows])
    return out.getvalue().encode()


def _flat(value: Any) -> list[Any]:
    return [item for one in value for item in _flat(one)] if isinstance(value, list) else [value]

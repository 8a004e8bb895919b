"""What a sink's formats write is read again: by themselves exactly, by their source as far as text tells types."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.connectors import discovery
from octoserve.connectors.files import LocalFiles, NewFile
from octoserve.connectors.formats import SINK_FORMATS
from octoserve.core.errors import SettingsError

TEXT = ("csv", "jsonl")
ZURICH = dt.timezone(dt.timedelta(hours=2))
FLOATS = [0.1, -0.0, 1.0, 1e-45, 3.4e38, 123456789.0, math.nan, math.inf, -math.inf, None]
WORDS = [
    "",
    None,
    "a",
    'say "no"',
    "two\nlines",
    "\r\n",
    ",",
    "007",
    "NaN",
    "null",
    "\\",
    "\x01\t",
    "é \u2028 🦑",
    " x ",
]


def columns() -> dict[str, pa.Array]:
    """A column of each kind, all of one length, every one but the last with a null."""
    utc = dt.datetime(2026, 7, 1, 1, 2, 3, 456789, tzinfo=dt.UTC)
    some: dict[str, pa.Array] = {
        "int64": pa.array([2**63 - 1, -(2**63), 2**53 + 1, None], pa.int64()),
        "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "int8": pa.array([-128, 127, None], pa.int8()),
        "bool": pa.array([True, False, None]),
        "float": pa.array(FLOATS, pa.float32()),
        "double": pa.array([*FLOATS, 0.1 + 0.2, 1.7976931348623157e308, 5e-324], pa.float64()),
        "half": pa.array([0.1, 65504.0, None], pa.float32()).cast(pa.float16()),
        "decimal": pa.array([decimal.Decimal("12345678901234567890.10"), None], pa.decimal128(30, 2)),
        "date": pa.array([dt.date(2026, 2, 28), dt.date(1, 1, 1), None]),
        "time": pa.array([dt.time(1, 2, 3, 4), None], pa.time64("us")),
        "naive": pa.array([dt.datetime(2026, 1, 2, 3, 4, 5, 6), None], pa.timestamp("us")),
        "utc": pa.array([utc, None], pa.timestamp("ns", "UTC")),
        "zone": pa.array([utc, None], pa.timestamp("ms", "Europe/Zurich")),
        "seconds": pa.array([dt.datetime(2026, 1, 2, 3, 4, 5), None], pa.timestamp("s")),
        "duration": pa.array([dt.timedelta(seconds=1, microseconds=1), None], pa.duration("us")),
        "string": pa.array(WORDS),
        "large": pa.array(WORDS, pa.large_string()),
        "category": pa.array(WORDS).dictionary_encode(),
        "nothing": pa.nulls(3),
        "pair": pa.array([[0.1, math.nan], None, [1.0, 2.0]], pa.list_(pa.field("item", pa.float32(), False), 2)),
        "square": pa.array([[[1, 2], [3, 4]], None], pa.list_(pa.list_(pa.int64(), 2), 2)),
        "last": pa.array(range(14), pa.int32()),
    }
    longest = max(map(len, some.values()))
    return {name: array.take(pa.array(np.arange(longest) % len(array))) for name, array in some.items()}


def nested() -> dict[str, pa.Array]:
    """What all but CSV take."""
    length = len(columns()["last"])
    some = {
        "lists": pa.array([[0.5, None, math.inf], [], None], pa.list_(pa.float64())),
        "words": pa.array([['"', None, "NaN"], [], None], pa.list_(pa.string())),
        "deep": pa.array([[[1], [], None], None], pa.list_(pa.list_(pa.int64()))),
        "struct": pa.array([{"a": 1, "b": ['"']}, None, {"a": None, "b": None}]),
    }
    return {name: array.take(pa.array(np.arange(length) % len(array))) for name, array in some.items()}


def written(folder: Path, name: str, table: pa.Table, block: int = 5, group: int = 8) -> Path:
    """Written block by block, as a split is."""
    format_ = SINK_FORMATS[name]
    format_.refuse(table.schema)
    path = folder / f"part-00000{format_.endings[0]}"
    file = NewFile(LocalFiles(), path)
    writer = format_.writer(file, table.schema, group, ())
    for start in range(0, table.num_rows, block):
        (batch,) = table.slice(start, block).combine_chunks().to_batches()
        writer.write(batch)
    writer.close()
    file.finish()
    return path


def again(name: str, path: Path, table: pa.Table, chosen: list[str] | None = None) -> pa.Table:
    format_ = SINK_FORMATS[name]
    with path.open("rb") as file:
        return format_.table(file, format_.written(table.schema), chosen)


def source(name: str, path: Path, rows: int = 100) -> pa.Table:
    """As a job reads it."""
    format_ = SINK_FORMATS[name]
    file = discovery.identify(str(path))
    schema, ranges = format_.inspect(file)
    blocks = list(format_.read(file, ranges[0].start, ranges[-1].stop, schema.names, schema, rows))
    assert not [block.unfit for block in blocks if block.unfit]
    return pa.Table.from_batches([block.batch for block in blocks])


def same(one: Any, other: Any) -> bool:
    """To the bit, NaN being NaN."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isnan(one) == math.isnan(other) and (
            math.isnan(one) or (one, math.copysign(1, one)) == (other, math.copysign(1, other))
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", SINK_FORMATS)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    table = pa.table(columns() | ({} if name == "csv" else nested()))
    path = written(tmp_path, name, table)
    found = again(name, path, table)
    if name != "parquet":  # which has its own name for a list's items
        assert found.schema.remove_metadata() == SINK_FORMATS[name].written(table.schema).remove_metadata()
    for column in table.column_names:
        assert same(found[column].to_pylist(), table[column].to_pylist()), column
    few = again(name, path, table, ["last", "pair"])
    assert few.column_names == ["last", "pair"]
    assert few["last"].to_pylist() == list(range(14))


@pytest.mark.parametrize("name", SINK_FORMATS)
def test_the_bytes_follow_from_the_rows(name: str, tmp_path: Path) -> None:
    """Whatever lay in memory where there is no value."""
    first, second = columns(), columns()
    for column in ("int64", "float", "utc", "decimal", "bool"):
        array = second[column]
        width = max(1, array.type.bit_width // 8)
        data = bytearray(array.buffers()[1])
        for place in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)):
            if column == "bool":
                data[place // 8] |= 1 << (place % 8)
            else:
                data[place * width : (place + 1) * width] = b"\x5a" * width
        second[column] = pa.Array.from_buffers(array.type, len(array), [array.buffers()[0], pa.py_buffer(bytes(data))])
    (tmp_path / "1").mkdir(), (tmp_path / "2").mkdir()
    one, two = (written(tmp_path / str(i + 1), name, pa.table(c)) for i, c in enumerate((first, second)))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", SINK_FORMATS)
def test_no_rows(name: str, tmp_path: Path) -> None:
    table = pa.table(columns()).slice(0, 0)
    found = again(name, written(tmp_path, name, table), table)
    assert found.num_rows == 0
    assert found.column_names == table.column_names


def test_csv_as_other_programs_read_it(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "a,b": ['say "no"', "", None], "p": columns()["pair"].slice(0, 3)})
    path = written(tmp_path, "csv", table)
    assert path.read_text() == 'id,"a,b",p_0,p_1\n1,"say ""no""",0.1,NaN\n2,"",,\n3,,1.0,2.0\n'
    found = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["a,b"] for row in found] == ['say "no"', "", ""]


def test_json_lines_as_other_programs_read_them(tmp_path: Path) -> None:
    table = pa.table(columns() | nested())
    lines = written(tmp_path, "jsonl", table).read_text().splitlines(keepends=False)
    strict = {"parse_constant": lambda word: pytest.fail(f"{word} is no JSON")}
    # str.splitlines knows more ends of lines than JSON lines does
    found = [
        json.loads(line, **strict) for line in written(tmp_path, "jsonl", table).read_bytes().decode().split("\n")[:-1]
    ]
    assert len(found) == 14 <= len(lines)
    assert [row["string"] for row in found] == WORDS
    assert [row["int64"] for row in found][:3] == [2**63 - 1, -(2**63), 2**53 + 1]
    assert [row["double"] for row in found][6:10] == ["NaN", "Infinity", "-Infinity", None]
    assert found[0]["pair"] == [0.1, "NaN"]
    assert found[0]["utc"] == "2026-07-01 01:02:03.456789000Z"
    assert found[0]["struct"] == {"a": 1, "b": ['"']}


@given(
    st.lists(
        st.tuples(
            st.floats(), st.floats(width=32), st.text(st.characters(codec="utf-8")), st.integers(-(2**63), 2**63 - 1)
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_values(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]) -> None:
    types = (pa.float64(), pa.float32(), pa.string(), pa.int64())
    arrays = [pa.array(values, type_) for values, type_ in zip(zip(*rows, strict=True), types, strict=True)]
    table = pa.table(arrays, names=["double", "float", "text", "int"])
    for name in TEXT:
        path = written(tmp_path_factory.mktemp(name), name, table, block=3)
        found = again(name, path, table)
        assert all(same(found[column].to_pylist(), table[column].to_pylist()) for column in table.column_names)


def test_the_csv_source_reads_what_the_sink_wrote(tmp_path: Path) -> None:
    """Types are told from the values. A missing text and an empty one are one to it, and so are NaN and no number."""
    known = columns()
    chosen = ("int64", "bool", "float", "double", "date", "seconds", "string", "last")
    table = pa.table({name: known[name] for name in chosen})
    found = source("csv", written(tmp_path, "csv", table))
    assert found["string"].to_pylist() == [word or "" for word in WORDS]
    for name in ("int64", "bool", "date", "seconds", "last"):
        assert found[name].to_pylist() == table[name].to_pylist(), name
    for name in ("float", "double"):
        wanted = [None if value is not None and math.isnan(value) else value for value in table[name].to_pylist()]
        assert same(found[name].cast(table[name].type).to_pylist(), wanted), name


def test_whole_numbers_in_a_column_of_floats_stay_floats(tmp_path: Path) -> None:
    """They are what a type is told from; what comes later has a fraction."""
    table = pa.table({"id": pa.array(range(1200)), "x": pa.array([float(i) for i in range(1100)] + [0.5] * 100)})
    for name in TEXT:
        assert source(name, written(tmp_path, name, table)).to_pylist() == table.to_pylist()


def test_the_json_source_reads_what_the_sink_wrote(tmp_path: Path) -> None:
    known = columns() | nested()
    chosen = ("int64", "bool", "float", "double", "seconds", "string", "pair", "lists", "words", "struct", "last")
    table = pa.table({name: known[name] for name in chosen})
    found = source("jsonl", written(tmp_path, "jsonl", table))
    for name in chosen:
        read = found[name].cast(pa.list_(pa.float32())) if name == "pair" else found[name]
        read = read.cast(pa.float32()) if name == "float" else read
        assert same(read.to_pylist(), table[name].to_pylist()), name


def test_words_among_numbers_of_another_writer(tmp_path: Path) -> None:
    """They are numbers where the column's are, and text where it is text; in a string nothing is touched."""
    rows = [{"x": "NaN", "t": "NaN"}, {"x": 0.5, "t": '"x": "NaN"'}, {"x": "-Infinity", "t": "Infinity"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    format_, file = SINK_FORMATS["jsonl"], discovery.identify(str(tmp_path / "t.jsonl"))
    _, ranges = format_.inspect(file)
    schema = pa.schema([("x", pa.float64()), ("t", pa.string())])
    (block,) = format_.read(file, 0, ranges[-1].stop, ["x", "t"], schema, 10)
    assert not block.unfit
    assert same(block.batch.to_pylist(), [{**row, "x": float(row["x"])} for row in rows])


@pytest.mark.parametrize(
    ("name", "column", "says"),
    [
        (
            "csv",
            pa.array([[1]], pa.list_(pa.int64())),
            "column x of type list.* cannot be written as csv.*--sink-format jsonl",
        ),
        ("csv", pa.array([b"x"]), "neither lists of varying length nor bytes"),
        ("csv", pa.array([{"a": 1}]), "column x of type struct"),
        ("jsonl", pa.array([b"x"]), "cannot be written as JSON lines"),
        ("jsonl", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "no maps"),
    ],
)
def test_what_a_format_has_no_place_for(name: str, column: pa.Array, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        SINK_FORMATS[name].refuse(pa.schema([("x", column.type)]))


def test_a_list_that_is_spread_over_another_columns_name() -> None:
    schema = pa.schema([("p_1", pa.int64()), ("p", pa.list_(pa.float32(), 2))])
    with pytest.raises(SettingsError, match=r"'p_1' would be written twice.*--prefix"):
        SINK_FORMATS["csv"].refuse(schema)

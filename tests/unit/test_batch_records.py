"""Text as records, whatever the block in which a file is read: every record once, whole, and in order."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.connectors import discovery, formats, records
from octoserve.connectors.delimited import MOSTLY_NUMBERS
from octoserve.connectors.source import SourceFile
from octoserve.core.errors import InvalidInput, SettingsError, TooLarge

cells = st.text(st.sampled_from("ab\",\n\r'é "), max_size=6)
tables = st.lists(st.lists(cells, min_size=2, max_size=2), max_size=30)


def at(path: Path) -> SourceFile:
    return discovery.identify(str(path))


def csv_of(table: list[list[str]], end: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(table)
    return text.getvalue().encode()


@given(tables, st.sampled_from(["\n", "\r\n"]), st.integers(1, 40), st.integers(1, 7))
def test_quoted_newlines_end_no_record(tmp_path_factory, table, end, chunk, rows) -> None:
    path = tmp_path_factory.mktemp("r") / "t.csv"
    path.write_bytes(csv_of(table, end))
    pieces = list(records.pieces(at(path), 0, None, True, chunk))
    assert b"".join(piece.data for piece in pieces).strip() == path.read_bytes().strip()
    found = []
    for piece in pieces:
        begins = [0, *piece.ends.tolist()]
        found += [piece.data[a:b] for a, b in itertools.pairwise(begins)]
    read = [next(csv.reader(io.StringIO(record.decode(), newline=""))) for record in found]
    assert read == table
    blocks = list(records.blocks(at(path), 0, path.stat().st_size, True, rows))
    assert [len(block.ends) for block in blocks[:-1]] == [rows] * max(0, len(blocks) - 1)
    assert sum(len(block.ends) for block in blocks) == len(table)


@given(st.lists(st.sampled_from([b"{}", b"", b"\r", b"{ }"]), max_size=30), st.booleans(), st.integers(1, 9))
def test_blank_lines_are_no_records(tmp_path_factory, lines: list[bytes], ends: bool, chunk: int) -> None:
    path = tmp_path_factory.mktemp("r") / "t.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))
    count = sum(len(piece.ends) for piece in records.pieces(at(path), 0, None, False, chunk))
    assert count == sum(bool(line.strip()) for line in lines)


def test_a_quote_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_BYTES", 1000)
    path = tmp_path / "t.csv"
    path.write_bytes(b'a,b\n1,"' + b"x\n" * 2000)
    with pytest.raises(TooLarge, match="not closed"):
        list(records.pieces(at(path), 0, None, True, 100))


def whole(path: Path, rows: int = 3) -> tuple[pa.Table, dict[int, str]]:
    """A file through its format, range by range, and the rows that could not be read."""
    format_, _ = formats.find([str(path)])
    schema, ranges = format_.inspect(at(path))
    blocks = [
        block for r in ranges for block in format_.read(at(path), r.start, r.stop, schema.names, schema, rows) if r.rows
    ]
    unfit: dict[int, str] = {}
    row = 0
    for block in blocks:
        unfit |= {row + place: reason for place, reason in block.unfit.items()}
        row += block.batch.num_rows
    assert row == sum(r.rows for r in ranges)
    return pa.Table.from_batches([block.batch for block in blocks]), unfit


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfid,zip,x,name\r\n1,007,1.5,"a ""b"", c"\r\n2,100,,d\r\n\r\n3,008,2,"e\nf"')
    table, unfit = whole(path, 2)
    assert unfit == {}
    assert table.to_pylist() == [
        {"id": 1, "zip": "007", "x": 1.5, "name": 'a "b", c'},
        {"id": 2, "zip": "100", "x": None, "name": "d"},
        {"id": 3, "zip": "008", "x": 2.0, "name": "e\nf"},
    ]


def test_a_bad_record_of_csv_keeps_what_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    lines = [f"{i}\t{i}.5\tn{i}" for i in range(2000)]
    lines[1500], lines[1600] = "1500\toops\tn1500", "1600\t1"
    path.write_text("id\tx\tname\n" + "\n".join(lines) + "\n")
    table, unfit = whole(path, 100)
    assert sorted(unfit) == [1500, 1600]
    assert "'x'" in unfit[1500]
    assert "oops" in unfit[1500]
    assert table.slice(1500, 1).to_pylist() == [{"id": 1500, "x": None, "name": "n1500"}]
    assert table.slice(1599, 1).to_pylist() == [{"id": 1599, "x": 1599.5, "name": "n1599"}]


def test_a_number_column_with_words_among_the_first(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,word\n1,a\n?,b\n3,4\n")
    schema, _ = formats.find([str(path)])[0].inspect(at(path))
    assert schema.field("x").type == pa.string()
    assert MOSTLY_NUMBERS in schema.field("x").metadata
    assert not schema.field("word").metadata


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": 1, "v": [1, 2.5], "more": {"a": 1}}\n{"id": 2}\n\n{"v": [], "id": 3, "new": 1}\n')
    table, unfit = whole(path)
    assert unfit == {}
    assert table.column("id").to_pylist() == [1, 2, 3]
    assert table.column("v").to_pylist() == [[1.0, 2.5], None, []]
    path.write_text("".join(f'{{"id": {i}, "x": 1.5}}\n' for i in range(2000)).replace('{"id": 1700,', '{"id": 1700;'))
    table, unfit = whole(path, 100)
    assert sorted(unfit) == [1700]
    assert table.column("id").to_pylist() == [None if i == 1700 else i for i in range(2000)]


@pytest.mark.parametrize("how", ["file", "stream"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_arrow_ipc(tmp_path: Path, how: str, compression: str | None) -> None:
    path = tmp_path / "t.arrow"
    table = pa.table({"b": [f"w{i}" for i in range(1000)], "a": list(range(1000))})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    opened = pa.ipc.new_file if how == "file" else pa.ipc.new_stream
    with opened(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=300)
    found, _ = whole(path, 128)
    assert found.equals(table)
    format_, _ = formats.find([str(path)])
    (first, *_) = format_.read(at(path), 0, 1, ("a",), table.schema, 10)
    assert first.batch.column_names == ["a"]


def test_the_format_is_told_by_the_name_or_said(tmp_path: Path) -> None:
    for name in ("a.csv", "b.jsonl", "c.dat"):
        (tmp_path / name).write_text("x\n1\n")
    assert formats.find([str(tmp_path / "a.csv")])[0].name == "csv"
    assert formats.find([str(tmp_path / "c.dat")], "csv")[0].name == "csv"
    with pytest.raises(SettingsError, match="one format"):
        formats.find([str(tmp_path)])
    with pytest.raises(SettingsError, match="--format"):
        formats.find([str(tmp_path / "c.dat")])
    with pytest.raises(SettingsError, match="one of parquet"):
        formats.find([str(tmp_path)], "xlsx")
    for name, text in (("d.csv", ""), ("e.jsonl", "what is this\n"), ("f.arrow", "no"), ("g.csv", "a,a\n1,2\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidInput, match=name[0] + r"\."):
            formats.find([str(tmp_path / name)])[0].inspect(at(tmp_path / name))

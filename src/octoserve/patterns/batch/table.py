"""The source as one table: its files in order, one schema, Hive's partitions as columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from octoserve.connectors.arrow import DataType, RecordBatch, Schema, pyarrow
from octoserve.connectors.source import Range, Rows, Source, SourceFile
from octoserve.core.errors import InvalidInput
from octoserve.patterns.batch.job import Differs, Split
from octoserve.patterns.batch.matching import check_file, text_type


class Table:
    """A source. `schema` is the first file's, of text the first one's with rows, and the partitions' columns behind."""

    def __init__(self, source: Source) -> None:
        """Reads the first file's footer. Raises InvalidInput."""
        self.source = source
        self.files = files = source.files
        self._at, self._first = self._telling(files)
        self._own: Schema = self._first[0]
        pa = pyarrow()
        twice = sorted({name for name in self._own.names if self._own.names.count(name) > 1})
        if twice:
            raise InvalidInput(
                f"{files[0].path}: the column {twice[0]!r} is there twice; which is meant, nobody can tell"
            )
        names = [n for n in files[0].partitions if n not in self._own.names]
        self._partitions: dict[str, DataType] = {
            name: _partition_type([file.partitions.get(name) for file in files]) for name in names
        }
        self.schema: Schema = self._own
        for name, type_ in self._partitions.items():
            self.schema = self.schema.append(pa.field(name, type_))

    def _telling(self, files: Sequence[SourceFile]) -> tuple[int, tuple[Schema, list[Range]]]:
        """Which file tells the columns, and what it says: text without a row has no types, of JSON not even names."""
        first = self.source.inspect(files[0])
        told, at = first, 0
        while self.source.text and not told[1] and at + 1 < len(files):
            at += 1
            told = self.source.inspect(files[at])
        if not told[1]:
            told, at = first, 0
        if not told[0].names:
            raise InvalidInput(f"{files[0].path} has no records, so that nothing tells its columns")
        return at, told

    def read_as(self, wanted: Mapping[str, str]) -> None:
        """Of a text format: read the columns of `wanted` as their datatypes, as far as the first records let them be.

        Numbers that a model takes as floats are read as double and then rounded, as those of a JSON request are.
        """
        pa = pyarrow()
        for place, field in enumerate(self._own):
            type_ = text_type(field, wanted.get(field.name))
            self._own = self._own.set(place, pa.field(field.name, type_))
            self.schema = self.schema.set(place, pa.field(field.name, type_))

    @property
    def is_text(self) -> bool:
        """Whether values have no type of their own."""
        return self.source.text

    def ranges(self, read: Sequence[str], threads: int) -> list[list[Range]]:
        """Of each file. Raises Differs for a file whose columns are not the first one's."""
        own = [name for name in read if name not in self._partitions]
        with ThreadPoolExecutor(threads) as pool:
            inspected = list(pool.map(self.source.inspect, self.files[self._at + 1 :]))
        wrong = [
            difference
            for file, (schema, _) in zip(self.files[self._at + 1 :], inspected, strict=True)
            for difference in (check_file(file.path, schema, self._own, own, self.source.text) if schema.names else ())
        ]
        if wrong:
            raise Differs("the source's files are not alike", wrong)
        return [*([] for _ in range(self._at)), self._first[1], *(ranges for _, ranges in inspected)]

    def read(self, split: Split, columns: Sequence[str], rows: int) -> Iterator[Rows]:
        """The rows of a split, `rows` to a block. Raises InvalidInput."""
        file = self.files[split.file]
        own = [name for name in columns if name not in self._partitions]
        if not split.rows:
            return
        try:
            for block in self.source.read(file, split.start, split.stop, own, self._own, rows):
                yield (
                    Rows(self._with_partitions(block.batch, file, columns), block.unfit) if self._partitions else block
                )
        except (pyarrow().ArrowException, OSError) as error:
            raise InvalidInput(f"{file.path} cannot be read: {error}") from error

    def _with_partitions(self, batch: RecordBatch, file: SourceFile, columns: Sequence[str]) -> RecordBatch:
        pa = pyarrow()
        arrays: list[Any] = []
        for name in columns:
            type_ = self._partitions.get(name)
            if type_ is None:
                arrays.append(batch.column(name))
                continue
            text = file.partitions.get(name)
            value = int(text) if text is not None and type_ != pa.string() else text
            arrays.append(pa.repeat(pa.scalar(value, type_), batch.num_rows))
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _partition_type(texts: Sequence[str | None]) -> DataType:
    """As pyarrow infers it: int32 if all are such numbers, else text. Here numbers may be longer, and what would lose
    its leading zeros stays text."""
    pa = pyarrow()
    said = [text for text in texts if text is not None]
    if not said or not all(_is_number(text) for text in said):
        return pa.string()
    return pa.int32() if all(-(2**31) <= int(text) < 2**31 for text in said) else pa.int64()


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(text)) == text and len(text) <= 18

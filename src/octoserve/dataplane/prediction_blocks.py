"""Requests and their answers as blocks for the spool: what is wanted of them, and no more than a record may hold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octoserve.core.datatypes import DATATYPES
from octoserve.core.fields import OUTPUT, Field, fields_of, is_text, matrix
from octoserve.core.observation import LogSettings
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array, raw_from_array
from octoserve.routing.key import INPUT
from octoserve.telemetry.predictions import Block, Cells

if TYPE_CHECKING:
    from octoserve.dataplane.call import Call
    from octoserve.dataplane.predictions import Taken

log = logging.getLogger(__name__)

Cuts = list[tuple[str, NDArray[np.bool_]]]
"""Columns, and the rows of a block of which they are not whole."""
KEY = "_key"
_LENGTH = 4
"""Bytes of a text's length beside it."""


class Blocks:
    """Makes blocks of one model's requests."""

    REQUESTS = 512
    """At most so many in a block, and"""
    BYTES = 1 << 20
    """so many bytes, unless one run has more."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._fields: tuple[Signature, tuple[Field, ...]] | None = None

    def of(self, some: Sequence[Taken], inputs: Sequence[Sequence[Array]], outputs: Sequence[Sequence[Array]]) -> Block:
        """inputs, outputs: each tensor's arrays, in the order of the requests."""
        handle = some[0].handle
        calls = [call for taken in some for call in taken.calls]
        cells, cut = self._cells(handle.signature, inputs, outputs)
        keyed = KEY not in self._settings.exclude
        return Block(
            model=handle.ref.model,
            version=handle.ref.version,
            times=[taken.time for taken in some for _ in taken.calls],
            ids=[call.request_id()[: self._settings.max_record] for call in calls],
            keys=[self._key_of(call) if keyed else None for call in calls],
            arms=[call.arm.role if call.arm is not None else "" for call in calls],
            seconds=[seconds for taken in some for seconds in taken.seconds],
            statuses=[taken.status for taken in some for _ in taken.calls],
            rows=[call.rows for call in calls],
            cells=cells,
            cut=_by_request([call.rows for call in calls], cut) if cut else (),
        )

    def _key_of(self, call: Call) -> bytes | None:
        """What it was assigned by; nothing where that is an input that is not to be recorded."""
        source = call.arm.split.key_source if call.arm is not None else None
        hidden = source is not None and source.kind == INPUT and not self._settings.wants(source.name)
        return None if hidden else call.key

    def _cells(
        self, signature: Signature, inputs: Sequence[Sequence[Array]], outputs: Sequence[Sequence[Array]]
    ) -> tuple[list[Cells], Cuts]:
        if self._fields is None or self._fields[0] is not signature:
            self._fields = signature, fields_of(signature)
            self._check({name for field in self._fields[1] for name in field.names})
        made: list[_Wanted] = []
        absent: list[Cells] = []
        for field in self._fields[1]:
            chosen = [place for place, name in enumerate(field.names) if self._settings.wants(name)]
            names = tuple(field.names[place] for place in chosen)
            datatype = "FP32" if field.datatype == "BF16" else field.datatype  # as `matrix` gives it
            arrays = outputs if field.side == OUTPUT else inputs
            if names and not arrays:
                absent.append(Cells(names, datatype, field.is_list, field.width, None))
            elif names:
                table = matrix(arrays[field.index], signature.batchable, field.datatype)
                some = table if len(chosen) == len(field.names) else table[:, chosen]
                made.append(_Wanted(names, datatype, field.is_list, some))
        cells, cut = self._bounded(made)
        return cells + absent, cut

    def _check(self, names: set[str]) -> None:
        """A name that is misspelt would be recorded, or not be: it is said."""
        asked = [*(self._settings.only or ()), *(name for name in self._settings.exclude if name != KEY)]
        for name in asked:
            if name not in names:
                there = ", ".join(sorted(names))
                log.warning("prediction_log: only, exclude: there is no %r in this version; it has %s", name, there)

    def _bounded(self, made: list[_Wanted]) -> tuple[list[Cells], Cuts]:
        """No record over `max_record`: the widest tensors are left out, texts share what is left and are shortened."""
        room = self._settings.max_record
        fitting: list[_Wanted] = []
        for one in sorted(made, key=lambda one: one.least):
            if one.least <= room:
                room -= one.least
                fitting.append(one)
        texts = sum(one.table.shape[1] for one in fitting if is_text(one.datatype))
        most = room // texts if texts else 0
        cells: list[Cells] = []
        cut: Cuts = []
        for one in made:
            raw: bytes | None = None
            table = one.table
            if one in fitting:
                if is_text(one.datatype):
                    table, short = _shortened(table, most)
                    cut += [(",".join(one.names), short)] if short.any() else []
                raw = raw_from_array(table)
            else:
                cut.append((",".join(one.names), np.ones(len(table), np.bool_)))
            cells.append(Cells(one.names, one.datatype, one.is_list, int(one.table.shape[1]), raw))
        return cells, cut


class _Wanted:
    """A tensor's part that is recorded. least: bytes of a row, of texts their lengths alone."""

    def __init__(self, names: tuple[str, ...], datatype: str, is_list: bool, table: Array) -> None:
        self.names = names
        self.datatype = datatype
        self.is_list = is_list
        self.table = table
        self.least = table.shape[1] * (DATATYPES[datatype].itemsize or _LENGTH)


def _shortened(table: Array, most: int) -> tuple[Array, NDArray[np.bool_]]:
    """Texts of at most so many bytes, whole characters only; and the rows where one was longer."""
    values = [value if isinstance(value, bytes) else str(value).encode() for value in table.ravel().tolist()]
    longer = np.array([len(value) > most for value in values], np.bool_)
    long: NDArray[np.bool_] = np.logical_or.reduce(longer.reshape(table.shape), axis=1)
    if not long.any():
        return table, long
    short = np.empty(len(values), dtype=object)
    short[:] = [value if len(value) <= most else _whole(value[:most]) for value in values]
    return short.reshape(table.shape), long


def _by_request(rows: Sequence[int], cut: Cuts) -> list[str]:
    """What of each request was cut; "" for nothing."""
    found = []
    first = 0
    for count in rows:
        found.append(",".join(names for names, where in cut if where[first : first + count].any()))
        first += count
    return found


def _whole(text: bytes) -> bytes:
    """Without a last character of which bytes are missing; what is no UTF-8 stays as it is."""
    for back in range(1, min(4, len(text) + 1)):
        byte = text[-back]
        if byte & 0xC0 == 0x80:
            continue
        needs = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return text[:-back] if needs > back else text
    return text

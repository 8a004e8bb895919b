"""Predictions as a worker leaves them in a spool: blocks of requests, column by column (`telemetry.spool`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from octoserve.core.observation import LogSettings

OK = "ok"


class Cells(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a block: rows by `width` elements, in raw form (`core.tensors`), row after row.

    names:   a column each; or one name, of a list with a row's elements
    is_list: which of them
    raw:     None where no row has any
    """

    names: tuple[str, ...]
    datatype: str
    is_list: bool
    width: int
    raw: bytes | None


class Block(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Requests of one version and one shape. New fields are appended, with a default.

    times:    wall clock seconds of the answers, of each request, as what follows
    ids:      as the client gave them; "" for none
    keys:     what sticky assignment went by; None without one
    arms:     role in a rollout; "" for none
    seconds:  latencies
    statuses: OK, or why there is no answer
    rows:     of each request
    cells:    of all rows, in order
    cut:      columns that were left out or shortened, with commas between, as they would have made a record too large;
              none for a block of which everything is whole
    """

    model: str
    version: int
    times: Sequence[float]
    ids: Sequence[str]
    keys: Sequence[bytes | None]
    arms: Sequence[str]
    seconds: Sequence[float]
    statuses: Sequence[str]
    rows: Sequence[int]
    cells: Sequence[Cells]
    cut: Sequence[str] = ()


def spool_of(root: Path, model: str, settings: LogSettings) -> Path:
    """The model's spool: what is in it is for one store, whatever other services share the state directory."""
    return root / f"{model}-{hashlib.sha256(f'{settings.to} {settings.format}'.encode()).hexdigest()[:8]}"


def model_of(spool: Path) -> str:
    """The other way."""
    return spool.name.rpartition("-")[0]

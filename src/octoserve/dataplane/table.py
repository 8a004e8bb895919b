"""A table through the data plane: split by row, scored by version in blocks, put together again in order.

A batch job tells by the same code which version a row belongs to (`versions_of`), and restores the order (`in_order`).

There is no dynamic batching: a table is a batch. A lease is held on every version that takes part, runs are off the
event loop, and the versions are bound once, before the first block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import copy_context

import msgspec
import numpy as np
from numpy.typing import NDArray

from octoserve.core.errors import Internal, InvalidInput, OctoserveError
from octoserve.core.tensors import Array, Tensor
from octoserve.lifecycle.lease import Handle
from octoserve.routing.key import INPUT, column_keys, parse_key
from octoserve.routing.plan import BUCKETS, RoutePlan
from octoserve.routing.split import buckets_of
from octoserve.telemetry.tracing import within

BLOCK = 4096
"""Rows in one run."""


class ScoredTable(msgspec.Struct, frozen=True):
    """outputs: name -> array, row by row as the inputs were. versions: which version answered each row."""

    outputs: Mapping[str, Array]
    versions: NDArray[np.int64]


def versions_of(
    plan: RoutePlan, tensors: Sequence[Tensor], keys: Sequence[bytes] | None, rows: int
) -> NDArray[np.int64]:
    """The version of each row: by its key, else by chance. Raises InvalidInput for a key that cannot be one."""
    if plan.by_proxy or (len(plan.arms) == 1 and not plan.overrides):
        return np.full(rows, plan.stable, dtype=np.int64)  # what no proxy has drawn is stable's
    found = list(keys) if keys is not None else _keys_in(plan, tensors)
    if found is not None and len(found) != rows:
        raise InvalidInput(f"{len(found)} keys came for {rows} rows")
    buckets = np.random.default_rng().integers(0, BUCKETS, rows) if found is None else buckets_of(plan.seed, found)
    highs = np.array([arm.hi for arm in plan.arms])
    versions = np.array([arm.version for arm in plan.arms], dtype=np.int64)[np.searchsorted(highs, buckets, "right")]
    if found is not None and plan.overrides:
        overrides = {key.encode("utf-8", "surrogateescape"): version for key, version in plan.overrides.items()}
        for row, key in enumerate(found):
            versions[row] = overrides.get(key, versions[row])
    return versions


def _keys_in(plan: RoutePlan, tensors: Sequence[Tensor]) -> list[bytes] | None:
    if not plan.key:
        return None
    source = parse_key(plan.key)
    tensor = next((t for t in tensors if t.name == source.name), None)
    return list(column_keys(tensor.array())) if source.kind == INPUT and tensor is not None else None


async def score(
    tensors: Sequence[Tensor],
    versions: NDArray[np.int64],
    handle_of: Callable[[int], Handle],
    loop: asyncio.AbstractEventLoop,
    executor: Executor,
    block: int = BLOCK,
) -> ScoredTable:
    """Each row by its version. Raises OctoserveError; nothing is answered by halves."""
    handles = {int(version): handle_of(int(version)) for version in np.unique(versions)}
    for handle in handles.values():
        handle.leases += 1
    try:
        parts = {}
        for version, handle in handles.items():
            rows = np.flatnonzero(versions == version)
            parts[version] = (
                rows,
                await loop.run_in_executor(executor, copy_context().run, _score_rows, tensors, rows, handle, block),
            )
        return ScoredTable(_together(parts, handles, len(versions)), versions)
    finally:
        for handle in handles.values():
            handle.release()


def _score_rows(tensors: Sequence[Tensor], rows: NDArray[np.intp], handle: Handle, block: int) -> list[list[Array]]:
    signature = handle.signature
    if not signature.batchable:
        raise InvalidInput(f"{handle.ref} takes no rows: its first dimension is fixed; ask it request by request")
    runs = []
    for start in range(0, len(rows), block):
        chosen = rows[start : start + block]
        taken = [Tensor.of(t.name, np.ascontiguousarray(t.array()[chosen]), t.datatype) for t in tensors]
        order = signature.check(taken).order
        try:
            outputs = within(handle.loaded.platform, handle.loaded.run, [taken[i].array() for i in order])
        except OctoserveError:
            raise
        except Exception as error:
            raise Internal(f"{handle.ref} failed on rows {chosen[0]} to {chosen[-1]}: {error}") from error
        if any(a.ndim == 0 or a.shape[0] != len(chosen) for a in outputs):
            raise Internal(f"{handle.ref} gave another number of rows than it took")
        runs.append(list(outputs))
    return runs


def _together(
    parts: Mapping[int, tuple[NDArray[np.intp], list[list[Array]]]], handles: Mapping[int, Handle], rows: int
) -> dict[str, Array]:
    signatures = [handles[version].signature for version in parts]
    outputs: dict[str, Array] = {}
    for spec in signatures[0].outputs:
        columns = []
        for version, (_, runs) in parts.items():
            place = handles[version].signature.output_index.get(spec.name)
            if place is None:
                raise InvalidInput(f"version {version} has no output {spec.name!r}; a table needs one of all versions")
            columns.append(np.concatenate([run[place] for run in runs]))
        outputs[spec.name] = in_order(spec.name, [rows_of for rows_of, _ in parts.values()], columns, rows)
    return outputs


def in_order(name: str, places: Sequence[NDArray[np.intp]], parts: Sequence[Array], rows: int) -> Array:
    """An output of `rows` rows from what several versions gave of it.

    places: of each part, the rows that it is of; every row once. Raises InvalidInput if the parts are not alike.
    """
    first = parts[0]
    if any(part.shape[1:] != first.shape[1:] or part.dtype != first.dtype for part in parts):
        kinds = ", ".join(f"{part.dtype}{list(part.shape[1:])}" for part in parts)
        raise InvalidInput(f"output {name!r} differs between versions: {kinds}; a table needs the same of all")
    whole = np.empty((rows, *first.shape[1:]), dtype=first.dtype)
    for place, part in zip(places, parts, strict=True):
        whole[place] = part
    return whole

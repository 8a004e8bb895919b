"""Warm-up: run a fresh version on inputs made from its signature until its latency is stable.

The first runs of a session allocate, pick kernels and fault pages in; the first client should not pay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from octoserve.core.clock import Clock, monotonic
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import OctoserveError
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.lifecycle.probe import settle_batching
from octoserve.runtimes.protocol import LoadedModel

MAX_RUNS = 50
MAX_SECONDS = 0.5
WINDOW = 3
TOLERANCE = 0.2

Warm = Callable[[LoadedModel, int], str]
"""Warm a model up to so many rows; gives a note, empty if all went well."""


def synthetic(spec: TensorSpec, rows: int = 1) -> Array:
    """Zeros (empty text for BYTES) of the input's shape; variable dimensions are 1, the first one `rows`."""
    shape = [1 if size < 0 else size for size in spec.shape]
    if shape and spec.shape[0] < 0:
        shape[0] = rows
    dtype = DATATYPES[spec.datatype].dtype
    if spec.datatype != "BYTES":
        return np.zeros(shape, dtype)
    values = np.empty(shape, dtype=object)
    values.fill(b"")
    return values


def inputs_of(signature: Signature, rows: int = 1) -> list[Array]:
    """One synthetic array an input, in signature order."""
    arrays = [synthetic(spec, rows) for spec in signature.inputs]
    for spec, array in zip(signature.inputs, arrays, strict=True):
        if spec.name in signature.categories:
            array.fill(signature.categories[spec.name][0].encode())
    return arrays


def warm(loaded: LoadedModel, max_rows: int, clock: Clock = monotonic) -> str:
    """Run with one row, then with `max_rows` if the model is batchable. Blocking; at most MAX_SECONDS each.

    A model that refuses synthetic inputs is ready all the same: the note says what it said.
    """
    note = settle_batching(loaded)
    sizes = [1, max_rows] if loaded.signature.batchable and max_rows > 1 else [1]
    for rows in sizes:
        inputs = inputs_of(loaded.signature, rows)
        try:
            _until_stable(lambda inputs=inputs: loaded.run(inputs), clock)  # type: ignore[misc]
        except OctoserveError as error:
            return f"not warmed up: it refuses synthetic inputs ({error})"
        except Exception as error:
            return f"not warmed up: synthetic inputs fail ({type(error).__name__}: {error})"
    return note


def _until_stable(run: Callable[[], object], clock: Clock) -> int:
    """Run until the best of the last WINDOW runs is no better than the best of the WINDOW before it."""
    began = clock()
    took: list[float] = []
    while len(took) < MAX_RUNS:
        start = clock()
        run()
        took.append(clock() - start)
        if len(took) >= 2 * WINDOW:
            before, last = min(took[-2 * WINDOW : -WINDOW]), min(took[-WINDOW:])
            if last >= before * (1 - TOLERANCE):
                break
        if clock() - began > MAX_SECONDS:
            break
    return len(took)

"""Warm-up: run a fresh version on inputs made from its signature until its latency is stable.

The first runs of a session allocate, pick kernels and fault pages in; the first client should not pay.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from octoserve.codecs.open_inference_json import decode_request
from octoserve.core.clock import Clock, monotonic
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, OctoserveError
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.lifecycle.probe import settle_batching
from octoserve.runtimes.protocol import LoadedModel

SAMPLES = ("warmup.json", "golden.json")
MAX_BYTES = 64 << 20
MAX_RUNS = 50
MAX_SECONDS = 0.5
WINDOW = 3
TOLERANCE = 0.2

Warm = Callable[[LoadedModel, int, Path], str]
"""Warm a model up to so many rows, and on the samples in its folder; gives a note, empty if all went well."""


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


def warm(loaded: LoadedModel, max_rows: int, folder: Path | None = None, clock: Clock = monotonic) -> str:
    """Run on the version's own samples, with one row, then with `max_rows` if the model is batchable. Blocking; at
    most MAX_SECONDS each.

    A model that refuses synthetic inputs is ready all the same: the note says what it said, if it has no samples.
    """
    note = settle_batching(loaded)
    own = None if folder is None else warm_on_samples(loaded, folder, clock)
    if own:
        return own
    sizes = [1, max_rows] if loaded.signature.batchable and max_rows > 1 else [1]
    for rows in sizes:
        inputs = inputs_of(loaded.signature, rows)
        try:
            _until_stable(lambda inputs=inputs: loaded.run(inputs), clock)  # type: ignore[misc]
        except OctoserveError as error:
            return note if own is not None else f"not warmed up: it refuses synthetic inputs ({error})"
        except Exception as error:
            if own is not None:
                return note
            return f"not warmed up: synthetic inputs fail ({type(error).__name__}: {error})"
    return note


def warm_on_samples(loaded: LoadedModel, folder: Path, clock: Clock = monotonic) -> str | None:
    """Run the inputs of the version's own samples, None if it has none: a model may take another way for real ones.

    `warmup.json` is a list of `{"inputs": [...]}`, tensors as the Open Inference Protocol writes them; without it
    `golden.json` is taken, which has outputs as well. Blocking; at most MAX_SECONDS. A note if one cannot be run.
    """
    path = next((folder / name for name in SAMPLES if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        samples = _samples(path)
    except (OSError, InvalidInput) as error:
        return f"not warmed up: {path.name}: {error}"
    began = clock()
    for number, sample in enumerate(samples, 1):
        if clock() - began > MAX_SECONDS:
            break
        try:
            tensors = decode_request(msgspec.json.encode({"inputs": sample.inputs})).tensors
            order = loaded.signature.check(tensors).order
            loaded.run([tensors[place].array() for place in order])
        except Exception as error:
            kind = "" if isinstance(error, OctoserveError) else f"{type(error).__name__}: "
            return f"not warmed up: {path.name}, sample {number}: {kind}{error}"
    return ""


class _Sample(msgspec.Struct):
    inputs: list[dict[str, Any]]


def _samples(path: Path) -> list[_Sample]:
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInput(f"the file is larger than {MAX_BYTES} bytes")
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[_Sample])
    except msgspec.MsgspecError as error:
        raise InvalidInput(f'a list of {{"inputs": [...]}} is wanted: {error}') from None


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

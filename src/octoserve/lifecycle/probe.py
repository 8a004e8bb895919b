"""Does dimension 0 count rows? Asked of the model itself, before anything is merged.

A graph can declare a variable first dimension and still mix rows (a normalisation over the batch, a sequence
first), or declare a fixed one and not mean it (LightGBM's converter says `label [1]`). So a few made-up rows
are run together, and again with other neighbours; only a model whose rows do not notice is batched.

A row alone is compared by shape only: a matrix product of one row takes another kernel than one of many, and
on made-up input (constant tokens into a layer norm, say) that rounding can be blown up to any size.
"""

from __future__ import annotations

import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.runtimes.protocol import LoadedModel

ROWS = 3
_MADE_UP = 5


def settle_batching(loaded: LoadedModel) -> str:
    """Make `loaded.signature.batchable` true to the facts; a note where the model had to be believed.

    Call before the first request: the signature is not to change after.
    """
    signature = loaded.signature
    if not signature.batchable:
        return ""
    declared = all(spec.shape and spec.shape[0] == -1 for spec in signature.outputs)
    try:
        apart = _rows_apart(loaded)
    except Exception as error:  # the model may refuse made-up rows for reasons of its own
        signature.batchable = declared
        return f"batching by its declared shapes: made-up rows are refused ({type(error).__name__})"
    if not apart:
        signature.batchable = False
        return "served unbatched: a row's answer depends on the rows that it is run with"
    if not declared:
        signature.outputs = tuple(_variable(spec) for spec in signature.outputs)
    return ""


def _variable(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:]))


def _rows_apart(loaded: LoadedModel) -> bool:
    rows = _made_up(loaded.signature)
    alone = loaded.run([array[:1] for array in rows])
    together = loaded.run([array[[0, 1, 2]] for array in rows])
    first_kept = loaded.run([array[[0, 3, 4]] for array in rows])
    last_kept = loaded.run([array[[3, 4, 2]] for array in rows])
    if not all(_shaped(one, many) for one, many in zip(alone, together, strict=True)):
        return False
    if any(a.shape != b.shape or a.shape != c.shape for a, b, c in zip(together, first_kept, last_kept, strict=True)):
        return False
    outputs = zip(together, first_kept, last_kept, strict=True)
    return all(_equal(a[:1], b[:1]) and _equal(a[2:], c[2:]) for a, b, c in outputs)


def _shaped(alone: Array, together: Array) -> bool:
    return bool(alone.ndim and together.ndim) and (
        alone.shape == (1, *together.shape[1:]) and together.shape[0] == ROWS
    )


def _equal(a: Array, b: Array) -> bool:
    if a.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True))
    return bool(np.array_equal(a, b))


def _made_up(signature: Signature) -> list[Array]:
    """`_MADE_UP` rows that differ, for each input."""
    random = np.random.default_rng(0)
    arrays: list[Array] = []
    for spec in signature.inputs:
        shape = (_MADE_UP, *(1 if size < 0 else size for size in spec.shape[1:]))
        kind = DATATYPES[spec.datatype]
        if kind.kind == "bytes":
            values = np.empty(shape, dtype=object)
            texts = signature.categories.get(spec.name, "abcde")
            for i in range(_MADE_UP):
                values[i] = texts[i % len(texts)].encode()
            arrays.append(values)
        elif spec.datatype == "BF16":
            arrays.append((random.random(shape, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16))
        elif kind.kind == "float":
            arrays.append(random.random(shape).astype(kind.dtype))
        else:
            arrays.append(random.integers(0, 2, shape).astype(kind.dtype))
    return arrays

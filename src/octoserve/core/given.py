"""What a person gave in Python, as the array that an input wants.

Numbers become the nearest of the input's datatype, as in JSON; fractions never become whole numbers, and what is too
large is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput
from octoserve.core.signature import TensorSpec
from octoserve.core.tensors import Array


def array_for(spec: TensorSpec, values: Any) -> Array:
    """In the input's datatype. Raises InvalidInput for what it cannot hold."""
    kind = DATATYPES[spec.datatype]
    try:
        came = np.asarray(values)
    except ValueError as error:
        raise InvalidInput(f"input {spec.name!r}: no array: {error}") from None
    if kind.kind == "bytes":
        if came.dtype.kind not in "OSU":
            raise InvalidInput(f"input {spec.name!r}: text or bytes wanted, {came.dtype} came")
        made = np.empty(came.shape, dtype=object)
        made[...] = came
        flat = made.reshape(-1)
        flat[:] = [item.encode() if isinstance(item, str) else item for item in flat.tolist()]
        for item in flat:
            if not isinstance(item, bytes):
                raise InvalidInput(f"input {spec.name!r}: text or bytes wanted, {type(item).__name__} came")
        return made
    if came.dtype == kind.dtype:
        return np.require(came, requirements=["C", "A"])
    return _converted(spec, came)


def _converted(spec: TensorSpec, came: Array) -> Array:
    """The nearest value for a float, the same value for a whole number."""
    kind = DATATYPES[spec.datatype]
    numeric = "iuf" if kind.kind == "float" else "iu"
    if kind.kind not in ("float", "int") or came.dtype.kind not in numeric:
        raise InvalidInput(f"input {spec.name!r}: {spec.datatype} wanted, {came.dtype} came")
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(came.astype(kind.dtype))
    if kind.kind == "float":
        lost = np.isinf(made) & np.isfinite(came)
    else:
        lost = (made != came) | ((made < 0) != (came < 0))
    if lost.any():
        raise InvalidInput(f"input {spec.name!r}: {came[lost][0]} does not fit {spec.datatype}")
    return made

"""Whether two versions gave the same answer, by what each output is.

- Whole numbers, booleans and BYTES are labels: equal or not. An integer output that is a quantity or a rank says
  so by a tolerance of its own.
- Floats agree where |candidate - stable| <= absolute + relative * |stable|. NaN agrees with NaN; an infinity with
  itself only. BF16 is read from its bit patterns.
- A missing output, another datatype or another shape is a disagreement whatever the tolerance. An output that only
  the candidate has is none: it breaks no reader of the stable version.

Tolerances are `{output: {key: number}}`:

    absolute, relative   as above. An entry is taken whole: a key that it leaves out is 0
    overlap              for rankings (integers, BYTES): the share, over 0 up to 1, of a row's elements that both
                         must have in common, whatever their order
    ignore               1: not compared (a time, a random id)

The entry "" is for all other float outputs (and may hold absolute and relative only: a label never becomes a
quantity because of a default). Without any, `DEFAULTS` hold by datatype: a few times what another order of
summation costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import SettingsError
from octoserve.core.tensors import Array, Tensor, from_bf16

Output = Tensor | tuple[str, str, Array]
"""An output: a tensor, or its name, datatype and elements."""

DEFAULTS: Mapping[str, tuple[float, float]] = {
    "FP64": (1e-6, 1e-4),
    "FP32": (1e-6, 1e-4),
    "FP16": (1e-3, 1e-2),
    "BF16": (1e-2, 3e-2),
}
"""Datatype -> (absolute, relative). Half precision has 11 bits of significand, BF16 has 8."""

WORST = 1e9
"""The largest magnitude: what has no distance (NaN against a number, a missing output, another shape)."""

_FLOOR = 1e-12
"""What a tolerance of 0 counts as where a difference is measured in tolerances."""

_SMALL = 48
"""Elements up to which plain Python is faster than a dozen numpy calls."""

_KEYS = ("absolute", "relative", "overlap", "ignore")


class Deviation(msgspec.Struct, frozen=True, array_like=True):
    """How one output differs.

    reason:    one line for people: what became what, and where
    magnitude: for ranking: the largest difference in units of what was allowed there (1 <= m <= WORST);
               1.0 for another label; 1 - overlap for rankings
    rows:      rows that differ in this output
    at:        index of the worst element; () where the output as a whole differs
    """

    reason: str
    magnitude: float
    rows: int = 0
    at: tuple[int, ...] = ()


class Difference(msgspec.Struct, frozen=True):
    """What a comparison found.

    outputs: name -> deviation, of the outputs that differ
    rows:    rows that were compared (the first dimension; 1 if there is none)
    rows_differing: those that differ in any output
    """

    agreed: bool
    outputs: Mapping[str, Deviation] = {}
    rows: int = 1
    rows_differing: int = 0

    @property
    def share(self) -> float:
        """The share of rows that differ."""
        return self.rows_differing / self.rows if self.rows else 0.0

    @property
    def worst(self) -> float:
        """The largest magnitude; 0 where all outputs agree."""
        return max((deviation.magnitude for deviation in self.outputs.values()), default=0.0)


class _Far(msgspec.Struct, frozen=True, array_like=True):
    """Flat indices of elements that differ (at least one of each row that does), the worst one, its magnitude.

    each: the magnitudes of all of them; None where each is as far off as the worst
    """

    flat: Any  # Sequence[int] or an integer array
    worst: int
    magnitude: float
    reason: str
    each: Any = None  # Sequence[float] or an array


Rule = Callable[[Array, Array], "_Far | None"]

_AGREED = Difference(True)


class Comparison:
    """Tolerances, compiled once. Immutable in effect; may be shared between threads.

    Raises SettingsError that names the output and the key for a tolerance that cannot be meant.
    """

    __slots__ = ("_entries", "_rules")

    def __init__(self, tolerance: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self._entries = {name: _checked(name, entry) for name, entry in (tolerance or {}).items()}
        self._rules: dict[tuple[str, str], Rule | None] = {}

    def compare(self, stable: Sequence[Output], candidate: Sequence[Output]) -> Difference:
        """The difference between two answers to the same inputs. Raises InvalidInput for a malformed raw form."""
        theirs = {tensor.name if isinstance(tensor, Tensor) else tensor[0]: tensor for tensor in candidate}
        rows = -1
        found: dict[str, Deviation] = {}
        differing: set[int] = set()
        whole = False
        for mine in stable:
            name, datatype, shape = _head(mine)
            if rows < 0 and shape:
                rows = shape[0]
            rule = self._rule(name, datatype)
            if rule is None:
                continue
            far = _far(rule, mine, theirs.get(name), datatype, shape)
            if far is None:
                continue
            if isinstance(far, str):
                found[name] = Deviation(far, WORST, shape[0] if shape else 1)
                whole = True
                continue
            its_rows = _rows_of(far.flat, shape)
            at = _index(far.worst, shape)
            reason = f"{far.reason} at {list(at)}" if math.prod(shape) > 1 else far.reason
            found[name] = Deviation(reason, far.magnitude, len(its_rows), at)
            if shape and shape[0] == rows:
                differing |= its_rows
            else:
                whole = True
        if not found:
            return _AGREED if rows in (-1, 1) else Difference(True, {}, rows)
        rows = max(rows, 1)
        return Difference(False, found, rows, rows if whole else len(differing))

    def by_row(self, stable: Sequence[Output], candidate: Sequence[Output]) -> dict[str, NDArray[np.float64]]:
        """Of each output that is compared, the magnitude of every row's deviation: 0 where the row agrees.

        For tables: outputs have a row for each of the same inputs. `compare` of a row alone says more of it.
        """
        theirs = {_head(tensor)[0]: tensor for tensor in candidate}
        found: dict[str, NDArray[np.float64]] = {}
        for mine in stable:
            name, datatype, shape = _head(mine)
            rule = self._rule(name, datatype)
            if rule is not None:
                far = _far(rule, mine, theirs.get(name), datatype, shape)
                found[name] = _magnitudes(far, shape)
        return found

    def _rule(self, name: str, datatype: str) -> Rule | None:
        """The compiled rule of an output; None if it is ignored."""
        key = (name, datatype)
        if key not in self._rules:
            self._rules[key] = _compile(self._entries, name, datatype)
        return self._rules[key]


def _checked(name: str, entry: Mapping[str, float]) -> dict[str, float]:
    where = f"tolerance of output {name!r}" if name else "tolerance of all other outputs ('')"
    if not isinstance(entry, Mapping):
        raise SettingsError(f"{where}: wanted keys of {', '.join(_KEYS)} with numbers, got {entry!r}")
    for key, value in entry.items():
        if key not in _KEYS:
            raise SettingsError(f"{where}: unknown key {key!r}; there are {', '.join(_KEYS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise SettingsError(f"{where}: {key} must be a number of at least 0, got {value!r}")
    if "overlap" in entry and not 0 < entry["overlap"] <= 1:
        raise SettingsError(f"{where}: overlap must be over 0 and at most 1, got {entry['overlap']!r}")
    if "ignore" in entry and entry["ignore"] not in (0, 1):
        raise SettingsError(f"{where}: ignore must be 0 or 1, got {entry['ignore']!r}")
    if len(entry) > 1 and ("overlap" in entry or "ignore" in entry):
        raise SettingsError(f"{where}: overlap and ignore stand alone, got {', '.join(sorted(entry))}")
    if not name and ("overlap" in entry or "ignore" in entry):
        raise SettingsError(f"{where}: overlap and ignore need the output's name")
    return {key: float(value) for key, value in entry.items()}


def _compile(entries: Mapping[str, Mapping[str, float]], name: str, datatype: str) -> Rule | None:
    kind = DATATYPES[datatype].kind
    own = entries.get(name) if name else None
    if own is not None and own.get("ignore") == 1:
        return None
    if kind == "float":
        entry = entries.get("") if own is None or "overlap" in own or "ignore" in own else own
        if entry is None:
            absolute, relative = DEFAULTS[datatype]
        else:
            absolute, relative = entry.get("absolute", 0.0), entry.get("relative", 0.0)
        return partial(_floats, absolute, relative, datatype == "BF16")
    if own is not None and "overlap" in own and kind in ("int", "bytes"):
        return partial(_rankings, own["overlap"])
    if kind == "bytes":
        return _texts
    if own is not None and kind == "int" and (own.get("absolute") or own.get("relative")):
        return partial(_quantities, own.get("absolute", 0.0), own.get("relative", 0.0))
    return _labels


def _head(output: Output) -> tuple[str, str, tuple[int, ...]]:
    if isinstance(output, Tensor):
        return output.name, output.datatype, output.shape
    return output[0], output[1], output[2].shape


def _far(rule: Rule, mine: Output, their: Output | None, datatype: str, shape: tuple[int, ...]) -> _Far | str | None:
    """What differs; text where the outputs cannot be compared element by element."""
    if their is None:
        return "missing"
    _, its_datatype, its_shape = _head(their)
    if its_datatype != datatype:
        return f"datatype {datatype} became {its_datatype}"
    if its_shape != shape:
        return f"shape {list(shape)} became {list(its_shape)}"
    if isinstance(mine, Tensor) and isinstance(their, Tensor):
        if mine.raw is not None and their.raw is not None and mine.raw == their.raw:
            return None
        return rule(mine.array(), their.array())
    return rule(
        mine.array() if isinstance(mine, Tensor) else mine[2], their.array() if isinstance(their, Tensor) else their[2]
    )


def _magnitudes(far: _Far | str | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if isinstance(far, str):
        return np.full(shape[0], WORST)
    magnitudes = np.zeros(shape[0])
    if far is not None:
        rows = np.asarray(far.flat, dtype=np.int64) // max(1, math.prod(shape[1:]))
        each = far.magnitude if far.each is None else np.minimum(np.asarray(far.each, dtype=np.float64), WORST)
        np.maximum.at(magnitudes, rows, each)
    return magnitudes


def _rows_of(flat: Any, shape: tuple[int, ...]) -> set[int]:
    width = math.prod(shape[1:]) if shape else 1
    if isinstance(flat, np.ndarray):
        return set(np.unique(flat // width).tolist())
    return {i // width for i in flat}


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of an element in row-major order."""
    at: list[int] = []
    for size in reversed(shape):
        flat, i = divmod(flat, size)
        at.append(i)
    return tuple(reversed(at))


def _floats(absolute: float, relative: float, is_bf16: bool, stable: Array, candidate: Array) -> _Far | None:
    if is_bf16:
        stable, candidate = from_bf16(stable), from_bf16(candidate)
    if stable.size <= _SMALL:
        return _few_floats(absolute, relative, stable.ravel().tolist(), candidate.ravel().tolist())
    s, c = stable.ravel().astype(np.float64), candidate.ravel().astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(c - s)
        allowed = absolute + relative * np.abs(s)
        far = ~(gap <= allowed)
        odd = ~(np.isfinite(s) & np.isfinite(c))
        if odd.any():
            far = np.where(odd, ~((s == c) | (np.isnan(s) & np.isnan(c))), far)
        if not far.any():
            return None
        flat = np.flatnonzero(far)
        ratios = gap[flat] / np.maximum(allowed[flat], _FLOOR)
        ratios[odd[flat]] = WORST
    worst = int(flat[np.argmax(ratios)])
    ratios = np.maximum(ratios, 1.0)
    return _Far(flat, worst, _bounded(float(ratios.max())), _became(float(s[worst]), float(c[worst])), ratios)


def _few_floats(absolute: float, relative: float, stable: list[float], candidate: list[float]) -> _Far | None:
    if stable == candidate:
        return None
    flat: list[int] = []
    each: list[float] = []
    worst, largest = 0, -1.0
    for i, (s, c) in enumerate(zip(stable, candidate, strict=True)):
        if s == c:
            continue
        gap = abs(c - s)
        allowed = absolute + relative * abs(s)
        if not math.isfinite(s) or not math.isfinite(c):
            if s != s and c != c:
                continue
            ratio = WORST
        elif gap <= allowed:
            continue
        else:
            ratio = gap / max(allowed, _FLOOR)
        flat.append(i)
        each.append(max(ratio, 1.0))
        if ratio > largest:
            worst, largest = i, ratio
    if not flat:
        return None
    return _Far(flat, worst, _bounded(largest), _became(stable[worst], candidate[worst]), each)


def _labels(stable: Array, candidate: Array) -> _Far | None:
    if stable.size <= _SMALL:
        return _few_labels(stable.ravel().tolist(), candidate.ravel().tolist())
    flat = np.flatnonzero((stable != candidate).ravel())
    if not len(flat):
        return None
    worst = int(flat[0])
    return _Far(flat, worst, 1.0, _became(stable.ravel()[worst].item(), candidate.ravel()[worst].item()))


def _few_labels(stable: list[Any], candidate: list[Any]) -> _Far | None:
    if stable == candidate:
        return None
    flat = [i for i, (s, c) in enumerate(zip(stable, candidate, strict=True)) if s != c]
    return _Far(flat, flat[0], 1.0, _became(stable[flat[0]], candidate[flat[0]])) if flat else None


def _texts(stable: Array, candidate: Array) -> _Far | None:
    return _few_labels(_elements(stable), _elements(candidate))


def _elements(values: Array) -> list[Any]:
    """Elements in row-major order; text as its UTF-8."""
    return [item.encode() if isinstance(item, str) else item for item in values.ravel().tolist()]


def _quantities(absolute: float, relative: float, stable: Array, candidate: Array) -> _Far | None:
    """Whole numbers with a tolerance: differences in exact arithmetic, also those over 2**63."""
    s, c = stable.ravel(), candidate.ravel()
    unsigned = np.dtype(f"u{s.dtype.itemsize}")
    gap = np.where(c > s, c.view(unsigned) - s.view(unsigned), s.view(unsigned) - c.view(unsigned)).astype(np.float64)
    allowed = absolute + relative * np.abs(s.astype(np.float64))
    flat = np.flatnonzero(gap > allowed)
    if not len(flat):
        return None
    ratios = gap[flat] / np.maximum(allowed[flat], _FLOOR)
    worst = int(flat[np.argmax(ratios)])
    ratios = np.maximum(ratios, 1.0)
    return _Far(flat, worst, _bounded(float(ratios.max())), _became(int(s[worst]), int(c[worst])), ratios)


def _rankings(overlap: float, stable: Array, candidate: Array) -> _Far | None:
    width = math.prod(stable.shape[1:]) if stable.ndim else 1
    s, c = _elements(stable), _elements(candidate)
    flat: list[int] = []
    each: list[float] = []
    least, worst = 1.0, 0
    for start in range(0, len(s), width) if width else ():
        common = len(set(s[start : start + width]) & set(c[start : start + width]))
        share = common / max(len(set(s[start : start + width])), len(set(c[start : start + width])))
        if share < overlap:
            flat.append(start)
            each.append(1 - share)
            if share < least:
                least, worst = share, start
    if not flat:
        return None
    return _Far(flat, worst, 1 - least, f"{least:.0%} in common, {overlap:.0%} wanted", each)


def _bounded(ratio: float) -> float:
    return min(max(ratio, 1.0), WORST)


def _became(stable: Any, candidate: Any) -> str:
    before, after = _shown(stable), _shown(candidate)
    if before == after:
        before, after = repr(stable), repr(candidate)
    return f"{before} became {after}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        text = value[:48].decode("utf-8", "replace")
        return repr(text if len(value) <= 48 else text + "...")
    return str(value)

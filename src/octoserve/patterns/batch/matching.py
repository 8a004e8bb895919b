"""A table's columns and a model's inputs, matched by name before the first row runs.

Types that hold every value of a column are converted; all else is refused, with a table of what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octoserve.connectors.arrow import DataType, Schema, pyarrow
from octoserve.connectors.delimited import MOSTLY_NUMBERS
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import SettingsError
from octoserve.core.signature import Signature, TensorSpec
from octoserve.patterns.batch.job import Difference, Differs, JobSettings

_BITS = {"INT8": 7, "INT16": 15, "INT32": 31, "INT64": 63, "UINT8": 8, "UINT16": 16, "UINT32": 32, "UINT64": 64}
"""Bits of magnitude."""
_EXACT = {"FP16": 11, "FP32": 24, "FP64": 53}
"""Bits of a whole number that a float holds exactly."""
CAST = "cast the column, or see --convert"


class Feed(msgspec.Struct, frozen=True):
    """How one input is made. One column with the row's whole value, or `width` columns side by side.

    shape: of a row; () for a single element
    """

    spec: TensorSpec
    columns: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool


class Matched(msgspec.Struct, frozen=True):
    """feeds: in signature order. read: the columns wanted of the source. passed: those that the output has, in order.

    by_position: the model names no features, and the table's columns were taken as they stand
    """

    feeds: tuple[Feed, ...]
    read: tuple[str, ...]
    passed: tuple[str, ...]
    keys: tuple[str, ...]
    by_position: bool = False


def match(
    signature: Signature,
    schema: Schema,
    settings: JobSettings,
    features: Mapping[str, Sequence[str]],
    model: str,
    may_round: bool = False,
) -> Matched:
    """Raises Differs, SettingsError.

    features:  of each input, what the version's model.yaml says; `settings.columns` wins for a model of one input
    may_round: floats may be rounded whatever the settings say, since the source's numbers are text
    """
    may_round = may_round or settings.convert == "round"
    if not signature.inputs or any(not spec.shape or spec.shape[0] != -1 for spec in signature.inputs):
        fixed = ", ".join(map(str, signature.inputs)) or "nothing"
        raise SettingsError(f"model {model} takes no rows: the first dimension of an input must vary; it takes {fixed}")
    names = _features(signature, settings, features, model)
    missing = [
        Difference(f"key {key}", "a column", "none", f"the table has {_few(schema.names)}")
        for key in settings.keys
        if key not in schema.names
    ]
    feeds: list[Feed] = []
    by_position = False
    for spec in signature.inputs:
        columns = names.get(spec.name)
        if columns is None and spec.name not in schema.names and len(signature.inputs) == 1:
            columns = _by_position(spec, schema, settings)
            by_position = columns is not None
        feed, wrong = _feed(spec, columns, schema, may_round)
        missing.extend(wrong)
        if feed is not None:
            feeds.append(feed)
    if missing:
        raise Differs(f"the table does not fit model {model}", missing)
    passed = tuple(schema.names) if settings.all_columns else tuple(settings.keys)
    refuse_collisions([], signature, passed, settings.prefix)
    used = [column for feed in feeds for column in feed.columns]
    read = tuple(dict.fromkeys([*passed, *settings.keys, *used]))
    return Matched(tuple(feeds), read, passed, tuple(settings.keys), by_position)


def _features(
    signature: Signature, settings: JobSettings, features: Mapping[str, Sequence[str]], model: str
) -> dict[str, tuple[str, ...]]:
    known = {spec.name for spec in signature.inputs}
    if "" in features and len(known) == 1:
        features = {signature.inputs[0].name: features[""]}
    unknown = sorted(features.keys() - known)
    if unknown:
        raise SettingsError(
            f"model.yaml of {model}: features: no input {unknown[0]!r}; it has {', '.join(sorted(known))}"
        )
    if not settings.columns:
        return {name: tuple(columns) for name, columns in features.items()}
    if len(signature.inputs) != 1:
        wanted = ", ".join(map(str, signature.inputs))
        raise SettingsError(f"columns: for models of one input; {model} has several, found by their names: {wanted}")
    return {signature.inputs[0].name: tuple(settings.columns)}


def _by_position(spec: TensorSpec, schema: Schema, settings: JobSettings) -> tuple[str, ...] | None:
    """All columns but the keys, if there are as many as the input takes and all of them are numbers."""
    rest = tuple(name for name in schema.names if name not in settings.keys)
    numbers = all(datatype_of(schema.field(name).type) not in (None, "BYTES") for name in rest)
    return rest if len(spec.shape) == 2 and len(rest) == spec.shape[1] and numbers else None


def _feed(
    spec: TensorSpec, columns: tuple[str, ...] | None, schema: Schema, may_round: bool
) -> tuple[Feed | None, list[Difference]]:
    if columns is None and spec.name not in schema.names:
        return None, [_unnamed(spec, schema)]
    column = columns[0] if columns else spec.name
    is_list = column in schema.names and bool(_list(schema.field(column).type)[0])
    if columns is None or (len(columns) == 1 and spec.shape[1:] not in ((), (1,)) and is_list):
        return _whole(spec, column, schema, may_round)
    wrong = _count(spec, columns)
    for column in columns:
        wrong.extend(_element(column, spec.datatype, schema, may_round))
    shape = (len(columns),) if len(spec.shape) == 2 else ()
    return (None if wrong else Feed(spec, columns, shape, True)), wrong


def _unnamed(spec: TensorSpec, schema: Schema) -> Difference:
    remedy = f"the table has {_few(schema.names)}"
    if len(spec.shape) == 2 and spec.shape[1] != 1:
        remedy = f"say which columns it is, in order: --columns, or features: in model.yaml; {remedy}"
    return Difference(f"input {spec.name}", f"a column {spec.name} for {spec}", "none", remedy)


def _count(spec: TensorSpec, columns: tuple[str, ...]) -> list[Difference]:
    width = 1 if len(spec.shape) == 1 else spec.shape[1]
    if len(spec.shape) <= 2 and width in (-1, len(columns)) and len(set(columns)) == len(columns):
        return []
    double = "" if len(set(columns)) == len(columns) else ", one of them twice"
    wanted = f"{'some' if width < 0 else width} columns for {spec}"
    return [Difference(f"input {spec.name}", wanted, f"{len(columns)} named{double}", "name each once, in order")]


def _whole(spec: TensorSpec, column: str, schema: Schema, may_round: bool) -> tuple[Feed | None, list[Difference]]:
    """One column that holds all of a row's value: an element, or lists of the input's other dimensions."""
    inner = spec.shape[1:]
    if column not in schema.names or inner in ((), (1,)):
        wrong = _element(column, spec.datatype, schema, may_round)
        if not wrong:
            return Feed(spec, (column,), inner, False), []
        if inner != (1,) or column not in schema.names:
            return None, wrong
    type_ = schema.field(column).type
    sizes, element = _list(type_)
    came = str(type_)
    if element is None or len(sizes) != len(inner):
        wanted = f"lists {len(inner)} deep for {spec}" if len(inner) > 1 else f"a list for {spec}"
        return None, [Difference(f"column {column}", wanted, came, "name the columns with --columns if it is many")]
    for size, want in zip(sizes, inner, strict=True):
        if (size >= 0 and want not in (-1, size)) or (size < 0 and want < 0):
            fixed = "a fixed-size list" if want < 0 else f"lists of {want}"
            return None, [Difference(f"column {column}", f"{fixed} for {spec}", came, "convert the column")]
    if not converts(element, spec.datatype, may_round):
        return None, [Difference(f"column {column}", f"lists of {spec.datatype}", came, CAST)]
    shape = tuple(size if size >= 0 else want for size, want in zip(sizes, inner, strict=True))
    return Feed(spec, (column,), shape, False), []


def _list(type_: DataType) -> tuple[list[int], DataType | None]:
    """Sizes of nested lists (-1: each row its own) and what is in the innermost; None for what is no list."""
    types = pyarrow().types
    if isinstance(type_, pyarrow().BaseExtensionType):
        type_ = type_.storage_type
    sizes: list[int] = []
    while types.is_fixed_size_list(type_) or types.is_list(type_) or types.is_large_list(type_):
        sizes.append(type_.list_size if types.is_fixed_size_list(type_) else -1)
        type_ = type_.value_type
    return sizes, type_ if sizes else None


def _element(column: str, datatype: str, schema: Schema, may_round: bool) -> list[Difference]:
    if column not in schema.names:
        return [Difference(f"column {column}", datatype, "no such column", f"the table has {_few(schema.names)}")]
    type_ = schema.field(column).type
    if converts(type_, datatype, may_round):
        return []
    remedy = CAST if datatype_of(type_) else "give numbers or text"
    if converts(type_, datatype, True):
        remedy = "cast the column, or let it be rounded: --convert round"
    return [Difference(f"column {column}", datatype, str(type_), remedy)]


def datatype_of(type_: DataType) -> str | None:
    """The datatype that an Arrow type is, exactly; None if there is none."""
    pa = pyarrow()
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    names: dict[Any, str] = {
        pa.bool_(): "BOOL", pa.int8(): "INT8", pa.int16(): "INT16", pa.int32(): "INT32", pa.int64(): "INT64",
        pa.uint8(): "UINT8", pa.uint16(): "UINT16", pa.uint32(): "UINT32", pa.uint64(): "UINT64",
        pa.float16(): "FP16", pa.float32(): "FP32", pa.float64(): "FP64",
        pa.string(): "BYTES", pa.large_string(): "BYTES", pa.binary(): "BYTES", pa.large_binary(): "BYTES",
        pa.string_view(): "BYTES", pa.binary_view(): "BYTES",
    }  # fmt: skip
    return names.get(type_)


def converts(type_: DataType, datatype: str, may_round: bool = False) -> bool:
    """Whether every value of the Arrow type is a value of the datatype; with `may_round`, or near one of a float."""
    came = datatype_of(type_)
    if came is None or datatype == "BF16":
        return False
    if came == datatype:
        return True
    if "BYTES" in (came, datatype) or datatype == "BOOL":
        return False
    if came == "BOOL":
        return True
    if datatype in _EXACT:
        return may_round or (_EXACT[came] if came in _EXACT else _BITS[came]) <= _EXACT[datatype]
    unsigned_in, unsigned_out = came.startswith("U"), datatype.startswith("U")
    return came in _BITS and _BITS[came] <= _BITS[datatype] and (unsigned_in or not unsigned_out)


def wishes(
    signature: Signature, schema: Schema, settings: JobSettings, features: Mapping[str, Sequence[str]], model: str
) -> dict[str, str]:
    """Column -> the datatype that the model wants of it, by names alone."""
    names = _features(signature, settings, features, model)
    found: dict[str, str] = {}
    for spec in signature.inputs:
        rest = [name for name in schema.names if name not in settings.keys]
        alone = len(signature.inputs) == 1 and spec.name not in schema.names and spec.shape[1:] == (len(rest),)
        columns = names.get(spec.name) or (rest if alone else [spec.name])
        found.update(dict.fromkeys(columns, spec.datatype))
    return found


def text_type(field: Any, datatype: str | None) -> DataType:
    """What a column of text is read as: its first values look like `field`, the model wants `datatype`, if anything."""
    pa, type_ = pyarrow(), field.type
    whole: dict[str, Any] = {
        "INT8": pa.int8(), "INT16": pa.int16(), "INT32": pa.int32(), "INT64": pa.int64(),
        "UINT8": pa.uint8(), "UINT16": pa.uint16(), "UINT32": pa.uint32(), "UINT64": pa.uint64(), "BOOL": pa.bool_(),
    }  # fmt: skip
    nothing = pa.types.is_null(type_) or MOSTLY_NUMBERS in (field.metadata or {})
    if datatype is None:
        return pa.string() if pa.types.is_null(type_) else type_
    if datatype == "BYTES":
        return pa.string() if not pa.types.is_nested(type_) else type_
    if pa.types.is_list(type_):
        return pa.list_(text_type(type_.value_field, datatype))
    if datatype in _EXACT and (nothing or pa.types.is_integer(type_) or pa.types.is_floating(type_)):
        return pa.float64()
    if datatype in whole and (nothing or pa.types.is_integer(type_)):
        return whole[datatype]
    return type_


def refuse_collisions(beside: Sequence[str], signature: Signature, passed: Sequence[str], prefix: str) -> None:
    """Raises SettingsError where two columns of the result have one name. beside: further columns, prefix and all."""
    outputs = [*(prefix + spec.name for spec in signature.outputs), *beside]
    twice = sorted({name for name in outputs if name in passed or outputs.count(name) > 1})
    if twice:
        raise SettingsError(
            f"prefix: the output {twice[0]!r} has the name of another column of the result; "
            "give predictions a prefix, such as --prefix predicted_"
        )


def describe(schema: Schema, matched: Matched, signature: Signature) -> tuple[str, ...]:
    """Columns that are read, with their types, and the model's tensors: what must be the same in a resumed run."""
    columns = [f"column {name} {schema.field(name).type}" for name in matched.read]
    feeds = [f"input {feed.spec} from {','.join(feed.columns)}" for feed in matched.feeds]
    return (*columns, *feeds, *(f"output {spec}" for spec in signature.outputs))


def check_file(path: str, schema: Schema, wanted: Schema, read: Sequence[str], text: bool = False) -> list[Difference]:
    """What makes a further file unlike the first. text: types are what the file is read as, so none is wrong."""
    found = []
    for name in read:
        type_ = schema.field(name).type if name in schema.names else None
        if type_ is None or (type_ != wanted.field(name).type and not text):
            came = "no such column" if type_ is None else str(type_)
            found.append(Difference(f"column {name} of {path}", str(wanted.field(name).type), came, "make files alike"))
    return found


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown}, ... ({len(names)} columns)" if len(names) > 8 else shown or "no columns"


assert DATATYPES.keys() >= _BITS.keys() | _EXACT.keys()

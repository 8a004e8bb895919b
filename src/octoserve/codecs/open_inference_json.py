"""Open Inference Protocol V2 over REST: JSON bodies, and the binary tensor extension.

Source: the Open Inference Protocol's REST specification and Triton's binary data extension. A number that
does not fit its datatype is refused, never cast or wrapped; the words "NaN", "Infinity" and "-Infinity"
(protobuf's JSON mapping) carry what JSON numbers cannot.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from octoserve.codecs.large_json import LARGE, decode_large
from octoserve.core.datatypes import DATATYPES, Datatype
from octoserve.core.errors import InvalidInput, TooLarge, Unsupported
from octoserve.core.limits import MAX_RANK, MAX_TENSORS
from octoserve.core.packing import PACKED_AT_ONCE, pack
from octoserve.core.results import NoTextForm, Result
from octoserve.core.tensors import Buffer, Shape, Tensor

_MAX_TEMPLATES = 256

Parameters = dict[str, Any]
_Dimension = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


def _nested(element: Any, levels: int) -> Any:
    """The type of data whose elements are `element`, in lists up to `levels` deep."""
    wanted: Any = element
    for _ in range(levels):
        wanted = element | list.__class_getitem__(wanted)
    return list.__class_getitem__(wanted)


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


def _envelope(data: Any) -> Callable[[Buffer], Any]:
    """A decoder of whole requests, their `data` of the given type."""
    tensor = msgspec.defstruct(
        "Input",
        [
            ("name", str),
            ("shape", tuple[_Dimension, ...]),
            ("datatype", str),
            ("data", data | msgspec.UnsetType, msgspec.UNSET),
            ("parameters", Parameters | None, None),
        ],
    )
    request = msgspec.defstruct(
        "Request",
        [
            ("inputs", list[tensor]),  # type: ignore[valid-type]
            ("id", str | None, None),
            ("outputs", list[_Output] | None, None),
            ("parameters", Parameters | None, None),
        ],
    )
    return msgspec.json.Decoder(request).decode


_decode_plain = _envelope(_nested(int | float | str, 8))
"""Most requests: no booleans, which to `struct` are numbers, so that no element need be looked at after."""
_decode_any = _envelope(list[Any])


class Request:
    """A decoded request. `outputs`: wanted names and whether each goes out as binary; None for all."""

    __slots__ = ("binary", "id", "outputs", "parameters", "tensors")

    def __init__(self, tensors: list[Tensor], id: str = "", binary: bool = False) -> None:
        self.tensors = tensors
        self.id = id
        self.outputs: list[tuple[str, bool]] | None = None
        self.parameters: Parameters | None = None
        self.binary = binary


_encode = msgspec.json.encode


def decode_request(body: bytes, header_length: int | None = None) -> Request:
    """Decode a request body; `header_length` is the binary extension's JSON length, None without it.

    Raises InvalidInput, or TooLarge for too many tensors or too deep a nesting.
    """
    binary_at = len(body) if header_length is None else header_length
    if binary_at > len(body):
        raise InvalidInput(f"Inference-Header-Content-Length is {binary_at}, the whole body has {len(body)} bytes")
    envelope, booleans = _decode(body if header_length is None else memoryview(body)[:binary_at])
    if len(envelope.inputs) > MAX_TENSORS:
        raise TooLarge(f"{len(envelope.inputs)} inputs came, at most {MAX_TENSORS} are taken")
    request = Request([], envelope.id or "")
    for item in envelope.inputs:
        kind = DATATYPES.get(item.datatype)
        if kind is None:
            known = ", ".join(DATATYPES)
            raise InvalidInput(f"input {item.name!r}: datatype {item.datatype!r} is none of {known}")
        if len(item.shape) > MAX_RANK:
            raise TooLarge(f"input {item.name!r}: {len(item.shape)} dimensions came, at most {MAX_RANK} are taken")
        raw: bytes | memoryview
        if item.parameters is not None and "binary_data_size" in item.parameters:
            raw, binary_at = _binary(body, binary_at, item)
        else:
            if kind.name == "BF16":
                raise Unsupported(f"input {item.name!r}: BF16 has no JSON form; send it as binary")
            raw = _from_json(item, kind, booleans)
        request.tensors.append(Tensor(item.name, item.datatype, item.shape, raw))
    if header_length is not None and binary_at != len(body):
        raise InvalidInput(f"{len(body) - binary_at} bytes follow the last binary tensor; none were announced")
    if envelope.parameters is not None:
        request.parameters = envelope.parameters
        request.binary = envelope.parameters.get("binary_data_output") is True
    if envelope.outputs:
        request.outputs = [(out.name, _wants_binary(out, request.binary)) for out in envelope.outputs]
    return request


def _decode(text: Buffer) -> tuple[Any, bool]:
    """The envelope, and whether its data may hold booleans (or worse)."""
    try:
        if len(text) > LARGE:
            return decode_large(text, _Output), True
        return _decode_plain(text), False
    except msgspec.ValidationError as error:
        if len(text) > LARGE:
            raise InvalidInput(f"not an inference request: {error}") from None
        # otherwise: booleans, something wrong, or a nesting that no one needs
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not an inference request: {error}") from None
    except RecursionError:
        raise TooLarge("data is nested too deep") from None
    try:
        return _decode_any(text), True
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not an inference request: {error}") from None
    except RecursionError:
        raise TooLarge("data is nested too deep") from None


def raw_request(body: bytes, name: str, datatype: str, shape: Shape) -> Request:
    """The binary extension's raw body: one input, no JSON at all, at most one variable dimension."""
    if shape.count(-1) > 1:
        raise InvalidInput(f"a raw body cannot tell the {shape.count(-1)} variable dimensions of {name!r} apart")
    kind = DATATYPES[datatype]
    if -1 in shape:
        if not kind.itemsize:
            free = 1  # a BYTES raw body is one element
        else:
            fixed = math.prod(d for d in shape if d != -1) * kind.itemsize
            free = len(body) // fixed if fixed else 0
        shape = tuple(free if d == -1 else d for d in shape)
    raw = struct.pack("<I", len(body)) + body if kind.kind == "bytes" else body
    return Request([Tensor(name, datatype, shape, raw)], binary=True)


def _wants_binary(output: _Output, default: bool) -> bool:
    if output.parameters is None:
        return default
    if output.parameters.get("classification"):
        raise Unsupported(f"output {output.name!r}: the classification extension is not offered")
    return bool(output.parameters.get("binary_data", default))


def _binary(body: bytes, at: int, item: Any) -> tuple[memoryview, int]:
    assert item.parameters is not None
    size = item.parameters["binary_data_size"]
    if type(size) is not int or size < 0 or at + size > len(body):
        raise InvalidInput(
            f"input {item.name!r}: binary_data_size is {size!r}, {len(body) - at} bytes are left in the body"
        )
    if item.data is not msgspec.UNSET:
        raise InvalidInput(f"input {item.name!r}: give either data or binary_data_size, not both")
    return memoryview(body)[at : at + size], at + size


# --- JSON data -> raw form ---------------------------------------------------------------------------

_PYTHON_TYPES = {"bool": (bool,), "int": (int,), "float": (float, int), "bytes": (str,)}


def _from_json(item: Any, kind: Datatype, booleans: bool) -> bytes:
    """Raw form of `data`. `struct` refuses what is no number or does not fit; the rest is looked at here.

    booleans: data may hold some
    """
    values, shape = item.data, item.shape
    if values is msgspec.UNSET:
        if item.parameters and "shared_memory_region" in item.parameters:
            raise Unsupported(f"input {item.name!r}: shared memory is not offered; send the tensor")
        raise InvalidInput(f"input {item.name!r}: no data")
    if values and type(values[0]) is list:
        values = _flatten(values, shape, item.name)
    count = 1
    for size in shape:
        count *= size
    if len(values) != count:
        raise InvalidInput(f"input {item.name!r}: shape {list(shape)} takes {count} elements, {len(values)} came")
    if len(values) > PACKED_AT_ONCE:  # numpy would cast, parse and fill in
        if str in (types := set(map(type, values))) and kind.kind == "float":
            values = _numbers(values, kind, item.name)
        elif not types.issubset(_PYTHON_TYPES[kind.kind]):
            _check_types(values, kind, item.name)
    # To `struct` a boolean is a number, so where there may be one the elements' types are asked.
    elif booleans and kind.kind == "float":
        values = _numbers(values, kind, item.name)
    elif booleans or kind.kind in ("bool", "bytes"):
        _check_types(values, kind, item.name)
    try:
        return pack(values, kind, item.name)
    except InvalidInput:
        if kind.kind != "float":
            _check_types(values, kind, item.name)
            raise
    return pack(_numbers(values, kind, item.name), kind, item.name)


def _check_types(values: list[Any], kind: Datatype, name: str) -> None:
    wanted = _PYTHON_TYPES[kind.kind]
    for i, value in enumerate(values):
        if type(value) not in wanted:
            raise InvalidInput(f"input {name!r}: element {i} does not fit {kind.name}: {_shown(value)} came")


def _shown(value: object) -> str:
    return _encode(value).decode()[:80]


_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _numbers(values: list[Any], kind: Datatype, name: str) -> list[Any]:
    """Float data with the words for what JSON numbers cannot say replaced."""
    numbers = [_WORDS.get(v, v) if type(v) is str else v for v in values]
    for value in numbers:
        if type(value) is str:
            raise InvalidInput(
                f"input {name!r}: {kind.name} wanted, {_shown(value)} came (words taken: NaN, Infinity, -Infinity)"
            )
    _check_types(numbers, kind, name)
    return numbers


def _flatten(values: list[Any], shape: Shape, name: str) -> list[Any]:
    """Elements of data nested like `shape`, each level's lengths checked."""
    if len(values) != shape[0] if shape else True:
        raise InvalidInput(f"input {name!r}: data nested like shape {list(shape)} is wanted; {len(values)} rows came")
    for axis, wanted in enumerate(shape[1:], 1):
        for row in values:
            if type(row) is not list or len(row) != wanted:
                came = f"{len(row)} came" if type(row) is list else "the data is nested less deep"
                raise InvalidInput(f"input {name!r}: dimension {axis} is {wanted} by its shape, {came}")
        values = list(itertools.chain.from_iterable(values))
    if values and type(values[0]) is list:
        raise InvalidInput(f"input {name!r}: data is nested deeper than shape {list(shape)}")
    return values


# --- result -> wire ----------------------------------------------------------------------------------


def encode_response(result: Result, request: Request) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part when binary tensors follow it (else None).

    Raises Unsupported for an output that JSON cannot carry.
    """
    id = b'"id":%b,' % _encode(request.id) if request.id else b""
    if request.outputs is None and not request.binary:
        try:
            texts = [result.text(i) for i in range(len(result.ran.arrays))]
        except ValueError:
            texts = [_text(result, i) for i in range(len(result.ran.arrays))]  # says which output it is
        return _template(result) % (id, *texts), None
    return _encode_chosen(result, request, id)


def _template(result: Result) -> bytes:
    """An answer with all outputs in JSON, but for its id and its data, of these shapes."""
    ran = result.ran
    template: bytes | None = ran.memo.get(result.rows)
    if template is not None:
        return template
    shapes = ran.shapes(result.rows)
    memo = ran.signature.memo
    key = (ran.model, ran.version, shapes)
    template = memo.get(key)
    if template is None:
        outputs = zip(ran.signature.outputs, shapes, strict=True)
        heads = [_output_head(spec.name, spec.datatype, shape).replace(b"%", b"%%") for spec, shape in outputs]
        opening = _opening(ran.model, ran.version).replace(b"%", b"%%")
        template = b'%b%%b"outputs":[%b]}' % (opening, b",".join([head + b',"data":[%b]}' for head in heads]))
        if len(memo) >= _MAX_TEMPLATES:
            memo.clear()
        memo[key] = template
    ran.memo[result.rows] = template
    return template


def _encode_chosen(result: Result, request: Request, id: bytes) -> tuple[bytes, int | None]:
    """Some outputs, or some as binary."""
    ran = result.ran
    specs, shapes = ran.signature.outputs, ran.shapes(result.rows)
    wanted = request.outputs
    if wanted is None:
        wanted = [(spec.name, request.binary) for spec in specs]
    outputs: list[bytes] = []
    tail: list[bytes] = []
    for name, binary in wanted:
        index = ran.signature.output_index[name]
        head = _output_head(name, specs[index].datatype, shapes[index])
        if binary:
            tail.append(result.raw(index))
            outputs.append(b'%b,"parameters":{"binary_data_size":%d}}' % (head, len(tail[-1])))
        else:
            outputs.append(b'%b,"data":[%b]}' % (head, _text(result, index)))
    text = b'%b%b"outputs":[%b]}' % (_opening(ran.model, ran.version), id, b",".join(outputs))
    return b"".join((text, *tail)), len(text) if tail else None


@functools.lru_cache(maxsize=1024)
def _opening(model: str, version: int) -> bytes:
    return b'{"model_name":%b,"model_version":"%d",' % (_encode(model), version)


@functools.lru_cache(maxsize=4096)
def _output_head(name: str, datatype: str, shape: Shape) -> bytes:
    return b'{"name":%b,"datatype":"%b","shape":%b' % (_encode(name), datatype.encode(), _encode(shape))


def _text(result: Result, index: int) -> bytes:
    """The data of one output: its elements in JSON, with commas between."""
    try:
        return result.text(index)
    except UnicodeDecodeError:
        why = "has bytes that are not UTF-8"
    except NoTextForm:
        why = "is BF16, which has no JSON form"
    name = result.ran.signature.outputs[index].name
    raise Unsupported(f"output {name!r} {why}; ask for it with binary_data")

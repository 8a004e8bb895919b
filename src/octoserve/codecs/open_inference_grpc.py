"""Open Inference Protocol V2 over gRPC: ModelInferRequest and ModelInferResponse as bytes.

A request in raw form is answered in raw form, one with typed contents in typed contents (FP16 and BF16,
which have no typed form, make the whole answer raw).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from octoserve.codecs.protos import message
from octoserve.codecs.protos.alike import Alike
from octoserve.codecs.protos.wire import field
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, TooLarge, Unsupported
from octoserve.core.limits import MAX_RANK, MAX_TENSORS
from octoserve.core.packing import pack
from octoserve.core.results import Result
from octoserve.core.tensors import Shape, Tensor

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_Request: Any = message("inference.ModelInferRequest")
_Response: Any = message("inference.ModelInferResponse")
_parse = _Request.FromString


class Request:
    """A decoded ModelInferRequest. `raw`: tensors came, and go out, in raw form."""

    __slots__ = ("_parameters", "id", "model", "outputs", "raw", "tensors", "timeout", "version")

    def __init__(self, model: str, version: str, id: str, raw: bool) -> None:
        self.model = model
        self.version = version
        self.id = id
        self.raw = raw
        self.tensors: list[Tensor] = []
        self.outputs: list[str] | None = None
        self.timeout: float | None = None
        """Seconds, from the `timeout` parameter's microseconds; None without it."""
        self._parameters: Any = None

    def with_raw(self, raw: bytes) -> Request:
        """The same with other bytes for the only input."""
        other = Request(self.model, self.version, self.id, True)
        only = self.tensors[0]
        other.tensors.append(Tensor(only.name, only.datatype, only.shape, raw))
        other.outputs = self.outputs
        return other

    def parameter(self, name: str) -> object:
        """A request parameter's value; None without it."""
        if self._parameters is None or name not in self._parameters:
            return None
        value = self._parameters[name]
        choice = value.WhichOneof("parameter_choice")
        return None if choice is None else getattr(value, choice)


def _only_raw(data: bytes) -> bytes | None:
    raws = _parse(data).raw_input_contents
    return raws[0] if len(raws) == 1 else None


_alike: Alike[Request] = Alike(_only_raw)
"""Requests of one raw input, without an id or parameters; the input's bytes are left out."""


def decode_request(data: bytes) -> Request:
    """Decode a ModelInferRequest. Raises InvalidInput or TooLarge."""
    found = _alike.find(data)
    if found is not None:
        return found[0].with_raw(found[1])
    request = _decoded(data)
    if request.raw and len(request.tensors) == 1 and not request.id and request._parameters is None:
        raw = request.tensors[0].raw
        assert isinstance(raw, bytes)
        _alike.learn(data, request.with_raw(b""), raw)
    return request


def _decoded(data: bytes) -> Request:
    try:
        came = _parse(data)
    except DecodeError:
        raise InvalidInput("not a ModelInferRequest message") from None
    raws = came.raw_input_contents
    inputs = came.inputs
    if len(inputs) > MAX_TENSORS:
        raise TooLarge(f"{len(inputs)} inputs came, at most {MAX_TENSORS} are taken")
    for item in inputs:
        if len(item.shape) > MAX_RANK:  # before anything is done with the shape, its text in an error too
            raise TooLarge(f"input {item.name!r}: {len(item.shape)} dimensions came, at most {MAX_RANK} are taken")
    request = Request(came.model_name, came.model_version, came.id, bool(raws))
    if raws:
        if len(raws) != len(inputs):
            raise InvalidInput(f"{len(inputs)} inputs need as many raw_input_contents, {len(raws)} came")
        for item, raw in zip(inputs, raws, strict=True):
            if item.HasField("contents"):
                raise InvalidInput(f"input {item.name!r} has contents beside raw_input_contents; give one of them")
            request.tensors.append(Tensor(item.name, item.datatype, tuple(item.shape), raw))
    else:
        for item in inputs:
            request.tensors.append(_typed(item))
    if len(came.outputs) > MAX_TENSORS:
        raise TooLarge(f"{len(came.outputs)} outputs are wanted, at most {MAX_TENSORS} may be")
    if came.outputs:
        request.outputs = [output.name for output in came.outputs]
        for output in came.outputs:
            if "classification" in output.parameters:
                raise Unsupported(f"output {output.name!r}: the classification extension is not offered")
    if came.parameters:
        request._parameters = came.parameters
        request.timeout = _timeout(came.parameters)
    return request


def _timeout(parameters: Any) -> float | None:
    if "timeout" not in parameters:
        return None
    value = parameters["timeout"]
    choice = value.WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param") or getattr(value, choice) < 0:
        raise InvalidInput("parameter timeout: whole microseconds are wanted, as int64_param")
    return getattr(value, choice) / 1e6 or None  # 0 is the protocol's word for none


def _typed(item: Any) -> Tensor:
    kind = DATATYPES.get(item.datatype)
    field = _CONTENTS.get(item.datatype)
    if kind is None:
        raise InvalidInput(f"input {item.name!r}: datatype {item.datatype!r} is none of {', '.join(DATATYPES)}")
    if field is None:
        raise InvalidInput(f"input {item.name!r}: {item.datatype} has no typed contents; use raw_input_contents")
    for other, _ in item.contents.ListFields():
        if other.name != field:
            raise InvalidInput(f"input {item.name!r}: {item.datatype} belongs in {field}, {other.name} came")
    if "shared_memory_region" in item.parameters:
        raise Unsupported(f"input {item.name!r}: shared memory is not offered; send the tensor")
    values = getattr(item.contents, field)
    shape = tuple(item.shape)
    if any(d < 0 for d in shape) or len(values) != math.prod(shape):
        raise InvalidInput(f"input {item.name!r}: shape {list(shape)} does not have {len(values)} elements")
    return Tensor(item.name, item.datatype, shape, pack(values, kind, item.name))


@functools.lru_cache(maxsize=4096)
def _opening(model: str, version: int, outputs: tuple[tuple[str, str, Shape], ...]) -> bytes:
    """A response without its id and raw contents; fields of a message may follow in any order."""
    opening = _Response(model_name=model, model_version=str(version))
    for name, datatype, shape in outputs:
        opening.outputs.add(name=name, datatype=datatype, shape=shape)
    return bytes(opening.SerializeToString())


def encode_response(result: Result, request: Request) -> bytes:
    """A serialized ModelInferResponse. Raises Unsupported for what typed contents cannot carry."""
    ran = result.ran
    specs = ran.signature.outputs
    if request.outputs is None:
        opening, indexes = _whole(result)
    else:
        indexes = [ran.signature.output_index[name] for name in request.outputs]
        opening = _opening(ran.model, ran.version, _heads(result, indexes))
    if not request.raw and all(specs[i].datatype in _CONTENTS for i in indexes):
        return _typed_response(result, request, indexes)
    parts = [opening]
    if request.id:
        parts.append(field(3, request.id.encode()))
    for i in indexes:
        parts.append(field(6, result.raw(i)))
    return b"".join(parts)


def _whole(result: Result) -> tuple[bytes, list[int]]:
    """Opening and indexes of an answer with all outputs; the same for all requests of a batch with as many rows."""
    ran = result.ran
    whole: tuple[bytes, list[int]] | None = ran.memo.get(("grpc", result.rows))
    if whole is None:
        indexes = list(range(len(ran.arrays)))
        whole = (_opening(ran.model, ran.version, _heads(result, indexes)), indexes)
        ran.memo["grpc", result.rows] = whole
    return whole


def _heads(result: Result, indexes: Sequence[int]) -> tuple[tuple[str, str, Shape], ...]:
    specs = result.ran.signature.outputs
    return tuple([(specs[i].name, specs[i].datatype, result.shape(i)) for i in indexes])


def _typed_response(result: Result, request: Request, indexes: list[int]) -> bytes:
    ran = result.ran
    response = _Response(model_name=ran.model, model_version=str(ran.version), id=request.id)
    for i in indexes:
        spec = ran.signature.outputs[i]
        output = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=result.shape(i))
        values = result.array(i).ravel().tolist()
        if spec.datatype == "BYTES":
            values = [v if isinstance(v, bytes) else v.encode() for v in values]
        try:
            getattr(output.contents, _CONTENTS[spec.datatype]).extend(values)
        except (TypeError, ValueError) as error:
            raise Unsupported(f"output {spec.name!r} has no typed form: {error}; ask in raw form") from None
    return bytes(response.SerializeToString())

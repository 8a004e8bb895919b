"""How a remote server is asked: the Open Inference Protocol's REST, or TensorFlow Serving's."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import BrokenVersion, InvalidInput, Unavailable
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, array_from_raw, raw_from_array

_LENGTH = "Inference-Header-Content-Length"
_BINARY = "binary_tensor_data"
LANES = 16
TIMEOUT = 30.0
_RAW_ONLY = ("FP16", "BF16")
"""JSON has no form for these."""
_TENSORFLOW = {
    "DT_BOOL": "BOOL", "DT_UINT8": "UINT8", "DT_UINT16": "UINT16", "DT_UINT32": "UINT32", "DT_UINT64": "UINT64",
    "DT_INT8": "INT8", "DT_INT16": "INT16", "DT_INT32": "INT32", "DT_INT64": "INT64", "DT_FLOAT": "FP32",
    "DT_DOUBLE": "FP64", "DT_STRING": "BYTES",
}  # fmt: skip


class RemoteOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options:` of a version whose runtime is `remote`.

    timeout:   seconds until an answer; lanes: requests in flight at a time
    signature: TensorFlow Serving's signature_name
    binary:    whether tensors travel as bytes (Triton's extension); unset: if the server says it can
    token_env: variable that holds a bearer token, OCTOSERVE_REMOTE_...
    """

    url: str
    model: str
    protocol: str = "open-inference"
    version: str | int = ""
    timeout: float = TIMEOUT
    lanes: int = LANES
    signature: str = ""
    binary: bool | None = None
    token_env: str = ""


class Dialect(Protocol):
    """How one protocol asks."""

    def describe(self, ask: Ask) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """What the model takes and gives, asked of the server."""
        ...

    def request(self, signature: Signature, inputs: Sequence[Array]) -> tuple[str, bytes, dict[str, str]]:
        """Path, body and headers. Raises InvalidInput."""
        ...

    def answer(self, signature: Signature, body: bytes, headers: Mapping[str, str]) -> list[Array]:
        """The outputs in signature order. Raises Internal, or anything for what is no answer."""
        ...


class Ask(Protocol):
    """One GET for JSON. Raises OctoserveError."""

    def __call__(self, path: str) -> Any:
        """The document at `path`."""
        ...


class OpenInference:
    """`/v2/models/{model}[/versions/{version}]`, tensors as bytes where the server can."""

    def __init__(self, options: RemoteOptions) -> None:
        version = f"/versions/{quote(str(options.version), '')}" if options.version != "" else ""
        self._path = f"/v2/models/{quote(options.model, '')}{version}"
        self._binary = options.binary

    def describe(self, ask: Ask) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """See `Dialect`."""
        if self._binary is None:
            self._binary = _BINARY in ask("/v2").get("extensions", ())
        said = ask(self._path)
        return _specs(said["inputs"]), _specs(said["outputs"])

    def request(self, signature: Signature, inputs: Sequence[Array]) -> tuple[str, bytes, dict[str, str]]:
        """See `Dialect`."""
        binary, parts = bool(self._binary), []
        tensors: list[dict[str, Any]] = []
        for spec, array in zip(signature.inputs, inputs, strict=True):
            tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}
            if binary:
                parts.append(raw_from_array(array))
                tensor["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                tensor["data"] = _json_values(spec, array)
            tensors.append(tensor)
        wanted = [
            {"name": s.name, "parameters": {"binary_data": True}} if binary else {"name": s.name}
            for s in signature.outputs
        ]
        head = msgspec.json.encode({"inputs": tensors, "outputs": wanted})
        if not binary:
            return f"{self._path}/infer", head, {"Content-Type": "application/json"}
        headers = {"Content-Type": "application/octet-stream", _LENGTH: str(len(head))}
        return f"{self._path}/infer", b"".join([head, *parts]), headers

    def answer(self, signature: Signature, body: bytes, headers: Mapping[str, str]) -> list[Array]:
        """See `Dialect`."""
        length = int(headers.get(_LENGTH.lower(), len(body)))
        rest, at = memoryview(body), length
        found: dict[str, Array] = {}
        declared = {spec.name: spec.datatype for spec in signature.outputs}
        for tensor in _read(body[:length])["outputs"]:
            came = tensor["datatype"]
            if declared.get(tensor["name"], came) != came:
                raise Unavailable(
                    f"the server gave {tensor['name']!r} as {came}; {declared[tensor['name']]} is declared"
                )
            size = (tensor.get("parameters") or {}).get("binary_data_size")
            shape = tuple(tensor["shape"])
            if size is None:
                found[tensor["name"]] = _from_json(tensor["datatype"], shape, tensor["data"])
            else:
                found[tensor["name"]] = array_from_raw(rest[at : at + size], tensor["datatype"], shape, tensor["name"])
                at += size
        return _in_order(signature, found)


class TensorFlowServing:
    """`/v1/models/{model}[/versions/{version}]:predict`, in the form of columns."""

    def __init__(self, options: RemoteOptions) -> None:
        version = f"/versions/{quote(str(options.version), '')}" if options.version != "" else ""
        self._path = f"/v1/models/{quote(options.model, '')}{version}"
        self._signature = options.signature or "serving_default"

    def describe(self, ask: Ask) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """See `Dialect`."""
        known = ask(f"{self._path}/metadata")["metadata"]["signature_def"]["signature_def"]
        if self._signature not in known:
            raise BrokenVersion(f"no signature {self._signature!r} there; there are {', '.join(sorted(known))}")
        said = known[self._signature]
        return self._specs(said["inputs"]), self._specs(said["outputs"])

    def _specs(self, tensors: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
        found = []
        for name, info in sorted(tensors.items()):
            if info["dtype"] not in _TENSORFLOW:
                raise BrokenVersion(f"{name!r} is of type {info['dtype']}, which has no datatype here")
            sizes = tuple(int(part["size"]) for part in info["tensor_shape"].get("dim", ()))
            found.append(TensorSpec(name, _TENSORFLOW[info["dtype"]], sizes))
        return tuple(found)

    def request(self, signature: Signature, inputs: Sequence[Array]) -> tuple[str, bytes, dict[str, str]]:
        """See `Dialect`."""
        columns: dict[str, Any] = {}
        for spec, array in zip(signature.inputs, inputs, strict=True):
            nested = array.tolist()
            if spec.datatype in _RAW_ONLY:
                raise InvalidInput(f"input {spec.name!r}: {spec.datatype} has no form in TensorFlow Serving's JSON")
            columns[spec.name] = _base64(nested) if spec.datatype == "BYTES" else nested
        finite = all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in inputs)
        # Of the two only json writes NaN and Infinity, which TensorFlow Serving reads.
        encode = msgspec.json.encode if finite else _encode_bare
        body = encode({"signature_name": self._signature, "inputs": columns})
        return f"{self._path}:predict", body, {"Content-Type": "application/json"}

    def answer(self, signature: Signature, body: bytes, headers: Mapping[str, str]) -> list[Array]:
        """See `Dialect`."""
        given = _read(body)["outputs"]
        named = {signature.outputs[0].name: given} if len(signature.outputs) == 1 else given
        found = {spec.name: _nested(spec, named[spec.name]) for spec in signature.outputs}
        return _in_order(signature, found)


def _specs(tensors: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    for tensor in tensors:
        if tensor["datatype"] not in DATATYPES:
            raise BrokenVersion(f"{tensor['name']!r} is of datatype {tensor['datatype']!r}, which is not known here")
    return tuple(TensorSpec(t["name"], t["datatype"], tuple(int(size) for size in t["shape"])) for t in tensors)


def _encode_bare(document: Any) -> bytes:
    return json.dumps(document).encode()


def _read(body: bytes) -> Any:
    """JSON, also with NaN and Infinity in it, which many servers write."""
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return json.loads(body)


def _json_values(spec: TensorSpec, array: Array) -> list[Any]:
    if spec.datatype in _RAW_ONLY:
        raise InvalidInput(f"input {spec.name!r}: {spec.datatype} has no form in JSON, and the server takes no bytes")
    if spec.datatype != "BYTES":
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInput(
                f"input {spec.name!r}: NaN and infinity have no form in JSON, and the server takes no bytes"
            )
        return array.ravel().tolist()
    try:
        return [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidInput(f"input {spec.name!r}: an element is not UTF-8, and the server takes no bytes") from None


def _from_json(datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    if datatype != "BYTES":
        return _numbers(datatype, data).reshape(shape)
    flat = np.empty(math.prod(shape), dtype=object)
    flat[:] = list(_flattened(data))
    return flat.reshape(shape)


def _nested(spec: TensorSpec, data: Any) -> Array:
    """TensorFlow Serving's outputs have no header: their shape is their nesting."""
    if spec.datatype != "BYTES":
        return _numbers(spec.datatype, data)
    shape, inner = [], data
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    return _from_json("BYTES", tuple(shape), data)


def _numbers(datatype: str, data: Any) -> Array:
    kind = DATATYPES[datatype]
    if kind.kind == "int" and (came := np.asarray(data)).size and came.dtype.kind == "f":
        raise Unavailable(f"the server gave numbers with a fraction, or too large ones, where {datatype} is declared")
    return np.array(data, kind.dtype)


def _flattened(data: Any) -> list[Any]:
    if isinstance(data, list):
        return [item for part in data for item in _flattened(part)]
    return [base64.b64decode(data["b64"]) if isinstance(data, dict) else str(data)]


def _base64(nested: Any) -> Any:
    if isinstance(nested, list):
        return [_base64(item) for item in nested]
    data = nested if isinstance(nested, bytes) else str(nested).encode()
    return {"b64": base64.b64encode(data).decode()}


def _in_order(signature: Signature, found: Mapping[str, Array]) -> list[Array]:
    for spec in signature.outputs:
        array = found.get(spec.name)
        if array is None:
            raise Unavailable(f"the server gave no output {spec.name!r}; it gave {', '.join(sorted(found)) or 'none'}")
        sizes = zip(spec.shape, array.shape, strict=False)
        if array.ndim != len(spec.shape) or not all(want in (-1, have) for want, have in sizes):
            raise Unavailable(f"the server gave {spec.name!r} in shape {list(array.shape)}; {spec} is declared")
    return [found[spec.name] for spec in signature.outputs]

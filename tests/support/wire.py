"""One request in each of the protocol's four forms, and the answers in one: name -> datatype, shape, raw bytes.

The encoders are written from the specification and share nothing with the server's, except for the message
classes of the protocol's own .proto file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from octoserve.codecs.protos import message
from support.service import Served

DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2",
}  # fmt: skip
"""BF16 travels as its bit patterns; BYTES is an object array."""
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
SERVICE = "/inference.GRPCInferenceService/"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class Sent(NamedTuple):
    """An input."""

    name: str
    datatype: str
    array: NDArray[Any]


class Got(NamedTuple):
    """An output."""

    datatype: str
    shape: tuple[int, ...]
    raw: bytes

    def array(self) -> NDArray[Any]:
        """Its elements; BYTES as an object array of bytes."""
        if self.datatype != "BYTES":
            return np.frombuffer(self.raw, DTYPES[self.datatype]).reshape(self.shape)
        values = np.empty(math.prod(self.shape), dtype=object)
        at = 0
        for i in range(len(values)):
            (size,) = struct.unpack_from("<I", self.raw, at)
            values[i] = self.raw[at + 4 : at + 4 + size]
            at += 4 + size
        assert at == len(self.raw)
        return values.reshape(self.shape)


Outputs = dict[str, Got]


class Refused(Exception):
    """An answer that is an error: HTTP status or gRPC code, and its text."""

    def __init__(self, status: object, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


def raw_of(datatype: str, array: NDArray[Any]) -> bytes:
    """Raw form."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel().tolist())
    return np.ascontiguousarray(array, DTYPES[datatype]).tobytes()


def _element(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _from_json(datatype: str, shape: Iterable[int], data: Sequence[Any]) -> Got:
    if datatype == "BYTES":
        raw = raw_of("BYTES", np.array([item.encode() for item in data], dtype=object))
    else:
        kinds = {"BOOL": (bool,), "FP16": (float, int, str), "FP32": (float, int, str), "FP64": (float, int, str)}
        assert all(type(item) in kinds.get(datatype, (int,)) for item in data), (datatype, data)
        raw = np.array([float(v) if isinstance(v, str) else v for v in data], DTYPES[datatype]).tobytes()
    return Got(datatype, tuple(shape), raw)


# --- REST ------------------------------------------------------------------------------------------------


def rest_json(service: Served, model: str, inputs: Sequence[Sent], **more: Any) -> Outputs:
    """JSON in, JSON out."""
    request = {
        "inputs": [
            {
                "name": sent.name,
                "datatype": sent.datatype,
                "shape": list(sent.array.shape),
                "data": [_element(item) for item in sent.array.ravel().tolist()],
            }
            for sent in inputs
        ],
        **more,
    }
    answer = service.ask("POST", f"/v2/models/{model}/infer", request)
    return read_rest(answer)


def binary_request(inputs: Sequence[Sent], **more: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request in the binary extension, both ways."""
    raws = [raw_of(sent.datatype, sent.array) for sent in inputs]
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": sent.name,
                    "datatype": sent.datatype,
                    "shape": list(sent.array.shape),
                    "parameters": {"binary_data_size": len(raw)},
                }
                for sent, raw in zip(inputs, raws, strict=True)
            ],
            "parameters": {"binary_data_output": True},
            **more,
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return b"".join([head, *raws]), headers


def rest_binary(service: Served, model: str, inputs: Sequence[Sent], **more: Any) -> Outputs:
    """The binary extension, both ways."""
    return read_rest(service.ask("POST", f"/v2/models/{model}/infer", *binary_request(inputs, **more)))


def read_rest(answer: Any) -> Outputs:
    """The outputs of an answer, whichever form each is in. Raises Refused."""
    if answer.status != 200:
        raise Refused(answer.status, answer.json()["error"])
    at = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    outputs: Outputs = {}
    for output in json.loads(answer.body[:at])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            outputs[output["name"]] = _from_json(output["datatype"], output["shape"], output["data"])
        else:
            raw = answer.body[at : at + size]
            outputs[output["name"]] = Got(output["datatype"], tuple(output["shape"]), raw)
            at += size
    assert at == len(answer.body)
    return outputs


# --- gRPC ------------------------------------------------------------------------------------------------


def unary(channel: grpc.Channel, path: str, request: str, response: str) -> Callable[..., Any]:
    """A stub of a unary method, from message names."""
    return channel.unary_unary(
        path,
        request_serializer=lambda value: value.SerializeToString(),
        response_deserializer=message(response).FromString,
    )


def inference(channel: grpc.Channel, method: str) -> Callable[..., Any]:
    """A stub of one of the inference service's unary methods."""
    return unary(channel, SERVICE + method, f"inference.{method}Request", f"inference.{method}Response")


def infer_request(model: str, inputs: Sequence[Sent], typed: bool = False, **more: Any) -> Any:
    """A ModelInferRequest."""
    request = message("inference.ModelInferRequest")(model_name=model, **more)
    for sent in inputs:
        tensor = request.inputs.add(name=sent.name, datatype=sent.datatype, shape=sent.array.shape)
        if typed:
            getattr(tensor.contents, CONTENTS[sent.datatype]).extend(sent.array.ravel().tolist())
        else:
            request.raw_input_contents.append(raw_of(sent.datatype, sent.array))
    return request


def read_grpc(response: Any) -> Outputs:
    """The outputs of a ModelInferResponse, raw or typed."""
    outputs: Outputs = {}
    for i, output in enumerate(response.outputs):
        if response.raw_output_contents:
            raw = response.raw_output_contents[i]
        else:
            values = np.array(getattr(output.contents, CONTENTS[output.datatype]), dtype=object)
            raw = raw_of(output.datatype, values)
        outputs[output.name] = Got(output.datatype, tuple(output.shape), raw)
    return outputs


def grpc_infer(channel: grpc.Channel, model: str, inputs: Sequence[Sent], typed: bool = False, **more: Any) -> Outputs:
    """ModelInfer; raw in is raw out, typed in typed out. Raises Refused."""
    try:
        response = inference(channel, "ModelInfer")(infer_request(model, inputs, typed, **more), timeout=30)
    except grpc.RpcError as error:
        raise Refused(error.code(), error.details()) from None
    return read_grpc(response)


# --- TensorFlow Serving over gRPC ------------------------------------------------------------------------

DTYPE = {
    "BOOL": "DT_BOOL", "UINT8": "DT_UINT8", "UINT16": "DT_UINT16", "UINT32": "DT_UINT32", "UINT64": "DT_UINT64",
    "INT8": "DT_INT8", "INT16": "DT_INT16", "INT32": "DT_INT32", "INT64": "DT_INT64", "FP16": "DT_HALF",
    "FP32": "DT_FLOAT", "FP64": "DT_DOUBLE", "BF16": "DT_BFLOAT16", "BYTES": "DT_STRING",
}  # fmt: skip
VALUES = {
    **dict.fromkeys(("UINT8", "UINT16", "INT8", "INT16", "INT32"), "int_val"),
    **dict.fromkeys(("FP16", "BF16"), "half_val"),
    "BOOL": "bool_val", "INT64": "int64_val", "UINT32": "uint32_val", "UINT64": "uint64_val",
    "FP32": "float_val", "FP64": "double_val", "BYTES": "string_val",
}  # fmt: skip


def predict_request(model: str, inputs: Sequence[Sent], whole: bool = False, **more: Any) -> Any:
    """A PredictRequest. whole: in tensor_content; text has typed fields only."""
    request = message("tensorflow.serving.PredictRequest")(model_spec={"name": model}, **more)
    for sent in inputs:
        tensor = request.inputs[sent.name]
        tensor.dtype = tensor.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name[DTYPE[sent.datatype]].number
        tensor.tensor_shape.SetInParent()
        for size in sent.array.shape:
            tensor.tensor_shape.dim.add(size=size)
        if whole and sent.datatype != "BYTES":
            tensor.tensor_content = raw_of(sent.datatype, sent.array)
        else:
            array = sent.array.view("<u2") if sent.datatype == "FP16" else sent.array
            getattr(tensor, VALUES[sent.datatype]).extend(array.ravel().tolist())
    return request


def read_predict(response: Any) -> Outputs:
    """The outputs of a PredictResponse."""
    outputs: Outputs = {}
    for name, tensor in response.outputs.items():
        word = tensor.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_number[tensor.dtype].name
        (datatype,) = [datatype for datatype, known in DTYPE.items() if known == word]
        values = np.array(getattr(tensor, VALUES[datatype]), dtype=object)
        raw = values.astype("<u2").tobytes() if datatype == "FP16" else raw_of(datatype, values)
        outputs[name] = Got(datatype, tuple(dim.size for dim in tensor.tensor_shape.dim), raw)
    return outputs


def tensorflow_predict(channel: grpc.Channel, model: str, inputs: Sequence[Sent], **more: Any) -> Outputs:
    """Predict. Raises Refused."""
    path, package = "/tensorflow.serving.PredictionService/Predict", "tensorflow.serving."
    stub = unary(channel, path, f"{package}PredictRequest", f"{package}PredictResponse")
    try:
        return read_predict(stub(predict_request(model, inputs, **more), timeout=30))
    except grpc.RpcError as error:
        raise Refused(error.code(), error.details()) from None

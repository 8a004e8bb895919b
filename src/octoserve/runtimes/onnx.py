"""ONNX models on ONNX Runtime's CPU provider."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octoserve.core.errors import BrokenVersion, Internal, InvalidInput
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.runtimes.protocol import RuntimeSettings

_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "bfloat16": "BF16",
    "string": "BYTES",
}
_TENSOR = re.compile(r"^(?:optional\()?tensor\((\w+)\)\)?$")
_MAPS = re.compile(r"^seq\(map\((\w+),tensor\((\w+)\)\)\)$")
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class OnnxRuntime:
    """Loads `model.onnx` from a version folder."""

    name = "onnx"
    artifacts: tuple[str, ...] = ("model.onnx",)
    distributions: tuple[str, ...] = ("onnxruntime",)

    def load(self, folder: Path, settings: RuntimeSettings) -> OnnxModel:
        """Raises BrokenVersion with ONNX Runtime's reason."""
        import onnxruntime

        path = folder / (settings.file or self.artifacts[0])
        if not path.is_file():
            raise BrokenVersion(f"{path.name} is missing in {folder}")
        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised; clients do not write to our standard error
        # Spinning threads would burn the core that the event loop needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            return OnnxModel(session, settings.batching)
        except BrokenVersion:
            raise
        except Exception as error:  # ONNX Runtime raises many classes, all of them about this file
            raise BrokenVersion(f"{path.name}: {_first_line(error)}") from error


class OnnxModel:
    """A session and its signature."""

    platform = "onnx_onnxruntime"
    lanes = 0

    def __init__(self, session: Any, batching: bool | None) -> None:
        inputs = [_spec(node.name, node.type, node.shape) for node in session.get_inputs()]
        outputs = [_spec(node.name, node.type, node.shape) for node in session.get_outputs()]
        self._session = session
        # The inner session skips argument checks that the signature has already made: 2-10 us a call.
        inner = getattr(session, "_sess", None)
        self._run: Callable[[list[str], dict[str, Any], Any], list[Any]] = inner.run if inner else session.run
        self._input_names = [spec.name for spec in inputs]
        self._output_names = [spec.name for spec in outputs]
        self._strings = [i for i, spec in enumerate(inputs) if spec.datatype == "BYTES"]
        self._maps = [i for i, node in enumerate(session.get_outputs()) if _MAPS.match(node.type)]
        self._bfloat16 = any(spec.datatype == "BF16" for spec in (*inputs, *outputs))
        # A candidate only: `lifecycle.probe` asks the model. Converters write [1] where they mean a row.
        rows_first = all(spec.shape and spec.shape[0] == -1 for spec in inputs) and all(
            spec.shape and spec.shape[0] in (-1, 1) for spec in outputs
        )
        same_rows = len({n.shape[0] for n in session.get_inputs() if n.shape and isinstance(n.shape[0], str)}) < 2
        self.signature = Signature(
            inputs,
            outputs,
            batchable=bool(inputs) and rows_first and same_rows and batching is not False,
            dimensions={n.name: [d if isinstance(d, str) else "" for d in n.shape] for n in session.get_inputs()},
        )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `runtimes.protocol.LoadedModel.run`."""
        if self._bfloat16:
            return self._run_bfloat16(inputs)
        feed = dict(zip(self._input_names, inputs, strict=True))
        for i in self._strings:
            feed[self._input_names[i]] = _text(inputs[i], self._input_names[i])
        try:
            outputs = self._run(self._output_names, feed, None)
        except Exception as error:
            raise _run_error(error) from error
        for i in self._maps:
            outputs[i] = _table(outputs[i])
        return outputs

    def close(self) -> None:
        """Free the session's memory."""
        del self._run, self._session

    def _run_bfloat16(self, inputs: Sequence[Array]) -> list[Array]:
        """numpy has no bfloat16: the bit patterns travel as uint16 in ONNX Runtime's own values."""
        from onnxruntime import OrtValue

        feed = {}
        for spec, array in zip(self.signature.inputs, inputs, strict=True):
            if spec.datatype == "BF16":
                value = OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BFLOAT16)
            else:
                value = OrtValue.ortvalue_from_numpy(
                    _text(array, spec.name) if spec.datatype == "BYTES" else np.ascontiguousarray(array)
                )
            feed[spec.name] = value
        try:
            values = self._session.run_with_ort_values(self._output_names, feed)
            return [
                _bfloat16_bits(value) if spec.datatype == "BF16" else value.numpy()
                for spec, value in zip(self.signature.outputs, values, strict=True)
            ]
        except Exception as error:
            raise _run_error(error) from error


def _spec(name: str, type_: str, shape: Sequence[int | str | None] | None) -> TensorSpec:
    maps = _MAPS.match(type_)
    if maps:
        return TensorSpec(name, _DATATYPES[maps.group(2)], (-1, -1))
    tensor = _TENSOR.match(type_)
    if tensor is None or tensor.group(1) not in _DATATYPES:
        raise BrokenVersion(f"{name!r} is of type {type_}; only tensors can be served (sklearn: zipmap=False)")
    sizes = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in shape or ())
    return TensorSpec(name, _DATATYPES[tensor.group(1)], sizes)


def _table(rows: list[dict[Any, float]]) -> Array:
    """scikit-learn's ZipMap output, a map a row, as a table in the classes' order."""
    return np.array([list(row.values()) for row in rows], dtype=np.float32)


def _bfloat16_bits(value: Any) -> Array:
    import ctypes

    shape = value.shape()
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.empty(shape, dtype=np.uint16)
    return np.array((ctypes.c_uint16 * count).from_address(value.data_ptr()), dtype=np.uint16).reshape(shape)


def _text(array: Array, name: str) -> Array:
    """ONNX strings are UTF-8."""
    text = np.empty(array.size, dtype=object)
    try:
        text[:] = [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidInput(f"input {name!r}: the model takes text, and an element is not UTF-8") from None
    return text.reshape(array.shape)


def _run_error(error: Exception) -> InvalidInput | Internal:
    """ONNX Runtime's INVALID_ARGUMENT is the caller's fault: inputs that the graph's own declarations refuse.

    Whatever fails inside a node is Internal, since nothing tells a broken model from inputs that do not fit
    each other there (a broadcast of 2 and 3, say).
    """
    text = _first_line(error)
    if type(error).__name__ == "InvalidArgument" or "INVALID_ARGUMENT" in text:
        return InvalidInput(f"the model refuses these inputs: {text}")
    return Internal(text)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]

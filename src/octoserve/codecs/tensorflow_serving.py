"""TensorFlow Serving's REST bodies; KServe V1's are their row form.

    {"instances": [...]} -> {"predictions": [...]}      row form
    {"inputs": ...}      -> {"outputs": ...}            column form; a single output goes out without its name
    {"signature_name": "serving_default"}               the only signature that a version has here

Source: TensorFlow Serving's RESTful API, KServe's V1 protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from octoserve.codecs.json_answers import AnswerStyle, by_output, by_row, row_texts
from octoserve.codecs.json_values import decode_frame
from octoserve.codecs.value_reader import ValueReader
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, TooLarge
from octoserve.core.results import Result
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor

ROWS, COLUMNS = "rows", "columns"
SIGNATURE = "serving_default"
_STYLE = AnswerStyle(base64=True)
_MAX_EXAMPLES = 4 << 20
"""Bytes of examples, each with what their context adds: they become dicts, which take many times their text."""
_encode = msgspec.json.encode


class _Predict(msgspec.Struct):
    signature_name: str | None = None
    instances: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()


class _Examples(msgspec.Struct):
    examples: list[dict[str, msgspec.Raw]]
    signature_name: str | None = None
    context: dict[str, msgspec.Raw] = {}


_predict = msgspec.json.Decoder(_Predict).decode
_examples = msgspec.json.Decoder(_Examples).decode


def decode_predict(body: bytes, reader: ValueReader) -> tuple[list[Tensor], str]:
    """Tensors, and the form in which the answer is wanted. Raises InvalidInput, TooLarge."""
    frame: _Predict = decode_frame(body, _predict, 'an object with "instances" or "inputs"')
    check_signature(frame.signature_name)
    if len(frame.instances):
        if len(frame.inputs):
            raise InvalidInput('either "instances" or "inputs" is wanted, both came')
        return reader.rows(memoryview(frame.instances), "instances"), ROWS
    if not len(frame.inputs):
        raise InvalidInput('an object with "instances" (rows) or "inputs" (columns) is wanted, it has neither')
    return reader.columns(memoryview(frame.inputs), "inputs"), COLUMNS


def encode_predict(result: Result, form: str) -> bytes:
    """The answer in the form of its request. Raises InvalidInput, Unsupported."""
    if form == ROWS:
        return b'{"predictions":[%b]}' % b",".join(by_row(result, _STYLE))
    return b'{"outputs":%b}' % by_output(result, _STYLE)


def check_signature(name: str | None) -> None:
    """Raises InvalidInput for another than the only one."""
    if name not in (None, "", SIGNATURE):
        raise InvalidInput(f"signature_name: there is {SIGNATURE!r}, {name!r} came")


# --- classify and regress ------------------------------------------------------------------------------------


def decode_examples(body: bytes, reader: ValueReader) -> list[Tensor]:
    """`examples` as rows, what `context` says added to each. Raises InvalidInput, TooLarge."""
    check_size(len(body))
    frame: _Examples = decode_frame(body, _examples, 'an object with "examples"')
    check_signature(frame.signature_name)
    if not frame.examples:
        raise InvalidInput("examples: at least one is wanted")
    shared = sum(len(name) + len(value) + 8 for name, value in frame.context.items())
    check_size(len(body) + shared * len(frame.examples))
    rows = [{**frame.context, **example} for example in frame.examples]
    return reader.rows(_encode(rows), "examples")


def check_size(size: int) -> None:
    """Of a request's examples, with the context in each. Raises TooLarge."""
    if size > _MAX_EXAMPLES:
        raise TooLarge(f"examples: {size} bytes, with the context in each; at most {_MAX_EXAMPLES} are taken at a time")


def encode_classify(result: Result) -> bytes:
    """`[[label, score], ...]` a row, of the only output of scores; the labels are the classes' numbers.

    Raises InvalidInput where there is no such output.
    """
    scores = only(result.ran.signature, "classify", 2)
    if result.ran.signature.outputs[scores].datatype == "BF16":
        raise InvalidInput("classify: BF16 has no JSON form")
    texts = row_texts(result, scores, _STYLE)
    rows = [_pairs(text[1:-1]) for text in texts]
    return b'{"result":[%b]}' % b",".join(rows)


def _pairs(row: bytes) -> bytes:
    return b"[%b]" % b",".join([b'["%d",%b]' % (i, score) for i, score in enumerate(row.split(b","))])


def encode_regress(result: Result) -> bytes:
    """A number a row, of the only output that has one. Raises InvalidInput where there is no such output."""
    value = only(result.ran.signature, "regress", 1)
    texts = row_texts(result, value, AnswerStyle(single=True))
    return b'{"result":[%b]}' % b",".join(texts)


def only(signature: Signature, verb: str, rank: int) -> int:
    """The output of scores (rank 2), or of one number a row (rank 1). Raises InvalidInput where there is none."""
    found = [i for i, spec in enumerate(signature.outputs) if _suits(spec, rank)]
    if len(found) != 1:
        what = "an output of scores, FP [-1, classes]," if rank == 2 else "an output of one number a row"
        have = ", ".join(map(str, signature.outputs))
        raise InvalidInput(f"{verb}: a model with {what} is wanted; this one gives {have}; ask it to predict")
    return found[0]


def _suits(spec: TensorSpec, rank: int) -> bool:
    if DATATYPES[spec.datatype].kind != "float":
        return False
    one = len(spec.shape) == 1 or spec.shape[1:] == (1,)
    return one if rank == 1 else len(spec.shape) == 2 and not one


# --- status and metadata -------------------------------------------------------------------------------------

_STATES = {"READY": "AVAILABLE", "LOADING": "LOADING"}


def version_status(version: int, state: str, reason: str) -> dict[str, Any]:
    """One version, as GetModelStatus says it. state: the repository index's word."""
    ended = bool(reason) and state not in _STATES
    error = {"error_code": "UNKNOWN" if ended else "OK", "error_message": reason if ended else ""}
    return {"version": str(version), "state": _STATES.get(state, "END"), "status": error}


DTYPES = {
    "BOOL": "DT_BOOL", "UINT8": "DT_UINT8", "UINT16": "DT_UINT16", "UINT32": "DT_UINT32", "UINT64": "DT_UINT64",
    "INT8": "DT_INT8", "INT16": "DT_INT16", "INT32": "DT_INT32", "INT64": "DT_INT64", "FP16": "DT_HALF",
    "FP32": "DT_FLOAT", "FP64": "DT_DOUBLE", "BF16": "DT_BFLOAT16", "BYTES": "DT_STRING",
}  # fmt: skip


def metadata(model: str, version: int, signature: Signature) -> dict[str, Any]:
    """What GetModelMetadata says of a version."""
    definition = {
        "inputs": _infos(signature.inputs),
        "outputs": _infos(signature.outputs),
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": model, "signature_name": "", "version": str(version)},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: definition}}},
    }


def _infos(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    return {
        spec.name: {
            "dtype": DTYPES[spec.datatype],
            "tensor_shape": {"dim": [{"size": str(d), "name": ""} for d in spec.shape], "unknown_rank": False},
            "name": spec.name,
        }
        for spec in specs
    }

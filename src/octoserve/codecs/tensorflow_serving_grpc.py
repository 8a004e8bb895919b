"""TensorFlow Serving over gRPC: its requests as tensors, results as its responses.

Elements come as `tensor_content`, in raw form, or in the typed field of their dtype; if there are fewer than the shape
has, the last one is repeated. They go out in typed fields, as TensorFlow Serving sends them: its clients read
`outputs["y"].float_val`.

Source: tensorflow_serving/apis/*.proto; tensorflow/core/framework/tensor.proto and what Tensor::FromProto makes of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from octoserve.codecs import tensorflow_serving as rest
from octoserve.codecs.protos import message
from octoserve.codecs.protos.alike import Alike
from octoserve.codecs.protos.wire import field, opening
from octoserve.codecs.row_tensors import KINDS, RowTensors
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, OctoserveError, SettingsError, TooLarge
from octoserve.core.limits import MAX_RANK, MAX_TENSORS
from octoserve.core.packing import pack
from octoserve.core.results import Result
from octoserve.core.signature import Signature
from octoserve.core.tensors import Shape, Tensor, raw_from_array

_SERVING = "tensorflow.serving."
_TensorProto: Any = message("tensorflow.TensorProto")
_ModelSpec: Any = message(_SERVING + "ModelSpec")
_PredictRequest: Any = message(_SERVING + "PredictRequest")
_SignatureDefMap: Any = message(_SERVING + "SignatureDefMap")
_dtype: Any = _TensorProto.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name
_DTYPES: dict[str, int] = {name: _dtype[dtype].number for name, dtype in rest.DTYPES.items()}
_DATATYPES = {number: name for name, number in _DTYPES.items()}
_FIELDS = {
    **dict.fromkeys(("INT8", "INT16", "INT32", "UINT8", "UINT16"), "int_val"),
    **dict.fromkeys(("FP16", "BF16"), "half_val"),
    "BOOL": "bool_val", "INT64": "int64_val", "UINT32": "uint32_val", "UINT64": "uint64_val",
    "FP32": "float_val", "FP64": "double_val", "BYTES": "string_val",
}  # fmt: skip
_HEADERS = frozenset(("dtype", "tensor_shape", "version_number"))
_PACKED = {"FP32": 5, "FP64": 6, "BOOL": 11}
"""Typed fields whose packed elements are the raw form, by number."""
_REPEATED_TEXT = 64
"""Bytes that a repeated element of text takes in memory beside its own."""
METADATA = "signature_def"
"""The only field of a model's metadata."""


class UnknownSignature(OctoserveError):
    """A signature that no version has here: FAILED_PRECONDITION, where TensorFlow Serving predicts."""

    reason = "invalid"


class Asked:
    """Which model a request names. version: a number, a label, or ""."""

    __slots__ = ("labelled", "model", "version")

    def __init__(self, spec: Any) -> None:
        """Raises InvalidInput where none is named."""
        self.model: str = spec.name
        if not self.model:
            raise InvalidInput("model_spec.name: the model's name is wanted, none came")
        choice = spec.WhichOneof("version_choice")
        self.labelled = choice == "version_label"
        self.version = ""
        if self.labelled:
            self.version = spec.version_label
            if not self.version or self.version.isdigit():
                raise InvalidInput(f"version_label: a name is wanted, {self.version!r} came")
        elif choice is not None:
            self.version = str(spec.version.value)


def parsed(kind: str, data: bytes) -> Any:
    """A message of TensorFlow Serving's. Raises InvalidInput."""
    try:
        return message(_SERVING + kind).FromString(data)
    except DecodeError:
        raise InvalidInput(f"not a {kind} message") from None


# --- Predict -------------------------------------------------------------------------------------------------


_READ = ("BYTES", "BOOL", "INT8", "UINT8")
"""What is read element by element, although its bytes may look like the tensor's: small varints do."""
Predict = tuple[Asked, list[Tensor], list[str] | None]


def _only_content(data: bytes) -> bytes | None:
    _, tensors, _ = _decoded(data, len(data))
    return None if len(tensors) != 1 or tensors[0].datatype in _READ else bytes(tensors[0].raw or b"")


_alike: Alike[Predict] = Alike(_only_content)
"""Requests of one input; its bytes are left out."""


def decode_predict(data: bytes, most: int) -> Predict:
    """The model, its inputs, and the outputs that are wanted. most: bytes that the inputs may take.

    Raises InvalidInput, TooLarge, UnknownSignature.
    """
    found = _alike.find(data)
    if found is not None:
        (asked, (only,), wanted), raw = found
        return asked, [Tensor(only.name, only.datatype, only.shape, raw)], wanted
    said = asked, tensors, wanted = _decoded(data, most)
    if len(tensors) == 1 and tensors[0].datatype not in _READ:
        only = tensors[0]
        _alike.learn(data, (asked, [Tensor(only.name, only.datatype, only.shape)], wanted), bytes(only.raw or b""))
    return said


def _decoded(data: bytes, most: int) -> Predict:
    try:
        came = _PredictRequest.FromString(data)
    except DecodeError:
        raise InvalidInput("not a PredictRequest message") from None
    asked = Asked(came.model_spec)
    name = came.model_spec.signature_name
    if name not in ("", rest.SIGNATURE):
        raise UnknownSignature(f"signature_name: there is {rest.SIGNATURE!r}, {name!r} came")
    inputs, wanted = came.inputs, came.output_filter
    if len(inputs) > MAX_TENSORS or len(wanted) > MAX_TENSORS:
        count = max(len(inputs), len(wanted))
        raise TooLarge(f"{count} inputs came, or are wanted as outputs; at most {MAX_TENSORS} are taken")
    tensors = []
    for name in inputs:
        tensor = tensor_of(name, inputs[name], most)
        most -= len(tensor.raw or b"")
        tensors.append(tensor)
    return asked, tensors, list(dict.fromkeys(wanted)) if wanted else None


def tensor_of(name: str, came: Any, most: int) -> Tensor:
    """A TensorProto in raw form, of at most so many bytes. Raises InvalidInput, TooLarge."""
    datatype = _DATATYPES.get(came.dtype)
    if datatype is None:
        raise InvalidInput(f"input {name!r}: dtype {came.dtype} is none of {', '.join(rest.DTYPES.values())}")
    shape = _shape(name, came.tensor_shape)
    count = math.prod(shape)
    wanted = _FIELDS[datatype]
    values, content = getattr(came, wanted), came.tensor_content
    if content:
        if values:
            raise InvalidInput(f"input {name!r} has {wanted} beside tensor_content; give one of them")
        if datatype != "BYTES":
            return Tensor(name, datatype, shape, content)
        values = _texts(name, content, count)
    missing = count - len(values)
    if missing < 0 or (missing and not values):
        other = "".join(f", {f.name} came" for f, _ in came.ListFields() if f.name not in (wanted, *_HEADERS))
        raise InvalidInput(
            f"input {name!r}: shape {list(shape)} wants {count} elements in {wanted}, it has {len(values)}{other}"
        )
    kind = DATATYPES["UINT16" if wanted == "half_val" else datatype]
    if missing:
        last = len(values[-1]) + _REPEATED_TEXT if datatype == "BYTES" else kind.itemsize
        if missing * last > most:
            raise TooLarge(f"input {name!r}: shape {list(shape)} takes more than the {most} bytes that are left")
    raw = pack(values, kind, name)
    if missing:
        raw += (raw[-kind.itemsize :] if kind.itemsize else pack([values[-1]], kind, name)) * missing
    return Tensor(name, datatype, shape, raw)


def _shape(name: str, came: Any) -> Shape:
    if came.unknown_rank:
        raise InvalidInput(f"input {name!r}: a tensor's shape is wanted, one of unknown rank came")
    dims = came.dim
    if len(dims) > MAX_RANK:  # before anything is done with the shape, its text in an error too
        raise TooLarge(f"input {name!r}: {len(dims)} dimensions came, at most {MAX_RANK} are taken")
    shape = tuple([dim.size for dim in dims])
    if shape and min(shape) < 0:
        raise InvalidInput(f"input {name!r}: shape {list(shape)} has a negative dimension")
    return shape


def _texts(name: str, content: bytes, count: int) -> list[bytes]:
    """The elements of a DT_STRING's tensor_content: all lengths as varints, then all bytes."""
    at, lengths = 0, []
    try:
        if count > len(content):
            raise IndexError
        for _ in range(count):
            length = shift = 0
            while content[at] > 127:
                length |= (content[at] & 127) << shift
                shift += 7
                at += 1
                if shift > 28:
                    raise IndexError
            lengths.append(length | content[at] << shift)
            at += 1
    except IndexError:
        raise InvalidInput(f"input {name!r}: tensor_content does not begin with {count} lengths of text") from None
    if at + sum(lengths) != len(content):
        raise InvalidInput(f"input {name!r}: tensor_content says {sum(lengths)} bytes, {len(content) - at} came")
    texts = []
    for length in lengths:
        texts.append(content[at : at + length])
        at += length
    return texts


def encode_predict(result: Result, outputs: Sequence[str] | None) -> bytes:
    """A serialized PredictResponse of these outputs, or of all."""
    ran = result.ran
    names = ran.signature.output_index
    heads: list[bytes] | None = ran.memo.get((_SERVING, result.rows))
    if heads is None:
        heads = ran.memo[_SERVING, result.rows] = [_head(result, i) for i in range(len(ran.arrays))]
    parts: list[bytes] = []
    for i in range(len(heads)) if outputs is None else [names[name] for name in outputs]:
        spec = ran.signature.outputs[i]
        if spec.datatype in _PACKED:
            parts += (heads[i], result.raw(i))
        else:
            values = _values(result, i, spec.datatype)
            parts += (_entry(spec.name, heads[i], len(values)), values)
    parts.append(_answered(ran.model, ran.version))
    return b"".join(parts)


def _head(result: Result, index: int) -> bytes:
    """What comes before the elements, the same for all requests of a batch with as many rows: where their size is
    known, all of it; else the tensor's dtype and shape."""
    spec, shape = result.ran.signature.outputs[index], result.shape(index)
    head = _TensorProto(dtype=_DTYPES[spec.datatype])
    head.tensor_shape.SetInParent()
    for size in shape:
        head.tensor_shape.dim.add(size=size)
    said: bytes = head.SerializeToString()
    number = _PACKED.get(spec.datatype)
    if number is None:
        return said
    nbytes = math.prod(shape) * DATATYPES[spec.datatype].itemsize
    return _entry(spec.name, said + opening(number, nbytes) if nbytes else said, nbytes)


def _entry(name: str, head: bytes, more: int) -> bytes:
    """An output up to its elements, of which `more` bytes follow."""
    key, tensor = field(1, name.encode()), opening(2, len(head) + more)
    return b"%b%b%b%b" % (opening(1, len(key) + len(tensor) + len(head) + more), key, tensor, head)


def _values(result: Result, index: int, datatype: str) -> bytes:
    """The elements in their typed field, serialized."""
    array = result.array(index)
    if datatype == "BYTES":
        texts = [item if isinstance(item, bytes) else item.encode() for item in array.ravel().tolist()]
        return b"".join([field(8, text) for text in texts])
    if datatype in ("FP16", "BF16"):
        array = np.frombuffer(raw_from_array(array), "<u2")
    values = array.ravel().tolist()
    if datatype == "INT64" and len(values) == 1 and 0 <= values[0] < 128:  # what most classifiers answer: one class
        return b"\x52\1%c" % values[0]
    return bytes(_TensorProto(**{_FIELDS[datatype]: values}).SerializeToString())


@functools.lru_cache(maxsize=1024)
def _answered(model: str, version: int) -> bytes:
    return field(2, spec_of(model, version).SerializeToString())


def spec_of(model: str, version: int, signature: str = rest.SIGNATURE) -> Any:
    """A ModelSpec: which version answered."""
    spec = _ModelSpec(name=model, signature_name=signature)
    spec.version.value = version
    return spec


# --- Classify and Regress ------------------------------------------------------------------------------------


def decode_examples(kind: str, data: bytes) -> tuple[Asked, list[dict[str, Any]]]:
    """The model, and the features of each example, with those of the context. kind: of request.

    Raises InvalidInput, TooLarge.
    """
    came = parsed(kind, data)
    asked = Asked(came.model_spec)
    rest.check_signature(came.model_spec.signature_name)
    choice = came.input.WhichOneof("kind")
    listed = getattr(came.input, choice).examples if choice else ()
    if not listed:
        raise InvalidInput("examples: at least one is wanted")
    shared: dict[str, Any] = {}
    if choice == "example_list_with_context":
        context = came.input.example_list_with_context.context
        shared = dict(context.features.feature.items())
        rest.check_size(len(data) + context.ByteSize() * len(listed))
    else:
        rest.check_size(len(data))
    return asked, [{**shared, **dict(example.features.feature.items())} for example in listed]


def example_tensors(examples: Sequence[Mapping[str, Any]], signature: Signature) -> list[Tensor]:
    """The inputs that a version of this signature makes of examples: a row each. Raises InvalidInput."""
    try:
        rows = RowTensors(signature, signature.features, signature.missing or "refuse")
    except SettingsError as error:
        raise InvalidInput(f"{error}; ask it to predict") from None
    made = []
    for at, example in enumerate(examples):
        row = tuple([_feature(name, example.get(name), rows) for name in rows.fields])
        if all(value is None for value in row):
            raise InvalidInput(f"example {at} has none of the features {', '.join(rows.fields)}")
        made.append(row)
    return rows.tensors(made)


_LISTS = {"float": "float_list", "int": "int64_list", "bytes": "bytes_list"}


def _feature(name: str, came: Any, rows: RowTensors) -> Any:
    """What a row holds of a feature; None where there is none."""
    choice = came.WhichOneof("kind") if came is not None else None
    if choice is None:
        return None
    spec, kind = rows.specs[name], rows.types[name]
    wanted = _LISTS.get(DATATYPES[spec.datatype].kind)
    if wanted is None:
        raise InvalidInput(f"feature {name!r}: examples have no {spec.datatype}; ask it to predict")
    if choice != wanted:
        raise InvalidInput(f"feature {name!r}: {wanted} is wanted for {spec.datatype}, {choice} came")
    values = list(getattr(came, choice).value)
    if kind in KINDS.values():
        if len(values) != 1:
            raise InvalidInput(f"feature {name!r}: one value is wanted, {len(values)} came")
        return values[0]
    if len(spec.shape) > 2:
        raise InvalidInput(f"feature {name!r}: {spec} is no list of values; ask it to predict")
    return values


def encode_classify(result: Result) -> bytes:
    """A serialized ClassificationResponse; the labels are the classes' numbers. Raises InvalidInput."""
    response = message(_SERVING + "ClassificationResponse")(model_spec=spec_of(result.ran.model, result.ran.version))
    for row in _floats(result, "classify", 2):
        classes = response.result.classifications.add().classes
        for label, score in enumerate(row):
            classes.add(label=str(label), score=score)
    return bytes(response.SerializeToString())


def encode_regress(result: Result) -> bytes:
    """A serialized RegressionResponse. Raises InvalidInput."""
    response = message(_SERVING + "RegressionResponse")(model_spec=spec_of(result.ran.model, result.ran.version))
    for value in _floats(result, "regress", 1):
        response.result.regressions.add(value=value)
    return bytes(response.SerializeToString())


def _floats(result: Result, verb: str, rank: int) -> Any:
    index = rest.only(result.ran.signature, verb, rank)
    array = result.array(index)
    return (array.ravel() if rank == 1 else array).tolist()


# --- status and metadata -------------------------------------------------------------------------------------


def encode_metadata(model: str, version: int, signature: Signature) -> bytes:
    """A serialized GetModelMetadataResponse: what REST says, in protobuf's JSON mapping."""
    said = rest.metadata(model, version, signature)["metadata"][METADATA]
    response = message(_SERVING + "GetModelMetadataResponse")(model_spec=spec_of(model, version, ""))
    any_ = response.metadata[METADATA]
    any_.type_url = f"type.googleapis.com/{_SERVING}SignatureDefMap"
    any_.value = ParseDict(said, _SignatureDefMap()).SerializeToString()
    return bytes(response.SerializeToString())


def encode_status(entries: Sequence[tuple[int, str, str]]) -> bytes:
    """A serialized GetModelStatusResponse of versions with the repository index's state and reason."""
    response = message(_SERVING + "GetModelStatusResponse")()
    for number, state, reason in entries:
        said = rest.version_status(number, state, reason)
        version = response.model_version_status.add(version=number, state=said["state"])
        version.status.error_code = _CODES[said["status"]["error_code"]]
        version.status.error_message = said["status"]["error_message"]
    return bytes(response.SerializeToString())


_CODES = {"OK": 0, "UNKNOWN": 2}

"""Calls by tensorflow-serving-api's own stubs: a program for the environment `tensorflow-serving`, without tensorflow.

    tensorflow_stubs.py ADDRESS     a JSON array of [service, method, request] in; of responses, or [code, text], out
    tensorflow_stubs.py             every message of the stubs, as {name: {field: [number, type, repeated]}}

Messages are in protobuf's JSON mapping. The stubs import four of TensorFlow's modules, only so that their messages are
registered: they are registered here instead, TensorFlow's tensors and signatures from TensorBoard's copy of them, under
their own names.
"""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict, ParseDict

COPY, OURS = "tensorboard/compat/proto/", "tensorflow/core/"
PLACES = {"tensor": "framework/tensor.proto", "meta_graph": "protobuf/meta_graph.proto"}
WRITTEN = {
    "tensorflow.core.example.example_pb2": {
        "name": "tensorflow/core/example/example.proto",
        "package": "tensorflow",
        "syntax": "proto3",
        "message_type": [
            {"name": name, "field": [{"name": "value", "number": 1, "label": "LABEL_REPEATED", "type": kind}]}
            for name, kind in (("BytesList", "TYPE_BYTES"), ("FloatList", "TYPE_FLOAT"), ("Int64List", "TYPE_INT64"))
        ]
        + [
            {
                "name": "Feature",
                "oneof_decl": [{"name": "kind"}],
                "field": [
                    {"name": name, "number": i + 1, "label": "LABEL_OPTIONAL", "type": "TYPE_MESSAGE",
                     "type_name": f".tensorflow.{kind}", "oneof_index": 0}
                    for i, (name, kind) in enumerate(
                        [("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")]
                    )
                ],
            },
            {
                "name": "Features",
                "field": [{"name": "feature", "number": 1, "label": "LABEL_REPEATED", "type": "TYPE_MESSAGE",
                           "type_name": ".tensorflow.Features.FeatureEntry"}],
                "nested_type": [
                    {
                        "name": "FeatureEntry",
                        "options": {"map_entry": True},
                        "field": [
                            {"name": "key", "number": 1, "label": "LABEL_OPTIONAL", "type": "TYPE_STRING"},
                            {"name": "value", "number": 2, "label": "LABEL_OPTIONAL", "type": "TYPE_MESSAGE",
                             "type_name": ".tensorflow.Feature"},
                        ],
                    }
                ],
            },
            {
                "name": "Example",
                "field": [{"name": "features", "number": 1, "label": "LABEL_OPTIONAL", "type": "TYPE_MESSAGE",
                           "type_name": ".tensorflow.Features"}],
            },
        ],
    },
    "tensorflow.core.protobuf.error_codes_pb2": {
        "name": "tensorflow/core/protobuf/error_codes.proto",
        "package": "tensorflow.error",
        "syntax": "proto3",
        "enum_type": [{"name": "Code", "value": [{"name": "OK", "number": 0}, {"name": "UNKNOWN", "number": 2}]}],
    },
}  # fmt: skip
"""What TensorBoard has no copy of."""


def register() -> None:
    """Make the stubs' imports work."""
    pool = descriptor_pool.Default()
    for name, written in WRITTEN.items():
        pool.AddSerializedFile(ParseDict(written, descriptor_pb2.FileDescriptorProto()).SerializeToString())
        _module(name)
    codes = sys.modules["tensorflow.core.protobuf.error_codes_pb2"]
    codes.xla_dot_tsl_dot_protobuf_dot_error__codes__pb2 = codes  # type: ignore[attr-defined] - where they lie now
    registered: set[str] = set()
    for name, place in PLACES.items():
        _copy(name, registered)
        _module((OURS + place).removesuffix(".proto").replace("/", ".") + "_pb2")


def _copy(name: str, registered: set[str]) -> None:
    if name in registered:
        return
    registered.add(name)
    module = importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")
    file = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    for dependency in file.dependency:
        if dependency.startswith(COPY):
            _copy(dependency[len(COPY) : -len(".proto")], registered)
    file.package = "tensorflow"
    file.name = _place(file.name)
    file.dependency[:] = [_place(dependency) for dependency in file.dependency]
    for message in file.message_type:
        _rename(message)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


def _place(name: str) -> str:
    if not name.startswith(COPY):
        return name
    short = name[len(COPY) : -len(".proto")]
    return OURS + PLACES.get(short, f"elsewhere/{short}.proto")


def _rename(message: Any) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = field.type_name.replace(".tensorboard.", ".tensorflow.")
    for nested in message.nested_type:
        _rename(nested)


def _module(name: str) -> None:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        at = ".".join(parts[:end])
        made = sys.modules.setdefault(at, ModuleType(at))
        made.__path__ = []  # type: ignore[attr-defined]
        if end > 1:
            setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], made)


def services() -> dict[str, Any]:
    """The services that the stubs are for."""
    from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

    modules = model_service_pb2, prediction_service_pb2
    return {name: found for module in modules for name, found in module.DESCRIPTOR.services_by_name.items()}


def messages() -> dict[str, dict[str, list[Any]]]:
    """Every message that the stubs know, with its fields."""
    methods = [method for service in services().values() for method in service.methods]
    waiting = [kind for method in methods for kind in (method.input_type, method.output_type)]
    pool = descriptor_pool.Default()
    waiting.append(pool.FindMessageTypeByName("tensorflow.serving.SignatureDefMap"))
    known: dict[str, dict[str, list[Any]]] = {}
    while waiting:
        message = waiting.pop()
        if message.full_name not in known:
            known[message.full_name] = {f.name: [f.number, f.type, f.is_repeated] for f in message.fields}
            waiting += [f.message_type for f in message.fields if f.message_type is not None]
    return known


def call(address: str, calls: list[tuple[str, str, dict[str, Any]]]) -> list[Any]:
    """What each call was answered."""
    import grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    known, answers = services(), []
    with grpc.insecure_channel(address) as channel:
        stubs = {
            "PredictionService": prediction_service_pb2_grpc.PredictionServiceStub(channel),
            "ModelService": model_service_pb2_grpc.ModelServiceStub(channel),
        }
        for service, method, request in calls:
            found = known[service].methods_by_name[method]
            made = ParseDict(request, message_factory.GetMessageClass(found.input_type)())
            try:
                answer = getattr(stubs[service], method)(made, timeout=60)
            except grpc.RpcError as error:
                answers.append([error.code().name, error.details()])
            else:
                answers.append(MessageToDict(answer, preserving_proto_field_name=True))
    return answers


if __name__ == "__main__":
    try:
        import tensorflow  # noqa: F401 - the real one, where somebody has it
    except ImportError:
        register()
    said: Any = call(sys.argv[1], json.load(sys.stdin)) if len(sys.argv) > 1 else messages()
    json.dump(said, sys.stdout)

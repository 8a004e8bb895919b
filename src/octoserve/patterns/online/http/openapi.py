"""The OpenAPI document of a worker's HTTP port: the doors that are open, and a body to begin with for each model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from octoserve import __version__
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import OctoserveError
from octoserve.core.signature import Signature, TensorSpec

MAX_MODELS = 50
"""With bodies to begin with; of more, the first."""
_MAX_ELEMENTS = 1024
"""Of a body to begin with. An image's would be megabytes, in each of the operations, for whoever asks."""

Document = dict[str, Any]
Example = Callable[[Signature], Any]


def document(doors: Collection[str], models: Sequence[str], signature_of: Callable[[str], Signature]) -> Document:
    """signature_of: raises OctoserveError for a model that cannot answer now."""
    signatures: dict[str, Signature] = {}
    for model in models[:MAX_MODELS]:
        try:
            signature = signature_of(model)
        except OctoserveError:
            continue
        if sum(math.prod(map(abs, spec.shape)) for spec in signature.inputs) <= _MAX_ELEMENTS:
            signatures[model] = signature
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        if operation.door in ("", *doors):
            member = operation.member(list(models), signatures)
            paths.setdefault(operation.path, {})[operation.method] = member
    return {
        "openapi": "3.1.0",
        "info": {"title": "octoserve", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }


def with_keys(made: Document) -> Document:
    """The same, of a service that wants to know who asks."""
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    components = {**made["components"], "securitySchemes": schemes}
    return {**made, "components": components, "security": [{name: []} for name in schemes]}


_ABOUT = (
    "One data plane behind several protocols: the same rows give the same numbers by each of them. The header "
    "X-Request-Timeout says for how many seconds an answer is worth waiting."
)
_ANY: Document = {}
_JSON = "application/json"
_TENSOR: Document = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"enum": [name for name in DATATYPES if name != "BF16"]},
        "data": {"type": "array", "description": "flat, or nested as the shape"},
        "parameters": {"type": ["object", "null"]},
    },
}
_SCHEMAS: dict[str, Document] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "MlflowError": {
        "type": "object",
        "required": ["error_code", "message"],
        "properties": {"error_code": {"type": "string"}, "message": {"type": "string"}},
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {
                "type": ["array", "null"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
            },
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _TENSOR},
        },
    },
    "PredictRequest": {
        "type": "object",
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
        "properties": {
            "signature_name": {"enum": ["", "serving_default", None]},
            "instances": {"type": "array", "description": "rows"},
            "inputs": {"description": "the only input whole, or an object of inputs"},
        },
    },
    "PredictResponse": {
        "type": "object",
        "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
        "properties": {"predictions": {"type": "array"}},
    },
    "ExamplesRequest": {
        "type": "object",
        "required": ["examples"],
        "properties": {
            "examples": {"type": "array", "minItems": 1, "items": {"type": "object"}},
            "context": {"type": "object"},
        },
    },
    "ExamplesResponse": {"type": "object", "required": ["result"], "properties": {"result": {"type": "array"}}},
    "Invocation": {
        "description": "an object with exactly one of the four members, or an array of rows",
        "type": ["object", "array"],
        "properties": {
            "dataframe_split": {
                "type": ["object", "null"],
                "required": ["data"],
                "properties": {"columns": {"type": ["array", "null"]}, "data": {"type": "array"}},
            },
            "dataframe_records": {"type": "array", "items": {"type": "object"}},
            "instances": {"type": "array"},
            "inputs": {},
        },
    },
    "Predictions": {"type": "object", "required": ["predictions"], "properties": {"predictions": _ANY}},
    "Rows": {"description": "a row by feature name, or an array of rows", "type": ["object", "array"]},
    "Object": {"type": "object"},
}


# --- bodies to begin with ------------------------------------------------------------------------------------


def _value(spec: TensorSpec, shape: Sequence[int] | None = None) -> Any:
    """An input of one row."""
    shape = [1 if size < 0 else size for size in (spec.shape if shape is None else shape)]
    if not shape:
        return {"bool": True, "int": 1, "float": 1.0, "bytes": "text"}[DATATYPES[spec.datatype].kind]
    return [_value(spec, shape[1:])] * shape[0]


def _flat(value: Any) -> list[Any]:
    return [item for one in value for item in _flat(one)] if isinstance(value, list) else [value]


def _infer(signature: Signature) -> Any:
    return {
        "inputs": [
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": [1 if size < 0 else size for size in spec.shape],
                "data": _flat(_value(spec)),
            }
            for spec in signature.inputs
        ]
    }


def _row(signature: Signature) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for spec in signature.inputs:
        names = signature.features.get(spec.name)
        value = _value(spec, spec.shape[1:])
        if names:
            row.update(dict.fromkeys(names, _value(spec, ())))
        else:
            row[spec.name] = value[0] if spec.shape[1:] == (1,) else value
    return row


def _instances(signature: Signature) -> Any:
    return {"instances": [_row(signature)]}


def _records(signature: Signature) -> Any:
    return {"dataframe_records": [_row(signature)]}


def _examples(signature: Signature) -> Any:
    return {"examples": [_row(signature)]}


# --- operations ----------------------------------------------------------------------------------------------


class Operation:
    """One path and method. door "": always there. example: a body for a model of this signature."""

    def __init__(
        self,
        method: str,
        path: str,
        door: str,
        summary: str,
        answer: str = "Object",
        *,
        body: str = "",
        example: Example | None = None,
        error: str = "Error",
        content: str = _JSON,
    ) -> None:
        self.method = method
        self.path = path
        self.door = door
        self._summary = summary
        self._answer = answer
        self._body = body
        self._example = example
        self._error = error
        self._content = content

    def member(self, models: list[str], signatures: dict[str, Signature]) -> Document:
        """The operation's object."""
        names = [part[1 : part.index("}")] for part in self.path.split("/") if part.startswith("{")]
        made: Document = {
            "summary": self._summary,
            "tags": [_TAGS[self.door]],
            "operationId": f"{self.method} {self.path}",
            "parameters": [_parameter(name, models) for name in names],
            "responses": {
                "200": {"description": "the answer", "content": {self._content: {"schema": _schema(self._answer)}}},
                "default": {
                    "description": "what was wanted, what came, what to do",
                    "content": {_JSON: {"schema": _schema(self._error)}},
                },
            },
        }
        if self._body:
            content: Document = {"schema": _schema(self._body)}
            if self._example is not None and signatures:
                content["examples"] = {name: {"value": self._example(one)} for name, one in signatures.items()}
            made["requestBody"] = {"required": True, "content": {_JSON: content}}
        return made


def _schema(name: str) -> Document:
    return {"type": "string"} if name == "Text" else {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str, models: list[str]) -> Document:
    schema: Document = {"type": "string", "minLength": 1}
    if name == "model" and models:
        schema = {"enum": models}
    return {"name": name, "in": "path", "required": True, "schema": schema}


_TAGS = {
    "": "Open Inference Protocol V2",
    "v1": "KServe V1, TensorFlow Serving",
    "mlflow": "MLflow, SageMaker",
    "predict": "Plain JSON",
    "openapi": "This document",
}
_V1 = "/v1/models/{model}"
OPERATIONS = (
    Operation("post", "/predict", "predict", "Predict with the default model", "Rows", body="Rows", example=_row),
    Operation(
        "post", "/models/{model}/predict", "predict", "Predict by feature name", "Rows", body="Rows", example=_row
    ),
    Operation("get", "/v2", "", "The server's name, version and extensions"),
    Operation("get", "/v2/health/live", "", "Whether a worker answers"),
    Operation("get", "/v2/health/ready", "", "Whether a worker should get traffic"),
    Operation("get", "/v2/models/{model}", "", "What a model takes and gives"),
    Operation("get", "/v2/models/{model}/ready", "", "Whether a model would answer"),
    Operation("get", "/v2/models/{model}/config", "", "Triton's configuration of a model"),
    Operation("get", "/v2/models/{model}/stats", "", "What a model has done in this worker"),
    Operation(
        "post", "/v2/models/{model}/infer", "", "Infer", "InferResponse", body="InferRequest", example=_infer
    ),
    Operation("get", "/", "v1", "Whether a worker answers"),
    Operation("get", "/v1/models", "v1", "Every model's name"),
    Operation("get", _V1, "v1", "Readiness (KServe) and version status (TensorFlow Serving)"),
    Operation("get", _V1 + "/metadata", "v1", "TensorFlow Serving's metadata"),
    Operation(
        "post", _V1 + ":predict", "v1", "Predict", "PredictResponse", body="PredictRequest", example=_instances
    ),
    Operation(
        "post", _V1 + ":classify", "v1", "Classify", "ExamplesResponse", body="ExamplesRequest", example=_examples
    ),
    Operation(
        "post", _V1 + ":regress", "v1", "Regress", "ExamplesResponse", body="ExamplesRequest", example=_examples
    ),
    Operation("get", "/ping", "mlflow", "Whether a worker should get traffic", "Text", content="text/plain"),
    Operation("get", "/version", "mlflow", "The server's version", "Text", content="text/plain"),
    Operation("get", "/execution-parameters", "mlflow", "What SageMaker's batch transform should do"),
    Operation(
        "post", "/invocations", "mlflow", "Predict with the default model", "Predictions",
        body="Invocation", example=_records, error="MlflowError",
    ),
    Operation(
        "post", "/models/{model}/invoke", "mlflow", "Predict, as a multi-model container does", "Predictions",
        body="Invocation", example=_records, error="MlflowError",
    ),
)  # fmt: skip

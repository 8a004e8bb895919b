"""`tensorflow.serving.PredictionService` and `ModelService`, with TensorFlow Serving's status codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octoserve.codecs import tensorflow_serving_grpc as codec
from octoserve.core.errors import InvalidInput, NotFound, OctoserveError, Unsupported
from octoserve.core.results import Result
from octoserve.core.signature import Signature
from octoserve.core.tensors import Tensor
from octoserve.patterns.online.grpc.door import UnaryCall, fail
from octoserve.patterns.online.grpc.transport import GrpcCall, UnaryHandler
from octoserve.patterns.online.service import Service
from octoserve.security.caller import INFER, SEE

DOOR = "tensorflow"
_FAILED_PRECONDITION = 9


class Predict(UnaryCall):
    """One Predict."""

    door = DOOR

    def encode(self) -> bytes:
        """A PredictResponse."""
        assert self.result is not None
        return codec.encode_predict(self.result, self.outputs)


class Examples(UnaryCall):
    """One Classify, or Regress. made_for: by which signature the examples have been read."""

    door = DOOR

    def __init__(
        self,
        grpc: GrpcCall,
        asked: codec.Asked,
        examples: Sequence[Mapping[str, Any]],
        signature: Signature,
        encode: Callable[[Result], bytes],
    ) -> None:
        """Raises InvalidInput."""
        super().__init__(grpc, asked.model, asked.version, codec.example_tensors(examples, signature))
        self.made_for = signature
        self._examples = examples
        self._encode = encode

    def remake(self, signature: Signature) -> None:
        """See `Call.remake`."""
        self.inputs: Sequence[Tensor] = codec.example_tensors(self._examples, signature)

    def encode(self) -> bytes:
        """A response of either."""
        assert self.result is not None
        return self._encode(self.result)


class TensorflowDoor:
    """See the module."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._dataplane = service.dataplane

    def unary(self) -> dict[str, UnaryHandler]:
        """Path -> handler."""
        prediction, model = "/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/"
        return {
            prediction + "Predict": self._predict,
            prediction + "Classify": self._by_examples("ClassificationRequest", codec.encode_classify),
            prediction + "Regress": self._by_examples("RegressionRequest", codec.encode_regress),
            prediction + "GetModelMetadata": _answering(self._metadata),
            prediction + "MultiInference": _answering(_no_multi_inference),
            model + "GetModelStatus": _answering(self._status),
            model + "HandleReloadConfigRequest": _answering(_no_reload),
        }

    def _predict(self, call: GrpcCall, data: bytes) -> None:
        try:
            asked, tensors, outputs = codec.decode_predict(data, self._service.max_body)
            self._check(call, INFER, asked)
        except OctoserveError as error:
            self._refuse(call, error)
            return
        predict = Predict(call, asked.model, asked.version, tensors)
        if outputs is not None:
            predict.outputs = outputs
        self._submit(predict)

    def _by_examples(self, kind: str, encode: Callable[[Result], bytes]) -> UnaryHandler:
        def handle(call: GrpcCall, data: bytes) -> None:
            try:
                asked, examples = codec.decode_examples(kind, data)
                self._check(call, INFER, asked)
                signature = self._dataplane.bind(asked.model, asked.version).handle.signature
                made = Examples(call, asked, examples, signature, encode)
            except OctoserveError as error:
                self._refuse(call, error)
                return
            self._submit(made)

        return handle

    def _submit(self, made: UnaryCall) -> None:
        if made.grpc.deadline is not None:
            made.deadline = made.grpc.deadline
        made.grpc.on_cancel = made.cancel
        self._dataplane.submit(made)

    def _refuse(self, call: GrpcCall, error: OctoserveError) -> None:
        self._dataplane.refused("", DOOR, error)
        _fail(call, error)

    def _check(self, call: GrpcCall, right: str, asked: codec.Asked) -> None:
        """Whether the caller may. A label that a model has not is a bad argument, an unknown model is not found."""
        if call.caller is not None:
            call.caller.check(right, asked.model)
        if not asked.labelled:
            return
        try:
            self._dataplane.bind(asked.model, asked.version)
        except NotFound as error:
            if asked.model in self._service.models():
                raise InvalidInput(str(error)) from None
            raise

    def _metadata(self, call: GrpcCall, data: bytes) -> bytes:
        came = codec.parsed("GetModelMetadataRequest", data)
        asked = codec.Asked(came.model_spec)
        if list(came.metadata_field) != [codec.METADATA]:
            raise InvalidInput(f"metadata_field: [{codec.METADATA!r}] is wanted, {list(came.metadata_field)[:8]} came")
        self._check(call, SEE, asked)
        handle = self._dataplane.bind(asked.model, asked.version).handle
        return codec.encode_metadata(asked.model, handle.ref.version, handle.signature)

    def _status(self, call: GrpcCall, data: bytes) -> bytes:
        asked = codec.Asked(codec.parsed("GetModelStatusRequest", data).model_spec)
        self._check(call, SEE, asked)
        entries = self._service.versions(asked.model, asked.version)
        if not entries:
            which = f"no version {asked.version}" if asked.model in self._service.models() else "no versions"
            raise NotFound(f"{which} of model {asked.model!r} could be found")
        return codec.encode_status([(entry.version, entry.state, entry.reason) for entry in entries])


def _no_multi_inference(_: GrpcCall, __: bytes) -> bytes:
    raise Unsupported("MultiInference is not offered: a model has one signature here; ask Classify, Regress or Predict")


def _no_reload(_: GrpcCall, __: bytes) -> bytes:
    raise Unsupported(
        "HandleReloadConfigRequest is not offered: octoserve.yaml says what is served, and new versions are found in "
        "the repository; POST /v2/repository/models/NAME/load and /unload change it by hand"
    )


def _answering(answer: Callable[[GrpcCall, bytes], bytes]) -> UnaryHandler:
    """A method whose answer is at hand."""

    def handle(call: GrpcCall, data: bytes) -> None:
        try:
            reply = answer(call, data)
        except OctoserveError as error:
            _fail(call, error)
        else:
            call.reply(reply)

    return handle


def _fail(call: GrpcCall, error: OctoserveError) -> None:
    if isinstance(error, codec.UnknownSignature):
        call.finish(_FAILED_PRECONDITION, str(error))
    else:
        fail(call, error)

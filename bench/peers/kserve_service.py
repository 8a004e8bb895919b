"""KServe's Python SDK serving a classifier, as its documentation shows for a custom model.

    python kserve_service.py MODEL.onnx NAME HTTP_PORT GRPC_PORT

One worker, one ONNX Runtime thread, access and latency logs off. The SDK has no option for the address
and listens on all of them.
"""

import logging
import sys

import numpy as np
import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid


class Classifier(Model):
    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self._path = path
        self.load()

    def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
        self._feature_name = self._session.get_inputs()[0].name
        self.ready = True
        return self.ready

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        features = np.asarray(payload.inputs[0].as_numpy(), dtype=np.float32)
        label, probabilities = self._session.run(None, {self._feature_name: features})
        outputs = []
        for name, datatype, array in (("label", "INT64", label), ("probabilities", "FP32", probabilities)):
            output = InferOutput(name=name, shape=list(array.shape), datatype=datatype)
            output.set_data_from_numpy(array, binary_data=payload.use_binary_outputs)
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
        )


if __name__ == "__main__":
    path, model_name, http_port, grpc_port = sys.argv[1:]
    server = ModelServer(
        http_port=int(http_port),
        grpc_port=int(grpc_port),
        workers=1,
        enable_latency_logging=False,
        event_loop="uvloop",
    )
    for logger in ("kserve", "kserve.trace", "uvicorn.access"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    server.start([Classifier(model_name, path)])

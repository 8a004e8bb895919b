"""The service a team would write by hand: FastAPI, a pydantic body, ONNX Runtime on the event loop.

    python fastapi_service.py MODEL.onnx PORT

uvicorn with uvloop and httptools, one process, no access log, one ONNX Runtime thread. It takes the body
of a V2 inference request with one FP32 input and answers with the classifier's label and probabilities.
The response is declared as a pydantic model, which FastAPI serialises in pydantic's compiled core; a plain
dict is no faster.
"""

import sys
from typing import Any

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class InputTensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferRequest(BaseModel):
    id: str | None = None
    inputs: list[InputTensor]


class OutputTensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferResponse(BaseModel):
    model_name: str
    outputs: list[OutputTensor]


def make_app(model: str) -> FastAPI:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feature_name = session.get_inputs()[0].name
    app = FastAPI()

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v2/models/{model_name}/infer")
    async def infer(model_name: str, request: InferRequest) -> InferResponse:
        tensor = request.inputs[0]
        features = np.array(tensor.data, dtype=np.float32).reshape(tensor.shape)
        label, probabilities = session.run(None, {feature_name: features})
        return InferResponse(
            model_name=model_name,
            outputs=[
                OutputTensor(name="label", shape=list(label.shape), datatype="INT64", data=label.tolist()),
                OutputTensor(
                    name="probabilities",
                    shape=list(probabilities.shape),
                    datatype="FP32",
                    data=probabilities.ravel().tolist(),
                ),
            ],
        )

    return app


if __name__ == "__main__":
    uvicorn.run(
        make_app(sys.argv[1]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )

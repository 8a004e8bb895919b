"""The doors beside the Open Inference Protocol's own, by the names that settings and metrics know them by."""

from __future__ import annotations

from typing import Literal, get_args

Door = Literal["v1", "mlflow", "predict", "openapi", "tensorflow"]
"""v1: KServe V1 and TensorFlow Serving's REST; mlflow: its scoring server, SageMaker's contract; predict: plain JSON
rows; openapi: the document of all of them, and a page; tensorflow: TensorFlow Serving's gRPC."""
DOORS: tuple[Door, ...] = get_args(Door)
"""All of them."""

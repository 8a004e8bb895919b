"""Asks a gRPC server with a real client and prints the size of its framed answer. Tools environment.

    python verify_grpc.py HOST:PORT EXPECTED.json ROWS

Sends the first ROWS rows of `fraud` (1 for a server of a constant), one a request, and ends with an error
when an answer is not what bare ONNX Runtime says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton


def main(address: str, expected_file: str, rows: int) -> int:
    expected = json.loads(Path(expected_file).read_text())["fraud"]
    client = triton.InferenceServerClient(address)
    sizes: list[int] = []
    for index in range(rows):
        features = np.array([expected["rows"][index]], dtype=np.float32)
        tensor = triton.InferInput("features", list(features.shape), "FP32")
        tensor.set_data_from_numpy(features)
        result = client.infer("fraud", [tensor], client_timeout=10)
        label, probabilities = result.as_numpy("label"), result.as_numpy("probabilities")
        np.testing.assert_array_equal(label, expected["label"][index : index + 1])
        np.testing.assert_allclose(probabilities, expected["probabilities"][index : index + 1], atol=1e-5)
        sizes.append(5 + result.get_response().ByteSize())
    return min(sizes)


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))

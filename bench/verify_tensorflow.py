"""Asks PredictionService, writes a framed request, and prints the size of its framed answer. Tools environment.

    python verify_tensorflow.py HOST:PORT EXPECTED.json REQUEST

The messages are put together by hand: TensorFlow's own classes would come with a gigabyte of it.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import grpc
import numpy as np


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    length = len(value)
    size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    return bytes([number << 3 | 2]) + size + value


def request(row: list[float]) -> bytes:
    """A PredictRequest: float_val, as TensorFlow's make_tensor_proto writes a list."""
    dims = b"".join(field(2, bytes([8, size])) for size in (1, len(row)))
    tensor = b"\x08\x01" + field(2, dims) + field(5, struct.pack(f"<{len(row)}f", *row))
    return field(1, field(1, b"fraud")) + field(2, field(1, b"features") + field(2, tensor))


def main(address: str, expected_file: str, out: str) -> int:
    expected = json.loads(Path(expected_file).read_text())["fraud"]
    call = grpc.insecure_channel(address).unary_unary("/tensorflow.serving.PredictionService/Predict")
    sizes = []
    for row, probabilities in zip(expected["rows"], expected["probabilities"], strict=True):
        answer = call(request(row), timeout=10)
        at = answer.index(b"probabilities")
        begins = answer.index(field(5, b"\0" * 8)[:2], at) + 2
        np.testing.assert_allclose(np.frombuffer(answer[begins : begins + 8], "<f4"), probabilities, atol=1e-5)
        sizes.append(5 + len(answer))
    message = request(expected["rows"][0])
    Path(out).write_bytes(struct.pack(">BI", 0, len(message)) + message)
    return sizes[0]


if __name__ == "__main__":
    print(main(*sys.argv[1:]))

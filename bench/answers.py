"""Asks a server, before it is timed, whether its answers are right: those of bare ONNX Runtime."""

from __future__ import annotations

import http.client
import json
import subprocess
from pathlib import Path

from load import Target

_TOLERANCE = 1e-5  # a probability, as FP32 in JSON


class WrongAnswer(RuntimeError):
    """What a server said, and to what."""


def check_rows(target: Target, expected_file: Path, model: str) -> None:
    """Sends every expected row of `model` as a V2 JSON request.

    Raises:
        WrongAnswer: an answer that is not JSON, not complete, or not near enough.
    """
    expected = json.loads(expected_file.read_text())[model]
    for row, label, probabilities in zip(*expected.values(), strict=True):
        tensor = {"name": "features", "shape": [1, len(row)], "datatype": "FP32", "data": row}
        answer = _ask(target, json.dumps({"inputs": [tensor]}).encode())
        if not _is_right(answer, label, probabilities):
            raise WrongAnswer(f"{target.url} answered {answer[:300]!r}, not {label} with {probabilities}")


def check_constant(target: Target, answer: bytes) -> None:
    """Sends the target's body and wants exactly `answer`.

    Raises:
        WrongAnswer: anything else came.
    """
    got = _ask(target, target.body.read_bytes() if target.body else None)
    if got != answer:
        raise WrongAnswer(f"{target.url} answered {got[:300]!r}")


def check_grpc(tools: Path, address: str, expected_file: Path, rows: int) -> int:
    """Sends the first `rows` rows of fraud with a real client; gives the size of a framed answer.

    Raises:
        WrongAnswer: the client or the comparison failed.
    """
    script = Path(__file__).with_name("verify_grpc.py")
    command = [str(tools), str(script), address, str(expected_file), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise WrongAnswer(f"gRPC at {address}: {done.stderr.strip()}")
    return int(done.stdout)


def _is_right(answer: bytes, label: int, probabilities: list[float]) -> bool:
    try:
        outputs = {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}
        pairs = list(zip(outputs["probabilities"], probabilities, strict=True))
        return outputs["label"] == [label] and all(abs(got - want) < _TOLERANCE for got, want in pairs)
    except (ValueError, KeyError, TypeError):
        return False


def _ask(target: Target, body: bytes | None) -> bytes:
    host, _, path = target.url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request("POST" if body else "GET", f"/{path}", body, {"Content-Type": "application/json"})
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        return repr(error).encode()
    finally:
        connection.close()

"""The demo's questions: real rows and files, asked over HTTP with nothing but the standard library, and once over gRPC.

Each answer is compared with what ONNX Runtime says when it runs the same file directly.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_service import MODELS, ROOT, DemoError, Service, artifact
from numpy.typing import NDArray

sys.path.insert(0, str(ROOT / "examples" / "models"))
import build
import content_type

Array = NDArray[Any]
FILES = (
    "README.md",
    "Makefile",
    "pyproject.toml",
    "src/octoserve/dataplane/batcher.py",
    "src/octoserve/codecs/protos/open_inference.proto",
    "docs/images/eight-patterns.svg",
)
_DTYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_, "BYTES": np.object_}


class Answer:
    """What came back for one request: outputs by name, and how long it took here, connecting included."""

    def __init__(self, version: str, outputs: dict[str, Array], seconds: float) -> None:
        self.version = version
        self.outputs = outputs
        self.seconds = seconds


def tensor(name: str, values: Array, datatype: str) -> dict[str, Any]:
    """One input as the protocol writes it."""
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist()}


def ask(service: Service, model: str, *inputs: dict[str, Any]) -> Answer:
    """POST one inference request. Raises DemoError for an error answer."""
    try:
        return _post(service, model, inputs)
    except urllib.error.HTTPError as error:
        raise DemoError(f"{model} answers {error.code}: {error.read().decode(errors='replace')}") from None


def _post(service: Service, model: str, inputs: Sequence[dict[str, Any]]) -> Answer:
    request = urllib.request.Request(
        f"{service.http}/v2/models/{model}/infer",
        data=json.dumps({"inputs": inputs}).encode(),
        headers={"Content-Type": "application/json"},
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=20) as response:
        body = response.read()
    seconds = time.perf_counter() - began
    answer = json.loads(body)
    outputs = {
        output["name"]: np.array(output["data"], dtype=_DTYPES[output["datatype"]]).reshape(output["shape"])
        for output in answer["outputs"]
    }
    return Answer(answer["model_version"], outputs, seconds)


def ask_grpc(service: Service, model: str, name: str, values: Array, datatype: str) -> Answer:
    """The same over gRPC, with NVIDIA's client."""
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(service.grpc) as client:
        wanted = triton.InferInput(name, list(values.shape), datatype)
        wanted.set_data_from_numpy(values)
        began = time.perf_counter()
        result = client.infer(model, [wanted], client_timeout=20)
        seconds = time.perf_counter() - began
    answer = result.get_response()
    return Answer(answer.model_version, {o.name: result.as_numpy(o.name) for o in answer.outputs}, seconds)


def refusal(service: Service, model: str, *inputs: dict[str, Any]) -> tuple[int, str]:
    """Status and error text of a question that should be refused."""
    try:
        _post(service, model, inputs)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]
    return 200, ""


def directly(model: str, inputs: dict[str, Array], version: int = 1, repository: Path = MODELS) -> dict[str, Array]:
    """The same question to ONNX Runtime itself, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(artifact(model, version, repository)), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def same(answer: Answer, expected: dict[str, Array]) -> bool:
    """Whether every output is what ONNX Runtime gives: words and whole numbers exactly, floats to the last bits."""
    if set(answer.outputs) != set(expected):
        return False
    for name, wanted in expected.items():
        came = answer.outputs[name]
        if wanted.dtype.kind == "f":
            if not np.allclose(came, wanted, rtol=1e-5, atol=1e-6):
                return False
        elif came.astype(wanted.dtype).tolist() != wanted.tolist():
            return False
    return True


# --- what is asked --------------------------------------------------------------------------------------


def fraud_question() -> tuple[Array, Array]:
    """Four rows that the model finds easy and hard, and their true labels."""
    rows, labels = build.fraud_rows()
    chosen = [0, 19, 73, 297]
    return rows[chosen], labels[chosen]


def wine_question() -> tuple[Array, Array]:
    """A bottle of each cultivar."""
    rows, labels = build.wine_rows()
    chosen = [10, 80, 150]
    return rows[chosen], labels[chosen]


def penguin_question() -> tuple[list[dict[str, Any]], list[str]]:
    """A bird of each species."""
    birds, species = build.penguin_rows()
    chosen = [species.index(name) for name in dict.fromkeys(species)]
    return [birds[i] for i in chosen], [species[i] for i in chosen]


def penguin_inputs(birds: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Two columns of words and four of numbers: as the protocol writes them, and as arrays."""
    arrays: dict[str, Array] = {}
    for column in ("island", "sex"):
        arrays[column] = np.array([[bird[column]] for bird in birds], dtype=object)
    for column in build.PENGUIN_MEASUREMENTS:
        arrays[column] = np.array([[bird[column]] for bird in birds], dtype=np.float32)
    tensors = [tensor(k, v, "BYTES" if v.dtype == object else "FP32") for k, v in arrays.items()]
    return tensors, arrays


def file_question() -> tuple[list[str], Array]:
    """Files of this checkout and the Python that runs this: their names and the model's input."""
    paths = [ROOT / name for name in FILES if (ROOT / name).exists()]
    paths += [artifact("fraud"), Path(sys.executable).resolve()]
    names = [str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path) for path in paths]
    return names, np.concatenate([content_type.tokens(_ends(path)) for path in paths])


def _ends(path: Path) -> bytes:
    """A file's first and last 4,096 bytes, which is all that the model looks at."""
    content = path.read_bytes()
    block = content_type.BLOCK
    return content if len(content) <= 2 * block else content[:block] + content[-block:]


QUERY = "serving trained models"
PASSAGES = ("a server for models that were trained", "penguins that nobody trained")


def passage_question() -> tuple[list[list[str]], dict[str, Array]]:
    """A query and two passages of different length: their words, and the model's three inputs."""
    words = [text.split() for text in PASSAGES]
    longest = max(map(len, words))
    query = np.stack([_embed(word) for word in QUERY.split()])
    passage = np.zeros((len(words), longest, 16), dtype=np.float32)
    mask = np.zeros((len(words), longest), dtype=np.bool_)
    for i, text in enumerate(words):
        passage[i, : len(text)] = [_embed(word) for word in text]
        mask[i, : len(text)] = True
    return words, {"query": np.stack([query] * len(words)), "passage": passage, "passage_mask": mask}


def _embed(word: str) -> Array:
    """Sixteen numbers for a word, from its letter triples: enough to find its relatives."""
    vector = np.zeros(16, dtype=np.float32)
    padded = f"^{word}$"
    for i in range(len(padded) - 2):
        hashed = zlib.crc32(padded[i : i + 3].encode())
        vector[hashed % 16] += 1 if hashed & 16 else -1
    length = float(np.linalg.norm(vector))
    return vector / (length or 1.0)

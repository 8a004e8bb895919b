"""What stands before and after an artifact: joined by names, and refused by name where it does not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import octoserve
from octoserve import app
from octoserve.core.errors import BrokenVersion, InvalidInput
from octoserve.lifecycle.loading import load
from octoserve.repository.digest import folder_digest
from octoserve.repository.layout import Refused
from octoserve.runtimes.protocol import LoadedModel
from support.formats import percent
from support.graphs import doubling_graph, versioned_model

X = np.array([[1, 2], [3, 4]], np.float32)
TEXTS = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
READ = """
import numpy as np
from octoserve.core.errors import InvalidInput

class Model:
    def predict(self, inputs):
        try:
            return {"x": np.array([t.decode().split(",") for t in inputs["text"]], np.float32)}
        except ValueError:
            raise InvalidInput("two numbers are wanted") from None
"""
SUM = """
class Model:
    def predict(self, inputs):
        return {"total": inputs["plus"].sum(axis=1), "of": [t.decode() for t in inputs["text"]]}
"""
TOTAL = {
    "file": "sum.py",
    "inputs": [{"name": "plus", "datatype": "FP32", "shape": [-1, 2]}, *TEXTS],
    "outputs": [{"name": "total", "datatype": "FP32"}, {"name": "of", "datatype": "BYTES"}],
}


def version(folder: Path, said: dict[str, Any], **files: str | bytes) -> Path:
    """x FP32[-1, 2] -> plus = x + 1, minus = x - 1, and what stands around it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(versioned_model(1))
    for name, content in {"read.py": READ, "sum.py": SUM, **files}.items():
        (folder / name.replace("__", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "model.yaml").write_text(yaml.safe_dump(said))
    return folder


def loaded(folder: Path, trust: tuple[str, ...] = ("code",)) -> LoadedModel:
    return load(app.runtimes(trust), "onnx", folder)


def texts(*rows: bytes) -> Any:
    return np.array([*rows, None], dtype=object)[:-1]


def test_the_whole_takes_what_the_first_takes_and_gives_what_the_last_gives(tmp_path: Path) -> None:
    whole = loaded(version(tmp_path / "1", {"before": {"file": "read.py", "inputs": TEXTS}, "after": TOTAL}))
    assert [str(spec) for spec in whole.signature.inputs] == ["text BYTES[-1]"]
    assert [str(spec) for spec in whole.signature.outputs] == ["total FP32[-1]", "of BYTES[-1]"]
    assert whole.signature.batchable
    assert whole.platform == "onnx_onnxruntime"
    total, of = whole.run([texts(b"1,2", b"3,4")])
    assert total.tolist() == [5.0, 9.0]
    assert of.tolist() == [b"1,2", b"3,4"], "an input of the whole, by its name"
    with pytest.raises(InvalidInput, match=r"^two numbers are wanted"):
        whole.run([texts(b"no")])


def test_a_graph_says_its_own(tmp_path: Path) -> None:
    folder = version(tmp_path / "1", {"before": "twice.onnx"}, twice__onnx=doubling_graph("raw", "x"))
    whole = loaded(folder, trust=())
    assert [str(spec) for spec in whole.signature.inputs] == ["raw FP32[-1, 2]"]
    assert whole.run([X])[0].tolist() == (X * 2 + 1).tolist()


def test_a_name_may_come_again_and_means_the_last(tmp_path: Path) -> None:
    x = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    twice = "class Model:\n    def predict(self, inputs):\n        return {'x': inputs['x'] * 2}\n"
    whole = loaded(version(tmp_path / "1", {"before": {"file": "twice.py", "inputs": x}}, twice__py=twice))
    assert whole.run([X])[0].tolist() == (X * 2 + 1).tolist()


def test_labels_and_the_other_fields_are_the_artifacts(tmp_path: Path) -> None:
    count = {
        "file": "count.py",
        "outputs": [{"name": "positive", "datatype": "INT64"}],
        "inputs": [{"name": "label", "datatype": "BYTES"}],
    }
    folder = version(
        tmp_path / "1",
        {"labels": {"names": ["left", "right"], "of": "plus"}, "after": count},
        count__py="class Model:\n    def predict(self, inputs):\n        return (inputs['label'] == b'right') * 1\n",
    )
    assert loaded(folder).run([np.array([[1, 2], [4, 3]], np.float32)])[0].tolist() == [1, 0]


def test_several_before_and_after_in_order(tmp_path: Path) -> None:
    folder = version(
        tmp_path / "1",
        {"before": ["a.onnx", "b.onnx"], "after": ["c.onnx", "d.onnx"]},
        a__onnx=doubling_graph("first", "second"), b__onnx=doubling_graph("second", "x"),
        c__onnx=doubling_graph("plus", "third"), d__onnx=doubling_graph("third", "fourth"),
    )  # fmt: skip
    whole = loaded(folder, trust=())
    assert [str(spec) for spec in (*whole.signature.inputs, *whole.signature.outputs)] == [
        "first FP32[-1, 2]", "fourth FP32[-1, 2]",
    ]  # fmt: skip
    assert whole.run([X])[0].tolist() == ((X * 4 + 1) * 4).tolist()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"before": "gone.onnx"}, "model.yaml: before: gone.onnx: there is no such file"),
        ({"before": "../read.py"}, "before: the name of a file in this folder that ends in .py or .onnx is wanted"),
        ({"before": "model.pkl"}, "ends in .py or .onnx is wanted, 'model.pkl' came"),
        ({"after": {"file": "sum.py", "input": []}}, "unknown field 'input'; did you mean 'inputs'"),
        ({"before": "read.py"}, "model.yaml: before: read.py: inputs: wanted, since read.py does not say them"),
        ({"after": "percent.onnx"}, "percent.onnx takes 'score', and nothing before it gives that; there are minus,"),
        (
            {"before": {"file": "read.py", "inputs": TEXTS, "outputs": TEXTS}},
            "the model takes 'x', and nothing before it gives that; there are text",
        ),
        (
            {
                "before": {
                    "file": "read.py",
                    "inputs": TEXTS,
                    "outputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
                }
            },
            "part the model takes x FP32[-1, 2], and x FP64[-1, 2] is what it would get",
        ),
        (
            {"before": {"file": "twice.onnx", "inputs": TEXTS}},
            "before: twice.onnx: inputs: text BYTES[-1] is declared, the file has x FP32[-1, 2]",
        ),
        ({"before": "twice.onnx"}, "twice.onnx gives z, and nothing after it takes that; wanted there: x"),
        ({"before": {"file": "broken.py", "inputs": TEXTS}}, "before: broken.py: broken.py: SyntaxError"),
    ],
)
def test_what_does_not_fit_says_which_step_and_why(tmp_path: Path, said: dict[str, Any], reason: str) -> None:
    folder = version(
        tmp_path / "1", said,
        percent__onnx=percent("score"), twice__onnx=doubling_graph("x", "z"), broken__py="class Model",
    )  # fmt: skip
    with pytest.raises((BrokenVersion, Refused)) as caught:
        loaded(folder)
    assert reason in str(caught.value)


def test_a_step_of_code_needs_trust_and_a_graph_does_not(tmp_path: Path) -> None:
    folder = version(tmp_path / "1", {"before": {"file": "read.py", "inputs": TEXTS}})
    with pytest.raises(BrokenVersion, match=r"read\.py is code, and code of this repository is not trusted"):
        loaded(folder, trust=())


def test_the_digest_covers_them(tmp_path: Path) -> None:
    folder = version(tmp_path / "1", {"before": {"file": "read.py", "inputs": TEXTS}})
    before = folder_digest(folder)
    (folder / "read.py").write_text(READ.replace("two numbers", "2 numbers"))
    assert folder_digest(folder) != before


def test_load_may_be_told_whom_to_trust_and_leaves_nothing_beside_the_files(tmp_path: Path) -> None:
    folder = version(tmp_path / "m" / "1", {"before": {"file": "read.py", "inputs": TEXTS}})
    names = sorted(path.name for path in folder.iterdir())
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = False
    try:
        with pytest.raises(BrokenVersion, match="not trusted"):
            octoserve.load(tmp_path / "m", trust=[])
        with octoserve.load(tmp_path / "m", trust=["code"]) as endpoint:
            assert endpoint.predict({"text": ["1,2"]})["plus"].tolist() == [[2.0, 3.0]]
        assert sys.dont_write_bytecode is False, "it is the process's own affair"
    finally:
        sys.dont_write_bytecode = written
    assert sorted(path.name for path in folder.iterdir()) == names

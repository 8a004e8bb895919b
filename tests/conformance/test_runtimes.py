"""What every runtime owes (`runtimes.protocol`), whatever its format.

`RuntimeConformance` is the suite; a runtime's class beneath it says how its versions are made. What only one
format has (ONNX: strings must be UTF-8, BF16, dimension names) is tested behind it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve import app
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import BrokenVersion, Internal, InvalidInput
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, datatype_of
from octoserve.lifecycle.loading import load as load_version
from octoserve.lifecycle.probe import settle_batching
from octoserve.runtimes.ensemble import EnsembleRuntime
from octoserve.runtimes.lightgbm import LightGBMRuntime
from octoserve.runtimes.onnx import OnnxRuntime
from octoserve.runtimes.protocol import LoadedModel, Runtime, RuntimeSettings
from octoserve.runtimes.python import PythonRuntime
from octoserve.runtimes.remote import RemoteRuntime
from octoserve.runtimes.sklearn import SklearnRuntime
from octoserve.runtimes.xgboost import XGBoostRuntime
from support.formats import FORMATS, Made
from support.models import FakeModel, FakeRuntime
from support.remote import Doubling
from support.tensors import tensors


class RuntimeConformance:
    """`folder` holds a version, `made` what it takes and should give."""

    runtime: Runtime
    artifact: str
    """The file that `folder` holds, "" for none."""

    def made(self, folder: Path) -> Made:
        """Fill `folder` with a version."""
        raise NotImplementedError

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "m" / "1"
        folder.mkdir(parents=True)
        return folder

    def load(self, folder: Path, **settings: Any) -> LoadedModel:
        """As every pattern does."""
        return load_version({self.runtime.name: self.runtime}, self.runtime.name, folder, **settings)

    def test_names(self) -> None:
        assert self.runtime.name == self.runtime.name.lower()
        assert all("." in artifact for artifact in self.runtime.artifacts)
        assert not self.artifact or self.artifact in self.runtime.artifacts
        assert isinstance(self.runtime.distributions, tuple)

    def test_run_gives_every_output_in_order_and_as_the_library_does(self, folder: Path) -> None:
        inputs, expected = self.made(folder)
        loaded = self.load(folder)
        assert loaded.platform
        assert [spec.name for spec in loaded.signature.inputs] == list(inputs)
        outputs = loaded.run(list(inputs.values()))
        assert isinstance(outputs, list)
        for spec, array in zip(loaded.signature.outputs, outputs, strict=True):
            if spec.name in expected:
                same(array, expected[spec.name])
            assert spec.datatype in (datatype_of(array), "BYTES")
            assert len(spec.shape) == array.ndim
        loaded.close()

    def test_run_does_not_change_or_keep_its_inputs(self, folder: Path) -> None:
        inputs, _ = self.made(folder)
        loaded = self.load(folder)
        arrays = list(inputs.values())
        kept = [array.copy() for array in arrays]
        for array in arrays:
            array.flags.writeable = False  # as it comes off the wire
        given = loaded.run(arrays)
        first = [output.copy() for output in given]
        loaded.run([array[:1] * 2 if array.dtype != object else array[:1] for array in kept])
        for output, before in zip(given, first, strict=True):
            same(output, before)
        for array, before in zip(arrays, kept, strict=True):
            same(array, before)

    def test_run_in_another_thread(self, folder: Path) -> None:
        inputs, _ = self.made(folder)
        loaded = self.load(folder)
        got: list[Array] = []
        thread = threading.Thread(target=lambda: got.extend(loaded.run(list(inputs.values()))))
        thread.start()
        thread.join(60)
        for there, here in zip(got, loaded.run(list(inputs.values())), strict=True):
            same(there, here)

    def test_two_models_are_two(self, folder: Path) -> None:
        inputs, _ = self.made(folder)
        one, two = self.load(folder), self.load(folder)
        wanted = one.run(list(inputs.values()))
        one.close()
        for here, there in zip(two.run(list(inputs.values())), wanted, strict=True):
            same(here, there)
        two.close()

    def test_batching_may_be_forbidden(self, folder: Path) -> None:
        inputs, _ = self.made(folder)
        loaded = self.load(folder, batching=False)
        assert not loaded.signature.batchable
        assert loaded.run(list(inputs.values()))

    def test_a_missing_artifact(self, folder: Path) -> None:
        with pytest.raises(BrokenVersion, match=self.artifact):
            self.runtime.load(folder, RuntimeSettings())
        with pytest.raises(BrokenVersion):
            self.runtime.load(folder / "nowhere", RuntimeSettings())

    def test_an_artifact_that_is_a_folder(self, folder: Path) -> None:
        (folder / (self.artifact or "model.none")).mkdir()
        with pytest.raises(BrokenVersion):
            self.runtime.load(folder, RuntimeSettings())

    @pytest.mark.parametrize("data", [b"", b"nothing that it knows", bytes(1000)], ids=["empty", "text", "zeros"])
    def test_a_broken_file_is_a_broken_version_with_a_reason(self, folder: Path, data: bytes) -> None:
        if not self.artifact:
            return
        (folder / self.artifact).write_bytes(data)
        with pytest.raises(BrokenVersion) as caught:
            self.runtime.load(folder, RuntimeSettings(inputs=(X,), outputs=(X,)))
        text = str(caught.value)
        assert text.startswith(f"{self.artifact}: ")
        assert len(text) > len(self.artifact) + 7
        assert "\n" not in text


class BatchableConformance(RuntimeConformance):
    """Of a runtime whose version has rows."""

    def test_any_number_of_rows(self, folder: Path) -> None:
        inputs, _ = self.made(folder)
        loaded = self.load(folder)
        assert loaded.signature.batchable
        for rows in (0, 1, 2, 1000):
            many = [np.resize(array, (rows, *array.shape[1:])) for array in inputs.values()]
            assert [output.shape[0] for output in loaded.run(many)] == [rows] * len(loaded.signature.outputs)

    def test_a_row_is_answered_alike_alone_and_among_others(self, folder: Path) -> None:
        inputs, _ = self.made(folder)
        loaded = self.load(folder)
        whole = loaded.run(list(inputs.values()))
        for row in (0, 3):
            for one, many in zip(loaded.run([a[row : row + 1] for a in inputs.values()]), whole, strict=True):
                same(one, many[row : row + 1])

    def test_the_probe_finds_its_rows(self, folder: Path) -> None:
        self.made(folder)
        loaded = self.load(folder)
        assert settle_batching(loaded) == ""
        assert loaded.signature.batchable


class EchoConformance(BatchableConformance):
    """Of a runtime that can be made to give back what it takes: any shape then, and a model without rows."""

    def fixed(self, folder: Path) -> None:
        """Fill `folder` with a version that takes and gives FP32[3] only."""
        raise NotImplementedError

    def test_a_model_without_a_batch_dimension(self, folder: Path) -> None:
        self.fixed(folder)
        loaded = self.load(folder)
        assert not loaded.signature.batchable
        assert loaded.signature.inputs[0].shape == (3,)
        assert loaded.run([np.ones(3, np.float32)])[0].shape == (3,)


X = TensorSpec("x", "FP32", (-1, 3))


def same(one: Any, other: Any) -> None:
    """Equal to what a library may round."""
    one, other = (
        np.array([v.decode() if isinstance(v, bytes) else v for v in np.ravel(a).tolist()]) for a in (one, other)
    )
    if one.dtype.kind == "f":
        assert np.allclose(one, other, rtol=1e-6, atol=1e-7, equal_nan=True)
    else:
        assert one.tolist() == other.tolist()


class TestFakeRuntime(EchoConformance):
    """The fake that other tests lean on keeps the promises too."""

    runtime = FakeRuntime()
    artifact = "model.fake"

    def made(self, folder: Path) -> Made:
        self._put(folder, (-1, 3))
        rows = np.arange(12, dtype=np.float32).reshape(4, 3)
        return Made({"x": rows}, {"y": rows})

    def fixed(self, folder: Path) -> None:
        self._put(folder, (3,))

    def _put(self, folder: Path, shape: tuple[int, ...]) -> None:
        (folder / "model.fake").touch()
        signature = Signature([TensorSpec("x", "FP32", shape)], [TensorSpec("y", "FP32", shape)], len(shape) > 1)
        self.runtime.models["m/1"] = FakeModel(signature, lambda x: [x.copy()])

    def test_batching_may_be_forbidden(self, folder: Path) -> None:
        """The fake has the signature that the test gave it."""

    @pytest.mark.parametrize("data", [b"broken"])
    def test_a_broken_file_is_a_broken_version_with_a_reason(self, folder: Path, data: bytes) -> None:
        super().test_a_broken_file_is_a_broken_version_with_a_reason(folder, data)


class TestOnnxRuntime(EchoConformance):
    """ONNX Runtime on the example models."""

    runtime = OnnxRuntime()
    artifact = "model.onnx"

    @pytest.fixture(autouse=True)
    def _models(self, models: Path) -> None:
        self.models = models

    def made(self, folder: Path) -> Made:
        shutil.copy(self.models / "echo_fp32" / "1" / "model.onnx", folder)
        rows = np.arange(12, dtype=np.float32).reshape(4, 3)
        return Made({"input": rows}, {"output": rows})

    def fixed(self, folder: Path) -> None:
        shutil.copy(self.models / "fixed" / "1" / "model.onnx", folder)


class TestXGBoostRuntime(BatchableConformance):
    runtime = XGBoostRuntime()
    artifact = "model.ubj"

    def made(self, folder: Path) -> Made:
        return FORMATS["xgboost"](folder)


class TestXGBoostRuntimeOnJson(TestXGBoostRuntime):
    artifact = "model.json"

    def made(self, folder: Path) -> Made:
        return FORMATS["xgboost_cities"](folder)


class TestLightGBMRuntime(BatchableConformance):
    runtime = LightGBMRuntime()
    artifact = "model.txt"

    def made(self, folder: Path) -> Made:
        return FORMATS["lightgbm_cities"](folder)


class TestSklearnRuntime(BatchableConformance):
    runtime = SklearnRuntime()
    artifact = "model.skops"

    def made(self, folder: Path) -> Made:
        return FORMATS["sklearn"](folder)


class TestSklearnRuntimeByColumns(TestSklearnRuntime):
    def made(self, folder: Path) -> Made:
        return FORMATS["sklearn_cities"](folder)


class TestPythonRuntime(EchoConformance):
    runtime = PythonRuntime(trusted=True)
    artifact = "model.py"
    kind = "python"

    def made(self, folder: Path) -> Made:
        return FORMATS[self.kind](folder)

    def fixed(self, folder: Path) -> None:
        (folder / "model.py").write_text("class Model:\n    def predict(self, inputs):\n        return inputs['x']\n")
        fixed = "[{name: x, datatype: FP32, shape: [3]}]"
        (folder / "model.yaml").write_text(f"inputs: {fixed}\noutputs: {fixed}\n")

    @pytest.mark.parametrize("data", [b"a b", b"raise OSError('no disk')", b"x = 1"], ids=["syntax", "raises", "empty"])
    def test_a_broken_file_is_a_broken_version_with_a_reason(self, folder: Path, data: bytes) -> None:
        super().test_a_broken_file_is_a_broken_version_with_a_reason(folder, data)


class TestPythonRuntimeAwaited(TestPythonRuntime):
    kind = "python_async"


class TestEnsembleRuntime(BatchableConformance):
    runtime = EnsembleRuntime()
    artifact = ""

    def load(self, folder: Path, **settings: Any) -> LoadedModel:
        return load_version(app.runtimes(["code"]), "ensemble", folder, **settings)

    def made(self, folder: Path) -> Made:
        return FORMATS["ensemble"](folder)

    def test_a_missing_artifact(self, folder: Path) -> None:
        """It has none; its steps are what it needs."""
        with pytest.raises(BrokenVersion, match="steps"):
            self.runtime.load(folder, RuntimeSettings())


class TestVersionWithSteps(BatchableConformance):
    """What runs around an artifact changes no promise."""

    runtime = XGBoostRuntime()
    artifact = "model.ubj"

    def load(self, folder: Path, **settings: Any) -> LoadedModel:
        return load_version(app.runtimes(["code"]), "xgboost", folder, **settings)

    def made(self, folder: Path) -> Made:
        return FORMATS["steps"](folder)


class TestRemoteRuntime(BatchableConformance):
    """A server that doubles, over the Open Inference Protocol; see test_remote_runtime for the rest."""

    runtime = RemoteRuntime()
    artifact = ""

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with Doubling() as server:
            self.server = server
            yield

    def made(self, folder: Path) -> Made:
        (folder / "model.yaml").write_text(f"runtime: remote\noptions: {{url: {self.server.url}, model: m}}\n")
        rows = np.arange(12, dtype=np.float32).reshape(4, 3)
        return Made({"x": rows}, {"y": rows * 2})

    def test_a_missing_artifact(self, folder: Path) -> None:
        """It has none; its options are what it needs."""
        with pytest.raises(BrokenVersion, match="url"):
            self.runtime.load(folder, RuntimeSettings())


# --- ONNX ------------------------------------------------------------------------------------------------


def load(models: Path, name: str, **settings: Any) -> LoadedModel:
    return OnnxRuntime().load(models / name / "1", RuntimeSettings(**settings))


_LOADED: dict[str, LoadedModel] = {}


@given(tensors(list(DATATYPES)), st.integers(0, 4), st.integers(0, 4))
def test_every_datatype_comes_through_as_it_went_in(
    models: Path, case: tuple[str, tuple[int, ...], list[Any]], rows: int, columns: int
) -> None:
    datatype, _, values = case
    model = _LOADED.get(datatype)
    if model is None:
        model = _LOADED[datatype] = load(models, f"echo_{datatype.lower()}")
    for spec in (*model.signature.inputs, *model.signature.outputs):
        assert (spec.datatype, spec.shape) == (datatype, (-1, -1))
    values = (values or [b"" if datatype == "BYTES" else 0]) * 16
    array = np.empty(rows * columns, DATATYPES[datatype].dtype)
    array[:] = values[: rows * columns]
    [got] = model.run([array.reshape(rows, columns)])
    assert got.shape == (rows, columns)
    if datatype == "BYTES":
        assert [v.encode() if isinstance(v, str) else v for v in got.ravel().tolist()] == array.tolist()
    else:
        assert got.dtype == DATATYPES[datatype].dtype
        assert got.tobytes() == array.tobytes()


def test_every_example_loads(models: Path, build_models: ModuleType) -> None:
    for name in build_models.BUILDERS:
        loaded = load(models, name)
        assert loaded.platform == "onnx_onnxruntime"
        assert loaded.signature.inputs
        assert loaded.signature.outputs
        loaded.close()


def test_a_trained_classifier(models: Path, build_models: ModuleType) -> None:
    loaded = load(models, "fraud")
    rows, labels = build_models.fraud_rows()
    answer, probabilities = loaded.run([rows[:100]])
    assert (answer == labels[:100]).mean() > 0.95
    assert probabilities.shape == (100, 2)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    one_by_one = [loaded.run([rows[i : i + 1]])[1] for i in range(10)]
    assert np.concatenate(one_by_one).tobytes() == probabilities[:10].tobytes()


def test_strings_and_numbers_side_by_side(models: Path, build_models: ModuleType) -> None:
    loaded = load(models, "penguins")
    rows, species = build_models.penguin_rows()
    columns: list[Array] = []
    for spec in loaded.signature.inputs:
        values = [row[spec.name] for row in rows[:50]]
        if spec.datatype == "BYTES":
            column = np.empty((50, 1), dtype=object)
            column[:, 0] = [v.encode() for v in values]
        else:
            column = np.array(values, np.float32).reshape(50, 1)
        columns.append(column)
    label = loaded.run(columns)[0]
    got = [v.decode() if isinstance(v, bytes) else v for v in label.ravel().tolist()]
    assert np.mean([a == b for a, b in zip(got, species[:50], strict=True)]) > 0.9


def test_several_inputs_and_outputs_with_dimensions_of_their_own(models: Path) -> None:
    loaded = load(models, "passage_match")
    assert [s.datatype for s in loaded.signature.inputs] == ["FP32", "FP32", "BOOL"]
    assert [s.datatype for s in loaded.signature.outputs] == ["FP32", "INT64", "BOOL", "FP32"]
    query, passage = np.ones((2, 3, 16), np.float32), np.ones((2, 5, 16), np.float32)
    outputs = loaded.run([query, passage, np.ones((2, 5), bool)])
    assert [o.shape for o in outputs] == [(2,), (2, 3), (2, 3), (2, 3, 5)]
    assert [o.dtype.name for o in outputs] == ["float32", "int64", "bool", "float32"]


def test_dimensions_that_do_not_fit_each_other_inside_the_graph_fail_with_a_reason(models: Path) -> None:
    loaded = load(models, "passage_match")
    query, passage = np.ones((1, 3, 16), np.float32), np.ones((1, 5, 16), np.float32)
    with pytest.raises((InvalidInput, Internal)) as caught:
        loaded.run([query, passage, np.ones((1, 4), bool)])
    assert str(caught.value)


@pytest.mark.parametrize("name", ["echo_fp32", "fixed"])
def test_wrong_shapes_and_types_are_invalid_input(models: Path, name: str) -> None:
    loaded = load(models, name)
    wrong = [np.ones((2, 2, 2), np.float32), np.ones((2, 2), np.float64), np.ones((3,), np.int32)]
    for array in wrong:
        with pytest.raises(InvalidInput, match="refuses"):
            loaded.run([array])


def test_text_that_is_not_utf8_is_invalid_input(models: Path) -> None:
    loaded = load(models, "echo_bytes")
    array = np.array([[b"fine", b"\xff\xfe"]], dtype=object)
    with pytest.raises(InvalidInput, match=r"'input'.*UTF-8"):
        loaded.run([array])
    assert loaded.run([np.array([["é".encode()]], dtype=object)])[0].tolist() == [["é"]]


@pytest.mark.parametrize(
    "data", [b"", b"not an onnx file", b"\x08\x0a", bytes(1000)], ids=["empty", "text", "cut", "zeros"]
)
def test_a_broken_file_is_a_broken_version_with_a_reason(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(BrokenVersion) as caught:
        OnnxRuntime().load(tmp_path, RuntimeSettings())
    text = str(caught.value)
    assert text.startswith("model.onnx: ")
    assert len(text) > len("model.onnx: ") + 5
    assert "\n" not in text


def test_a_file_that_is_still_being_copied(models: Path, tmp_path: Path) -> None:
    whole = (models / "fraud" / "1" / "model.onnx").read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model.onnx").write_bytes(whole[:size])
        with pytest.raises(BrokenVersion):
            OnnxRuntime().load(tmp_path, RuntimeSettings())


def test_an_operator_that_nobody_knows_is_named(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Conjure", ["x"], ["y"])], "g", [value], [other])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BrokenVersion, match="Conjure"):
        OnnxRuntime().load(tmp_path, RuntimeSettings())


def test_a_loaded_version_does_not_need_its_file(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "echo_fp32" / "1" / "model.onnx", tmp_path)
    loaded = OnnxRuntime().load(tmp_path, RuntimeSettings())
    (tmp_path / "model.onnx").unlink()
    assert loaded.run([np.ones((1, 1), np.float32)])[0].tolist() == [[1]]


def test_threads_are_those_of_the_settings(models: Path) -> None:
    loaded = load(models, "mlp", threads=2)
    assert loaded.run([np.zeros((4, 256), np.float32)])[0].shape == (4,)

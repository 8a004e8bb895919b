"""What every runtime owes (`runtimes.protocol`), whatever its format.

`RuntimeConformance` is the suite; a runtime's class beneath it says how its artifacts are made. What only one
format has (ONNX: strings must be UTF-8, BF16, dimension names) is tested behind it.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import BrokenVersion, Internal, InvalidInput
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.runtimes.onnx import OnnxRuntime
from octoserve.runtimes.protocol import LoadedModel, Runtime, RuntimeSettings
from support.models import FakeModel, FakeRuntime
from support.tensors import tensors


class RuntimeConformance:
    """`echo` is a model FP32[-1, -1] -> the same; `fixed` takes FP32[3] only."""

    runtime: Runtime

    def echo(self, models: Path, tmp_path: Path) -> Path:
        raise NotImplementedError

    def fixed(self, models: Path, tmp_path: Path) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def loaded(self, models: Path, tmp_path: Path) -> LoadedModel:
        return self.runtime.load(self.echo(models, tmp_path), RuntimeSettings())

    def test_names(self) -> None:
        assert self.runtime.name == self.runtime.name.lower()
        assert "." in self.runtime.artifact

    def test_signature(self, loaded: LoadedModel) -> None:
        [taken], [given] = loaded.signature.inputs, loaded.signature.outputs
        for spec in (taken, given):
            assert spec.datatype == "FP32"
            assert spec.shape == (-1, -1)
        assert loaded.signature.batchable
        assert loaded.platform

    def test_run_gives_every_output_in_order(self, loaded: LoadedModel) -> None:
        rows = np.arange(6, dtype=np.float32).reshape(2, 3)
        outputs = loaded.run([rows])
        assert isinstance(outputs, list)
        assert len(outputs) == len(loaded.signature.outputs)
        assert outputs[0].dtype == np.float32
        assert outputs[0].tolist() == rows.tolist()

    def test_run_does_not_change_or_keep_its_inputs(self, loaded: LoadedModel) -> None:
        rows = np.frombuffer(np.arange(6, dtype=np.float32).tobytes(), np.float32).reshape(2, 3)
        assert not rows.flags.writeable  # as it comes off the wire
        first = loaded.run([rows])[0]
        before = first.copy()
        loaded.run([np.zeros((5, 7), np.float32)])
        assert first.tolist() == before.tolist()

    def test_any_number_of_rows(self, loaded: LoadedModel) -> None:
        for rows in (0, 1, 2, 1000):
            assert loaded.run([np.ones((rows, 3), np.float32)])[0].shape == (rows, 3)

    def test_run_in_another_thread(self, loaded: LoadedModel) -> None:
        got: list[Array] = []
        thread = threading.Thread(target=lambda: got.extend(loaded.run([np.ones((2, 2), np.float32)])))
        thread.start()
        thread.join(10)
        assert got[0].tolist() == [[1, 1], [1, 1]]

    def test_batching_may_be_forbidden(self, models: Path, tmp_path: Path) -> None:
        loaded = self.runtime.load(self.echo(models, tmp_path), RuntimeSettings(batching=False))
        assert not loaded.signature.batchable
        assert loaded.run([np.ones((1, 2), np.float32)])[0].tolist() == [[1, 1]]

    def test_a_model_without_a_batch_dimension(self, models: Path, tmp_path: Path) -> None:
        loaded = self.runtime.load(self.fixed(models, tmp_path), RuntimeSettings())
        assert not loaded.signature.batchable
        assert loaded.signature.inputs[0].shape == (3,)
        assert loaded.run([np.ones(3, np.float32)])[0].shape == (3,)

    def test_two_models_are_two(self, models: Path, tmp_path: Path) -> None:
        folder = self.echo(models, tmp_path)
        one, two = (self.runtime.load(folder, RuntimeSettings()) for _ in range(2))
        one.close()
        assert two.run([np.ones((1, 1), np.float32)])[0].tolist() == [[1]]
        two.close()

    def test_a_missing_artifact(self, tmp_path: Path) -> None:
        (tmp_path / "m" / "1").mkdir(parents=True)
        with pytest.raises(BrokenVersion, match=self.runtime.artifact):
            self.runtime.load(tmp_path / "m" / "1", RuntimeSettings())
        with pytest.raises(BrokenVersion):
            self.runtime.load(tmp_path / "nowhere", RuntimeSettings())

    def test_an_artifact_that_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / self.runtime.artifact).mkdir()
        with pytest.raises(BrokenVersion):
            self.runtime.load(tmp_path, RuntimeSettings())


class TestFakeRuntime(RuntimeConformance):
    """The fake that other tests lean on keeps the promises too."""

    runtime = FakeRuntime()

    def echo(self, models: Path, tmp_path: Path) -> Path:
        return self._made(tmp_path, (-1, -1))

    def fixed(self, models: Path, tmp_path: Path) -> Path:
        return self._made(tmp_path, (3,))

    def _made(self, tmp_path: Path, shape: tuple[int, ...]) -> Path:
        folder = tmp_path / f"m{len(shape)}" / "1"
        folder.mkdir(parents=True)
        (folder / "model.fake").touch()
        signature = Signature([TensorSpec("x", "FP32", shape)], [TensorSpec("y", "FP32", shape)], len(shape) > 1)
        self.runtime.models[f"m{len(shape)}/1"] = FakeModel(signature, lambda x: [x.copy()])
        return folder

    def test_batching_may_be_forbidden(self, models: Path, tmp_path: Path) -> None:
        """The fake has the signature that the test gave it."""


class TestOnnxRuntime(RuntimeConformance):
    """ONNX Runtime on the example models."""

    runtime = OnnxRuntime()

    def echo(self, models: Path, tmp_path: Path) -> Path:
        return models / "echo_fp32" / "1"

    def fixed(self, models: Path, tmp_path: Path) -> Path:
        return models / "fixed" / "1"


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

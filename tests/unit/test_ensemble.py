"""What is handed on from part to part fits, or the version says which part does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octoserve.core.errors import BrokenVersion, Internal, InvalidInput, Unavailable
from octoserve.core.signature import Signature, TensorSpec
from octoserve.runtimes.ensemble import EnsembleModel, EnsembleRuntime
from octoserve.runtimes.protocol import RuntimeSettings
from support.models import FakeModel

X, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "FP32", (-1, 2))
NAME, LABEL = TensorSpec("name", "BYTES", (-1,)), TensorSpec("label", "BYTES", (-1,))


def parts() -> dict[str, FakeModel]:
    """double: x -> y; name: x -> name (text); shout: name -> label."""
    names = Signature([X], [NAME], True)
    labels = Signature([NAME], [LABEL], True)
    return {
        "double": FakeModel(Signature([X], [Y], True), lambda x: [x * 2]),
        "name": FakeModel(names, lambda x: [np.array([f"row {row[0]:g}" for row in x], dtype=object)]),
        "shout": FakeModel(labels, lambda n: [np.array([t.upper() for t in n.tolist()], dtype=object)]),
        "wide": FakeModel(Signature([TensorSpec("x", "FP32", (-1, 3))], [Y], True), lambda x: [x[:, :2]]),
    }


def load(*steps: Any, models: dict[str, FakeModel] | None = None, **more: Any) -> EnsembleModel:
    models = parts() if models is None else models

    def part(name: str) -> FakeModel:
        if name not in models:
            raise BrokenVersion(f"no folder {name!r}")
        return models[name]

    wanted = [{"part": step} if isinstance(step, str) else step for step in steps]
    settings = RuntimeSettings(options={"steps": wanted, **more}, load_part=part)
    return EnsembleRuntime().load(Path("nowhere"), settings)  # type: ignore[return-value]


ROWS = np.array([[1, 2], [3, 4]], np.float32)
AGAIN = {"part": "double", "inputs": {"x": "y"}, "outputs": {"y": "z"}}


def test_what_one_gives_the_next_takes() -> None:
    loaded = load("double", AGAIN)
    assert loaded.signature.inputs == (X,)
    assert [spec.name for spec in loaded.signature.outputs] == ["z"]
    assert loaded.signature.batchable
    assert loaded.run([ROWS])[0].tolist() == (ROWS * 4).tolist()


def test_an_input_may_be_taken_by_several_and_text_goes_on_as_bytes() -> None:
    loaded = load("double", "name", "shout")
    assert loaded.signature.inputs == (X,)
    doubled, shouted = loaded.run([ROWS])
    assert doubled.tolist() == (ROWS * 2).tolist()
    assert shouted.tolist() == [b"ROW 1", b"ROW 3"]


def test_outputs_may_be_chosen() -> None:
    loaded = load("double", AGAIN, outputs=["y", "z"])
    assert [array.tolist() for array in loaded.run([ROWS])] == [(ROWS * 2).tolist(), (ROWS * 4).tolist()]


@pytest.mark.parametrize(
    ("steps", "more", "reason"),
    [
        ([], {}, "steps: one or more"),
        (["gone"], {}, "part gone: no folder 'gone'"),
        (
            ["double", {"part": "wide", "inputs": {"x": "y"}}],
            {},
            r"part wide takes x FP32\[-1, 3\], and y FP32\[-1, 2\]",
        ),
        (["double", {"part": "shout", "inputs": {"name": "y"}}], {}, r"part shout takes name BYTES\[-1\], and y FP32"),
        (["double", "double"], {}, "gives 'y', and there is one; name it under its outputs:"),
        ([{"part": "double", "inputs": {"z": "x"}}], {}, r"part double: inputs: it has no 'z'; it has x FP32"),
        (["double"], {"outputs": ["z"]}, "no step gives 'z'; they give y"),
        ([{"part": "double", "input": {}}], {}, "input"),
    ],
)
def test_what_does_not_fit_is_named_and_closed(steps: list[Any], more: dict[str, Any], reason: str) -> None:
    models = parts()
    with pytest.raises(BrokenVersion, match=reason):
        load(*steps, models=models, **more)
    named = {step if isinstance(step, str) else step["part"] for step in steps} if reason != "input" else set()
    assert all(model.closed for name, model in models.items() if name in named)


@pytest.mark.parametrize(
    ("error", "wanted", "text"),
    [
        (InvalidInput("too long"), InvalidInput, "part shout: too long"),
        (ValueError("oops"), Internal, "part shout: oops"),
        (Unavailable("away"), Unavailable, "^away$"),
    ],
)
def test_a_part_that_fails_is_named(error: Exception, wanted: type[Exception], text: str) -> None:
    models = parts()
    models["shout"].function = lambda n: (_ for _ in ()).throw(error)
    loaded = load("name", "shout", models=models)
    with pytest.raises(wanted, match=text):
        loaded.run([ROWS])


def test_it_has_the_lanes_that_all_its_parts_bear() -> None:
    models = parts()
    assert load("double", AGAIN, models=models).lanes == 0
    models["name"].lanes = 8
    assert load("name", "shout", models=models).lanes == 1
    models["shout"].lanes = 4
    loaded = load("name", "shout", models=models)
    assert loaded.lanes == 4
    loaded.close()
    assert models["name"].closed
    assert models["shout"].closed


def test_it_is_batchable_if_all_its_parts_are() -> None:
    models = parts()
    models["double"].signature.batchable = False
    assert not load("double", AGAIN, models=models).signature.batchable

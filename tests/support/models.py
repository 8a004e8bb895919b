"""A model that the tests can tell what to do, and calls that remember how they were answered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octoserve.core.errors import BrokenVersion, InvalidInput
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, Tensor
from octoserve.dataplane.call import NEVER, Call
from octoserve.dataplane.endpoint import DataPlane
from octoserve.lifecycle.lease import Handle
from octoserve.lifecycle.states import VersionRef
from octoserve.routing.plan import RoutePlan
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings


def rows_of_floats() -> Signature:
    """What `FakeModel` takes and gives; a new one each time, since a signature belongs to one version."""
    return Signature(
        [TensorSpec("x", "FP32", (-1, -1))],
        [TensorSpec("y", "FP32", (-1, -1)), TensorSpec("row_sum", "FP64", (-1,))],
        batchable=True,
    )


def answer(rows: Array) -> list[Array]:
    """What `FakeModel` gives for FP32 rows: twice the number plus one, and each row's sum."""
    return [rows * np.float32(2) + np.float32(1), rows.astype(np.float64).sum(axis=1)]


class FakeModel:
    """A LoadedModel whose outputs are a recognisable function of its inputs.

    poison:  a run with any of these numbers in its first input raises `error`
    gate:    a run waits for this event, having set `started`
    batches: rows of every run, in order
    """

    platform = "fake_model"
    lanes = 0

    def __init__(self, signature: Signature | None = None, function: Callable[..., list[Array]] = answer) -> None:
        self.signature = signature or rows_of_floats()
        self.function = function
        self.poison: set[float] = set()
        self.error: Callable[[], Exception] = lambda: RuntimeError("poisoned")
        self.gate: threading.Event | None = None
        self.started = threading.Event()
        self.batches: list[int] = []
        self.shapes: list[tuple[tuple[int, ...], ...]] = []
        self.closed = False

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `LoadedModel.run`."""
        first = inputs[0]
        self.batches.append(first.shape[0] if first.ndim else 1)
        self.shapes.append(tuple(a.shape for a in inputs))
        if self.gate is not None:
            self.started.set()
            assert self.gate.wait(10)
        if self.poison and not self.poison.isdisjoint(first.ravel().tolist()):
            raise self.error()
        return self.function(*inputs)

    def close(self) -> None:
        """See `LoadedModel.close`."""
        self.closed = True


class FakeRuntime:
    """A Runtime over folders that hold `model.fake`; `models` are handed out by folder name."""

    name = "fake"
    artifacts = ("model.fake",)
    distributions: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.models: dict[str, FakeModel] = {}

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """See `Runtime.load`."""
        path = folder / self.artifacts[0]
        if not path.is_file():
            raise BrokenVersion(f"{path.name} is missing in {folder}")
        if path.read_text() == "broken":
            raise BrokenVersion(f"{path.name}: broken as told")
        return self.models.setdefault(f"{folder.parent.name}/{folder.name}", FakeModel())


def refused(message: str = "the model refuses these inputs") -> Exception:
    """An error that is the caller's fault."""
    return InvalidInput(message)


def handle_of(model: FakeModel, name: str = "m", version: int = 1, **settings: Any) -> Handle:
    """A ready version that `model` answers for."""
    return Handle(VersionRef(name, version, "", "", **settings), model)


def publish(plane: DataPlane, *handles: Handle, labels: dict[str, dict[str, int]] | None = None) -> None:
    """Make versions ready; each model's plan goes to its last."""
    for handle in handles:
        plane.publish(handle)
    last = {handle.ref.model: handle.ref.version for handle in handles}
    plane.route(
        [RoutePlan.to(model, version, 1) for model, version in last.items()],
        labels or {},
        [(handle.ref.model, handle.ref.version) for handle in handles],
    )


def floats(rows: Any, name: str = "x") -> Tensor:
    """An FP32 tensor in raw form, as it comes from a door."""
    array = np.asarray(rows, dtype=np.float32)
    return Tensor(name, "FP32", array.shape, array.tobytes())


class Asked(Call):
    """A call that counts its answers."""

    def __init__(
        self,
        inputs: Sequence[Tensor],
        model: str = "m",
        version: str = "",
        outputs: Sequence[str] | None = None,
        deadline: float = NEVER,
    ) -> None:
        super().__init__(model, version, inputs)
        self.outputs = outputs
        self.deadline = deadline
        self.door = "test"
        self.answers = 0
        self.cancelled = False
        self.then: Callable[[], None] = lambda: None

    def answered(self) -> None:
        """Count, and do what the test wants done."""
        self.answers += 1
        self.then()

    def cancel(self) -> None:
        """Remember that nobody waits any more."""
        self.cancelled = True
        super().cancel()

    def rows_of(self, index: int = 0) -> Array:
        """The answer's output; raises the error if it is one."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result.array(index)

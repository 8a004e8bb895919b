"""What every runtime offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array


class RuntimeSettings(msgspec.Struct, frozen=True):
    """How to run one model, and what `model.yaml` says of it; the same for every format.

    threads:    threads that one run may use (ONNX Runtime's intra-op pool); more workers usually beat more threads
    batching:   None lets the artifact and a probe tell whether dimension 0 counts rows; False forbids merging
    inputs:     as declared; None leaves them to the artifact
    outputs:    the same
    features:   input -> the table columns that it is made of, in order; "" is the only input
    categories: feature -> its texts, in the order of the codes that the model was trained with
    missing:    "refuse" where a missing number is to be refused; "" and "nan" let the model see it
    options:    what only this runtime knows
    load_part:  a folder inside the version -> the model in it
    file:       the file to load, where it is not the format's own: a step of a version
    """

    threads: int = 1
    batching: bool | None = None
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    features: Mapping[str, tuple[str, ...]] = {}
    categories: Mapping[str, tuple[str, ...]] = {}
    missing: str = ""
    options: Mapping[str, Any] = {}
    load_part: Callable[[str], LoadedModel] | None = None
    file: str = ""


class LoadedModel(Protocol):
    """One version in memory. `run` is safe to call from any one thread at a time."""

    signature: Signature
    platform: str
    """What V2 metadata calls the platform, e.g. `onnx_onnxruntime`."""
    lanes: int
    """0: a run computes, and a short one may happen on the event loop. n: a run waits for something outside, or is
    code that nobody knows; it is always in a thread of its own, and so many may be in flight at a time."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """All outputs, in signature order, for inputs in signature order.

        BYTES inputs are object arrays of `bytes`; BYTES outputs are object arrays of `bytes` or `str`.
        Raises InvalidInput where the model itself refuses the values, Internal for any other failure.
        """
        ...

    def close(self) -> None:
        """Free what the model holds; the last call."""
        ...


class Runtime(Protocol):
    """One model format."""

    name: str
    artifacts: tuple[str, ...]
    """The files by which a version folder is known to be of this format; empty: `model.yaml` names it."""
    distributions: tuple[str, ...]
    """The packages that it runs on, as pip knows them; of several that can take each other's place, all."""

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """Load the version in `folder`. Blocking; called off the event loop. Raises BrokenVersion."""
        ...


def artifacts_of(runtimes: Iterable[Runtime]) -> dict[str, str]:
    """File -> the runtime that it is known by."""
    return {file: runtime.name for runtime in runtimes for file in runtime.artifacts}

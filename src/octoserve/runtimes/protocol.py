"""What every runtime offers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from octoserve.core.signature import Signature
from octoserve.core.tensors import Array


class RuntimeSettings(msgspec.Struct, frozen=True):
    """How to run one model; the same for every format.

    threads:  threads that one run may use (ONNX Runtime's intra-op pool); more workers usually beat more threads
    batching: None lets the artifact and a probe tell whether dimension 0 counts rows; False forbids merging
    """

    threads: int = 1
    batching: bool | None = None


class LoadedModel(Protocol):
    """One version in memory. `run` is safe to call from any one thread at a time."""

    signature: Signature
    platform: str
    """What V2 metadata calls the platform, e.g. `onnx_onnxruntime`."""

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
    artifact: str
    """The file by which a version folder is known to be of this format, e.g. `model.onnx`."""

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """Load the version in `folder`. Blocking; called off the event loop. Raises BrokenVersion."""
        ...

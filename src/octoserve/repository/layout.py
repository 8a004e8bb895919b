"""What a scan of a model repository finds: `<root>/<model>/<version>/`, versions positive integers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from octoserve.core.errors import OctoserveError

if TYPE_CHECKING:  # the supervisor looks at repositories, and has no need of numpy
    from octoserve.core.signature import TensorSpec

MODEL_YAML = "model.yaml"
ARTIFACTS = {"model.onnx": "onnx"}
"""What is looked for where nobody says more: the file by which a version's format is known -> the runtime's name."""
PARTIAL = (".tmp", ".part", ".partial")
"""Ends of names that say: somebody is still writing."""


class Formats(msgspec.Struct, frozen=True):
    """What versions are made of here.

    artifacts: the file by which a version folder's format is known -> the runtime's name
    named:     runtimes that no file tells; `model.yaml` names them
    """

    artifacts: Mapping[str, str]
    named: tuple[str, ...] = ()


OURS = Formats(
    {
        **ARTIFACTS,
        "model.ubj": "xgboost",
        "model.json": "xgboost",
        "model.txt": "lightgbm",
        "model.skops": "sklearn",
        "model.py": "python",
    },
    ("remote", "ensemble"),
)
"""What our own runtimes load, said here too so that who only looks need not import them."""


class Labels(msgspec.Struct, frozen=True):
    """Names for what a model's numbers mean: an output of text beside them.

    of:        the output of scores or of class numbers; "" where there is only one that fits
    threshold: of two names and one score, from where on it is the second name
    """

    names: tuple[str, ...]
    of: str = ""
    threshold: float = 0.5
    output: str = "label"


class StepFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the version that runs before or after its artifact, `.py` or `.onnx`.

    inputs, outputs: None leaves them to the file, or to what stands beside it
    features:        as of a version, where it is the first
    options:         what only its runtime knows
    """

    file: str
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    features: dict[str, tuple[str, ...]] | None = None
    options: dict[str, Any] = {}


class Refused(OctoserveError):
    """A version folder that will not be served as it is; the message says why and what to do."""

    reason = "refused"


class DiskState(StrEnum):
    """Where a version stands on disk."""

    SETTLING = "settling"
    """Its files still change, or its digest is being computed."""
    WHOLE = "whole"
    REFUSED = "refused"
    """It cannot be served as it lies there; `reason` says why."""


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to run one version; None where the next source (artifact, default) decides."""

    runtime: str | None = None
    batching: bool | None = None
    max_batch_rows: int | None = None
    threads: int | None = None
    effects: str | None = None
    """What a run does beyond answering: none, idempotent or external."""
    features: dict[str, tuple[str, ...]] | None = None
    """Input -> the table columns that it is made of, in order; "" is the only input."""
    missing: str | None = None
    """What a missing number means to the model: nan, or refuse."""
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    categories: dict[str, tuple[str, ...]] = {}
    """Feature -> its texts, in the order of the codes that the model was trained with."""
    labels: Labels | None = None
    options: dict[str, Any] = {}
    """What only the runtime knows, which looks at it when it loads."""
    before: tuple[StepFile, ...] = ()
    after: tuple[StepFile, ...] = ()
    """What runs before and after the artifact, in order; all other fields are the artifact's."""
    digest: str | None = None
    """What the publisher says that the files' digest is, `model.yaml` itself left out."""


class VersionOnDisk(msgspec.Struct, frozen=True, kw_only=True):
    """One version folder as last seen.

    fingerprint: of names, sizes and times; cheap, and told apart from `digest`, which reads the contents
    edition:     how often a settled fingerprint has changed since this process first saw the version
    """

    model: str
    version: int
    path: str
    state: DiskState
    fingerprint: str = ""
    digest: str = ""
    reason: str = ""
    runtime: str = ""
    settings: ModelSettings = ModelSettings()
    edition: int = 0
    rested: bool = True
    """The files have rested for the whole settle time, so what loads now may be recorded."""


class Scan(msgspec.Struct, frozen=True):
    """All models with their versions, ascending; `notes` are names that were ignored, with the reason.

    labels: what a registry calls its versions
    """

    models: dict[str, tuple[VersionOnDisk, ...]]
    notes: tuple[str, ...] = ()
    labels: Mapping[str, Mapping[str, int]] = {}


def version_number(name: str) -> int | None:
    """The version that a folder's name says, or None: digits only, no leading zero, from 1."""
    if name.isascii() and name.isdigit() and not name.startswith("0") and len(name) <= 18:
        return int(name)
    return None


def ignored(name: str) -> bool:
    """Hidden and half-written names are passed over without a note."""
    return name.startswith((".", "_")) or name.endswith(PARTIAL) or name == "lost+found"

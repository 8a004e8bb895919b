"""`labels:` of model.yaml: an output of text that says what the model's numbers mean.

The same for every format, since it looks at outputs only: the best of as many scores as there are names, the second of
two names where a single score reaches the threshold, or a class number's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import BrokenVersion, Internal
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.repository.layout import Labels
from octoserve.runtimes.protocol import LoadedModel


def labelled(loaded: LoadedModel, labels: Labels) -> LoadedModel:
    """The model, with one output more. Raises BrokenVersion if no output can be named, or if that name is taken."""
    outputs = loaded.signature.outputs
    if labels.of:
        source = next((at for at, spec in enumerate(outputs) if spec.name == labels.of), None)
        if source is None:
            raise BrokenVersion(f"model.yaml: labels: no output {labels.of!r}; there are {_names(outputs)}")
        if not _kind(outputs[source], labels):
            raise BrokenVersion(
                f"model.yaml: labels: {outputs[source]} has no score for each of the {len(labels.names)} names"
            )
    else:
        source = _only(outputs, labels)
    if labels.output in (spec.name for spec in outputs):
        raise BrokenVersion(
            f"model.yaml: labels: the model has an output {labels.output!r} already; leave labels out, or give the new "
            "one another name: `labels: {names: [...], output: NAME}`"
        )
    return LabelledModel(loaded, labels, source)


def _only(outputs: Sequence[TensorSpec], labels: Labels) -> int:
    for kind in ("scores", "score", "class"):
        found = [at for at, spec in enumerate(outputs) if _kind(spec, labels) == kind]
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise BrokenVersion(
        f"model.yaml: labels: which output the {len(labels.names)} names are of cannot be told; say it: "
        f"`labels: {{names: [...], of: OUTPUT}}`, one of {_names(outputs)}"
    )


def _names(outputs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, outputs))


def _kind(spec: TensorSpec, labels: Labels) -> str:
    """What the names can be of: scores (one a name), score (of the second of two), class (a number); "" for neither."""
    kind = DATATYPES[spec.datatype].kind
    if spec.datatype != "BF16" and kind == "float":
        if len(spec.shape) == 2 and spec.shape[1] == len(labels.names):
            return "scores"
        return "score" if len(labels.names) == 2 and spec.shape[1:] in ((), (1,)) and spec.shape else ""
    return "class" if kind in ("int", "bool") and spec.shape and spec.shape[1:] in ((), (1,)) else ""


class LabelledModel:
    """A loaded model and its labels."""

    def __init__(self, loaded: LoadedModel, labels: Labels, source: int) -> None:
        inner = loaded.signature
        self._inner = loaded
        self._source = source
        self._kind = _kind(inner.outputs[source], labels)
        self._threshold = labels.threshold
        self._names: Array = np.array([*labels.names, None], dtype=object)[:-1]
        self.platform = loaded.platform
        self.lanes: int = getattr(loaded, "lanes", 0)
        self.signature = Signature(
            inner.inputs,
            (*inner.outputs, TensorSpec(labels.output, "BYTES", inner.outputs[source].shape[:1])),
            batchable=inner.batchable,
            dimensions=inner.dimensions,
            features=inner.features,
            missing=inner.missing,
            categories=inner.categories,
        )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `runtimes.protocol.LoadedModel.run`."""
        outputs = self._inner.run(inputs)
        return [*outputs, self._label(outputs[self._source])]

    def _label(self, values: Array) -> Any:
        if self._kind == "scores":
            return self._names[values.argmax(axis=1)]
        flat = values.reshape(-1)
        if self._kind == "score":
            return self._names[(flat >= self._threshold).astype(np.intp)]
        numbers = flat.astype(np.intp)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self._names)):
            raise Internal(f"labels: {len(self._names)} names are declared, and the model gave class {numbers.max()}")
        return self._names[numbers]

    def close(self) -> None:
        """See `runtimes.protocol.LoadedModel.close`."""
        self._inner.close()

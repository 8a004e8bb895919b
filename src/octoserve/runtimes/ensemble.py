"""Several models in one version: what one gives is what the next takes. Declared, and run in one process.

    runtime: ensemble
    options:
      steps:
        - part: scale                  # a folder in this version, laid out like one
          inputs: {x: rows}            # its input: where it comes from; unset, from what has the same name
          outputs: {y: scaled}         # its output: what the next steps call it; unset, its own name
        - part: score
          inputs: {features: scaled}
      outputs: [prediction]            # unset: all that no later step takes

What no step before gives is an input of the ensemble. Everything is checked when the version loads: names, datatypes
and shapes of what is handed on. A part may be any format, another ensemble too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from octoserve.core.errors import BrokenVersion, Internal, InvalidInput, Overloaded, Unavailable
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings
from octoserve.telemetry.tracing import within


class StepOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of an ensemble."""

    part: str
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}


class EnsembleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options:` of a version whose runtime is `ensemble`."""

    steps: tuple[StepOptions, ...]
    outputs: tuple[str, ...] = ()


class Step(msgspec.Struct, frozen=True):
    """takes: what its inputs are called in the ensemble, in its signature's order; gives: its outputs."""

    part: str
    model: LoadedModel
    takes: tuple[str, ...]
    gives: tuple[str, ...]


class EnsembleRuntime:
    """Loads the parts that `model.yaml` names."""

    name = "ensemble"
    artifacts: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """Raises BrokenVersion with the part and its reason, or with what does not fit."""
        try:
            options = msgspec.convert(dict(settings.options), EnsembleOptions)
        except msgspec.ValidationError as error:
            raise BrokenVersion(f"model.yaml: options: {error}; `runtime: ensemble` knows steps and outputs") from None
        if not options.steps or settings.load_part is None:
            raise BrokenVersion("model.yaml: options: steps: one or more {part, inputs, outputs} are wanted")
        steps: list[Step] = []
        try:
            for wanted in options.steps:
                try:
                    model = settings.load_part(wanted.part)
                except BrokenVersion as error:
                    raise BrokenVersion(f"part {wanted.part}: {error}") from error
                steps.append(Step(wanted.part, model, (), ()))
                steps[-1] = _step(wanted, model)
            return EnsembleModel(steps, options.outputs, settings.batching is not False)
        except BrokenVersion:
            for step in steps:
                step.model.close()
            raise


def _step(wanted: StepOptions, model: LoadedModel) -> Step:
    sides = (("inputs", wanted.inputs, model.signature.inputs), ("outputs", wanted.outputs, model.signature.outputs))
    for side, names, specs in sides:
        unknown = sorted(names.keys() - {spec.name for spec in specs})
        if unknown:
            raise BrokenVersion(
                f"part {wanted.part}: {side}: it has no {unknown[0]!r}; it has {', '.join(map(str, specs))}"
            )
    takes, gives = (tuple(names.get(spec.name, spec.name) for spec in specs) for _, names, specs in sides)
    return Step(wanted.part, model, takes, gives)


class EnsembleModel:
    """The loaded parts, and what goes from one to the next.

    outputs: what it gives; empty: all that no later step takes
    renews:  whether a step may give what there is already: from then on that name is its own
    """

    def __init__(
        self,
        steps: Sequence[Step],
        outputs: Sequence[str],
        batching: bool = True,
        *,
        renews: bool = False,
        platform: str = "ensemble",
    ) -> None:
        self.platform = platform
        self._steps = tuple(steps)
        lanes = [getattr(step.model, "lanes", 0) for step in steps]
        self.lanes = min(n or 1 for n in lanes) if any(lanes) else 0  # a part that computes takes one run at a time
        inputs, made = _wired(steps, renews)
        if not outputs:
            outputs = [name for name in made if not any(name in step.takes for step in steps)]
        missing = [name for name in outputs if name not in made]
        if missing or not outputs:
            raise BrokenVersion(
                f"model.yaml: options: outputs: no step gives {missing[0] if missing else 'any'!r}; they give "
                f"{', '.join(made)}"
            )
        first = steps[0].model.signature
        features = {
            name: columns
            for taken, columns in first.features.items()
            for spec, name in zip(first.inputs, steps[0].takes, strict=True)
            if spec.name == taken and name in inputs
        }
        categories = {
            name: step.model.signature.categories[spec.name]
            for step in steps
            for spec, name in zip(step.model.signature.inputs, step.takes, strict=True)
            if name in inputs and name not in made and spec.name in step.model.signature.categories
        }
        batchable = all(step.model.signature.batchable for step in steps) and batching
        self.signature = Signature(
            list(inputs.values()), [made[n] for n in outputs], batchable, features=features, categories=categories
        )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `runtimes.protocol.LoadedModel.run`."""
        known = {spec.name: array for spec, array in zip(self.signature.inputs, inputs, strict=True)}
        for at, step in enumerate(self._steps):
            try:
                given = within(f"part {step.part}", step.model.run, [known[name] for name in step.takes])
            except InvalidInput as error:
                if at == 0:
                    raise
                raise InvalidInput(f"part {step.part}: {error}") from error
            except (Unavailable, Overloaded):
                raise
            except Exception as error:
                raise Internal(f"part {step.part}: {error}") from error
            known |= zip(step.gives, map(_as_bytes, given), strict=True)
        return [known[spec.name] for spec in self.signature.outputs]

    def close(self) -> None:
        """See `runtimes.protocol.LoadedModel.close`."""
        for step in self._steps:
            step.model.close()


def _wired(steps: Sequence[Step], renews: bool) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """The ensemble's own inputs, and all that its steps give. Raises BrokenVersion for what does not fit."""
    inputs: dict[str, TensorSpec] = {}
    made: dict[str, TensorSpec] = {}
    for step in steps:
        for spec, name in zip(step.model.signature.inputs, step.takes, strict=True):
            came = made.get(name) or inputs.setdefault(name, TensorSpec(name, spec.datatype, spec.shape))
            if not _fits(came, spec):
                raise BrokenVersion(f"part {step.part} takes {spec}, and {came} is what it would get")
        for spec, name in zip(step.model.signature.outputs, step.gives, strict=True):
            if not renews and (name in made or name in inputs):
                raise BrokenVersion(f"part {step.part} gives {name!r}, and there is one; name it under its outputs:")
            made[name] = TensorSpec(name, spec.datatype, spec.shape)
    return inputs, made


def _fits(came: TensorSpec, wanted: TensorSpec) -> bool:
    sizes = zip(came.shape, wanted.shape, strict=False)
    return (
        came.datatype == wanted.datatype
        and len(came.shape) == len(wanted.shape)
        and all(a == b or -1 in (a, b) for a, b in sizes)
    )


def _as_bytes(array: Array) -> Array:
    """Models may give text as `str`, and take it as `bytes` only."""
    if array.dtype != object:
        return array
    flat: Array = np.empty(array.size, dtype=object)
    flat[:] = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
    return flat.reshape(array.shape)

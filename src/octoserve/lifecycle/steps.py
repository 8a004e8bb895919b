"""`before:` and `after:` of model.yaml: files of the version that run around its artifact, in one process.

The whole takes what the first of them takes and gives what the last gives. In between, what is made under a name is
what the next takes under that name; one that takes an input of the whole by its name gets that. An ensemble of one
version, without a folder for each part: `runtimes.ensemble` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from octoserve.core.errors import BrokenVersion
from octoserve.core.signature import Signature, TensorSpec
from octoserve.repository.layout import ModelSettings, StepFile
from octoserve.repository.model_yaml import STEPS
from octoserve.runtimes.ensemble import EnsembleModel, Step
from octoserve.runtimes.protocol import LoadedModel, Runtime, RuntimeSettings

Specs = tuple[TensorSpec, ...]


def with_steps(
    runtimes: Mapping[str, Runtime],
    folder: Path,
    said: ModelSettings,
    artifact: LoadedModel,
    threads: int,
    batching: bool | None,
) -> LoadedModel:
    """The version as a whole, which owns `artifact` from here on. Raises BrokenVersion that names the step."""
    steps = [_named("the model", artifact)]
    try:
        for wanted in reversed(said.before):  # from the artifact outwards: who says less goes by its neighbour
            steps.insert(0, _load(runtimes, folder, "before", wanted, None, steps[0].model.signature.inputs, threads))
        for wanted in said.after:
            steps.append(_load(runtimes, folder, "after", wanted, steps[-1].model.signature.outputs, None, threads))
        _closed(steps)
        whole = EnsembleModel(
            steps, steps[-1].gives, batching is not False, renews=True, platform=artifact.platform
        )  # fmt: skip
    except BrokenVersion:
        for step in steps:
            step.model.close()
        raise
    whole.signature.missing = artifact.signature.missing
    return whole


def _named(name: str, model: LoadedModel) -> Step:
    signature = model.signature
    return Step(name, model, tuple(s.name for s in signature.inputs), tuple(s.name for s in signature.outputs))


def _load(
    runtimes: Mapping[str, Runtime],
    folder: Path,
    side: str,
    wanted: StepFile,
    came: Specs | None,
    goes: Specs | None,
    threads: int,
) -> Step:
    """came, goes: what a file that says nothing of its inputs, or its outputs, takes or gives."""
    runtime = runtimes.get(STEPS[Path(wanted.file).suffix])
    where = f"model.yaml: {side}: {wanted.file}"
    if runtime is None or not (folder / wanted.file).is_file():
        raise BrokenVersion(f"{where}: there is no such file in {folder}")
    declared = wanted.file.endswith(".py")  # an ONNX graph says its own
    settings = RuntimeSettings(
        threads=threads,
        inputs=wanted.inputs or (came if declared else None),
        outputs=wanted.outputs or (goes if declared else None),
        features=wanted.features or {},
        options=wanted.options,
        file=wanted.file,
    )
    try:
        model = runtime.load(folder, settings)
    except BrokenVersion as error:
        raise BrokenVersion(f"{where}: {str(error).removeprefix('model.yaml: ')}") from error
    signature = model.signature
    for what, said, has in (
        ("inputs", wanted.inputs, signature.inputs), ("outputs", wanted.outputs, signature.outputs),
    ):  # fmt: skip
        if said is not None and said != has:
            model.close()
            raise BrokenVersion(f"{where}: {what}: {_list(said)} is declared, the file has {_list(has)}")
    signature.features = {**signature.features, **columns_of(wanted, signature)}
    return _named(wanted.file, model)


def columns_of(said: ModelSettings | StepFile, signature: Signature) -> dict[str, tuple[str, ...]]:
    """By the inputs' names; an input that does not exist is the table's or the message's to complain of."""
    features = dict(said.features or {})
    if "" in features and len(signature.inputs) == 1:
        features[signature.inputs[0].name] = features.pop("")
    return features


def _closed(steps: Sequence[Step]) -> None:
    """Whatever a step takes is made before it, or is an input of the first, and something of what it gives is taken:
    a wrong name makes no new input, and leaves no step out."""
    known = set(steps[0].takes)
    for step in steps:
        missing = [name for name in step.takes if name not in known]
        if missing:
            raise BrokenVersion(
                f"model.yaml: {step.part} takes {missing[0]!r}, and nothing before it gives that; there are "
                f"{', '.join(sorted(known))}"
            )
        known.update(step.gives)
    for at, step in enumerate(steps[:-1], 1):
        later = [name for other in steps[at:] for name in other.takes]
        if not set(step.gives) & set(later):
            raise BrokenVersion(
                f"model.yaml: {step.part} gives {', '.join(step.gives)}, and nothing after it takes that; wanted "
                f"there: {', '.join(later)}"
            )


def _list(specs: Specs) -> str:
    return ", ".join(map(str, specs)) or "none"

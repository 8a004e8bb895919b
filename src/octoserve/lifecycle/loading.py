"""From a version folder to a model in memory: the one way, for every pattern and every format.

`model.yaml` is read here, by whoever loads, and not sent along: a worker that loads version 2 goes by version 2's own
words, inside the same check that its files are those that were announced.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from octoserve.core.errors import BrokenVersion
from octoserve.core.signature import TensorSpec
from octoserve.lifecycle.labels import labelled
from octoserve.lifecycle.steps import columns_of, with_steps
from octoserve.repository import model_yaml
from octoserve.repository.layout import MODEL_YAML, ModelSettings
from octoserve.runtimes.protocol import LoadedModel, Runtime, RuntimeSettings


def load(
    runtimes: Mapping[str, Runtime], name: str, folder: Path, threads: int = 1, batching: bool | None = None
) -> LoadedModel:
    """The version in `folder` by the runtime of this name. Blocking. Raises BrokenVersion, Refused."""
    runtime = runtimes.get(name)
    if runtime is None:
        raise BrokenVersion(f"no runtime {name!r} here; there are: {', '.join(sorted(runtimes))}")
    said = settings_of(folder)
    settings = RuntimeSettings(
        threads=threads,
        batching=batching,
        inputs=said.inputs,
        outputs=said.outputs,
        features=said.features or {},
        categories=said.categories,
        missing=said.missing or "",
        options=said.options,
        load_part=lambda part: _load_part(runtimes, folder, part, threads),
    )
    loaded = runtime.load(folder, settings)
    try:
        signature = loaded.signature
        _agree("inputs", said.inputs, signature.inputs)
        _agree("outputs", said.outputs, signature.outputs)
        signature.features = {**signature.features, **columns_of(said, signature)}
        signature.missing = said.missing or signature.missing
        if said.labels is not None:
            loaded = labelled(loaded, said.labels)
    except BrokenVersion:
        loaded.close()
        raise
    if said.before or said.after:
        return with_steps(runtimes, folder, said, loaded, threads, batching)
    return loaded


def settings_of(folder: Path) -> ModelSettings:
    """What the version says of itself. Raises Refused."""
    path = folder / MODEL_YAML
    return model_yaml.read(path) if path.is_file() else ModelSettings()


def _agree(side: str, declared: tuple[TensorSpec, ...] | None, found: tuple[TensorSpec, ...]) -> None:
    """What model.yaml says and what the artifact says is one thing."""
    if declared is None:
        return
    same = len(declared) == len(found) and all(map(_fits, declared, found))
    if not same:
        says, has = (", ".join(map(str, specs)) or "none" for specs in (declared, found))
        raise BrokenVersion(f"model.yaml: {side}: {says} is declared, the model has {has}; leave it out, or correct it")


def _fits(declared: TensorSpec, found: TensorSpec) -> bool:
    sizes = zip(declared.shape, found.shape, strict=False)
    return (
        declared.name == found.name
        and declared.datatype == found.datatype
        and len(declared.shape) == len(found.shape)
        and all(said in (-1, is_) or is_ == -1 for said, is_ in sizes)
    )


def _load_part(runtimes: Mapping[str, Runtime], folder: Path, part: str, threads: int) -> LoadedModel:
    """A model inside a version, in a folder that is laid out like a version."""
    inner = folder / part
    if not part or Path(part).name != part or part.startswith(".") or not inner.is_dir():
        raise BrokenVersion(f"no folder {part!r} in {folder}; a part is a folder in its version, laid out like one")
    said = settings_of(inner)
    return load(runtimes, runtime_of(runtimes, inner), inner, said.threads or threads, said.batching)


def runtime_of(runtimes: Mapping[str, Runtime], folder: Path) -> str:
    """The name that its model.yaml gives, else that of the files. Raises BrokenVersion, Refused."""
    named = settings_of(folder).runtime
    if named:
        return named
    found = {runtime.name for runtime in runtimes.values() if any((folder / f).is_file() for f in runtime.artifacts)}
    if len(found) != 1:
        several = f"of several formats ({', '.join(sorted(found))})" if found else "of no format that is known here"
        raise BrokenVersion(f"{folder.name}: its files are {several}; name its runtime: in {folder.name}/{MODEL_YAML}")
    return found.pop()

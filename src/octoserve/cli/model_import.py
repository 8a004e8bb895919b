"""`octoserve model import | init`: version folders from what others have written, or from a template."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octoserve.core.errors import BrokenVersion, InvalidInput, OctoserveError, SettingsError
from octoserve.core.names import is_elsewhere, model_name_problem
from octoserve.repository.layout import MODEL_YAML, version_number

if TYPE_CHECKING:
    from octoserve.runtimes.importing.draft import Draft


def _folder(text: str) -> Path:
    if is_elsewhere(text):
        raise SettingsError(
            f"repository: a folder is wanted, {text} came; write the version into one, and copy its files there"
        )
    return Path(text)


Repository = Annotated[
    Path,
    typer.Option("--repository", envvar="OCTOSERVE_REPOSITORY", help="Folder of <model>/<version>/.", parser=_folder),
]

_PYTHON = {
    "model.py": '''"""Code of this version. It runs where the repository is trusted: OCTOSERVE_TRUST=code."""

import numpy as np


class Model:
    def __init__(self, folder, options):
        self.factor = options.get("factor", 1)

    def predict(self, inputs):
        rows = inputs["rows"]  # one row a request, or many
        return {"score": (rows.sum(axis=1) * self.factor).astype(np.float32)}
''',
    MODEL_YAML: """inputs:
  - {name: rows, datatype: FP32, shape: [-1, 3]}
outputs:
  - {name: score, datatype: FP32, shape: [-1]}
features: [a, b, c]        # the columns of `rows`, for tables and messages
options: {factor: 2}       # what the class gets
""",
}
_REMOTE = {
    MODEL_YAML: """runtime: remote
options:
  url: http://localhost:8000
  protocol: open-inference     # or tensorflow-serving
  model: NAME                  # what it is called there
# What it takes and gives is asked of the server when the version loads; declared, it need not be there then:
# inputs: [{name: x, datatype: FP32, shape: [-1, 3]}]
# outputs: [{name: y, datatype: FP32, shape: [-1]}]
""",
}
_ENSEMBLE = {
    MODEL_YAML: """runtime: ensemble
options:
  steps:
    - part: first              # a folder beside this file, laid out like a version
      outputs: {y: between}    # what the next step calls it
    - part: second
      inputs: {x: between}
  # outputs: [prediction]      # else all that no later step takes
""",
}
_TABLE = {
    MODEL_YAML: """# Beside this file: model.ubj or model.json (XGBoost), model.txt (LightGBM), model.skops
# (scikit-learn) or model.onnx.
# What the file says itself (width, names, texts of categories) need not stand here.
missing: refuse              # or nan: the model sees a missing number as NaN
# features: [amount, age]    # columns in order, where the file does not name them
# categories: {city: [Bern, Oslo]}
# labels: [legit, fraud]
""",
}
KINDS = {"python": _PYTHON, "table": _TABLE, "remote": _REMOTE, "ensemble": _ENSEMBLE}


def import_(
    source: Annotated[
        Path, typer.Argument(help="An object file, a folder that MLflow saved, a Triton repository or a model in one.")
    ],
    repository: Repository,
    name: Annotated[str, typer.Option("--name", help="What to call the model; else as the source does.")] = "",
    version: Annotated[int, typer.Option("--version", min=0, help="Its number; else the next one that is free.")] = 0,
    settings: Annotated[
        Path | None, typer.Option("--model-yaml", help="Fields for its model.yaml, over those that are found.")
    ] = None,
    unpickle: Annotated[bool, typer.Option("--unpickle", help="Read a pickle, which runs what it holds.")] = False,
    remote: Annotated[
        str, typer.Option("--remote", help="Where a server runs what a Triton repository has and no runtime here can.")
    ] = "",
) -> None:
    """Write a version from a scikit-learn, XGBoost or LightGBM object file, an MLflow model or a Triton repository.

    The version is loaded before it is put in place, so that what is there can be served.
    """
    more = _settings(settings)
    for model, numbers in _drafts(source, name, unpickle, remote).items():
        for number, draft in numbers.items():
            draft.settings.update(more)
            _publish(repository, model, version or number or _next(repository, model), draft)


def init(
    name: Annotated[str, typer.Argument(help="Of the model.")],
    repository: Repository,
    kind: Annotated[str, typer.Option("--kind", help=f"{', '.join(KINDS)}.")] = "python",
) -> None:
    """Write the beginnings of a version, to be filled in and renamed."""
    if kind not in KINDS:
        raise SettingsError(f"--kind: {', '.join(KINDS)} wanted, {kind!r} came")
    _check_name(name)
    number = _next(repository, name)
    folder = repository / name / f"{number}.tmp"
    if folder.exists():
        raise SettingsError(f"{folder} is there already; finish it, or take it away")
    folder.mkdir(parents=True)
    for file, text in KINDS[kind].items():
        (folder / file).write_text(text)
    print(f"{folder}: {', '.join(KINDS[kind])}; it is passed over until you rename it:")
    print(f"  mv {folder} {folder.parent}/{number}")


def _drafts(source: Path, name: str, unpickle: bool, remote: str) -> dict[str, dict[int, Draft]]:
    """Model -> version (0: the next one) -> what it would hold."""
    from octoserve.runtimes.importing import mlflow, objects, triton

    if not source.exists():
        raise SettingsError(f"{source} is not there")
    if source.is_file():
        return {name or source.stem: {0: objects.from_file(source, unpickle)}}
    if (source / mlflow.MLMODEL).is_file():
        return {name or source.resolve().name: {0: mlflow.from_mlflow(source, unpickle)}}
    if (source / triton.CONFIG).is_file():
        root, model = source.resolve().parent, source.resolve().name
        return {name or model: triton.from_triton(root, model, remote)}
    known = triton.models(source)
    if not known:
        raise SettingsError(
            f"{source}: a file, a folder with {mlflow.MLMODEL}, or one of models with {triton.CONFIG} is wanted"
        )
    if name:
        if name not in known:
            raise SettingsError(f"{source} has no model {name!r}; it has {', '.join(known)}")
        known = [name]
    return {model: triton.from_triton(source, model, remote) for model in known}


def _publish(repository: Path, name: str, number: int, draft: Draft) -> None:
    """Written beside, loaded, then renamed: half a version is never seen."""
    _check_name(name)
    folder = repository / name / str(number)
    if folder.exists():
        raise SettingsError(f"{folder} is there already, and a version is never changed; take another --version")
    ahead = repository / name / f".{number}.import.tmp"
    shutil.rmtree(ahead, ignore_errors=True)
    try:
        try:
            draft.write(ahead)
        except OctoserveError:
            raise
        except Exception as error:
            raise BrokenVersion(f"{name}: it cannot be written: {error}") from error
        shown = _loaded(name, ahead)
        ahead.rename(folder)
    except BaseException:
        shutil.rmtree(ahead, ignore_errors=True)
        with contextlib.suppress(OSError):
            ahead.parent.rmdir()  # if nothing else is in it
        raise
    print(f"{folder}: {shown}")


def _loaded(name: str, folder: Path) -> str:
    """What it takes and gives. Raises BrokenVersion, with what can be said about it."""
    from octoserve.app import runtimes
    from octoserve.lifecycle.loading import load, runtime_of
    from octoserve.lifecycle.probe import settle_batching

    known = runtimes()
    try:
        runtime = runtime_of(known, folder)
        loaded = load(known, runtime, folder)
    except BrokenVersion as error:
        raise BrokenVersion(
            f"{name} was not imported, since it could not be served: {error}. Fields for its model.yaml can be given "
            "with --model-yaml FILE"
        ) from error
    note = settle_batching(loaded)
    takes, gives = (", ".join(map(str, specs)) for specs in (loaded.signature.inputs, loaded.signature.outputs))
    loaded.close()
    return f"{runtime}, {takes} -> {gives}" + (f" ({note})" if note else "")


def _settings(path: Path | None) -> dict[str, Any]:
    import yaml

    from octoserve.repository import model_yaml

    if path is None:
        return {}
    model_yaml.read(path)  # what is wrong with it is said with its own name
    return dict(yaml.safe_load(path.read_text()) or {})


def _next(repository: Path, name: str) -> int:
    folder = repository / name
    numbers = [version_number(item.name) or 0 for item in folder.iterdir()] if folder.is_dir() else []
    return max(numbers, default=0) + 1


def _check_name(name: str) -> None:
    problem = model_name_problem(name)
    if problem or name.startswith((".", "_")):
        raise InvalidInput(f"--name: {problem or 'no name that begins with . or _'}; {name!a} came")

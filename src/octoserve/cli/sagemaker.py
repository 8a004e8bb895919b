"""`octoserve sagemaker`: what SageMaker asks of a container: argument `serve`, port 8080, models under /opt/ml/model.

Every setting may still be given as an OCTOSERVE_ variable; these are defaults.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from octoserve.core.errors import SettingsError
from octoserve.spec import PREFIX

MODEL_DIR = "/opt/ml/model"
MODELS_DIR = "/opt/ml/models"
"""Below it SageMaker puts the models of a multi-model container."""
_STATE_DIR = "/tmp/octoserve"
_GRACE = "25s"
"""SageMaker kills 30 s after SIGTERM."""
_ONE = "model"
"""Name of a model whose files lie in the folder itself."""


def sagemaker(
    argument: Annotated[str, typer.Argument(metavar="serve", help="What SageMaker starts a container with.")] = "serve",
) -> None:
    """Serve /opt/ml/model as SageMaker wants it: port 8080, /ping, /invocations."""
    if argument != "serve":
        raise SettingsError(f"sagemaker: the argument 'serve' is wanted, {argument!r} came; training is not offered")
    from octoserve.cli.serve import run

    raise typer.Exit(run(contract(os.environ), []))


def asked(flags: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether `octoserve serve` was started by SageMaker: nobody says which models, and they lie where it puts them."""
    told = [flags.get(name) or environ.get(PREFIX + name.upper()) for name in ("repository", "spec")]
    return not any(told) and (_many(environ) or _folder(environ).is_dir())


def contract(environ: Mapping[str, str]) -> dict[str, Any]:
    """Flags of `octoserve serve`, but for what a variable says. Raises SettingsError."""
    state_dir = environ.get(f"{PREFIX}STATE_DIR", _STATE_DIR)
    flags = {
        "host": "0.0.0.0",
        "http_port": environ.get("SAGEMAKER_BIND_TO_PORT", "8080"),
        "state_dir": state_dir,
        "grace": _GRACE,
    }
    if _many(environ):
        flags["multi_model"] = MODELS_DIR
        flags["repository"] = str(_empty(Path(state_dir)))
    elif not environ.get(f"{PREFIX}REPOSITORY"):
        flags["repository"] = str(_repository(_folder(environ), Path(state_dir)))
    return {name: value for name, value in flags.items() if not environ.get(PREFIX + name.upper())}


def _folder(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("SM_MODEL_DIR", MODEL_DIR))


def _many(environ: Mapping[str, str]) -> bool:
    """Whether SageMaker is going to load models itself."""
    return environ.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true"


def _empty(state_dir: Path) -> Path:
    """A repository without models: a container that is started again is told of each anew. What is known of the numbers
    of versions, which are never used again, stays."""
    root = state_dir / "sagemaker"
    root.mkdir(parents=True, exist_ok=True)
    for model in root.iterdir():
        if not model.name.startswith("."):
            shutil.rmtree(model)
    return root


def _repository(folder: Path, state_dir: Path) -> Path:
    """The folder, if it holds <model>/<version>/; a repository of one model, if it holds that model's files."""
    if not folder.is_dir():
        raise SettingsError(f"sagemaker: models are looked for in {folder}, which is not there; is ModelDataUrl set?")
    if any(path.is_dir() and _holds_versions(path) for path in folder.iterdir()):
        return folder
    if not any(path.is_file() for path in folder.iterdir()):
        raise SettingsError(f"sagemaker: {folder} holds neither <model>/<version>/ nor a model's files")
    root = _empty(state_dir)
    shutil.copytree(folder, root / _ONE / "1")
    return root


def _holds_versions(folder: Path) -> bool:
    return any(path.is_dir() and path.name.isdigit() for path in folder.iterdir())

"""A folder that MLflow has saved: its `MLmodel` says which library's files lie beside it, and what the model takes.

MLflow itself is not needed. The flavour nearest to the library is taken; one that only has `python_function` is code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octoserve.core.errors import SettingsError
from octoserve.runtimes.importing.draft import Draft
from octoserve.runtimes.importing.objects import PICKLES, from_file, from_object, read

MLMODEL = "MLmodel"
_DATATYPES = {"double": "FP64", "float": "FP32", "long": "INT64", "integer": "INT32", "boolean": "BOOL",
              "string": "BYTES"}  # fmt: skip
_FILES = {"onnx": "data", "xgboost": "data", "lightgbm": "data", "sklearn": "pickled_model"}
"""Flavour -> its field that names the file."""


def from_mlflow(folder: Path, unpickle: bool) -> Draft:
    """Raises SettingsError, BrokenVersion."""
    import yaml

    try:
        said = yaml.safe_load((folder / MLMODEL).read_text())
        flavors: dict[str, dict[str, Any]] = said["flavors"]
    except (OSError, yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise SettingsError(f"{folder / MLMODEL} cannot be read: {error}") from None
    flavor = next((name for name in _FILES if name in flavors), None)
    if flavor is None:
        raise SettingsError(
            f"{folder} has the flavours {', '.join(sorted(flavors))}; one of {', '.join(_FILES)} is wanted. A "
            "python_function is code: write a model.py that calls it (`octoserve model init`)"
        )
    file = flavors[flavor].get(_FILES[flavor]) or flavors[flavor].get("model_file") or "model.pkl"
    path = (folder / str(file)).resolve()
    if folder.resolve() not in path.parents or not path.is_file():
        raise SettingsError(f"{folder / MLMODEL}: {flavor} names {file!r}, and there is no such file in the folder")
    if path.suffix in PICKLES or path.suffix == "":
        draft = from_object(read(path, unpickle), path.name)
    else:
        draft = from_file(path, unpickle)
    draft.settings = {**_signature(said.get("signature") or {}, flavor, folder), **draft.settings}
    return draft


def _signature(said: dict[str, Any], flavor: str, folder: Path) -> dict[str, Any]:
    """Names of columns. An ONNX graph says what it takes by itself; of a tensor there is nothing to name."""
    try:
        columns = json.loads(said.get("inputs") or "[]")
        named = [(str(c["name"]), str(c["type"])) for c in columns if "name" in c and "tensor-spec" not in c]
    except (ValueError, TypeError, KeyError):
        raise SettingsError(f"{folder / MLMODEL}: its signature cannot be read: {said!r}") from None
    if not named or flavor == "onnx":
        return {}
    unknown = [f"{name} ({kind})" for name, kind in named if kind not in _DATATYPES]
    if unknown:
        raise SettingsError(f"{folder / MLMODEL}: columns of types that have no datatype here: {', '.join(unknown)}")
    if flavor != "sklearn" or all(kind != "string" for _, kind in named):
        return {"features": [name for name, _ in named]}
    return {"inputs": [{"name": name, "datatype": _DATATYPES[kind]} for name, kind in named]}

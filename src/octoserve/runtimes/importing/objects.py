"""One file: a library's own format, or an object that Python has pickled.

A pickle runs whatever it holds while it is read. It is read once, here, where whoever imports says so, and never by a
server: what is written is the library's own format.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octoserve.core.errors import BrokenVersion, SettingsError
from octoserve.runtimes.importing.draft import Draft
from octoserve.runtimes.library import first_line, needed

PICKLES = (".pkl", ".pickle", ".joblib", ".cloudpickle")
_COPIED = {".onnx": "model.onnx", ".ubj": "model.ubj", ".json": "model.json", ".txt": "model.txt", ".lgb": "model.txt",
           ".skops": "model.skops"}  # fmt: skip
_SCHEMA = "schema.json"
_BOOSTERS = (".bst", ".xgb", ".model")
"""Names that people give XGBoost's files; what is in them says which of its forms it is."""


def from_file(path: Path, unpickle: bool) -> Draft:
    """Raises SettingsError for what cannot be imported, BrokenVersion for what its library refuses."""
    suffix = path.suffix.lower()
    if suffix in _COPIED:
        return Draft(files={_COPIED[suffix]: path})
    if suffix in _BOOSTERS:
        return Draft(files={"model.ubj": _booster(path).save_model})
    if suffix in PICKLES:
        return from_object(read(path, unpickle), path.name)
    known = ", ".join([*_COPIED, *_BOOSTERS, *PICKLES])
    raise SettingsError(f"{path.name}: a file that ends in {known} is wanted, an MLflow model or a Triton repository")


def read(path: Path, unpickle: bool) -> Any:
    """What was pickled. Raises SettingsError without leave."""
    if not unpickle:
        raise SettingsError(
            f"{path.name} is a pickle, which runs whatever it holds while it is read; pass --unpickle if you trust "
            "whoever made it. The version that is written holds no pickle"
        )
    joblib = needed("joblib", "sklearn", path.name)
    try:
        return joblib.load(path)
    except Exception as error:
        raise BrokenVersion(
            f"{path.name} cannot be unpickled here: {first_line(error)}; the packages that it was made with are "
            "wanted, in their versions"
        ) from error


def from_object(model: Any, name: str) -> Draft:
    """A scikit-learn estimator, or a model of XGBoost or LightGBM in either of its interfaces."""
    origin = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if "xgboost" in origin:
        booster = model.get_booster() if hasattr(model, "get_booster") else model
        return Draft(files={"model.ubj": _writes(booster.save_model)}, settings=_labels(model))
    if "lightgbm" in origin:
        booster = getattr(model, "booster_", model)
        return Draft(files={"model.txt": _writes(booster.save_model)}, settings=_labels(model))
    if hasattr(model, "get_params") and ("sklearn" in origin or hasattr(model, "fit")):
        skops = needed("skops.io", "sklearn", name)
        return Draft(files={"model.skops": lambda path: _dump(skops, model, path)})
    raise SettingsError(
        f"{name} holds a {type(model).__module__}.{type(model).__qualname__}; a scikit-learn estimator, or a model of "
        "XGBoost or LightGBM is wanted. For anything else write a model.py: `octoserve model init`"
    )


def _booster(path: Path) -> Any:
    xgboost = needed("xgboost", "xgboost", path.name)
    try:
        with xgboost.config_context(verbosity=0):  # it would say that it does not know the name's ending
            return xgboost.Booster(model_file=str(path))
    except Exception as error:
        raise BrokenVersion(f"{path.name}: XGBoost cannot read it: {first_line(error)}") from error


def _dump(skops: Any, model: Any, path: Path) -> None:
    """As skops writes it, but the same bytes each time: it names parts by where they lay in memory, and by the hour."""
    skops.dump(model, path)
    with zipfile.ZipFile(path) as written:
        parts = {name: written.read(name) for name in written.namelist()}
    schema = json.loads(parts.pop(_SCHEMA))
    names: dict[str, str] = {}
    _renumber(schema, {}, names, parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (
            (_SCHEMA, json.dumps(schema, indent=2).encode()),
            *((n, parts[old]) for old, n in names.items()),
        ):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)


def _renumber(node: Any, ids: dict[int, int], names: dict[str, str], parts: dict[str, bytes]) -> None:
    """Ids and the names of parts in the order in which they come."""
    if isinstance(node, list):
        for item in node:
            _renumber(item, ids, names, parts)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "__id__" and isinstance(value, int):
                node[key] = ids.setdefault(value, len(ids) + 1)
            elif key == "file" and isinstance(value, str) and value in parts:
                node[key] = names.setdefault(value, f"{len(names) + 1}{Path(value).suffix}")
            else:
                _renumber(value, ids, names, parts)


def _writes(save: Callable[[str], Any]) -> Callable[[Path], None]:
    return lambda path: save(str(path))


def _labels(model: Any) -> dict[str, Any]:
    """Classes that are texts; numbers are what the scores' places say anyway."""
    classes = list(getattr(model, "classes_", ()))
    return {"labels": [str(name) for name in classes]} if classes and all(isinstance(c, str) for c in classes) else {}

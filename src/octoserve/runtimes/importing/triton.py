"""A Triton repository: a folder a model, with its `config.pbtxt` and its versions.

What runs on a CPU here is taken over: ONNX graphs, the boosters of the FIL backend, ensembles of these. What does not
(a TensorRT plan, say) can stay where it is, behind `runtime: remote`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octoserve.core.errors import SettingsError
from octoserve.runtimes.importing.draft import Draft
from octoserve.runtimes.importing.objects import from_file
from octoserve.runtimes.importing.pbtxt import Message, parse

CONFIG = "config.pbtxt"
_FIL = {
    "xgboost_ubj": "xgboost.ubj",
    "xgboost_json": "xgboost.json",
    "xgboost": "xgboost.model",
    "lightgbm": "model.txt",
}
"""FIL's model_type -> the file's name."""
_DEPTH = 8


def models(repository: Path) -> list[str]:
    """Names of the models in it; one without a config is one if it holds ONNX files."""
    return sorted(
        folder.name
        for folder in repository.iterdir()
        if folder.is_dir() and ((folder / CONFIG).is_file() or any(folder.glob("[0-9]*/model.onnx")))
    )


def from_triton(repository: Path, name: str, remote: str = "") -> dict[int, Draft]:
    """Version -> what it would hold. remote: the address of a server that keeps running what cannot run here.

    Raises SettingsError with what cannot be taken over, and why.
    """
    config = _config(repository, name)
    numbers = versions(repository / name)
    if not numbers and not config.get("ensemble_scheduling"):
        raise SettingsError(f"{repository / name} holds no version; a version is a folder named 1, 2, 3, ...")
    return {number: _draft(repository, name, config, number, remote, 0) for number in numbers or [1]}


def versions(folder: Path) -> list[int]:
    """Numbers of a model's versions."""
    return sorted(int(f.name) for f in folder.iterdir() if f.is_dir() and f.name.isdecimal() and f.name[0] != "0")


def _config(repository: Path, name: str) -> Message:
    path = repository / name / CONFIG
    if not path.is_file():
        return {}
    try:
        return parse(path.read_text(), f"{name}/{CONFIG}")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def _first(message: Message, field: str, default: str = "") -> str:
    value = (message.get(field) or [default])[0]
    return value if isinstance(value, str) else default


def _draft(repository: Path, name: str, config: Message, number: int, remote: str, depth: int) -> Draft:
    if depth > _DEPTH:
        raise SettingsError(f"{name}: ensembles inside each other, deeper than {_DEPTH}")
    if config.get("ensemble_scheduling"):
        return _ensemble(repository, name, config, remote, depth)
    kind = _first(config, "platform") or _first(config, "backend")
    folder = repository / name / str(number)
    file = _first(config, "default_model_filename")
    if file and not _is_name(file):
        raise SettingsError(
            f"{name}: default_model_filename: a file of the version's own folder is wanted, not {file!r}"
        )
    if kind in ("onnxruntime_onnx", "onnxruntime") or (not kind and (folder / "model.onnx").is_file()):
        path = folder / (file or "model.onnx")
        files: dict[str, Any] = {}
        if path.is_file():
            files = {item.name: item for item in folder.iterdir() if item.is_file()}  # weights may lie beside it
            files["model.onnx"] = files.pop(path.name)
            return Draft(files=files, settings=_batching(config))
        raise SettingsError(f"{name}: {path} is missing")
    if kind == "fil":
        wanted = _parameter(config, "model_type", "xgboost")
        if wanted in _FIL and (folder / (file or _FIL[wanted])).is_file():
            draft = from_file(folder / (file or _FIL[wanted]), unpickle=False)
            draft.settings = _batching(config)
            return draft
        kind = f"fil with model_type {wanted!r}"
    if remote:
        return Draft(settings={"runtime": "remote", "options": {"url": remote, "model": name, "version": number}})
    raise SettingsError(
        f"{name} runs on {kind or 'nothing that its config names'}, which has no runtime here; leave it to a server "
        "and say where: --remote http://host:8000"
    )


def _is_name(text: str) -> bool:
    """Of what lies in a folder itself: a config that comes from elsewhere leads nowhere else."""
    return bool(text) and Path(text).name == text and text not in (".", "..")


def _batching(config: Message) -> dict[str, Any]:
    most = _first(config, "max_batch_size", "0")
    return {"batching": {"max_rows": int(most)}} if most.isdecimal() and int(most) > 1 else {}


def _parameter(config: Message, key: str, default: str) -> str:
    for parameter in config.get("parameters", ()):
        if _first(parameter, "key") == key:
            value = (parameter.get("value") or [{}])[0]
            return _first(value, "string_value", default)
    return default


def _ensemble(repository: Path, name: str, config: Message, remote: str, depth: int) -> Draft:
    parts: dict[str, Draft] = {}
    steps: list[dict[str, Any]] = []
    scheduling = config["ensemble_scheduling"][0]
    for step in scheduling.get("step", ()):
        model = _first(step, "model_name")
        inner = _config(repository, model) if _is_name(model) and (repository / model).is_dir() else None
        if inner is None:
            raise SettingsError(f"{name}: its step {model!r} is no model of {repository}")
        wanted = _first(step, "model_version", "-1")
        number = int(wanted) if wanted.isdecimal() else max(versions(repository / model), default=1)
        part = model if model not in parts else f"{model}_{len(steps)}"
        parts[part] = _draft(repository, model, inner, number, remote, depth + 1)
        inputs, outputs = (
            {_first(entry, "key"): _first(entry, "value") for entry in step.get(field, ())}
            for field in ("input_map", "output_map")
        )
        steps.append({"part": part, "inputs": inputs, "outputs": outputs})
    options: dict[str, Any] = {"steps": steps}
    if config.get("output"):
        options["outputs"] = [_first(output, "name") for output in config["output"]]
    return Draft(settings={"runtime": "ensemble", "options": options}, parts=parts)

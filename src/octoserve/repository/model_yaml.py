"""`model.yaml`: what a version says of itself that its artifact does not. Small, typed, closed.

runtime: onnx            # else told by the artifact's name
threads: 2               # threads that one run may use
batching: {enabled: true, max_rows: 32}
effects: none            # or idempotent, or external: what a run does beyond answering
features: [amount, age]  # the table columns of the only input, in order; or {input: [columns], ...}
missing: nan             # or refuse: what a missing number in a table means
digest: sha256:...       # of the version's other files; checked before loading
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from octoserve.repository.layout import ModelSettings, Refused

MAX_BYTES = 1 << 20
_FIELDS = ("runtime", "threads", "batching", "effects", "features", "missing", "digest")
_EFFECTS = ("none", "idempotent", "external")
_MISSING = ("nan", "refuse")
_BATCHING = ("enabled", "max_rows")


def read(path: Path) -> ModelSettings:
    """Raises Refused, with the field, what was wanted and what came."""
    import yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise Refused(f"{path.name} is larger than {MAX_BYTES} bytes")
        data = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise Refused(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None
    return parse(data if data is not None else {}, path.name)


def parse(data: Any, where: str = "model.yaml") -> ModelSettings:
    """Settings from the parsed document."""
    _mapping(data, _FIELDS, where)
    batching = data.get("batching", {})
    if isinstance(batching, bool):
        batching = {"enabled": batching}
    _mapping(batching, _BATCHING, f"{where}: batching")
    return ModelSettings(
        runtime=_typed(data, "runtime", str, where),
        threads=_positive(data, "threads", where),
        batching=_typed(batching, "enabled", bool, f"{where}: batching"),
        max_batch_rows=_positive(batching, "max_rows", f"{where}: batching"),
        effects=_one_of(data, "effects", _EFFECTS, where),
        features=_features(data, where),
        missing=_one_of(data, "missing", _MISSING, where),
        digest=_digest(data, where),
    )


def _mapping(data: Any, fields: tuple[str, ...], where: str) -> None:
    if not isinstance(data, dict):
        raise Refused(f"{where}: a mapping of {', '.join(fields)} is wanted, {data!r} came")
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(fields)}"
            raise Refused(f"{where}: unknown field {key!r}; {hint}")


def _typed(data: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = data.get(key)
    if value is not None and type(value) is not kind:
        words = {str: "text", bool: "true or false", int: "a whole number"}[kind]
        raise Refused(f"{where}: {key}: {words} wanted, {value!r} came")
    return value


def _positive(data: dict[str, Any], key: str, where: str) -> int | None:
    value: int | None = _typed(data, key, int, where)
    if value is not None and value < 1:
        raise Refused(f"{where}: {key}: 1 or more wanted, {value} came")
    return value


def _one_of(data: dict[str, Any], key: str, words: tuple[str, ...], where: str) -> str | None:
    value: str | None = _typed(data, key, str, where)
    if value is not None and value not in words:
        raise Refused(f"{where}: {key}: {', '.join(words)} wanted, {value!r} came")
    return value


def _features(data: dict[str, Any], where: str) -> dict[str, tuple[str, ...]] | None:
    value = data.get("features")
    if value is None:
        return None
    named = value if isinstance(value, dict) else {"": value}
    for name, columns in named.items():
        if not isinstance(name, str) or not isinstance(columns, list) or not columns:
            raise Refused(f"{where}: features: a list of columns, or one for each input, is wanted, {value!r} came")
        if not all(isinstance(column, str) for column in columns) or len(set(columns)) != len(columns):
            raise Refused(f"{where}: features: names of columns, each once, are wanted, {columns!r} came")
    return {name: tuple(columns) for name, columns in named.items()}


def _digest(data: dict[str, Any], where: str) -> str | None:
    value: str | None = _typed(data, "digest", str, where)
    if value is not None and not (value.startswith("sha256:") and len(value) == 71):
        raise Refused(f"{where}: digest: 'sha256:' and 64 hexadecimal digits wanted, {value!r} came")
    return value

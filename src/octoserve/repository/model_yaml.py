"""`model.yaml`: what a version says of itself that its artifact does not. Small, typed, closed.

runtime: onnx            # else told by the artifact's name
threads: 2               # threads that one run may use
batching: {enabled: true, max_rows: 32}
effects: none            # or idempotent, or external: what a run does beyond answering
features: [amount, age]  # the table columns of the only input, in order; or {input: [columns], ...}
missing: nan             # or refuse: what a missing number in a table means
inputs: [{name: rows, datatype: FP32, shape: [-1, 3]}]   # where the artifact does not say them; outputs as well
categories: {island: [Biscoe, Dream]}                    # texts of a feature, in the order of their codes
labels: [legit, fraud]   # or {names: [...], of: OUTPUT, threshold: 0.5, output: label}
options: {...}           # what only the runtime knows
before: clean.py         # or clean.onnx, {file, inputs, outputs, features, options}, a list: runs before the artifact
after: verdict.onnx      # the same, after it
digest: sha256:...       # of the version's other files; checked before loading
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octoserve.repository.layout import Labels, ModelSettings, Refused, StepFile

if TYPE_CHECKING:
    from octoserve.core.signature import TensorSpec

MAX_BYTES = 1 << 20
_FIELDS = (
    "runtime", "threads", "batching", "effects", "features", "missing", "inputs", "outputs", "categories", "labels",
    "options", "before", "after", "digest",
)  # fmt: skip
_EFFECTS = ("none", "idempotent", "external")
_MISSING = ("nan", "refuse")
_BATCHING = ("enabled", "max_rows")
_TENSOR = ("name", "datatype", "shape")
_STEP = ("file", "inputs", "outputs", "features", "options")
STEPS = {".py": "python", ".onnx": "onnx"}
"""The end of a step's name -> the runtime that runs it."""
_LABELS = ("names", "of", "threshold", "output")


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
        inputs=_tensors(data, "inputs", where),
        outputs=_tensors(data, "outputs", where),
        categories=_categories(data, where),
        labels=_labels(data, where),
        options=_options(data, where),
        before=_steps(data, "before", where),
        after=_steps(data, "after", where),
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


def _tensors(data: dict[str, Any], key: str, where: str) -> tuple[TensorSpec, ...] | None:
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise Refused(f"{where}: {key}: a list of {{name, datatype, shape}} is wanted, {value!r} came")
    specs = [_tensor(item, f"{where}: {key}") for item in value]
    if len({spec.name for spec in specs}) != len(specs):
        raise Refused(f"{where}: {key}: a name comes twice; wanted once each: {', '.join(s.name for s in specs)}")
    return tuple(specs)


def _tensor(item: Any, where: str) -> TensorSpec:
    from octoserve.core.datatypes import DATATYPES
    from octoserve.core.signature import TensorSpec

    _mapping(item, _TENSOR, where)
    name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape", [-1])
    if not isinstance(name, str) or not name:
        raise Refused(f"{where}: a name is wanted for each, {item!r} came")
    if datatype not in DATATYPES:
        raise Refused(f"{where}: {name}: datatype: one of {', '.join(DATATYPES)} wanted, {datatype!r} came")
    if not isinstance(shape, list) or not all(type(size) is int and (size == -1 or size > 0) for size in shape):
        raise Refused(f"{where}: {name}: shape: a list of sizes is wanted, -1 where one varies, {shape!r} came")
    return TensorSpec(name, datatype, tuple(shape))


def _categories(data: dict[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    value = data.get("categories", {})
    if not isinstance(value, dict):
        raise Refused(f"{where}: categories: {{feature: [texts]}} is wanted, {value!r} came")
    return {str(name): _texts(texts, f"{where}: categories: {name}") for name, texts in value.items()}


def _labels(data: dict[str, Any], where: str) -> Labels | None:
    value = data.get("labels")
    if value is None:
        return None
    where = f"{where}: labels"
    value = {"names": value} if isinstance(value, list) else value
    _mapping(value, _LABELS, where)
    names = _texts(value.get("names"), where)
    threshold = value.get("threshold", 0.5)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise Refused(f"{where}: threshold: a number wanted, {threshold!r} came")
    if "threshold" in value and len(names) != 2:
        raise Refused(f"{where}: threshold: only between two names, {len(names)} came")
    of, output = _typed(value, "of", str, where), _typed(value, "output", str, where)
    return Labels(names, of or "", float(threshold), output or "label")


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise Refused(f"{where}: a list of texts is wanted, {value!r} came; put numbers and yes/no in quotes")
    if len(set(value)) != len(value):
        raise Refused(f"{where}: each text once is wanted, {value!r} came")
    return tuple(value)


def _options(data: dict[str, Any], where: str) -> dict[str, Any]:
    value = data.get("options", {})
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Refused(f"{where}: options: a mapping is wanted, {value!r} came")
    return value


def _steps(data: dict[str, Any], key: str, where: str) -> tuple[StepFile, ...]:
    value = data.get(key)
    if value is None:
        return ()
    return tuple(_step(item, f"{where}: {key}") for item in (value if isinstance(value, list) else [value]))


def _step(item: Any, where: str) -> StepFile:
    item = {"file": item} if isinstance(item, str) else item
    _mapping(item, _STEP, where)
    file = item.get("file")
    plain = isinstance(file, str) and Path(file).name == file and not file.startswith(".")
    if not plain or Path(file).suffix not in STEPS:
        ends = " or ".join(STEPS)
        raise Refused(f"{where}: the name of a file in this folder that ends in {ends} is wanted, {file!r} came")
    return StepFile(
        file=file,
        inputs=_tensors(item, "inputs", where),
        outputs=_tensors(item, "outputs", where),
        features=_features(item, where),
        options=_options(item, where),
    )


def _digest(data: dict[str, Any], where: str) -> str | None:
    value: str | None = _typed(data, "digest", str, where)
    if value is not None and not (value.startswith("sha256:") and len(value) == 71):
        raise Refused(f"{where}: digest: 'sha256:' and 64 hexadecimal digits wanted, {value!r} came")
    return value

"""A Python class, `model.py`: for what no format says.

    class Model:
        def __init__(self, folder, options): ...     # both optional: a pathlib.Path, and model.yaml's options
        def predict(self, inputs): ...               # or async def; {name: array} -> {name: array}, or the only output
        def close(self): ...                         # optional

`model.yaml` declares `inputs:` and `outputs:`, since a class does not. The file is code, and runs with all rights of
the process: only where whoever runs octoserve trusts the repository (`trust: code`).

`predict` runs in a thread, never on the event loop, one call at a time; an async one is awaited on a loop of the
model's own, as many calls at a time as `lanes:` of the options says (16).
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import BrokenVersion, Internal
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.runtimes.library import artifact, first_line
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings

CODE = "code"
LANES = 16
_FILE = "model.py"
_OWN = ("class", "lanes")
"""Options that are ours; the others are the class's."""
_PACKAGE = "octoserve_model_"
_numbers = itertools.count()


class PythonRuntime:
    """Loads `model.py` from a version folder, where code is trusted."""

    name = "python"
    artifacts: tuple[str, ...] = (_FILE,)
    distributions: tuple[str, ...] = ()

    def __init__(self, trusted: bool = False) -> None:
        self._trusted = trusted

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """Raises BrokenVersion with what the file raised, or with what is missing in model.yaml."""
        path = artifact(folder, (settings.file,) if settings.file else self.artifacts)
        if not self._trusted:
            raise BrokenVersion(
                f"{path.name} is code, and code of this repository is not trusted. If you trust whoever can write to "
                f"it, set OCTOSERVE_TRUST={CODE}, or `trust: [{CODE}]` in octoserve.yaml"
            )
        if settings.inputs is None or settings.outputs is None:
            missing = "inputs" if settings.inputs is None else "outputs"
            raise BrokenVersion(
                f"model.yaml: {missing}: wanted, since {path.name} does not say them: "
                f"`{missing}: [{{name: ..., datatype: FP32, shape: [-1, 3]}}, ...]`"
            )
        lanes = settings.options.get("lanes", LANES)
        if type(lanes) is not int or not 1 <= lanes <= 1024:
            raise BrokenVersion(f"model.yaml: options: lanes: 1 to 1024 wanted, {lanes!r} came")
        module = _import(path)
        try:
            model = _make(module, folder, settings.options, path.name)
        except BrokenVersion:
            _forget(module.__name__)
            raise
        return PythonModel(model, settings, lanes, module.__name__)


class _Loader(SourceFileLoader):
    """Leaves no bytecode: what Python would write beside the file would change the version, which is not to change."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Nothing is written."""


class _Beside:
    """Finds what lies beside a model's file, as Python would; first in `sys.meta_path`."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder.find_spec`."""
        if path is None or not name.startswith(_PACKAGE):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path)
        return spec


def _import(path: Path) -> ModuleType:
    """As a package of its own, so that `from . import other` finds files beside it, and two versions are two."""
    if _Beside not in sys.meta_path:
        sys.meta_path.insert(0, _Beside)
    name = f"{_PACKAGE}{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(
        name, path, loader=_Loader(name, str(path)), submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # sys.exit is one, and what Rust's panics become
        _forget(name)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise BrokenVersion(f"{path.name}: {type(error).__name__}: {first_line(error)}{_where(error, path)}") from error
    return module


def _forget(name: str) -> None:
    """The module, and those beside it that it imported: a version that is gone holds no memory."""
    for known in [other for other in sys.modules if other == name or other.startswith(f"{name}.")]:
        del sys.modules[known]


def _where(error: BaseException, path: Path) -> str:
    """The deepest line of the file itself."""
    line, at = 0, error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == str(path):
            line = at.tb_lineno
        at = at.tb_next
    return f" (line {line})" if line else ""


def _make(module: ModuleType, folder: Path, options: Mapping[str, Any], file: str) -> Any:
    wanted = options.get("class", "Model")
    kind = getattr(module, wanted, None) if isinstance(wanted, str) else None
    if not isinstance(kind, type) or not callable(getattr(kind, "predict", None)):
        raise BrokenVersion(
            f"{file}: a class {wanted!r} with a method predict(inputs) is wanted; name another under options: class"
        )
    rest = {key: value for key, value in options.items() if key not in _OWN}
    offered = {"folder": folder, "options": rest}
    takes = inspect.signature(kind).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    try:
        return kind(**{name: value for name, value in offered.items() if name in takes or anything})
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = _where(error, Path(module.__file__ or ""))
        raise BrokenVersion(f"{file}: {wanted}(): {type(error).__name__}: {first_line(error)}{where}") from error


class PythonModel:
    """An instance of the class."""

    platform = "python"

    def __init__(self, model: Any, settings: RuntimeSettings, lanes: int, module: str = "") -> None:
        """module: its name, which is forgotten with the model"""
        self._model = model
        self._module = module
        self._loop: asyncio.AbstractEventLoop | None = None
        self._predict: Callable[[dict[str, Array]], Any] = self._one_by_one
        self._turn = threading.Lock()
        self.lanes = 1
        if inspect.iscoroutinefunction(model.predict):
            self.lanes = lanes
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_keep_running, args=(self._loop,), name="model", daemon=True).start()
            self._predict = self._awaited
        inputs, outputs = settings.inputs or (), settings.outputs or ()
        rows = all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
        names = settings.features.get("", ())
        self.signature = Signature(
            inputs,
            outputs,
            batchable=bool(inputs) and rows and settings.batching is not False,
            features={inputs[0].name: names} if names and len(inputs) == 1 else {},
            categories=settings.categories,
        )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `runtimes.protocol.LoadedModel.run`."""
        try:
            given = self._predict({spec.name: a for spec, a in zip(self.signature.inputs, inputs, strict=True)})
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit: it ends neither a thread nor a server, and nobody would answer
            raise Internal(f"predict ended with {type(error).__name__}: {error}") from error
        outputs = self.signature.outputs
        if not isinstance(given, Mapping):
            if len(outputs) != 1:
                raise Internal(
                    f"predict gave a {type(given).__name__}; {{name: array}} is wanted, for {_names(outputs)}"
                )
            given = {outputs[0].name: given}
        missing = [spec.name for spec in outputs if spec.name not in given]
        if missing:
            raise Internal(f"predict gave no {missing[0]!r}; {_names(outputs)} are declared")
        return [_as_declared(spec, given[spec.name]) for spec in outputs]

    def _one_by_one(self, inputs: dict[str, Array]) -> Any:
        """As promised, also where a version has two queues, as a rollout's baseline has, or a job has many threads."""
        with self._turn:
            return self._model.predict(inputs)

    def _awaited(self, inputs: dict[str, Array]) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(_guarded(self._model.predict(inputs)), self._loop).result()

    def close(self) -> None:
        """See `runtimes.protocol.LoadedModel.close`."""
        try:
            if callable(getattr(self._model, "close", None)):
                done = self._model.close()
                if inspect.iscoroutine(done) and self._loop is not None:
                    asyncio.run_coroutine_threadsafe(done, self._loop).result()
        finally:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
            _forget(self._module)
            del self._predict, self._model


def _keep_running(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _guarded(work: Coroutine[Any, Any, Any]) -> Any:
    """What it gives; sys.exit in it would stop the loop, and with it all that is awaited there."""
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise Internal(f"predict ended with {type(error).__name__}: {error}") from error


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs)


def _as_declared(spec: TensorSpec, value: Any) -> Array:
    array = np.asarray(value)
    dtype = DATATYPES[spec.datatype].dtype
    if spec.datatype == "BYTES":
        array = array.astype(object) if array.dtype.kind in "US" or not array.size else array
        fits = array.dtype == object and all(isinstance(item, str | bytes) for item in array.ravel().tolist())
    else:
        fits = array.dtype == dtype or np.can_cast(array.dtype, dtype, "same_kind")
        array = _cast(spec, array, dtype) if fits else array
    sizes = zip(array.shape, spec.shape, strict=False)
    if not fits or array.ndim != len(spec.shape) or not all(want in (-1, have) for have, want in sizes):
        raise Internal(f"output {spec} is declared, predict gave {array.dtype} of shape {list(array.shape)}")
    return array


def _cast(spec: TensorSpec, array: Array, dtype: np.dtype[Any]) -> Array:
    """Raises Internal for a whole number that is another in the declared datatype."""
    cast = array.astype(dtype, copy=False)
    if dtype.kind in "iu" and cast is not array and not np.array_equal(cast, array):
        raise Internal(f"output {spec} is declared, predict gave {array.dtype} with a number that does not fit it")
    return cast

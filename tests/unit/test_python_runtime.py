"""What a Python class may do to the process that runs it, and what it leaves when it goes."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octoserve.core.errors import BrokenVersion, Internal
from octoserve.core.signature import TensorSpec
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings
from octoserve.runtimes.python import PythonRuntime

LIMIT = 60
X, Y = TensorSpec("x", "INT64", (-1,)), TensorSpec("y", "INT32", (-1,))


def load(folder: Path, text: str) -> LoadedModel:
    (folder / "model.py").write_text(text)
    return PythonRuntime(trusted=True).load(folder, RuntimeSettings(inputs=(X,), outputs=(Y,)))


def run(loaded: LoadedModel, *numbers: int) -> Any:
    """In a thread, and not for ever."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(loaded.run, [np.array(numbers, np.int64)]).result(LIMIT)[0].tolist()


def modules() -> list[str]:
    return [name for name in sys.modules if name.startswith("octoserve_model_")]


@pytest.mark.parametrize("how", ["def", "async def"])
@pytest.mark.parametrize("ends", ["sys.exit(3)", "raise asyncio.CancelledError", "raise GeneratorExit"])
def test_predict_that_would_end_its_thread_fails_and_is_asked_again(tmp_path: Path, how: str, ends: str) -> None:
    loaded = load(
        tmp_path,
        f"import asyncio, sys\nclass Model:\n    {how} predict(self, inputs):\n"
        f"        if inputs['x'][0] < 0: {ends}\n        return inputs['x'] + 1\n",
    )
    for _ in range(2):
        with pytest.raises(Exception, match=r"predict ended with|^$"):
            run(loaded, -1)
    assert run(loaded, 1, 2) == [2, 3]
    loaded.close()


@pytest.mark.parametrize(
    "text",
    [
        "import sys\nsys.exit(3)\n",
        "import sys\nclass Model:\n    def __init__(self): sys.exit(3)\n    def predict(self, inputs): ...\n",
    ],
)
def test_a_file_that_would_end_the_process_is_broken(tmp_path: Path, text: str) -> None:
    before = modules()
    with pytest.raises(BrokenVersion, match=r"SystemExit: 3 \(line \d\)"):
        load(tmp_path, text)
    assert modules() == before


def test_a_number_that_does_not_fit_what_is_declared_is_no_other_number(tmp_path: Path) -> None:
    loaded = load(tmp_path, "class Model:\n    def predict(self, inputs): return inputs['x']\n")
    assert run(loaded, 2**31 - 1, -(2**31)) == [2**31 - 1, -(2**31)]
    with pytest.raises(Internal, match="does not fit"):
        run(loaded, 2**31)


def test_predict_is_called_by_one_thread_at_a_time(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "import threading, time\nclass Model:\n    inside = 0\n    def predict(self, inputs):\n"
        "        self.inside += 1\n        time.sleep(0)\n        alone = self.inside == 1\n        self.inside -= 1\n"
        "        return inputs['x'] * alone\n",
    )
    rows = np.ones(1, np.int64)
    with ThreadPoolExecutor(8) as threads:
        came = list(threads.map(lambda _: int(loaded.run([rows])[0][0]), range(500)))
    assert set(came) == {1}
    loaded.close()


def test_a_model_that_goes_leaves_no_module_no_thread_and_no_loop(tmp_path: Path) -> None:
    before, others = modules(), threading.enumerate()
    (tmp_path / "beside.py").write_text("ONE = 1\n")
    loaded = load(
        tmp_path,
        "from .beside import ONE\nclass Model:\n    async def predict(self, inputs): return inputs['x'] + ONE\n",
    )
    assert len(modules()) == len(before) + 2
    assert run(loaded, 1) == [2]
    loop = loaded._loop  # type: ignore[attr-defined]
    threads = [thread for thread in threading.enumerate() if thread.name == "model" and thread not in others]
    assert threads
    loaded.close()
    for thread in threads:
        thread.join(LIMIT)
    assert loop.is_closed()
    assert modules() == before

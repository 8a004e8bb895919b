"""A start waits for imports: what the supervisor and the command line do not need at once, they do not import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from octoserve.patterns.online.supervisor.worker_process import COMMAND
from support.supervised import ROOT

SLOW = {"numpy", "pyarrow", "onnxruntime", "starlette", "uvicorn", "psycopg", "xxhash"}


@pytest.mark.parametrize("module", ["octoserve.patterns.online.supervisor.supervisor", "octoserve.cli.main"])
def test_nothing_slow_is_imported_at_the_start(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({SLOW!r} & sys.modules.keys()))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.split() == []


def test_no_slow_import_that_no_prediction_needs() -> None:
    code = "import sys, octoserve.patterns.online.worker; print('google.protobuf.json_format' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert ran.stdout.strip() == "False"


def test_workers_import_nothing_from_the_current_directory(tmp_path):
    (tmp_path / "random.py").write_text("print('executed')")
    told = subprocess.run(COMMAND, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert b"executed" not in told.stdout
    assert COMMAND[0] == sys.executable


def test_other_commands_do_not_import_this_one():
    code = "import sys; from octoserve.cli.commands import application; application(['model'], []); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "octoserve.cli.model" in out
    assert not {"octoserve.cli.rollout", "octoserve.cli.admin_client", "http.client"} & set(out)

"""What every suite shares: the example repository, how much to try, and no silent skips."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from support.scale import FULL

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "examples" / "models" / "build.py"

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
# The same examples each time; the full profile searches.
settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile("full", deadline=None, max_examples=1000, suppress_health_check=_QUIET)
settings.load_profile("full" if FULL else "ci")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background deaf to Ctrl-C, and so are all children: tests send it to theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `full` are left out, not skipped, unless OCTOSERVE_TEST_FULL is set."""
    if FULL:
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """With OCTOSERVE_NO_SKIPS set, a test that could not run has failed."""
    report = yield
    if report.skipped and os.environ.get("OCTOSERVE_NO_SKIPS") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped and OCTOSERVE_NO_SKIPS is set: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The same for a module that skips itself as a whole."""
    report = yield
    if report.skipped and os.environ.get("OCTOSERVE_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped and OCTOSERVE_NO_SKIPS is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def build_models() -> ModuleType:
    """`examples/models/build.py` as a module."""
    spec = importlib.util.spec_from_file_location("octoserve_example_models", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def models(build_models: ModuleType) -> Path:
    """The example repository, every model at version 1; built once for each content of the build files.

    Shared and read-only: copy a version folder out of it to change something.
    """
    digest = hashlib.sha256()
    for path in sorted(BUILD.parent.glob("*.py")):
        digest.update(path.read_bytes())
    root = ROOT / ".cache" / "tests" / f"models-{digest.hexdigest()[:16]}"
    missing = [name for name in build_models.BUILDERS if not (root / name / "1" / "model.onnx").is_file()]
    if missing:
        build_models.build(root, missing, 1)
    return root

"""What SageMaker's contract makes of a container's environment and of what lies in /opt/ml/model."""

from __future__ import annotations

from pathlib import Path

import pytest

from octoserve.cli import sagemaker
from octoserve.core.errors import SettingsError


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "model").mkdir()
    return {"SM_MODEL_DIR": str(tmp_path / "model"), "OCTOSERVE_STATE_DIR": str(tmp_path / "state")}


def test_a_repository_is_served_as_it_lies(environ: dict[str, str]) -> None:
    folder = Path(environ["SM_MODEL_DIR"])
    (folder / "fraud" / "1").mkdir(parents=True)
    flags = sagemaker.contract(environ)
    assert (flags["repository"], flags["host"], flags["http_port"]) == (str(folder), "0.0.0.0", "8080")
    assert "state_dir" not in flags  # a variable says so


def test_one_model_s_files_become_a_repository(environ: dict[str, str]) -> None:
    folder = Path(environ["SM_MODEL_DIR"])
    (folder / "model.onnx").write_bytes(b"new")
    (folder / "code").mkdir()
    for _ in range(2):  # a container that is started again finds its own leavings
        repository = Path(sagemaker.contract(environ)["repository"])
        assert (repository / "model" / "1" / "model.onnx").read_bytes() == b"new"


def test_variables_win(environ: dict[str, str]) -> None:
    environ |= {"OCTOSERVE_REPOSITORY": "/models", "OCTOSERVE_HTTP_PORT": "9000", "SAGEMAKER_BIND_TO_PORT": "1234"}
    assert sagemaker.contract(environ).keys() == {"host", "grace"}
    del environ["OCTOSERVE_HTTP_PORT"]
    assert sagemaker.contract(environ)["http_port"] == "1234"


def test_nothing_to_serve_is_said(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"holds neither <model>/<version>/ nor a model's files"):
        sagemaker.contract(environ)
    with pytest.raises(SettingsError, match="which is not there"):
        sagemaker.contract({**environ, "SM_MODEL_DIR": "/nowhere"})
    with pytest.raises(SettingsError, match="'serve' is wanted, 'train' came"):
        sagemaker.sagemaker("train")


def test_serve_alone_is_sagemaker_s_only_where_its_folder_is(environ: dict[str, str]) -> None:
    assert sagemaker.asked({}, environ)
    assert not sagemaker.asked({"repository": "models"}, environ)
    assert not sagemaker.asked({"spec": "octoserve.yaml"}, environ)
    assert not sagemaker.asked({}, {**environ, "OCTOSERVE_REPOSITORY": "models"})
    assert not sagemaker.asked({}, {"SM_MODEL_DIR": "/nowhere"})

"""What a Triton repository that comes from elsewhere may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from octoserve.core.errors import SettingsError
from octoserve.runtimes.importing.triton import from_triton


def put(repository: Path, name: str, config: str, *files: str) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"onnx")
    (repository / name / "config.pbtxt").write_text(config)


@pytest.mark.parametrize("step", ["", ".", "..", "good/../good", "../models/good", "good/"])
def test_a_step_is_a_model_of_the_same_repository(tmp_path: Path, step: str) -> None:
    models = tmp_path / "models"
    put(models, "good", "", "model.onnx")
    put(models, "whole", f'ensemble_scheduling {{ step [ {{ model_name: "{step}" model_version: -1 }} ] }}')
    with pytest.raises(SettingsError, match="is no model of"):
        from_triton(models, "whole")
    (models / "whole/config.pbtxt").write_text('ensemble_scheduling { step [ { model_name: "good" } ] }')
    assert list(from_triton(models, "whole")[1].parts) == ["good"]


@pytest.mark.parametrize("kind", ['backend: "fil"', 'platform: "onnxruntime_onnx"'])
@pytest.mark.parametrize("file", ["../../secret.json", "/etc/passwd", "..", "../../good/1/other.onnx"])
def test_a_file_is_one_of_the_version(tmp_path: Path, kind: str, file: str) -> None:
    (tmp_path / "secret.json").write_text("{}")
    put(tmp_path, "good", "", "other.onnx")
    put(tmp_path, "m", f'{kind} default_model_filename: "{file}"', "model.onnx")
    with pytest.raises(SettingsError, match="own folder is wanted"):
        from_triton(tmp_path, "m")

"""Where S3 is and who asks: what the AWS tools would take, in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from octoserve.connectors.aws import Aws, found
from octoserve.core.errors import SettingsError

CONFIG = """
[default]
region = eu-central-1

[profile lab]
region = us-west-2
endpoint_url = http://lab:9000
services = lab-services

[services lab-services]
s3 =
  endpoint_url = http://lab-s3:9000
  max_attempts = 3

[profile sso]
sso_session = work
"""
CREDENTIALS = """
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key = shh

[lab]
aws_access_key_id = AKIALAB
aws_secret_access_key = lab
aws_session_token = token
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config").write_text(CONFIG)
    (tmp_path / "credentials").write_text(CREDENTIALS)
    return {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
    }


def test_the_default_profile(files: dict[str, str]) -> None:
    assert found(files) == Aws(key="AKIADEFAULT", secret="shh", region="eu-central-1")


def test_a_named_profile_and_its_service(files: dict[str, str]) -> None:
    wanted = Aws(
        key="AKIALAB", secret="lab", token="token", region="us-west-2", endpoint="http://lab-s3:9000", profile="lab"
    )
    assert found({**files, "AWS_PROFILE": "lab"}) == wanted


def test_variables_win(files: dict[str, str]) -> None:
    said = {
        **files, "AWS_PROFILE": "lab", "AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "env",
        "AWS_DEFAULT_REGION": "ap-east-1", "AWS_ENDPOINT_URL": "https://s3.example",
    }  # fmt: skip
    assert found(said) == Aws(
        key="AKIAENV", secret="env", region="ap-east-1", endpoint="https://s3.example", profile="lab"
    )
    said |= {"AWS_REGION": "ca-west-1", "AWS_ENDPOINT_URL_S3": "https://only-s3.example"}
    assert (found(said).region, found(said).endpoint) == ("ca-west-1", "https://only-s3.example")


def test_credentials_that_only_boto3_can_get(files: dict[str, str]) -> None:
    assert found({**files, "AWS_PROFILE": "sso"}).asks_elsewhere == "sso_session"


def test_a_profile_that_is_not_there(files: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="'nobody' is in neither"):
        found({**files, "AWS_PROFILE": "nobody"})


def test_no_files_and_broken_files(tmp_path: Path) -> None:
    nowhere = {name: str(tmp_path / "none") for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
    assert found(nowhere) == Aws()
    (tmp_path / "broken").write_text("no section = 1\n")
    with pytest.raises(SettingsError, match="broken"):
        found({**nowhere, "AWS_CONFIG_FILE": str(tmp_path / "broken")})

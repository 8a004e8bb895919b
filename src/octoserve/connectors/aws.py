"""Where S3 is and who asks, as the AWS tools are told it: variables, then the profile in `~/.aws`.

What is in neither is left to the client, which knows containers' and instances' roles and web identities.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from octoserve.core.errors import SettingsError

_ELSEWHERE = (
    "role_arn",
    "sso_session",
    "sso_start_url",
    "credential_process",
    "web_identity_token_file",
    "login_session",
)
"""In a profile: credentials that are got by asking somebody, which boto3 can do."""


class Aws(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; empty: not said. asks_elsewhere: the profile's way that only boto3 knows."""

    key: str = ""
    secret: str = ""
    token: str = ""
    region: str = ""
    endpoint: str = ""
    profile: str = ""
    asks_elsewhere: str = ""


def found(variables: Mapping[str, str] = os.environ) -> Aws:
    """Raises SettingsError for a profile that is named and not there, or a file that cannot be read."""
    named = variables.get("AWS_PROFILE") or variables.get("AWS_DEFAULT_PROFILE") or ""
    profile = _profile(variables, named or "default")
    if named and profile is None:
        raise SettingsError(
            f"AWS_PROFILE: a profile wanted, {named!r} is in neither ~/.aws/config nor ~/.aws/credentials"
        )
    said = profile or {}
    key, secret, token = (
        variables.get(f"AWS_{name}", "") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
    )
    elsewhere = ""
    if not key:
        key, secret = said.get("aws_access_key_id", ""), said.get("aws_secret_access_key", "")
        token = said.get("aws_session_token", "")
        elsewhere = next((way for way in _ELSEWHERE if way in said), "") if not key else ""
    return Aws(
        key=key,
        secret=secret,
        token=token,
        region=variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or said.get("region", ""),
        endpoint=variables.get("AWS_ENDPOINT_URL_S3")
        or variables.get("AWS_ENDPOINT_URL")
        or said.get("services.s3.endpoint_url", "")
        or said.get("endpoint_url", ""),
        profile=named,
        asks_elsewhere=elsewhere,
    )


def _profile(variables: Mapping[str, str], name: str) -> dict[str, str] | None:
    """Its settings from both files; the credentials' file wins."""
    config = _read(variables.get("AWS_CONFIG_FILE") or "~/.aws/config")
    credentials = _read(variables.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
    section = "default" if name == "default" else f"profile {name}"
    if not config.has_section(section) and not credentials.has_section(name):
        return None
    said = {**(config[section] if config.has_section(section) else {})}
    services = f"services {said.get('services', '')}"
    if config.has_section(services):
        said |= _nested(config[services].get("s3", ""), "services.s3.")
    return said | {**(credentials[name] if credentials.has_section(name) else {})}


def _nested(text: str, prefix: str) -> dict[str, str]:
    """The AWS files' lines below a setting."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {prefix + name.strip(): value.strip() for name, _, value in pairs}


def _read(path: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(default_section="", strict=False)
    place = Path(path).expanduser()
    try:
        parser.read_string(place.read_text(), str(place))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise SettingsError(f"{place}: AWS settings wanted, it cannot be read: {error}") from None
    return parser

"""Where a version's reference profile lies: `<model>/_profiles/<version>.json`, beside the version and not in it.

A version's files never change once they were seen, and its digest covers all of them; a profile may be made later, and
made anew. So it has a place of its own, which scans of the repository pass over, and says the digest that it is of.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from octoserve.core.errors import SettingsError
from octoserve.core.profile import FORMAT, Profile, bins_problem

FOLDER = "_profiles"
LARGEST = 16 << 20


def path_of(version: Path) -> Path:
    """Of the version in this folder."""
    return version.parent / FOLDER / f"{version.name}.json"


def read(version: Path, digest: str = "") -> Profile | None:
    """The profile of the version in this folder; None where there is none. Raises SettingsError for one that cannot be
    used, or is of other files than those of `digest`."""
    path = path_of(version)
    try:
        if path.stat().st_size > LARGEST:
            raise SettingsError(f"{path} is larger than {LARGEST >> 20} MB: no profile")
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise SettingsError(f"{path} is no profile: {error}; make it anew: octoserve model profile") from None
    if profile.format != FORMAT:
        raise SettingsError(f"{path} has format {profile.format}, {FORMAT} is wanted; make it anew")
    for column in profile.columns:
        problem = bins_problem(column)
        if problem:
            raise SettingsError(f"{path}: column {column.name!r}: {problem}; make it anew: octoserve model profile")
    if digest and profile.digest != digest:
        raise SettingsError(
            f"{path} is the profile of other files (digest {profile.digest[:19]}, not {digest[:19]}); make it anew: "
            "octoserve model profile"
        )
    return profile


def write(version: Path, profile: Profile) -> Path:
    """In place of one that is there, whole or not at all. Raises SettingsError."""
    path = path_of(version)
    ahead = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            ahead.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
            os.replace(ahead, path)
        finally:
            ahead.unlink(missing_ok=True)
    except OSError as error:
        raise SettingsError(
            f"the profile cannot be written to {path}: {error.strerror}; it lies in the repository, beside the version"
        ) from None
    return path

"""Names that people give: of models, as folders, of labels, of hosts. What may be one is said here once."""

from __future__ import annotations

import ipaddress
import os

MAX_LENGTH = 200
RUNTIMES = "octoserve.runtimes"
"""The entry point group by which other packages bring runtimes."""


def model_name_problem(name: str) -> str:
    """Why a folder of this name is no model; empty if it may be one."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "a model's name is UTF-8"
    if len(name) > MAX_LENGTH:
        return f"a model's name has at most {MAX_LENGTH} characters"
    if "/" in name or any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
        return "a model's name has no control characters and no '/'"
    return ""


def label_problem(name: str) -> str:
    """What was wanted instead of this label; empty if it is one. All digits would read as a version."""
    letters = name.replace("-", "").replace("_", "")
    if not letters.isalnum() or len(name) > MAX_LENGTH:
        return f"at most {MAX_LENGTH} letters, digits, '-' and '_'"
    return "a name that is not a number" if name.isdigit() else ""


def is_elsewhere(place: str | os.PathLike[str]) -> bool:
    """Whether a repository, or a table, is an address, and no path."""
    return "://" in str(place)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it; of names, localhost alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False

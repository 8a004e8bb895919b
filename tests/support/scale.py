"""How much to try: little by default, all of it when OCTOSERVE_TEST_FULL is set."""

from __future__ import annotations

import os

FULL = bool(os.environ.get("OCTOSERVE_TEST_FULL"))


def scale(ci: int, full: int) -> int:
    """`full` in a full run, else `ci`."""
    return full if FULL else ci

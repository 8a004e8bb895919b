"""A supervisor that kills itself, by SIGKILL, right before or right after a commit: wherever a crash matters.

`program` is what `support.supervised.Service` runs instead of the command line alone. Nothing else of the process is
changed: it is the real supervisor with the real stores, and it is really gone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

ROLLOUTS, PLANS = "rollouts", "plans"
"""The store of rollouts, whose commit is a decision; the store of plans, whose commit comes before they are pushed."""
BEFORE, AFTER = "before", "after"


def program(store: str, when: str, number: int) -> str:
    """Dies at the `number`-th commit, counted from 1."""
    # `run`, not `main`: no worker is started ahead, which a life of a moment would only pay for.
    return (
        f"from support.kill_points import arm; arm({store!r}, {when!r}, {number}); "
        "import sys; from octoserve.cli.main import run; run(sys.argv[1:])"
    )


def arm(store: str, when: str, number: int) -> None:
    """Let this process die at that commit."""
    from octoserve.control.rollout.store import SqliteStore
    from octoserve.control.store import Store

    kind: Any = SqliteStore if store == ROLLOUTS else Store
    kind.commit = _deadly(kind.commit, when, number)


def _deadly(commit: Callable[..., None], when: str, number: int) -> Callable[..., None]:
    commits = 0

    def dying(*args: Any, **named: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == number and when == BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(*args, **named)
        if commits == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return dying

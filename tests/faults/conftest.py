"""Where rollouts and the results of queues are stored, and what queues are scored with."""

from pathlib import Path

import pytest

from support.rollout_places import new_place, place, server

__all__ = ["new_place", "place", "server"]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With model `tricky`; not to be written to."""
    from support.queue_runs import put_tricky  # which sets up how processes are forked, for those who need it

    return put_tricky(tmp_path_factory.mktemp("models"))

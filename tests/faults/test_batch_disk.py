"""A disk that refuses a step of a batch job: the job says so, and resumed it is what an undisturbed one gives."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octoserve.connectors.files import DiskTrouble
from octoserve.core.errors import SettingsError
from octoserve.patterns.batch import status
from octoserve.patterns.batch.run import resume
from octoserve.patterns.batch.workplace import place_of
from support.batch import BORNE, CountedFiles, Ground, score, tools, tree
from support.scale import FULL

GIVES = ("remove", "remove_tree")
"""What a full disk still does."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("disk"), bad=(7, 120, 1499))


def full_from(step: int, stays: bool) -> CountedFiles:
    """No space from that step on, or for that one alone. A write is done by half."""

    def at(number: int, name: str, do: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if number < step or (number > step and not stays) or name in GIVES:
            return do()
        if name == "write" and number == step:
            os.write(args[0], args[1][: len(args[1]) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    return CountedFiles(at)


def some_points(steps: int) -> list[tuple[int, bool]]:
    points = [(step, stays) for step in range(1, steps + 1) for stays in (False, True)]
    return points if FULL else random.Random(steps).sample(points, 24)


def test_full_at_a_step_and_resumed(ground: Ground, tmp_path: Path) -> None:
    refused: list[str] = []
    for step, stays in some_points(ground.steps):
        sink = tmp_path / f"{step}-{stays}"
        asked = ground.wish(sink)
        try:
            score(asked, files=full_from(step, stays))
        except (DiskTrouble, SettingsError) as trouble:  # the latter: the work folder itself
            refused.append(str(trouble))
        assert not sink.exists() or tree(sink) == ground.expected
        if place_of(sink).has_work() and not sink.exists():
            found = status.look(sink)
            assert found.state == status.STOPPED
            told = "No space left" in found.why or "before its first row" in found.why
            assert stays or told, "once there is room again, why it ended can be written down"
            resume(sink, BORNE, tools())
        else:
            score(asked)
        assert tree(sink) == ground.expected, f"refused at step {step}"
        assert not place_of(sink).work.exists(), "nothing is left beside the sink"
    assert len(refused) >= 12
    assert all("No space left" in text for text in refused)

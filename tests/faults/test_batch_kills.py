"""kill -9 at every step of a batch job, and at any time: what is there in the end is what an undisturbed run gives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from octoserve.core.errors import NotFound
from octoserve.patterns.batch import journal, status
from octoserve.patterns.batch.manifest import wanted
from octoserve.patterns.batch.run import resume
from octoserve.patterns.batch.verify import verify
from octoserve.patterns.batch.workplace import INSIDE, place_of
from support.batch import (
    AFTER,
    BEFORE,
    BORNE,
    HALF,
    Ground,
    dies,
    put_table,
    result,
    rows,
    score,
    tools,
    tree,
)
from support.scale import FULL, scale

BAD = (7, 120, 121, 777, 1499)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("batch"), bad=BAD)


def test_the_ground_is_what_the_tests_take_it_for(ground: Ground) -> None:
    table = result(ground.folder / "undisturbed")
    assert table.column("id").to_pylist() == [i for i in range(1500) if i not in BAD]
    assert len([name for name in ground.expected if name.startswith("part-")]) >= 6
    assert ground.steps > 60


def nothing_or_everything(sink: Path, ground: Ground) -> None:
    """What a reader sees who lists."""
    if sink.exists():
        assert tree(sink) == ground.expected


def some_points(steps: int) -> list[tuple[int, str]]:
    """All of them in a full run, else some, other ones each day that the code has another number of steps."""
    points = [(step, when) for step in range(1, steps + 1) for when in (BEFORE, HALF, AFTER)]
    return points if FULL else random.Random(steps).sample(points, 14)


def test_killed_at_a_step_and_resumed(ground: Ground, tmp_path: Path) -> None:
    assert killed_at(some_points(ground.steps), ground, tmp_path) >= 10


@pytest.mark.parametrize("name", ["csv", "jsonl", "arrow"])
def test_killed_at_a_step_of_another_format(
    name: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    ground = Ground(tmp_path_factory.mktemp(name), bad=BAD, sink_format=name)
    assert {Path(written).suffix for written in ground.expected if "part-" in written} == {f".{name}"}
    points = some_points(ground.steps)[: None if FULL else 3]
    assert killed_at(points, ground, tmp_path) >= 1


def killed_at(points: list[tuple[int, str]], ground: Ground, tmp_path: Path) -> int:
    """How often it died; each time what is resumed is what nobody disturbed."""
    died = 0
    for step, when in points:
        sink = tmp_path / f"{step}-{when}"
        asked = ground.wish(sink)
        died += dies(asked, step, when)
        nothing_or_everything(sink, ground)
        if place_of(sink).has_work() or sink.exists():
            resume(sink, BORNE, tools())
        else:
            score(asked)  # it died before there was a job to go on with
        assert tree(sink) == ground.expected, f"killed {when} step {step}"
        assert not place_of(sink).work.exists(), "nothing is left beside the sink"
    return died


def test_killed_again_and_again(ground: Ground, tmp_path: Path) -> None:
    """Each run dies a little later than the last; every one goes on from where the journal says."""
    sink = tmp_path / "out"
    asked = ground.wish(sink)
    step = 5
    finished = 0
    while dies(asked, step, random.Random(step).choice([BEFORE, HALF, AFTER])):
        nothing_or_everything(sink, ground)
        if place_of(sink).has_work() and not sink.exists():
            now = status.look(sink).splits
            assert now >= finished, "what was journaled stays"
            finished = now
        step += 3
        assert step < 10 * ground.steps
    assert tree(sink) == ground.expected


def test_killed_in_place(ground: Ground, tmp_path: Path) -> None:
    """A sink that cannot be renamed to: only the manifest says that it is whole."""
    for step, when in some_points(ground.steps)[:: 1 if FULL else 3]:
        sink = tmp_path / f"{step}-{when}"
        (sink / INSIDE).mkdir(parents=True)
        asked = ground.wish(sink)
        dies(asked, step, when)
        if (sink / "_SUCCESS").exists():
            assert {name: data for name, data in tree(sink).items() if not name.startswith(INSIDE)} == ground.expected
        score(asked)
        assert tree(sink) == ground.expected, f"killed {when} step {step}"


def test_killed_at_any_time(ground: Ground, tmp_path: Path) -> None:
    """The real command, killed after a random time, resumed by the real command until it ends."""
    source = put_table(tmp_path / "data", files=4, each=scale(20_000, 100_000), bad=(5, 70_000))
    flags = ["--repository", str(ground.repository), "--model", "flawed", "--source", source, "--keys", "id"]
    flags += ["--columns", "a,b", "--split-size", "40KB", "--block-rows", "200", "--state-dir", str(tmp_path / "state")]
    command(["run", *flags, "--sink", str(tmp_path / "undisturbed")])
    expected = tree(tmp_path / "undisturbed")
    randomly = random.Random(1)
    kills = 0
    for attempt in range(scale(1, 12)):
        sink = tmp_path / f"out-{attempt}"
        for _ in range(5):
            process = start(["run", *flags, "--sink", str(sink)])
            time.sleep(randomly.uniform(0.5, 3.0))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            assert not sink.exists() or tree(sink) == expected
        command(["run", *flags, "--sink", str(sink)])
        assert tree(sink) == expected
        assert verify(sink).differences == ()
    assert kills >= scale(1, 12)


def test_killed_all_along_a_large_job(ground: Ground, tmp_path: Path) -> None:
    """50 times over 10 million rows in a full run: after each kill nothing that was journaled is done again, and what
    was under way is at most a split a worker."""
    kills, group = scale(2, 50), scale(10_000, 25_000)
    files, each, workers = 4, scale(40_000, 2_500_000), 2
    (tmp_path / "data").mkdir()
    for number in range(files):
        table = rows(number * each, each, bad=(7, each + 5))
        pq.write_table(table, tmp_path / "data" / f"{number}.parquet", row_group_size=group)
    flags = ["--repository", str(ground.repository), "--model", "flawed", "--source", str(tmp_path / "data")]
    flags += ["--keys", "id", "--columns", "a,b", "--split-size", "1KB", "--workers", str(workers)]
    flags += ["--state-dir", str(tmp_path / "state")]
    command(["run", *flags, "--sink", str(tmp_path / "undisturbed")])
    sink = tmp_path / "out"
    randomly = random.Random(3)
    splits = len(wanted(tmp_path / "undisturbed").parts)
    assert splits == files * each // group
    done = 0
    for target in sorted(randomly.sample(range(1, splits - 2 * workers), kills)):
        process = start(["run", *flags, "--sink", str(sink)])
        while done < target and process.poll() is None:
            time.sleep(0.01)
            done = status.look(sink).splits if place_of(sink).has_work() else done
        time.sleep(randomly.uniform(0.0, 0.05))
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
        assert not sink.exists() or (sink / "_SUCCESS").exists()
        if sink.exists():
            break  # it was quicker than the last kill
        now = status.look(sink)
        assert now.splits >= done, "what was journaled stays"
        assert under_way(sink) <= workers
        assert "killed" in now.why
        done = now.splits
    command(["run", *flags, "--sink", str(sink)])
    assert (sink / "_SUCCESS").read_bytes() == (tmp_path / "undisturbed" / "_SUCCESS").read_bytes()
    assert verify(sink).differences == ()
    assert sum(part.rows for part in wanted(sink).parts) == files * each - 2


def under_way(sink: Path) -> int:
    """Splits that a killed run had begun and not journaled."""
    place = place_of(sink)
    journaled = {line.part.name for line in journal.read(place.journal).finished.values()}
    begun = {path.name for path in place.temp.iterdir() if path.name.startswith("part-")}
    return len({path.name for path in place.parts.glob("part-*")} - journaled | begun)


def test_a_reader_who_looks_all_along_sees_nothing_or_everything(ground: Ground, tmp_path: Path) -> None:
    sink = tmp_path / "out"
    source = put_table(tmp_path / "data", files=2, each=10_000)
    asked = [
        "run", "--repository", str(ground.repository), "--model", "flawed", "--source", source, "--columns", "a,b",
        "--sink", str(sink), "--split-size", "10KB", "--state-dir", str(tmp_path / "state"),
    ]  # fmt: skip
    process = start(asked)
    seen: set[tuple[str, ...]] = set()
    while process.poll() is None:
        try:
            seen.add(tuple(sorted(os.listdir(sink))))
        except FileNotFoundError:
            seen.add(())
    assert process.returncode == 0
    assert seen - {()} <= {tuple(sorted(os.listdir(sink)))}
    assert () in seen


def test_a_stopped_job_says_so_and_ends_in_order(ground: Ground, tmp_path: Path) -> None:
    source = put_table(tmp_path / "data", files=4, each=50_000)
    sink = tmp_path / "out"
    flags = ["--repository", str(ground.repository), "--model", "flawed", "--source", source, "--columns", "a,b"]
    flags += ["--split-size", "40KB", "--block-rows", "100", "--state-dir", str(tmp_path / "state")]
    process = start(["run", *flags, "--sink", str(sink)])
    until_begun(sink, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert f"octoserve batch resume {sink}" in err
    assert status.look(sink).state == status.STOPPED
    command(["resume", str(sink)])
    assert result(sink).num_rows == 200_000


def test_two_runs_of_one_job(ground: Ground, tmp_path: Path) -> None:
    source = put_table(tmp_path / "data", files=4, each=50_000)
    sink = tmp_path / "out"
    flags = ["--repository", str(ground.repository), "--model", "flawed", "--source", source, "--columns", "a,b"]
    flags += ["--sink", str(sink), "--split-size", "40KB", "--block-rows", "100", "--state-dir", str(tmp_path / "s")]
    first = start(["run", *flags])
    until_begun(sink, first)
    first.send_signal(signal.SIGSTOP)  # it lives, and holds the lease, for as long as we look
    for late in (["run", *flags], ["resume", str(sink)]):
        process = start(late)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 4, err
        assert f"process {first.pid} on" in err
    assert status.look(sink).state == status.RUNNING
    first.send_signal(signal.SIGCONT)
    assert first.wait(240) == 0
    assert result(sink).num_rows == 200_000
    with pytest.raises(NotFound):
        status.look(tmp_path / "elsewhere")


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    whole = [sys.executable, "-m", "octoserve", "batch", *arguments]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command(arguments: list[str]) -> str:
    """The command, until it has ended well."""
    process = start(arguments)
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    return out


def until_begun(sink: Path, process: subprocess.Popen[str]) -> None:
    """The first split is in the journal."""
    for _ in range(12000):
        if place_of(sink).has_work() and status.look(sink).splits:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no split was finished in two minutes")

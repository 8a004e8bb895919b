"""PSI and JS by their definitions; bins that lose no row; profiles that lie beside a version."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.control.drift.profiling import FEW, Profiler
from octoserve.control.drift.report import MOVED_MUCH, QUIET, UNKNOWN, build, level_of
from octoserve.core.bins import ColumnCounts
from octoserve.core.drift import by_chance, chance_limit, js, psi
from octoserve.core.errors import SettingsError
from octoserve.core.profile import LEVELS, NUMBERS, TEXTS, ColumnProfile, Profile
from octoserve.core.signature import Signature, TensorSpec
from octoserve.repository import profiles

COUNTS = st.lists(st.integers(0, 10_000), min_size=2, max_size=12)


@given(COUNTS, st.data())
def test_a_distance_is_no_less_than_nothing_and_symmetric(reference: list[int], data: st.DataObject) -> None:
    live = data.draw(st.lists(st.integers(0, 10_000), min_size=len(reference), max_size=len(reference)))
    if not sum(reference) or not sum(live):
        assert psi(reference, live) is None
        assert js(reference, live) is None
        return
    there, back = psi(reference, live), psi(live, reference)
    assert there is not None
    assert there >= 0
    assert there == pytest.approx(back)
    assert math.isfinite(there)
    apart = js(reference, live)
    assert apart is not None
    assert 0 <= apart <= 1
    assert psi(reference, reference) == pytest.approx(0)
    assert js(reference, reference) == pytest.approx(0)


def test_known_values() -> None:
    assert js([10, 0], [0, 20]) == pytest.approx(1.0), "nothing in common is one bit"
    assert psi([500_000, 500_000], [250_000, 750_000]) == pytest.approx(0.25 * math.log(3), rel=1e-4)
    assert psi([5, 5, 0], [5, 5, 0]) == 0, "a bin that nobody fills is none"
    assert by_chance([500, 500, 0], [50, 50, 0]) == pytest.approx(1 / 1000 + 1 / 100)
    limit = chance_limit([100] * 10, [100] * 10)
    assert limit == pytest.approx(27.877 * 2 / 1000, rel=0.02), "chi-square's 99.9 % of 9 degrees of freedom"


def column(values: Any, datatype: str = "FP32") -> ColumnProfile:
    text = datatype == "BYTES"
    signature = Signature([TensorSpec("c", datatype, (-1,))], [], True)
    profiler = Profiler(signature)
    profiler.add([np.asarray(values, dtype=object if text else None)], [])
    (made,) = profiler.columns()
    return made


@given(st.lists(st.floats(width=32), min_size=1, max_size=300), st.lists(st.floats(width=32), max_size=50))
def test_every_number_has_a_bin_and_only_one(made_of: list[float], live: list[float]) -> None:
    made = column(np.array(made_of, np.float32))
    assert sum(made.counts) == len(made_of)
    assert made.counts[-1] == sum(map(math.isnan, made_of))
    counts = ColumnCounts(made)
    counts.add(np.array(live, np.float32))
    assert counts.counts.sum() == len(live)
    assert counts.counts[-1] == sum(map(math.isnan, live))
    assert len(made.labels()) == len(made.counts)
    again = msgspec.json.decode(msgspec.json.encode(made), type=ColumnProfile)
    assert again == made, "no edge is lost on the way to the file"


def test_deciles_hold_a_tenth_each() -> None:
    made = column(np.arange(1000, dtype=np.float32))
    assert made.kind == NUMBERS
    assert made.counts == (100,) * 10 + (0,)
    assert (made.low, made.high) == (0, 999)


def test_few_values_have_bins_of_their_own() -> None:
    made = column([3.0] * 100)
    assert made.kind == LEVELS
    moved = ColumnCounts(made)
    moved.add(np.array([2.0] * 50))
    assert made.counts == (100, 0, 0)
    assert moved.counts.tolist() == [0, 50, 0], "a constant that is another constant has moved"
    assert column([True, False, True], "BOOL").labels() == ["true", "false", "other", "missing"]
    assert column(list(range(FEW)), "INT64").kind == LEVELS
    assert column(list(range(FEW + 1)), "INT64").kind == NUMBERS


def test_texts_keep_the_most_frequent() -> None:
    values = [f"v{i % 30:02}".encode() for i in range(300)] + [b"often"] * 50 + [b"l" * 500]
    made = column(values, "BYTES")
    assert made.kind == TEXTS
    assert made.texts[0] == "often"
    assert len(made.texts) == FEW
    assert sum(made.counts) == len(values)
    assert made.counts[-2] > 0, "all others"
    assert not any(len(text) > 100 for text in made.texts)


def test_a_sample_is_bounded_and_every_row_may_be_in_it() -> None:
    signature = Signature([TensorSpec("x", "FP64", (-1, 2))], [TensorSpec("y", "FP64", (-1,))], True)
    profiler = Profiler(signature, sample=500)
    for block in range(20):
        x = np.full((1000, 2), float(block))
        profiler.add([x], [x[:, 0]])
    assert (profiler.rows, profiler.counted) == (20_000, 500)
    first = profiler.columns()[0]
    assert first.name == "x[0]"
    assert min(first.counts[:20]) > 5, "of the first block as of the last"
    assert (first.low, first.high) == (0, 19)


def test_what_varies_in_width_has_no_profile_and_is_said() -> None:
    signature = Signature([TensorSpec("x", "FP32", (-1, -1)), TensorSpec("z", "FP32", (-1, 65))], [], True)
    assert Profiler(signature).left_out == ["x", "z"]


def profile(**more: Any) -> Profile:
    city = msgspec.structs.replace(column([b"a"] * 1000, "BYTES"), name="city")
    return Profile(
        model="m", version=3, digest="sha256:a", made=0.0, data="t", rows=1000, counted=1000,
        columns=(column(np.arange(1000.0)), city), **more,
    )  # fmt: skip


def test_a_profile_lies_beside_its_version(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "3"
    folder.mkdir(parents=True)
    assert profiles.read(folder) is None
    path = profiles.write(folder, profile())
    assert path == tmp_path / "m" / "_profiles" / "3.json"
    assert list(folder.iterdir()) == []
    assert profiles.read(folder, "sha256:a") == profile()
    with pytest.raises(SettingsError, match="of other files"):
        profiles.read(folder, "sha256:b")
    path.write_text(path.read_text().replace('"counts": [', '"counts": [7, ', 1))
    with pytest.raises(SettingsError, match="column 'c': 11 counts wanted, 12 came"):
        profiles.read(folder)
    path.write_text("{")
    with pytest.raises(SettingsError, match="is no profile"):
        profiles.read(folder)


def test_below_the_minimum_there_is_no_number() -> None:
    live = {"c": (5,) * 10 + (0,), "city": (40, 9, 0)}
    few = build(profile(), live, now=0.0, over="now", minimum=100)
    assert {c.psi for c in few.columns} == {None}
    assert {c.level for c in few.columns} == {UNKNOWN}
    assert "100 are wanted" in few.headline
    many = {name: tuple(n * 100 for n in counts) for name, counts in live.items()}
    report = build(profile(), many, now=0.0, over="now", minimum=100)
    assert [(c.name, c.level) for c in report.columns] == [("city", MOVED_MUCH), ("c", QUIET)]
    assert report.headline.startswith("1 of 2 columns has moved: city (PSI")


def test_what_chance_may_give_has_not_moved() -> None:
    assert level_of(0.3, 0.4) == QUIET
    assert level_of(0.3, 0.02) == MOVED_MUCH
    assert level_of(None, None) == UNKNOWN

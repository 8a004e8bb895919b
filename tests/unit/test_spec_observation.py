"""`prediction_log:` and `drift:` of the spec: defaults, models of their own, and errors that say what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from octoserve import spec
from octoserve.core.errors import SettingsError
from octoserve.core.observation import Observations, Observed


def observations(tmp_path: Path, text: str) -> Observations:
    path = tmp_path / "octoserve.yaml"
    path.write_text(f"repository: models\n{text}")
    return spec.load({}, {}, path).observations()


def test_nothing_is_observed_by_default(tmp_path: Path) -> None:
    assert not observations(tmp_path, "").any()


def test_a_section_is_of_every_model_and_a_models_own_is_taken_whole(tmp_path: Path) -> None:
    made = observations(
        tmp_path,
        "prediction_log: {to: logs, sample: 10%, rotate: 5s, exclude: [ssn]}\n"
        "drift: true\n"
        "models:\n"
        "  a: {prediction_log: {to: 's3://b/p', format: jsonl, keep: 7d}, drift: {window: 2h, minimum: 500}}\n"
        "  b: {prediction_log: false, drift: false}\n"
        "  c: {deadline: 1s}\n",
    )
    every, a = made.of("anything"), made.of("a")
    assert every.log is not None
    assert (every.log.to, every.log.sample, every.log.exclude) == (str(tmp_path / "logs"), 0.1, ("ssn",))
    assert every.sample == 0.1
    assert made.of("c") == every
    assert made.of("b") == Observed()
    assert a.log is not None
    assert a.drift is not None
    assert (a.log.to, a.log.format, a.log.sample, a.log.keep_days) == ("s3://b/p", "jsonl", 1.0, 7)
    assert (a.drift.window, a.drift.minimum, a.drift.alert) == (7200.0, 500, 0.25)
    assert not every.log.wants("ssn")
    assert every.log.wants("age")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("prediction_log: {sample: 10%}", "prediction_log.to"),
        ("prediction_log: {to: 'ftp://x'}", "a folder, or s3://bucket/prefix wanted"),
        ("prediction_log: {to: x, sample: 50}", "a share such as 5%"),
        ("prediction_log: {to: x, sample: 0}", "a share over 0"),
        ("prediction_log: {to: x, rotate: 1ms}", "a duration from 1s to 1d wanted"),
        ("prediction_log: {to: x, exlude: [a]}", "did you mean 'exclude'"),
        ("drift: {minimum: 5}", "at least 100"),
        ("drift: {window: 1s}", "a duration from 1m to 7d"),
        ("prediction_log: {to: x, sample: 10%}\ndrift: {sample: 5%}", "requests are drawn once"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(SettingsError, match=wanted):
        observations(tmp_path, text)


def test_all_is_a_sample_and_drift_alone_has_its_own(tmp_path: Path) -> None:
    made = observations(tmp_path, "prediction_log: {to: x, sample: all}\nmodels:\n  a: {prediction_log: false}\n")
    assert made.of("").sample == 1.0
    alone = observations(tmp_path, "drift: {sample: 25%}")
    assert alone.of("").sample == 0.25
    assert alone.any_drift()
    assert not alone.any_log()

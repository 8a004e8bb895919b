"""`octoserve advise`: what is recommended for which needs, and that the docs' table is the one it goes by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from octoserve import spec
from octoserve.cli import advise as command
from octoserve.cli.advice import BATCH_ROWS, CHANGING, DAY, HOUR, ONE_CORE, SERVING, Needs, advise, table
from octoserve.cli.main import run
from octoserve.core.errors import SettingsError

DOCS = Path(__file__).resolve().parents[2] / "docs"


def needs(**other: Any) -> Needs:
    told = {"latency": 0.05, "volume": 300.0, "freshness": 0.0, "connectivity": "always", "risk": "medium"}
    return Needs(**{**told, **other})


@pytest.mark.parametrize(
    ("told", "served"),
    [
        ({}, "online"),
        ({"latency": 5.0}, "online"),
        ({"latency": 5.1}, "async"),
        ({"latency": 600.0}, "async"),
        ({"latency": None, "freshness": DAY}, "batch"),
        ({"latency": None, "freshness": HOUR}, "batch"),
        ({"latency": None, "freshness": HOUR - 1}, "queue"),
        ({"latency": None, "freshness": 0.0}, "queue"),
        ({"connectivity": "never"}, "edge"),
        ({"latency": None, "connectivity": "sometimes"}, "edge"),
    ],
)
def test_how_to_serve(told: dict[str, Any], served: str) -> None:
    advice = advise(needs(**told))
    assert advice.serve.pattern.name == served
    assert advice.serve.because
    assert set(advice.rejected) == set(SERVING) - {served}, "every other one is turned down with a reason"
    assert all(advice.rejected.values())


@pytest.mark.parametrize(
    ("told", "changed"),
    [
        ({"risk": "low"}, "blue-green"),
        ({"risk": "medium"}, "canary"),
        ({"risk": "high"}, "shadow"),
        ({"risk": "medium", "volume": 1000 / DAY}, "shadow"),
        ({"risk": "low", "volume": 1000 / DAY}, "blue-green"),
        ({"risk": "high", "connectivity": "never"}, "blue-green"),
    ],
)
def test_how_to_change_versions(told: dict[str, Any], changed: str) -> None:
    assert advise(needs(**told)).change.pattern.name == changed


def test_reasons_carry_the_figures() -> None:
    assert "300/s is 0.78% of what one core answered" in " ".join(advise(needs()).serve.because)
    many = advise(needs(volume=3 * ONE_CORE)).serve.because
    assert "3.0 times what one core answered: several replicas" in " ".join(many)
    nightly = needs(latency=None, freshness=DAY, volume=BATCH_ROWS)
    assert "--engine spark" in " ".join(advise(nightly).serve.because), "a day's rows take a day"
    assert "--engine spark" not in " ".join(advise(needs(latency=None, freshness=DAY)).serve.because)
    assert "10 d" not in " ".join(advise(needs()).change.because)


def test_what_is_planned_is_said_to_be() -> None:
    choice = advise(needs(connectivity="never")).serve
    assert not choice.pattern.built
    assert choice.instead


# The docs


def test_the_table_of_the_docs_is_the_one_that_is_gone_by() -> None:
    assert table() in (DOCS / "advise.md").read_text()


@pytest.mark.parametrize("pattern", [*SERVING.values(), *CHANGING.values()], ids=lambda pattern: pattern.name)
def test_each_pattern_has_its_page_and_a_beginning(pattern: Any) -> None:
    assert (DOCS / pattern.page).is_file()
    assert pattern.begin
    if pattern.begin.startswith("rollout:"):
        assert spec.check({"repository": "r", **yaml.safe_load(pattern.begin)}, {}).rollout.strategy == pattern.name


def test_the_example_of_the_docs_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = (DOCS / "advise.md").read_text().split("```\n")[1]
    line, _, printed = shown.partition("\n")
    with pytest.raises(SystemExit) as ended:
        run(line.removeprefix("$ octoserve ").split())
    assert ended.value.code == 0
    assert capsys.readouterr().out == printed


# Flags and questions


FLAGS = {"latency": "50ms", "volume": "300/s", "freshness": "now", "connectivity": "always", "risk": "medium"}


def asked(**other: str) -> list[str]:
    return [word for name, text in {**FLAGS, **other}.items() if text for word in (f"--{name}", text)]


@pytest.mark.parametrize(
    ("volume", "a_second"), [("500/s", 500), ("20k/h", 20_000 / 3600), ("2M/day", 2e6 / DAY), ("1.5k/min", 25)]
)
def test_volumes(volume: str, a_second: float, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["advise", *asked(volume=volume), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["needs"]["volume"] == pytest.approx(a_second)
    assert told["serve"]["pattern"]["name"] == "online"
    assert told["change"]["pattern"]["name"] == "canary"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"latency": "fast"}, "--latency: a duration such as 20ms, 30s or 2m wanted, 'fast' came"),
        ({"latency": "0"}, "--latency: a duration of more than 0"),
        ({"volume": "500"}, "--volume: a rate such as 500/s, 20k/h or 2M/day wanted, '500' came"),
        ({"volume": "0/s"}, "--volume: a rate such as"),
        ({"freshness": "old"}, "--freshness: a duration"),
        ({"connectivity": "yes"}, "--connectivity: always, sometimes or never wanted, 'yes' came"),
        ({"risk": "none"}, "--risk: low, medium or high wanted, 'none' came"),
    ],
)
def test_what_cannot_be_read_is_said(other: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        run(["advise", *asked(**other)])
    assert words in str(error.value)


def test_without_a_terminal_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_terminal", lambda: False)
    with pytest.raises(SettingsError, match=r"^--volume, --risk: wanted"):
        run(["advise", *asked(volume="", risk="")])


def test_what_no_flag_says_is_asked_until_it_can_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["soon", "none", "1d"])
    questions: list[str] = []
    monkeypatch.setattr(command, "_terminal", lambda: True)
    monkeypatch.setattr(command.typer, "prompt", lambda text: questions.append(text) or next(answers))
    with pytest.raises(SystemExit):
        run(["advise", *asked(latency="", freshness="")])
    out = capsys.readouterr().out
    assert "'soon' came" in out
    assert "batch" in out.splitlines()[1]
    assert len(questions) == 3

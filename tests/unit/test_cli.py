"""The command line in this process: what is printed, and the exit codes."""

from __future__ import annotations

import json
import sys

import pytest

from octoserve.cli import main as cli


@pytest.fixture
def octoserve(monkeypatch, capsys, tmp_path):
    """Run a command; its exit code, what it printed, what it complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_ahead", lambda arguments: [])
    monkeypatch.setattr("octoserve.telemetry.logs.set_up", lambda *_: lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["octoserve", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def repository(tmp_path):
    for name in ("a/1", "a/2", "b/1"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model.onnx").write_text(name)
    (tmp_path / "models" / "b" / "next").mkdir()
    return "models"


def test_version_and_help(octoserve):
    code, out, _ = octoserve("--version")
    assert code == 0
    assert out.startswith("octoserve ")
    code, out, _ = octoserve("--help")
    assert code == 0
    assert all(name in out for name in ("serve", "model", "spec"))


def test_serve_help_has_a_flag_for_every_field(octoserve, monkeypatch):
    from octoserve.spec import SECTIONS, ServeSettings

    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = octoserve("serve", "--help")
    assert code == 0
    for name in ServeSettings.model_fields:
        assert name in SECTIONS or "--" + name.replace("_", "-") in out, name


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nonsense",), 2, "No such command"),
        (("serve", "--http-prt", "1"), 2, "--http-port"),
        (("serve",), 2, "pass --repository"),
        (("serve", "--repository", "nowhere"), 2, "a folder is wanted, 'nowhere' is not one"),
        (("serve", "--repository", ".", "--workers", "x"), 2, "--workers: a whole number wanted, 'x' came"),
        (("spec", "check", "nowhere.yaml"), 2, "cannot read nowhere.yaml"),
        (("model", "inspect", "x", "--repository", "models"), 1, "no x in models; there is: a/1, a/2, b/1"),
        (("model", "inspect", "a/x", "--repository", "models"), 2, "a version is a number from 1"),
    ],
)
def test_errors_say_what_to_do_without_a_traceback(octoserve, repository, arguments, code, words):
    ended, out, err = octoserve(*arguments)
    assert ended == code
    assert words in " ".join((out + err).split())
    assert "Traceback" not in err


def test_spec_check_and_schema(octoserve, tmp_path):
    (tmp_path / "octoserve.yaml").write_text("repository: models\nhttp_port: 1\n")
    code, out, _ = octoserve("spec", "check", "octoserve.yaml")
    assert code == 0
    assert "octoserve.yaml is good: http_port, repository set" in out
    code, out, _ = octoserve("spec", "schema")
    assert "http_port" in json.loads(out)["properties"]


def test_list_and_verify(octoserve, repository):
    code, out, _ = octoserve("model", "list", "--repository", repository, "--json")
    rows = json.loads(out)
    assert [(row["model"], row["version"], row["state"]) for row in rows] == [
        ("a", 1, "whole"),
        ("a", 2, "whole"),
        ("b", 1, "whole"),
    ]
    assert octoserve("model", "list", "--repository", repository)[1].startswith("MODEL")
    code, out, _ = octoserve("model", "verify", "--repository", repository)
    assert (code, out.splitlines()[0]) == (0, "a/1: not recorded yet")


def test_accept_then_change_then_accept_again(octoserve, repository, tmp_path):
    assert octoserve("model", "verify", "--accept", "--repository", repository)[0] == 0
    (tmp_path / "models" / "a" / "1" / "model.onnx").write_text("other")
    code, out, _ = octoserve("model", "verify", "--repository", repository)
    assert code == 1
    assert "a/1: changed: digest was sha256:" in out
    assert "a/2: same" in out
    assert octoserve("model", "verify", "a/1", "--accept", "--repository", repository)[0] == 0
    assert octoserve("model", "verify", "--repository", repository)[0] == 0


def test_inspect_of_a_broken_model_says_why(octoserve, repository):
    code, out, _ = octoserve("model", "inspect", "b", "--repository", repository, "--json")
    shown = json.loads(out)
    assert code == 1
    assert shown["state"] == "broken"
    assert "model.onnx" in shown["reason"]
    assert shown["ignored"] == ["b/next is ignored: a version is a folder named 1, 2, 3, ..."]

"""`octoserve rollout` against a server that speaks the contract: what is sent, what is shown, the exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from octoserve.cli import main as cli
from octoserve.cli import rollout_audit
from octoserve.cli.admin_client import AdminClient, NoAnswer, Refused, printable
from octoserve.cli.commands import application
from octoserve.cli.rollout_audit import check, lines_of
from octoserve.cli.rollout_screen import printed, status_lines
from octoserve.cli.rollout_status import duration, effect, latency, percent, read_status
from octoserve.cli.rollout_verdicts import drawn, verdict_lines
from octoserve.cli.rollout_watch import Changes, Look, looks, screen_lines
from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.rollout.audit import AuditEntry, chain, encode
from octoserve.core.errors import InvalidInput, NotFound, OctoserveError, SettingsError, Unavailable
from support.rollout_api import NEW, RolloutApi, ended, rollout, status, summary, verdict

COMMANDS = ("approve", "pause", "resume", "promote", "abort", "rollback")


@pytest.fixture
def api():
    server = RolloutApi()
    yield server
    server.close()


@pytest.fixture(scope="module")
def parser():
    """What a command line is parsed with; it is the same each time, and the most that a run of these takes."""
    return typer.main.get_command(application(["rollout"], []))


@pytest.fixture
def octoserve(monkeypatch, capsys, tmp_path, api, parser):
    """Run `octoserve rollout ...` here; its exit code, what it printed, what it complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(typer.main, "get_command", lambda _: parser)
    monkeypatch.setenv("OCTOSERVE_ADMIN_URL", api.url)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    for name in ("OCTOSERVE_ADMIN_TOKEN", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["octoserve", "rollout", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        came = capsys.readouterr()
        assert "Traceback" not in came.err
        return code, came.out, came.err

    yield run
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def unhurried(monkeypatch):
    """Waiting takes no time; after `looks` waits Ctrl-C is pressed."""
    left = [1000]

    def sleep(_):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)

    def press_after(waits):
        left[0] = waits

    return press_after


def shown(value, width=80, height=None):
    """The text of a status on a terminal of this size."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(printed(console, status_lines(read_status(value), width, height)))
    return console.file.getvalue()


def last(api):
    return api.asked[-1]


# --- what is sent ---------------------------------------------------------------------------------------


def test_start_sends_what_was_said_and_nothing_else(octoserve, api):
    code, out, _ = octoserve("start", "fraud", "--candidate", "2")
    assert (code, last(api).method, last(api).path, last(api).body) == (
        0, "POST", "/api/rollouts/fraud", {"candidate": 2},
    )  # fmt: skip
    assert "step 1 of 4" in out
    assert "octoserve rollout status fraud --watch" in out
    arguments = ("--candidate", "3", "--strategy", "shadow", "--stable", "2", "--reason", "new data", "--json")
    code, out, _ = octoserve("start", "fraud", *arguments)
    assert code == 0
    assert last(api).body == {"candidate": 3, "strategy": "shadow", "stable": 2, "reason": "new data"}
    assert json.loads(out)["rollout"]["strategy"] == "shadow"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_asks_for_itself_with_reason_and_id(octoserve, api, command):
    api.statuses["fraud"] = status(actions=list(COMMANDS))
    code, out, _ = octoserve(command, "fraud")
    assert (code, last(api).path, last(api).body) == (0, f"/api/rollouts/fraud/{command}", {})
    assert out.startswith(f"{command}: accepted")
    id_ = rollout()["id"]
    code, out, _ = octoserve(command, "fraud", "--reason", "as agreed", "--id", id_, "--json")
    assert (code, last(api).body) == (0, {"reason": "as agreed", "id": id_})
    assert json.loads(out)["endpoint"] == "fraud"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_not_legal_now_gives_the_servers_reason(octoserve, api, command):
    api.statuses["fraud"] = ended("aborted", "too many errors")
    code, out, err = octoserve(command, "fraud")
    assert (code, out) == (1, "")
    assert f"{command} is not possible in ended" in err


def test_another_rollout_than_the_one_meant_is_left_alone(octoserve, api):
    code, _, err = octoserve("abort", "fraud", "--id", "fraud-old")
    assert code == 1
    assert "the live rollout is fraud-20261124T120000-7f3a" in err


def test_names_are_quoted(api):
    api.statuses["a/b c"] = status("a/b c")
    assert AdminClient(api.url).status("a/b c")["endpoint"] == "a/b c"
    with pytest.raises(NotFound, match="no endpoint a b"):
        AdminClient(api.url).status("a b")


# --- the token ------------------------------------------------------------------------------------------


def test_the_token_comes_from_the_environment_or_a_file(octoserve, api, monkeypatch, tmp_path):
    api.token = "sésame"
    code, _, err = octoserve("status")
    assert code == 2
    assert "wants the admin token: set OCTOSERVE_ADMIN_TOKEN" in err
    monkeypatch.setenv("OCTOSERVE_ADMIN_TOKEN", "wrong")
    code, _, err = octoserve("status", "fraud")
    assert code == 2
    assert "refuses the token" in err
    assert "wrong" not in err
    (tmp_path / "token").write_text("sésame\n")
    api.token = "sésame".encode().decode("latin-1")  # http.server reads headers as Latin-1; the bytes are what counts
    assert octoserve("status", "fraud", "--token-file", "token")[0] == 0
    monkeypatch.setenv("OCTOSERVE_ADMIN_TOKEN", "sésame")
    assert octoserve("abort", "fraud")[0] == 0


@pytest.mark.parametrize(("content", "words"), [(None, "cannot read it"), ("\n", "is empty"), ("a\nb: c", "one line")])
def test_a_token_file_that_holds_none(octoserve, tmp_path, content, words):
    if content is not None:
        (tmp_path / "token").write_text(content)
    code, _, err = octoserve("status", "--token-file", "token")
    assert code == 2
    assert words in err


def test_no_flag_takes_the_token_itself(octoserve):
    assert octoserve("status", "--token", "x")[0] == 2
    assert octoserve("status", "--admin-token", "x")[0] == 2


# --- errors ---------------------------------------------------------------------------------------------


def test_no_service_says_where_it_was_looked_for_and_how_to_name_another(octoserve, api):
    api.stop()
    for arguments in (("status",), ("status", "fraud", "--watch"), ("start", "fraud", "--candidate", "2", "--wait")):
        code, out, err = octoserve(*arguments)
        assert (code, out) == (1, "")
        assert f"no answer from {api.url} (Connection refused)" in err
        assert "--admin-url or OCTOSERVE_ADMIN_URL" in err


def test_the_flag_names_another_address_than_the_environment(octoserve, api, monkeypatch):
    monkeypatch.setenv("OCTOSERVE_ADMIN_URL", "http://127.0.0.1:1")
    assert octoserve("status")[0] == 1
    assert octoserve("status", "--admin-url", api.url)[0] == 0
    assert octoserve("status", "--admin-url", api.url.removeprefix("http://"))[0] == 0


def test_an_unknown_endpoint_says_what_there_is(octoserve, api):
    api.statuses["iris"] = status("iris")
    for arguments in (("status", "fruad"), ("history", "fruad"), ("abort", "fruad"), ("audit", "fruad")):
        code, _, err = octoserve(*arguments)
        assert code == 1
        assert "no endpoint fruad" in err
        assert "there is: fraud, iris" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("start", "fraud"), "--candidate"),
        (("start", "fraud", "--candidate", "x"), "--candidate"),
        (("start", "fraud", "--candidate", "0"), "--candidate"),
        (("start", "fraud", "--candidate", "2", "--strategy", "blue"), "blue-green"),
        (("status", "--admin-url", "ftp://x"), "an address like http://127.0.0.1:8082"),
        (("status", "--admin-url", "http://127.0.0.1:port"), "--admin-url"),
        (("status", "--admin-url", "http://me:secret@127.0.0.1"), "no name and password"),
        (("replay",), "Either ENDPOINT"),
        (("replay", "fraud", "--file", "x"), "Either ENDPOINT"),
        (("replay", "--file", "nowhere.json"), "cannot read nowhere.json"),
        (("report", "fraud", "--html", "x.html", "--json"), "one of them"),
    ],
)
def test_asked_wrongly_is_two(octoserve, arguments, words):
    code, out, err = octoserve(*arguments)
    assert code == 2
    assert words in " ".join((out + err).replace("│", " ").split())
    assert "secret" not in err


@pytest.mark.parametrize(
    ("fail", "code", "words"),
    [
        ((200, b"<html>"), 1, "not as octoserve's admin API does"),
        ((200, b"3"), 1, "not as octoserve's admin API does"),
        ((404, b"<html>"), 1, "not as octoserve's admin API does"),
        ((404, b'{"error": "GET /api/rollouts: Not Found"}'), 1, "is that its admin port (8082 by default)"),
        ((503, b'{"error": "the controller is starting"}'), 1, "cannot answer now: the controller is starting"),
        ((500, b'{"error": "a bug"}'), 1, "answers 500: a bug"),
        ((400, b'{"error": "candidate: 9 is not there"}'), 2, "candidate: 9 is not there"),
        ((403, b'{"error": "another \\u001b[2J origin"}'), 1, "another \N{REPLACEMENT CHARACTER}[2J origin"),
    ],
)
def test_answers_that_are_none(octoserve, api, fail, code, words):
    api.fail = fail
    ended_with, out, err = octoserve("status")
    assert (ended_with, out) == (code, "")
    assert words in err


def test_a_status_of_another_shape_is_said_so(octoserve, api):
    api.statuses["fraud"] = {"endpoint": "fraud", "rollout": {"steps": 3}}
    code, _, err = octoserve("status", "fraud")
    assert code == 1
    assert "--json shows it" in err
    assert octoserve("status", "fraud", "--json")[0] == 0


def test_errors_of_the_client_have_kinds(api):
    client = AdminClient(api.url)
    with pytest.raises(Refused):
        client.command("fraud", "rollback")
    with pytest.raises(SettingsError):
        client.start("fraud", {"candidate": "two"})
    api.stop()
    with pytest.raises(NoAnswer) as caught:
        client.statuses()
    assert caught.value.why == "Connection refused"


# --- status ---------------------------------------------------------------------------------------------


def test_status_of_a_canary_in_80_columns():
    value = status(
        verdicts=[
            verdict(),
            verdict("FAIL", segment="country=DE", low=0.02, estimate=0.04, high=0.09, note="3 of 20 failed"),
            verdict("PASS", check="latency_p99", unit="ratio", low=0.9, estimate=1.02, high=1.1, margin=1.25),
            verdict("NO_DATA", check="revenue", estimate=None, note="no row is newer than 5 min"),
        ],
        pairs={
            "offered": 1200, "sent": 1180, "ok": 1175, "error": 3, "timeout": 2, "dropped": {"queue_full": 20},
            "compared": 1175, "disagreed": 4, "outputs": {"score": 3}, "noise_compared": 300, "noise_disagreed": 2,
        },
    )  # fmt: skip
    text = shown(value)
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "…" not in text
    assert lines[0].startswith("fraud  canary v1 → v2  step 2 of 4")
    assert lines[0].endswith("fraud-20261124T120000-7f3a")
    assert "█ v2 candidate 10 %   ▓ v1 baseline 10 %   ░ v1 stable 80 %" in text
    assert "✓ 1 %  ▶ 10 %  · 50 % (approval)  · 100 %" in text
    assert re.search(r"exposure  █{12}░{18}  212 of 500", text)
    assert "for 212 of 500 answered requests of the candidate" in text
    assert "40 s in this step (≥ 1 min), deadline in 59 min 20 s" in text
    assert re.search(r"error_rate +HOLD +-0\.30 +├─+●─+┃─+┤ +\+2\.00 +1\.00 pp", text)
    assert re.search(r"error_rate country=DE +FAIL +\+2\.00 +┊ *┃ *├─+●─+┤ +\+9\.00", text)
    assert re.search(r"latency_p99 +PASS +×0\.90 +├─+●─+┤ +┃ +×1\.10 +×1\.25", text)
    assert "no row is newer than 5 min" in text
    assert "1,200 = sent 1,180 + dropped 20 (queue_full 20)" in text
    assert "sent 1,180 = ok 1,175 + error 3 + timeout 2" in text
    assert "1,175, differ 4 (0.34 %); noise floor 2 (0.67 %) of 300" in text
    assert "octoserve rollout abort | pause | promote fraud" in text


def replicas(*silent):
    """Three at most; the first leads, the second was asked, and a silent one is not waited for."""
    return [
        {"id": name, "leads": name == "a", "here": name == "b", "silent": seconds, "counts": seconds < 10}
        for name, seconds in zip("abc", silent, strict=False)
    ]


def test_one_replica_is_not_worth_a_line():
    assert "replicas" not in shown({**status(), "replicas": replicas(0.1)})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            ended("aborted", "error_rate: 5 % failed"),
            ["ended: aborted", "error_rate: 5 % failed", "held back v2", "4 min"],
        ),
        (ended("promoted", "every step passed"), ["ended: promoted", "every step passed", "v2 candidate 100 %"]),
        ({**status(), "rollout": None}, ["none yet; octoserve rollout start fraud --candidate V"]),
        (status(paused="by bo: look first"), ["paused, step 2 of 4", "by bo: look first", "rollout resume fraud"]),
        (status(phase="aborting", reason="breaker"), ["aborting", "breaker"]),
        (
            {**status(settled=None), "acknowledged": False},
            ["not every worker follows yet", "not all follow generation 12"],
        ),
        (status(deadline=1_764_000_040.0), ["passed 1 min ago"]),
        ({**status(), "routes": []}, ["no version answers"]),
        (status(samples=None, phase="retaining", pairs=None, arms={}), ["retaining"]),
        (
            {**status(), "replicas": replicas(0.2, 0.4, 31.0)},
            ["a (leads) · b (this one) ·", "c (silent for 31 s, not waited for)"],
        ),
    ],
)
def test_status_says_plainly_how_things_are(value, words):
    text = shown(value)
    for word in words:
        assert word in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_step_is_never_broken_across_lines():
    steps = [{"weight": (i + 1) / 20, "state": "next", "approval": i % 2 == 0} for i in range(20)]
    text = shown(status(steps=steps, step=0))
    for i in range(20):
        assert f"· {5 * (i + 1)} %" + (" (approval)" if i % 2 == 0 else "") in text
    assert max(map(len, text.splitlines())) <= 80


def test_status_of_all_endpoints_and_of_the_only_one(octoserve, api):
    assert octoserve("status")[1].startswith("fraud  canary v1 → v2  step 2 of 4")
    api.statuses["iris"] = {**status("iris", 0.0), "rollout": None}
    code, out, _ = octoserve("status")
    assert code == 0
    assert re.search(r"fraud +v2 10 %, v1 90 % +canary v1 → v2, step 2 of 4", out)
    assert re.search(r"iris +v1 100 % +no rollout yet", out)
    assert "waiting for 212 of 500" in out
    assert set(json.loads(octoserve("status", "--json")[1])) == {"fraud", "iris"}
    api.statuses.clear()
    assert "no endpoint yet" in octoserve("status")[1]


def test_nothing_that_others_typed_reaches_the_terminal_as_an_escape(octoserve, api):
    api.statuses["fraud"] = status(reason="\x1b]0;owned\x07", verdicts=[verdict(segment="k=\x1b[2J")])
    api.history = [summary(ended("aborted", "\x1b[31mred"))]
    api.reports = {"text": b"worst: \x1b[2J"}
    for arguments in (("status", "fraud"), ("history", "fraud"), ("report", "fraud")):
        code, out, _ = octoserve(*arguments)
        assert code == 0
        assert "\x1b" not in out
        assert "\x07" not in out


def test_a_pipe_and_no_color_get_no_colour(octoserve, monkeypatch):
    assert "\x1b" not in octoserve("status", "fraud")[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[33m" in octoserve("status", "fraud")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3[0-7]", octoserve("status", "fraud")[1])


def test_a_terminal_without_utf_8_gets_ascii():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, "ascii"), width=80, highlight=False)
    console.print(printed(console, status_lines(read_status(status()), 80)))
    console.file.flush()
    assert "v1 > v2" in raw.getvalue().decode("ascii")


@given(height=st.integers(8, 40), checks=st.integers(0, 30), width=st.integers(40, 200))
def test_a_live_screen_fits_and_keeps_the_worst(height, checks, width):
    verdicts = [verdict("PASS", segment=f"s={i}") for i in range(checks)] + [verdict("FAIL", check="worst")]
    value = status(verdicts=verdicts, pairs={"offered": 5, "sent": 5, "ok": 5})
    lines = screen_lines(Look({"fraud": value}), "http://x", width, height)
    assert len(lines) == height
    assert "Ctrl-C" in lines[-1].plain or width < 60
    assert max(line.cell_len for line in lines) <= width
    if height >= 18 and width >= 80:
        text = "\n".join(line.plain for line in lines)
        assert "worst" in text
        assert "rollout abort" in text
        assert (f"and {checks + 1 - text.count('s=') - 1} more" in text) == (text.count("s=") < checks)


# --- intervals ------------------------------------------------------------------------------------------

numbers = st.floats(-1e9, 1e9) | st.floats(-1, 1)


@given(ends=st.lists(numbers, min_size=3, max_size=3), margin=numbers, width=st.integers(11, 80))
def test_an_interval_is_never_drawn_on_the_wrong_side_of_its_margin(ends, margin, width):
    low, estimate, high = sorted(ends)
    text = drawn(Verdict(check="c", outcome=Outcome.HOLD, low=low, estimate=estimate, high=high, margin=margin), width)
    assert len(text) == width
    assert text.count("●") == text.count("┃") == 1
    body = [i for i, c in enumerate(text) if c in "├─●┤"]
    if margin > high:
        assert text.index("┃") > body[-1]
    elif margin < low:
        assert text.index("┃") < body[0]
    if margin > estimate:
        assert text.index("┃") > text.index("●")
    elif margin < estimate:
        assert text.index("┃") < text.index("●")


@given(
    st.sampled_from([None, float("nan"), float("inf"), float("-inf"), 0.0, 1e308]),
    st.sampled_from([None, float("nan"), float("inf"), 0.0, 1.0]),
    st.sampled_from([None, float("nan"), 0.5]),
)
def test_ends_that_are_not_known_run_off_the_track(low, high, margin):
    some = Verdict(check="c", outcome=Outcome.HOLD, low=low, estimate=0.0, high=high, margin=margin)
    text = drawn(some, 20)
    assert len(text) == 20
    assert ("◂" in text) == (low != 0.0)
    assert ("▸" in text) == (high not in (0.0, 1.0))
    assert ("┃" in text) == (margin == 0.5)
    assert len(verdict_lines([some], 80)) == 2


def test_segments_are_told_from_each_other_in_80_columns():
    found = [
        Verdict(
            check=check, outcome=Outcome.PASS, segment=f"x-country={where}", low=0.0, estimate=0.1, high=0.2, margin=1.0
        )
        for check in ("disagreement", "error_rate")
        for where in ("DE", "FR")
    ]
    names = [line.plain.split("PASS")[0].rstrip() for line in verdict_lines(found, 80)[1:]]
    assert len(set(names)) == 4
    assert [name[-2:] for name in names] == ["DE", "FR", "DE", "FR"]
    assert names[0].startswith("disagreement")
    assert all(len(line.plain) <= 80 for line in verdict_lines(found, 80))


def test_no_estimate_no_drawing():
    nothing = Verdict(check="c", outcome=Outcome.NO_DATA, n=3, n_base=4)
    assert drawn(nothing, 20) == ""
    assert verdict_lines([nothing], 80)[1].plain == "c      NO DATA  3 / 4 samples"


@pytest.mark.parametrize(
    ("came", "wanted"),
    [
        (percent(0.1), "10 %"), (percent(0.005), "0.5 %"), (percent(0.00123), "0.12 %"), (percent(1.0), "100 %"),
        (duration(42), "42 s"), (duration(200), "3 min 20 s"), (duration(180), "3 min"), (duration(3900), "1 h 05 min"),
        (duration(183600), "2 d 3 h"), (duration(-1), "0 s"), (latency(None), "–"), (latency(0.0008), "0.80 ms"),
        (latency(0.134), "134 ms"), (effect(0.004, "share"), "+0.40"), (effect(0.01, "share", bound=True), "1.00 pp"),
        (effect(1.3, "ratio"), "×1.30"), (effect(-0.5, "EUR"), "-0.5"), (effect(2.0, "EUR", bound=True), "2 EUR"),
    ],
)  # fmt: skip
def test_numbers_for_people(came, wanted):
    assert came == wanted


# --- watching -------------------------------------------------------------------------------------------


def test_watch_without_a_terminal_prints_what_changes(octoserve, api, unhurried):
    api.script = [
        status(waiting_for="212 of 500 answered requests of the candidate"),
        status(waiting_for="213 of 500 answered requests of the candidate", now=1_764_000_101.0),
        status(verdicts=[verdict("PASS", high=0.008)], samples={"have": 500, "want": 500}, waiting_for="approval"),
        ended("aborted", "error_rate: too many"),
    ]
    unhurried(8)
    code, out, _ = octoserve("status", "fraud", "--watch")
    assert code == 0
    assert [re.sub(r"├.*┤|\s+", " ", line) for line in out.splitlines()] == [
        "16:01:40 fraud v2 10 %, v1 90 % canary v1 → v2, step 2 of 4; "
        "waiting for 212 of 500 answered requests of the candidate",
        "16:01:40 fraud error_rate HOLD -0.30   +2.00 | 1.00 pp",
        "16:01:40 fraud v2 10 %, v1 90 % canary v1 → v2, step 2 of 4; waiting for approval",
        "16:01:40 fraud error_rate PASS -0.30   ┃ +0.80 | 1.00 pp",
        "16:05:00 fraud v1 100 % canary v1 → v2, ended: aborted: error_rate: too many",
        "16:05:00 fraud error_rate HOLD -0.30   +2.00 | 1.00 pp",
    ]


def test_watch_as_json_is_a_line_a_change(octoserve, api, unhurried):
    api.script = [status(), status(now=1_764_000_101.0), status(step=2), ended("promoted")]
    unhurried(8)
    code, out, _ = octoserve("status", "fraud", "--watch", "--json")
    assert code == 0
    assert [json.loads(line)["rollout"]["step"] for line in out.splitlines()] == [1, 2, 1]


def test_watch_survives_a_restart_and_says_how_long_it_was_silent():
    answers = [
        {"fraud": status()},
        Unavailable("refused"),
        NotFound("not yet"),
        OctoserveError("500"),
        {"fraud": status(step=2)},
    ]
    now = [0.0]

    def ask():
        answer = answers.pop(0) if answers else SettingsError("401")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(seconds):
        now[0] += seconds

    came = looks(ask, 2.0, lambda: now[0], sleep)
    seen = [next(came) for _ in range(5)]
    assert [look.silence for look in seen] == [0, 2, 4, 6, 0]
    assert all(look.raw for look in seen)
    with pytest.raises(SettingsError):
        next(came)
    changes = Changes("http://x")
    told = [[line.split("  ", 1)[1] for line in changes.of(look)] for look in seen]
    assert told[1:4] == [
        ["no answer for 2 s from http://x (refused)"],
        ["no answer for 4 s from http://x (not yet)"],
        [],
    ]
    assert told[4][0] == "http://x answers again, after 6 s"
    assert "step 3 of 4" in told[4][1]
    assert screen_lines(seen[2], "http://x", 80, 24)[-1].plain == "no answer for 4 s from http://x (not yet); asking on"


def test_the_first_answer_must_come():
    def ask():
        raise Unavailable("refused")

    with pytest.raises(Unavailable):
        next(looks(ask, 1.0, time.monotonic, lambda _: None))


# --- start --wait ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("result", "code"), [("promoted", 0), ("observed", 0), ("aborted", 1), ("rolled back", 1)])
def test_start_and_wait_for_the_end(octoserve, api, unhurried, result, code):
    old = ended("promoted", "an earlier one")
    api.script = [old, status(**NEW, step=0), status(**NEW, step=3), ended(result, "so it went", **NEW)]
    code_, out, err = octoserve("start", "fraud", "--candidate", "2", "--wait")
    assert code_ == code
    assert "step 4 of 4" in out
    assert f"ended: {result}" in out
    assert (f"{NEW['id']} ended: {result}: so it went" in err) == bool(code)


def test_waiting_passes_over_the_rollout_that_is_superseded(octoserve, api, unhurried):
    old = status(step=2)
    going = status(step=2, phase="aborting")
    api.on_start = lambda *_: going
    api.script = [old, going, ended("superseded"), status(**NEW), ended("promoted", **NEW)]
    code, out, _ = octoserve("start", "fraud", "--candidate", "2", "--wait", "--json")
    assert (code, json.loads(out)["rollout"]["id"]) == (0, NEW["id"])


def test_waiting_for_one_that_is_superseded_itself(octoserve, api, unhurried):
    later = {"id": "fraud-20261124T140000-0002", "candidate": 3}
    api.script = [ended("promoted"), status(**NEW), status(**later)]
    api.history = [summary(s) for s in (status(**later), ended("superseded", "v3 came", **NEW), ended("promoted"))]
    code, _, err = octoserve("start", "fraud", "--candidate", "2", "--wait")
    assert code == 1
    assert f"{NEW['id']} ended: superseded: v3 came" in err


def test_ctrl_c_while_waiting_says_that_it_goes_on(octoserve, api, unhurried):
    unhurried(2)
    code, _, err = octoserve("start", "fraud", "--candidate", "2", "--wait")
    assert code == 1
    assert "the rollout goes on: octoserve rollout status fraud --watch" in err


# --- history and report ---------------------------------------------------------------------------------


def test_history(octoserve, api):
    api.history = [summary(status()), summary(ended("aborted", "error_rate: " + "5.1 % failed " * 8))]
    code, out, _ = octoserve("history", "fraud", "--limit", "5")
    assert (code, last(api).query) == (0, {"limit": "5"})
    assert re.search(r"2025-11-24 16:00 +canary +v1 → v2 +running", out)
    assert re.search(r"canary +v1 → v2 +aborted +4 min 20 s", out)
    assert max(map(len, out.splitlines())) <= 80
    assert len(json.loads(octoserve("history", "fraud", "--json")[1])) == 2
    api.history = []
    assert "no rollout yet" in octoserve("history", "fraud")[1]


def test_report_in_three_forms(octoserve, api, tmp_path):
    code, _, err = octoserve("report", "fraud")
    assert (code, "nothing was mirrored" in err) == (1, True)
    api.reports = {"text": "changed: é\n".encode(), "json": b'{"pairs": 3}', "html": b"<!doctype html>"}
    assert octoserve("report", "fraud")[1] == "changed: é\n"
    assert json.loads(octoserve("report", "fraud", "--json", "--id", "x")[1]) == {"pairs": 3}
    assert last(api).query == {"format": "json", "id": "x"}
    assert octoserve("report", "fraud", "--html", "page.html")[0] == 0
    assert (tmp_path / "page.html").read_bytes() == b"<!doctype html>"
    assert os.listdir(tmp_path) == ["page.html"]
    assert octoserve("report", "fraud", "--html", "-")[1] == "<!doctype html>\n"
    code, _, complaint = octoserve("report", "fraud", "--html", "no/page.html")
    assert code == 2
    assert "cannot write no/page.html: No such file or directory" in complaint
    assert ".part" not in complaint


# --- audit and replay -----------------------------------------------------------------------------------


def chained(count=4, **fields):
    """The lines of an endpoint's chain."""
    lines, before = [], None
    for i in range(count):
        base = {"rollout": "r", "endpoint": "fraud", "time": 1_764_000_000.0 + i, "who": "controller", "event": "look"}
        looked = Verdict(
            check="error_rate", outcome=Outcome.HOLD, low=float("-inf"), estimate=0.1, high=0.2, margin=0.01
        )
        base |= {"from_phase": "running", "to_phase": "running", "to_step": i, "reason": f"reason {i}"}
        before = chain(before, AuditEntry(**{**base, "verdicts": (looked,), **fields}))
        lines.append(encode(before))
    return lines


def array(lines):
    return b"[" + b",".join(lines) + b"]"


def test_audit_lists_and_gives_the_very_bytes(octoserve, api):
    api.audits = {"": array(chained())}
    code, out, _ = octoserve("audit", "fraud")
    assert code == 0
    assert out.splitlines()[0] == "2025-11-24"
    assert re.search(r"2  16:00:01  look +step 1 → step 2 +HOLD$", out, re.MULTILINE)
    assert "controller: reason 3" in out
    assert max(map(len, out.splitlines())) <= 80
    assert octoserve("audit", "fraud", "--json")[1].encode().rstrip(b"\n") == api.audits[""]
    assert octoserve("audit", "fraud", "--id", "gone")[0] == 1


def test_a_long_log_is_read_in_pages(octoserve, api, monkeypatch):
    monkeypatch.setattr(rollout_audit, "PAGE", 3)
    lines = chained(8)
    name = json.loads(lines[0])["rollout"]
    api.audits = {"": array(lines), name: array(lines)}
    assert octoserve("audit", "fraud", "--json")[1].encode().rstrip(b"\n") == array(lines)
    pages = [(asked.query["after"], asked.query.get("id", "")) for asked in api.asked]
    assert pages == [("0", ""), ("3", name), ("6", name)], "of the rollout that was the last one at first"
    assert "whole: 8 entries" in octoserve("audit", "fraud", "--verify")[1]
    # A service of before pages gives all of it each time.
    monkeypatch.setattr(api, "_page", lambda content, after, limit: content)
    assert octoserve("audit", "fraud", "--json")[1].encode().rstrip(b"\n") == array(lines)


def test_verify_holds_for_what_was_written_however_it_is_spaced(octoserve, api):
    lines = chained(reason="größer")
    api.audits = {"": array(lines), "other": json.dumps([json.loads(line) for line in lines], indent=2).encode()}
    for id_ in ("", "other"):
        code, out, _ = octoserve("audit", "fraud", "--verify", "--id", id_)
        assert (code, "whole: 4 entries, 1 to 4" in out) == (0, True)
        assert json.loads(lines[-1])["digest"] in out
    found = json.loads(octoserve("audit", "fraud", "--verify", "--json")[1])
    assert (found["whole"], found["entries"], found["not_shown"]) == (True, 4, [])


@pytest.mark.parametrize("where", range(4))
def test_verify_finds_a_changed_entry(octoserve, api, where):
    lines = chained()
    lines[where] = lines[where].replace(b'"who":"controller"', b'"who":"nobody"')
    api.audits = {"": array(lines)}
    code, out, _ = octoserve("audit", "fraud", "--verify")
    assert (code, f"broken at entry {where + 1}" in out) == (1, True)
    assert json.loads(octoserve("audit", "fraud", "--verify", "--json")[1])["broken_at"] == where + 1


def test_verify_counts_what_is_not_of_this_rollout():
    lines = chained(6)
    assert check(lines) == (None, [])
    assert check([*lines[:2], *lines[4:]]) == (None, [(3, 4)])
    assert check([lines[1], lines[0]])[0] is not None
    assert check([*lines[:3], lines[2]])[0] is not None
    assert check([]) == (None, [])


@pytest.mark.parametrize("content", [b"[1]", b"{", b"[{}]", b'[{"seq": "x"}]', b"\xff"])
def test_what_is_no_audit_log(octoserve, api, content, tmp_path):
    (tmp_path / "audit.json").write_bytes(content)
    code, _, err = octoserve("replay", "--file", "audit.json")
    assert code == 1
    assert "audit" in err


def test_a_file_of_lines_is_read_like_an_array():
    lines = chained()
    assert lines_of(b"\n".join(lines) + b"\n") == lines_of(array(lines)) == lines
    with pytest.raises(InvalidInput):
        lines_of(b"no json")


# --- on a terminal --------------------------------------------------------------------------------------


def test_printable_keeps_what_people_write():
    assert printable("größer ✓\n\ttab") == "größer ✓\n\ttab"
    assert printable("\x1b[31m\x9b\u202e") == "\N{REPLACEMENT CHARACTER}[31m" + 2 * "\N{REPLACEMENT CHARACTER}"


# --- replay ---------------------------------------------------------------------------------------------


def recorded(failures=4, outcome=None):
    """The lines of a canary's log: its start, and one look. `outcome`: what the look is said to have concluded."""
    from octoserve.control.analysis.judge import judge
    from octoserve.control.rollout.machine import Preview, View, decide
    from octoserve.control.rollout.machine import start as begin
    from octoserve.control.rollout.values import Course, Phase, RateCheck, Step
    from octoserve.core.evidence import ArmEvidence, Stratum

    def arm(n, failed):
        return {"": ArmEvidence(assigned=n, attempts=n, failures=failed)}

    course = Course(strategy="canary", steps=(Step(weight=1000, samples=500),), checks=(RateCheck(margin=0.05),))
    first = begin("fraud", 1, 2, course, "r1", 1000.0)
    running = msgspec.structs.replace(first, phase=Phase.RUNNING, settled=1001.0, version=1)
    seen = Stratum(
        endpoint="fraud",
        name=running.stratum,
        arms={"candidate": arm(300, failures), "baseline": arm(300, 0), "stable": arm(2400, 0)},
    )
    verdicts = judge(running, seen, {})
    if outcome is not None:
        verdicts = tuple(msgspec.structs.replace(each, outcome=outcome) for each in verdicts)
    view = View(
        now=1010.0, present=True, ready=True, stable_ready=True, settled=True, preview=Preview(True),
        verdicts=verdicts, samples=300,
    )  # fmt: skip
    transition = decide(running, view)
    after, event = (running, "look") if transition is None else (transition.rollout, transition.event.value)
    facts = {"evidence": seen, "verdicts": verdicts, "view": msgspec.to_builtins(view), "record": after}
    one = AuditEntry(rollout="r1", endpoint="fraud", time=1001.0, who="ann", event="started", record=running)
    two = AuditEntry(rollout="r1", endpoint="fraud", time=1010.0, who="controller", event=event, **facts)
    begun = chain(None, one)
    return [encode(begun), encode(chain(begun, two))]


@pytest.mark.parametrize("failures", [0, 4, 200])
def test_replay_of_what_was_recorded_is_the_same(octoserve, api, tmp_path, failures):
    api.audits = {"": array(recorded(failures)), "r1": array(recorded(failures))}
    code, out, _ = octoserve("replay", "fraud")
    assert (code, out) == (0, "r1: 2 entries, 1 look: the same verdicts and transitions\n")
    code, out, _ = octoserve("replay", "fraud", "--id", "r1", "--json")
    found = json.loads(out)
    assert (code, found["same"], found["looks"], found["chain_broken_at"]) == (0, True, 1, None)
    (tmp_path / "audit.json").write_text(octoserve("audit", "fraud", "--json")[1])
    assert octoserve("replay", "--file", "audit.json")[0] == 0


def test_a_replay_that_diverges_is_one(octoserve, api):
    api.audits = {"": array(recorded(200, Outcome.PASS))}
    code, out, _ = octoserve("replay", "fraud")
    assert code == 1
    assert (
        "r1 entry 2: verdicts: recorded sample_ratio PASS, error_rate PASS, replayed sample_ratio PASS, error_rate FAIL"
        in out
    )
    code, out, _ = octoserve("replay", "fraud", "--json")
    assert (code, json.loads(out)["same"]) == (1, False)


def test_a_replay_of_a_log_that_was_changed_says_so(octoserve, api):
    lines = recorded()
    api.audits = {"": array([lines[0], lines[1].replace(b'"who":"controller"', b'"who":"nobody"')])}
    code, out, *_ = octoserve("replay", "fraud")
    assert code == 1, "the same, but of something else"
    assert "the chain is broken at entry 2: this is not what was written" in out
    assert "broken at entry 2" in octoserve("audit", "fraud", "--verify")[1]

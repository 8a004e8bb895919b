"""The console without a browser: what it renders, what it escapes, how it draws, and its headers."""

from __future__ import annotations

import asyncio
import html
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from octoserve.patterns.online.supervisor.console import charts, pages, rollout_panel, words
from octoserve.patterns.online.supervisor.console.markup import el, join, slug, text
from octoserve.patterns.online.supervisor.console.routes import OPEN_PATHS, routes
from support.console_source import PlayedService, canary, ended, pairs, shadow, step, verdict

NOW = 1_764_000_000.0
EVIL = '<script>alert("x")</script>&\'"><img src=x onerror=y>'
VOID = {"br", "hr", "img", "input", "link", "meta"}


class Outline(HTMLParser):
    """Every element, in order; fails on markup that is not closed as it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.seen if "id" in attributes]


def values(service):
    async def main():
        return await service.rollouts(), await service.models(), await service.workers(), await service.live()

    return asyncio.run(main())


def shown(service=None):
    return Outline(pages.fragment(*values(service or PlayedService())))


def only(rollout, role="admin", **status):
    """The fragment of one endpoint with this rollout, for this role."""
    service = PlayedService()
    service.statuses = {"fraud": service.statuses["fraud"] | {"rollout": rollout} | status}
    service.repository = {"fraud": [1, 2]}
    statuses, *others = values(service)
    statuses["fraud"]["rollout"] = rollout
    return Outline(pages.fragment(statuses, *others, role))


# ---- markup


def test_text_becomes_markup_by_el_alone():
    assert el("p", EVIL) == f"<p>{html.escape(EVIL)}</p>"
    assert el("p", el("b", "x"), None, [1, "&"]) == "<p><b>x</b>1&amp;</p>"
    assert el("a", title=EVIL, href=None, hidden=True, disabled=False) == f'<a title="{html.escape(EVIL)}" hidden></a>'
    assert el("input", class_="a", aria_label="b") == '<input class="a" aria-label="b">'
    assert join("<", text("<")) == "&lt;&lt;"
    cut = el("b", "<i>").upper()
    assert join(cut) == html.escape(cut), "what is no longer Markup is text again"


@given(st.text(), st.text())
def test_slugs_are_plain_and_tell_names_apart(one, other):
    assert re.fullmatch(r"[A-Za-z0-9_.-]*", slug(one))
    assert (slug(one) == slug(other)) == (one == other)


@given(st.text())
def test_no_text_breaks_out(name):
    outline = Outline(el("p", name, title=name))
    assert [tag for tag, _ in outline.seen] == ["p"]


# ---- words


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (words.plain(0), "0"),
        (words.plain(0.25), "0.25"),
        (words.plain(1234.5), "1.23 k"),
        (words.plain(999.96), "1 k"),
        (words.plain(-2_500_000), "−2.5 M"),
        (words.plain(float("nan")), "–"),
        (words.plain(float("inf")), "–"),
        (words.plain(10**400), "–"),
        (words.plain(True), "–"),
        (words.plain("7"), "–"),
        (words.plain(1e300), "1e+300"),
        (words.percent(0.125), "12.5 %"),
        (words.percent(None), "–"),
        (words.seconds(0.0008), "800 µs"),
        (words.seconds(0.0042), "4.2 ms"),
        (words.seconds(12), "12 s"),
        (words.seconds(0), "0 ms"),
        (words.span(3500), "58 min 20 s"),
        (words.span(7200), "2 h"),
        (words.span(-5), "0 s"),
        (words.span(90_000), "1 d 1 h"),
        (words.effect(0.004, "share"), "+0.4 pts"),
        (words.effect(-0.01, "share"), "−1 pt"),
        (words.effect(1.2, "ratio"), "+20 %"),
        (words.effect(0.5, "EUR"), "+0.5 EUR"),
        (words.effect(None, "share"), "–"),
        (words.reach(-0.003, 0.02, "share"), "−0.3 to +2 pts"),
        (words.reach(None, 0.02, "share"), "open to +2 pts"),
        (words.reach(None, None, "share"), "no interval yet"),
        (words.reach(-3.0, 1500.0, "EUR"), "−3 to +1.5 k EUR"),
        (words.reach(0.9, 1.5, "ratio"), "−10 to +50 %"),
        (words.count(1234567), "1,234,567"),
    ],
)
def test_figures_as_people_read_them(told, wanted):
    assert told.replace(words.THIN, " ") == wanted


@given(st.one_of(st.none(), st.floats(), st.integers(), st.text()))
def test_no_value_is_too_odd_for_words(value):
    for show in (words.plain, words.percent, words.seconds, words.span, words.count):
        assert show(value)
    for unit in ("share", "ratio", "EUR", ""):
        assert "nan" not in words.effect(value, unit)
        assert words.reach(value, value, unit)


@pytest.mark.parametrize(
    ("command", "changed", "wanted"),
    [
        ("abort", {}, "All traffic goes to version 1 at once, and version 2 does not come back by itself."),
        ("abort", {"phase": "preparing"}, "All traffic stays with version 1, and the rollout of version 2 ends."),
        ("rollback", {"phase": "retaining"}, "All traffic goes back to version 1 at once."),
        ("promote", {}, "All traffic goes to version 2 at once, without waiting for the remaining steps."),
        ("promote", {"phase": "retaining"}, "Version 2 is accepted for good, and version 1 is no longer kept"),
        ("approve", {}, "Version 2 goes to 25 % of the traffic as soon as the checks of this step pass."),
        ("approve", {"step": 4}, "All traffic goes to version 2 as soon as the checks of this step have passed."),
        ("pause", {}, "The rollout stays where it is, at step 2 of 5 (10 % to version 2), until somebody resumes it."),
        ("resume", {}, "The rollout goes on by itself, at step 2 of 5 (10 % to version 2)."),
    ],
)
def test_a_command_says_what_it_does(command, changed, wanted):
    told = words.consequence(command, {**canary(NOW), **changed}).replace(words.THIN, " ")
    assert told.startswith(wanted)


# ---- charts


def drawn(values, show=words.plain, **more):
    return Outline(charts.line_chart("c", "Requests", [charts.Line("v1", "v1", charts.clean(values))], show, **more))


def path_of(outline):
    return next(attributes["d"] for tag, attributes in outline.seen if tag == "path")


def test_a_line_breaks_where_nothing_was_answered():
    assert path_of(drawn([1, 2, None, 3, 1])).count("M") == 2
    assert path_of(drawn([None, None])) == ""
    assert path_of(drawn([])) == ""


def test_a_point_alone_is_a_dot():
    assert path_of(drawn([None, 5, None])).endswith("h0")
    assert path_of(drawn([5])).startswith("M300 ")
    assert "h0" not in path_of(drawn([5, 5]))


def test_a_level_stretch_is_its_ends():
    assert path_of(drawn([1.0] * 300, least=1.0)) == "M1 1.5 300 1.5"


@given(st.lists(st.one_of(st.none(), st.floats(), st.integers()), max_size=40))
def test_any_series_can_be_drawn(series):
    outline = drawn(series)
    numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", path_of(outline).replace("h0", ""))]
    assert all(-1 <= y <= charts.HEIGHT + 1 for y in numbers[1::2])
    assert "nan" not in path_of(outline)
    assert "inf" not in path_of(outline)


def test_a_chart_says_in_words_what_it_shows():
    outline = drawn([10, None, 40, 25])
    assert "v1: now 25, lowest 10, highest 40" in outline.text
    picture = next(attributes for tag, attributes in outline.seen if attributes.get("role") == "img")
    assert picture["aria-labelledby"] == "c-title c-desc"
    assert {"c-title", "c-desc"} <= set(outline.ids())


@given(st.floats(min_value=0, allow_infinity=False))
def test_a_scale_ends_above_its_values(value):
    assert charts.nice(value) >= value * (1 - 1e-6)
    assert value < 1e-300 or value > 1e300 or charts.nice(value) <= 2.5 * value * (1 + 1e-6)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=30), st.integers(1, 6))
def test_a_mean_lies_between_what_it_is_of(series, points):
    came = charts.smoothed(series, points)
    assert len(came) == len(series)
    for end, mean in enumerate(came, 1):
        window = [value for value in series[max(0, end - points) : end] if value is not None]
        assert (mean is None) == (not window)
        if mean is not None:
            assert min(window) * (1 - 1e-9) <= mean <= max(window) * (1 + 1e-9)


def test_lines_that_end_together_keep_their_names_apart():
    lines = [charts.Line(f"v{n}", f"v{n}", [1.0]) for n in range(4)]
    outline = Outline(charts.line_chart("c", "t", lines, words.plain))
    heights = [float(a["y"]) for tag, a in outline.seen if tag == "text" and a.get("x") == "4"]
    assert len(heights) == 4
    assert all(b - a >= 12 for a, b in pairwise(heights))
    assert max(heights) <= charts.HEIGHT


def test_a_version_keeps_its_colour_and_shares_it_with_nobody():
    assert charts.colours([1, 2]) == {1: "v1", 2: "v2"}
    assert charts.colours([1, 2, 3])[2] == "v2"
    both = charts.colours([1, 9])
    assert both[1] == "v1"
    assert both[9] != "v1"


def places(*figures, margin=0.01, unit="share", outcome="HOLD"):
    low, estimate, high = figures
    outline = Outline(charts.interval(low, high, estimate, margin, unit, outcome))
    edge = next((float(a["x1"]) for tag, a in outline.seen if a.get("class") == "margin"), None)
    reach = next(((float(a["x1"]), float(a["x2"])) for tag, a in outline.seen if a.get("class") == "reach"), None)
    return edge, reach, outline


def test_an_interval_stands_where_its_verdict_says():
    edge, reach, _ = places(-0.003, 0, 0.004, outcome="PASS")
    assert edge == 140
    assert reach[1] < edge
    edge, reach, _ = places(-0.003, 0, 0.02)
    assert reach[0] < edge < reach[1]
    edge, reach, _ = places(0.04, 0.06, 0.09, outcome="FAIL")
    assert edge < reach[0] < reach[1] <= 196
    edge, reach, _ = places(0.94, 1.1, 1.2, margin=1.25, unit="ratio", outcome="PASS")
    assert reach[0] < 60 < reach[1] < edge
    edge, reach, _ = places(-0.05, -0.04, -0.03, margin=-0.02, outcome="FAIL")
    assert edge < reach[0], "worse is to the right, whatever its sign"


def test_an_open_end_is_an_arrow():
    outline = places(None, 0, 0.004)[2]
    assert sum(a.get("class") == "reach open" for _, a in outline.seen) == 1
    assert places(None, None, None)[1] is None
    assert places(None, None, None, margin=None)[0] is None


# ---- the page


def test_every_element_is_closed_and_every_id_is_one():
    outline = Outline(pages.page(pages.fragment(*values(PlayedService()))))
    ids = outline.ids()
    assert len(ids) == len(set(ids))
    assert len(ids) > 40
    levels = [int(tag[1]) for tag, _ in outline.seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_what_a_person_must_do_comes_first():
    service = PlayedService()
    service.statuses["fraud"]["rollout"] |= {"waiting_for": "approval", "person": "approve"}
    service.statuses["churn"]["rollout"] |= {"paused": "deadline", "person": "resume", "actions": ["resume", "abort"]}
    told = shown(service).text
    assert "2 of 2 workers serving" in told
    assert "generation 12 acknowledged by all" in told
    assert "3 things to look at" in told
    first, second, third = (
        told.index("is paused until somebody resumes it: deadline"),
        told.index("wants your approval to go beyond step 2 of 5"),
        told.index("version 2 cannot be used: golden sample 3"),
    )
    assert first < second < third < told.index("Traffic")


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("canary", "wants your approval to give version 4 all traffic after step 5 of 5"),
        ("shadow", "wants your approval to end after step 5 of 5"),
    ],
)
def test_an_approval_of_the_last_step_says_what_it_lets_happen(strategy, told):
    service = PlayedService()
    service.statuses["fraud"]["rollout"] |= {"step": 4, "strategy": strategy, "candidate": 4, "person": "approve"}
    assert told in shown(service).text


@pytest.mark.parametrize(
    ("reason", "wrong"),
    [("not selected by version policy latest:1", 0), ("unloaded by request; load it to have it back", 0), ("torn", 1)],
)
def test_a_version_that_nobody_wants_is_nothing_to_look_at(reason, wrong):
    statuses, models, workers, live = values(PlayedService())
    before = Outline(pages.fragment(statuses, models, workers, live)).text.count("cannot be used")
    models["churn"]["versions"][0] |= {"state": "UNAVAILABLE", "reason": reason, "workers": {}}
    text = Outline(pages.fragment(statuses, models, workers, live)).text
    assert text.count("cannot be used") == before + wrong
    assert reason in text


@pytest.mark.parametrize(("silent", "told"), [(0.4, "2 replicas, a leads"), (31.0, "2 replicas, a leads, b is silent")])
def test_replicas_are_counted_and_a_silent_one_is_named(silent, told):
    replicas = [{"id": "a", "leads": True, "silent": 0.1}, {"id": "b", "leads": False, "silent": silent}]
    text = only(None, replicas=replicas).text
    assert told in text
    assert ("is silent" in text) == (silent > 3)
    assert "replicas" not in only(None, replicas=replicas[:1]).text


def test_a_service_that_is_well_says_so():
    service = PlayedService()
    service.statuses = {"iris": service.statuses["iris"]}
    service.repository = {"iris": [1]}
    told = shown(service).text
    assert "nobody is waited for" in told
    assert "Version 1 answers all requests." in told
    assert "No rollout has run here." in told


def test_workers_that_do_not_follow_are_named():
    service = PlayedService()
    service.processes[1] |= {"state": "starting", "restarts": 3}
    service.statuses["fraud"]["acknowledged"] = False
    told = shown(service).text
    assert "1 of 2 workers serving" in told
    assert "waits for workers at fraud" in told
    assert "worker 1 is starting, restarted 3 times" in told


def test_the_evidence_is_all_there():
    told = only(canary(NOW)).text.replace(words.THIN, " ")
    for piece in (
        "country=DE",
        "+0.4 pts",
        "−0.6 to +2.1 pts",
        "on both sides of the margin",
        "inside the margin",
        "no data",
        "labels come two hours later",
        "412 of 500 samples",
        "Waiting for latency_p99: HOLD (1.12, accepted 1.25) and 1 more, then approval",
        "in 54 min 50 s",
        "against 3,690",
        "830 µs",
    ):
        assert piece in told, piece


def test_the_step_that_runs_is_the_current_one():
    outline = only(canary(NOW))
    steps = [attributes for tag, attributes in outline.seen if str(attributes.get("class")).startswith("step ")]
    assert [step["class"] for step in steps] == ["step done", "step now", "step next", "step next", "step next"]
    assert [step.get("aria-current") for step in steps] == [None, "step", None, None, None]


def test_an_ended_rollout_tells_how_and_why():
    outline = only(ended(NOW))
    assert "aborted" in outline.text
    assert "6.1 points more than version 3" in outline.text
    assert "beyond the margin" in outline.text
    assert not [a for tag, a in outline.seen if tag == "button"]


@pytest.mark.parametrize(
    ("changed", "there"),
    [
        ({}, False),  # nothing was copied
        ({"steps": [step(0.01, "done", mirror=0.3), step(0.1, "now")]}, True),
        ({"steps": [step(0.01, "done"), step(0.1, "now"), step(0.5, "next", mirror=0.3)]}, False),  # not reached
        ({"steps": [step(0.01, "done", mirror=0.3)], "verdicts": []}, False),  # it ended before anything was judged
    ],
)
def test_an_ended_rollout_has_its_report(changed, there):
    """What was compared is asked for afterwards above all, when nobody counts pairs any more."""
    outline = only(ended(NOW) | {"pairs": pairs(), "step": 1} | changed)
    assert bool([a for _, a in outline.seen if "data-report" in a]) == there


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, ["approve", "pause", "promote", "abort"]),
        ({"actions": ["resume", "abort"]}, ["resume", "abort"]),
        ({"phase": "retaining", "actions": ["pause", "abort", "rollback"]}, ["pause", "rollback"]),
        ({"phase": "retaining", "actions": ["abort"]}, ["abort"]),
        ({"phase": "aborting", "actions": ["abort", "rollback"]}, []),
        ({"actions": []}, []),
    ],
)
def test_buttons_are_what_is_legal(changed, wanted):
    rollout = {**canary(NOW), **changed}
    buttons = [a for tag, a in only(rollout).seen if tag == "button"]
    assert [button["data-command"] for button in buttons] == wanted
    for button in buttons:
        of_step = button["data-command"] == "approve"
        assert button["data-rollout"] == (f"{rollout['id']}/{rollout['step']}" if of_step else rollout["id"])
        assert button["data-consequence"]


@pytest.mark.parametrize(
    ("role", "barred", "told"),
    [
        ("admin", [], ""),
        ("operator", ["promote"], "Promote wants the role admin; yours is operator."),
        ("viewer", ["approve", "pause", "promote", "abort"], "Approve wants the role operator, Pause wants"),
    ],
)
def test_a_button_that_a_role_may_not_press_says_so(role, barred, told):
    outline = only(canary(NOW), role)
    buttons = [a for tag, a in outline.seen if tag == "button"]
    assert [button["data-command"] for button in buttons if "disabled" in button] == barred
    assert all("Wants the role" in button["title"] for button in buttons if "disabled" in button)
    assert told in outline.text


def test_accounts_are_shown_and_doubted():
    told = only(shadow(NOW)).text
    assert "8,301 = 8,140 sent + 161 dropped (queue_full 120, too_large 41)" in told
    assert "8,140 = 8,114 ok + 22 failed + 4 timed out" in told
    assert "do not add up" not in told
    wrong = {**shadow(NOW), "pairs": pairs(offered=10, sent=8, ok=8, dropped={"late": 1})}
    assert "do not add up" in only(wrong).text


def test_what_is_announced_is_phase_verdict_and_person():
    rollout = canary(NOW)
    before = rollout_panel.announcement("fraud", rollout)
    assert "running, step 2 of 5" in before
    assert "checks: no data" in before
    later = {**rollout, "now": NOW + 60, "samples": {"have": 450, "want": 500}}
    assert rollout_panel.announcement("fraud", later) == before
    for changed in ({"step": 2}, {"verdicts": [verdict("e", "PASS")]}, {"person": "approve"}):
        assert rollout_panel.announcement("fraud", {**rollout, **changed}) != before


def test_many_versions_are_cut_but_not_those_that_take_part():
    service = PlayedService()
    service.repository["fraud"] = list(range(1, 31))
    rows = [a for tag, a in shown(service).seen if tag == "table" and a.get("id") == "e-fraud-versions"]
    assert len(rows) == 1
    assert "22 older versions take no part, not listed." in shown(service).text


@pytest.mark.parametrize("missing", ["routes", "rollout", "generation", "acknowledged", "refused", "stable"])
def test_a_status_with_less_is_shown_all_the_same(missing):
    statuses, *others = values(PlayedService())
    for status in statuses.values():
        del status[missing]
    assert "fraud" in Outline(pages.fragment(statuses, *others)).text


def test_a_rollout_with_less_is_shown_all_the_same():
    whole = canary(NOW)
    for missing in set(whole) - {"stable", "candidate"}:
        assert "fraud" in only({key: value for key, value in whole.items() if key != missing}).text


def test_an_empty_service_has_a_page():
    assert "No model lies in the repository yet." in Outline(pages.fragment({}, {}, [], {})).text


def test_nothing_that_is_named_becomes_markup():
    """Model names are folder names, reasons and segments are anybody's."""
    service = PlayedService()
    rollout = canary(NOW) | {"waiting_for": EVIL, "reason": EVIL, "id": EVIL, "strategy": EVIL, "paused": EVIL}
    rollout["verdicts"] = [verdict(EVIL, EVIL, segment=EVIL, note=EVIL, unit=EVIL, estimate=1.0, low=0.0, high=2.0)]
    rollout["pairs"] = pairs(offered=1, dropped={EVIL: 1}, outputs={EVIL: 1})
    routes_ = [{"version": 1, "role": EVIL, "share": 1.0}]
    service.statuses = {EVIL: service.statuses["fraud"] | {"rollout": rollout, "routes": routes_}}
    service.repository = {EVIL: [1, 2]}
    service.failed = {(EVIL, 2): EVIL}
    service.processes[0]["state"] = EVIL
    outline = shown(service)
    assert not {"script", "img"} & {tag for tag, _ in outline.seen}
    assert not [name for _, a in outline.seen for name in a if name.startswith("on") or name == "style"]
    assert outline.text.count("<script>") > 5
    link = next(a["href"] for tag, a in outline.seen if "data-history" in a)
    assert re.fullmatch(r"/api/rollouts/[A-Za-z0-9%._-]+/history\?limit=20", link)


# ---- routes


class Boom(PlayedService):
    async def rollouts(self):
        raise AssertionError("the shell must not ask for data")


class Answer(NamedTuple):
    status_code: int
    headers: dict[str, str]
    text: str


class Door:
    """The routes without a server."""

    def __init__(self, source, token_set):
        self.app = Starlette(routes=routes(source, token_set))

    def get(self, path, method="GET"):
        came = []
        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            came.append(message)

        asyncio.run(self.app(scope, receive, send))
        headers = {name.decode(): value.decode() for name, value in came[0]["headers"]}
        return Answer(came[0]["status"], headers, b"".join(part.get("body", b"") for part in came[1:]).decode())


def client(source, token_set=False):
    return Door(source, token_set)


def test_the_root_leads_to_the_console():
    answer = client(PlayedService()).get("/")
    assert answer.status_code == 307
    assert answer.headers["location"] == "/console"


def test_a_page_may_load_its_own_files_and_nothing_else():
    door = client(PlayedService())
    for path in (
        "/",
        "/console",
        "/console/fragment",
        "/console/console.css",
        "/console/console.js",
        "/console/icon.svg",
    ):
        answer = door.get(path)
        assert answer.status_code in (200, 307), path
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
        assert {policy[name] for name in ("form-action", "base-uri", "frame-ancestors")} == {"'none'"}
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_the_page_has_no_inline_script_or_style():
    outline = Outline(client(PlayedService()).get("/console").text)
    scripts = [attributes for tag, attributes in outline.seen if tag == "script"]
    assert [script["src"] for script in scripts] == ["/console/console.js"]
    assert "style" not in {tag for tag, _ in outline.seen}
    assert not [name for _, attributes in outline.seen for name in attributes if name.startswith("on")]
    assert not [1 for _, attributes in outline.seen if "style" in attributes]


def test_without_a_token_the_whole_page_comes_at_once_and_refreshes_itself():
    outline = Outline(client(PlayedService()).get("/console").text)
    assert "Canary of version 2 against version 1" in outline.text
    assert [a["content"] for tag, a in outline.seen if tag == "meta" and a.get("http-equiv") == "refresh"] == ["5"]


def test_with_a_token_the_shell_holds_no_data():
    page = client(Boom(), token_set=True).get("/console").text
    assert "fraud" not in page
    assert "http-equiv" not in page
    assert "/console/fragment" not in OPEN_PATHS
    assert "/console" in OPEN_PATHS


def test_files_have_their_types():
    door = client(PlayedService())
    assert door.get("/console/console.css").headers["content-type"].startswith("text/css")
    assert door.get("/console/console.js").headers["content-type"].startswith("text/javascript")
    assert door.get("/console/other.js").status_code == 404
    assert door.get("/console", "POST").status_code == 405

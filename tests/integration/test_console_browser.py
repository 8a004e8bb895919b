"""The console in Debian's chromium, against a played service behind the real guards and server of the admin port."""

from __future__ import annotations

import contextlib
import os
import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.console_source import PlayedService, serving

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip("no /usr/bin/chromium: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=15_000)

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
TOKEN = "open-sesame"
EVIL = "<img src=x onerror=alert(1)>"
WIDE, PHONE = (1360, 900), (375, 812)
SHOTS = os.environ.get("OCTOSERVE_SHOTS")
"""A folder that gets a picture of each layout, for people who change the looks."""

CONTRAST = """
(pairs) => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const back = parse(getComputedStyle(at).backgroundColor);
      if (back.length === 3 || back[3] > 0) return back;
    }
    return [255, 255, 255];
  };
  return pairs.map((selector) => {
    const one = document.querySelector(selector);
    if (!one) return [selector, 0];
    const style = getComputedStyle(one);
    const paint = one instanceof SVGElement && one.tagName !== "svg" ? style.fill : style.color;
    const [a, b] = [light(parse(paint)), light(behind(one))].sort((x, y) => y - x);
    return [selector, (a + 0.05) / (b + 0.05)];
  });
}
"""

PALETTE = """
() => {
  const card = document.createElement("section");
  card.className = "endpoint";
  document.body.append(card);
  for (let n = 0; n < 8; n++) {
    const add = (id) => card.appendChild(Object.assign(document.createElement("p"), { id, textContent: "v" }));
    add(`t${n}`).className = `v${n}`;
    const bar = add(`b${n}`);
    bar.style.setProperty("background", `var(--v${n})`);
    bar.style.setProperty("color", "var(--on-piece)");
  }
}
"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


class Visit:
    """A page, with what it asked for and what it complained of."""

    def __init__(self, page, served):
        self.page = page
        self.served = served
        self.service = served.service
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on(
            "console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text)
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self):
        self.page.goto(self.served.url)
        return self

    def rollout(self, endpoint="fraud"):
        return self.service.statuses[endpoint]["rollout"]


@contextlib.contextmanager
def visiting(browser, service=None, token=None, size=WIDE, **context):
    with serving(service, token) as served:
        width, height = size
        opened = browser.new_context(viewport={"width": width, "height": height}, **context)
        opened.set_default_timeout(15_000)
        visit = Visit(opened.new_page(), served)
        try:
            yield visit
        finally:
            opened.close()


@pytest.fixture
def visit(browser):
    with visiting(browser) as made:
        yield made.open()
        assert made.complaints == []
        assert {urlsplit(url).hostname for url in made.requests} == {"127.0.0.1"}


def give_token(page, token=TOKEN):
    page.get_by_label("Token", exact=True).fill(token)
    page.get_by_role("button", name="Use this token").click()


# ---- looking


def test_it_shows_and_stays_current(visit):
    page = visit.page
    expect(page).to_have_url(f"{visit.served.url}/console")
    expect(page.get_by_role("heading", name="fraud")).to_be_visible()
    expect(page.locator("#e-fraud")).to_contain_text("412 of 500 samples")
    line = page.locator("#e-fraud-rate path.v2")
    before = line.get_attribute("d")
    visit.rollout()["samples"] = {"have": 431, "want": 500}
    expect(page.locator("#e-fraud")).to_contain_text("431 of 500 samples")
    expect(line).not_to_have_attribute("d", before)
    expect(page.locator("#stale")).to_be_hidden()


def test_one_colour_is_one_version(visit):
    ink = "e => getComputedStyle(e).color"
    for version in ("v1", "v2"):
        drawn = visit.page.locator(f"#e-fraud .{version}")
        colours = {drawn.nth(index).evaluate(ink) for index in range(drawn.count())}
        assert len(colours) == 1
        assert drawn.count() > 8


def test_focus_scroll_and_selection_stay_while_it_changes(visit):
    page = visit.page
    button = page.locator("#e-fraud-pause")
    button.focus()
    page.evaluate("scrollTo(0, 300)")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#e-fraud .stands'))")
    page.evaluate("document.querySelector('#e-fraud-evidence').dataset.mark = 'same'")
    page.evaluate("window.kept = document.querySelector('#e-fraud-pause')")
    where = page.evaluate("scrollY")
    visit.rollout()["waiting_for"] = "something else"
    expect(page.locator("#e-fraud")).to_contain_text("something else")
    assert page.evaluate("document.activeElement === window.kept")
    assert page.evaluate("scrollY") == where
    assert page.evaluate("String(getSelection())").startswith("Canary of version 2")


def test_cards_come_and_go_in_order(visit):
    page = visit.page
    names = page.locator(".endpoint h2")
    expect(names).to_have_text(["churn", "fraud", "iris", "price"])
    page.evaluate("window.kept = document.querySelector('#e-iris')")
    visit.service.statuses["apple"] = visit.service._status("apple", 1, [(1, "stable", 1.0)], None)
    del visit.service.statuses["fraud"], visit.service.repository["fraud"]
    expect(names).to_have_text(["apple", "churn", "iris", "price"])
    assert page.evaluate("document.querySelector('#e-iris') === window.kept")


def test_only_what_matters_is_announced(visit):
    page = visit.page
    told = page.locator("#announcer")
    visit.rollout()["samples"] = {"have": 440, "want": 500}
    expect(page.locator("#e-fraud")).to_contain_text("440 of 500 samples")
    expect(told).to_be_empty()
    visit.rollout().update(waiting_for="approval", person="approve")
    expect(told).to_contain_text("wants your approval")
    expect(told).to_have_attribute("aria-live", "polite")
    expect(page).to_have_title(re.compile(r"\(1\) waiting for a person"))
    expect(page.locator("#wants li").first).to_contain_text("fraud wants your approval")


def test_a_button_that_goes_leaves_focus_at_its_card(visit):
    page = visit.page
    page.locator("#e-fraud-pause").focus()
    visit.rollout()["actions"] = ["abort"]
    expect(page.locator("#e-fraud-pause")).to_have_count(0)
    expect(page.locator("#e-fraud-name")).to_be_focused()


def test_it_says_when_its_figures_are_old(browser):
    with visiting(browser) as visit:
        page = visit.open().page
        expect(page.locator("#e-fraud")).to_be_visible()
        visit.served.stop()
        expect(page.locator("#stale")).to_contain_text(re.compile(r"No answer for \d+ s: these figures are old"))
        expect(page.locator("#announcer")).to_contain_text("does not answer")
        expect(page.locator("body")).to_have_class(re.compile("old"))
        visit.served.start()
        expect(page.locator("#stale")).to_be_hidden()
        expect(page.locator("#announcer")).to_contain_text("answers again")


def test_a_service_that_fails_or_hangs_is_old_too(browser):
    with visiting(browser) as visit:
        page = visit.open().page
        expect(page.locator("#e-fraud")).to_be_visible()
        visit.service.broken = True
        expect(page.locator("#stale")).to_contain_text("The service answered 500")
        visit.service.broken = False
        expect(page.locator("#stale")).to_be_hidden()
        visit.service.delay = 8.0
        expect(page.locator("#stale")).to_contain_text("these figures are old")
        visit.service.delay = 0.0


def test_without_scripts_the_page_is_whole_and_refreshes(browser):
    with visiting(browser, java_script_enabled=False) as visit:
        page = visit.open().page
        assert "412 of 500 samples" in page.content()
        assert page.locator("#e-fraud-abort").is_hidden()
        assert page.locator("#e-fraud .without-script").is_visible()
        visit.rollout()["samples"] = {"have": 499, "want": 500}
        expect(page.locator("#e-fraud")).to_contain_text("499 of 500 samples")


# ---- acting


def test_a_command_is_confirmed_then_sent(visit):
    page = visit.page
    page.locator("#e-fraud-abort").click()
    dialog = page.get_by_role("dialog", name="Abort: fraud, version 2")
    expect(dialog).to_contain_text("All traffic goes to version 1 at once, and version 2 does not come back by itself.")
    assert visit.service.asked == []
    dialog.get_by_label("Reason, for the audit log").fill("p99 doubled for <DE>")
    dialog.get_by_role("button", name="Abort").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#said")).to_contain_text("Abort, fraud: accepted.")
    expect(page.locator("#e-fraud .stands")).to_contain_text("aborting")
    (asked,) = visit.service.asked
    assert (asked["endpoint"], asked["command"]) == ("fraud", "abort")
    assert asked["reason"] == "p99 doubled for <DE>"
    assert asked["id"] == "fraud-20261124T120000-7f3a"
    assert "authorization" not in asked["headers"]
    assert asked["headers"]["origin"] == visit.served.url


@pytest.mark.parametrize("way", ["button", "escape"])
def test_cancel_does_nothing(visit, way):
    page = visit.page
    page.locator("#e-fraud-promote").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    if way == "button":
        dialog.get_by_role("button", name="Cancel").click()
    else:
        page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#e-fraud-promote")).to_be_focused()
    page.wait_for_timeout(300)
    assert visit.service.asked == []


def test_the_keyboard_is_enough(visit):
    page = visit.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the endpoints")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "e-fraud-pause":
            break
    focused = page.locator("#e-fraud-pause")
    expect(focused).to_be_focused()
    assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Reason, for the audit log")).to_be_focused()
    page.keyboard.type("lunch")
    page.keyboard.press("Tab")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#e-fraud")).to_contain_text("is paused until somebody resumes it: lunch")
    assert [asked["command"] for asked in visit.service.asked] == ["pause"]
    expect(page.locator("#e-fraud-name")).to_be_focused()


def test_a_key_that_is_held_down_confirms_nothing(visit):
    page = visit.page
    page.locator("#e-fraud-abort").focus()
    for _ in range(5):
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert visit.service.asked == []


def test_an_open_dialog_says_when_its_ground_has_moved(visit):
    page = visit.page
    page.locator("#e-fraud-approve").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason, for the audit log").fill("half a sen")
    visit.rollout()["step"] = 2
    expect(dialog.locator("#confirm-changed")).to_contain_text("Version 2 goes to 50")
    visit.rollout()["actions"] = ["abort"]
    expect(dialog.locator("#confirm-changed")).to_contain_text("may no longer be possible")
    assert dialog.get_by_label("Reason, for the audit log").input_value() == "half a sen"
    expect(dialog.get_by_label("Reason, for the audit log")).to_be_focused()


def test_a_refusal_is_shown_as_it_was_said(browser):
    with visiting(browser) as visit:
        page = visit.open().page
        visit.service.refuse = (409, "the rollout has ended: aborted")
        page.locator("#e-fraud-promote").click()
        page.get_by_role("dialog").get_by_role("button", name="Promote").click()
        expect(page.get_by_role("alert")).to_contain_text("Refused: the rollout has ended: aborted")
        expect(page.get_by_role("dialog")).to_be_visible()


def test_no_answer_is_not_called_a_failure(browser):
    with visiting(browser) as visit:
        page = visit.open().page
        page.locator("#e-fraud-promote").click()
        visit.served.stop()
        page.get_by_role("dialog").get_by_role("button", name="Promote").click()
        expect(page.get_by_role("alert")).to_contain_text("it is not known whether the command arrived")


def test_the_history_is_a_table_of_text(visit):
    page = visit.page
    page.locator("#e-fraud").get_by_role("link", name="History").click()
    dialog = page.get_by_role("dialog", name="History: fraud")
    expect(dialog.get_by_role("row")).to_have_count(3)
    expect(dialog).to_contain_text("<b>latency</b> went up")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


# ---- the token


def test_the_token_is_asked_for_once_and_sent(browser):
    with visiting(browser, token=TOKEN) as visit:
        page = visit.open().page
        expect(page.get_by_role("dialog", name="Admin token")).to_be_visible()
        assert "fraud" not in page.content()
        give_token(page)
        expect(page.get_by_role("heading", name="fraud")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="fraud")).to_be_visible()
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.locator("#e-fraud-abort").click()
        page.get_by_role("dialog").get_by_role("button", name="Abort").click()
        expect(page.locator("#e-fraud .stands")).to_contain_text("aborting")
        assert visit.service.asked[0]["headers"]["authorization"] == f"Bearer {TOKEN}"
        assert visit.complaints == []
        assert not [url for url in visit.requests if TOKEN in url]
        with page.expect_download() as saved:
            page.get_by_role("link", name="Report of the comparison").click()
        assert saved.value.suggested_filename == "report-churn-20261124T114000-09be.html"
        assert "<h1>Report</h1>" in Path(saved.value.path()).read_text()
        page.get_by_role("button", name="Forget token").click()
        expect(page.get_by_role("dialog", name="Admin token")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_wrong_token_is_told(browser):
    with visiting(browser, token=TOKEN) as visit:
        page = visit.open().page
        give_token(page, "wrong")
        expect(page.get_by_role("alert")).to_contain_text("That token is not accepted.")
        assert "fraud" not in page.content()
        give_token(page, "two words")
        expect(page.get_by_role("alert")).to_contain_text("That is no token")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Enter token").click()
        give_token(page)
        expect(page.get_by_role("heading", name="fraud")).to_be_visible()


def test_a_token_that_is_changed_meanwhile_changes_nothing_silently(browser):
    with visiting(browser, token=TOKEN) as visit:
        page = visit.open().page
        give_token(page)
        page.locator("#e-fraud-abort").click()
        page.get_by_label("Reason, for the audit log").fill("bad")
        visit.served.stop()
        visit.served.token = "new-token"
        visit.served.start()
        expect(page.get_by_role("dialog", name="Admin token")).to_be_visible()
        expect(page.locator("#token-error")).to_contain_text("That token is not accepted.")
        expect(page.locator("#stale")).to_contain_text("The token is missing")
        assert visit.service.asked == []
        give_token(page, "new-token")
        confirm = page.get_by_role("dialog", name="Abort: fraud")
        assert confirm.get_by_label("Reason, for the audit log").input_value() == "bad"
        confirm.get_by_role("button", name="Abort").click()
        expect(page.locator("#e-fraud .stands")).to_contain_text("aborting")
        assert len(visit.service.asked) == 1


# ---- safety


def test_names_are_text_also_when_they_are_scripts(browser):
    service = PlayedService()
    service.statuses[EVIL] = service.statuses.pop("fraud")
    service.repository[EVIL] = service.repository.pop("fraud")
    with visiting(browser, service) as visit:
        page = visit.open().page
        page.on("dialog", lambda alert: pytest.fail(f"a name ran: {alert.message}"))
        expect(page.get_by_role("heading", name=EVIL)).to_be_visible()
        page.get_by_role("button", name=f"Abort the rollout of {EVIL}").click()
        page.get_by_role("dialog").get_by_role("button", name="Abort").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        assert visit.service.asked[0]["endpoint"] == EVIL
        assert visit.complaints == []


def test_the_policy_stops_what_got_in(visit):
    page = visit.page
    page.evaluate("document.body.append(Object.assign(document.createElement('img'), {src: 'http://192.0.2.1/x.png'}))")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}))"
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert len(visit.complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in visit.complaints)
    visit.complaints.clear()
    visit.requests[:] = [url for url in visit.requests if "192.0.2.1" not in url]


# ---- looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_it_is_readable_everywhere(browser, scheme, size):
    service = PlayedService()
    service.statuses["fraud"]["rollout"] |= {"waiting_for": "approval", "person": "approve"}
    with visiting(browser, service, size=size, color_scheme=scheme) as visit:
        page = visit.open().page
        expect(page.locator("#pulse")).to_have_text("updates each second")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 20)") == (
            scheme == "dark"
        )
        texts = ["h1 span", "#e-fraud .stands", "#e-fraud .quiet", ".notice.person", ".notice:not(.person)", ".note"]
        texts += [".outcome.pass", ".outcome.fail", ".outcome.hold", ".outcome.odd", ".outcome.no-data", ".step-asks"]
        texts += [".command.good", ".command.bad", ".command:not(.good):not(.bad)", ".links a", ".legend", ".segment"]
        texts += ["#e-fraud .ends .v1", "#e-fraud .ends .v2", "#e-churn .ends .v6", "#e-price .ends .v3", ".scale text"]
        texts += ["td[data-name] b", "dt", ".urgent dd", "caption", "footer p", ".step.now .step-state"]
        for selector, ratio in page.evaluate(CONTRAST, texts):
            assert ratio >= 4.5, f"{selector} has a contrast of {ratio:.2f} in {scheme}"
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/{scheme}-{size[0]}.png", full_page=True)
        page.locator("#e-fraud-abort").click()
        for selector, ratio in page.evaluate(
            CONTRAST, ["#confirm-go", "#confirm label", ".consequence", "#confirm-cancel"]
        ):
            assert ratio >= 4.5, f"{selector} has a contrast of {ratio:.2f} in {scheme}"
        box = page.get_by_role("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_labels_on_bars_and_lines_have_contrast(browser, scheme):
    """Every colour of the palette: as text on a card, and under the bar's own text."""
    with visiting(browser, color_scheme=scheme) as visit:
        page = visit.open().page
        page.evaluate(PALETTE)
        names = [f"#{kind}{n}" for n in range(8) for kind in "tb"]
        for selector, ratio in page.evaluate(CONTRAST, names):
            assert ratio >= 4.5, f"{selector} has a contrast of {ratio:.2f} in {scheme}"


def test_who_listens_is_told_everything(visit):
    page = visit.page
    for role in ("banner", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    assert page.evaluate(
        "[...document.querySelectorAll('button')].every(b => (b.getAttribute('aria-label') || b.textContent).trim())"
    )
    levels = page.evaluate("[...document.querySelectorAll('main :is(h1,h2,h3,h4)')].map(h => +h.tagName[1])")
    assert levels[0] == 2
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.evaluate("[...document.querySelectorAll('main table')].every(t => t.caption.textContent.trim())")
    table = page.get_by_role("table", name=re.compile("Evidence"))
    assert table.count() >= 2
    chart = page.get_by_role("img", name=re.compile("Requests a second.* v2: now .*lowest .*highest"))
    assert chart.count() == 1
    bar = page.get_by_role("img", name=re.compile("Shares of traffic: v2 candidate 10.%, v1 baseline 10.%"))
    assert bar.count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    fields = page.evaluate(
        "[...document.querySelectorAll('input')].every(i => document.querySelector(`label[for=${i.id}]`))"
    )
    assert fields


def test_tables_stay_tables_on_a_phone(browser):
    with visiting(browser, size=PHONE) as visit:
        page = visit.open().page
        table = page.locator("#e-fraud-evidence")
        assert table.get_by_role("row").count() == 5
        assert table.get_by_role("rowheader").first.inner_text().startswith("error_rate")
        assert table.get_by_role("cell").count() == 20

"""The report: its numbers are those of the pairs, its words say what they mean, and nothing of a request is markup."""

from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.report import tally
from octoserve.control.report import wording as w
from octoserve.control.report.build import Tally
from octoserve.control.report.html import as_html
from octoserve.control.report.report import as_json
from octoserve.control.report.tally import ACCURACY, OTHERS, Sketch, buckets_of, distance, value_of
from octoserve.control.report.text import as_text
from octoserve.core.comparison import Comparison
from octoserve.core.evidence import PairEvidence, Stratum
from octoserve.core.tensors import Tensor
from octoserve.patterns.shadow.build import build
from octoserve.patterns.shadow.store import PairStore
from octoserve.telemetry.pairs import NOISE, SHADOW, Pair, RawTensor
from octoserve.telemetry.spool import Spool

NOON = 1795521600.0
COMPARISON = Comparison({"score": {"absolute": 0.1}})
EVIL = "<script>alert(1)</script>&\"'"


def outputs(scores, labels):
    text = np.empty(len(labels), dtype=object)
    text[:] = labels
    return [Tensor.of("score", np.array(scores, np.float32)), Tensor.of("label", text)]


def pair(i, stable, candidate, **more):
    """`candidate` is None where it failed."""
    answers = outputs(*stable), outputs(*candidate) if candidate else []
    fields = {
        "endpoint": "m",
        "rollout": "r1",
        "time": NOON + i,
        "stable_version": 1,
        "candidate_version": 2,
        "key": b"k%d" % i,
        "inputs": [RawTensor.of(Tensor.of("x", np.full((len(stable[0]), 2), i, np.float32)))],
        "stable": [RawTensor.of(t) for t in answers[0]],
        "candidate": [RawTensor.of(t) for t in answers[1]],
        "stable_seconds": 0.010,
        "candidate_seconds": 0.020,
        "rows": len(stable[0]),
    }
    if candidate:
        difference = COMPARISON.compare(*answers)
        fields |= {"differing": difference.outputs, "rows_differing": difference.rows_differing}
    else:
        fields["error"] = "it broke"
    return Pair(**(fields | more))


def of(folder, pairs, **more):
    spool = Spool(folder / "spool", "w0")
    for one in pairs:
        assert spool.append(one)
    spool.close()
    store = PairStore(folder)
    store.convert()
    return build(store, "m", "r1", now=NOON + 99, **more)


SAME = ([0.5], [b"benign"])
FLIP = ([0.9], [b"malignant"])


@pytest.fixture
def report(tmp_path):
    pairs = [pair(i, SAME, SAME, segments={"country": "FR"}) for i in range(80)]
    pairs += [pair(100 + i, SAME, FLIP, segments={"country": "DE"}) for i in range(12)]
    pairs += [pair(200 + i, SAME, SAME, segments={"country": "DE"}) for i in range(8)]
    pairs += [pair(300 + i, SAME, None, segments={"country": "FR"}) for i in range(3)]
    pairs += [pair(400 + i, SAME, FLIP if i == 0 else SAME, kind=NOISE, candidate_version=1) for i in range(20)]
    pairs += [pair(500, SAME, FLIP, rollout="another"), pair(501, SAME, FLIP, endpoint="another")]
    return of(tmp_path, pairs)


def test_totals(report):
    assert (report.pairs, report.noise, report.error_pairs) == (103, 20, 3)
    assert (report.rate.compared, report.rate.disagreed, report.rate.share) == (100, 12, 0.12)
    assert (report.rate.noise_compared, report.rate.noise_disagreed, report.rate.noise_share) == (20, 1, 0.05)
    assert (report.rows, report.rows_differing) == (100, 12)
    assert (report.stable_versions, report.candidate_versions) == ((1,), (2,))
    assert (report.first, report.last) == (NOON, NOON + 419)
    assert [(e.error, e.count) for e in report.errors] == [("it broke", 3)]


def test_segments_most_affected_first(report):
    assert [(s.name, s.value, s.rate.compared, s.rate.disagreed, s.errors) for s in report.segments] == [
        ("country", "DE", 20, 12, 0),
        ("country", "FR", 80, 0, 3),
    ]
    assert report.segments[0].outputs == {"score": 12, "label": 12}


def test_outputs_and_their_shift(report):
    score, label = report.outputs
    assert (score.name, score.datatype, score.rate.disagreed, score.rate.noise_disagreed) == ("score", "FP32", 12, 1)
    assert score.worst == pytest.approx(4.0, rel=1e-5)
    (shift,) = score.numbers
    assert (shift.stable.n, shift.candidate.n) == (100, 100)
    assert shift.stable.mean == pytest.approx(0.5)
    assert shift.candidate.mean == pytest.approx(0.548)
    assert shift.mean_change == pytest.approx(0.048)
    assert shift.distance == pytest.approx(0.12)
    assert sum(shift.stable_bins) == sum(shift.candidate_bins) == 100
    assert label.labels is not None
    assert [(m.stable, m.candidate, m.count) for m in label.labels.moves] == [("benign", "malignant", 12)]
    assert {(c.label, c.stable, c.candidate) for c in label.labels.labels} == {
        ("benign", 100, 88),
        ("malignant", 0, 12),
    }
    assert (label.labels.same, label.labels.changed) == (88, 12)


def test_run_times_are_those_of_the_mirror_and_of_answers_that_came(report):
    assert (report.stable.n, report.candidate.n) == (20, 100), (
        "stable's are those of the noise, not what clients waited"
    )
    assert report.stable.p99 == pytest.approx(0.020, rel=ACCURACY)
    assert report.candidate.p50 == pytest.approx(0.020, rel=ACCURACY)


def test_the_headline_says_it(report):
    assert report.headline == (
        "12 % of 100 answers of version 2 differ from version 1's; asked twice, version 1 differs from itself in 5 %. "
        "Most affected: country=DE (60 %). Version 2 failed 3 of 103 requests."
    )


def test_examples_come_from_each_output_in_turn(tmp_path):
    pairs = [pair(i, ([0.0], [b"a"]), ([10.0 + i], [b"a"])) for i in range(20)]
    pairs += [pair(50, ([0.0], [b"a"]), ([0.05], [b"b"])), pair(51, ([0.0], [b"a"]), ([0.01], [b"b"]))]
    report = of(tmp_path, pairs, worst=3)
    assert [example.key for example in report.examples] == ["k19", "k50", "k18"]
    assert report.examples[0].differing["score"].reason == "0 became 29"
    assert report.examples[1].candidate == {"score": [0.05], "label": ["b"]}


def test_the_same_question_with_the_same_answers_is_one_example(tmp_path):
    inputs = [RawTensor.of(Tensor.of("x", np.zeros((1, 2), np.float32)))]
    pairs = [pair(i, SAME, FLIP, inputs=inputs) for i in range(20)]
    pairs += [pair(50, SAME, ([0.8], [b"benign"]))]
    report = of(tmp_path, pairs, worst=3)
    assert [example.key for example in report.examples] == ["k0", "k50"]
    assert report.outputs[0].rate.disagreed == 21


def test_an_example_of_a_batch_is_its_worst_row(tmp_path):
    stable = ([0.0, 0.0, 0.0], [b"a", b"b", b"c"])
    report = of(tmp_path, [pair(7, stable, ([0.5, 3.0, 0.0], [b"a", b"b", b"c"]))])
    (example,) = report.examples
    assert (example.row, example.rows, example.rows_differing) == (1, 3, 2)
    assert example.candidate == {"score": [3.0], "label": ["b"]}
    assert example.inputs == {"x": [[7.0, 7.0]]}


def test_accounts_and_what_one_must_know(tmp_path):
    evidence = Stratum(
        endpoint="m",
        name="r1/0",
        pairs={"": PairEvidence(offered=30, dropped={"queue_full": 5}, sent=25, ok=24, error=1, compared=24)},
    )
    report = of(tmp_path, [pair(0, SAME, SAME)], evidence=[evidence])
    assert report.accounts[0].is_exact
    text = " ".join(report.notes)
    assert "5 of 30 copies were dropped" in text
    assert "no random sample" in text
    assert "1 of 24 compared pairs are in the store" in text
    assert "no noise floor" in text
    assert "do not add up" not in text
    off = msgspec.structs.replace(report.accounts[0], offered=31)
    assert not off.is_exact


def test_pairs_that_came_after_the_accounts_look_are_told(tmp_path):
    look = Stratum(endpoint="m", name="r1/0", pairs={"": PairEvidence(offered=3, sent=2, ok=2, compared=2)})
    report = of(tmp_path, [pair(i, SAME, SAME) for i in range(5)], evidence=[look])
    text = " ".join(report.notes)
    assert "copies were under way" in text
    assert "3 more pairs are in the store than in the accounts" in text


def test_no_pairs_is_no_praise(tmp_path):
    report = of(tmp_path, [])
    assert report.headline.startswith("No pairs are in the store")
    assert report.rate.share is None
    for form in (json.dumps(as_json(report)), as_html(report), printed(report)):
        assert "agree with" not in form
    only_errors = of(tmp_path, [pair(0, SAME, None)])
    assert only_errors.headline == "The candidate (version 2) answered none of 1 requests."


def test_a_missing_output_is_counted_and_shown(tmp_path):
    gone = pair(0, SAME, SAME)
    gone = msgspec.structs.replace(
        gone, candidate=gone.candidate[:1], differing=COMPARISON.compare(outputs(*SAME), outputs(*SAME)[:1]).outputs
    )
    report = of(tmp_path, [gone])
    assert report.outputs[1].rate.disagreed == 1
    assert report.outputs[1].labels is None
    assert report.examples[0].differing["label"].reason == "missing"
    assert "beyond measure" in as_html(report)


def test_scores_by_class_are_shown_by_column(tmp_path):
    def answer(p):
        return [RawTensor.of(Tensor.of("score", np.array([[1 - p, p]], np.float32)))]

    pairs = [
        Pair(
            endpoint="m",
            rollout="r1",
            time=NOON,
            stable_version=1,
            candidate_version=2,
            stable=answer(0.2),
            candidate=answer(0.7),
        )
    ]
    (output,) = of(tmp_path, pairs).outputs
    assert [(n.column, round(n.mean_change, 3)) for n in output.numbers] == [("[0]", -0.5), ("[1]", 0.5)]


def test_nan_is_counted_apart(tmp_path):
    report = of(tmp_path, [pair(0, ([0.5], [b"a"]), ([math.nan], [b"a"])), pair(1, SAME, SAME)])
    (shift,) = report.outputs[0].numbers
    assert (shift.candidate.n, shift.candidate.odd, shift.candidate.mean) == (1, 1, 0.5)
    json.dumps(as_json(report), allow_nan=False)


def test_integers_with_many_values_are_numbers():
    counts = Tally(1)
    for i in range(tally.MAX_LABELS + 10):
        counts._outputs.setdefault("n", tally.OutputTally("n", "INT64", 1)).add(_stored(), [i], [i + 1])
    (output,) = counts.report("m", "r", 0.0, (), ()).outputs
    assert output.labels is None
    assert output.numbers[0].mean_change == 1.0


def _stored():
    return type("Stored", (), {"differing": {}, "kind": SHADOW})()


def test_labels_and_segment_values_are_bounded():
    counts = Tally(1)
    for i in range(tally.MAX_VALUES + 50):
        counts._segment("user", str(i))
    assert len(counts._segments["user"]) == tally.MAX_VALUES + 1
    assert OTHERS in counts._segments["user"]
    labels = tally.LabelTally()
    for i in range(5_000):
        labels.add([f"a{i}"], [f"b{i}"])
    assert labels.changed == sum(labels.moves.values()) == 5_000
    assert len(labels.stable) <= tally.MAX_LABELS + 1
    assert len(labels.moves) <= tally.MAX_MOVES + 1


class Markup(HTMLParser):
    """Collects the elements and complains of those that are not closed."""

    VOID = frozenset({"meta", "br", "path"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def evil_report(folder):
    flip = ([0.9], [EVIL.encode()])
    pairs = [
        pair(0, SAME, flip, key=EVIL.encode(), segments={EVIL: EVIL}),
        pair(1, SAME, None, error=EVIL, segments={"s": "x"}),
    ]
    verdict = Verdict(check=EVIL, segment=EVIL, outcome=Outcome.FAIL, estimate=0.1, margin=0.1, unit=EVIL, note=EVIL)
    evidence = Stratum(endpoint="m", name=EVIL, pairs={"": PairEvidence(offered=1, dropped={EVIL: 1})})
    return of(folder, pairs, verdicts=[verdict], evidence=[evidence])


def test_html_is_whole_needs_nothing_else_and_runs_nothing(report, tmp_path):
    for one in (report, evil_report(tmp_path / "evil")):
        page = as_html(one)
        markup = Markup(page)
        assert markup.open == []
        assert not {"script", "link", "img", "iframe", "object", "form"} & set(markup.tags)
        assert not [a for a in markup.attributes if a[1] in ("src", "href") or a[1].startswith("on")]
        assert not re.search(r"url\(|@import|https?:", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in page


def test_every_table_has_a_caption_and_scoped_heads(report, tmp_path):
    page = as_html(evil_report(tmp_path / "evil"))
    tables = re.findall(r"<table>.*?</table>", page, re.S)
    assert len(tables) >= 8
    for table in tables:
        assert "<caption>" in table
        assert re.findall(r"<th (?!scope=)", table) == []
    assert '<html lang="en">' in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme:dark" in page


def printed(report, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(as_text(report))
    return console.file.getvalue()


def test_the_terminal_shows_what_changed_for_whom(report):
    text = printed(report)
    assert "country=DE" in text
    assert "benign → malignant: 12" in text
    assert "0.5 became 0.9" in text
    assert re.search(r"score\s+FP32\s+100\s+12 %\s+5 %\s+4 × tolerance", text)


def test_rich_markup_of_a_request_is_no_markup(tmp_path):
    flip = ([0.9], [b"[bold]x[/bold]"])
    report = of(tmp_path, [pair(0, SAME, flip, key=b"[red]k", segments={"s": "[/red]"})])
    text = printed(report)
    assert "benign → [bold]x[/bold]: 1" in text
    assert "[red]k" in text
    assert "s=[/red]" in text


def test_a_request_cannot_speak_to_the_terminal(tmp_path):
    flip = ([0.9], [b"\x1b]0;title\x07\x9b2J"])
    text = printed(of(tmp_path, [pair(0, SAME, flip, key=b"\x1b[2J", segments={"s\x1b": "\x1b[31m"})]))
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert "\\x1b[2J" in text


def test_json_is_plain_and_complete(report):
    plain = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert plain["rate"]["disagreed"] == 12
    assert plain["outputs"][1]["labels"]["moves"][0] == {"stable": "benign", "candidate": "malignant", "count": 12}
    assert plain["examples"][0]["differing"]["label"] == {
        "reason": "'benign' became 'malignant'",
        "magnitude": 1.0,
        "rows": 1,
        "at": [0],
    }


def test_verdicts_are_shown_as_they_are(tmp_path):
    verdict = Verdict(check="disagreement", segment="country=DE", outcome=Outcome.FAIL, estimate=0.6, low=0.4, high=0.8)
    report = of(tmp_path, [pair(0, SAME, SAME)], verdicts=[verdict])
    assert as_json(report)["verdicts"][0]["outcome"] == "FAIL"
    assert '<span class="badge bad">FAIL</span>' in as_html(report)
    assert re.search(r"disagreement\s+country=DE\s+FAIL", printed(report, 140))


def test_what_a_verdict_rests_on_has_a_line_of_its_own(tmp_path):
    notes = {
        "": "4 % of 500 pairs disagree, of stable with itself 0 % of 40",
        "country=DE": "60 % of 20",
        "c=FR": "0 %",
    }
    verdicts = [
        Verdict(check="disagreement", segment=segment, outcome=outcome, note=note)
        for (segment, note), outcome in zip(notes.items(), (Outcome.PASS, Outcome.FAIL, Outcome.PASS), strict=True)
    ]
    lines = printed(of(tmp_path, [pair(0, SAME, SAME)], verdicts=verdicts)).splitlines()
    assert f"  disagreement: {notes['']}" in lines
    assert "  disagreement country=DE: 60 % of 20" in lines
    assert not any("c=FR: 0 %" in line for line in lines)


NUMBERS = st.floats(-1e12, 1e12)


@given(st.lists(NUMBERS, min_size=1, max_size=200), st.floats(0, 1))
def test_a_sketch_is_within_its_accuracy(values, q):
    sketch = Sketch()
    sketch.add(values)
    sketch.fold()
    exact = sorted(values)[int(q * (len(values) - 1))]
    assert sketch.quantile(q) == pytest.approx(exact, rel=ACCURACY * 1.01, abs=1e-8)
    assert sketch.mean == pytest.approx(sum(values) / len(values), rel=1e-9, abs=1e-3)
    assert (sketch.low, sketch.high) == (min(values), max(values))


@given(st.lists(NUMBERS, min_size=2, max_size=50))
def test_buckets_are_in_the_order_of_values(values):
    values = np.array(sorted(values))
    buckets = buckets_of(values)
    assert (np.diff(buckets) >= 0).all()
    assert all(
        value_of(int(b)) == pytest.approx(v, rel=ACCURACY * 1.01, abs=1e-8)
        for b, v in zip(buckets, values, strict=True)
    )


@given(st.lists(NUMBERS, min_size=1, max_size=50), st.lists(NUMBERS, min_size=1, max_size=50))
def test_distance_is_one_of_distributions(a, b):
    one, other = Sketch(), Sketch()
    one.add(a)
    other.add(b)
    one.fold()
    other.fold()
    assert distance(one, one) == 0
    assert distance(one, other) == distance(other, one)
    assert 0 <= distance(one, other) <= 1
    assert len(one.histogram(np.linspace(-1, 1, 5))) == 4
    assert sum(one.histogram(np.linspace(-1, 1, 5))) == len(a)


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "–"), (0, "0 %"), (0.00001, "< 0.01 %"), (0.0012, "0.12 %"), (0.041, "4.1 %"), (0.99999, "> 99.99 %")],
)
def test_shares_say_that_few_is_not_none(value, said):
    assert w.share(value) == said


def test_durations_and_versions():
    assert [w.seconds(s) for s in (None, 5e-6, 0.0123, 2.5)] == ["–", "5 µs", "12.3 ms", "2.5 s"]
    assert [w.versions(v) for v in ((), (1,), (1, 2, 3))] == ["no version", "version 1", "versions 1, 2 and 3"]
    assert w.ratio(0.5, 1.0) == "−50 %"

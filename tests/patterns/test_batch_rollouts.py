"""A rollout in a batch: rows by the route plan, a shadow beside them, and a plan that stays as it was pinned."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import octoserve
from octoserve.cli import main as cli
from octoserve.control.plan_source import plan_from, shaping
from octoserve.control.report.blocks import Block, Segment
from octoserve.control.report.build import Tally
from octoserve.control.report.pair import Stored
from octoserve.control.report.readable import text_of
from octoserve.control.snapshot import Aspired
from octoserve.control.store import Store
from octoserve.core.comparison import Comparison, Difference
from octoserve.core.errors import NotFound, SettingsError, Unavailable
from octoserve.core.tensors import Tensor
from octoserve.patterns.batch.comparing import compared
from octoserve.patterns.batch.job import Differs, Interrupted
from octoserve.patterns.batch.manifest import wanted
from octoserve.patterns.batch.pinning import candidate_of
from octoserve.patterns.batch.routed import is_noise
from octoserve.patterns.batch.run import resume
from octoserve.patterns.batch.verify import verify
from octoserve.routing.plan import BUCKETS, MirrorTo, RoutePlan, split_arms
from octoserve.routing.split import pick
from octoserve.telemetry.pairs import RawTensor
from support.batch import BORNE, Stopping, put_model, put_table, result, rows, score, tools, tree, wish
from support.graphs import noisy_model, versioned_model

BAD = (7, 120, 777)


def canary(weight: int = 3000, **more) -> RoutePlan:
    plan = {"seed": "r1", "key": "column:name", **more}
    return RoutePlan("flawed", 9, split_arms(1, 2, weight, baseline=True), **plan)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for version in (1, 2):
        put_model(tmp_path / "models", version)
    return tmp_path / "models"


@pytest.fixture
def source(tmp_path: Path) -> str:
    return put_table(tmp_path / "data", bad=BAD)


def half_done(asked) -> None:
    files = Stopping(2)
    with pytest.raises(Interrupted):
        score(asked, files=files, stop=files.stop)


# Rows by the plan.


def test_each_row_is_scored_by_the_version_that_its_key_meets_online(repository, source, tmp_path) -> None:
    plan = canary(overrides={"n3": 2})
    done = score(wish(repository, source, tmp_path / "out", plan=plan)).manifest
    table = result(tmp_path / "out")
    assert table.column_names == ["id", "plus", "minus", "model_version"]
    ids = table.column("id").to_pylist()
    assert ids == [i for i in range(1500) if i not in BAD], "every row once, in order"
    expected = [pick(plan, f"n{i}".encode()) for i in ids]
    assert table.column("model_version").to_pylist() == expected
    assert 300 < expected.count(2) < 600
    x = np.stack([np.array(ids) * 0.5, np.array(ids) % 7], axis=1)
    assert np.allclose(np.array(table.column("plus").to_pylist()), x + np.array(expected)[:, None])
    assert (done.rows, done.bad_rows, done.model.version) == (1497, 3, 1)
    assert [other.version for other in done.routing.others] == [2]
    assert verify(tmp_path / "out").differences == ()


@pytest.mark.parametrize("type_", [pa.int32(), pa.bool_(), pa.dictionary(pa.int8(), pa.string()), pa.large_binary()])
def test_keys_of_all_kinds_and_none(repository, tmp_path, type_) -> None:
    """What has no key is the stable version's: by chance it would be another one when it is resumed."""
    values = [None if i % 10 == 3 else i % 2 if pa.types.is_boolean(type_) else i for i in range(300)]
    texts = (
        values
        if pa.types.is_integer(type_) or pa.types.is_boolean(type_)
        else [None if v is None else f"k{v}" for v in values]
    )
    column = pa.array([None if t is None else bool(t) for t in texts] if pa.types.is_boolean(type_) else texts, type_)
    pq.write_table(rows(0, 300).append_column("who", column), tmp_path / "t.parquet")
    plan = canary(5000)
    score(wish(repository, str(tmp_path / "t.parquet"), tmp_path / "out", plan=plan, plan_key="who"))

    def expected(value) -> int:
        if value is None:
            return 1
        value = {True: b"true", False: b"false"}[bool(value)] if pa.types.is_boolean(type_) else str(value).encode()
        return pick(plan, value)

    found = result(tmp_path / "out").column("model_version").to_pylist()
    assert found == [expected(text) for text in texts]


def test_a_plan_of_one_version_needs_no_key(repository, source, tmp_path) -> None:
    score(wish(repository, source, tmp_path / "out", plan=RoutePlan.to("flawed", 2, 5)))
    assert set(result(tmp_path / "out").column("model_version").to_pylist()) == {2}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"plan": canary(key="header:x-user")}, "goes by header:x-user, which is no column"),
        ({"plan": canary(key="")}, "draws by chance"),
        ({"plan": canary(), "plan_key": "nobody"}, "no column 'nobody'"),
        ({"plan": canary(), "plan_key": "a"}, "a is float"),
        ({"shadow": 1, "version": 1}, "version 1 scores already"),
    ],
)
def test_what_cannot_be_split_is_refused_before_the_first_row(repository, source, tmp_path, more, says) -> None:
    with pytest.raises(SettingsError, match=says):
        score(wish(repository, source, tmp_path / "out", **more))
    assert list(tmp_path.glob(".out*")) == []


def test_versions_that_do_not_answer_alike_are_refused(repository, source, tmp_path) -> None:
    folder = repository / "flawed" / "3"
    folder.mkdir()
    model = onnx.load_from_string(versioned_model(3))
    del model.graph.output[1]
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    plan = RoutePlan("flawed", 1, split_arms(1, 3, 5000), seed="s", key="column:id")
    asked = wish(repository, source, tmp_path / "out", plan=plan)
    with pytest.raises(Differs, match="version 3: output minus"):
        score(asked)


def test_a_version_may_take_other_columns(repository, tmp_path) -> None:
    source = put_table(tmp_path / "data")
    (repository / "flawed" / "1" / "model.yaml").write_text("features: [a, b]\n")
    (repository / "flawed" / "2" / "model.yaml").write_text("features: [b, a]\n")
    plan = canary(5000)
    score(wish(repository, source, tmp_path / "out", plan=plan, columns=()))
    for row in result(tmp_path / "out").to_pylist():
        a, b = row["id"] * 0.5, row["id"] % 7
        assert row["plus"] == ([a + 1, b + 1] if row["model_version"] == 1 else [b + 2, a + 2])


# Pinned.


def test_a_resumed_job_keeps_the_plan_though_the_rollout_has_moved(repository, source, tmp_path) -> None:
    score(wish(repository, source, tmp_path / "undisturbed", plan=canary(), shadow=2, noise=500))
    asked = wish(repository, source, tmp_path / "out", plan=canary(), shadow=2, noise=500)
    half_done(asked)
    moved = msgspec.structs.replace(asked, plan=canary(6000))
    with pytest.raises(Differs, match=r"routing, plan: version 2 30%.*version 2 60%.*octoserve batch resume"):
        score(moved)
    assert resume(asked.sink, BORNE, tools()).scored > 0
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")


def test_a_plan_that_says_the_same_is_the_same(repository, source, tmp_path) -> None:
    """Another generation, other mirrors, another stratum: none of it shapes a row."""
    asked = wish(repository, source, tmp_path / "out", plan=canary())
    half_done(asked)
    later = msgspec.structs.replace(canary(), generation=99, stratum="r1/4", mirrors=(MirrorTo(2, 5),), by_proxy=True)
    assert score(msgspec.structs.replace(asked, plan=later)).manifest.rows == 1497


@pytest.mark.parametrize("version", [1, 2])
def test_every_version_is_pinned_by_its_digest(repository, source, tmp_path, version) -> None:
    asked = wish(repository, source, tmp_path / "out", plan=canary())
    half_done(asked)
    (repository / "flawed" / str(version) / "model.yaml").write_text("threads: 1\n")
    with pytest.raises(Differs, match="sha256"):
        resume(asked.sink, BORNE, tools())


def test_a_job_of_one_version_says_nothing_of_routing(repository, source, tmp_path) -> None:
    score(wish(repository, source, tmp_path / "out", version=1))
    assert "routing" not in json.loads((tmp_path / "out" / "_SUCCESS").read_text())


# A shadow.


def test_a_shadow_stands_beside_and_has_no_vote(repository, source, tmp_path) -> None:
    put_model(repository, 4, above=500.0)  # it fails where the first number is larger: half of the rows
    score(wish(repository, source, tmp_path / "alone", version=1))
    done = score(wish(repository, source, tmp_path / "out", version=1, shadow=4)).manifest
    assert done.bad_rows == len(BAD), "what the shadow cannot score is no bad row"
    table = result(tmp_path / "out")
    assert table.column_names == ["id", "plus", "minus", "plus__shadow", "minus__shadow", "error__shadow"]
    assert table.select(["id", "plus", "minus"]).equals(result(tmp_path / "alone"))
    for row in table.to_pylist():
        if row["id"] * 0.5 > 500:
            assert row["plus__shadow"] is None
            assert "Gather" in row["error__shadow"]
        else:
            assert row["plus__shadow"] == [value + 3 for value in row["plus"]]
            assert row["error__shadow"] is None


def test_noise_is_the_same_version_again_on_a_share_of_the_rows(repository, source, tmp_path) -> None:
    folder = repository / "flawed" / "5"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(noisy_model(5, 1e-5))  # more, and it is no model for tables
    score(wish(repository, source, tmp_path / "out", version=5, shadow=1, noise=2000))
    again = [row for row in result(tmp_path / "out").to_pylist() if row["plus__again"] is not None]
    assert 0.15 * 1500 < len(again) < 0.25 * 1500
    assert all(np.allclose(row["plus__again"], row["plus"], rtol=1e-4) for row in again)
    assert any(row["plus__again"] != row["plus"] for row in again), "it draws anew each time"
    assert all(row["minus__again"] == row["minus"] for row in again)


def test_which_rows_are_noise_is_told_by_their_numbers() -> None:
    numbers = np.arange(100_000)
    chosen = is_noise(numbers, 100)
    assert 900 < chosen.sum() < 1100
    assert np.array_equal(chosen[5000:6000], is_noise(numbers[5000:6000], 100))
    assert is_noise(numbers, BUCKETS).all()


# Where the plan comes from.


def test_from_a_state_directory(tmp_path) -> None:
    for name, generation, weight in (("old", 3, 100), ("new", 8, 4000)):
        store = Store(tmp_path, tmp_path / "models", name)
        store.commit(Aspired(generation=generation, plans=(canary(weight), RoutePlan.to("other", 1, 1))))
        store.close()
    assert plan_from(str(tmp_path), "flawed") == canary(4000)
    with pytest.raises(NotFound, match="nothing of the endpoint 'fraud'"):
        plan_from(str(tmp_path), "fraud")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="is not the state of a service"):
        plan_from(str(tmp_path / "empty"), "flawed")


def test_from_a_file(tmp_path) -> None:
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(canary()))
    assert plan_from(str(tmp_path / "plan.json"), "flawed") == canary()
    with pytest.raises(SettingsError, match="of the endpoint 'flawed'"):
        plan_from(str(tmp_path / "plan.json"), "fraud")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(SettingsError, match="holds no route plan"):
        plan_from(str(tmp_path / "plan.json"), "flawed")


@pytest.fixture
def admin(monkeypatch):
    """An admin API that knows `flawed` and wants a token; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/api/models/flawed/plan"
            code = 401 if self.headers["Authorization"] != "Bearer secret" else 200 if known else 404
            self.send_response(code)
            self.end_headers()
            self.wfile.write(msgspec.json.encode(canary()) if code == 200 else b'{"error": "nothing answers"}')

        def log_message(self, *_) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("OCTOSERVE_ADMIN_TOKEN", "secret")
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_from_a_service(admin, monkeypatch) -> None:
    assert plan_from(admin, "flawed") == canary()
    monkeypatch.setenv("OCTOSERVE_ADMIN_URL", f"http://{admin}/")
    assert plan_from(None, "flawed") == canary()
    with pytest.raises(SettingsError, match=r"404.*nothing answers"):
        plan_from(admin, "fraud")
    monkeypatch.delenv("OCTOSERVE_ADMIN_TOKEN")
    with pytest.raises(SettingsError, match="the token comes from OCTOSERVE_ADMIN_TOKEN"):
        plan_from(admin, "flawed")


def test_nobody_there() -> None:
    with pytest.raises(Unavailable, match="no service answers there"):
        plan_from("127.0.0.1:9", "flawed")


def test_what_shapes_a_row_and_who_is_on_trial() -> None:
    idle = msgspec.structs.replace(canary(0), mirrors=(MirrorTo(2, 1000),))
    assert shaping(idle).versions() == {1}
    assert (shaping(idle).key, shaping(idle).seed) == ("", ""), "a key that nothing goes by is none"
    assert candidate_of(idle) == 2
    assert shaping(canary(BUCKETS)).stable == 1, "the stable version stays it though it has no share"
    with pytest.raises(SettingsError, match="no rollout"):
        candidate_of(RoutePlan.to("flawed", 1, 1))


def test_from_the_command_line(admin, repository, source, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)

    def octo(*more: str) -> tuple[int, str]:
        flags = ["--repository", "models", "--model", "flawed", "--source", "data/*.parquet", "--columns", "a,b"]
        monkeypatch.setattr(sys, "argv", ["octoserve", "batch", "run", *flags, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    assert octo("--sink", "a", "--version", "plan", "--plan", admin, "--shadow", "candidate", "--noise", "5%")[0] == 0
    said = wanted(tmp_path / "a").routing
    assert (said.plan, said.key, said.shadow.version, said.noise) == (shaping(canary()), "name", 2, 500)
    assert octo("--sink", "b", "--version", "stable", "--plan", admin)[0] == 0
    assert wanted(tmp_path / "b").model.version == 1
    for flags, says in (
        (("--version", "newest"), "--version: a version such as 3, or stable or plan"),
        (("--plan", admin), "--plan: nothing here goes by a route plan"),
        (("--noise", "5%"), "--noise:"),
        (("--version", "plan", "--plan", "127.0.0.1:9"), "no service answers there"),
    ):
        code, err = octo("--sink", "c", *flags)
        assert (code != 0, says in err) == (True, True), err


# The report.


def shadowed(tmp_path: Path, source: str, **more) -> str:
    """A job of version 1 whose shadow, version 4, fails on half of the rows and is off by 3 on the others."""
    put_model(tmp_path / "models", 4, above=500.0)
    score(wish(tmp_path / "models", source, tmp_path / "out", keys=("id", "name"), version=1, shadow=4, **more))
    return str(tmp_path / "out")


def test_the_report_says_what_counting_by_hand_says(repository, source, tmp_path) -> None:
    found = compared(shadowed(tmp_path, source, noise=1000), now=5.0, worst=3)
    table = result(tmp_path / "out").to_pylist()
    answered = [row for row in table if row["error__shadow"] is None]
    assert (found.of, found.endpoint, found.stable_versions, found.candidate_versions) == (
        "batch",
        "flawed",
        (1,),
        (4,),
    )
    assert (found.pairs, found.error_pairs) == (len(table), len(table) - len(answered))
    assert (found.rate.compared, found.rate.disagreed) == (len(answered), len(answered))
    noise = sum(row["plus__again"] is not None for row in table)
    assert (found.rate.noise_compared, found.rate.noise_share) == (noise, 0.0)
    plus = next(output for output in found.outputs if output.name == "plus")
    moved = np.array([row["plus__shadow"] for row in answered]) - np.array([row["plus"] for row in answered])
    assert [n.mean_change for n in plus.numbers] == pytest.approx(list(moved.mean(axis=0)))
    assert [n.stable.high for n in plus.numbers] == pytest.approx(
        [max(row["plus"][i] for row in answered) for i in (0, 1)]
    )
    assert len(found.examples) == 3
    for example in found.examples:
        row = next(row for row in answered if row["id"] == example.inputs["id"])
        assert example.key == f"id={row['id']}, name={row['name']}"
        assert example.stable["plus"] == [pytest.approx(row["plus"])]
        assert example.candidate["plus"] == [pytest.approx(row["plus__shadow"])]
    assert "Gather" in found.errors[0].error
    assert "failed" in found.headline


@pytest.mark.parametrize("name", ["csv", "jsonl", "arrow"])
def test_the_report_of_another_format_is_the_same(name: str, repository, source, tmp_path) -> None:
    """Lists that no shadow answered are null, not lists of nulls."""
    one = compared(shadowed(tmp_path, source, noise=1000), now=5.0, segments=["name"])
    asked = {"keys": ("id", "name"), "version": 1, "shadow": 4, "noise": 1000, "sink_format": name}
    score(wish(tmp_path / "models", source, tmp_path / "other", **asked))
    other = compared(str(tmp_path / "other"), now=5.0, segments=["name"])
    assert msgspec.structs.replace(other, rollout=one.rollout) == one


def test_tolerance_and_the_worst_by_distance(repository, source, tmp_path) -> None:
    sink = shadowed(tmp_path, source)
    near = compared(sink, now=0.0, tolerance_of=lambda model: {"": {"absolute": 3.5}} if model == "flawed" else {})
    assert near.rate.disagreed == 0
    assert near.examples == ()
    far = compared(
        sink, now=0.0, tolerance_of=lambda model: {"plus": {"relative": 0.01}, "minus": {"ignore": 1}}, worst=1
    )
    (example,) = far.examples
    assert example.inputs["id"] == 0, "three on one is the farthest by a share of it"
    minus = next(output for output in far.outputs if output.name == "minus")
    assert minus.rate.disagreed == 0


def test_segments_are_columns_of_the_sink(repository, tmp_path) -> None:
    table = rows(0, 1500, BAD).append_column(
        "shop", pa.array([None if i % 50 == 0 else f"s{i % 3}" for i in range(1500)])
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100)
    put_model(repository, 4, above=500.0)
    asked = wish(repository, str(tmp_path / "t.parquet"), tmp_path / "out", keys=("id", "shop"), version=1, shadow=4)
    score(asked)
    found = compared(str(tmp_path / "out"), now=0.0, segments=["shop"])
    by_value = {segment.value: segment for segment in found.segments}
    scored = result(tmp_path / "out").to_pylist()
    for value in ("s0", "s1", "s2", "(none)"):
        mine = [row for row in scored if (row["shop"] or "(none)") == value]
        fine = sum(row["error__shadow"] is None for row in mine)
        segment = by_value[value]
        assert (segment.rate.compared, segment.rate.disagreed, segment.errors) == (fine, fine, len(mine) - fine)
        assert segment.outputs == {"plus": fine, "minus": fine}
    for wrong in ("nowhere", "plus", "error__shadow"):
        with pytest.raises(SettingsError, match="no column"):
            compared(str(tmp_path / "out"), now=0.0, segments=[wrong])


def test_by_the_plan_each_row_is_compared_with_who_answered_it(repository, source, tmp_path) -> None:
    score(wish(repository, source, tmp_path / "out", plan=canary(), shadow=2))
    table = result(tmp_path / "out").to_pylist()
    found = compared(str(tmp_path / "out"), now=0.0)
    assert found.rate.compared == sum(row["model_version"] == 1 for row in table), "not with itself"
    assert found.stable_versions == (1,)


def test_what_a_pair_at_a_time_says_is_what_a_block_says(models, tmp_path) -> None:
    """Labels and lists through both ways of counting."""
    random = np.random.default_rng(3)
    n = 700
    stable = [("label", "INT64", random.integers(0, 4, n)), ("p", "FP32", random.random((n, 3)).astype(np.float32))]
    other = [
        ("label", "INT64", np.where(random.random(n) < 0.1, 3, stable[0][2])),
        ("p", "FP32", (stable[1][2] + (random.random((n, 1)) < 0.2) * 0.01).astype(np.float32)),
    ]
    comparison = Comparison({})
    segment = Segment("half", np.arange(n) % 2, ["even", "odd"])

    def pair(row: int, difference: Difference) -> Stored:
        texts = [
            text_of([RawTensor.of(Tensor.of(name, array[row : row + 1], kind)) for name, kind, array in side])
            for side in (stable, other)
        ]
        return Stored(
            time=None, kind="shadow", stratum="", key=str(row), segments={"half": ("even", "odd")[row % 2]},
            stable_version=1, candidate_version=2, stable_seconds=None, candidate_seconds=None,
            agreed=difference.agreed, worst=difference.worst, rows=1, rows_differing=difference.rows_differing,
            differing=difference.outputs, error="", inputs="{}", stable=texts[0], candidate=texts[1],
            datatypes=msgspec.json.encode({"outputs": {"label": "INT64", "p": "FP32"}}).decode(), raw=None,
        )  # fmt: skip

    slowly, quickly = Tally(0), Tally(0)
    for row in range(n):
        sides = [[(name, kind, array[row : row + 1]) for name, kind, array in side] for side in (stable, other)]
        slowly.add(pair(row, comparison.compare(*sides)))
    for start in range(0, n, 300):
        part = slice(start, start + 300)
        sides = [[(name, kind, array[part]) for name, kind, array in side] for side in (stable, other)]
        block = Block(
            len(sides[0][0][2]), *sides, [Segment("half", segment.codes[part], segment.values)],
            lambda row, difference, start=start: pair(start + row, difference),
        )  # fmt: skip
        quickly.add_block(comparison, block, ({1}, 2))
    one, many = (tally.report("m", "r", 0.0, of="batch") for tally in (slowly, quickly))
    plain = msgspec.to_builtins(many)
    assert msgspec.to_builtins(one) == approximately(plain)
    assert many.rate.disagreed > 100


def approximately(value):
    """The same, but for the digits that FP32 has none of: pairs are stored with as few as tell numbers apart."""
    if isinstance(value, dict):
        return {key: approximately(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(approximately(part) for part in value)
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


def test_forms_of_the_report(repository, source, tmp_path, monkeypatch, capsys) -> None:
    sink = shadowed(tmp_path, source)

    def octo(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["octoserve", "batch", "report", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, _ = octo(sink)
    assert (code, "Comparison of a batch flawed" in out, "Worst disagreements" in out) == (0, True, True)
    assert "Run time" not in out, "nobody took the time"
    code, out, _ = octo(sink, "--json")
    assert json.loads(out)["rate"]["share"] == 1.0
    page = tmp_path / "report.html"
    assert octo(sink, "--html", str(page))[0] == 0
    assert "Comparison of a batch" in page.read_text()
    assert octo(sink, "--html", "-")[1].startswith("<!doctype html>")
    (tmp_path / "octoserve.yaml").write_text(json.dumps({"rollout": {"tolerance": {"": {"absolute": 9}}}}))
    assert json.loads(octo(sink, "--json", "--spec", str(tmp_path / "octoserve.yaml"))[1])["rate"]["disagreed"] == 0
    score(wish(repository, source, tmp_path / "alone"))
    code, _, err = octo(str(tmp_path / "alone"))
    assert (code, "--shadow" in err) == (2, True)
    assert octo(str(tmp_path / "nowhere"))[0] == 1


def test_a_notebook_shows_the_report_as_a_page(repository, source, tmp_path) -> None:
    asked = {"keys": ["id"], "columns": ["a", "b"], "version": 1, "shadow": 2, "noise": "10%", "error_budget": "1%"}
    done = octoserve.batch(repository, "flawed", source, tmp_path / "out", **asked)
    assert "<th>shadow</th><td>version 2</td>" in done._repr_html_()
    found = done.report(tolerance={"minus": {"ignore": 1}})
    assert "100 % of 1,497 answers of version 2 differ from version 1" in repr(found)
    assert found._repr_html_().startswith("<iframe srcdoc=")
    assert "<script" not in found._repr_html_()

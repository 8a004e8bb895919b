"""The demo's story, chapter by chapter. Each function shows one thing and checks it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
from demo_screen import Screen, good, quiet, share, strong, timeline
from demo_service import (
    HOME,
    MODELS,
    ROOT,
    SPEC,
    WANTED,
    DemoError,
    Service,
    build_missing,
    choose_ports,
    end_leftover,
    environment,
    lock,
    publish,
    take_back_later_versions,
)

if TYPE_CHECKING:
    import demo_rollout

WHAT = {
    "fraud": "scikit-learn gradient boosting, 30 numbers",
    "wine": "LightGBM, 13 numbers, three classes",
    "penguins": "scikit-learn pipeline, words and numbers",
    "content_type": "Magika, made by Google: 214 kinds of file",
    "passage_match": "three inputs, four outputs, free dimensions",
}


def tell(screen: Screen, stay: bool) -> None:
    """Everything, from the models to the last line. Raises DemoError when it cannot go on."""
    screen.title("octoserve", "one trained model, one spec, eight ways to serve it")
    lock()
    pid = end_leftover()
    if pid is not None:
        screen.note(f"An earlier demo was killed and left its service (pid {pid}) behind; it is stopped now.")
    take_back_later_versions()
    models(screen)
    screen.chapter("2  The service", "one supervisor, one worker a core")
    screen.command(f"octoserve serve --spec {_short(SPEC)}")
    screen.gap()
    service = Service(choose_ports())
    with screen.busy("starting: workers load, check and warm up every model"):
        service.start()
    with service:
        places(screen, service)
        answers(screen, service)
        speed(screen, service)
        switch(screen, service)
        canaries(screen, service)
        where_next(screen, service)
        if stay and not screen.problems:
            wait(screen, service)
        code = service.stop()
    screen.check(code == 0, f"stopped with SIGTERM: drained, exit code {code}")
    screen.gap()


# --- models and service ----------------------------------------------------------------------------------


def models(screen: Screen) -> None:
    """Build the repository."""
    screen.chapter("1  The models", "trained here on data that ships in packages, as ONNX files")
    began = time.monotonic()
    with screen.busy("training and converting what is not there yet (10 to 20 s the first time)"):
        built = build_missing()
    rows = []
    for name, what in WHAT.items():
        size = (MODELS / name / "1" / "model.onnx").stat().st_size
        rows.append((strong(name), what, quiet(f"{size / 1000:,.0f} kB")))
    screen.table(("MODEL", "WHAT IT IS", "SIZE"), rows, right=(2,), wraps=1)
    screen.gap()
    took = f"built in {time.monotonic() - began:.0f} s" if built else "were there from the last run"
    screen.note(f"{_short(MODELS)}/<model>/<version>/model.onnx: {took}.")
    screen.note("No card fraud ships in a package: fraud is trained on breast-cancer data of the same form.")


def places(screen: Screen, service: Service) -> None:
    """Say where everything is."""
    for door, port in WANTED.items():
        if service.asked[door] == 0:
            screen.say(f"[yellow]port {port} is taken by another program; {door} is on {service.ports[door]}[/]")
    workers = _get(f"{service.admin}/api/workers")
    rows = [
        (strong("HTTP"), service.http, quiet("Open Inference Protocol V2, with Triton's extensions")),
        (strong("gRPC"), service.grpc, quiet("the same, and health, reflection, streams")),
        (strong("admin"), service.admin, quiet("/console, /metrics, /api/models, /readyz")),
    ]
    screen.table(("", "", ""), rows, wraps=2)
    screen.gap()
    index = _post(f"{service.http}/v2/repository/index")
    ready = {entry["name"] for entry in index if entry["state"] == "READY"}
    reasons = [f"{entry['name']} version {entry['version']}: {entry['reason']}" for entry in index if entry["reason"]]
    if ready != set(WHAT):
        raise DemoError(f"not ready: {', '.join(sorted(set(WHAT) - ready))}\n" + "\n".join(reasons))
    screen.check(
        True,
        f"ready after {service.ready_after:.1f} s: {len(ready)} models, {len(workers)} worker(s), pid {service.pid}",
    )


# --- questions and answers -------------------------------------------------------------------------------


def answers(screen: Screen, service: Service) -> None:
    """Ask every model, and compare with ONNX Runtime run on the same file."""
    screen.chapter("3  Questions and answers", "each answer is compared with ONNX Runtime's on the same file")
    with screen.busy("asking"):
        import demo_questions  # imports what trains models, which takes a second

        demo_questions.ask(service, "wine", demo_questions.tensor("features", np.ones((1, 13)), "FP32"))
    _fraud(screen, service)
    _wine(screen, service)
    _penguins(screen, service)
    _content_type(screen, service)
    _passages(screen, service)
    _refusal(screen, service)


def _fraud(screen: Screen, service: Service) -> None:
    import demo_questions as questions

    rows, truth = questions.fraud_question()
    answer = questions.ask(service, "fraud", questions.tensor("features", rows, "FP32"))
    over_grpc = questions.ask_grpc(service, "fraud", "features", rows, "FP32")
    labels, probabilities = answer.outputs["label"], answer.outputs["probabilities"]
    table = [
        (
            f"{row[0]:.2f}, {row[1]:.2f}, {row[2]:.1f}, ... {row[29]:.4f}",
            strong(str(label)),
            share(float(p[1])),
            _hit(int(label) == int(true)),
        )
        for row, label, p, true in zip(rows, labels, probabilities, truth, strict=True)
    ]
    screen.table(("fraud: 30 NUMBERS", "LABEL", "PROBABILITY OF 1", "TRUTH"), table)
    expected = questions.directly("fraud", {"features": rows})
    _judge(screen, "fraud", answer, questions.same(answer, expected), len(rows))
    equal = all(
        answer.outputs[k].tobytes() == over_grpc.outputs[k].astype(v.dtype).tobytes() for k, v in expected.items()
    )
    screen.check(equal, f"the same rows over gRPC (tritonclient): the same bytes, {over_grpc.seconds * 1000:.1f} ms")
    screen.gap()


def _wine(screen: Screen, service: Service) -> None:
    import demo_questions as questions

    rows, truth = questions.wine_question()
    answer = questions.ask(service, "wine", questions.tensor("features", rows, "FP32"))
    table = [
        (
            f"{row[0]:.1f} % alcohol, proline {row[12]:.0f}, ...",
            strong(f"cultivar {label}"),
            share(float(p[label])),
            _hit(int(label) == int(true)),
        )
        for row, label, p, true in zip(
            rows, answer.outputs["label"], answer.outputs["probabilities"], truth, strict=True
        )
    ]
    screen.table(("wine: 13 MEASUREMENTS", "LABEL", "PROBABILITY", "TRUTH"), table)
    right = questions.same(answer, questions.directly("wine", {"features": rows}))
    _judge(screen, "wine", answer, right, len(rows))
    screen.gap()


def _penguins(screen: Screen, service: Service) -> None:
    import demo_questions as questions

    birds, truth = questions.penguin_question()
    tensors, arrays = questions.penguin_inputs(birds)
    answer = questions.ask(service, "penguins", *tensors)
    table = [
        (
            f"{bird['sex']}, {bird['island']}, {bird['body_mass_g']:.0f} g, bill {bird['bill_length_mm']} mm",
            strong(str(label)),
            share(float(p.max())),
            _hit(label == true),
        )
        for bird, label, p, true in zip(
            birds, answer.outputs["label"], answer.outputs["probabilities"], truth, strict=True
        )
    ]
    screen.table(("penguins: WORDS AND NUMBERS", "LABEL", "PROBABILITY", "TRUTH"), table)
    _judge(screen, "penguins", answer, questions.same(answer, questions.directly("penguins", arrays)), len(birds))
    screen.gap()


def _content_type(screen: Screen, service: Service) -> None:
    import demo_questions as questions

    names, rows = questions.file_question()
    answer = questions.ask(service, "content_type", questions.tensor("bytes", rows, "INT32"))
    kinds = questions.content_type.labels()
    table = []
    for name, scores in zip(names, answer.outputs["target_label"], strict=True):
        best = int(scores.argmax())
        table.append((_middle(name, 50), strong(kinds[best]), share(float(scores[best]))))
    screen.table(("content_type: FILES OF THIS CHECKOUT", "KIND", "PROBABILITY"), table)
    right = questions.same(answer, questions.directly("content_type", {"bytes": rows}))
    _judge(screen, "content_type", answer, right, len(rows), "files")
    screen.gap()


def _passages(screen: Screen, service: Service) -> None:
    import demo_questions as questions

    words, arrays = questions.passage_question()
    datatypes = {"query": "FP32", "passage": "FP32", "passage_mask": "BOOL"}
    inputs = [questions.tensor(name, values, datatypes[name]) for name, values in arrays.items()]
    answer = questions.ask(service, "passage_match", *inputs)
    score, best, similarity = (answer.outputs[k] for k in ("score", "best", "similarity"))
    asked = questions.QUERY.split()
    table = []
    for i, text in enumerate(words):
        found = [f"{text[best[i, j]]} {similarity[i, j, best[i, j]]:.2f}" for j in range(len(asked))]
        table.append((" ".join(text), *found, strong(f"{score[i]:.2f}")))
    screen.table(("passage_match: WORDS AS VECTORS", *(f"~ {word}" for word in asked), "SCORE"), table)
    right = questions.same(answer, questions.directly("passage_match", arrays))
    _judge(screen, "passage_match", answer, right, len(words), "passages")
    screen.gap()


def _refusal(screen: Screen, service: Service) -> None:
    import demo_questions as questions

    status, text = questions.refusal(service, "fraud", questions.tensor("features", np.zeros((1, 29)), "FP32"))
    screen.check(status == 400, f"a row with 29 numbers is refused: {status} {text}")


def _judge(screen: Screen, model: str, answer: Any, right: bool, rows: int, what: str = "rows") -> None:
    screen.check(
        right,
        f"{rows} {what} in {answer.seconds * 1000:.1f} ms, connecting included; as ONNX Runtime says",
        f"{model} does not answer what ONNX Runtime gives for the same file",
    )


def _hit(right: bool) -> Any:
    return good("✓") if right else quiet("is the other")


# --- speed -----------------------------------------------------------------------------------------------


def speed(screen: Screen, service: Service) -> None:
    """A quiet service, then a busy one, and what batching did meanwhile."""
    screen.chapter("4  Latency and throughput", "the load generator shares these cores")
    command = ["bench", service.http, "--model", "fraud"]
    with screen.busy("one connection for 1.5 s"):
        quiet_run = json.loads(_octoserve(*command, "-c", "1", "-d", "1.5", "--warm-up", "0.3", "--json"))
    latency = quiet_run["latency_ms"]
    _judge_load(screen, quiet_run)
    screen.say(
        f"one client at a time: [bold]{latency['p50']:.2f} ms[/] median, {latency['p99']:.2f} ms p99, "
        f"{quiet_run['requests_per_second']:,.0f} answers/s"
    )
    screen.gap()
    before = _runs(service)
    screen.command(f"octoserve {' '.join(command)} -c 64 -d 3")
    with screen.busy("64 connections for 3 s"):
        text = _octoserve(*command, "-c", "64", "-d", "3", colors=screen.colors)
    screen.lines(text.partition("\n")[2])
    screen.gap()
    screen.check("not answered" not in text, "every request was answered with 200", text.strip()[-300:])
    after = _runs(service)
    rows, runs = after[0] - before[0], after[1] - before[1]
    screen.check(
        0 < runs <= rows,
        f"dynamic batching: {rows:,.0f} requests of one row in {runs:,.0f} runs of the model, "
        f"{rows / max(runs, 1):.0f} rows a run",
    )


def _judge_load(screen: Screen, run: dict[str, Any]) -> None:
    if set(run["statuses"]) - {"200"} or run["broken_connections"] or run["unanswered"]:
        screen.problems.append(f"under load not everything was answered with 200: {run}")


def _octoserve(*arguments: str, colors: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "octoserve", *arguments],
        capture_output=True,
        text=True,
        env={**environment(), "COLUMNS": "96", **({"FORCE_COLOR": "1"} if colors else {})},
        timeout=60,
    )
    if done.returncode:
        raise DemoError(f"octoserve {' '.join(arguments)} failed:\n{(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout


def _runs(service: Service) -> tuple[float, float]:
    """Rows and runs of fraud so far, from the metrics page."""
    with urllib.request.urlopen(f"{service.admin}/metrics", timeout=10) as response:
        page = response.read().decode()
    found = {
        kind: sum(map(float, re.findall(rf'^octoserve_batch_rows_{kind}{{model="fraud".*?}} (\S+)$', page, re.M)))
        for kind in ("sum", "count")
    }
    return found["sum"], found["count"]


# --- version 2 -------------------------------------------------------------------------------------------


def switch(screen: Screen, service: Service) -> None:
    """Version 2 under load."""
    import demo_switch

    screen.chapter("5  Version 2 arrives", f"while {demo_switch.CLIENTS} clients go on asking")
    screen.command(f"mv {_short(HOME)}/next/fraud/2 {_short(MODELS)}/fraud/2")
    screen.gap()
    with screen.busy("asking, publishing, asking on"):
        seen = demo_switch.run(service)
    slices = seen.timeline(screen.width - 20)
    line = timeline(slices)
    screen.table(("", ""), [(quiet("version"), line), ("", quiet(_marks(seen, len(slices))))], wraps=2)
    screen.gap()
    one, two = seen.count(1), seen.count(2)
    during = seen.slowest(seen.published, seen.first(2) + 0.5) * 1000
    screen.rows(
        (
            ("answers of version 1", f"{one:,}"),
            (
                "answers of version 2",
                f"{two:,}, the first {seen.first(2) - seen.published:.1f} s after it was put there",
            ),
            (
                "slowest answer",
                f"{seen.slowest(0, seen.published) * 1000:.0f} ms before, {during:.0f} ms in the switch",
            ),
        )
    )
    screen.gap()
    screen.check(one > 0 and two > 0, "both versions answered")
    screen.check(
        not seen.errors,
        f"no request was lost: {one + two:,} answers, {len(seen.errors)} errors",
        f"requests failed: {seen.errors[:3]}",
    )
    screen.check(not seen.mixed, "no answer was mixed: each has the probabilities of the version that it names")
    if not math.isnan(seen.first(2)):
        both = max(0.0, seen.last(1) - seen.first(2))
        screen.note(f"Workers swap one by one: for {both * 1000:.0f} ms both versions answered, each its own requests.")


def _marks(seen: Any, columns: int) -> str:
    end = max((at for at, _, _ in seen.answers), default=1.0)
    place = min(columns - 1, int(seen.published / end * columns))
    return " " * place + "^ version 2 is put into the repository"


# --- rollouts --------------------------------------------------------------------------------------------


def canaries(screen: Screen, service: Service) -> None:
    """A version that is promoted, and one that is found out."""
    import demo_rollout

    screen.chapter(
        "6  Two canaries", f"wine, while {demo_rollout.CLIENTS} clients ask for {demo_rollout.CUSTOMERS} customers"
    )
    screen.note("Version 3 is as fast and answers everything: it learnt from labels beside the wrong rows.")
    screen.gap()
    with demo_rollout.customers(service) as seen:
        good_one = _canary(screen, service, 2)
        bad_one = _canary(screen, service, 3)
    rows = [
        (
            strong(f"version {version}"),
            f"{seen.answers[version]:,}",
            f"{seen.wrong[version]:,}",
            f"{len(seen.customers[version])} of {demo_rollout.CUSTOMERS}",
        )
        for version in (1, 2, 3)
    ]
    screen.table(("wine", "ANSWERS", "WRONG", "CUSTOMERS WHO GOT ONE"), rows, right=(1, 2, 3))
    screen.gap()
    screen.check(
        good_one.summary["result"] == "promoted" and good_one.code == 0,
        f"version 2 was promoted after {good_one.took:.1f} s",
        f"version 2: {good_one.summary}",
    )
    screen.check(
        bad_one.summary["result"] == "aborted" and "disagreement" in bad_one.summary["reason"] and bad_one.code == 1,
        f"version 3 was aborted after {bad_one.took:.1f} s: {bad_one.summary['reason']}",
        f"version 3: {bad_one.summary}",
    )
    screen.check(
        not seen.errors,
        f"no request was lost: {seen.answers.total():,} answers, {len(seen.errors)} errors",
        f"requests failed: {seen.errors[:3]}",
    )
    screen.check(_stable(service) == 2, "everybody is back on version 2")
    screen.note("What version 3 changed: `octoserve rollout report wine`. What was decided, and from what:")
    screen.note("`octoserve rollout history wine`, `octoserve rollout audit wine`, or the console.")


def _canary(screen: Screen, service: Service, version: int) -> demo_rollout.Ended:
    import demo_rollout

    publish("wine", version)
    screen.command(f"octoserve rollout start wine --candidate {version} --wait")
    with screen.busy(f"version {version} answers a fifth of the customers, then a half, if the evidence allows"):
        ended = demo_rollout.start_and_wait(service, version)
    screen.lines("\n".join(demo_rollout.course(ended.lines)))
    screen.gap()
    return ended


def _stable(service: Service) -> int | None:
    """The version that has all of wine's requests; None if several share them."""
    routes = _get(f"{service.admin}/api/rollouts/wine")["routes"]
    return routes[0]["version"] if len(routes) == 1 else None


# --- the end ---------------------------------------------------------------------------------------------


def where_next(screen: Screen, service: Service) -> None:
    """URLs, a command line, pages."""
    screen.chapter("7  Where to look next")
    screen.rows(
        (
            ("ask", f"curl {service.http}/v2/models/penguins/infer -d @examples/penguins.json"),
            ("what a model takes", f"curl {service.http}/v2/models/penguins"),
            ("what is served and why", f"curl {service.admin}/api/models"),
            ("rollouts, to watch and steer", f"{service.admin}/console"),
            ("metrics", f"curl {service.admin}/metrics"),
            ("load it", f"octoserve bench {service.http} --model wine"),
            ("the log", _short(HOME / "serve.log")),
            ("your own model", "docs/tutorial.md"),
            ("your own rollout", "docs/tutorial-rollouts.md"),
            ("how it works", "docs/architecture.md, docs/README.md"),
        )
    )
    screen.gap()


def wait(screen: Screen, service: Service) -> None:
    """Until Ctrl-C."""
    screen.say("[bold green]The service is running.[/] Ctrl-C stops it.")
    try:
        while service.exit_code() is None:
            time.sleep(0.2)
    except KeyboardInterrupt:
        screen.gap()
        screen.note("stopping")
        return
    raise DemoError(f"the service ended by itself with exit code {service.exit_code()}:\n{service.tail()}")


# --- small things ----------------------------------------------------------------------------------------


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def _post(url: str) -> Any:
    with urllib.request.urlopen(url, data=b"{}", timeout=10) as response:
        return json.load(response)


def _short(path: Any) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _middle(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    return f"{text[: width // 2 - 2]}...{text[-(width - width // 2 - 1) :]}"

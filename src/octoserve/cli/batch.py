"""`octoserve batch run | resume | status | verify | report | list`.

Exit codes: 0 committed, 1 it failed (resume it), 2 asked for wrongly, 3 the error budget is spent, 4 another run holds
the job, 130 and 143 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from octoserve.cli.batch_settings import Asked, asked
from octoserve.cli.main import print_error
from octoserve.core.errors import NotFound, OctoserveError, SettingsError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

Text = str | None
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Sink = Annotated[str, typer.Argument(metavar="SINK", help="The job's folder or table of predictions.")]
StateDir = Annotated[Path, typer.Option("--state-dir", envvar="OCTOSERVE_STATE_DIR", help="Where jobs are noted.")]
STATE_DIR = Path(".octoserve")
Repository = Annotated[Text, typer.Option("--repository", envvar="OCTOSERVE_REPOSITORY", help="<model>/<version>/.")]
Workers = Annotated[Text, typer.Option("--workers", help="Threads that score.", show_default="one a core")]
Flight = Annotated[Text, typer.Option("--bytes-in-flight", help="Rows read and not yet written.", show_default="64MB")]
Budget = Annotated[Text, typer.Option("--error-budget", help="Bad rows borne: 100, or 0.1%.", show_default="1%")]
Engine = Annotated[Text, typer.Option("--engine", help="What runs the job: local, or spark.", show_default="local")]
Master = Annotated[Text, typer.Option("--spark-master", help="Of Spark: local[2], spark://host:7077, yarn, ...")]
Remote = Annotated[Text, typer.Option("--spark-remote", help="Of Spark Connect: sc://host:15002.")]
Metrics = Annotated[Text, typer.Option("--metrics-port", help="Prometheus metrics while it runs; 0: a free port.")]
MetricsHost = Annotated[
    Text,
    typer.Option("--metrics-host", help="Where their page listens.", show_default="127.0.0.1: this machine alone"),
]


@app.command()
def run(
    repository: Repository = None,
    model: Annotated[Text, typer.Option(help="Which model scores.")] = None,
    version: Annotated[
        Text, typer.Option(help="Which version: 3, stable, or plan (row by row).", show_default="the highest")
    ] = None,
    plan: Annotated[
        Text,
        typer.Option(
            help="Where stable and plan come from: an admin API, a state directory, or a file.",
            show_default="http://127.0.0.1:8082",
        ),
    ] = None,
    plan_key: Annotated[Text, typer.Option(help="The column that the plan splits by.")] = None,
    shadow: Annotated[Text, typer.Option(help="A version to compare: 4, or candidate.")] = None,
    noise: Annotated[Text, typer.Option(help="Rows scored twice, to compare a version with itself: 1%.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="Files or a table: 'data/*.parquet', s3://...")] = None,
    sink: Annotated[Text, typer.Option(help="A new folder or table for the predictions.")] = None,
    keys: Annotated[Text, typer.Option(help="Columns written beside the predictions: id,day")] = None,
    columns: Annotated[Text, typer.Option(help="The columns of the model's only input, in order.")] = None,
    all_columns: Annotated[bool | None, typer.Option("--all-columns", help="Write every column of the source.")] = None,
    prefix: Annotated[Text, typer.Option(help="Put before predictions' names.")] = None,
    missing: Annotated[Text, typer.Option(help="A missing number: refuse (a bad row), or nan.")] = None,
    convert: Annotated[Text, typer.Option(help="lossless, or round.", show_default="lossless")] = None,
    error_budget: Budget = None,
    format: Annotated[Text, typer.Option(help="The source's format.", show_default="by the names")] = None,
    sink_format: Annotated[
        Text, typer.Option(help="The sink's files: parquet, csv, jsonl, arrow.", show_default="parquet")
    ] = None,
    engine: Engine = None,
    spark_master: Master = None,
    spark_remote: Remote = None,
    workers: Workers = None,
    bytes_in_flight: Flight = None,
    split_size: Annotated[Text, typer.Option(help="Rows in a file of the result.", show_default="64MB")] = None,
    block_rows: Annotated[Text, typer.Option(help="Rows in a run of the model.", show_default="4 MB, or 8192")] = None,
    metrics_port: Metrics = None,
    metrics_host: MetricsHost = None,
    spec: Annotated[Text, typer.Option(envvar="OCTOSERVE_SPEC", help="Settings file with a section `batch`.")] = None,
    state_dir: Annotated[Text, typer.Option(envvar="OCTOSERVE_STATE_DIR", help="Where jobs are noted.")] = None,
    as_json: Json = False,
) -> None:
    """Score a table with a model.

    Nothing is seen in SINK until all of it is there. The same command again goes on with a job that was stopped.
    """
    flags = dict(locals())
    del flags["spec"], flags["repository"], flags["as_json"]
    wanted = asked(flags, repository, spec)
    _carry_out(wanted, as_json, resume=False)


@app.command()
def resume(
    sink: Sink,
    workers: Workers = None,
    bytes_in_flight: Flight = None,
    error_budget: Budget = None,
    engine: Engine = None,
    spark_master: Master = None,
    spark_remote: Remote = None,
    metrics_port: Metrics = None,
    metrics_host: MetricsHost = None,
    spec: Annotated[
        Text, typer.Option(envvar="OCTOSERVE_SPEC", help="Settings file; of `batch` what a run goes about it with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with a job that was stopped: same files, same model, nothing done twice.

    Refused, with what differs, if the source, the model or a library is not what the job began with. The error budget
    is that of the last run if none is given.
    """
    flags = {
        "sink": sink,
        "workers": workers,
        "bytes_in_flight": bytes_in_flight,
        "error_budget": error_budget,
        "engine": engine,
        "spark_master": spark_master,
        "spark_remote": spark_remote,
        "metrics_port": metrics_port,
        "metrics_host": metrics_host,
    }
    _carry_out(asked(flags, ".", spec, resume=True), as_json, resume=True)


@app.command()
def status(sink: Sink, as_json: Json = False) -> None:
    """Say how a job stands. Exit code 1 if there is none."""
    from octoserve.cli.batch_screen import print_status
    from octoserve.patterns.batch.status import look

    found = look(sink)
    if as_json:
        import msgspec

        print(msgspec.json.encode(found).decode())
    else:
        print_status(found)


@app.command()
def verify(sink: Sink, as_json: Json = False) -> None:
    """Read every file of a committed sink and compare it with the manifest. Exit code 1 if one differs."""
    from octoserve.cli.batch_screen import print_differences
    from octoserve.patterns.batch.places import shown
    from octoserve.patterns.batch.verify import verify as look

    found = look(sink)
    sink, whole = shown(sink), found.manifest
    if as_json:
        rows = [{field: getattr(d, field) for field in d.__struct_fields__} for d in found.differences]
        print(json.dumps({"run": whole.run, "rows": whole.rows, "differences": rows}))
    elif found.differences:
        print_error(f"{sink} is not what was committed")
        print_differences(found.differences)
    else:
        files = len(whole.parts) + len(whole.bad)
        print(f"{sink} is whole: {whole.rows:,} rows, {whole.bad_rows:,} bad, {files} files as committed")
    if found.differences:
        raise typer.Exit(1)


@app.command()
def report(
    sink: Sink,
    segments: Annotated[Text, typer.Option(help="Columns of the sink to tell rows apart by: country,day")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file, - for standard output.")] = None,
    worst: Annotated[int, typer.Option(min=0, max=1000, help="How many disagreements are shown.")] = 10,
    spec: Annotated[
        Text, typer.Option(envvar="OCTOSERVE_SPEC", help="Settings file with rollout.tolerance: what counts as equal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the shadow's predictions in a committed sink with those beside them."""
    from octoserve.cli.batch_screen import print_report
    from octoserve.cli.batch_settings import tolerance_of
    from octoserve.patterns.batch.comparing import compared

    if html is not None and as_json:
        raise SettingsError("--html and --json: one of them, please")
    names = [name for name in (segments or "").split(",") if name]
    found = compared(sink, now=time.time(), segments=names, tolerance_of=lambda m: tolerance_of(spec, m), worst=worst)
    print_report(found, html, as_json)


@app.command("list")
def list_(state_dir: StateDir = STATE_DIR, as_json: Json = False) -> None:
    """List the jobs that were begun from here, and how each stands."""
    from octoserve.cli.batch_screen import print_jobs
    from octoserve.patterns.batch.register import entries
    from octoserve.patterns.batch.status import NONE, UNKNOWN, Status, look

    found: list[Status] = []
    for entry in entries(state_dir):
        try:
            found.append(look(entry.sink))
        except OctoserveError as error:
            state, why = (NONE, "") if isinstance(error, NotFound) else (UNKNOWN, str(error))
            found.append(Status(sink=entry.sink, state=state, model=entry.model, version=entry.version, why=why))
    if as_json:
        import msgspec

        print(msgspec.json.encode(found).decode())
    else:
        print_jobs(found, state_dir)


def _carry_out(wanted: Asked, as_json: bool, resume: bool) -> None:
    # Before pyarrow is imported. Its own allocator reserves 1 GB of addresses, which a limit on memory may not allow,
    # and keeps more than the system's; it is no faster here.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from octoserve.app import batch_engine, batch_tools
    from octoserve.cli.batch_screen import Screen, print_differences
    from octoserve.patterns.batch import job
    from octoserve.patterns.batch.run import resume as go_on
    from octoserve.patterns.batch.run import run as begin

    stop = _Stop()
    screen = Screen(wanted, quiet=as_json)
    engine = batch_engine(wanted.section, wanted.trust)
    tools = batch_tools(trust=wanted.trust, stop=stop.event, on_begin=screen.begin, engine=engine)
    try:
        with stop, screen:
            outcome = go_on(wanted.sink, wanted.run, tools) if resume else begin(wanted.wish(), wanted.run, tools)
    except job.Differs as error:
        print_error(error.headline)
        print_differences(error.differences)
        raise typer.Exit(2) from None
    except OctoserveError as error:
        hint = "" if isinstance(error, SettingsError | NotFound | job.Busy) else f"\n{screen.way_on()}"
        print_error(f"{error}{hint}")
        codes = {job.BudgetSpent: 3, job.Busy: 4, job.Fenced: 4, job.Interrupted: 128 + stop.signal}
        raise typer.Exit(codes.get(type(error), 2 if isinstance(error, SettingsError | NotFound) else 1)) from None
    screen.end(outcome)


class _Stop:
    """SIGINT and SIGTERM end the job in good order; a second one as ever."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal = signal.SIGINT
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self.event.set()
        signal.signal(number, self._before[number])

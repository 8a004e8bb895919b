"""`octoserve queue run | send | tail | lag | dlq list | dlq replay`.

Exit codes: 0 done, 1 it failed, 2 asked for wrongly. `run` ends by itself with --until-idle only.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octoserve.core.errors import InvalidInput

if TYPE_CHECKING:
    from octoserve.connectors.queues.protocol import QueueTools
    from octoserve.patterns.message_queue.cutovers import Cutover

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
dlq = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Dead letters: list, replay.")
app.add_typer(dlq, name="dlq")

Text = str | None
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="embedded, embedded:NAME, nats://host:port/stream, kafka://host:port/topic."),
]
STATE_DIR = Path(".octoserve")
StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="OCTOSERVE_STATE_DIR", help="Where the embedded broker is.")
]


@app.command()
def run(
    repository: Annotated[Text, typer.Option(envvar="OCTOSERVE_REPOSITORY", help="<model>/<version>/.")] = None,
    model: Annotated[Text, typer.Option(help="Which model scores.")] = None,
    version: Annotated[
        Text, typer.Option(help="Of it: a number, stable or plan (as its rollout says).", show_default="the highest")
    ] = None,
    plan: Annotated[
        Text,
        typer.Option(help="Whose route plan: an admin API, a state directory, a file.", show_default="the admin API"),
    ] = None,
    plan_key: Annotated[Text, typer.Option(help="What it splits by: message:key, header:NAME, or a field.")] = None,
    source: Annotated[
        Text, typer.Option(help="embedded, embedded:NAME, nats://host:port/stream, kafka://host:port/topic.")
    ] = None,
    sink: Annotated[
        Text,
        typer.Option(
            help="'sqlite:///x.db?table=t', 'postgresql://...?table=t', a stream or topic, parquet, a webhook."
        ),
    ] = None,
    payload: Annotated[
        Text, typer.Option(help="json, avro, protobuf, open-inference, raw or requests.", show_default="json")
    ] = None,
    schema_registry: Annotated[Text, typer.Option(help="Of avro and protobuf: http://host:8081.")] = None,
    columns: Annotated[Text, typer.Option(help="The fields of the model's only input, in order.")] = None,
    missing: Annotated[Text, typer.Option(help="A missing number: refuse (a dead letter), or nan.")] = None,
    workers: Annotated[Text, typer.Option(help="Processes that share the messages.", show_default="1")] = None,
    batch_rows: Annotated[Text, typer.Option(help="Messages in a run at most.", show_default="1024")] = None,
    batch_bytes: Annotated[Text, typer.Option(help="Their bytes.", show_default="8MB")] = None,
    batch_time: Annotated[Text, typer.Option(help="How long one may take.", show_default="1s")] = None,
    run_timeout: Annotated[Text, typer.Option(help="A longer run is ended.", show_default="30s")] = None,
    max_attempts: Annotated[Text, typer.Option(help="Then: dead letters.", show_default="3")] = None,
    retry_delay: Annotated[Text, typer.Option(help="Before the second attempt.", show_default="1s")] = None,
    redeliver_after: Annotated[
        Text, typer.Option(help="When a lost process's messages come again.", show_default="10s")
    ] = None,
    until_idle: Annotated[Text, typer.Option(help="End when nothing came for so long, and nothing is left.")] = None,
    metrics_port: Annotated[Text, typer.Option(help="Prometheus metrics while it runs; 0: a free port.")] = None,
    metrics_host: Annotated[
        Text, typer.Option(help="Where their page listens.", show_default="127.0.0.1: this machine alone")
    ] = None,
    spec: Annotated[Text, typer.Option(envvar="OCTOSERVE_SPEC", help="Settings file with a section `queue`.")] = None,
    state_dir: Annotated[Text, typer.Option(envvar="OCTOSERVE_STATE_DIR", help="Broker and attempts.")] = None,
    log_format: Annotated[str, typer.Option(help="text, or json.")] = "text",
    as_json: Json = False,
) -> None:
    """Score messages as they come, and store each result once."""
    flags = dict(locals())
    for own in ("spec", "repository", "log_format", "as_json"):
        del flags[own]
    from octoserve.app import spawn_queue_worker
    from octoserve.cli.queue_screen import Screen
    from octoserve.cli.queue_settings import asked, follower_of
    from octoserve.patterns.message_queue.supervisor import Supervisor
    from octoserve.telemetry.logs import set_up

    section, settings = asked(flags, repository, spec)
    set_up("info", log_format, "queue")
    screen = Screen(settings, quiet=as_json)
    supervisor = Supervisor(
        settings,
        section.workers,
        spawn_queue_worker,
        log_format=log_format,
        on_promise=screen.promise,
        on_figures=screen.figures,
        follower=follower_of(section),
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.stop())
    with screen.metrics(section.metrics_host, section.metrics_port, supervisor.families):
        done = supervisor.run()
    screen.end(done, supervisor.restarts, as_json)


@app.command()
def send(
    source: Source,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, one message each; - for standard input.")],
    schema: Annotated[
        Path | None, typer.Option(help="Send records of this schema instead: a .avsc or a .proto.")
    ] = None,
    schema_registry: Annotated[Text, typer.Option(help="Where it is registered: http://host:8081.")] = None,
    subject: Annotated[Text, typer.Option(help="Under which name.", show_default="TOPIC-value")] = None,
    state_dir: StateDir = STATE_DIR,
    as_json: Json = False,
) -> None:
    """Send a file's lines as messages. When it returns, the broker has all of them on disk."""
    from octoserve.cli.queue_screen import Sending, without_secrets

    lines = _lines(file)
    if schema is not None or schema_registry or subject:
        from octoserve.cli.queue_records import records_of

        lines = records_of(lines, source, schema, schema_registry, subject)
    with closing(_tools(source, state_dir)) as tools, Sending(quiet=as_json) as shown:
        count = tools.send(lines, shown.sent)
    if as_json:
        print(json.dumps({"sent": count}))
    else:
        print(f"sent {count:,} messages to {without_secrets(source)}")


def _lines(file: str) -> Iterator[bytes]:
    try:
        with sys.stdin.buffer if file == "-" else open(file, "rb") as lines:
            for line in lines:
                if line.strip():
                    yield line.rstrip(b"\r\n")
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from None


@app.command()
def tail(
    source: Source,
    last: Annotated[int, typer.Option("-n", "--last", min=0, help="How many.")] = 10,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes.")] = False,
    state_dir: StateDir = STATE_DIR,
    as_json: Json = False,
) -> None:
    """Show the last messages, without taking them."""
    from octoserve.cli.queue_screen import print_message

    with closing(_tools(source, state_dir)) as tools:
        try:
            for message in tools.tail(last, follow):
                print_message(message, as_json)
        except KeyboardInterrupt:
            pass


@app.command()
def lag(source: Source, state_dir: StateDir = STATE_DIR, as_json: Json = False) -> None:
    """Say how far behind the queue is, and from which position on who has scored it."""
    from octoserve.cli.queue_screen import print_lag

    with closing(_tools(source, state_dir)) as tools:
        print_lag(tools.lag(), _cutovers(source, state_dir), as_json)


@dlq.command("list")
def dlq_list(source: Source, state_dir: StateDir = STATE_DIR, as_json: Json = False) -> None:
    """List the messages that were given up, with how that came."""
    from octoserve.cli.queue_screen import print_letters

    with closing(_tools(source, state_dir)) as tools:
        print_letters(tools.dead(), source, as_json)


@dlq.command("replay")
def dlq_replay(
    source: Source,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Message ids; all, if none is named.")
    ] = None,
    state_dir: StateDir = STATE_DIR,
    as_json: Json = False,
) -> None:
    """Send dead letters again, under their message ids, with new attempts."""
    from octoserve.cli.queue_screen import without_secrets

    with closing(_tools(source, state_dir)) as tools:
        letters = tools.dead()
        unknown = set(ids or ()) - {letter.id for letter in letters}
        if unknown:
            raise InvalidInput(
                f"no dead letter {sorted(unknown)[0]!r}; `octoserve queue dlq list {without_secrets(source)}` shows "
                "those there are"
            )
        count = tools.replay([letter for letter in letters if not ids or letter.id in ids])
    if as_json:
        print(json.dumps({"replayed": count}))
    else:
        print(f"sent {count:,} dead letters to {without_secrets(source)} again")


def _cutovers(source: str, state_dir: Path) -> list[Cutover]:
    """What workers of this state directory have noted of the source. A model stands for any: it is not asked."""
    from octoserve.app import queue_kinds
    from octoserve.patterns.message_queue import opening
    from octoserve.patterns.message_queue.cutovers import cutovers
    from octoserve.patterns.message_queue.settings import QueueSettings

    settings = QueueSettings(repository="", model="", source=source, sink="", state_dir=str(state_dir))
    return cutovers(state_dir, opening.source(queue_kinds(), settings).name)


def _tools(source: str, state_dir: Path) -> QueueTools:
    from octoserve.app import queue_kinds
    from octoserve.patterns.message_queue.opening import tools

    return tools(queue_kinds(), source, state_dir)

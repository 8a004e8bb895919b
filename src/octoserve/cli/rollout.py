"""`octoserve rollout`: a client of the admin API; it knows nothing that the API does not say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from octoserve.cli.admin_client import DEFAULT_URL, URL_VARIABLE, AdminClient, printable, read_token
from octoserve.cli.pages import show_page
from octoserve.cli.rollout_screen import history_lines, overview_lines, printed, status_lines
from octoserve.cli.rollout_status import ENDED, GOOD_ENDS, RolloutView, Status, Summary, read_history, read_status
from octoserve.core.errors import NotFound, OctoserveError, SettingsError, Unavailable

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="The admin token is read from OCTOSERVE_ADMIN_TOKEN, or from --token-file.",
)


class Strategy(StrEnum):
    """How a new version meets production."""

    BLUE_GREEN = "blue-green"
    CANARY = "canary"
    SHADOW = "shadow"


Endpoint = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The model's name.", show_default=False)]
Url = Annotated[str, typer.Option("--admin-url", envvar=URL_VARIABLE, help="Where the admin API is.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the admin token; without it OCTOSERVE_ADMIN_TOKEN.", metavar="FILE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit log.", metavar="TEXT")]
Id = Annotated[str, typer.Option("--id", help="Of this rollout, not of the last one.", metavar="ID")]
Interval = Annotated[float, typer.Option(min=0.1, max=3600.0, help="Seconds between two looks.")]

_REPORT_TIMEOUT = 120.0


@app.command()
def start(
    endpoint: Endpoint,
    candidate: Annotated[int, typer.Option("--candidate", min=1, help="The version to try.", metavar="V")],
    strategy: Annotated[Strategy | None, typer.Option(help="Without it: the spec's.")] = None,
    stable: Annotated[
        int | None, typer.Option(min=1, help="The version to trust; without it the one that is.", metavar="V")
    ] = None,
    reason: Reason = "",
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end; exit code 1 if it was aborted.")] = False,
    interval: Interval = 1.0,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Start a rollout of a candidate; a live one is superseded."""
    client = _client(url, token_file)
    wish: dict[str, Any] = {"candidate": candidate}
    given = {"strategy": strategy.value if strategy else None, "stable": stable, "reason": reason}
    wish |= {key: value for key, value in given.items() if value}
    before = read_status(client.status(endpoint)).rollout if wait else None
    raw = client.start(endpoint, wish)
    if wait:
        _wait(client, endpoint, candidate, before.id if before else "", interval, as_json)
    elif as_json:
        print(json.dumps(raw))
    else:
        _show_status(raw)
        print(f"\nfollow it: octoserve rollout status {endpoint} --watch")


@app.command()
def status(
    endpoint: Annotated[
        str, typer.Argument(metavar="[ENDPOINT]", help="Without it: all of them.", show_default=False)
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it until Ctrl-C.")] = False,
    interval: Interval = 1.0,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show where rollouts stand: traffic, steps, evidence, and what they wait for."""
    client = _client(url, token_file)
    if watch:
        from octoserve.cli.rollout_watch import follow

        client.timeout = max(2.0, interval)
        follow(_ask(client, endpoint), client.url, interval, as_json)
        return
    raw = client.status(endpoint) if endpoint else client.statuses()
    if as_json:
        print(json.dumps(raw))
    elif endpoint or len(raw) == 1:
        _show_status(raw if endpoint else next(iter(raw.values())))
    else:
        _print(lambda width: overview_lines([read_status(each) for each in raw.values()], width))


def _add_command(command: str, help_: str) -> None:
    """Add a command that asks a rollout for something."""

    @app.command(command, help=help_)
    def ask(
        endpoint: Endpoint,
        reason: Reason = "",
        id_: Annotated[str, typer.Option("--id", help="Only if this rollout is the live one.", metavar="ID")] = "",
        url: Url = DEFAULT_URL,
        token_file: TokenFile = None,
        as_json: Json = False,
    ) -> None:
        raw = _client(url, token_file).command(endpoint, command, reason, id_)
        if as_json:
            print(json.dumps(raw))
            return
        print(f"{command}: accepted\n")
        _show_status(raw)


_add_command("approve", "Say yes to the next step.")
_add_command("pause", "Let a rollout stand still, at the traffic that it has.")
_add_command("resume", "Let a paused rollout go on.")
_add_command("promote", "Make the candidate the stable version now, without the steps that remain.")
_add_command("abort", "Take the candidate's traffic away and end the rollout.")
_add_command("rollback", "Go back to the version before, which is still loaded.")


@app.command()
def history(
    endpoint: Endpoint,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest first.")] = 20,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """List an endpoint's rollouts and how they ended."""
    raw = _client(url, token_file).history(endpoint, limit)
    if as_json:
        print(json.dumps(raw))
    else:
        _print(lambda width: history_lines(read_history(raw), width))


@app.command()
def report(
    endpoint: Endpoint,
    id_: Id = "",
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page that a browser shows, - for standard output.")
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Say what the candidate predicts otherwise, for whom, with examples."""
    if html is not None and as_json:
        raise SettingsError("--html and --json: one of them, please")
    client = _client(url, token_file, timeout=_REPORT_TIMEOUT)
    content = client.report(endpoint, "html" if html is not None else "json" if as_json else "text", id_)
    text = content.decode("utf-8", "replace")
    if html is not None:
        show_page(html, text)
    else:
        print((text if as_json else printable(text)).rstrip("\n"))


@app.command()
def audit(
    endpoint: Endpoint,
    id_: Id = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the chain of digests; exit code 1 if it is broken.")
    ] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """List what was decided in a rollout, by whom and why; --json prints whole entries."""
    from octoserve.cli import rollout_audit

    content = rollout_audit.read_whole(_client(url, token_file, timeout=_REPORT_TIMEOUT), endpoint, id_)
    if verify:
        rollout_audit.verify(content, as_json)
    elif as_json:
        print(content.decode().rstrip("\n"))
    else:
        _print(lambda width: rollout_audit.entry_lines(content, width))


@app.command()
def replay(
    endpoint: Annotated[str, typer.Argument(metavar="[ENDPOINT]", help="The model's name.", show_default=False)] = "",
    id_: Id = "",
    file: Annotated[
        Path | None, typer.Option("--file", help="What `audit --json` printed, - for standard input.", metavar="FILE")
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Feed a rollout's recorded evidence to this octoserve's analysis: the verdicts and transitions must be the same.

    Exit code 1 if one differs, or if the log's chain of digests is broken.
    """
    from octoserve.cli import rollout_audit

    if bool(endpoint) == (file is not None):
        raise SettingsError(
            "what shall be replayed? Either ENDPOINT (and --id), or --file with what `audit --json` printed"
        )
    if file is None:
        content = rollout_audit.read_whole(_client(url, token_file, timeout=_REPORT_TIMEOUT), endpoint, id_)
    else:
        content = _read(file)
    rollout_audit.replay(content, as_json)


# --- how ------------------------------------------------------------------------------------------------


def _client(url: str, token_file: Path | None, timeout: float = 10.0) -> AdminClient:
    return AdminClient(url, read_token(token_file), timeout)


def _ask(client: AdminClient, endpoint: str) -> Callable[[], dict[str, Any]]:
    return lambda: {endpoint: client.status(endpoint)} if endpoint else client.statuses()


def _print(lines: Callable[[int], list[Text]]) -> None:
    console = Console(highlight=False)
    console.print(printed(console, lines(console.width)))


def _show_status(raw: dict[str, Any]) -> None:
    _print(lambda width: status_lines(read_status(raw), width))


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error}") from None


class _Mine:
    """Finds the rollout that was started among what the API says, and knows when it has ended.

    before: the id of the rollout that was there before. It may go on being shown while it is being superseded.
    """

    def __init__(self, client: AdminClient, endpoint: str, candidate: int, before: str) -> None:
        self._client, self._endpoint, self._candidate, self._before = client, endpoint, candidate, before
        self.id = ""
        self.end: RolloutView | Summary | None = None

    def ended(self, statuses: list[Status]) -> bool:
        """Whether it has."""
        shown = statuses[0].rollout
        if shown is None or shown.id == self._before:
            return False
        if not self.id and shown.candidate == self._candidate:
            self.id = shown.id
        if shown.id == self.id:
            self.end = shown if shown.ended else None
        else:  # another one has taken its place
            self.end = self._in_history()
        return self.end is not None

    def _in_history(self) -> Summary | None:
        """How it ended, if it did: by its id, else the first one of our candidate since we asked."""
        try:
            items = read_history(self._client.history(self._endpoint, 100))
        except (Unavailable, NotFound):
            return None  # the service is being restarted; it is asked again
        since = list(takewhile(lambda item: item.id != self._before, items))
        ours = (item for item in reversed(since) if not self.id or item.id == self.id)
        found = next((item for item in ours if item.candidate == self._candidate), None)
        return found if found is not None and found.phase == ENDED else None


def _wait(client: AdminClient, endpoint: str, candidate: int, before: str, interval: float, as_json: bool) -> None:
    from octoserve.cli.rollout_watch import follow

    mine = _Mine(client, endpoint, candidate, before)
    client.timeout = max(2.0, interval)
    if not follow(_ask(client, endpoint), client.url, interval, as_json, mine.ended) or mine.end is None:
        raise OctoserveError(f"interrupted; the rollout goes on: octoserve rollout status {endpoint} --watch")
    if mine.end.result not in GOOD_ENDS:
        raise OctoserveError(f"{mine.end.id} ended: {mine.end.result}: {mine.end.reason or 'no reason given'}")

"""What a batch job shows: a bar in a terminal, a line now and then elsewhere, tables of what differs."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from octoserve.cli import batch_metrics
from octoserve.cli.metrics_page import MetricsServer
from octoserve.cli.pages import show_page
from octoserve.patterns.batch import register, status
from octoserve.patterns.batch.job import Difference, Job
from octoserve.patterns.batch.matching import Matched
from octoserve.patterns.batch.outcome import Outcome
from octoserve.patterns.batch.places import shown, sink_of
from octoserve.patterns.batch.progress import Progress
from octoserve.patterns.batch.showing import Shown, duration

if TYPE_CHECKING:
    from octoserve.cli.batch_settings import Asked
    from octoserve.control.report.report import Report


_NO_END = 10_000
"""Characters of a line that is read by a program."""


class Screen:
    """Of one run. Everything goes to standard error but the last line, so that it can be piped."""

    def __init__(self, asked: Asked, quiet: bool = False) -> None:
        self._asked = asked
        self._quiet = quiet
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._shown = Shown(self._console)
        self._metrics: MetricsServer | None = None
        self._begun = False

    def begin(self, job: Job, matched: Matched, progress: Progress) -> None:
        """The job is known; the first row comes."""
        self._begun = True
        self._note(job)
        if self._asked.metrics_port is not None:
            host, port = self._asked.metrics_host, self._asked.metrics_port
            self._metrics = MetricsServer(host, port, lambda: batch_metrics.families(job, progress))
            self._say(f"metrics on {self._metrics.url}")
        at = progress.glance()
        resumed = f", {at.rows:,} are done" if at is not None and at.rows else ""
        self._say(
            f"scoring {job.rows:,} rows of {len(job.files)} files with {job.model.name} version {job.model.version}, "
            f"{len(job.splits)} splits{resumed}; run {job.id()}"
        )
        if matched.by_position:
            feed = matched.feeds[0]
            self._say(
                f"the model names no features: {feed.spec.name} is made of the columns as they stand, "
                f"{feed.columns[0]} to {feed.columns[-1]}; give --columns to say it"
            )
        if not self._quiet:
            self._shown.begin(progress)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.__exit__()
        if self._metrics is not None:
            self._metrics.close()

    def way_on(self) -> str:
        """What to type after a failure."""
        return f"go on with: {resume_command(shown(self._asked.sink))}" if self._begun else "nothing was begun"

    def end(self, outcome: Outcome) -> None:
        """It is committed."""
        whole = outcome.manifest
        if self._quiet:
            import msgspec

            document = {"sink": outcome.sink, "run": whole.run, "rows": whole.rows, "bad_rows": whole.bad_rows}
            document |= {"scored": outcome.scored, "seconds": round(outcome.seconds, 3)}
            print(msgspec.json.encode(document).decode())
            return
        bad = ""
        if whole.bad_rows:
            bad = f", {whole.bad_rows:,} bad rows in {sink_of(self._asked.sink).bad(whole.run)}"
        did = "nothing was left to do"
        if outcome.scored:
            rate = outcome.scored / max(outcome.seconds, 1e-9)
            did = f"scored {outcome.scored:,} in {duration(outcome.seconds)}, {rate:,.0f} rows/s"
        print(f"committed {whole.rows:,} rows to {outcome.sink}{bad} ({did})")

    def _note(self, job: Job) -> None:
        from octoserve.connectors.files import LocalFiles

        sink = sink_of(self._asked.sink).name
        entry = register.Entry(
            sink=sink, model=job.model.name, version=job.model.version, source=job.source, at=time.time()
        )
        try:
            register.record(LocalFiles(), self._asked.state_dir, entry)
        except OSError as error:
            self._say(f"note: `octoserve batch list` will not know of it: {error}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False)


def print_differences(differences: Sequence[Difference]) -> None:
    """The table of what differs, on standard error; plain lines where there is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        for d in differences:
            print(f"  {d.what}: {d.wanted} wanted, {d.came} came; {d.remedy}", file=sys.stderr)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("WHAT", "WANTED", "CAME", "WHAT TO DO"):
        table.add_column(column, overflow="fold")
    for d in differences:
        table.add_row(d.what, d.wanted, d.came, d.remedy)
    console.print(table, markup=False)


def print_status(found: status.Status) -> None:
    """Of one sink."""
    print(f"{found.sink}: {found.state}")
    print(f"  model    {found.model} version {found.version}")
    print(f"  run      {found.run}")
    share = 100 * found.rows / found.total_rows if found.total_rows else 100.0
    bad = f", {found.bad_rows:,} bad" if found.bad_rows else ""
    print(f"  rows     {found.rows:,} of {found.total_rows:,} ({share:.1f}%){bad}")
    print(f"  splits   {found.splits} of {found.total_splits}")
    if found.state == status.RUNNING and found.holder is not None:
        print(f"  held by  {found.holder}")
        if found.seconds_left is not None:
            print(f"  left     {duration(found.seconds_left)} at {found.rate:,.0f} rows/s")
    if found.state == status.STOPPED:
        print(f"  runs     {found.runs}, the last {found.holder or 'unknown'}")
        print(f"  stopped  {found.why}")
        if found.changed:
            more = f" and {len(found.changed) - 1} others" if len(found.changed) > 1 else ""
            print(f"  changed  {found.changed[0]}{more}: a resume will be refused until the source is as it was")
        print(f"  go on    {resume_command(found.sink)}")


def resume_command(sink: str) -> str:
    """What to type, as a shell takes it."""
    return f"octoserve batch resume {shlex.quote(sink)}"


def print_report(report: Report, html: Path | None, as_json: bool) -> None:
    """To the terminal, as JSON, or into a file as a page. Raises SettingsError if that cannot be written."""
    if html is not None:
        from octoserve.control.report.html import as_html

        show_page(html, as_html(report))
    elif as_json:
        import msgspec

        from octoserve.control.report.report import as_json as plain

        print(msgspec.json.encode(plain(report)).decode())
    else:
        from octoserve.control.report.text import as_text

        Console().print(as_text(report))


def print_jobs(found: Sequence[status.Status], state_dir: Path) -> None:
    """A line each, whole where no terminal bounds it."""
    if not found:
        print(f"no batch job was begun with --state-dir {state_dir}")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("STATE", "MODEL", "ROWS", "BAD", "RUN"):
        table.add_column(column, no_wrap=True)
    table.add_column("SINK", overflow="fold")
    for job in found:
        rows = f"{job.rows:,} of {job.total_rows:,}" if job.rows != job.total_rows else f"{job.rows:,}"
        table.add_row(job.state, f"{job.model}/{job.version}", rows, f"{job.bad_rows:,}", job.run[:8], job.sink)
    console = Console()
    (console if console.is_terminal else Console(width=_NO_END)).print(table, markup=False)
    for job in found:
        if job.state == status.UNKNOWN:
            print(f"note: {job.sink}: {job.why}", file=sys.stderr)

"""A job's progress, for whoever looks on: a bar in a terminal or a notebook, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from octoserve.patterns.batch.progress import Glance, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

EVERY = 10.0
"""Seconds between lines where there is no terminal."""
REFRESH = 0.2
NOTEBOOK = 0.5
"""Seconds between updates in a notebook: each is a message to a browser."""


class Shown:
    """Shows a job from `begin` on, until the block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, progress: Progress) -> None:
        """The job is known."""
        display = display_of_notebook()
        if display is not None:
            self._thread = threading.Thread(target=self._page, args=(progress, display), daemon=True)
        else:
            show = self._bar if self._console.is_terminal else self._lines
            self._thread = threading.Thread(target=show, args=(progress,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _lines(self, progress: Progress) -> None:
        while not self._over.wait(EVERY):
            at = progress.glance()
            if at is not None:
                print(line(at), file=sys.stderr, flush=True)

    def _bar(self, progress: Progress) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(40), TextColumn("{task.percentage:>5.1f}%"), TextColumn("{task.fields[text]}"))
        with Bar(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("", total=1, text="")
            while not self._over.wait(REFRESH):
                at = progress.glance()
                if at is not None:
                    _draw(bar, task, at)

    def _page(self, progress: Progress, display: Any) -> None:
        """One output of the cell, replaced again and again; in the end it says what was done."""
        handle = display(_Markup(progress), display_id=True)
        while not self._over.wait(NOTEBOOK):
            handle.update(_Markup(progress))
        handle.update(_Markup(progress))


class _Markup:
    """A moment, as a notebook shows it: numbers only, nothing that came with a table."""

    def __init__(self, progress: Progress) -> None:
        self._at = progress.glance()

    def __repr__(self) -> str:
        return line(self._at) if self._at is not None else ""

    def _repr_html_(self) -> str:
        at = self._at
        if at is None:
            return ""
        return f'<progress max="{max(1, at.total_rows)}" value="{at.rows}"></progress> {line(at)}'


def display_of_notebook() -> Any:
    """IPython's `display` where its output is a page; None in a terminal and in programs."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    if shell is None or running is None or not hasattr(running, "kernel"):
        return None
    return shell.display.display


def somebody_looks() -> bool:
    """Whether progress is shown unasked."""
    return sys.stderr.isatty() or display_of_notebook() is not None


def _draw(bar: Bar, task: int, at: Glance) -> None:
    from rich.progress import TaskID

    bar.update(TaskID(task), total=max(1, at.total_rows), completed=at.rows, text=_figures(at))


def line(at: Glance) -> str:
    """A moment as one line."""
    share = 100 * at.rows / at.total_rows if at.total_rows else 100.0
    return f"{at.rows:,} of {at.total_rows:,} rows ({share:.1f}%), {_figures(at)}"


def _figures(at: Glance) -> str:
    left = f", {duration(at.seconds_left)} left" if at.seconds_left is not None else ""
    bad = f", {at.bad:,} bad" if at.bad else ""
    return f"{at.rate:,.0f} rows/s, {at.byte_rate / 1e6:,.1f} MB/s{left}{bad}"


def duration(seconds: float) -> str:
    """`12.5 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"

"""How the demo looks: chapters, tables, bars. Plain text where the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 100
_CHAPTER, _QUIET, _GOOD, _BAD, _ONE, _TWO = "bold cyan", "dim", "green", "bold red", "cyan", "magenta"


class Screen:
    """One narration. `problems` collects what was wrong; the demo fails if there is any."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        # Whatever the width of a pipe's other end, 100 columns are read well in a log.
        self._console = Console(width=None if terminal else WIDTH, highlight=False, soft_wrap=False)
        self.width = min(self._console.width, WIDTH)
        self.colors = terminal and not self._console.no_color
        self.problems: list[str] = []

    def _print(self, what: RenderableType, indent: int) -> None:
        with self._console.capture() as captured:
            self._console.print(Padding(what, (0, 2 if self.width > 60 else 0, 0, indent), expand=False))
        lines = captured.get().splitlines()
        self._console.file.write("".join(line.rstrip() + "\n" for line in lines))

    def rows(self, rows: Iterable[tuple[str, str]]) -> None:
        """Names and values, never cut: values are there to be copied."""
        pairs = list(rows)
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            self._console.print(Text.assemble("    ", (f"{name:<{width}}   ", _QUIET), value), soft_wrap=True)

    # --- words --------------------------------------------------------------------------------------

    def title(self, text: str, below: str) -> None:
        """The first lines."""
        self._console.print()
        self._console.print(Text.assemble("  ", (text, "bold"), "  ", (below, _QUIET)))

    def chapter(self, text: str, note: str = "") -> None:
        """What comes next."""
        self._console.print()
        head = Text.assemble("  ", (text, _CHAPTER), "  ", (note, _QUIET))
        if head.cell_len > self.width:
            head, note = Text.assemble("  ", (text, _CHAPTER), "  "), ""
        rest = self.width - head.cell_len - 2
        if rest > 3:
            head.append(("  " if note else "") + "─" * (rest - (2 if note else 0)), style=_QUIET)
        self._console.print(head, no_wrap=True, overflow="crop")
        self._console.print()

    def say(self, text: str) -> None:
        """A line of the story; rich markup is taken."""
        self._print(Text.from_markup(text), 4)

    def note(self, text: str) -> None:
        """A quiet line."""
        self._print(Text(text, style=_QUIET), 4)

    def lines(self, text: str) -> None:
        """What another program printed, as it is."""
        for line in text.rstrip().splitlines():
            self._console.print(Text("    ") + Text.from_ansi(line), no_wrap=True, overflow="ellipsis")

    def command(self, text: str) -> None:
        """A command line that anybody could type."""
        self._console.print(Text.assemble("    ", ("$ ", _QUIET), (text, "bold")), soft_wrap=True)

    def fail(self, text: str) -> None:
        """Something is wrong."""
        self._console.print()
        self._print(Text.assemble(("✗ ", _BAD), (text, "bold")), 2)

    def busy(self, text: str) -> AbstractContextManager[object]:
        """A spinner in a terminal; a line elsewhere."""
        if self._console.is_terminal:
            return self._console.status(f"[{_QUIET}]{escape(text)}[/]", spinner="dots")
        self.note(f"{text} ...")
        return nullcontext()

    def check(self, right: bool, claim: str, wrong: str = "") -> None:
        """A claim with its mark; what is wrong is kept for the end."""
        mark = ("✓ ", _GOOD) if right else ("✗ ", _BAD)
        self._print(Text.assemble(mark, claim), 4)
        if not right:
            self.problems.append(wrong or f"not so: {claim}")

    # --- figures ------------------------------------------------------------------------------------

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str | Text]],
        right: Sequence[int] = (),
        wraps: int = 0,
    ) -> None:
        """A small table; `right`: columns aligned to the right, `wraps`: the one that a narrow screen wraps."""
        header = any(columns)
        table = Table(box=None, pad_edge=False, header_style=_QUIET, padding=(0, 3, 0, 0), show_header=header)
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i in right else "left", no_wrap=i != wraps)
        for row in rows:
            table.add_row(*row)
        self._print(table, 4)

    def gap(self) -> None:
        """An empty line."""
        self._console.print()


def share(value: float, width: int = 12) -> Text:
    """A probability as a bar and a number."""
    full = max(0, min(width, round(value * width)))
    return Text.assemble(("━" * full, _ONE), ("─" * (width - full), _QUIET), f" {value:6.1%}")


def good(text: str) -> Text:
    """Green."""
    return Text(text, style=_GOOD)


def quiet(text: str) -> Text:
    """Dim."""
    return Text(text, style=_QUIET)


def strong(text: str) -> Text:
    """Bold."""
    return Text(text, style="bold")


def timeline(slices: Sequence[tuple[int, int]]) -> Text:
    """One mark a slice of time: which version answered in it, `x` for both."""
    line = Text()
    for one, two in slices:
        if one and two:
            line.append("x", style="bold yellow")
        elif one or two:
            line.append("1" if one else "2", style=_ONE if one else _TWO)
        else:
            line.append("·", style=_BAD)
    return line

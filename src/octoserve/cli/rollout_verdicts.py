"""Verdicts in text: each interval drawn against its margin.

    CHECK       VERDICT      LOW                          HIGH  MARGIN
    error_rate  HOLD       -0.30 ├─────●──────┃──────┤   +2.00  1.00 pp

The scale of a line is its own: it spans the interval, the margin and the point of no difference (┊).
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from octoserve.cli.rollout_status import effect
from octoserve.control.analysis.verdict import Outcome, Verdict

_STYLE = {
    Outcome.PASS: "green",
    Outcome.HOLD: "yellow",
    Outcome.NO_DATA: "cyan",
    Outcome.PROVIDER_ERROR: "magenta",
    Outcome.SRM: "bold magenta",
    Outcome.FAIL: "bold red",
}
_WORST_FIRST = (Outcome.FAIL, Outcome.SRM, Outcome.PROVIDER_ERROR, Outcome.HOLD, Outcome.NO_DATA, Outcome.PASS)
_NUMBER, _MARGIN, _SHORTEST = 7, 8, 11
_ENDLESS = 1e12
"""An end of this size, or one that is no number, counts as not known."""


def drawn(verdict: Verdict, width: int) -> str:
    """`├──●──┤` with the margin ┃ and no difference ┊ on a track of `width` characters; "" without an estimate.

    An end that is not known runs off the track: ◂ or ▸. The margin is never drawn on the wrong side of an end or of the
    estimate, however close they are.
    """
    estimate, margin = _finite(verdict.estimate), _finite(verdict.margin)
    low, high = _finite(verdict.low), _finite(verdict.high)
    if estimate is None or width < _SHORTEST:
        return ""
    neutral = 1.0 if verdict.unit == "ratio" else 0.0
    known = [value for value in (estimate, low, high, margin, neutral) if value is not None]
    first, span = min(known), (max(known) - min(known)) or 1.0

    def place(value: float) -> int:
        return 2 + round((value - first) / span * (width - 5))

    cells = [" "] * width
    cells[place(neutral)] = "┊"
    left = 0 if low is None else place(low)
    right = width - 1 if high is None else place(high)
    cells[left : right + 1] = "─" * (right + 1 - left)
    cells[left], cells[right] = "◂" if low is None else "├", "▸" if high is None else "┤"
    cells[place(estimate)] = "●"
    if margin is not None:
        at = place(margin)
        if high is not None and margin > high:
            at = max(at, right + 1)
        elif low is not None and margin < low:
            at = min(at, left - 1)
        elif at == place(estimate):
            at += 1 if margin > estimate else -1
        cells[min(max(at, 0), width - 1)] = "┃"
    return "".join(cells)


def verdict_lines(verdicts: Sequence[Verdict], width: int, most: int | None = None) -> list[Text]:
    """A heading and a line a verdict, with a note under those that have something to say.

    most: lines at most; then the best verdicts are left out, and counted
    """
    if not verdicts:
        return []
    named = [(_name(verdict), verdict) for verdict in verdicts]
    said = max(len("VERDICT"), *(len(_word(verdict)) for verdict in verdicts if verdict.estimate is not None), 0)
    numbers = width >= 110
    room = width - said - 2 * _NUMBER - _MARGIN - 8 - (18 if numbers else 0)  # for the name and the track
    name = min(max(len("CHECK"), *(len(text) for text, _ in named)), 40 if numbers else 24, max(8, room - _SHORTEST))
    track = max(0, min(room - name, 48))
    blocks = [_lines(text, verdict, (name, said, track), width, numbers) for text, verdict in named]
    heading = f"{'CHECK':<{name}}  {'VERDICT':<{said}}  {'LOW':>{_NUMBER}} {'':<{track}} {'HIGH':<{_NUMBER}}  "
    heading += f"{'MARGIN':<{_MARGIN}}  SAMPLES" if numbers else "MARGIN"
    lines = [Text(heading, "dim")]
    for i in _shown(verdicts, blocks, most):
        lines += blocks[i]
    out = len(verdicts) - len(_shown(verdicts, blocks, most))
    if out:
        lines.append(Text(f"... and {out} more, none worse than these", "dim"))
    return lines


def _shown(verdicts: Sequence[Verdict], blocks: Sequence[list[Text]], most: int | None) -> list[int]:
    """Which ones, in their order: all, or the worst that fit beside the heading and the line that counts the rest."""
    if most is None or sum(map(len, blocks)) + 1 <= most:
        return list(range(len(verdicts)))
    chosen, left = [], most - 2
    for i in sorted(range(len(verdicts)), key=lambda i: _WORST_FIRST.index(verdicts[i].outcome)):
        if len(blocks[i]) > left:
            break
        chosen.append(i)
        left -= len(blocks[i])
    return sorted(chosen)


def _lines(text: str, verdict: Verdict, widths: tuple[int, int, int], width: int, numbers: bool) -> list[Text]:
    name, said, track = widths
    shown = _shortened(text, name)
    style = _STYLE[verdict.outcome]
    line = Text.assemble(f"{shown:<{name}}  ", (f"{_word(verdict):<{said}}", style), "  ")
    chart = drawn(verdict, track)
    samples = f"{verdict.n:,} / {verdict.n_base:,}"
    if verdict.estimate is not None:
        low, high = _end(verdict.low, verdict), _end(verdict.high, verdict)
        margin = effect(_finite(verdict.margin), verdict.unit, bound=True)
        line.append(f"{low:>{_NUMBER}} ").append(chart or "..", style).append(f" {high:<{_NUMBER}}  ")
        line.append(f"{margin:<{_MARGIN}}" + (f"  {samples}" if numbers else ""))
    elif not verdict.note:
        line.append(f"{samples} samples", "dim")
    line.rstrip()
    line.truncate(width, overflow="ellipsis")
    lines = [line]
    if verdict.note:
        note = Text(verdict.note, "dim")
        if verdict.estimate is None and line.cell_len + 2 + note.cell_len <= width:
            line.append("  ").append_text(note)
        elif verdict.outcome is not Outcome.PASS or verdict.estimate is None:
            lines.append(Text("  ").append_text(note))
            lines[-1].truncate(width, overflow="ellipsis")
    return lines


def _shortened(text: str, width: int) -> str:
    """`disagreement x-c…ountry=DE`: which segment it is stands at the end, and which check at the beginning."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def _name(verdict: Verdict) -> str:
    return f"{verdict.check} {verdict.segment}".rstrip()


def _word(verdict: Verdict) -> str:
    return verdict.outcome.replace("_", " ")


def _end(value: float | None, verdict: Verdict) -> str:
    return effect(_finite(value), verdict.unit)


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < _ENDLESS else None

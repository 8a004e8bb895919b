"""Charts as inline SVG, drawn here so that the page needs no library and no inline style.

A line chart is three drawings side by side (scale, lines, names of the lines), since only the lines may stretch with
the page. Every drawing has words for who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from octoserve.patterns.online.supervisor.console import words
from octoserve.patterns.online.supervisor.console.markup import Markup, el

HEIGHT = 112
"""Pixels of a chart's lines; the drawing's unit is a pixel upwards and a second sideways."""
WINDOW = 300
_GAP = 13
_SHOWN = 1.68
"""Margins that an interval's drawing shows to the right of no difference."""
_COLOURS = 8

Series = Sequence[float | None]
"""Finite numbers, or None where nothing was answered: see `clean`."""


class Line(NamedTuple):
    """One line: whose it is, its class (colour), its values with the newest last, and whether it is dashed."""

    name: str
    colour: str
    values: Series
    dashed: bool = False


def colours(versions: Sequence[int]) -> dict[int, str]:
    """A class for each version: by its number, so that it keeps its colour; a collision takes the next free one."""
    taken: dict[int, str] = {}
    for version in sorted(versions):
        wanted = [f"v{(version + shift) % _COLOURS}" for shift in range(_COLOURS)]
        taken[version] = next((colour for colour in wanted if colour not in taken.values()), wanted[0])
    return taken


def line_chart(
    ident: str, title: str, lines: Sequence[Line], show: Callable[[object], str], step: float = 1.0, least: float = 0.0
) -> Markup:
    """A chart of the last minutes. The top of the scale is at least `least`: noise near 0 is to look small."""
    step = step if step > 0 else 1.0
    seconds = max([WINDOW, *(len(line.values) * step for line in lines)])
    top = nice(max([least, *(_peak(line.values) for line in lines)]))
    drawn = [_path(line, seconds, step, top) for line in lines]
    described = ". ".join(_describe(line, show) for line in lines) or "No data yet"
    plot = el(
        "svg",
        el("title", title, id=f"{ident}-title"),
        el("desc", f"Last {words.span(seconds)}, scale from 0 to {show(top)}. {described}.", id=f"{ident}-desc"),
        *(el("line", x1=0, x2=seconds, y1=y, y2=y, class_="grid") for y in (0.5, HEIGHT / 2, HEIGHT - 0.5)),
        *drawn,
        viewBox=f"0 0 {_short(seconds)} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_labelledby=f"{ident}-title {ident}-desc",
        class_="plot",
    )
    return el(
        "figure",
        el("figcaption", el("span", title, class_="chart-title"), legend(lines, show)),
        el("div", _scale(top, show), plot, _ends(lines, top), class_="chart-body"),
        el("div", el("span", f"{words.span(seconds)} ago"), el("span", "now"), class_="chart-time", aria_hidden="true"),
        class_="chart",
        id=ident,
    )


def legend(lines: Sequence[Line], show: Callable[[object], str]) -> Markup:
    """Who is which line, and its newest value."""
    return el(
        "ul",
        *(el("li", key(line), f"{line.name} ", el("b", show(last(line.values)))) for line in lines),
        class_="legend",
    )


def key(line: Line) -> Markup:
    """A short piece of a line, as it is drawn."""
    stroke = el("line", x1=1, x2=17, y1=5, y2=5, class_="line dashed" if line.dashed else "line")
    return el("svg", stroke, class_=f"key {line.colour}", width=18, height=10, aria_hidden="true")


def last(values: Series) -> float | None:
    """The newest value, None where nothing was answered."""
    return values[-1] if values else None


def nice(value: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below; 1 for nothing."""
    if not value > 0:
        return 1.0
    if value > 1e300 or value < 1e-300:
        return value
    power = 10.0 ** math.floor(math.log10(value))
    return next((factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= value * (1 - 1e-9)), value)


def clean(values: Iterable[object]) -> list[float | None]:
    """What came as JSON, with everything that is no finite number as None."""
    return [words.number(value) for value in values]


def smoothed(values: Series, points: int) -> list[float | None]:
    """The mean of each value and those before it, `points` in all; None where none of them is known."""
    windows = (values[max(0, end - points) : end] for end in range(1, len(values) + 1))
    known = ([value for value in window if value is not None] for window in windows)
    return [sum(value / len(window) for value in window) if window else None for window in known]


def _peak(values: Series) -> float:
    return max((value for value in values if value is not None), default=0.0)


def _short(value: float) -> str:
    shown = f"{value:.1f}"
    return shown.removesuffix(".0")


def _height(value: float, top: float) -> float:
    """Where a value lies, from above, with room for the line's own width."""
    return 1.5 + (HEIGHT - 3) * (1 - min(1.0, max(0.0, value / top)))


def _path(line: Line, seconds: float, step: float, top: float) -> Markup:
    """A gap stays a gap; a point that stands alone is a dot; a level stretch is its two ends."""
    start = seconds - (len(line.values) - 1) * step
    parts: list[str] = []
    for first, run in _runs(line.values):
        heights = [f"{_height(value, top):.1f}" for value in run]
        last_one = len(run) - 1
        places = [
            f"{start + (first + index) * step:g} {height}"
            for index, height in enumerate(heights)
            if index in (0, last_one) or not heights[index - 1] == height == heights[index + 1]
        ]
        parts.append(f"M{' '.join(places)}" + ("h0" if last_one == 0 else ""))
    dashed = " dashed" if line.dashed else ""
    return el("path", d="".join(parts), class_=f"line {line.colour}{dashed}")


def _runs(values: Series) -> list[tuple[int, list[float]]]:
    """Stretches without a gap, each with the index that it starts at."""
    runs: list[tuple[int, list[float]]] = []
    open_ = False
    for index, value in enumerate(values):
        if value is None:
            open_ = False
        elif open_:
            runs[-1][1].append(value)
        else:
            runs.append((index, [value]))
            open_ = True
    return runs


def _scale(top: float, show: Callable[[object], str]) -> Markup:
    places = ((top, 9), (top / 2, HEIGHT / 2 + 4), (0, HEIGHT))
    labels = (el("text", show(value) if value else "0", x="100%", y=y, text_anchor="end") for value, y in places)
    return el("svg", *labels, class_="scale", aria_hidden="true", width=58, height=HEIGHT)


def _ends(lines: Sequence[Line], top: float) -> Markup:
    """Each line's name where it ends, moved apart where they would lie on each other."""
    named = [(_height(came, top), line) for line in lines if (came := last(line.values)) is not None]
    named.sort(key=lambda one: one[0])
    places: list[float] = []
    for height, _ in named:
        places.append(max(height, places[-1] + _GAP) if places else max(height, 6.0))
    for index in range(len(places) - 1, -1, -1):
        below = places[index + 1] - _GAP if index + 1 < len(places) else HEIGHT - 5
        places[index] = min(places[index], below)
    labels = (
        el("text", line.name, x=4, y=_short(place + 4), class_=line.colour)
        for place, (_, line) in zip(places, named, strict=True)
    )
    return el("svg", *labels, class_="ends", aria_hidden="true", width=52, height=HEIGHT)


def _describe(line: Line, show: Callable[[object], str]) -> str:
    known = [value for value in line.values if value is not None]
    if not known:
        return f"{line.name}: nothing"
    return f"{line.name}: now {show(last(line.values))}, lowest {show(min(known))}, highest {show(max(known))}"


class Part(NamedTuple):
    """One piece of the bar of shares."""

    name: str
    colour: str
    share: float
    role: str = ""


def share_bar(parts: Sequence[Part]) -> Markup:
    """Who gets how much of the traffic. Widths are parts of the page's, so it needs no script to fit."""
    pieces: list[Markup] = []
    at = 0.0
    for part in parts:
        if part.share <= 0:
            continue
        x, width = f"{at * 100:.2f}%", f"{part.share * 100:.2f}%"
        pieces.append(el("rect", x=x, y=0, width=width, height="100%", class_=f"{part.colour} piece {part.role}"))
        if part.share >= 0.12:
            middle = f"{(at + part.share / 2) * 100:.2f}%"
            label = f"{part.name} {words.percent(part.share)}"
            pieces.append(el("text", label, x=middle, y="50%", dy="0.35em", text_anchor="middle", class_="on-piece"))
        at += part.share
    told = ", ".join(f"{part.name} {part.role} {words.percent(part.share)}" for part in parts)
    return el("svg", *pieces, class_="share-bar", role="img", aria_label=f"Shares of traffic: {told}")


def interval(low: object, high: object, estimate: object, margin: object, unit: str, outcome: str) -> Markup:
    """An interval against its margin: no difference at 30 % of the width, the margin at 70 %, worse to the right.

    Drawn in units of the margin, so all rows of a table compare at a glance. An open or far end is an arrow; only
    where the estimate itself is far beyond the margin is the drawing made smaller, so that it is seen how far.
    """
    lower, upper, middle, limit = (words.number(value) for value in (low, high, estimate, margin))
    neutral = 1.0 if unit == "ratio" else 0.0
    scale = (limit - neutral) if limit is not None else 0.0
    if scale == 0:
        sizes = [abs(v - neutral) for v in (lower, upper, middle) if v is not None]
        scale = max(sizes, default=0.0) or 1.0

    bad = max(((v - neutral) / scale for v in (lower, middle) if v is not None), default=0.0)
    ends_ = [(v - neutral) / scale for v in (lower, middle, upper) if v is not None]
    pixels = 80.0 if bad <= _SHOWN else 80.0 * _SHOWN / max(ends_)

    def at(value: float) -> float:
        return min(196.0, max(4.0, 60 + pixels * (value - neutral) / scale))

    drawn = [el("line", x1=60, x2=60, y1=2, y2=22, class_="neutral")]
    if limit is not None:
        edge = at(limit)
        drawn.append(el("rect", x=_short(edge), y=2, width=_short(200 - edge), height=20, class_="worse"))
        drawn.append(el("line", x1=_short(edge), x2=_short(edge), y1=2, y2=22, class_="margin"))
    if lower is not None or upper is not None:
        ends = sorted((4.0 if lower is None else at(lower), 196.0 if upper is None else at(upper)))
        drawn.append(el("line", x1=_short(ends[0]), x2=_short(ends[1]), y1=12, y2=12, class_="reach"))
        drawn.append(_end(ends[0], -1) if ends[0] <= 4 else _stop(ends[0]))
        drawn.append(_end(ends[1], 1) if ends[1] >= 196 else _stop(ends[1]))
    if middle is not None:
        drawn.append(el("circle", cx=_short(at(middle)), cy=12, r=4, class_="estimate"))
    return el("svg", *drawn, viewBox="0 0 200 24", class_=f"interval {outcome_class(outcome)}", aria_hidden="true")


def outcome_class(outcome: object) -> str:
    """An outcome as a class; one that is not known looks like no data."""
    known = {
        "PASS": "pass",
        "HOLD": "hold",
        "NO_DATA": "no-data",
        "PROVIDER_ERROR": "odd",
        "SRM": "odd",
        "FAIL": "fail",
    }
    return known.get(str(outcome), "no-data")


def _stop(x: float) -> Markup:
    return el("line", x1=_short(x), x2=_short(x), y1=8, y2=16, class_="reach")


def _end(x: float, way: int) -> Markup:
    tip, back = _short(x + 3 * way), _short(x - 3 * way)
    return el("path", d=f"M{back} 7L{tip} 12L{back} 17", class_="reach open")

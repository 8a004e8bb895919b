"""Numbers in sentences, for people on call: `4.8 % of 500`, `24 ms`."""

from __future__ import annotations

import math


def count(number: float) -> str:
    """`4,500`."""
    return f"{number:,.0f}"


def share(number: float) -> str:
    """`4.8 %`, `0.04 %`."""
    if math.isnan(number):
        return "no"
    percent = 100 * number
    places = 1 if abs(percent) >= 1 or percent == 0 else 2
    return f"{percent:.{places}f}".removesuffix(".0") + " %"


def part(k: float, n: float) -> str:
    """`4.8 % of 500`; `0 of 0`."""
    return f"{share(k / n)} of {count(n)}" if n else "0 of 0"


def seconds(number: float) -> str:
    """`24 ms`, `1.3 s`."""
    if math.isnan(number):
        return "unknown"
    return f"{number * 1e3:.3g} ms" if number < 1 else f"{number:.3g} s"


def level(quantile: float) -> str:
    """`p99`, `p99.9`."""
    return f"p{100 * quantile:.6g}"

"""Verdict: what a check says of a candidate, with its evidence. Only PASS advances a rollout."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    """From best to worst known.

    PASS: the interval lies inside the margin (non-inferior).  FAIL: it lies beyond it.
    HOLD: it straddles the margin.  NO_DATA: too few samples, none, or stale ones.
    PROVIDER_ERROR: they could not be fetched, or are no numbers.
    SRM: the arms' sample sizes contradict their shares, so nothing may be concluded from them.
    """

    PASS = "PASS"
    HOLD = "HOLD"
    NO_DATA = "NO_DATA"
    PROVIDER_ERROR = "PROVIDER_ERROR"
    SRM = "SRM"
    FAIL = "FAIL"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One check on one segment.

    check:     the check's name
    segment:   "" for all requests, else `country=DE`
    estimate, low, high: the effect (how much worse the candidate is, in the unit of `margin`) and its two
               always-valid bounds, `low` for FAIL and `high` for PASS; None where there is none
    margin:    how much worse is still accepted, in `unit`
    unit:      "share" (0.01 is a percentage point), "ratio" (1.2 is 20 % more), or the metric's own
    n, n_base: samples of the candidate and of what it is compared with
    note:      one sentence for people, where the numbers do not say it
    """

    check: str
    outcome: Outcome
    segment: str = ""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    unit: str = "share"
    n: int = 0
    n_base: int = 0
    note: str = ""


def overall(verdicts: tuple[Verdict, ...]) -> Outcome:
    """FAIL if one fails, else SRM, PROVIDER_ERROR, NO_DATA, HOLD if one is that, else PASS; NO_DATA for none."""
    came = {verdict.outcome for verdict in verdicts}
    order = (Outcome.FAIL, Outcome.SRM, Outcome.PROVIDER_ERROR, Outcome.NO_DATA, Outcome.HOLD)
    return next((outcome for outcome in order if outcome in came), Outcome.PASS if came else Outcome.NO_DATA)

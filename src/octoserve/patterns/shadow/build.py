"""From the store, the workers' evidence and the verdicts to a report, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from octoserve.control.analysis.verdict import Verdict
from octoserve.control.report import report as r
from octoserve.control.report.build import Tally
from octoserve.core.evidence import ALL, Stratum
from octoserve.patterns.shadow.store import PairStore, Query


def build(
    store: PairStore,
    endpoint: str,
    rollout: str,
    *,
    now: float,
    evidence: Sequence[Stratum] = (),
    verdicts: Sequence[Verdict] = (),
    worst: int = 10,
    since: float | None = None,
    until: float | None = None,
) -> r.Report:
    """The report of one rollout.

    now:      wall clock seconds, written into it
    evidence: what the workers counted, by stratum; without it there are no accounts
    worst:    how many examples
    Raises SettingsError where pyarrow is not installed.
    """
    tally = Tally(worst)
    for pair in store.pairs(Query(endpoint=endpoint, rollout=rollout, since=since, until=until)):
        tally.add(pair)
    accounts = tuple(
        _accounts(stratum) for stratum in evidence if stratum.endpoint == endpoint and ALL in stratum.pairs
    )
    return tally.report(endpoint, rollout, now, accounts, tuple(verdicts))


def _accounts(stratum: Stratum) -> r.Accounts:
    pairs = stratum.pairs[ALL]
    return r.Accounts(
        stratum=stratum.name,
        offered=pairs.offered,
        sent=pairs.sent,
        dropped=dict(sorted(pairs.dropped.items())),
        ok=pairs.ok,
        error=pairs.error,
        timeout=pairs.timeout,
        compared=pairs.compared,
        disagreed=pairs.disagreed,
    )

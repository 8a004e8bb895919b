"""Which pattern fits: the table of docs/advise.md, and the rules that choose from it. Policy, no input, no output.

Figures are this project's own measurements, each with the page that says how it was taken: the order of magnitude is
what a choice needs.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Connectivity = Literal["always", "sometimes", "never"]
Risk = Literal["low", "medium", "high"]

HOUR, DAY = 3600.0, 86400.0
PATIENCE = 5.0
"""Seconds that a client keeps a connection open without a second thought; beyond that it had better come back."""
ONE_CORE = 38_300.0
"""Requests of one row that one core answered in a second (docs/performance.md)."""
QUEUE_MESSAGES = 2_400.0
"""Messages a second from the embedded broker into SQLite (docs/advise.md says how that was taken)."""
BATCH_ROWS = 271_000.0
"""Rows a second of a Parquet file on two cores (docs/advise.md)."""
CANARY_REQUESTS = 5_000.0
"""Requests within which a canary at 10 % noticed 5 % errors, in 95 of 100 cases (docs/performance.md)."""
CANARY_PATIENCE = 1 * DAY


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table."""

    name: str
    asks: str
    fresh: str
    seen: str
    page: str
    built: bool = True
    begin: str = ""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody told. latency: seconds that an asker waits, None where nobody does; volume: predictions a second on
    average; freshness: seconds that an answer may lag behind what it is about."""

    latency: float | None
    volume: float
    freshness: float
    connectivity: Connectivity
    risk: Risk


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One recommendation: why this, and why not others."""

    pattern: Pattern
    because: tuple[str, ...]
    instead: str = ""
    """What to do today, where the pattern is planned."""


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """How to serve, how to change versions, what was not chosen and why."""

    serve: Choice
    change: Choice
    rejected: dict[str, str]


SERVING = {
    p.name: p
    for p in (
        Pattern(
            name="online",
            asks=f"somebody waits, up to {PATIENCE:g} s",
            fresh="as the request",
            seen="p50 0.24 ms and p99 0.54 ms over one connection; 38,300 requests/s on one core",
            page="online.md",
            begin="octoserve serve --repository models",
        ),
        Pattern(
            name="async",
            asks=f"somebody waits longer than {PATIENCE:g} s and comes back",
            fresh="as the request",
            seen="a queue's, with a disk write before the 202",
            page="async.md",
            begin="octoserve serve --repository models --async MODEL",
        ),
        Pattern(
            name="queue",
            asks="nobody waits; events must not be lost",
            fresh="seconds",
            seen=f"{QUEUE_MESSAGES:,.0f} messages/s, embedded broker into SQLite, one worker on a busy machine",
            page="message-queue.md",
            begin="octoserve queue run --repository models --model MODEL --source embedded "
            "--sink 'sqlite:///answers.db?table=t'",
        ),
        Pattern(
            name="batch",
            asks="nobody waits; all rows of a table",
            fresh="an hour or more",
            seen=f"{BATCH_ROWS:,.0f} rows/s of a Parquet file on two cores of a busy machine",
            page="batch.md",
            begin="octoserve batch run --repository models --model MODEL --source 'data/*.parquet' "
            "--sink scored --keys id",
        ),
        Pattern(
            name="edge",
            asks="somebody waits where there is no network",
            fresh="as the request",
            seen="not measured: it is planned",
            page="python.md",
            built=False,
            begin='octoserve.load("models/MODEL") in the process that asks, or octoserve serve on the device',
        ),
    )
}
"""The ways to serve, in the order in which they are thought of."""

CHANGING = {
    p.name: p
    for p in (
        Pattern(
            name="blue-green",
            asks="a wrong answer costs little",
            fresh="at once",
            seen="1,000 switches under load without an error; p99 3 to 5 ms from pushed to acknowledged",
            page="rollouts.md",
            begin="rollout: {strategy: blue-green}",
        ),
        Pattern(
            name="canary",
            asks="wrong answers cost, and there are requests enough to learn from few of them",
            fresh=f"after some {CANARY_REQUESTS:,.0f} requests",
            seen="at 10 %, 5 % of errors noticed within 5,000 requests in 95 of 100 cases",
            page="rollouts.md",
            begin="rollout: {strategy: canary}",
        ),
        Pattern(
            name="shadow",
            asks="nobody may be given an answer of the new version before it has been compared",
            fresh="after 1,000 pairs of answers",
            seen="a shadow that fails or hangs: no error of the primary",
            page="shadow.md",
            begin="rollout: {strategy: shadow, mirror: 100%}",
        ),
    )
}
"""The ways to change a version, from the boldest to the most careful."""


def advise(needs: Needs) -> Advice:
    """The recommendation, with its reasons."""
    serve = _serve(needs)
    return Advice(serve=serve, change=_change(needs), rejected=_rejected(needs, serve.pattern.name))


def _serve(needs: Needs) -> Choice:
    if needs.connectivity != "always":
        away = "never a network" if needs.connectivity == "never" else "a network only at times"
        return _choice(
            "edge",
            f"there is {away} where answers are used, so the model has to be there",
            instead="the pattern is planned; until then the model goes there by your own means",
        )
    if needs.latency is None:
        return _unattended(needs)
    if needs.latency > PATIENCE:
        return _choice(
            "async",
            f"{_time(needs.latency)} is longer than a connection is kept open without a thought ({PATIENCE:g} s)",
            "a 202 says that the request is on a disk: it is not lost when its client goes away",
        )
    cores = needs.volume / ONE_CORE
    size = (
        f"{_volume(needs.volume)} is {cores:.2%} of what one core answered"
        if cores <= 1
        else f"{_volume(needs.volume)} is {cores:.1f} times what one core answered: several replicas"
    )
    return _choice(
        "online",
        f"somebody waits {_time(needs.latency)}; one small model answered in 0.54 ms at p99",
        f"{size} ({ONE_CORE:,.0f}/s, one row each, a small model); octoserve bench URL --verify-slo says it of yours",
    )


def _unattended(needs: Needs) -> Choice:
    if needs.freshness >= HOUR:
        rows = needs.volume * min(needs.freshness, DAY)
        return _choice(
            "batch",
            f"nobody waits, and answers may lag {_time(needs.freshness)} behind",
            f"{rows:,.0f} rows a run are {_time(rows / BATCH_ROWS)} at {BATCH_ROWS:,.0f} rows/s"
            + ("; --engine spark spreads them" if rows / BATCH_ROWS > needs.freshness / 2 else ""),
        )
    workers = needs.volume / QUEUE_MESSAGES
    return _choice(
        "queue",
        f"nobody waits, but answers may lag only {_time(needs.freshness)} behind: too little to collect a table",
        f"{_volume(needs.volume)} is {workers:.1%} of the {QUEUE_MESSAGES:,.0f} messages/s that were seen"
        + ("; more workers, or Kafka with more partitions" if workers > 0.5 else ""),
        "each message has one effect, whatever is killed",
    )


def _change(needs: Needs) -> Choice:
    if needs.connectivity != "always":
        return _change_to("blue-green", "each device by itself, as any service does; waves over a fleet are planned")
    if needs.risk == "low":
        return _change_to("blue-green", "a wrong answer costs little, and the old version comes back by one swap")
    if needs.risk == "high":
        return _change_to(
            "shadow",
            "a wrong answer costs much: first the new version answers copies, and nobody gets what it says",
            "then a canary with `approval: true` in its steps",
        )
    if needs.volume * CANARY_PATIENCE < CANARY_REQUESTS:
        days = CANARY_REQUESTS / needs.volume / DAY if needs.volume else float("inf")
        return _change_to(
            "shadow",
            f"a canary would need {days:,.1f} days for {CANARY_REQUESTS:,.0f} requests; a shadow learns from every one",
        )
    return _change_to(
        "canary",
        "wrong answers cost: few get them, and it takes itself back when the evidence is against it",
        f"{CANARY_REQUESTS:,.0f} requests, in which 5 % of errors were noticed, come in "
        f"{_time(CANARY_REQUESTS / needs.volume)}",
    )


def _rejected(needs: Needs, chosen: str) -> dict[str, str]:
    """Why not the others."""
    waits = needs.latency is not None
    reasons = {
        "online": "nobody waits for an answer, so nothing need be up and idle between them"
        if not waits
        else f"{_time(needs.latency or 0)} is long for an open connection",
        "async": "nobody comes back for an answer"
        if not waits
        else "the answer is there before anybody could ask again",
        "queue": "somebody waits, and a queue has no way back to them"
        if waits
        else "a table can be collected first, and is scored at a fraction of the cost",
        "batch": "somebody waits" if waits else f"a table once an hour lags more than {_time(needs.freshness)} behind",
        "edge": "there is a network, so one service can be watched and changed in one place",
    }
    if needs.connectivity != "always":
        reasons |= dict.fromkeys(("online", "async", "queue", "batch"), "it needs a network where answers are used")
    return {name: reason for name, reason in reasons.items() if name != chosen}


def _choice(name: str, *because: str, instead: str = "") -> Choice:
    return Choice(pattern=SERVING[name], because=because, instead=instead)


def _change_to(name: str, *because: str) -> Choice:
    return Choice(pattern=CHANGING[name], because=because)


def _time(seconds: float) -> str:
    for unit, size in (("d", DAY), ("h", HOUR), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def _volume(a_second: float) -> str:
    return f"{a_second:,.3g}/s" if a_second >= 1 else f"{a_second * DAY:,.0f} a day"


def table() -> str:
    """Both tables as docs/advise.md has them."""
    lines = ["| serve | for | fresh | seen | |", "|---|---|---|---|---|"]
    lines += [_row(pattern) for pattern in SERVING.values()]
    lines += ["", "| change versions | for | decided | seen | |", "|---|---|---|---|---|"]
    lines += [_row(pattern) for pattern in CHANGING.values()]
    return "\n".join(lines) + "\n"


def _row(pattern: Pattern) -> str:
    planned = "" if pattern.built else " (planned)"
    page = f"[{pattern.page.removesuffix('.md')}]({pattern.page})"
    return f"| {pattern.name}{planned} | {pattern.asks} | {pattern.fresh} | {pattern.seen} | {page} |"

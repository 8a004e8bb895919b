"""How numbers and findings of a report are put into words; the same in every form."""

from __future__ import annotations

from datetime import UTC, datetime

from octoserve.control.report.report import BATCH, Report
from octoserve.core.comparison import WORST

DASH = "–"


def headline(report: Report) -> str:
    """What changed, in a sentence or two."""
    if not report.pairs:
        where = "rows were compared" if report.of == BATCH else "pairs are in the store"
        return f"No {where}: nothing is known of the candidate's answers."
    candidate, stable = versions(report.candidate_versions), versions(report.stable_versions)
    if report.rate.share is None:
        return f"The candidate ({candidate}) answered none of {whole(report.pairs)} {asked(report)}."
    said = (
        f"{share(report.rate.share)} of {whole(report.rate.compared)} answers of {candidate} differ from {stable}'s"
        if report.rate.disagreed
        else f"All {whole(report.rate.compared)} answers of {candidate} agree with {stable}'s"
    )
    if report.rate.noise_share is not None:
        said += f"; asked twice, {stable} differs from itself in {share(report.rate.noise_share)}"
    said += "."
    worst = next((s for s in report.segments if s.rate.disagreed), None)
    if worst is not None and (worst.rate.share or 0) > 1.25 * report.rate.share:
        said += f" Most affected: {worst.name}={worst.value} ({share(worst.rate.share)})."
    if report.error_pairs:
        said += (
            f" {candidate.capitalize()} failed {whole(report.error_pairs)} of {whole(report.pairs)} {asked(report)}."
        )
    return said


def notes(report: Report) -> tuple[str, ...]:
    """What one must know to read the numbers rightly."""
    found: list[str] = []
    dropped = sum(sum(a.dropped.values()) for a in report.accounts)
    offered = sum(a.offered for a in report.accounts)
    if dropped:
        found.append(
            f"{whole(dropped)} of {whole(offered)} copies were dropped. Drops come with load and with large requests, "
            "so the pairs are no random sample of the traffic."
        )
    compared = sum(a.compared for a in report.accounts)
    if report.accounts and report.rate.compared < compared:
        found.append(
            f"{whole(report.rate.compared)} of {whole(compared)} compared pairs are in the store; the others were "
            "counted only (no room in the spool, dropped by retention, or not converted yet)."
        )
    if any(not a.is_exact for a in report.accounts):
        found.append("The accounts do not add up yet: at the look that they are of, copies were under way.")
    if report.accounts and report.rate.compared > compared:
        more = whole(report.rate.compared - compared)
        found.append(
            f"{more} more pairs are in the store than in the accounts: they came after the look that those are of."
        )
    if report.pairs and not report.noise:
        remedy = "Score with a share of --noise." if report.of == BATCH else "Give the mirror a share of noise."
        found.append(
            "There is no noise floor: nothing here tells a candidate that differs from a model that does not "
            f"repeat itself. {remedy}"
        )
    if report.of == BATCH and len(report.stable_versions) > 1:
        found.append("Each row is compared with the version that answered it by the route plan.")
    elif len(report.candidate_versions) > 1 or len(report.stable_versions) > 1:
        found.append("Several versions are counted together.")
    if report.more_segments:
        found.append(f"{whole(report.more_segments)} more segments are not shown.")
    return tuple(found)


def kind(report: Report) -> str:
    """What it is a report of."""
    return "Comparison of a batch" if report.of == BATCH else "Shadow report"


def asked(report: Report) -> str:
    """What the versions were asked: requests, or rows of a table."""
    return "rows" if report.of == BATCH else "requests"


def course(report: Report) -> str:
    """What `Report.rollout` is the id of."""
    return "run" if report.of == BATCH else "rollout"


def between(report: Report) -> str:
    """`version 2 against version 1`."""
    return f"{versions(report.candidate_versions)} against {versions(report.stable_versions)}"


def span(report: Report) -> str:
    """From the first pair to the last one; rows of a table have no times."""
    return "" if report.of == BATCH else f"{moment(report.first)} to {moment(report.last)}"


def decides(report: Report) -> str:
    """What the report itself does not do."""
    return "" if report.of == BATCH else " The report describes; the verdicts decide."


def versions(numbers: tuple[int, ...]) -> str:
    """`version 2`, `versions 2 and 3`."""
    if len(numbers) < 2:
        return f"version {numbers[0]}" if numbers else "no version"
    return "versions " + ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


def whole(number: int) -> str:
    """1,234,567."""
    return f"{number:,}"


def share(value: float | None) -> str:
    """4.1 %; small ones with more digits, so that few is not none."""
    if value is None:
        return DASH
    percent = value * 100
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if 99.99 < percent < 100:
        return "> 99.99 %"
    return f"{percent:.2f} %" if 0 < percent < 1 else f"{percent:.1f} %".replace(".0 %", " %")


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None:
        return DASH
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def number(value: float | None) -> str:
    """Four significant digits."""
    return DASH if value is None else f"{value:.4g}"


def signed(value: float | None) -> str:
    """With its sign, a true minus."""
    return DASH if value is None else f"{value:+.3g}".replace("-", "−")


def ratio(candidate: float | None, stable: float | None) -> str:
    """+12 %: how much longer the candidate takes."""
    if not candidate or not stable:
        return DASH
    return f"{(candidate / stable - 1) * 100:+.0f} %".replace("-", "−")


def magnitude(value: float) -> str:
    """How many tolerances, where there is such a number."""
    if value >= WORST:
        return "beyond measure"
    return f"{value:.3g} × tolerance" if value > 1 else ""


def moment(at: float | None) -> str:
    """UTC, to the second."""
    return DASH if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

"""What a batch job tells Prometheus while it runs."""

from __future__ import annotations

from octoserve.patterns.batch.job import Job
from octoserve.patterns.batch.progress import Progress
from octoserve.telemetry.families import Family, Sample


def families(job: Job, progress: Progress) -> list[Family]:
    """The job as it is now."""
    at = progress.glance()
    if at is None:
        return []
    labels = (job.model.name, str(job.model.version), job.id())
    names = ("model", "version", "run")

    def family(name: str, kind: str, help_: str, value: float) -> Family:
        return Family(f"octoserve_batch_{name}", kind, help_, names, (), (Sample(labels, value),))

    left = at.seconds_left
    return [
        family("rows_total", "counter", "Rows scored, of this run and of those before.", at.rows),
        family("bad_rows_total", "counter", "Rows that went to the sidecar.", at.bad),
        family("bytes_total", "counter", "Bytes of rows scored.", at.bytes),
        family("splits_finished", "gauge", "Splits in the journal.", at.splits),
        family("splits", "gauge", "Splits of the job.", at.total_splits),
        family("rows", "gauge", "Rows of the job.", at.total_rows),
        family("rows_per_second", "gauge", "Mean rate of this run.", at.rate),
        family("seconds_left", "gauge", "At that rate.", left if left is not None else float("nan")),
    ]

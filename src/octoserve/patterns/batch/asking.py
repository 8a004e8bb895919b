"""From the settings that people write (`spec.batch`) to what a job takes."""

from __future__ import annotations

from typing import Any

import msgspec

from octoserve.connectors.formats import PARQUET
from octoserve.control.plan_source import plan_from
from octoserve.core.errors import SettingsError
from octoserve.patterns.batch import pinning
from octoserve.patterns.batch.job import JobSettings, RunSettings
from octoserve.patterns.batch.run import Wish
from octoserve.routing.plan import BUCKETS
from octoserve.spec import BatchSection, cores
from octoserve.spec.batch import budget_of


def wish_of(section: BatchSection, repository: str) -> Wish:
    """What is to be scored. Raises SettingsError if that is not said."""
    for name, value in (("model", section.model), ("source", section.source), ("sink", section.sink)):
        if not value:
            raise SettingsError(f"{name}: wanted, none was given; pass --{name}, or write it under batch: in the spec")
    return Wish(
        **_who_answers(section),
        repository=repository,
        model=section.model or "",
        source=tuple(section.source),
        sink=str(section.sink),
        settings=job_settings(section),
    )


def job_settings(section: BatchSection) -> JobSettings:
    """What of the section shapes the result."""
    return JobSettings(
        format=section.format or "",
        sink_format=section.sink_format if section.sink_format not in (None, PARQUET) else msgspec.UNSET,
        keys=tuple(section.keys),
        columns=tuple(section.columns),
        all_columns=section.all_columns,
        prefix=section.prefix,
        missing=section.missing or "",
        convert=section.convert,
        split_bytes=section.split_size,
        block_rows=section.block_rows,
    )


def _who_answers(section: BatchSection) -> dict[str, Any]:
    """version, plan, plan_key, shadow and noise of the wish; asks for the route plan where one is needed. Blocking."""
    plan = None
    if section.version in ("stable", "plan") or section.shadow == "candidate":
        plan = plan_from(section.plan, section.model or "")
    elif section.plan or section.plan_key:
        name = "plan" if section.plan else "plan-key"
        raise SettingsError(f"--{name}: nothing here goes by a route plan; say --version plan, or --version stable")
    if section.noise and section.shadow is None:
        raise SettingsError(
            "--noise: it is a shadow that is compared with what a version differs from itself; name a --shadow"
        )
    by_row = section.version == "plan"
    version = plan.stable if plan is not None and section.version in ("stable", "plan") else section.version
    shadow = pinning.candidate_of(plan) if plan is not None and section.shadow == "candidate" else section.shadow
    return {
        "version": version,
        "plan": plan if by_row else None,
        "plan_key": (section.plan_key or "") if by_row else "",
        "shadow": shadow,
        "noise": max(round(section.noise * BUCKETS), 1) if section.noise else 0,
    }


def run_of(section: BatchSection) -> RunSettings:
    """How a run of it goes about it."""
    rows, share = budget_of(section.error_budget)
    return RunSettings(
        workers=section.workers or cores(),
        bytes_in_flight=section.bytes_in_flight,
        budget_rows=rows,
        budget_share=share,
        keep_budget="error_budget" not in section.model_fields_set,
    )

"""What was asked on the command line or in the spec's section `queue`, as the pattern takes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octoserve.core.errors import SettingsError

if TYPE_CHECKING:
    from octoserve.patterns.message_queue.following import Follower
    from octoserve.patterns.message_queue.settings import QueueSettings
    from octoserve.routing.plan import RoutePlan
    from octoserve.spec import QueueSection


def asked(flags: Mapping[str, Any], repository: str | None, spec: str | None) -> tuple[QueueSection, QueueSettings]:
    """Flags over the spec's section. Flags whose value is None were not given. Raises SettingsError."""
    from octoserve import spec as settings
    from octoserve.patterns.message_queue.settings import RECORDS, QueueSettings

    values: dict[str, Any] = settings.read(Path(spec)) if spec else {}
    if repository is not None:
        values["repository"] = repository
    given = {name: value for name, value in flags.items() if value is not None}
    section = values.get("queue") or {}
    if isinstance(section, dict):
        values["queue"] = {**section, **given}
    try:
        checked = settings.check(values, {"queue": f"{spec}: queue" if spec else "queue"}, spec or "")
    except SettingsError as error:
        raise SettingsError(_as_flags(str(error), given, spec)) from None
    queue = checked.queue
    for name, value in (("model", queue.model), ("source", queue.source), ("sink", queue.sink)):
        if not value:
            raise SettingsError(f"{name}: wanted, none was given; pass --{name}, or write it under queue: in the spec")
    records = queue.payload in RECORDS
    if records and not queue.schema_registry:
        raise SettingsError(
            f"schema_registry: wanted for a payload of {queue.payload}, none was given; pass --schema-registry "
            "http://host:8081"
        )
    if queue.schema_registry and not records:
        raise SettingsError(f"schema_registry: for payloads of {' or '.join(RECORDS)}; this one is {queue.payload}")
    version, plan = who_answers(queue)
    tracing = checked.spans()
    if tracing is not None:
        from octoserve.telemetry import otlp

        otlp.check()
    told = QueueSettings(
        repository=str(checked.repository),
        model=queue.model or "",
        version=version,
        plan=plan,
        source=queue.source or "",
        sink=queue.sink or "",
        payload=queue.payload,
        schema_registry=queue.schema_registry or "",
        columns=tuple(queue.columns),
        missing=queue.missing or "",
        batch_rows=queue.batch_rows,
        batch_bytes=queue.batch_bytes,
        batch_seconds=queue.batch_time,
        run_timeout=queue.run_timeout,
        max_attempts=queue.max_attempts,
        retry_delay=queue.retry_delay,
        until_idle=queue.until_idle,
        redeliver_after=queue.redeliver_after,
        freshness=queue.slo.freshness if queue.slo is not None else None,
        state_dir=str(queue.state_dir),
        trust=tuple(checked.trust) or None,
        inputs=tuple(checked.asynchronous.inputs),
        max_input=checked.asynchronous.max_input,
        tracing=tracing,
    )
    return queue, told


def who_answers(section: QueueSection) -> tuple[int | None, RoutePlan | None]:
    """The version for all messages, None for the highest, or the plan by which each has its own.

    Asks for the plan where one is needed, but for one that is followed. Blocking. Raises SettingsError, NotFound,
    Unavailable.
    """
    from octoserve.control.plan_source import is_service, place_of, plan_from, shaping
    from octoserve.patterns.message_queue.picking import rekeyed

    if not isinstance(section.version, str):
        if section.plan or section.plan_key:
            name = "plan" if section.plan else "plan-key"
            raise SettingsError(f"--{name}: nothing here goes by a route plan; say --version plan, or --version stable")
        return section.version, None
    if section.version == "plan" and section.payload == "requests":
        raise SettingsError("--version plan: an asynchronous request is the trusted version's; say --version stable")
    if section.version == "plan" and is_service(place_of(section.plan)):
        return None, None
    plan = plan_from(section.plan, section.model or "")
    if section.version == "stable":
        return plan.stable, None
    return None, rekeyed(shaping(plan), section.plan_key or "", section.payload)


def follower_of(section: QueueSection) -> Follower | None:
    """The conversation with the service whose rollouts the queue follows; None where it goes by what it was told."""
    from octoserve.control.plan_source import is_service, place_of
    from octoserve.patterns.message_queue.following import Follower, asking

    place = place_of(section.plan)
    if section.version != "plan" or not is_service(place):
        return None
    model = section.model or ""
    id = f"{os.uname().nodename}/{os.getpid()}/{os.urandom(2).hex()}"
    return Follower(asking(place, model), id, section.plan_key or "", section.payload)


def _as_flags(text: str, given: Mapping[str, Any], spec: str | None) -> str:
    """Name a flag where a flag was wrong."""
    place = f"{spec}: queue." if spec else "queue."
    for name in given:
        text = text.replace(f"{place}{name}:", f"--{name.replace('_', '-')}:")
    return text

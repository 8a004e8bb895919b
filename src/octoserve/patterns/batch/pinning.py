"""What of a route plan a job pins: what of it shapes a row, and which column holds its key.

See docs/decisions/0013-rollouts-in-batch.md. Where a plan comes from: `control.plan_source`.
"""

from __future__ import annotations

from collections.abc import Sequence

from octoserve.connectors.arrow import Schema
from octoserve.core.errors import SettingsError
from octoserve.core.evidence import CANDIDATE
from octoserve.patterns.batch.matching import datatype_of
from octoserve.routing.key import INPUT, parse_key
from octoserve.routing.plan import RoutePlan


def candidate_of(plan: RoutePlan) -> int:
    """The version on trial. Raises SettingsError if there is none."""
    arms = [arm.version for arm in plan.arms if arm.role == CANDIDATE]
    found = arms + [mirror.version for mirror in plan.mirrors]
    if not found:
        raise SettingsError(
            f"--shadow candidate: no rollout of {plan.endpoint!r} is under way, all goes to version {plan.stable}; "
            "name the version"
        )
    return found[0]


def key_column(plan: RoutePlan, asked: str, schema: Schema) -> str:
    """The column whose values a plan's buckets go by; "" where it has but one version. Raises SettingsError."""
    if not plan.versions() - {plan.stable}:
        return ""
    name = asked
    if not name:
        source = parse_key(plan.key) if plan.key else None
        if source is None or source.kind != INPUT or source.name not in schema.names:
            why = f"goes by {plan.key}, which is no column of the table" if plan.key else "draws by chance"
            raise SettingsError(
                f"--plan-key: the route plan of {plan.endpoint!r} {why}; name the column that holds the key, of "
                f"{_few(schema.names)}"
            )
        name = source.name
    if name not in schema.names:
        raise SettingsError(f"--plan-key: the table has no column {name!r}; it has {_few(schema.names)}")
    datatype = datatype_of(schema.field(name).type)
    if datatype is None or datatype.startswith("FP"):
        raise SettingsError(
            f"--plan-key: text, whole numbers or booleans are wanted, {name} is {schema.field(name).type}, which "
            "can be written in more than one way"
        )
    return name


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")

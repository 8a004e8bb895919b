"""The facts that one decision of the machine sees, gathered by who drives it."""

from __future__ import annotations

import msgspec

from octoserve.control.analysis.verdict import Verdict
from octoserve.control.rollout.values import Command


class Preview(msgspec.Struct, frozen=True):
    """How the candidate did on golden samples and replayed traffic, without a client seeing it."""

    ok: bool
    reason: str = ""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that one decision sees.

    now:             wall clock seconds
    present:         the candidate lies whole in the repository
    ready:           it is ready in every worker
    failed:          why it cannot be loaded, "" if nothing says so
    stable_ready:    the stable version is ready in every worker
    settled:         every worker has acknowledged the plan that follows from this very record, and what stands in front
                     of them (`Course.backend`) has confirmed it
    behind:          who has not, for people
    preview:         None: not finished
    verdicts:        of the current stratum; while retaining, of the delayed checks
    samples:         the candidate's answered attempts in the stratum; pairs at weight 0
    breaker:         why a worker has cut the candidate off, "" if none has
    command, command_reason: the most urgent one that is pending, and what the person said
    superseded:      a newer candidate wants the endpoint
    labels_complete: the watermark of delayed labels has passed
    """

    now: float
    present: bool = False
    ready: bool = False
    failed: str = ""
    stable_ready: bool = False
    settled: bool = False
    behind: str = "every worker"
    preview: Preview | None = None
    verdicts: tuple[Verdict, ...] = ()
    samples: int = 0
    breaker: str = ""
    command: Command | None = None
    command_reason: str = ""
    superseded: bool = False
    labels_complete: bool = False

"""Spans that have ended, kept in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octoserve.core.trace_context import Tracing
from octoserve.telemetry.tracing import Span, Tracer


class Spans:
    """A `tracing.Sink`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def __call__(self, span: Span) -> None:
        """See `Sink.__call__`."""
        self.spans.append(span)

    def counts(self) -> Mapping[str, int]:
        """See `Sink.counts`."""
        return {"exported": len(self.spans)}

    def close(self) -> None:
        """See `Sink.close`."""

    def named(self, name: str) -> list[Span]:
        """Those of a name, in the order of their ends."""
        return [span for span in self.spans if span.name == name]


def tracer(share: float = 1.0, parent_based: bool = True, **others: Any) -> tuple[Tracer, Spans]:
    """A tracer, and what it has kept."""
    kept = Spans()
    return Tracer(kept, Tracing(share=share, parent_based=parent_based), **others), kept

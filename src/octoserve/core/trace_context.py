"""W3C Trace Context: which trace a request belongs to, as its `traceparent` and `tracestate` say it.

https://www.w3.org/TR/trace-context/; and what the spec says of tracing, in words that every process understands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

PARENT, STATE = "traceparent", "tracestate"
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LEFT_OUT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace]")
_STATE = re.compile(r"[\x20-\x7e]{1,512}")
SAMPLED, RANDOM = 1, 2
"""Flags: that the client records it, and that the trace's id is random."""


class TraceContext(msgspec.Struct, frozen=True, gc=False):
    """One span, as others know it. trace: 128 bits, span: 64 bits, neither 0; state: what vendors add, carried on."""

    trace: int
    span: int
    flags: int
    state: str = ""

    @property
    def sampled(self) -> bool:
        """Whether it is recorded."""
        return bool(self.flags & SAMPLED)

    def headers(self) -> dict[str, str]:
        """As a request carries it on."""
        told = {PARENT: f"00-{self.trace:032x}-{self.span:016x}-{self.flags:02x}"}
        if self.state:
            told[STATE] = self.state
        return told


def context_in(headers: Mapping[str, str]) -> TraceContext | None:
    """What headers (names in lower case) say. None without a traceparent, and for one that is none: then a new trace
    begins, as the standard has it."""
    said = headers.get(PARENT)
    if said is None:
        return None
    found = _PARENT.fullmatch(said.strip())
    if found is None:
        return None
    version, trace, span, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace, 16) or not int(span, 16):
        return None
    state = headers.get(STATE, "").strip()
    known = int(flags, 16) & (SAMPLED | RANDOM)
    return TraceContext(int(trace, 16), int(span, 16), known, state if _STATE.fullmatch(state) else "")


def left_out(headers: Mapping[str, str]) -> bool:
    """Whether headers say that their trace is not recorded: told without reading more of it, as most do."""
    said = headers.get(PARENT)
    return said is not None and _LEFT_OUT.fullmatch(said) is not None


def carried(headers: Mapping[str, str]) -> dict[str, str]:
    """The trace context of headers, to be passed on as it came; empty where there is none."""
    context = context_in(headers)
    return {} if context is None else context.headers()


class Tracing(msgspec.Struct, frozen=True, kw_only=True):
    """That spans are recorded. See docs/tracing.md.

    endpoint:     of an OTLP collector, http://host:4318; "" leaves it to the OTEL_* variables
    share:        of requests that bring no decision, from 0 to 1
    parent_based: whether a request that brings a decision keeps it
    service:      `service.name`; "" leaves it to the OTEL_* variables
    """

    endpoint: str = ""
    share: float = 0.01
    parent_based: bool = True
    service: str = ""

"""Sampled requests in the data plane: what is recorded of each, and of the runs that they share.

    POST /v2/models/{model}/infer      the request, by its door; the client's span is above it
      queue                            from its arrival to the run
      run                              the run that it took part in
        onnx_onnxruntime               the model itself, and below it what a runtime does: parts, requests to a server

A run serves many requests, and a span has one place. It stands below the first sampled one, with links to all; each of
the others has a `run` of its own, linked to that one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from octoserve.core.tensors import Array
from octoserve.dataplane.call import Call
from octoserve.lifecycle.lease import Handle
from octoserve.telemetry.tracing import ACTIVE, Over, Span, Tracer, active, within

T = TypeVar("T")
Run = Callable[[Sequence[Array]], list[Array]]


def follow(call: Call, span: Span, over: Over) -> None:
    """The span ends with the call, as `over` says. A call that is not sampled is not touched, and costs no more."""
    call.trace = span
    call.answered = partial(_answered, call, type(call).answered, over)  # type: ignore[method-assign]
    span.attributes["octoserve.model"] = call.model
    span.attributes["octoserve.door"] = call.door


def _answered(call: Call, answer: Callable[[Call], None], over: Over) -> None:
    span = call.trace
    assert span is not None
    try:
        with active(span):
            answer(call)
    finally:
        about(call, span)
        over(span, call.error)
        span.end()
        vars(call).pop("answered", None)  # which holds the call


def about(call: Call, span: Span) -> None:
    """Who answered, or was to."""
    if call.result is not None:
        span.attributes["octoserve.version"] = call.result.ran.version
    elif call.arm is not None:
        span.attributes["octoserve.version"] = call.arm.version
    if call.arm is not None:
        span.attributes["octoserve.arm"] = call.arm.role


def given_up(call: Call, span: Span) -> None:
    """Who asked has gone."""
    about(call, span)
    span.failed("cancelled", False)
    span.end()
    vars(call).pop("answered", None)


def run(tracer: Tracer, calls: Sequence[Call], rows: int, handle: Handle, runs: Callable[[Run], T]) -> T:
    """What `runs` gives, which is told how to run the model; in whatever thread that is."""
    sampled = [call.trace for call in calls if call.trace is not None]
    model: Run = handle.loaded.run
    if not sampled:
        if not handle.lanes and ACTIVE.get() is None:  # else an ended one, of what this connection asked before
            return runs(model)
        with active(tracer.unsampled):  # another server may be asked, and is to know
            return runs(model)
    began = tracer.now()
    for call in calls:
        if call.trace is not None:
            call.trace.child("queue", start=tracer.at(call.arrived)).end(began)
    span = sampled[0].child("run", start=began)
    span.links = [one.context for one in sampled]
    span.attributes.update(
        {
            "octoserve.model": handle.ref.model,
            "octoserve.version": handle.ref.version,
            "octoserve.batch.requests": len(calls),
            "octoserve.batch.rows": rows,
        }
    )
    try:
        with active(span):
            return runs(partial(within, handle.loaded.platform, model))
    finally:
        span.end()
        for other in sampled[1:]:
            own = other.child("run", start=began)
            own.links = [span.context]
            own.end(span.end_time)


def copied(span: Span, handle: Handle, work: Callable[..., list[Any]], *arguments: object) -> list[Any]:
    """A run of a copy of this request, for a candidate or for comparison: a trace of its own, with a link to it."""
    tracer = span.tracer
    own = tracer.root("shadow", [span.context])
    own.attributes.update({"octoserve.model": handle.ref.model, "octoserve.version": handle.ref.version})
    try:
        with active(own):
            return within(handle.loaded.platform, work, *arguments)
    except BaseException as error:
        own.failed(f"{type(error).__name__}: {error}"[:200])
        raise
    finally:
        own.end()

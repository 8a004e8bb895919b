"""The spans of sampled messages: from when one was received until its result is stored, or it has failed.

    process ORDERS          the message; the sender's span is above it, if its `traceparent` says of one
      score                 the micro-batch, below its first sampled message, with links to all of them

From there on a message carries the context of its own span: its result, its retries and its dead letter do too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from octoserve.connectors.queues.protocol import Message, Position
from octoserve.patterns.message_queue.outcome import Failed
from octoserve.patterns.message_queue.scoring import Scored
from octoserve.telemetry.tracing import Span, Tracer, active, part

Score = Callable[[Sequence[Message], bool], Scored]


class Traced:
    """Of one worker. source: what the queue is called; system: `kafka`, `nats`."""

    def __init__(self, tracer: Tracer, source: str, system: str, model: str) -> None:
        self._tracer = tracer
        self._name = f"process {source.partition(':')[2] or source}"
        self._attributes = {
            "messaging.system": system,
            "messaging.operation.type": "process",
            "messaging.destination.name": source,
            "octoserve.model": model,
        }
        self._spans: dict[Position, Span] = {}

    def received(self, messages: Sequence[Message]) -> list[Message]:
        """The same; those that are sampled, with a span that has begun."""
        return [self._begun(message) for message in messages]

    def _begun(self, message: Message) -> Message:
        span = self._tracer.begin(message.headers, self._name, "consumer")
        if span is None:
            return message
        span.attributes.update(self._attributes)
        span.attributes["messaging.message.id"] = message.name
        self._spans[message.position] = span
        return msgspec.structs.replace(message, headers={**message.headers, **span.headers()})

    def score(self, score: Score, messages: Sequence[Message], tried: bool) -> Scored:
        """What `score` gives."""
        sampled = [span for message in messages if (span := self._spans.get(message.position)) is not None]
        if not sampled:
            with active(self._tracer.unsampled):
                return score(messages, tried)
        with active(sampled[0]), part("score") as run:
            assert isinstance(run, Span), "what is above it is sampled"
            run.links = [span.context for span in sampled]
            run.attributes["octoserve.batch.rows"] = len(messages)
            scored = score(messages, tried)
        for place, version in zip(scored.good, scored.versions.tolist(), strict=True):
            span = self._spans.get(messages[place].position)
            if span is not None:
                span.attributes["octoserve.version"] = version
        return scored

    def failed(self, failed: Sequence[Failed]) -> None:
        """These did not succeed: they come again, or never."""
        for each in failed:
            span = self._spans.get(each.message.position)
            if span is not None:
                history = each.attempts.history
                span.failed(history[-1].error if history else "tried often enough")
                span.attributes["octoserve.fate"] = each.fate.value

    def over(self, messages: Sequence[Message]) -> None:
        """All is stored and settled."""
        for message in messages:
            span = self._spans.pop(message.position, None)
            if span is not None:
                span.end()

"""Messages that are whole requests: each goes through the data plane as `/infer` would, and its result is its answer.

So one of many rows is one message, a model without rows takes part, and the answer has the bytes that the online door
would have sent. Requests are merged by the data plane's batching; one that fails, fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from octoserve.codecs.json_rows import Decoded
from octoserve.codecs.open_inference_json import Request, decode_request, encode_response
from octoserve.connectors.queues.protocol import Message
from octoserve.core.errors import InvalidInput, OctoserveError
from octoserve.core.results import Result
from octoserve.core.signature import Signature
from octoserve.core.tensors import Tensor
from octoserve.dataplane.deferred import Reference, check, reference_in, request_of
from octoserve.patterns.message_queue.scoring import Guard, Scored, identity

T = TypeVar("T")
_AT_ONCE = 64
_BYTES_AT_ONCE = 32 << 20


class Answerer(Protocol):
    """The way through the data plane."""

    signature: Signature

    def waited(self, work: Callable[[], T]) -> T:
        """What it returns or raises; other things go on meanwhile."""
        ...

    def infer(self, requests: Sequence[Sequence[Tensor]], ended: Callable[[], None]) -> list[Result | OctoserveError]:
        """The results of all; `ended` is called whenever one is there."""
        ...


class Requests:
    """What the loop does with messages, in place of `scoring.score`."""

    def __init__(
        self, model: Answerer, guard: Guard, again: Callable[[], None], fetch: Callable[[str], bytes] | None = None
    ) -> None:
        """guard, again: the deadline of a run, and that it begins anew; fetch: the object at an address. Blocking."""
        self._fetch = fetch
        self._model = model
        self._guard = guard
        self._again = again

    def score(self, messages: Sequence[Message], tried: bool = False) -> Scored:
        """See `Work.score_by`."""
        requests: dict[int, Request] = {}
        failed: dict[int, Exception] = {}
        ids = [identity(message, None) for message in messages]
        for place, message in enumerate(messages):
            try:
                reference = reference_in(message.value, message.headers)
                if reference is not None:
                    ids[place] = identity(message, reference.id or None)
                    request = self._referred(reference)
                else:
                    request = request_of(message.value, message.headers)
                    ids[place] = identity(message, request.id or None)
                check(self._model.signature, request)
                requests[place] = request
            except OctoserveError as error:
                failed[place] = error
        answers: dict[int, tuple[bytes, int]] = {}
        for wave in _waves(requests):
            with self._guard():
                results = self._model.infer([requests[place].tensors for place in wave], self._again)
            for place, result in zip(wave, results, strict=True):
                try:
                    if isinstance(result, OctoserveError):
                        raise result
                    body, _ = encode_response(result, requests[place])
                    answers[place] = body, result.ran.version
                except OctoserveError as error:
                    failed[place] = error
        good = sorted(answers)
        column = np.empty(len(good), dtype=object)
        column[:] = [answers[place][0] for place in good]
        return Scored(good, [column], np.array([answers[place][1] for place in good], np.int64), ids, failed)

    def _referred(self, reference: Reference) -> Request:
        fetch = self._fetch
        if fetch is None:
            raise InvalidInput("input_location is not offered here")
        request = decode_request(self._model.waited(lambda: fetch(reference.input_location)))
        request.id = reference.id or request.id
        return request

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Their ids alone."""
        return Decoded([], [decode_request(payload).id or None for payload in payloads], {})


def _waves(requests: dict[int, Request]) -> Iterator[list[int]]:
    """Those that are in the data plane together, in order."""
    wave: list[int] = []
    size = 0
    for place, request in requests.items():
        more = sum(tensor.nbytes() for tensor in request.tensors)
        if wave and (len(wave) == _AT_ONCE or size + more > _BYTES_AT_ONCE):
            yield wave
            wave, size = [], 0
        wave.append(place)
        size += more
    if wave:
        yield wave

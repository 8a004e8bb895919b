"""Messages that are whole requests: each goes through the data plane as `/infer` would, and its result is its answer.

So one of many rows is one message, a model without rows takes part, and the answer has the bytes that the online door
would have sent. Requests are merged by the data plane's batching; one that fails, fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
_Ended = tuple[bytes, int] | OctoserveError
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
        """See `Work.score_by`. No more requests are in memory than run at once."""
        ids = [identity(message, None) for message in messages]
        ended: dict[int, _Ended] = {}
        wave: dict[int, Request] = {}
        size = 0
        for place, message in enumerate(messages):
            try:
                request, ids[place] = self._request(message)
                check(self._model.signature, request)
            except OctoserveError as error:
                ended[place] = error
                continue
            more = sum(tensor.nbytes() for tensor in request.tensors)
            if wave and (len(wave) == _AT_ONCE or size + more > _BYTES_AT_ONCE):
                ended.update(self._run(wave))
                wave, size = {}, 0
            wave[place] = request
            size += more
        ended.update(self._run(wave))
        answers = {place: end for place, end in sorted(ended.items()) if not isinstance(end, OctoserveError)}
        column = np.empty(len(answers), dtype=object)
        column[:] = [body for body, _ in answers.values()]
        versions = np.array([version for _, version in answers.values()], np.int64)
        failed: dict[int, Exception] = {place: end for place, end in ended.items() if isinstance(end, OctoserveError)}
        return Scored(list(answers), [column], versions, ids, failed)

    def _run(self, wave: Mapping[int, Request]) -> dict[int, _Ended]:
        """Of each its answer and who gave it, or why there is none."""
        if not wave:
            return {}
        with self._guard():
            results = self._model.infer([request.tensors for request in wave.values()], self._again)
        ended: dict[int, _Ended] = {}
        for (place, request), result in zip(wave.items(), results, strict=True):
            try:
                if isinstance(result, OctoserveError):
                    raise result
                ended[place] = encode_response(result, request)[0], result.ran.version
            except OctoserveError as error:
                ended[place] = error
        return ended

    def _request(self, message: Message) -> tuple[Request, str]:
        """And the message's id. An id of the reference's own stands for the request's."""
        reference = reference_in(message.value, message.headers)
        if reference is None:
            request = request_of(message.value, message.headers)
            return request, identity(message, request.id or None)
        return self._referred(reference), identity(message, reference.id or None)

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

"""What a client says and what it makes of the answers, whoever carries them (`blocking`, `asynchronous`).

Each method is a generator: it gives what is to be asked, is sent the answer, and returns the result.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from octoserve.client import wire
from octoserve.client.wire import Answer
from octoserve.core.errors import InvalidInput
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array

T = TypeVar("T")


class Ask(NamedTuple):
    """One request."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = {}


Steps = Generator[Ask, Answer, T]


class Talk:
    """With one server. Remembers what its models take."""

    def __init__(self) -> None:
        self._signatures: dict[tuple[str, str], Signature] = {}

    def predict(
        self, model: str, rows: Any, version: str, outputs: Sequence[str] | None, headers: Mapping[str, str]
    ) -> Steps[dict[str, Array]]:
        """See `blocking.Client.predict`."""
        known = self._signatures.get((model, version))
        signature = known if known is not None else (yield from self.signature(model, version))
        try:
            return (yield from _infer(model, version, signature, rows, outputs, headers))
        except InvalidInput:
            if known is None:
                raise
            # The version that answers may have been replaced by one that takes something else.
            signature = yield from self.signature(model, version)
            if (signature.inputs, signature.outputs) == (known.inputs, known.outputs):
                raise
            return (yield from _infer(model, version, signature, rows, outputs, headers))

    def signature(self, model: str, version: str) -> Steps[Signature]:
        """What a model takes and gives, as the server says it now."""
        answer = yield Ask("GET", wire.path_of(model, version))
        found = self._signatures[model, version] = wire.signature_in(answer)
        return found


def _infer(
    model: str,
    version: str,
    signature: Signature,
    rows: Any,
    outputs: Sequence[str] | None,
    headers: Mapping[str, str],
) -> Steps[dict[str, Array]]:
    body, said = wire.request(signature, rows, outputs)
    answer = yield Ask(
        "POST", wire.path_of(model, version) + "/infer", body, {**wire.trace_headers(), **said, **headers}
    )
    return wire.arrays_in(answer)

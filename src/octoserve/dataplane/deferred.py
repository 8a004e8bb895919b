"""A request that is answered later: what is asked of it, and its form between who accepts it and who runs it.

Online and message queue both need these words, and neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from octoserve.codecs.open_inference_json import Request, decode_request
from octoserve.core.errors import InvalidInput, Unsupported
from octoserve.core.signature import Signature
from octoserve.dataplane.endpoint import check_outputs

LENGTH_HEADER = "octoserve-json-length"
"""Bytes of a message's JSON part, where binary tensors follow it."""


def message_id(model: str, id: str) -> str:
    """What a request is called in the queue and in the store; no model's name has a slash."""
    return f"{model}/{id}"


def headers_of(json_length: int | None) -> dict[str, str]:
    """What a message says beside its value, the body as it came."""
    return {} if json_length is None else {LENGTH_HEADER: str(json_length)}


def request_of(value: bytes, headers: Mapping[str, str]) -> Request:
    """The request of a message. Raises InvalidInput, Unsupported."""
    length = headers.get(LENGTH_HEADER, "")
    return decode_request(value, int(length) if length.isascii() and length.isdigit() else None)


def check(signature: Signature, request: Request) -> None:
    """Raises InvalidInput for what the model does not take, Unsupported for what no JSON can answer."""
    layout = signature.check(request.tensors)
    if layout.inspect:
        for tensor in request.tensors:
            tensor.array()  # malformed elements are this request's fault, not its batch-mates'
    wanted = [name for name, _ in request.outputs] if request.outputs is not None else list(signature.output_index)
    check_outputs(signature.output_index, wanted)
    if request.binary or any(binary for _, binary in request.outputs or ()):
        raise InvalidInput("the answer is kept as JSON: binary outputs are not offered here")
    for name in wanted:
        if signature.outputs[signature.output_index[name]].datatype == "BF16":
            raise Unsupported(f"output {name!r} is BF16, which has no JSON form; ask for other outputs")

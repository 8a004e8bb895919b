"""A request that is answered later: what is asked of it, and its form between who accepts it and who runs it.

Online and message queue both need these words, and neither knows the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from octoserve.codecs.open_inference_json import Request, decode_request
from octoserve.core.errors import InvalidInput, Unsupported
from octoserve.core.signature import Signature
from octoserve.dataplane.endpoint import check_outputs

LENGTH_HEADER = "octoserve-json-length"
"""Bytes of a message's JSON part, where binary tensors follow it."""


_LARGEST_REFERENCE = 16 << 10
_PORTS = {"http": 80, "https": 443}


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body that says where the request is, `{"input_location": "s3://bucket/key"}`. id: in place of the request's."""

    input_location: str
    id: str = ""


def reference_in(value: bytes, headers: Mapping[str, str]) -> Reference | None:
    """What a message refers to; None for a request. Raises InvalidInput for what is neither."""
    if LENGTH_HEADER in headers or len(value) > _LARGEST_REFERENCE or b'"input_location"' not in value:
        return None
    try:
        return msgspec.json.decode(value, type=Reference)
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"input_location stands alone, or beside an id: {error}") from None


def within(address: str, places: Sequence[str]) -> bool:
    """Whether an address (http, https, s3) lies in one of these places: scheme, host and port are the same, and the
    place's path is the beginning of its path, by whole segments. One with a user or with `..` in it lies nowhere."""
    there = _parts(address)
    if there is None:
        return False
    for place in places:
        here = _parts(place)
        if here is not None and here[0] == there[0] and there[1][: len(here[1])] == here[1]:
            return True
    return False


def _parts(address: str) -> tuple[tuple[str, str, int | None], list[str]] | None:
    if not address.isascii() or not address.isprintable() or " " in address or "\\" in address:
        return None
    try:
        parts: SplitResult = urlsplit(address)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    segments = [segment for segment in parts.path.split("/") if segment]
    dotted = any(unquote(unquote(segment)) in (".", "..") or "/" in unquote(segment) for segment in segments)
    if parts.scheme not in ("http", "https", "s3") or not parts.hostname or "@" in parts.netloc or dotted:
        return None
    return (parts.scheme, parts.hostname, port), segments


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

"""Requests and answers of the Open Inference Protocol with binary tensors, as a client has them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    OctoserveError,
    Overloaded,
    SettingsError,
    TooLarge,
    Unavailable,
    Unsupported,
)
from octoserve.core.given import array_for
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, Tensor, array_from_raw
from octoserve.core.trace_context import TraceContext

HEADER_LENGTH = "inference-header-content-length"
_SHOWN = 2000  # characters of an answer that an error repeats

_KINDS: dict[int, type[OctoserveError]] = {
    400: InvalidInput, 404: NotFound, 413: TooLarge, 501: Unsupported, 503: Unavailable, 504: DeadlineExceeded,
}  # fmt: skip


class Address(NamedTuple):
    """Of a server. prefix: of all paths, "" mostly."""

    host: str
    port: int
    tls: bool
    prefix: str

    @property
    def authority(self) -> str:
        """As a Host header has it: an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"


def trace_headers() -> dict[str, str]:
    """The trace context of the span that the caller is in, where its program uses OpenTelemetry; imports nothing."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return {}
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    state = context.trace_state.to_header()
    return TraceContext(context.trace_id, context.span_id, context.trace_flags, state).headers()


def address_of(url: str) -> Address:
    """Raises SettingsError."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingsError(f"{url!r} is no address of a server; wanted for example http://127.0.0.1:8080")
    tls = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


class Answer(NamedTuple):
    """Of HTTP; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def path_of(model: str, version: str) -> str:
    """Of its metadata; `/infer` comes after it."""
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


class _Metadata(msgspec.Struct):
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


def signature_in(answer: Answer) -> Signature:
    """What a model takes and gives, of its metadata. Raises OctoserveError."""
    refuse(answer)
    try:
        told = msgspec.json.decode(answer.body, type=_Metadata)
    except msgspec.MsgspecError as error:
        raise Internal(f"this is no metadata of the Open Inference Protocol: {error}") from None
    return Signature(told.inputs, told.outputs)


def request(signature: Signature, rows: Any, outputs: Sequence[str] | None) -> tuple[bytes, dict[str, str]]:
    """The body and its headers. rows: as in `predict`. Raises InvalidInput."""
    specs = signature.inputs
    if isinstance(rows, Mapping):
        unknown = sorted(map(str, rows.keys() - {spec.name for spec in specs}))
        missing = [spec.name for spec in specs if spec.name not in rows]
        if unknown or missing:
            wanted = ", ".join(map(str, specs))
            what = f"input {missing[0]!r} is missing" if missing else f"unknown input {unknown[0]!r}"
            raise InvalidInput(f"{what}; wanted: {wanted}")
        given = [rows[spec.name] for spec in specs]
    elif len(specs) == 1:
        given = [rows]
    else:
        wanted = ", ".join(map(str, specs))
        raise InvalidInput(f"the model has several inputs: a mapping of their names to arrays is wanted: {wanted}")
    tensors = [Tensor.of(s.name, array_for(s, values), s.datatype) for s, values in zip(specs, given, strict=True)]
    signature.check(tensors)
    raws = [bytes(tensor.bytes()) for tensor in tensors]
    head: dict[str, Any] = {
        "inputs": [
            {"name": t.name, "shape": t.shape, "datatype": t.datatype, "parameters": {"binary_data_size": len(raw)}}
            for t, raw in zip(tensors, raws, strict=True)
        ],
        "parameters": {"binary_data_output": True},
    }
    if outputs is not None:
        head["outputs"] = [{"name": name} for name in outputs]
    text = msgspec.json.encode(head)
    headers = {HEADER_LENGTH: str(len(text)), "content-type": "application/octet-stream"}
    return b"".join([text, *raws]), headers


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any] = {}
    data: Any = None


class _Outputs(msgspec.Struct):
    outputs: list[_Output]


def arrays_in(answer: Answer) -> dict[str, Array]:
    """Output name -> array, its own copy. Raises OctoserveError."""
    refuse(answer)
    length = int(answer.headers.get(HEADER_LENGTH, len(answer.body)))
    try:
        told = msgspec.json.decode(memoryview(answer.body)[:length], type=_Outputs)
        found = {}
        for output in told.outputs:
            size = output.parameters.get("binary_data_size")
            if size is None:
                found[output.name] = _from_json(output)
            else:
                raw = answer.body[length : length + size]
                length += size
                found[output.name] = array_from_raw(raw, output.datatype, output.shape, output.name).copy()
    except (msgspec.MsgspecError, InvalidInput, KeyError, ValueError) as error:
        raise Internal(f"this is no answer of the Open Inference Protocol: {error}") from None
    return found


def _from_json(output: _Output) -> Array:
    kind = DATATYPES[output.datatype]
    flat = output.data
    while flat and isinstance(flat[0], list):
        flat = list(itertools.chain.from_iterable(flat))
    return np.array(flat, dtype=object if kind.kind == "bytes" else kind.dtype).reshape(output.shape)


def refuse(answer: Answer) -> None:
    """Raises the error that an answer is, with the server's own words."""
    if answer.status < 300:
        return
    try:
        words = str(msgspec.json.decode(answer.body)["error"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        words = answer.body[:_SHOWN].decode(errors="replace")
    text = f"{words or 'no reason was given'} (status {answer.status})"
    if answer.status == 429:
        after = answer.headers.get("retry-after", "1")
        raise Overloaded(text, int(after) if after.isdecimal() else 1)
    kind = _KINDS.get(answer.status, InvalidInput if answer.status < 500 else Internal)
    raise kind(text)

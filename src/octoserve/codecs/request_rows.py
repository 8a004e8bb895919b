"""Messages that are whole requests, one row each: the Open Inference Protocol's JSON, or the bytes of the only input.

Messages whose tensors have equal shapes share a run.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

import numpy as np

from octoserve.codecs.json_rows import Decoded, Group
from octoserve.codecs.open_inference_json import decode_request
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, OctoserveError, SettingsError
from octoserve.core.signature import Signature
from octoserve.core.tensors import Shape, Tensor

_One = Callable[[bytes], tuple[list[Tensor], str | None]]


class OpenInferenceRows:
    """`{"id": "m1", "inputs": [{"name": ..., "shape": [1, ...], "datatype": ..., "data": [...]}]}`."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Never raises for what a payload holds."""
        return _grouped(payloads, self._one)

    def _one(self, payload: bytes) -> tuple[list[Tensor], str | None]:
        request = decode_request(payload)
        layout = self._signature.check(request.tensors)
        if layout.rows != 1:
            raise InvalidInput(f"a message is one row, {layout.rows} came; send each as a message of its own")
        tensors = [request.tensors[at] for at in layout.order]
        for tensor in tensors:
            tensor.array()  # what is malformed is this message's fault, not its batch-mates'
        return tensors, request.id or None


class RawRows:
    """The only input's elements, row-major and little-endian; the whole payload, where the input is text or bytes."""

    def __init__(self, signature: Signature) -> None:
        """Raises SettingsError if there are several inputs, or more than one of its sizes is left open."""
        if len(signature.inputs) != 1:
            raise SettingsError(
                f"payload: raw is for models of one input; this one has {', '.join(map(str, signature.inputs))}"
            )
        (self._spec,) = signature.inputs
        self._kind = DATATYPES[self._spec.datatype]
        inner = self._spec.shape[1:]
        if inner.count(-1) > 1 or (self._kind.kind == "bytes" and any(size not in (1, -1) for size in inner)):
            raise SettingsError(f"payload: raw bytes cannot tell the sizes of {self._spec}")

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Never raises for what a payload holds."""
        return _grouped(payloads, self._one)

    def _one(self, payload: bytes) -> tuple[list[Tensor], str | None]:
        inner = self._spec.shape[1:]
        if self._kind.kind == "bytes":
            shape: Shape = (1, *(1 for _ in inner))
            raw = struct.pack("<I", len(payload)) + payload
        else:
            row = math.prod(size for size in inner if size != -1) * self._kind.itemsize
            free = len(payload) // row if row else 0
            shape = (1, *(free if size == -1 else size for size in inner))
            raw = payload
        tensor = Tensor(self._spec.name, self._spec.datatype, shape, raw)
        tensor.array()
        return [tensor], None


def _grouped(payloads: Sequence[bytes], one: _One) -> Decoded:
    found: dict[tuple[Shape, ...], dict[int, list[Tensor]]] = {}
    ids: list[str | None] = []
    unfit: dict[int, str] = {}
    for place, payload in enumerate(payloads):
        try:
            tensors, id = one(payload)
        except OctoserveError as error:
            unfit[place] = str(error)
            ids.append(None)
        else:
            ids.append(id)
            found.setdefault(tuple(tensor.shape for tensor in tensors), {})[place] = tensors
    return Decoded([Group(_joined(list(rows.values())), list(rows)) for rows in found.values()], ids, unfit)


def _joined(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [
        Tensor.of(first.name, np.concatenate([row[at].array() for row in rows]), first.datatype)
        for at, first in enumerate(rows[0])
    ]

"""Pairs: what two versions answered to the same request. Workers leave them in a spool (`telemetry.spool`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from octoserve.core.comparison import Deviation
from octoserve.core.tensors import Shape, Tensor

SHADOW, NOISE = "shadow", "noise"
"""Kinds of pairs: the candidate's answer against the stable version's; the stable version's against its own."""


class RawTensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor as the Open Inference Protocol's raw form: row-major, little-endian, BYTES with lengths."""

    name: str
    datatype: str
    shape: Shape
    raw: bytes

    @classmethod
    def of(cls, tensor: Tensor) -> RawTensor:
        """A copy that shares nothing with the request it came from."""
        return cls(tensor.name, tensor.datatype, tuple(tensor.shape), bytes(tensor.bytes()))

    def tensor(self) -> Tensor:
        """To read the elements."""
        return Tensor(self.name, self.datatype, self.shape, raw=self.raw)


class Pair(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One mirrored request with both answers. New fields are appended, with a default.

    endpoint, rollout, stratum: whose evidence it is
    time:      wall clock seconds when the stable answer had left
    kind:      SHADOW or NOISE
    key:       what the request was assigned by; None if it carried none
    segments:  segment's name -> the request's value
    stable_version, candidate_version: equal for NOISE
    inputs, stable, candidate: tensors; `candidate` is empty where it failed
    error:     why the candidate has no answer; "" if it has one
    stable_seconds, candidate_seconds: latencies
    differing: output name -> deviation; empty where both agree
    rows, rows_differing: of this request
    """

    endpoint: str
    rollout: str
    time: float
    stable_version: int
    candidate_version: int
    stratum: str = ""
    kind: str = SHADOW
    key: bytes | None = None
    segments: Mapping[str, str] = {}
    inputs: Sequence[RawTensor] = ()
    stable: Sequence[RawTensor] = ()
    candidate: Sequence[RawTensor] = ()
    error: str = ""
    stable_seconds: float = 0.0
    candidate_seconds: float = 0.0
    differing: Mapping[str, Deviation] = {}
    rows: int = 1
    rows_differing: int = 0

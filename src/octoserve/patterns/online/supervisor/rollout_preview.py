"""The preview: the candidate answers its golden samples, and recorded requests, before a client meets it.

Both go through a worker's HTTP door, on a socket of the service's own, to the version by its number: what is tried is
what will answer. No tenant's limits, no promise and no prediction log see it.

`golden.json` in a version's folder is a list of `{"inputs": [...], "outputs": [...]}`, tensors as the Open Inference
Protocol writes them; outputs that it does not name are not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from octoserve.control.rollout.values import Rollout
from octoserve.control.rollout.view import Preview
from octoserve.core.comparison import Comparison
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput
from octoserve.core.tensors import Tensor
from octoserve.patterns.online.link.unix_socket import dial
from octoserve.repository.layout import VersionOnDisk

GOLDEN = "golden.json"
MAX_BYTES = 64 << 20
AGAIN = (0.1, 0.5, 1.0, 2.0)
"""Seconds before a sample that met a busy service is sent again."""
TIMEOUT = 30.0
"""Seconds that one sample may take."""

Recorded = Callable[[str, int], Sequence[Sequence[Tensor]]]
"""The inputs of an endpoint's last n recorded requests; blocking."""


class Previewer:
    """Tries a candidate."""

    def __init__(self, doors: Sequence[Path], recorded: Recorded, pause: Callable[[float], None] = time.sleep) -> None:
        """doors: the workers' sockets inside"""
        self._doors, self._recorded, self._pause = doors, recorded, pause

    async def __call__(self, rollout: Rollout, disk: VersionOnDisk) -> Preview:
        """How it did. What goes wrong is a reason, not an exception."""
        return await asyncio.to_thread(self._try, rollout, Path(disk.path))

    def _try(self, rollout: Rollout, folder: Path) -> Preview:
        try:
            told = self._golden(rollout, folder / GOLDEN) if rollout.course.golden else ""
            if rollout.course.replay:
                told = f"{told}; " * bool(told) + self._replay(rollout)
        except (_Fails, InvalidInput) as error:
            return Preview(False, str(error))
        except (OSError, http.client.HTTPException) as error:
            return Preview(False, f"the service could not be asked: {type(error).__name__}: {error}")
        return Preview(True, told)

    def _golden(self, rollout: Rollout, path: Path) -> str:
        """What there is to say of it. Raises _Fails."""
        if not path.exists():
            return f"no {GOLDEN} beside the model"
        comparison = Comparison(rollout.course.tolerance)
        number = 0
        for number, sample in enumerate(samples_in(path), 1):
            body = msgspec.json.encode({"inputs": sample["inputs"]})
            answer = self._ask(rollout, body, {}, f"{GOLDEN}, sample {number}")
            wanted = [tensor_of(item, path.name) for item in sample["outputs"]]
            names = {tensor.name for tensor in wanted}
            came = [tensor_of(item, "answer") for item in answer["outputs"] if item["name"] in names]
            difference = comparison.compare(wanted, came)
            if not difference.agreed:
                name, deviation = next(iter(difference.outputs.items()))
                raise _Fails(f"{GOLDEN}, sample {number}: output {name!r}: {deviation.reason}")
        return f"golden samples right: {number}"

    def _replay(self, rollout: Rollout) -> str:
        """What there is to say of it. Raises _Fails."""
        requests = self._recorded(rollout.endpoint, rollout.course.replay)
        if not requests:
            raise _Fails(
                f"replay: {rollout.course.replay} recorded requests wanted, none is stored; run a shadow first, "
                "or leave replay out"
            )
        for number, inputs in enumerate(requests, 1):
            body, head = binary_request(inputs)
            header = {"inference-header-content-length": str(head)}
            self._ask(rollout, body, header, f"replayed request {number} of {len(requests)}")
        return f"replayed requests answered: {len(requests)}"

    def _ask(self, rollout: Rollout, body: bytes, headers: dict[str, str], what: str) -> Any:
        """The answer. A service that is busy, or a worker that goes away, is asked again: that is not the candidate."""
        for wait in (*AGAIN, None):
            try:
                status, content = self._send(rollout, body, headers)
            except (ConnectionError, FileNotFoundError, http.client.HTTPException):  # the second: it listens anew
                if wait is None:
                    raise
                status, content = 503, b""
            if status == 200:
                return msgspec.json.decode(content)
            if wait is None or status not in (429, 503):
                raise _Fails(f"{what}: answered {status}: {content[:300].decode('utf-8', 'replace')}")
            self._pause(wait)
        raise AssertionError("the last answer was looked at")

    def _send(self, rollout: Rollout, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = self._connection()
        with contextlib.closing(connection):
            path = f"/v2/models/{quote(rollout.endpoint, safe='')}/versions/{rollout.candidate}/infer"
            connection.request("POST", path, body, {"content-type": "application/json", **headers})
            came = connection.getresponse()
            return came.status, came.read()

    def _connection(self) -> http.client.HTTPConnection:
        there = [path for path in self._doors if path.exists()]
        if not there:
            raise ConnectionError("no worker listens")
        return _Inside(random.choice(there))


class _Inside(http.client.HTTPConnection):
    """Over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = dial(self._path, TIMEOUT)


class _Fails(Exception):
    """The candidate did not do what it should."""


def samples_in(path: Path) -> list[dict[str, Any]]:
    """The golden samples of a version. Raises InvalidInput that says what was wanted."""
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInput(f"{path.name} is larger than {MAX_BYTES} bytes")
    try:
        samples = msgspec.json.decode(path.read_bytes(), type=list[dict[str, list[dict[str, Any]]]])
    except msgspec.MsgspecError as error:
        raise InvalidInput(f'{path.name}: a list of {{"inputs": [...], "outputs": [...]}} wanted: {error}') from None
    for number, sample in enumerate(samples, 1):
        if not sample.keys() >= {"inputs", "outputs"}:
            raise InvalidInput(f"{path.name}, sample {number}: inputs and outputs wanted, {sorted(sample)} came")
    return samples


def tensor_of(item: dict[str, Any], where: str) -> Tensor:
    """A tensor from the protocol's JSON form. Raises InvalidInput."""
    try:
        kind = DATATYPES[item["datatype"]]
        data = np.array(_flat(item["data"]), dtype=object)
        if kind.kind == "bytes":
            data = np.array([v.encode() if isinstance(v, str) else v for v in data] or [], dtype=object)
        else:
            data = data.astype(np.float64 if kind.kind == "float" else kind.dtype).astype(kind.dtype)
        return Tensor(item["name"], kind.name, tuple(item["shape"]), values=data.reshape(item["shape"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{where}: no tensor of the Open Inference Protocol: {error!r}") from None


def _flat(data: Any) -> list[Any]:
    return [leaf for item in data for leaf in _flat(item)] if isinstance(data, list) else [data]


def binary_request(inputs: Sequence[Tensor]) -> tuple[bytes, int]:
    """A request with binary tensors, and the length of its JSON part."""
    raws = [bytes(tensor.bytes()) for tensor in inputs]
    head = msgspec.json.encode(
        {
            "inputs": [
                {"name": t.name, "datatype": t.datatype, "shape": t.shape, "parameters": {"binary_data_size": len(raw)}}
                for t, raw in zip(inputs, raws, strict=True)
            ]
        }
    )
    return head + b"".join(raws), len(head)

"""Which version a message belongs to: the route plan's split, by a key that the message carries.

The key is the plan's own expression (`routing.key`): `message:key`, `header:NAME`, or `input:NAME` (`column:NAME`),
which is the field NAME of a JSON payload and the first element of that tensor in a request. A message without it goes
by its id, so that it is sticky too: one that comes again meets the same version, as long as the plan stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from octoserve.codecs.json_rows import ID, Read, message_id
from octoserve.codecs.open_inference_json import decode_request
from octoserve.connectors.queues.protocol import Message
from octoserve.core.errors import InvalidInput, OctoserveError, SettingsError
from octoserve.core.evidence import STABLE
from octoserve.core.results import Result
from octoserve.core.tensors import Tensor
from octoserve.dataplane.call import Call
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.split import ArmRoute, Split
from octoserve.patterns.message_queue.scoring import identity
from octoserve.routing.key import HEADER, INPUT, MESSAGE, PARAMETER, KeySource, parse_key
from octoserve.routing.plan import RoutePlan

DOOR, COLUMN = "queue", "column"


class Peeked(NamedTuple):
    """What can be told of a message before it is decoded for a version."""

    own_id: str | None = None
    inputs: Sequence[Tensor] = ()
    parameters: Mapping[str, Any] = {}


class MessageCall(Call):
    """A message as a split sees it. Where copies of it may be wanted, its row of a run stands in for its inputs."""

    door = DOOR
    rows = 1

    def __init__(self, model: str, message: Message, peeked: Peeked) -> None:
        super().__init__(model, "", peeked.inputs)
        self._headers = message.headers
        self._parameters = peeked.parameters

    def header(self, name: str) -> str | None:
        """See `Call.header`."""
        return _header(self._headers, name)

    def parameter(self, name: str) -> object:
        """See `Call.parameter`."""
        return self._parameters.get(name)

    def answered(self) -> None:
        """Nobody waits for it here: its result goes to the sink with the micro-batch's."""

    def ran_as(self, columns: Sequence[Tensor], result: Result) -> None:
        """It was this row of a run."""
        at = result.start
        self.inputs = [Tensor.of(t.name, t.array()[at : at + 1], t.datatype) for t in columns]
        self.result = result


class Part(NamedTuple):
    """Messages that one arm scores. places: in the micro-batch; calls: of those that are counted, in that order."""

    version: int
    role: str
    places: Sequence[int]
    calls: Sequence[MessageCall] = ()
    arm: ArmRoute | None = None


class Picker:
    """Parts micro-batches by the plan that the data plane has. payload: see `QueueSettings`; read: of records."""

    def __init__(self, plane: DataPlane, model: str, payload: str, read: Read | None = None) -> None:
        self._plane = plane
        self._model = model
        self._payload = payload
        self._read = read
        self._peek: Peek | None = None

    @property
    def stable(self) -> int:
        """The version that is trusted now."""
        plan = self._plane.plan(self._model)
        assert plan is not None, "a plan comes first"
        return plan.stable

    def parts(self, messages: Sequence[Message], tried: bool) -> list[Part]:
        """Every message in one of them. tried: they have failed before, and are the stable version's."""
        split = self._plane.splits.by_endpoint.get(self._model)
        if split is None or tried:
            return [Part(self.stable, "", range(len(messages)))]
        peek = self._peeking(split.plan)
        found: dict[ArmRoute, tuple[list[int], list[MessageCall]]] = {}
        for place, message in enumerate(messages):
            call = self._bound(split, peek, message)
            assert call.arm is not None
            places, calls = found.setdefault(call.arm, ([], []))
            places.append(place)
            calls.append(call)
        return [Part(arm.version, arm.role, places, calls, arm) for arm, (places, calls) in found.items()]

    def _peeking(self, plan: RoutePlan) -> Peek:
        if self._peek is None or self._peek.plan is not plan:
            self._peek = Peek(plan, self._payload, self._read)
        return self._peek

    def _bound(self, split: Split, peek: Peek, message: Message) -> MessageCall:
        peeked = peek.look(message)
        call = MessageCall(self._model, message, peeked)
        call.key = peek.key_of(message, peeked)
        split.choose(call)
        return call


class Peek:
    """What one plan goes by, read from messages."""

    def __init__(self, plan: RoutePlan, payload: str, read: Read | None = None) -> None:
        self._read = read
        self.plan = plan
        self._payload = payload
        self._key = parse_key(plan.key) if plan.key else None
        sources = [*([self._key] if self._key else []), *map(parse_key, plan.segments)]
        self._fields = _fields(sources)
        fields: list[Any] = [(f"f{i}", Any, None) for i in range(len(self._fields))]
        names = {f"f{i}": name for i, name in enumerate(self._fields)}
        if ID not in self._fields:
            fields.append(("own_id", Any, None))
            names["own_id"] = ID
        self._decode = msgspec.json.Decoder(msgspec.defstruct("Peek", fields, rename=names)).decode

    def look(self, message: Message) -> Peeked:
        """Never raises: of what cannot be read nothing is known, and whoever scores it says why."""
        try:
            if self._read is not None:
                return self._known(self._read(message.value))
            if self._payload == "json":
                return self._row(message.value)
            if self._payload == "open-inference":
                request = decode_request(message.value)
                return Peeked(request.id or None, request.tensors, request.parameters or {})
        except (msgspec.MsgspecError, OctoserveError, ValueError, RecursionError):
            pass
        return Peeked()

    def _row(self, payload: bytes) -> Peeked:
        values = msgspec.structs.astuple(self._decode(payload))
        return self._known(dict(zip((*self._fields, ID), values, strict=False)))

    def _known(self, cells: Mapping[str, Any]) -> Peeked:
        inputs = [tensor for name in self._fields if (tensor := _tensor(name, cells.get(name))) is not None]
        try:
            own = message_id(cells.get(ID))
        except InvalidInput:
            own = None
        return Peeked(own, inputs)

    def key_of(self, message: Message, peeked: Peeked) -> bytes | None:
        """The key; None where the split reads it itself, and refuses what cannot be one."""
        source = self._key
        if source is not None:
            if source.kind == MESSAGE and message.key is not None:
                return message.key
            if source.kind == HEADER and _header(message.headers, source.name) is not None:
                return None
            if source.kind == INPUT and any(tensor.name == source.name for tensor in peeked.inputs):
                return None
            if source.kind == PARAMETER and peeked.parameters.get(source.name) is not None:
                return None
        return identity(message, peeked.own_id).encode()


def rekeyed(plan: RoutePlan, key: str, payload: str) -> RoutePlan:
    """The plan as a queue carries it out: by another key, if one is given; what a proxy draws is drawn here.

    key: an expression, or a field's name. Raises SettingsError for one that no message of this kind can carry.
    """
    if key and ":" not in key:
        key = f"{COLUMN}:{key}"
    source = parse_key(key or plan.key) if key or plan.key else None
    if key and source is not None:
        if source.kind == PARAMETER and payload != "open-inference":
            raise SettingsError(f"plan_key: {source} is of requests, a payload of {payload} has no parameters")
        if source.kind == INPUT and payload == "raw":
            raise SettingsError(
                f"plan_key: {source}: a raw payload has no fields; message:key or header:NAME is wanted"
            )
    return msgspec.structs.replace(plan, key=key or plan.key, by_proxy=False)


def _fields(sources: Iterable[KeySource]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(source.name for source in sources if source.kind == INPUT))


def _header(headers: Mapping[str, str], name: str) -> str | None:
    """name: in lower case."""
    if name in headers:
        return headers[name]
    return next((value for key, value in headers.items() if key.lower() == name), None)


def _tensor(name: str, value: Any) -> Tensor | None:
    """A field as the split reads it: the bytes of a key, or a float, which it refuses; None where it is missing."""
    while isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, float):
        return Tensor.of(name, np.array([value]), "FP64")
    if isinstance(value, bool):
        text = b"true" if value else b"false"
    elif isinstance(value, int | str):
        text = str(value).encode()
    else:
        return None
    cells = np.empty(1, dtype=object)
    cells[0] = text
    return Tensor.of(name, cells, "BYTES")


def judged(plan: RoutePlan, role: str) -> bool:
    """Whether an arm's latencies are compared: the candidate's, and those of what it is compared with."""
    roles = {arm.role for arm in plan.arms if arm.hi > arm.lo}
    return bool(plan.stratum) and len(roles) > 1 and (role != STABLE or len(roles) == 2)

"""JSON values that say neither datatype nor shape: the version's signature does.

Numbers are never cast. Beside plain values, three things are taken that JSON or its users have ways of their own for:
the words "NaN", "Infinity" and "-Infinity", `{"b64": "AAE="}` for bytes, and `[v]` for a single v and the other way
round. Each type has two decoders: one for what nearly everybody sends, and one that takes these too.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from octoserve.codecs.large_json import LARGE, no_collections
from octoserve.codecs.row_tensors import KINDS, lists_of
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, TooLarge, Unsupported
from octoserve.core.packing import pack
from octoserve.core.signature import TensorSpec
from octoserve.core.tensors import Buffer, Tensor

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_BARE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|(?<![\w"])-?(?:NaN|Infinity)(?![\w"])', re.DOTALL)
"""A text to pass over, to the end where it is not closed, or a bare word. Never goes back: that would be quadratic."""
_MAX_BARE = 4 << 20
"""Bytes of a body in which bare words are looked for: that takes ten times as long as reading it."""
_EMPTY = re.compile(rb"\[\s*\]")
_MAX_EMPTY = 4096
_BAD = (msgspec.DecodeError, UnicodeDecodeError)  # a ValidationError is a DecodeError


class Base64(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes that are no text: `{"b64": "AAE="}`."""

    b64: bytes


LENIENT: dict[str, Any] = {
    **KINDS,
    "float": float | Literal["NaN", "Infinity", "-Infinity"],
    "bytes": str | Base64,
}
"""The type of an element with its other spellings, by its datatype's kind."""


def element(value: Any, kind: str) -> Any:
    """An element that came in another spelling."""
    if type(value) is str and kind == "float":
        return _WORDS[value]
    return value.b64 if type(value) is Base64 else value


def unwrapped(value: Any, kind: str, name: str) -> Any:
    """An element, also where it came as `[v]`. Raises InvalidInput for a longer list."""
    if type(value) is list:
        if len(value) != 1:
            raise InvalidInput(f"{name!r}: one value is wanted, a list of {len(value)} came")
        return element(value[0], kind)
    return element(value, kind)


def parsed(text: str, kind: str, name: str, row: int) -> Any:
    """An element from its text, as CSV has it; None for a number that is missing. Raises InvalidInput."""
    if kind == "bytes":
        return text
    text = text.strip()
    if not text:
        return None
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if "_" not in text:  # which Python would take
            return float(text) if kind == "float" else int(text)
    except (ValueError, KeyError):
        pass
    wanted = {"bool": "true or false", "float": "a number", "int": "a whole number"}[kind]
    raise InvalidInput(f"row {row}: {name}: {wanted} is wanted, {text[:60]!r} came")


def parsed_all(texts: Sequence[str], kind: str, name: str, row: int = 0) -> list[Any]:
    """See `parsed`. row: that they are of; 0 for texts of a row each, from the first."""
    if kind in ("float", "int") and "_" not in "".join(texts):
        with contextlib.suppress(ValueError):  # one that is missing, or no number: which it is takes longer
            return list(map(float if kind == "float" else int, texts))
    return [parsed(text, kind, name, row or at) for at, text in enumerate(texts, 1)]


class Pair:
    """The two decoders of a type."""

    def __init__(self, strict: Any, lenient: Any) -> None:
        self.strict = msgspec.json.Decoder(strict).decode
        self.lenient = msgspec.json.Decoder(lenient).decode

    def decode(self, text: Buffer, what: str) -> tuple[Any, bool]:
        """The value, and whether it may hold other spellings. Raises InvalidInput, TooLarge."""
        try:
            try:
                return self.strict(text), False
            except msgspec.ValidationError as error:
                try:
                    return self.lenient(text), True
                except msgspec.ValidationError:
                    raise error from None  # it says plainly what is wanted
        except _BAD as error:
            raise InvalidInput(f"{what}: {error}") from None
        except RecursionError:
            raise TooLarge(f"{what}: nested too deep") from None


def decode_frame(body: Buffer, frame: Callable[[Buffer], Any], what: str) -> Any:
    """A body's outermost object. Bare NaN and Infinity, which JSON has not, are taken as their words.

    Raises InvalidInput, TooLarge.
    """
    try:
        try:
            return frame(body)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            text = bytes(body)
            if b"NaN" not in text and b"Infinity" not in text:
                raise
            if len(text) > _MAX_BARE:
                raise TooLarge(
                    f"a body of {len(text)} bytes that is not JSON came; bare NaN and Infinity are taken in up to "
                    f"{_MAX_BARE} bytes: quote them, or send fewer rows at a time"
                ) from None
            quoted = _BARE.sub(lambda found: found[0] if found[0][:1] == b'"' else b'"%b"' % found[0], text)
            if len(quoted) == len(text):
                raise
            return frame(quoted)
    except _BAD as error:
        raise InvalidInput(f"{what} is wanted: {error}") from None
    except RecursionError:
        raise TooLarge("the body is nested too deep") from None


class InputReader:
    """One input's values, nested as its shape."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self._kind = DATATYPES[spec.datatype]
        self.kind = self._kind.kind
        rank = len(spec.shape)
        strict, lenient = lists_of(KINDS[self.kind], rank), lists_of(LENIENT[self.kind], rank)
        if rank == 1 or (rank == 2 and spec.shape[1] == 1):
            lenient = lists_of(LENIENT[self.kind] | lists_of(LENIENT[self.kind], 1), 1)
        self.types = strict, lenient
        self._pair = Pair(strict, lenient)

    def read(self, text: Buffer, what: str) -> Tensor:
        """The input. Raises InvalidInput, TooLarge."""
        value, lenient = self._pair.decode(text, what)
        return self.tensor(self.plain(value) if lenient else value)

    def plain(self, value: Any) -> Any:
        """A value of the lenient type as one of the strict type."""
        return self._plain(value, len(self.spec.shape))

    def _plain(self, value: Any, depth: int) -> Any:
        if depth == 0:
            return unwrapped(value, self.kind, self.spec.name)
        if type(value) is not list:
            return [element(value, self.kind)]
        return [self._plain(item, depth - 1) for item in value]

    def tensor(self, value: Any) -> Tensor:
        """The input from a value of the strict type. Raises InvalidInput."""
        spec = self.spec
        if spec.datatype == "BF16":
            raise Unsupported(f"input {spec.name!r}: BF16 has no JSON form; send the Open Inference Protocol's binary")
        if not spec.shape:
            return Tensor(spec.name, spec.datatype, (), pack([value], self._kind, spec.name))
        shape = [len(value)]
        if len(value) == 1 and len(spec.shape) == 2:  # one row: nothing to compare
            value = value[0]
            shape.append(len(value))
        else:
            value = self._flat(value, shape)
        if self.kind == "bytes":
            value = [item if type(item) is bytes else item.encode() for item in value]
        return Tensor(spec.name, spec.datatype, tuple(shape), pack(value, self._kind, spec.name))

    def _flat(self, value: Any, shape: list[int]) -> Any:
        """The elements of nested lists; `shape` gets the lengths below the first. Raises InvalidInput."""
        spec = self.spec
        for axis, wanted in enumerate(spec.shape[1:], 1):
            sizes = set(map(len, value))
            if len(sizes) > 1:
                raise InvalidInput(f"input {spec}: lists of unequal lengths came in dimension {axis}")
            shape.append(sizes.pop() if sizes else max(wanted, 0))
            value = list(itertools.chain.from_iterable(value))
        return value


def struct_of(names: Sequence[str], types: Sequence[Any]) -> Any:
    """An object that may have these members; what it lacks is None."""
    members: list[Any] = [(f"f{i}", kind | None, None) for i, kind in enumerate(types)]
    return msgspec.defstruct("Row", members, rename={f"f{i}": name for i, name in enumerate(names)})


Read = Callable[[Buffer, str], list[Tensor]]


def carefully(read: Read, text: Buffer, what: str) -> list[Tensor]:
    """Read a text; a big one that is mostly empty lists is refused, since they cost their sender little and us much.

    Raises TooLarge.
    """
    if len(text) <= LARGE:
        return read(text, what)
    if sum(1 for _ in itertools.islice(_EMPTY.finditer(text), _MAX_EMPTY + 1)) > _MAX_EMPTY:
        raise TooLarge(f"{what}: more than {_MAX_EMPTY} empty lists came")
    with no_collections():
        return read(text, what)


def shown(text: Buffer) -> str:
    """The beginning of a text, for an error."""
    return bytes(text[:60]).decode(errors="replace")

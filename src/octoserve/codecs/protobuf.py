"""Protobuf messages by the text of their schemas, in plain values: what JSON rows are made of.

Fields go by their names in the schema. A field that knows whether it was set (`optional`, a message, proto2) and was
not, is missing; any other that was not sent is its type's zero, which is what its sender means. An enum is the name of
its value, a wrapper (`google.protobuf.DoubleValue`) what it holds, a `Timestamp` its text as in Protobuf's JSON.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from octoserve.codecs.framed import message_path
from octoserve.core.errors import InvalidInput, SettingsError

_NAME = "octoserve_schema.proto"
_LONGEST = 20.0
"""Seconds that the compiler may take."""
_WRAPPERS = {
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
}
_TIMESTAMP = "google.protobuf.Timestamp"
_Field = descriptor_pb2.FieldDescriptorProto
_Get = Callable[[Any], Any]


def library() -> None:
    """The compiler is there. Raises SettingsError where it is missing."""
    if importlib.util.find_spec("grpc_tools") is None:
        raise SettingsError(
            "payload: protobuf needs the package grpcio-tools; install it with pip install 'octoserve[registry]'"
        )


class _Kind(NamedTuple):
    """A message of the schema. fields: name -> how its value is had."""

    make: type[Message]
    fields: dict[str, _Get]


class ProtobufSchema:
    """One schema, which may hold many messages, read and written by."""

    def __init__(self, text: str, references: Mapping[str, str] | None = None) -> None:
        """references: what it imports, by the names that it does. Raises InvalidInput for what is no schema."""
        library()
        files = descriptor_pb2.FileDescriptorSet.FromString(_compiled({**(references or {}), _NAME: text}))
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:  # in the order of their imports
            pool.Add(file)
        self._pool = pool
        self._file = next(file for file in files.file if file.name == _NAME)
        self._kinds: dict[tuple[int, ...], _Kind] = {}

    def read(self, content: bytes) -> Mapping[str, Any]:
        """The fields of a record, which says first which message it is. Raises InvalidInput."""
        path, data = message_path(content)
        kind = self._kinds.get(path) or self._kind(path)
        try:
            message = kind.make.FromString(data)
            return {name: get(message) for name, get in kind.fields.items()}
        except (DecodeError, ValueError) as error:  # ValueError: a time that no calendar has
            raise InvalidInput(f"the bytes are no {kind.make.DESCRIPTOR.full_name}: {error}") from None

    def write(self, record: Mapping[str, Any]) -> bytes:
        """The first message of the schema, made of JSON values. Raises InvalidInput."""
        kind = self._kinds.get((0,)) or self._kind((0,))
        try:
            return b"\0" + json_format.ParseDict(dict(record), kind.make()).SerializeToString()
        except (json_format.ParseError, ValueError, TypeError) as error:
            raise InvalidInput(f"it does not fit the Protobuf schema: {error}") from None

    def _kind(self, path: tuple[int, ...]) -> _Kind:
        messages, name = self._file.message_type, self._file.package
        found = None
        for step in path:
            if not 0 <= step < len(messages):
                raise InvalidInput(f"the Protobuf schema has no message {'.'.join(map(str, path))}")
            found = messages[step]
            name = f"{name}.{found.name}" if name else found.name
            messages = found.nested_type
        assert found is not None, "a path has a step"
        make = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))
        kind = _Kind(make, {field.name: _getter(field, make) for field in found.field})
        self._kinds[path] = kind
        return kind


def _getter(field: Any, make: type[Message]) -> _Get:
    """How a field's value is had of a message."""
    name, described = field.name, make.DESCRIPTOR.fields_by_name[field.name]
    plain = _plain_of(described)
    if field.label == _Field.LABEL_REPEATED:
        if described.message_type is not None and described.message_type.GetOptions().map_entry:
            return lambda message: {}
        return lambda message: [plain(each) for each in getattr(message, name)]
    if described.has_presence and not described.has_default_value:
        return lambda message: plain(getattr(message, name)) if message.HasField(name) else None
    return lambda message: plain(getattr(message, name))


def _plain_of(described: Any) -> _Get:
    """A value as a row may hold it; of a message that is no value, an object, which no input is made of."""
    if described.enum_type is not None:
        names = {number: value.name for number, value in described.enum_type.values_by_number.items()}
        return lambda value: names.get(value, value)
    if described.message_type is None:
        return lambda value: value
    whose = described.message_type.full_name
    if whose in _WRAPPERS:
        return lambda value: value.value
    if whose == _TIMESTAMP:
        return lambda value: value.ToJsonString()
    return lambda value: {}


def _compiled(texts: Mapping[str, str]) -> bytes:
    """The descriptors of these files and of all that they import; in a process of its own. Raises InvalidInput."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, text in texts.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise InvalidInput(f"no Protobuf schema: it rests on {name!r}, which is no name of an import")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        out = root / "descriptors"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}"]
        command += ["--include_imports", f"--descriptor_set_out={out}", _NAME]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, cwd=root)
        except subprocess.TimeoutExpired:
            raise InvalidInput(f"no Protobuf schema: to compile it takes longer than {_LONGEST:g} s") from None
        if done.returncode:
            said = done.stderr.replace(f"{root}/", "").splitlines()
            told = " ".join(line for line in said if line.startswith(tuple(texts)))  # but for warnings of its own
            why = " ".join(told.replace(f"{_NAME}:", "line ").split())[:200]
            raise InvalidInput(f"no Protobuf schema: {why}")
        return out.read_bytes()

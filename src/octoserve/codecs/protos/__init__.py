"""Message classes of the gRPC protocols, from their compiled descriptors.

They live in a descriptor pool of their own, so that a process may also import a client library which
brings the same protocol (tritonclient, kserve) without the two claiming one name.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@functools.cache
def files() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The compiled files by name."""
    data = Path(__file__).with_name("descriptors.bin").read_bytes()
    return {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(data).file}


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in files().values():
        pool.Add(file)
    return pool


@functools.cache
def message(name: str) -> Any:
    """The class of a message by its full name, e.g. `inference.ModelInferRequest`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


def file_of_symbol(symbol: str) -> str | None:
    """The file that defines a service, method or message; None if none does."""
    for find in (_pool().FindFileContainingSymbol, lambda name: _pool().FindMethodByName(name).containing_service.file):
        try:
            return str(find(symbol).name)
        except KeyError:
            continue
    return None

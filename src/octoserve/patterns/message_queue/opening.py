"""From the addresses of a source and a sink to what they name. Which schemes there are, `app` says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from octoserve.connectors.queues.address import Address, parse
from octoserve.connectors.queues.answers import AnswerStore
from octoserve.connectors.queues.protocol import QueueSink, QueueSource, QueueTools
from octoserve.connectors.queues.schema_registry import SchemaRegistry
from octoserve.core.errors import SettingsError
from octoserve.patterns.message_queue.ledger import Ledger, SqliteLedger
from octoserve.patterns.message_queue.settings import RECORDS, REQUESTS, QueueSettings
from octoserve.runtimes.protocol import Runtime

if TYPE_CHECKING:
    from octoserve.patterns.message_queue.schemas import Schemas

T = TypeVar("T")


class Kinds(NamedTuple):
    """By scheme. Nothing is connected to yet when one is made.

    tools:   what `send`, `tail`, `lag` and `dlq` use; told the state directory
    ledgers: of sinks whose database several machines may share, which attempts are kept in; told the source's name, the
             owner, and how others have died
    answers: of sinks that asynchronous requests are answered from
    """

    runtimes: Mapping[str, Runtime]
    sources: Mapping[str, Callable[[Address, QueueSettings], QueueSource]]
    tools: Mapping[str, Callable[[Address, Path], QueueTools]]
    sinks: Mapping[str, Callable[[Address], QueueSink]]
    ledgers: Mapping[str, Callable[[Address, str, str, Mapping[str, str]], Ledger]]
    answers: Mapping[str, Callable[[Address], AnswerStore]]


def source(kinds: Kinds, settings: QueueSettings) -> QueueSource:
    """Raises SettingsError."""
    address = parse(settings.source, "source")
    return _chosen(kinds.sources, address)(address, settings)


def tools(kinds: Kinds, text: str, state_dir: Path) -> QueueTools:
    """Raises SettingsError."""
    address = parse(text, "source")
    return _chosen(kinds.tools, address)(address, state_dir)


def sink(kinds: Kinds, settings: QueueSettings) -> QueueSink:
    """Raises SettingsError."""
    address = parse(settings.sink, "sink")
    return _chosen(kinds.sinks, address)(address)


def answers(kinds: Kinds, settings: QueueSettings) -> AnswerStore | None:
    """What polls are answered from, where the sink is such a place. Raises SettingsError."""
    address = parse(settings.sink, "sink")
    known = kinds.answers.get(address.scheme)
    return known(address) if known is not None and settings.payload == REQUESTS else None


def schemas(settings: QueueSettings) -> Schemas | None:
    """What payloads are read by, where they are records. Raises SettingsError."""
    if settings.payload not in RECORDS:
        return None
    from octoserve.patterns.message_queue.schemas import Schemas

    return Schemas(settings.payload, SchemaRegistry(settings.schema_registry, os.environ))


def ledger(kinds: Kinds, settings: QueueSettings, source: str, owner: str, ends: Mapping[str, str]) -> Ledger:
    """Where attempts are kept: with the sink if others may share it, else in the state directory."""
    address = parse(settings.sink, "sink")
    shared = kinds.ledgers.get(address.scheme)
    if shared is not None:
        return shared(address, source, owner, ends)
    return SqliteLedger(Path(settings.state_dir), source, owner, ends)


def _chosen(kinds: Mapping[str, T], address: Address) -> T:
    try:
        return kinds[address.scheme]
    except KeyError:
        known = ", ".join(kinds)
        raise SettingsError(f"{address.setting}: unknown kind {address.scheme!r}; known: {known}") from None

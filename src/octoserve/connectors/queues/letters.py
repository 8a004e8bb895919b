"""A dead letter as the headers of a message, and back: the same for every broker."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from octoserve.connectors.queues.protocol import HISTORY_HEADER, ID_HEADER, ORIGIN_HEADER, DeadLetter, Failure, Message

_CUT = 200
"""Letters of an error that are left where there is little room."""


def about(letter: DeadLetter, room: int | None = None) -> str:
    """All of it but what lies in the message itself, as JSON; in `room` bytes with less of its history, or none."""
    plain = msgspec.structs.replace(letter, value=b"", key=None, headers={})
    text = b""
    for history in _shorter(letter.history):
        text = msgspec.json.encode(msgspec.structs.replace(plain, history=history))
        if room is None or len(text) <= room:
            break
    return text.decode()


def _shorter(history: tuple[Failure, ...]) -> list[tuple[Failure, ...]]:
    last = history[-1:]
    cut = tuple(msgspec.structs.replace(each, error=each.error[:_CUT]) for each in last)
    return [history, last, cut, ()]


def letter_of(message: Message, sequence: str, key: bytes | None = None, apart: Collection[str] = ()) -> DeadLetter:
    """What lies in a dead-letter queue. sequence: its place there; apart: headers that are the queue's own."""
    headers = message.headers
    try:
        found = msgspec.json.decode(headers.get(HISTORY_HEADER, ""), type=DeadLetter)
    except msgspec.MsgspecError:  # somebody else laid it there
        found = DeadLetter(
            id=headers.get(ID_HEADER, message.name), source="", origin=message.name, attempts=0, history=(),
            published=message.published, buried=message.published,
        )  # fmt: skip
    own = (HISTORY_HEADER, ORIGIN_HEADER, *apart)
    rest = {name: value for name, value in headers.items() if name not in own}
    return msgspec.structs.replace(found, key=key, headers=rest, value=message.value, sequence=sequence)

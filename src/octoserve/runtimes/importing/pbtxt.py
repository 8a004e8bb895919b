"""Protobuf's text form, as far as Triton's `config.pbtxt` uses it, without its schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from octoserve.core.errors import SettingsError

_TOKEN = re.compile(
    r'\s+|#[^\n]*|(?P<text>"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')|(?P<word>[\w.+-]+)|(?P<mark>[{}\[\]:,;<>])'
)
_DEPTH = 32

Message = dict[str, list[Any]]
"""Field -> its values, in order: texts and words as `str`, messages as `Message`."""


def parse(text: str, where: str) -> Message:
    """Raises SettingsError."""
    tokens = _tokens(text, where)
    return _message(tokens, "", where, 0)


def _tokens(text: str, where: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            line = text.count("\n", 0, at) + 1
            raise SettingsError(f"{where}: line {line} cannot be read: {text[at : at + 20]!r}")
        at = found.end()
        if found.lastgroup == "text":
            yield "value", re.sub(r"\\(.)", r"\1", found["text"][1:-1])
        elif found.lastgroup == "word":
            yield "word", found["word"]
        elif found.lastgroup == "mark" and found["mark"] not in ",;":
            yield "mark", found["mark"]


def _message(tokens: Iterator[tuple[str, str]], end: str, where: str, depth: int) -> Message:
    message: Message = {}
    if depth > _DEPTH:
        raise SettingsError(f"{where}: nested deeper than {_DEPTH}")
    for kind, word in tokens:
        if kind == "mark" and word == end:
            return message
        if kind != "word":
            raise SettingsError(f"{where}: a field's name is wanted, {word!r} came")
        kind, value = next(tokens, ("mark", ""))
        if (kind, value) == ("mark", ":"):
            kind, value = next(tokens, ("mark", ""))
        values = message.setdefault(word, [])
        if (kind, value) == ("mark", "["):
            for kind, value in tokens:
                if (kind, value) == ("mark", "]"):
                    break
                values.append(_value(tokens, kind, value, where, depth))
            else:
                raise SettingsError(f"{where}: the list of {word!r} does not end")
        else:
            values.append(_value(tokens, kind, value, where, depth))
    if end:
        raise SettingsError(f"{where}: it ends before its {end!r}")
    return message


def _value(tokens: Iterator[tuple[str, str]], kind: str, value: str, where: str, depth: int) -> Any:
    if kind != "mark":
        return value
    if value not in "{<" or not value:
        raise SettingsError(f"{where}: a value is wanted, {value!r} came")
    return _message(tokens, "}" if value == "{" else ">", where, depth + 1)

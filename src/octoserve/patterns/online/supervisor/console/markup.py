"""HTML and SVG as values that escape what they are given: text becomes markup by `el` alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_SPECIAL = re.compile(r"[&<>\"'\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""All that escaping changes: most text has none of it."""

Attribute = str | int | float | bool | None


class Markup(str):
    """Text that is markup already. Only `el` and constants of this package make it."""

    __slots__ = ()


Child = Markup | str | int | None | Iterable["Child"]


def text(value: object) -> Markup:
    """Any value as text that a browser shows as it is."""
    shown = str(value)
    if _SPECIAL.search(shown) is None:
        return Markup(shown)
    return Markup(escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", shown)))


def join(*children: Child) -> Markup:
    """Children one after the other: markup as it is, all else escaped, None left out."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str | int):
            parts.append(text(child))
        else:
            parts.append(join(*child))
    return Markup("".join(parts))


def el(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """An element. `class_` is class, `_` in a name is `-`; None and False leave an attribute out, True has no value.

    `viewBox` and the like keep their capitals; nothing here closes itself, so the same text is HTML and SVG in HTML.
    """
    head = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        head.append(name if value is True else f'{name}="{text(value)}"')
    opened = f"<{' '.join(head)}>"
    return Markup(opened if tag in _VOID else f"{opened}{join(*children)}</{tag}>")


def slug(name: str) -> str:
    """A name as an id that every browser and stylesheet takes; different names give different ids."""
    return _UNSAFE.sub(lambda found: f".{ord(found.group()):x}.", name)


def hidden(*children: Child) -> Markup:
    """Words for who listens, not for who looks."""
    return el("span", *children, class_="unseen")

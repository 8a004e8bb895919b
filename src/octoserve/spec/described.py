"""What fields are for, as their docstrings say: read from the sources when somebody asks, since it takes time.

pydantic's `use_attribute_docstrings` reads them whenever the classes are made, which is every start.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from octoserve.spec.values import Section


def description(section: type[Section], field: str) -> str:
    """Of a field of the class or of one it inherits from; "" for none."""
    for owner in section.__mro__:
        if found := _of_module(owner.__module__).get((owner.__qualname__, field)):
            return found
    return ""


def describe(schema: dict[str, Any], root: type[Section]) -> None:
    """Add the fields' descriptions to a JSON Schema that pydantic made of `root`."""
    parts = {root.__name__: schema, **schema.get("$defs", {})}
    for section in _below(Section):
        shown = parts.get(section.__name__, {}).get("properties", {})
        for name, field in section.model_fields.items():
            key = field.alias or name
            if key in shown and (text := description(section, name)):
                shown[key]["description"] = text


def _below(section: type[Section]) -> Iterator[type[Section]]:
    for child in section.__subclasses__():
        yield child
        yield from _below(child)


@functools.cache
def _of_module(name: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the string that stands below the field."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (OSError, TypeError):
        return {}
    return {
        (owner.name, field.target.id): inspect.cleandoc(text.value.value)
        for owner in tree.body
        if isinstance(owner, ast.ClassDef)
        for field, text in pairwise(owner.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }

"""The values of settings: how a duration, a size, a share is written, and what an error asks for."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from octoserve.core.names import label_problem

_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_SIZES = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_FRACTION = re.compile(r"(\d+(?:\.\d+)?(?=\s*%)|\d*\.\d+(?:e-\d+)?|\d+e-\d+|0)\s*(%?)")
_CREDENTIALS = frozenset({"authorization", "proxy-authorization", "x-api-key", "cookie"})
_POLICY = re.compile(r"latest(:[1-9]\d*)?|all|specific:[1-9]\d*(,[1-9]\d*)*")


def parse_duration(value: Any) -> Any:
    """Seconds from `20ms`, `30s`, `1.5m`, `1h`, `90d` or a number of seconds; ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    found = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or found[2] not in _TIMES:
        raise ValueError("a duration such as 20ms, 30s or 2m")
    return float(found[1]) * _TIMES[found[2]]


def parse_size(value: Any) -> Any:
    """Bytes from `64MB`, `512KB`, `1GB` (powers of 1024) or a number of bytes; ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = found[2].upper().replace("IB", "B") if found is not None else "?"
    if found is None or unit not in _SIZES:
        raise ValueError("a size such as 64MB, 512KB or 1GB")
    return int(float(found[1]) * _SIZES[unit])


def parse_policy(value: Any) -> Any:
    """The text form of a version policy, from it or from `{latest: 2}`, `{specific: [1, 2]}`, `{all: }`."""
    if isinstance(value, dict) and len(value) == 1:
        ((kind, rest),) = value.items()
        numbers = ",".join(map(str, rest)) if isinstance(rest, list) else str(rest or "")
        value = f"{kind}:{numbers}" if numbers and kind != "all" else str(kind)
    text = value.replace(" ", "") if isinstance(value, str) else ""
    if not _POLICY.fullmatch(text):
        raise ValueError("latest:N, all, or specific:1,2")
    return text


def check_label(value: Any) -> Any:
    """The label; ValueError for what is none."""
    problem = label_problem(value) if isinstance(value, str) else "a name that is not a number"
    if problem:
        raise ValueError(problem)
    return value


def parse_share(value: Any) -> Any:
    """A share of 1 from `5%` or 0.05; ValueError for anything else.

    A whole number is refused: who writes 5, or 1, may well mean percent.
    """
    share = _fraction(value)
    if share is None or not 0 <= share <= 1:
        raise ValueError("a share such as 5%, 0.05")
    return share


def parse_ratio(value: Any) -> Any:
    """How much more is accepted, from `25%` or 0.25; more than 100 % is possible. ValueError for anything else."""
    ratio = _fraction(value)
    if ratio is None:
        raise ValueError("a ratio such as 25%, 0.25")
    return ratio


def not_a_credential(key: str) -> str:
    """A key expression; ValueError for a header that holds a secret: keys are kept beside evidence and records."""
    kind, _, name = key.partition(":")
    if kind == "header" and name.lower() in _CREDENTIALS:
        raise ValueError(f"a header that holds no secret, which {name} does,")
    return key


def off(value: Any) -> Any:
    """`false` is nothing."""
    return None if value is False else value


def switch(value: Any) -> Any:
    """`true` is all defaults, `false` is nothing."""
    return {} if value is True else off(value)


def _fraction(value: Any) -> float | None:
    """Of `5%`, `0.05` (text or number) or 0; None for what is none, for other whole numbers, and for less than 0."""
    text = str(value).strip() if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    found = _FRACTION.fullmatch(text)
    if found is None:
        return None
    return float(found[1]) / 100 if found[2] else float(found[1])


_TEXT_OR_NUMBER = {"anyOf": [{"type": "string"}, {"type": "number"}]}
Duration = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema(_TEXT_OR_NUMBER)]
Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_TEXT_OR_NUMBER)]
Policy = Annotated[
    str,
    BeforeValidator(parse_policy),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^({_POLICY.pattern})$"},
                {"type": "object", "properties": {"latest": {"type": "integer", "minimum": 1}}},
                {"type": "object", "properties": {"specific": {"type": "array", "items": {"type": "integer"}}}},
            ]
        }
    ),
]
Share = Annotated[float, BeforeValidator(parse_share), WithJsonSchema(_TEXT_OR_NUMBER)]
Ratio = Annotated[float, BeforeValidator(parse_ratio), WithJsonSchema(_TEXT_OR_NUMBER)]
Label = Annotated[str, BeforeValidator(check_label)]
Port = Annotated[int, Field(ge=0, le=65535)]
Rows = Annotated[int, Field(ge=1, le=1_000_000)]


class Section(BaseModel):
    """A closed mapping whose fields are documented, by a string below each: see `described`."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # most starts need few of them

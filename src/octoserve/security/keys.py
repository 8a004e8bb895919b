"""Keys: 256 random bits for whoever asks, their SHA-256 for us.

    keys:
      - {name: team-a, sha256: 9f86d081..., models: [fraud, "risk-*"], may: [infer, read]}
      - {name: alice, sha256: 60303ae2..., role: operator}

A look-up by hash takes no time that depends on a key. Two keys may have one name: the old one and the new one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import msgspec

from octoserve.core.errors import SettingsError
from octoserve.security.caller import INFER, RESERVED, RIGHTS, ROLES, Caller

PREFIX = "octo_"
"""So that people, and what looks for secrets in code, know one when they see it."""
MAX_BYTES = 16 << 20

Ring = Mapping[bytes, Caller]
"""By the key's SHA-256."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key, as the file has it."""

    name: str
    sha256: str
    models: tuple[str, ...] = ()
    may: tuple[str, ...] = (INFER,)
    """With these models."""
    role: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: tuple[Entry, ...] = ()


def new_key() -> str:
    """Shown once, kept by nobody here."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(credential: str) -> bytes:
    """Of a key or token, as a header has it."""
    return sha256(credential.encode("latin-1", "replace")).digest()


def read_keys(path: Path) -> dict[bytes, Caller]:
    """The file's keys. Raises SettingsError that repeats nothing of what it holds: it may be a key by mistake."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"security.keys: {path} is larger than {MAX_BYTES} bytes")
        text = path.read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"security.keys: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"security.keys: {path} is not UTF-8") from None
    return parse_keys(text, str(path))


def parse_keys(text: str, where: str) -> dict[bytes, Caller]:
    """The keys in a file's text. Raises SettingsError."""
    import yaml

    try:
        told = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise SettingsError(f"security.keys: {where}{line}: not YAML") from None
    try:
        entries = msgspec.convert(told if told is not None else {}, _File).keys
    except msgspec.ValidationError as error:
        raise SettingsError(f"security.keys: {where}: {error}") from None
    ring: dict[bytes, Caller] = {}
    for number, entry in enumerate(entries, 1):
        problem = _problem(entry)
        digest = b"" if problem else bytes.fromhex(entry.sha256)
        if digest in ring:
            problem = "this sha256 is there already; each key is listed once"
        if problem:
            raise SettingsError(f"security.keys: {where}: key {number}: {problem}")
        ring[digest] = Caller(entry.name, entry.models, entry.may, entry.role)
    return ring


def _problem(entry: Entry) -> str:
    if not entry.name or not entry.name.isprintable() or len(entry.name) > 200:
        return "name: up to 200 printable characters wanted"
    if entry.name in RESERVED:
        return "name: this one is the service's own in the audit log; another wanted"
    if not re.fullmatch("[0-9a-f]{64}", entry.sha256):
        return "sha256: 64 hex digits wanted, as `octoserve security key` prints them; never the key itself"
    unknown = [right for right in entry.may if right not in RIGHTS]
    if unknown or not entry.may:
        return f"may: some of {', '.join(RIGHTS)} wanted"
    if entry.role and entry.role not in ROLES:
        return f"role: one of {', '.join(ROLES)} wanted"
    if not entry.models and not entry.role:
        return "models, or a role, wanted: without them the key opens nothing"
    return ""

"""The audit log: what was decided, by whom, from which evidence; a chain of SHA-256 for each endpoint.

One entry is one line of JSON, and the line is the truth: it is stored as it was hashed and verified as it is stored,
so a release that has learned new fields verifies old lines without writing them again.

    line   = '{"digest":"' + 64 hex digits + '",' + rest
    digest = SHA-256('{' + rest), in lower-case hex

`rest` is what comes after the digest when the entry's fields are sorted by name (docs/audit.md has it byte for byte).
It holds `previous`, the digest of the endpoint's entry before, and `seq`, one more than that entry's. The first entry
has seq 1 and `GENESIS` before it.

Where old rollouts were pruned, a chain begins later, and one of its own entries, the anchor, says with which number and
after which digest: `control.rollout.retention`.

The chain shows that a line was changed, taken out, put in or moved. Who may write the whole store can write a whole
new chain: against that, keep a digest elsewhere. What is missing at the end shows only against such a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from octoserve.control.analysis.reading import Reading
from octoserve.control.analysis.verdict import Verdict
from octoserve.control.rollout.values import Rollout
from octoserve.core.evidence import Stratum

GENESIS = "0" * 64
"""What an endpoint's first entry names as the digest before it."""

PRUNED = "pruned"
"""The event of an anchor. Its `view` has `seq` and `digest`, those of the last line that is gone."""

_HEAD = b'{"digest":"'
_SKIP = len(_HEAD) + 64 + len(b'",')
"""Bytes at a line's start that its digest does not cover; one brace stands for them."""
_PRUNED = f'"event":"{PRUNED}"'.encode()


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, note or request. `seq`, `previous` and `digest` are the store's: see `chain`.

    seq:      place in the endpoint's chain, from 1
    rollout:  its id, "" for what belongs to none
    time:     wall clock seconds
    who:      "controller", "admin API", or a person's name
    event:    "started", "advanced", "look", "approve", "aborting", ...
    from_phase, from_step, to_phase, to_step: the transition; equal where there is none
    reason:   one sentence for people
    record:   the rollout after it
    evidence, readings, verdicts: what was looked at, and what was concluded
    view:     the plain facts that the decision saw, JSON values only
    """

    rollout: str
    endpoint: str
    time: float
    who: str
    event: str
    seq: int = 0
    from_phase: str = ""
    from_step: int = 0
    to_phase: str = ""
    to_step: int = 0
    reason: str = ""
    record: Rollout | None = None
    evidence: Stratum | None = None
    readings: Mapping[str, Reading] = {}
    verdicts: tuple[Verdict, ...] = ()
    view: Mapping[str, Any] = {}
    previous: str = GENESIS
    digest: str = ""


def canonical(value: object) -> bytes:
    """JSON with keys sorted by their UTF-8 bytes, no spaces, and nothing lost: see docs/audit.md.

    NaN and the infinities, which JSON lacks, are the strings NaN, Infinity and -Infinity; `decode` reads them back.
    """
    return msgspec.json.encode(_plain(msgspec.to_builtins(value, str_keys=True, enc_hook=_scalar)), order="sorted")


def _scalar(value: Any) -> Any:
    """A NumPy scalar, which an analysis may leave in a verdict, is the number it holds."""
    if callable(getattr(value, "item", None)):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in an audit entry")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _text(value: str) -> str:
    """Half a surrogate pair is a question mark: nobody's name may keep a rollback from being recorded."""
    return value.encode("utf-8", "replace").decode()


def encode(entry: AuditEntry) -> bytes:
    """The line of an entry, without a line feed. Only an entry that `chain` gave has its digest."""
    return canonical(entry)


def decode(line: bytes | str) -> AuditEntry:
    """The entry of a line. Fields that this release does not know are passed over. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(line, type=AuditEntry, strict=False)


def digest_of(line: bytes) -> str:
    """What the digest in this line has to be."""
    return hashlib.sha256(b"{" + line[_SKIP:]).hexdigest()


def chain(previous: AuditEntry | None, entry: AuditEntry) -> AuditEntry:
    """`entry` as the next one after `previous` (None: the endpoint's first), with its digest."""
    return follow(0 if previous is None else previous.seq, GENESIS if previous is None else previous.digest, entry)


def follow(seq: int, digest: str, entry: AuditEntry) -> AuditEntry:
    """The same, of the previous entry's number and digest alone."""
    entry = msgspec.structs.replace(entry, seq=seq + 1, previous=digest, digest="0" * 64)
    entry = decode(encode(entry))  # a whole number where a float belongs would read back, and hash, differently
    return msgspec.structs.replace(entry, digest=digest_of(encode(entry)))


class _Link(msgspec.Struct):
    digest: str
    endpoint: str
    previous: str
    seq: int


class _Pruned(msgspec.Struct):
    seq: int
    digest: str


class _Anchor(msgspec.Struct):
    event: str
    view: _Pruned


def verify_lines(lines: Iterable[bytes]) -> int | None:
    """The first number at which an endpoint's lines are not one chain; None if they are.

    The lines are in order. The first may be of any number: what is before it is not judged, except that number 1 must
    follow `GENESIS`. A line that cannot be read counts as the number that had to come.
    """
    before: _Link | None = None
    for line in lines:
        wanted = 1 if before is None else before.seq + 1
        try:
            link = msgspec.json.decode(line, type=_Link)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return wanted
        if not line.startswith(_HEAD + link.digest.encode() + b'",') or link.digest != digest_of(line):
            return link.seq
        if before is None:
            if link.seq < 1 or (link.seq == 1) != (link.previous == GENESIS):
                return link.seq
        elif (link.seq, link.previous, link.endpoint) != (before.seq + 1, before.digest, before.endpoint):
            return link.seq
        before = link
    return None


def verify_chain(lines: Iterable[bytes]) -> int | None:
    """`verify_lines` of all that an endpoint has: what is before the first line must have been pruned, or nothing.

    Where more is missing, the first number that is.
    """
    first: _Link | None = None
    starts = {(0, GENESIS)}

    def passing() -> Iterator[bytes]:
        nonlocal first
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                if first is None:
                    first = msgspec.json.decode(line, type=_Link)
                if _PRUNED in line:
                    anchor = msgspec.json.decode(line, type=_Anchor)
                    if anchor.event == PRUNED:
                        starts.add((anchor.view.seq, anchor.view.digest))
            yield line

    broken = verify_lines(passing())
    if broken is not None or first is None or (first.seq - 1, first.previous) in starts:
        return broken
    return 1 + max(seq for seq, _ in starts if seq < first.seq)


def verify(entries: Iterable[AuditEntry]) -> int | None:
    """`verify_lines` of entries that this release wrote."""
    return verify_lines(encode(entry) for entry in entries)

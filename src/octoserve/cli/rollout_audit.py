"""The audit log in a terminal: what was decided, whether the chain of digests holds, whether a replay agrees.

Entries are kept as the bytes that came: a digest is over a line as it was stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import msgspec
import typer
from rich.text import Text

from octoserve.cli.admin_client import AdminClient, printable
from octoserve.cli.rollout_screen import indented
from octoserve.cli.rollout_status import clock
from octoserve.control.analysis.verdict import overall
from octoserve.control.rollout.audit import AuditEntry, canonical, decode, digest_of, verify_lines
from octoserve.core.errors import InvalidInput

_INDENT = " " * 16


PAGE = 500
"""Entries that are asked for at a time."""


class _Place(msgspec.Struct):
    seq: int
    rollout: str


def read_whole(client: AdminClient, endpoint: str, id_: str = "") -> bytes:
    """The audit entries of a rollout, of the last one by default, page by page: a JSON array, each entry as it came.

    Raises InvalidInput for a page that is none.
    """
    content = client.audit(endpoint, id_, limit=PAGE)
    page = _entries(content)
    if len(page) < PAGE:
        return content
    raws = page
    while len(page) >= PAGE:
        at = _placed(raws[-1])
        # By its id: another rollout may be the last one by now.
        page = _entries(client.audit(endpoint, at.rollout, at.seq, PAGE))
        # A service that knows no pages has given, and gives, all of them.
        page = [raw for raw in page if _placed(raw).seq > at.seq]
        raws = raws + page
    return b"[%b]" % b",".join(raws)


def _placed(raw: bytes) -> _Place:
    try:
        return msgspec.json.decode(raw, type=_Place)
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"an audit entry that this octoserve does not understand: {error}") from None


def _entries(content: bytes) -> list[bytes]:
    try:
        return [bytes(raw) for raw in msgspec.json.decode(content, type=list[msgspec.Raw])]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _no_log(error) from None


def _no_log(error: Exception) -> InvalidInput:
    return InvalidInput(f"this is no audit log as `octoserve rollout audit ENDPOINT --json` prints it: {error}")


def lines_of(content: bytes) -> list[bytes]:
    """The lines of a JSON array of entries, or of a file with one entry a line. Raises InvalidInput.

    A line that something has formatted otherwise on its way (spaces, order, escapes) is brought back to the form that
    was hashed; one that was changed in what it says still does not have its digest.
    """
    try:
        lines = [line for line in content.splitlines() if line.strip()]
        raws = _entries(content) if content.lstrip().startswith(b"[") else lines
        return [_as_hashed(raw) for raw in raws]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _no_log(error) from None


def _as_hashed(raw: bytes) -> bytes:
    value = msgspec.json.decode(raw)
    if not isinstance(value, dict) or value.get("digest") == digest_of(raw):
        return raw
    return canonical(value)


def entries_of(lines: Iterable[bytes]) -> list[AuditEntry]:
    """What the lines say. Raises InvalidInput."""
    try:
        return [decode(line) for line in lines]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"an audit entry that this octoserve does not understand: {error}") from None


def entry_lines(content: bytes, width: int) -> list[Text]:
    """When, what, from where to where; then by whom and why."""
    entries = entries_of(lines_of(content))
    if not entries:
        return [Text("no entry")]
    lines = []
    day = ""
    for entry in entries:
        if clock(entry.time, day=True)[:10] != day:
            day = clock(entry.time, day=True)[:10]
            lines.append(Text(day, "bold"))
        line = Text.assemble((f"{entry.seq:>6}  {clock(entry.time)}  ", "dim"), f"{entry.event:<14}")
        line.append(f"  {_moved(entry):<22}")
        if entry.verdicts:
            line.append(f"  {overall(entry.verdicts).replace('_', ' ')}")
        line.rstrip()
        why = Text(printable(entry.who), "dim").append(": " * bool(entry.reason))
        why.append(printable(entry.reason), "not dim")
        lines += [line, *indented(why, len(_INDENT), width)]
    return lines


def _moved(entry: AuditEntry) -> str:
    before, after = _place(entry.from_phase, entry.from_step), _place(entry.to_phase, entry.to_step)
    return f"{before} → {after}" if before and before != after else after


def _place(phase: str, step: int) -> str:
    return f"step {step + 1}" if phase == "running" else phase


# --- the chain ------------------------------------------------------------------------------------------


def verify(content: bytes, as_json: bool) -> None:
    """Say whether the entries are the chain that was written. Exit code 1 if they are not.

    An endpoint has one chain. Where entries between two of this rollout's are not in the answer (the endpoint's own, or
    another rollout's) each side is checked for itself, and they are counted.
    """
    lines = lines_of(content)
    broken, gaps = check(lines)
    entries = [] if broken is not None else entries_of(lines)
    first, last = (entries[0].seq, entries[-1].seq) if entries else (0, 0)
    digest = entries[-1].digest if entries else ""
    if as_json:
        found = {"whole": broken is None, "broken_at": broken, "entries": len(lines), "not_shown": gaps}
        print(json.dumps({**found, "first": first, "last": last, "digest": digest}))
    elif broken is not None:
        print(f"broken at entry {broken}: it, or the one before it, is not as it was written")
    elif not entries:
        print("no entry, so nothing to check")
    else:
        print(f"whole: {_count(len(lines), 'entry', 'entries')}, {first} to {last}\nlast digest: {digest}")
        for start, end in gaps:
            which = f"entry {start} is" if start == end else f"entries {start} to {end} are"
            print(f"{which} not of this rollout, and not checked")
        print("whoever can write the whole store can write a new chain: keep this digest elsewhere")
    if broken is not None:
        raise typer.Exit(1)


def check(lines: Sequence[bytes]) -> tuple[int | None, list[tuple[int, int]]]:
    """The number at which the chain breaks, None for a whole one; and the ranges of numbers that are not there."""
    run: list[bytes] = []
    gaps: list[tuple[int, int]] = []
    before = 0
    for line in lines:
        seq = _seq(line)
        if run and seq > before + 1:
            broken = verify_lines(run)
            if broken is not None:
                return broken, gaps
            gaps.append((before + 1, seq - 1))
            run = []
        run.append(line)
        before = seq
    return verify_lines(run), gaps


def _count(n: int, one: str, more: str) -> str:
    return f"{n:,} {one if n == 1 else more}"


def _seq(line: bytes) -> int:
    """0 where there is none: `verify_lines` then says what is wrong."""
    value = msgspec.json.decode(line)
    seq = value.get("seq") if isinstance(value, dict) else None
    return seq if isinstance(seq, int) else 0


# --- replay ---------------------------------------------------------------------------------------------


def replay(content: bytes, as_json: bool) -> None:
    """Say whether the recorded evidence still leads to the recorded verdicts and transitions. Exit code 1 if not, or
    if they are not what was recorded."""
    lines = lines_of(content)
    entries = entries_of(lines)
    if not entries:
        raise InvalidInput("no entry, so nothing to replay")
    broken, _ = check(lines)
    from octoserve.control.rollout.replay import replay as replayed

    try:
        diverged = replayed(entries)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"facts that this octoserve does not understand: {error}") from None
    looks = sum(bool(entry.verdicts) for entry in entries)
    if as_json:
        found = [msgspec.to_builtins(item) for item in diverged]
        rest = {"entries": len(entries), "looks": looks, "chain_broken_at": broken}
        print(json.dumps({"rollout": entries[-1].rollout, "same": not found, "divergences": found, **rest}))
    else:
        what = f"{entries[-1].rollout}: {_count(len(entries), 'entry', 'entries')}, {_count(looks, 'look', 'looks')}"
        print(f"{what}: {f'{len(diverged)} differ' if diverged else 'the same verdicts and transitions'}")
        for item in diverged:
            print(f"  {printable(str(item))}")
        if broken is not None:
            print(f"the chain is broken at entry {broken}: this is not what was written")
    if diverged or broken is not None:
        raise typer.Exit(1)

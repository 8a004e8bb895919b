"""The journal: what is whole counts, a torn end does not, and a run that was taken over says nothing more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.connectors.files import LocalFiles
from octoserve.patterns.batch.journal import (
    Began,
    DamagedJournal,
    Ended,
    Finished,
    Journal,
    Line,
    Part,
    encode,
    parse,
    read,
    state_of,
)


def began(token: int) -> Began:
    return Began(token=token, host="h", pid=1, at=1.0)


def finished(split: int, token: int = 1) -> Finished:
    part = Part(name=f"part-{split:05}.parquet", rows=10, bytes=100, sha256="ab")
    return Finished(split=split, token=token, part=part, seconds=1.5, at=2.0)


lines = st.lists(st.one_of(st.integers(1, 9).map(began), st.tuples(st.integers(0, 9)).map(lambda t: finished(*t))))


@given(lines, st.data())
def test_cut_anywhere_the_whole_lines_before_the_cut_count(written: list[Line], data: st.DataObject) -> None:
    encoded = [encode(line) for line in written]
    whole = b"".join(encoded)
    cut = data.draw(st.integers(0, len(whole)))
    kept, size = parse(whole[:cut])
    assert kept == written[: len(kept)]
    assert size == sum(len(text) for text in encoded[: len(kept)]) <= cut
    assert len(kept) == len(written) or cut < size + len(encoded[len(kept)])


def test_a_damaged_line_among_whole_ones_is_no_crash_of_ours() -> None:
    text = encode(began(1)) + encode(finished(0)) + encode(finished(1))
    for place in (12, len(encode(began(1))) + 20):
        changed = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
        with pytest.raises(DamagedJournal, match=r"job/journal\.jsonl: line \d is damaged.*begin anew"):
            parse(changed, Path("job/journal.jsonl"))
    last = bytearray(text)
    last[-5] ^= 1
    assert len(parse(bytes(last))[0]) == 2, "the last line may be one that was half on the disk"


def test_lines_of_a_run_that_was_taken_over_count_for_nothing() -> None:
    state = state_of([began(1), finished(0), began(2), finished(1, 2), finished(2, 1)])
    assert sorted(state.finished) == [0, 1]
    assert [run.token for run in state.runs] == [1, 2]


def test_why_the_last_run_ended_is_what_it_says_itself() -> None:
    def ended(token: int) -> Ended:
        return Ended(token=token, reason="disk", text=str(token), at=3.0)

    def said(*written: Line) -> str:
        found = state_of(list(written)).ended
        return "" if found is None else found.text

    assert said(began(1), ended(1)) == "1"
    assert said(began(1), ended(1), began(2)) == "", "of a run that goes on, or was killed"
    assert said(began(1), began(2), ended(1)) == "", "of one that was taken over"
    assert said(began(1), ended(1), ended(2)) == "2", "of one that had no room to say that it began"


def test_a_journal_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(encode(began(1)) + encode(finished(0)) + encode(finished(1))[:17])
    log = Journal(LocalFiles(), path)
    assert sorted(log.state.finished) == [0]
    log.append(began(2))
    log.append(finished(5, 2))
    log.close()
    assert sorted(read(path).finished) == [0, 5]
    assert read(tmp_path / "none").runs == ()


class FullOnce(LocalFiles):
    """A disk that is full in the middle of one write, and has room again behind it."""

    def __init__(self, may_cut: bool) -> None:
        self.full = False
        self.may_cut = may_cut

    def write(self, descriptor: int, data: bytes) -> None:
        if self.full:
            self.full = False
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data)

    def truncate(self, path: Path, size: int) -> None:
        if not self.may_cut:
            raise OSError(errno.EIO, "Input/output error")
        super().truncate(path, size)


@pytest.mark.parametrize("may_cut", [True, False])
def test_a_line_that_the_disk_had_no_room_for_spoils_none_after_it(tmp_path: Path, may_cut: bool) -> None:
    """Other lanes go on for a moment, and the run says why it ended: their lines come behind the torn one."""
    files = FullOnce(may_cut)
    log = Journal(files, tmp_path / "journal.jsonl")
    log.append(began(1))
    log.append(finished(0))
    files.full = True
    with pytest.raises(OSError, match="No space"):
        log.append(finished(1))
    for line in (finished(2), Ended(token=1, reason="disk", text="full", at=3.0)):
        if may_cut:
            log.append(line)
        else:
            with pytest.raises(OSError, match="torn"):
                log.append(line)
    log.close()
    state = read(tmp_path / "journal.jsonl")
    assert sorted(state.finished) == ([0, 2] if may_cut else [0])
    assert (state.ended is not None) == may_cut
    assert sorted(Journal(LocalFiles(), tmp_path / "journal.jsonl").state.finished) == sorted(state.finished)

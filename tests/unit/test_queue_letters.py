"""A dead letter comes back as it was, with as much of its history as there is room for."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from octoserve.connectors.queues.letters import about, letter_of
from octoserve.connectors.queues.protocol import HISTORY_HEADER, ID_HEADER, ORIGIN_HEADER, DeadLetter, Failure
from support.queues import message


def a_letter(history: tuple[Failure, ...]) -> DeadLetter:
    return DeadLetter(
        id="m1", source="s", origin="q/7", attempts=len(history), history=history, published=1.0, buried=2.0,
        key=b"k", headers={"traceparent": "00-1"}, value=b"{}",
    )  # fmt: skip


failures = st.lists(st.text(max_size=600), max_size=20).map(
    lambda errors: tuple(Failure(at=float(i), error=error, by="m version 1") for i, error in enumerate(errors))
)


@given(failures)
def test_it_comes_back_as_it_was(history: tuple[Failure, ...]):
    letter = a_letter(history)
    headers = {**letter.headers, ID_HEADER: "m1", ORIGIN_HEADER: "q/7", HISTORY_HEADER: about(letter), "own": "x"}
    found = letter_of(message(3, letter.value, headers=headers), "3", b"k", ("own",))
    assert found == msgspec.structs.replace(letter, sequence="3", headers={"traceparent": "00-1", ID_HEADER: "m1"})


@given(failures, st.integers(0, 20_000))
def test_of_its_history_there_is_what_fits(history: tuple[Failure, ...], room: int):
    text = about(a_letter(history), room)
    least = len(about(msgspec.structs.replace(a_letter(history), history=()), 0).encode())
    assert len(text.encode()) <= max(room, least)
    kept = msgspec.json.decode(text, type=DeadLetter).history
    whole = len(about(a_letter(history)).encode())
    assert (kept == history) or (whole > room and [each.at for each in kept] in ([], [history[-1].at]))


def test_what_somebody_else_laid_there_is_a_letter_too():
    found = letter_of(message(7, b"x", headers={HISTORY_HEADER: "{not json", "a": "b"}, published=5.0), "7")
    assert (found.id, found.origin, found.attempts, found.history) == ("q/7", "q/7", 0, ())
    assert (found.value, found.headers, found.buried) == (b"x", {"a": "b"}, 5.0)

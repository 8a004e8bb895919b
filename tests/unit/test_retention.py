"""Which beginning of a chain may go: whole rollouts, and nothing that has to stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octoserve.control.rollout.retention import beginning


def spans_of(chain: str) -> dict[str, tuple[int, int]]:
    """One letter an entry."""
    return {id: (chain.index(id) + 1, chain.rindex(id) + 1) for id in chain if id != "-"}


def test_the_longest_beginning_of_whole_rollouts_goes() -> None:
    assert beginning(spans_of("aab-bcc"), "ab", 9) == (5, ["a", "b"])
    assert beginning(spans_of("-aa-b"), "a", 9) == (3, ["a"])
    assert beginning(spans_of("abab-c"), "ab", 9) == (4, ["a", "b"])
    assert beginning(spans_of("abab-c"), "ab", 1) == (0, []), "neither is whole without the other"
    assert beginning(spans_of("aabbcc"), "abc", 2) == (4, ["a", "b"])


def test_what_stays_is_never_in_it() -> None:
    assert beginning(spans_of("abba"), "a", 9) == (0, [])
    assert beginning(spans_of("xaabb"), "ab", 9) == (0, [])
    assert beginning(spans_of("aaxbb"), "ab", 9) == (2, ["a"])
    assert beginning({}, "ab", 9) == (0, [])


@given(st.text("abcde-", max_size=12), st.sets(st.sampled_from("abcde")), st.integers(1, 5))
def test_it_is_the_longest_of_all(chain: str, may_go: set[str], most: int) -> None:
    def goes(end: int) -> bool:
        gone = set(chain[:end]) - {"-"}
        return len(gone) <= most and gone <= may_go and not gone & set(chain[end:]) and chain[end - 1] != "-"

    end, gone = beginning(spans_of(chain), may_go, most)
    assert end == max((n for n in range(1, len(chain) + 1) if goes(n)), default=0)
    assert set(gone) == set(chain[:end]) - {"-"}

"""The local breaker: a candidate that fails outright is cut by the worker that sees it, at once.

Who decides on evidence is the control plane, seconds later and somewhere else; this is for the version that
answers nothing but errors, or nothing at all. It opens once and stays open for as long as the rollout lasts.
"""

from __future__ import annotations

STALL_SECONDS = 10.0
"""A candidate's run that takes so long has hung, as far as those who wait are concerned."""


class Recent:
    """The last `window` attempts of one arm, as bits: 1 for one that failed."""

    __slots__ = ("_bits", "_mask", "_window", "attempts")

    def __init__(self, window: int = 20) -> None:
        self._bits = 0
        self._mask = (1 << window) - 1
        self._window = window
        self.attempts = 0
        """How many there were, `window` at most."""

    def ok(self, count: int = 1) -> None:
        """Attempts were answered."""
        self._bits = self._bits << count & self._mask
        self.attempts = min(self.attempts + count, self._window)

    def failed(self) -> None:
        """An attempt failed."""
        self._bits = (self._bits << 1 | 1) & self._mask
        self.attempts = min(self.attempts + 1, self._window)

    @property
    def failures(self) -> int:
        """How many of them failed."""
        return self._bits.bit_count()


def should_cut(candidate: Recent, stable: Recent, window: int = 20, failures: int = 10) -> str:
    """Why the candidate is to be cut, "" if it is not.

    Where the stable version fails at half that rate, of however few attempts, it is not the candidate that is broken;
    where it has not been asked at all, nothing but failures will do.
    """
    came = candidate.failures
    enough = came >= (failures if stable.attempts else window)
    if enough and stable.failures * window < max(1, failures // 2) * max(1, stable.attempts):
        return f"{came} of its last {window} requests failed in one worker, {stable.failures} of the stable version's"
    return ""

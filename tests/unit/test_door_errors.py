"""One table of errors for both doors."""

from __future__ import annotations

import pytest

from octoserve.core import errors
from octoserve.patterns.online.errors import code_of, status_of


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.TooLarge("x"), 413, 8),  # a TooLarge is an InvalidInput too: the nearer kind counts
        (errors.InvalidInput("x"), 400, 3),
        (errors.BrokenVersion("x"), 400, 9),
        (errors.NotFound("x"), 404, 5),
        (errors.Unsupported("x"), 501, 12),
        (errors.Unavailable("x"), 503, 14),
        (errors.Overloaded("x"), 429, 8),
        (errors.DeadlineExceeded("x"), 504, 4),
        (errors.Cancelled("x"), 499, 1),
        (errors.Internal("x"), 500, 13),
        (errors.OctoserveError("x"), 500, 13),
    ],
)
def test_every_kind_has_a_name_in_both_protocols(error: errors.OctoserveError, status: int, code: int) -> None:
    assert (status_of(error), code_of(error)) == (status, code)

"""A message id survives a header, and no two become one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octoserve.connectors.queues.headers import heard, id_of, value_of
from octoserve.connectors.queues.protocol import ID_HEADER


@given(st.text())
def test_an_id_comes_back_as_it_was_from_a_value_that_a_line_can_hold(id: str):
    value = value_of(id)
    assert value.isascii()
    assert value == value.strip()
    assert value.isprintable()
    assert id_of(value) == id


def test_plain_ids_stay_as_they_are():
    assert value_of("orders/17") == "orders/17"
    assert value_of("a\\nb") == "a\\nb"


def test_what_others_wrote_is_an_id_as_it_stands():
    assert id_of('"half') == '"half'
    assert id_of("17") == "17"
    assert heard({ID_HEADER: '"a\\nb"', "x": '"y"'}) == {ID_HEADER: "a\nb", "x": '"y"'}
    assert heard(None) == {}

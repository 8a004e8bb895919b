"""Python values to raw form: the same by `struct` and by numpy, and nothing is cast or wrapped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput
from octoserve.core.packing import PACKED_AT_ONCE, pack
from support.scale import scale
from support.tensors import element_values, raw_of

INTEGERS = [name for name, kind in DATATYPES.items() if kind.kind == "int"]


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BF16"])
@settings(max_examples=scale(15, 300))
@given(data=st.data())
def test_few_and_many_are_packed_alike(datatype: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(element_values(datatype), max_size=8))
    given = [v.decode() for v in values] if datatype == "BYTES" else values
    few = pack(given, DATATYPES[datatype], "x")
    assert few == raw_of(values, datatype)
    if values:
        times = PACKED_AT_ONCE // len(values) + 1
        assert pack(given * times, DATATYPES[datatype], "x") == few * times


@given(st.floats(allow_nan=False), st.sampled_from(["FP16", "FP32"]))
def test_few_and_many_round_and_refuse_alike(value: float, datatype: str) -> None:
    outcomes: list[Any] = []
    for count in (1, PACKED_AT_ONCE + 1):
        try:
            outcomes.append(pack([value] * count, DATATYPES[datatype], "x")[: DATATYPES[datatype].itemsize])
        except InvalidInput as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@given(st.integers(), st.sampled_from(INTEGERS), st.sampled_from([1, 3, PACKED_AT_ONCE + 1]))
def test_integers_fit_or_are_refused(value: int, datatype: str, count: int) -> None:
    bounds = np.iinfo(DATATYPES[datatype].dtype)
    values = [0] * (count - 1) + [value]
    if bounds.min <= value <= bounds.max:
        assert int(np.frombuffer(pack(values, DATATYPES[datatype], "x"), DATATYPES[datatype].dtype)[-1]) == value
    else:
        with pytest.raises(InvalidInput, match=f"'x'.*does not fit {datatype}"):
            pack(values, DATATYPES[datatype], "x")


def test_refusals_stay_short() -> None:
    for value in (10**3000, 10**5000):
        with pytest.raises(InvalidInput) as caught:
            pack([value], DATATYPES["INT8"], "x")
        assert len(str(caught.value)) < 200
    with pytest.raises(InvalidInput) as caught:
        pack(["y" * 10_000], DATATYPES["FP32"], "x")
    assert len(str(caught.value)) < 200

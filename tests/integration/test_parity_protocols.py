"""The same rows by every HTTP protocol give the bytes of prediction that V2's binary form gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.echo_inputs import echo_inputs
from support.examples import ECHOES, INPUTS
from support.protocols import BY_ROW, CSV, WHOLE
from support.scale import scale
from support.service import Served
from support.wire import Outputs, Refused, Sent, raw_of, rest_binary

TEXT = sorted(ECHOES.keys() - {"echo_bf16"})


def every_way(service: Served, model: str, inputs: list[Sent]) -> dict[str, Outputs]:
    ways = WHOLE if model == "fixed" else {**WHOLE, **BY_ROW}
    return {name: way(service, model, inputs) for name, way in ways.items()}


def agree(service: Served, model: str, inputs: list[Sent]) -> Outputs:
    expected = rest_binary(service, model, inputs)
    for way, outputs in every_way(service, model, inputs).items():
        assert outputs == expected, f"{way} differs"
    return expected


@pytest.mark.parametrize("model", TEXT)
def test_echo_is_bit_for_bit_the_same_every_way(examples: Served, model: str) -> None:
    @settings(max_examples=scale(10, 300), deadline=None)
    @given(echo_inputs(ECHOES[model]).filter(lambda sent: sent.array.size > 0))
    def check(sent: Sent) -> None:
        assert agree(examples, model, [sent])["output"].raw == raw_of(sent.datatype, sent.array)

    check()


@pytest.mark.parametrize("model", sorted(INPUTS.keys() - ECHOES.keys()))
def test_models_answer_the_same_every_way(examples: Served, model: str) -> None:
    @settings(max_examples=scale(2 if model == "content_type" else 4, 60), deadline=None)
    @given(st.integers(1, 6), st.integers(0, 2**32))
    def check(rows: int, seed: int) -> None:
        agree(examples, model, INPUTS[model](rows, np.random.default_rng(seed)))

    check()


@pytest.mark.parametrize("model", ["fraud", "wine", "penguins", *sorted(set(TEXT) - {"echo_bytes"})])
def test_csv_answers_the_same(examples: Served, model: str) -> None:
    inputs = INPUTS[model](3, np.random.default_rng(7))
    assert CSV(examples, model, inputs) == rest_binary(examples, model, inputs)


@pytest.mark.parametrize("way", sorted({**WHOLE, **BY_ROW}))
def test_bf16_has_no_json_form(examples: Served, way: str) -> None:
    sent = Sent("input", "BF16", np.ones((1, 2), "<u2"))
    with pytest.raises(Refused, match="BF16"):
        {**WHOLE, **BY_ROW}[way](examples, "echo_bf16", [sent])

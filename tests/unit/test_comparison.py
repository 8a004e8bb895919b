"""What counts as the same answer: by datatype, by tolerance, by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from octoserve.core.comparison import _SMALL, DEFAULTS, WORST, Comparison, Deviation
from octoserve.core.errors import SettingsError
from octoserve.core.tensors import Tensor

FLOATS = st.floats(width=32)
LARGE = _SMALL * 2


def fp32(*values, shape=None, name="y"):
    array = np.array(values, dtype=np.float32)
    return (name, "FP32", array.reshape(shape) if shape else array)


def ints(*values, name="label"):
    return (name, "INT64", np.array(values, dtype=np.int64))


def texts(*values, name="text"):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return (name, "BYTES", array)


def bf16(*values, name="b"):
    return (name, "BF16", (np.array(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16))


def test_floats_differ_beyond_absolute_plus_relative():
    comparison = Comparison({"y": {"absolute": 0.5, "relative": 0.1}})
    assert comparison.compare([fp32(10)], [fp32(11.5)]).agreed
    difference = comparison.compare([fp32(10)], [fp32(13)])
    assert not difference.agreed
    assert difference.outputs["y"].magnitude == pytest.approx(2.0), "in units of what was allowed"
    assert difference.outputs["y"].reason == "10 became 13"


def test_an_entry_is_taken_whole():
    comparison = Comparison({"": {"relative": 0.5}, "y": {"absolute": 0.1}})
    assert not comparison.compare([fp32(10)], [fp32(10.2)]).agreed, "y has no relative tolerance of its own"
    assert comparison.compare([fp32(10, name="z")], [fp32(14, name="z")]).agreed
    assert not Comparison({"y": {}}).compare([fp32(1)], [fp32(1 + 1e-6)]).agreed, "an empty entry allows nothing"


@pytest.mark.parametrize("scale", [1, LARGE])
def test_nan_and_infinities(scale):
    def agreed(a, b):
        return Comparison({"": {"relative": 1.0}}).compare([fp32(*[a] * scale)], [fp32(*[b] * scale)]).agreed

    nan, inf = math.nan, math.inf
    assert agreed(nan, nan)
    assert agreed(inf, inf)
    assert agreed(-inf, -inf)
    assert not agreed(inf, -inf)
    assert not agreed(inf, 1e30), "inf * relative allows nothing"
    assert not agreed(1.0, inf)
    assert not agreed(nan, 1.0)
    assert not agreed(1.0, nan)
    assert agreed(0.0, -0.0)


def test_no_distance_ranks_worst():
    outputs = Comparison().compare([fp32(math.nan, 1.0)], [fp32(1.0, 2.0)]).outputs
    assert outputs["y"].magnitude == WORST
    assert outputs["y"].at == (0,)


def test_half_precision_is_compared_more_widely():
    a = np.array([1.0], dtype=np.float16)
    b = np.nextafter(a, np.float16(2))
    assert Comparison().compare([("h", "FP16", a)], [("h", "FP16", b)]).agreed
    assert not Comparison().compare([fp32(1.0)], [fp32(float(b[0]))]).agreed
    assert Comparison().compare([bf16(1.0)], [bf16(1.0078125)]).agreed, "one unit in the last place of BF16"
    assert not Comparison().compare([bf16(1.0)], [bf16(2.0)]).agreed


def test_bf16_is_read_from_its_bits():
    difference = Comparison({"b": {"absolute": 1.0}}).compare([bf16(1.0, -2.0)], [bf16(1.0, 2.0)])
    assert difference.outputs["b"].magnitude == pytest.approx(4.0)
    assert difference.outputs["b"].reason == "-2 became 2 at [1]"


@pytest.mark.parametrize("datatype", DEFAULTS)
def test_defaults_are_wider_than_two_units_in_the_last_place(datatype):
    digits = {"FP64": 52, "FP32": 23, "FP16": 10, "BF16": 7}[datatype]
    assert DEFAULTS[datatype][1] > 2 * 2.0**-digits


def test_labels_never_get_a_tolerance_by_default():
    comparison = Comparison({"": {"absolute": 5, "relative": 1}})
    difference = comparison.compare([ints(3, 4)], [ints(3, 5)])
    assert difference.outputs["label"].magnitude == 1.0
    assert difference.outputs["label"].reason == "4 became 5 at [1]"
    truth = ("flag", "BOOL", np.array([True])), ("flag", "BOOL", np.array([False]))
    assert Comparison().compare(truth[:1], truth[1:]).outputs["flag"].reason == "True became False"


def test_text_is_exact_and_str_is_its_utf8():
    assert Comparison().compare([texts("né")], [texts("né".encode())]).agreed
    reason = Comparison().compare([texts(b"benign")], [texts(b"malignant")]).outputs["text"].reason
    assert reason == "'benign' became 'malignant'"
    fixed = ("text", "BYTES", np.array(["a", "bb"]))
    assert Comparison().compare([fixed], [texts("a", "bb")]).agreed


def test_ranks_may_be_given_a_tolerance_by_name():
    comparison = Comparison({"label": {"absolute": 1}})
    assert comparison.compare([ints(3, 4)], [ints(4, 3)]).agreed
    assert comparison.compare([ints(3)], [ints(6)]).outputs["label"].magnitude == 3.0


def test_whole_numbers_are_subtracted_exactly():
    comparison = Comparison({"label": {"absolute": 10}})
    low, high = -(2**63), 2**63 - 1
    assert not comparison.compare([ints(low)], [ints(high)]).agreed
    assert not comparison.compare([ints(2**62)], [ints(2**62 + 11)]).agreed
    assert comparison.compare([ints(2**62)], [ints(2**62 + 10)]).agreed
    unsigned = [("label", "UINT8", np.array([v], dtype=np.uint8)) for v in (3, 250)]
    assert not comparison.compare(unsigned[:1], unsigned[1:]).agreed, "250 - 3 does not wrap around"


def test_rankings_by_what_they_have_in_common():
    comparison = Comparison({"top": {"overlap": 0.75}})

    def rows(*values):
        return ("top", "INT32", np.array(values, dtype=np.int32))

    assert comparison.compare([rows([1, 2, 3, 4])], [rows([4, 3, 2, 9])]).agreed
    difference = comparison.compare([rows([1, 2, 3, 4], [1, 2, 3, 4])], [rows([1, 2, 3, 4], [1, 8, 9, 7])])
    assert difference.outputs["top"].reason == "25% in common, 75% wanted at [1, 0]"
    assert (difference.rows, difference.rows_differing) == (2, 1)


def test_an_ignored_output_may_even_be_missing():
    comparison = Comparison({"took": {"ignore": 1}})
    assert comparison.compare([fp32(1, name="took"), fp32(1)], [fp32(1)]).agreed


def test_missing_reshaped_and_retyped_outputs():
    difference = Comparison().compare(
        [fp32(1, name="a"), fp32(1, 2, name="b"), fp32(1, name="c"), fp32(1, name="d")],
        [fp32(1, 2, 3, name="b"), ints(1, name="c"), fp32(1, name="d")],
    )
    assert {name: d.reason for name, d in difference.outputs.items()} == {
        "a": "missing",
        "b": "shape [2] became [3]",
        "c": "datatype FP32 became INT64",
    }
    assert {d.magnitude for d in difference.outputs.values()} == {WORST}
    assert difference.share == 1.0


def test_a_new_output_of_the_candidate_is_no_disagreement():
    assert Comparison().compare([fp32(1)], [fp32(1), ints(2)]).agreed


def test_scalars_empty_batches_and_no_outputs():
    assert Comparison().compare([], []).agreed
    scalar = ("s", "FP32", np.array(1.0, np.float32)), ("s", "FP32", np.array(2.0, np.float32))
    difference = Comparison().compare(scalar[:1], scalar[1:])
    assert (difference.rows, difference.rows_differing, difference.outputs["s"].at) == (1, 1, ())
    empty = Comparison().compare([fp32(shape=(0, 3))], [fp32(shape=(0, 3))])
    assert empty.agreed
    assert (empty.rows, empty.share) == (0, 0.0)


def test_the_share_of_rows_is_over_all_outputs():
    a = [fp32(1, 2, 3, 4), ints(1, 2, 3, 4)]
    b = [fp32(1, 9, 3, 4), ints(1, 7, 3, 0)]
    difference = Comparison().compare(a, b)
    assert (difference.rows, difference.rows_differing, difference.share) == (4, 2, 0.5)
    assert difference.outputs["label"].rows == 2
    assert difference.outputs["y"].rows == 1


def test_tensors_in_raw_form_are_compared_without_decoding_if_equal():
    a, b = (Tensor("y", "FP32", (2,), raw=np.array([1, math.nan], np.float32).tobytes()) for _ in range(2))
    assert Comparison({"y": {}}).compare([a], [b]).agreed
    assert a.values is None, "not decoded"
    c = Tensor("y", "FP32", (2,), raw=np.array([1, 2], np.float32).tobytes())
    assert not Comparison().compare([a], [c]).agreed
    assert not Comparison().compare([a], [fp32(1, 2)]).agreed, "a tensor against an array"


@pytest.mark.parametrize(
    ("tolerance", "complaint"),
    [
        ({"y": {"abs": 1}}, "unknown key 'abs'"),
        ({"y": {"absolute": -1}}, "absolute must be"),
        ({"y": {"absolute": math.nan}}, "absolute must be"),
        ({"y": {"relative": math.inf}}, "relative must be"),
        ({"y": {"relative": "1"}}, "relative must be"),
        ({"y": {"absolute": True}}, "absolute must be"),
        ({"y": 0.1}, "wanted keys"),
        ({"y": {"overlap": 0}}, "overlap must be"),
        ({"y": {"overlap": 1.5}}, "overlap must be"),
        ({"y": {"overlap": 1, "absolute": 1}}, "stand alone"),
        ({"y": {"ignore": 0.5}}, "ignore must be"),
        ({"": {"ignore": 1}}, "need the output's name"),
    ],
)
def test_a_tolerance_that_cannot_be_meant_is_refused_by_name(tolerance, complaint):
    with pytest.raises(SettingsError, match=complaint) as error:
        Comparison(tolerance)
    assert ("'y'" if "y" in tolerance else "all other") in str(error.value)


ARRAYS = npst.arrays(np.float32, npst.array_shapes(max_dims=2, max_side=LARGE), elements=FLOATS)
PAIRS = npst.array_shapes(min_dims=1, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(*(npst.arrays(np.float32, shape, elements=FLOATS | st.sampled_from([0, 1])),) * 2)
)
TOLERANCES = st.tuples(st.sampled_from([0.0, 1e-6, 1.0]), st.sampled_from([0.0, 1e-3, 0.5]))


def of(tolerance):
    return Comparison({"y": {"absolute": tolerance[0], "relative": tolerance[1]}})


def agreed(comparison, a, b):
    return comparison.compare([("y", "FP32", a)], [("y", "FP32", b)]).agreed


@given(ARRAYS, TOLERANCES)
def test_every_answer_agrees_with_itself(array, tolerance):
    assert agreed(of(tolerance), array, array.copy())


@given(PAIRS, TOLERANCES, TOLERANCES)
def test_a_wider_tolerance_never_finds_more(pair, narrow, more):
    wide = (narrow[0] + more[0], narrow[1] + more[1])
    if agreed(of(narrow), *pair):
        assert agreed(of(wide), *pair)


@given(PAIRS, st.sampled_from([0.0, 1e-6, 1.0]))
def test_an_absolute_tolerance_is_symmetric(pair, absolute):
    a, b = pair
    assert agreed(of((absolute, 0)), a, b) == agreed(of((absolute, 0)), b, a)


@given(PAIRS, TOLERANCES)
def test_a_batch_differs_in_the_rows_that_differ_alone(pair, tolerance):
    a, b = pair
    comparison = of(tolerance)
    difference = comparison.compare([("y", "FP32", a)], [("y", "FP32", b)])
    alone = sum(not agreed(comparison, a[i : i + 1], b[i : i + 1]) for i in range(len(a)))
    assert difference.rows == len(a)
    assert difference.rows_differing == alone
    assert difference.agreed == (alone == 0)
    assert all(1 <= d.magnitude <= WORST and d.rows == alone for d in difference.outputs.values())


@given(PAIRS, TOLERANCES)
def test_few_and_many_elements_are_judged_alike(pair, tolerance):
    """Up to `_SMALL` elements are compared in Python, more of them by numpy."""
    a, b = pair
    comparison = of(tolerance)
    once = comparison.compare([("y", "FP32", a)], [("y", "FP32", b)])
    times = _SMALL // a.size + 1
    many = comparison.compare(
        [("y", "FP32", np.concatenate([a] * times))], [("y", "FP32", np.concatenate([b] * times))]
    )
    assert many.agreed == once.agreed
    if not once.agreed:
        assert many.outputs["y"] == Deviation(
            once.outputs["y"].reason.partition(" at ")[0] + f" at {list(once.outputs['y'].at)}",
            pytest.approx(once.outputs["y"].magnitude),
            once.outputs["y"].rows * times,
            once.outputs["y"].at,
        )


@given(st.lists(st.sampled_from([0, 1, 2**63 - 1, -(2**63)]), min_size=1, max_size=LARGE), st.randoms())
def test_labels_differ_where_they_are_not_equal(values, random):
    other = list(values)
    random.shuffle(other)
    difference = Comparison().compare([ints(*values)], [ints(*other)])
    assert difference.rows_differing == sum(a != b for a, b in zip(values, other, strict=True))


_FLOATS = st.sampled_from([0.0, 1.0, 1.00001, 1.5, -3.0, 1e9, np.nan, np.inf, -np.inf])
_TOLERANCES = {"top": {"overlap": 0.6}, "rank": {"absolute": 1.0}, "tight": {"absolute": 0.0}, "out": {"ignore": 1.0}}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.data())
def test_many_rows_at_once_differ_as_each_does_alone(rows, data):
    """On both sides of the size from which numpy takes over."""

    def outputs():
        def filled(elements, dtype, *shape):
            size = int(np.prod([rows, *shape]))
            few = data.draw(st.lists(elements, min_size=1, max_size=8))
            order = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, len(few), size)
            return np.array(few, dtype=dtype)[order].reshape(rows, *shape)

        words = filled(st.sampled_from([b"a", b"b", b"c"]), object)
        return [
            ("score", "FP32", filled(_FLOATS, np.float32, 2)),
            ("tight", "FP64", filled(_FLOATS, np.float64)),
            ("label", "INT64", filled(st.integers(0, 2), np.int64, 1)),
            ("rank", "INT32", filled(st.integers(-3, 3), np.int32)),
            ("top", "INT64", filled(st.integers(0, 4), np.int64, 3)),
            ("word", "BYTES", words),
            ("out", "FP32", filled(_FLOATS, np.float32)),
        ]

    comparison = Comparison(_TOLERANCES)
    stable, candidate = outputs(), outputs()
    found = comparison.by_row(stable, candidate)
    assert set(found) == {"score", "tight", "label", "rank", "top", "word"}
    for row in range(rows):
        alone = comparison.compare(*([(n, d, a[row : row + 1]) for n, d, a in side] for side in (stable, candidate)))
        expected = {name: deviation.magnitude for name, deviation in alone.outputs.items()}
        assert {name: m[row] for name, m in found.items() if m[row]} == pytest.approx(expected)
    gone = comparison.by_row(stable, candidate[1:])
    assert (gone["score"] == WORST).all()

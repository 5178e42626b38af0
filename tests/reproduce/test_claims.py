"""Verdicts: intervals above or below zero, seeds, and what the page says of them."""

import numpy as np
import pytest

from air_jax.reproduce import claims, plots
from air_jax.reproduce.claims import FAILS, HOLDS, UNDECIDED

LABELS = np.repeat(np.arange(10), 20)
RNG = np.random.default_rng(0)
WORSE = {seed: RNG.random(200) for seed in range(3)}


def shifted(by, seeds=(0, 1, 2), noise=0.01):
    return {s: WORSE[s] + by + noise * RNG.standard_normal(200) for s in seeds}


def judge(*pairs):
    return claims.judge("x", "", [("", *pair) for pair in pairs], LABELS)["verdict"]


def test_a_claim_holds_when_every_interval_lies_above_zero():
    assert judge((shifted(0.1), WORSE)) == HOLDS
    assert judge((shifted(0.1), WORSE), (shifted(0.2), WORSE)) == HOLDS


def test_one_interval_below_zero_is_enough_for_a_claim_to_fail():
    assert judge((shifted(0.1), WORSE), (shifted(-0.1), WORSE)) == FAILS


def test_an_interval_that_contains_zero_leaves_a_claim_undecided():
    assert judge((shifted(0.1), WORSE), (shifted(0.0, noise=0.5), WORSE)) == UNDECIDED


@pytest.mark.parametrize("by", [0.1, -0.1])
def test_fewer_than_three_seeds_decide_nothing(by):
    assert judge((shifted(by, seeds=(0, 1)), WORSE)) == UNDECIDED


def test_a_missing_net_leaves_a_claim_undecided_unless_another_interval_lies_below():
    assert judge(({}, WORSE), (shifted(0.1), WORSE)) == UNDECIDED
    assert judge(({}, WORSE), (shifted(-0.1), WORSE)) == FAILS


def test_a_claim_of_nothing_is_undecided():
    assert judge() == UNDECIDED


def test_comparisons_are_paired_on_the_seeds_that_both_have():
    found = claims.compare("a - b", shifted(0.1, seeds=(1, 2), noise=0.0), WORSE, LABELS)
    assert found["seeds"] == 2
    assert found["difference"] == pytest.approx(0.1)
    assert found["by_seed"] == pytest.approx([0.1, 0.1])
    # Paired: what the two have in common does not widen the interval.
    assert found["ci95"] == pytest.approx([0.1, 0.1])


def test_pooling_leaves_out_queries_without_a_value():
    pooled = claims.pool({0: np.array([1.0, np.nan, np.nan]), 1: np.array([3.0, 5.0, np.nan])})
    np.testing.assert_array_equal(pooled, [2.0, 5.0, np.nan])


@pytest.mark.parametrize(
    ("learn", "use", "expected"),
    [
        (3, 3, ""),
        (3, 0, "code unused"),
        (2, 2, "does not learn in 1 of 3 seeds"),
        (2, 1, "does not learn in 1 of 3 seeds, code unused in 1 of 3 seeds"),
        (0, 0, "does not learn"),
    ],
)
def test_a_net_that_does_not_learn_or_use_its_code_is_remarked(learn, use, expected):
    net = {"seeds": 3, "seeds_that_learn": learn, "seeds_that_use_the_code": use}
    assert plots.remark(net) == expected


def test_one_query_decides_no_claim():
    better, worse = ({seed: np.array([ap]) for seed in range(3)} for ap in (0.9, 0.1))
    found = claims.judge("x", "", [("", better, worse)], np.zeros(1, int))
    assert found["verdict"] == UNDECIDED
    assert found["comparisons"][0]["difference"] == pytest.approx(0.8)


def test_a_comparison_that_no_query_has_a_value_in_is_null_with_a_reason():
    nothing = {seed: np.full(200, np.nan) for seed in range(3)}
    found = claims.judge("x", "", [("", WORSE, nothing)], LABELS)
    assert found["verdict"] == UNDECIDED
    (comparison,) = found["comparisons"]
    for key in ("difference", "ci95"):
        assert comparison[key] is None
        assert "no query" in comparison[f"{key}_reason"]


def test_whether_the_code_is_used_is_not_said_where_it_is_not_known():
    net = {"seeds": 1, "seeds_that_learn": 1, "seeds_that_use_the_code": None}
    assert plots.remark(net) == ""

"""Weights that correct for the engine: what is true of them by other arguments than the formulas' own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_spec.off_policy_correction import (
    KEPT,
    LEVELS,
    MODES,
    SEQUENCE_WEIGHTS,
    bounded,
    exponents,
    off_policy_weights,
    sequence_weights,
    within,
)

ratios = st.lists(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=1, max_size=6)
close = pytest.approx


@given(ratios)
def test_the_product_is_that_of_the_weights_of_the_actions(log_ratios):
    alone = sequence_weights(log_ratios, level="token", mode="truncate", upper=1e9)
    whole = sequence_weights(log_ratios, level="sequence", mode="truncate", upper=1e9)
    assert whole == [close(math.prod(alone))] * len(alone)


@given(ratios)
def test_the_geometric_mean_is_a_root_of_the_product_and_no_longer_for_a_longer_response(log_ratios):
    options = {"level": "sequence", "mode": "truncate", "upper": 1e9}
    (product, *_), (mean, *_) = (sequence_weights(log_ratios, **options, sequence_weight=w) for w in SEQUENCE_WEIGHTS)
    assert mean ** len(log_ratios) == close(product)
    assert sequence_weights(log_ratios * 3, **options, sequence_weight="geometric")[0] == close(mean)


def test_weights_of_a_vocabulary_are_1_on_average_under_the_engine():
    """sum of q * p / q is 1: what the weights are for."""
    old, rollout = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    log_ratios = [math.log(p / q) for p, q in zip(old, rollout, strict=True)]
    weights = sequence_weights(log_ratios, level="token", mode="truncate", upper=100.0)
    assert sum(q * w for q, w in zip(rollout, weights, strict=True)) == close(1.0)


@given(st.floats(0, 10), st.floats(0.1, 5), st.none() | st.floats(0.0, 0.1))
def test_bounds_hold_what_they_hold(weight, upper, lower):
    truncated, masked = (bounded(weight, mode, upper, lower) for mode in MODES)
    assert within(truncated, upper, lower)
    assert masked in (0.0, weight)
    assert (masked == truncated) == within(weight, upper, lower) or weight == truncated == 0.0


@given(ratios, st.sampled_from(LEVELS), st.sampled_from(KEPT))
def test_a_band_rejects_the_same_whatever_it_keeps(log_ratios, level, kept):
    options = {"level": level, "mode": "mask", "upper": 1.7, "lower": 0.6}
    own, other = (sequence_weights(log_ratios, **options, kept=k) for k in ("weight", kept))
    assert [w == 0 for w in own] == [w == 0 for w in other]


@given(ratios)
def test_a_clamp_that_nothing_reaches_changes_nothing(log_ratios):
    for where in ("exponent", "actions"):
        for level in LEVELS:
            assert exponents(log_ratios, level, log_clamp=13.0, log_clamped=where) == exponents(log_ratios, level)


def test_a_clamp_is_a_bound_before_the_bound():
    (weight,) = sequence_weights([15.0], level="token", mode="truncate", upper=1e6, log_clamp=10.0)
    assert weight == close(22026.4658)


def test_masked_cells_are_not_read():
    nothing = float("nan")
    found = off_policy_weights([[nothing, -1.0]], [[1.0, -1.5]], [[0, 1]], level="sequence", mode="mask", upper=2.0)
    assert found == [[0.0, close(math.exp(0.5))]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": "row"},
        {"mode": "clip"},
        {"sequence_weight": "mean"},
        {"log_clamp": 0.0},
        {"log_clamped": "weights"},
        {"kept": "half"},
        {"of_nan": "mean"},
        {"upper": 0.5, "lower": 0.6, "mode": "mask"},
    ],
)
def test_what_there_is_not_is_refused(wrong):
    with pytest.raises(ValueError, match=r"none of|positive|above"):
        sequence_weights([0.1], **{"level": "token", "mode": "truncate", "upper": 2.0, **wrong})

"""Token log-probs: what is true of them by other arguments than the formula's own."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_spec.log_probs import (
    entropy,
    log_softmax,
    next_token_log_probs,
    token_log_prob,
    token_log_prob_gradient,
)

logits_lists = st.lists(st.floats(-50, 50), min_size=1, max_size=8)
wide_logits = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=8)
temperatures = st.floats(0.1, 10)


def exact_log_softmax(logits, temperature):
    """The definition as it is written, with fifty digits."""
    with localcontext() as context:
        context.prec = 50
        scaled = [Decimal(logit) / Decimal(temperature) for logit in logits]
        total = sum(z.exp() for z in scaled)
        return [float((z.exp() / total).ln()) for z in scaled]


@given(logits_lists, temperatures)
def test_log_softmax_is_the_definition(logits, temperature):
    assert log_softmax(logits, temperature) == pytest.approx(
        exact_log_softmax(logits, temperature), rel=1e-13, abs=1e-13
    )


@given(wide_logits, temperatures)
def test_probabilities_sum_to_one_and_no_log_prob_is_above_zero(logits, temperature):
    log_probs = log_softmax(logits, temperature)
    assert math.fsum(math.exp(x) for x in log_probs) == pytest.approx(1, rel=1e-14)
    assert all(x <= 0 for x in log_probs)


@given(logits_lists, st.floats(-1000, 1000))
def test_a_constant_added_to_all_logits_changes_nothing(logits, constant):
    moved = log_softmax([logit + constant for logit in logits])
    assert moved == pytest.approx(log_softmax(logits), abs=1e-11)


@given(logits_lists, temperatures)
def test_a_temperature_is_a_division_of_the_logits(logits, temperature):
    divided = log_softmax([logit / temperature for logit in logits])
    assert log_softmax(logits, temperature) == pytest.approx(divided, rel=1e-12, abs=1e-12)


def test_an_id_that_is_ruled_out_has_probability_zero():
    assert log_softmax([0.0, -math.inf]) == [0.0, -math.inf]
    assert entropy([0.0, -math.inf]) == 0.0


@given(logits_lists, temperatures)
def test_entropy_is_the_expected_surprise(logits, temperature):
    log_probs = exact_log_softmax(logits, temperature)
    assert entropy(logits, temperature) == pytest.approx(-sum(math.exp(x) * x for x in log_probs), abs=1e-12)


@given(wide_logits, temperatures)
def test_entropy_lies_between_certainty_and_a_fair_die(logits, temperature):
    assert 0 <= entropy(logits, temperature) <= math.log(len(logits)) + 1e-14


@given(st.data(), st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(0.5, 3))
def test_the_gradient_is_that_of_finite_differences(data, logits, temperature):
    label = data.draw(st.integers(0, len(logits) - 1))
    gradient = token_log_prob_gradient(logits, label, temperature)
    for index in range(len(logits)):

        def at(step, index=index):
            moved = [*logits]
            moved[index] += step
            return token_log_prob(moved, label, temperature)

        assert gradient[index] == pytest.approx((at(1e-5) - at(-1e-5)) / 2e-5, abs=1e-7)


@given(st.data(), wide_logits, temperatures)
def test_the_gradient_sums_to_zero_since_a_constant_changes_nothing(data, logits, temperature):
    label = data.draw(st.integers(0, len(logits) - 1))
    assert math.fsum(token_log_prob_gradient(logits, label, temperature)) == pytest.approx(0, abs=1e-12)


@given(st.lists(st.tuples(st.lists(st.floats(-9, 9), min_size=3, max_size=3), st.integers(0, 2)), max_size=6))
def test_a_token_is_scored_at_the_position_before_it(sequence):
    rows, tokens = [row for row, _ in sequence], [token for _, token in sequence]
    expected = [token_log_prob(row, token) for row, token in zip(rows[:-1], tokens[1:], strict=True)]
    assert next_token_log_probs(rows, tokens) == expected


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        log_softmax([0.0], temperature)


@pytest.mark.parametrize("logits", [[], [math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_without_a_softmax_are_refused(logits):
    with pytest.raises(ValueError, match="logit"):
        log_softmax(logits)


@pytest.mark.parametrize("function", [token_log_prob, token_log_prob_gradient])
@pytest.mark.parametrize("label", [-100, -1, 2])
def test_a_label_outside_the_vocabulary_is_refused(function, label):
    with pytest.raises(ValueError, match=f"the label {label} is not an id of a vocabulary of 2"):
        function([0.0, 0.0], label)


def test_rows_and_tokens_must_be_as_many():
    with pytest.raises(ValueError, match="1 rows of logits for 2 tokens"):
        next_token_log_probs([[0.0]], [0, 0])

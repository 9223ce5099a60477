"""Budgets: positive, larger for coarser dtypes, wide enough for honest arithmetic, far too narrow for a wrong one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_conformance.oracle import budgets
from rlhf_spec import log_probs as spec

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # from the finest to the coarsest
logits = st.lists(st.integers(-64, 64).map(lambda k: k / 8), min_size=2, max_size=12)
temperature = st.sampled_from((0.5, 0.7, 1.0, 1.3, 2.0))
number = st.integers(-24, 24).map(lambda k: k / 8)
numbers = st.lists(number, min_size=1, max_size=12)
estimators = st.sampled_from(("k1", "k2", "k3"))
clip_eps = st.sampled_from((None, 0.0, 0.25))
estimators = st.sampled_from(("k1", "k2", "k3", "abs"))
slopes = st.sampled_from(("plain", "k2", "weighted"))

# Every budget, as a function of a dtype and of hypothesis' draws.
BUDGETS = {
    "log_prob": lambda d, t: budgets.log_prob(d.draw(logits), d.draw(temperature), t),
    "entropy": lambda d, t: budgets.entropy(d.draw(logits), d.draw(temperature), t),
    "log_prob_gradient": lambda d, t: budgets.log_prob_gradient([1.0], d.draw(logits), 0.7, t)[0],
    "entropy_gradient": lambda d, t: min(budgets.entropy_gradient([1.0] * len(row := d.draw(logits)), row, 0.7, t)),
    "approx_kl": lambda d, t: budgets.approx_kl([1 + abs(d.draw(number))], d.draw(estimators), t),
    "policy_token": lambda d, t: budgets.policy_token(1 + abs(d.draw(number)), d.draw(number), d.draw(number), t),
    "value_token": lambda d, t: budgets.value_token(*(d.draw(number) for _ in range(3)), d.draw(clip_eps), t),
    "value_token_gradient": lambda d, t: budgets.value_token_gradient(
        *(d.draw(number) for _ in range(3)), d.draw(clip_eps), t
    ),
    "model_output": lambda d, t: budgets.model_output([0.0], [d.draw(number)], 1 + abs(d.draw(number)), t),
    "model_gradient": lambda d, t: budgets.model_gradient(1 + abs(d.draw(number)), abs(d.draw(number)), t),
    "aggregate": lambda d, t: budgets.aggregate([d.draw(number)], [0.0], [1.0], t),
    "kl": lambda d, t: budgets.kl(1 + abs(d.draw(number)), d.draw(estimators), t),
    "kl_slope": lambda d, t: budgets.kl_slope(1 + abs(d.draw(number)), d.draw(estimators), d.draw(slopes), t),
    "kl_below_zero": lambda d, t: budgets.kl_below_zero(t),
    "expected_kl": lambda d, t: budgets.expected_kl([-0.5, -1.0], [-1.0, -0.5], d.draw(estimators), t),
    "expected_kl_gradient": lambda d, t: min(budgets.expected_kl_gradient([-0.5, -1.0], [1.0, 2.0], [0.0, 0.0], t)),
    "token_reward": lambda d, t: budgets.token_reward(1 + abs(d.draw(number)), d.draw(number), t),
    "reward_sum": lambda d, t: budgets.reward_sum(1 + abs(d.draw(number)), d.draw(numbers), t),
    "advantage": lambda d, t: budgets.advantage(1 + abs(d.draw(number)), d.draw(st.integers(1, 9)), t),
}


class Again:
    """Draws the same for each dtype."""

    def __init__(self, data):
        self.data, self.drawn, self.next = data, [], 0

    def draw(self, strategy):
        if self.next == len(self.drawn):
            self.drawn.append(self.data.draw(strategy))
        self.next += 1
        return self.drawn[self.next - 1]


@pytest.mark.parametrize("name", BUDGETS)
@given(data=st.data())
def test_a_budget_is_positive_finite_and_grows_with_the_unit_round_off(name, data):
    again, found = Again(data), []
    for dtype in DTYPES:
        again.next = 0
        found.append(BUDGETS[name](again, dtype))
    assert all(0 < budget < math.inf for budget in found)
    assert found == sorted(found)
    if name not in ("aggregate",):
        assert found[-1] > found[0], "bfloat16 must be allowed more than float64"


def test_no_dtype_is_asked_for_more_than_float32():
    assert budgets.unit(torch.float64) == budgets.unit(torch.float32) == 2.0**-24
    assert budgets.unit(torch.float16) == torch.finfo(torch.float16).eps / 2
    assert budgets.unit(torch.bfloat16) == torch.finfo(torch.bfloat16).eps / 2


def test_a_sampled_error_of_zero_leaves_room():
    assert budgets.model_output([1.0], [1.0], 10.0, torch.float32) > 1e-4
    assert budgets.model_gradient(1.0, 0.0, torch.float32) > 1e-5


# --- the formulas, worked by hand ---------------------------------------------------------------------------------

U, HALF = 2.0**-24, torch.bfloat16  # the unit round-off of float32
LOG_PROB = 2 * U * (6 * 2 / 0.5 + 2 + 2 * math.log(2) + 2)
WORKED = {
    "log-prob": (lambda: budgets.log_prob([1.0, -2.0], 0.5, torch.float32), LOG_PROB),
    "entropy": (lambda: budgets.entropy([1.0, -2.0], 0.5, torch.float32), LOG_PROB * (2 + 3 / 0.5 + math.log(2))),
    "log-prob gradient": (
        lambda: budgets.log_prob_gradient([-0.25], [1.0, -2.0], 0.5, torch.float32)[0],
        2 * (LOG_PROB + 2 * U) / 0.5,
    ),
    "log-prob gradient, half": (
        lambda: budgets.log_prob_gradient([-0.25], [1.0, -2.0], 0.5, torch.float16)[0],
        2 * (LOG_PROB + 2 * U) / 0.5 + 4 * 2.0**-11 * 0.25 + 2 * 2.0**-24,
    ),
    "entropy gradient of two alike": (
        lambda: budgets.entropy_gradient([0.0, 0.0], [0.0, 0.0], 1.0, torch.float32)[1],
        (ALIKE := 2 * U * (2 + 2 * math.log(2) + 2)) * (1 + 2 + math.log(2)) + 2.0**-126 * 2,
    ),
    "k1": (lambda: budgets.approx_kl([0.5, -1.5], "k1", HALF), 2 * 2.0**-8 * (8 * 1.0 + 2.0)),
    "k2": (lambda: budgets.approx_kl([0.5, -1.5], "k2", HALF), 2 * 2.0**-8 * (8 * 1.25 + 1.25)),
    "k3": (lambda: budgets.approx_kl([0.0], "k3", torch.float32), 2 * U * 8),
    "k1 of nothing": (lambda: budgets.approx_kl([], "k1", torch.float32), 0.0),
    "policy token": (lambda: budgets.policy_token(-3.0, -0.5, -2.0, torch.float32), 2 * U * (3 * (2 * 0.5 + 6) + 2)),
    "policy token, half": (
        lambda: budgets.policy_token(-3.0, -0.5, -2.0, HALF),
        2 * (2.0**-8 * 3 * (2 * 0.5 + 6) + U * 2),
    ),
    "value token without a clip": (
        lambda: budgets.value_token(3.0, 1.0, -2.0, None, torch.float32),
        2 * 2 * U * 5**2,
    ),
    "value token, clipped to 1.5": (
        lambda: budgets.value_token(3.0, 1.0, -2.0, 0.5, torch.float32),
        2 * (2 * U * 5**2 + 3.5 * (E := U * (0.5 + 1.5 + 3.5)) + E**2 + U * 3.5**2),
    ),
    "value token, within the band": (
        lambda: budgets.value_token(0.75, 1.0, 3.0, 0.5, torch.float32),
        2 * (2 * U * 2.25**2 + 2.25 * (E := U * (0.25 + 0.75 + 2.25)) + E**2 + U * 2.25**2),
    ),
    "value gradient without a clip": (
        lambda: budgets.value_token_gradient(-1.0, 3.0, -2.0, None, torch.float32),
        2 * 3 * U * 1,
    ),
    "value gradient, clipped to 2.5": (
        lambda: budgets.value_token_gradient(-1.0, 3.0, -2.0, 0.5, torch.float32),
        2 * (3 * U * 1 + U * (0.5 + 2.5 + 4.5)),
    ),
    "value gradient of zeros": (
        lambda: budgets.value_token_gradient(0.0, 0.0, 0.0, None, torch.float32),
        2 * 3 * U * 1e-3,
    ),
    "mean": (
        lambda: budgets.aggregate([3.0, -1.0], [0.5, 0.25], [0.5, 0.25], torch.float32),
        0.25 + 0.0625 + 2 * U * (2 + 3) * (1.5 + 0.25) + 1e-12,
    ),
    "mean of nothing": (lambda: budgets.aggregate([], [], [], torch.float32), 1e-12),
    "model": (
        lambda: budgets.model_output([1.0, 2.0], [1.5, 1.75], 10.0, torch.float32, 0.5),
        2 * 10 * (6 * U + 300 * U) / 0.5 + 4 * 0.5,
    ),
    "model, half, a high temperature": (
        lambda: budgets.model_output([1.0], [1.5], 10.0, HALF, 2.0),
        2 * 10 * (6 * 2.0**-8 + 300 * U) + 4 * 0.5,
    ),
    "model without an answer": (lambda: budgets.model_output([], [], 1.0, torch.float32), 2 * (6 * U + 300 * U)),
    "model gradient, half": (
        lambda: budgets.model_gradient(10.0, 0.5, HALF),
        2 * 10 * (2 * 6 * 2.0**-8 + 2 * 300 * U) + 4 * 0.5 + 1e-9,
    ),
    "model gradient of zero": (lambda: budgets.model_gradient(0.0, 0.0, HALF), 1e-9),
    "KL k1": (lambda: budgets.kl(-3.0, "k1", torch.float32), 2 * U * 2 * 3),
    "KL k2": (lambda: budgets.kl(-3.0, "k2", HALF), 2 * 2.0**-8 * 4 * 9 / 2),
    "KL k3": (lambda: budgets.kl(-3.0, "k3", torch.float32), 2 * U * (math.exp(3) * (3 + 3) + 2 * 3 + 1)),
    "slope of k1": (lambda: budgets.kl_slope(-3.0, "k1", "plain", torch.float32), 6 * U),
    "slope of k3": (
        lambda: budgets.kl_slope(-3.0, "k3", "plain", torch.float32),
        2 * U * (math.exp(3) * 6 + 7),
    ),
    "slope of k2 in place of another": (lambda: budgets.kl_slope(-3.0, "k3", "k2", torch.float32), 6 * U * 3),
    "weighted slope of k1": (lambda: budgets.kl_slope(-3.0, "k1", "weighted", torch.float32), 2 * (6 * U + 4 * U * 3)),
    "KL below 0": (lambda: budgets.kl_below_zero(HALF), 4 * 2.0**-8),
    "expected k1": (
        lambda: budgets.expected_kl([-1.0], [-2.0], "k1", torch.float32),
        math.exp(-1) * (4 * U + 2 * U) + 2 * U * (math.exp(-1) * 2 + math.exp(-2) * 3),
    ),
    "expected gradient": (
        lambda: budgets.expected_kl_gradient([-1.0], [3.0], [0.5], torch.float32)[0],
        math.exp(-1) * (0.5 + math.exp(-1) * 0.5 + 8 * U * (3 + math.exp(-1) * 3)),
    ),
    "token reward": (lambda: budgets.token_reward(-2.0, 0.5, torch.float32), 2 * U * (3 * 0.5 + 2 * 2)),
    "sum of rewards": (lambda: budgets.reward_sum(-2.0, [0.5, -1.0], torch.float32), 2 * U * 7 * 3.5),
    "advantage": (lambda: budgets.advantage(5.0, 3, HALF), 2 * 2.0**-8 * 15 * 5),
}


@pytest.mark.parametrize("name", WORKED)
def test_a_budget_is_what_its_docstring_says(name):
    """A slip in a budget is neither a false alarm nor a missed bug at once: it only takes room from one of the two."""
    budget, by_hand = WORKED[name]
    assert budget() == pytest.approx(by_hand, rel=1e-12, abs=0)


@pytest.mark.parametrize("losses, errors, weights", [([1.0], [], [1.0]), ([1.0, 2.0], [0.0], [1.0])])
def test_a_mean_has_an_error_and_a_weight_for_each_loss(losses, errors, weights):
    with pytest.raises(ValueError):
        budgets.aggregate(losses, errors, weights, torch.float32)


def test_a_model_has_a_plain_answer_for_each_truth():
    with pytest.raises(ValueError):
        budgets.model_output([1.0, 2.0], [1.0], 1.0, torch.float32)


# --- honest arithmetic is inside ----------------------------------------------------------------------------------


@given(logits, temperature, st.randoms(use_true_random=False))
def test_honest_log_probs_in_float32_are_inside(row, t, random):
    """torch's log-softmax; the logarithm of the softmax; a sum of exponentials in a random order."""
    label = random.randrange(len(row))
    truth, allowed = spec.token_log_prob(row, label, t), budgets.log_prob(row, t, torch.float32)
    scaled = torch.tensor(row) / t
    order = torch.tensor(random.sample(range(len(row)), len(row)))
    total = torch.zeros(())
    for x in (scaled - scaled.max())[order].exp():
        total = total + x
    for answer in (
        scaled.log_softmax(-1)[label],
        scaled[label] - scaled.logsumexp(-1),
        scaled[label] - scaled.max() - total.log(),
    ):
        assert abs(float(answer) - truth) <= allowed


@given(logits, temperature)
def test_honest_entropies_in_float32_are_inside(row, t):
    truth, allowed = spec.entropy(row, t), budgets.entropy(row, t, torch.float32)
    scaled = torch.tensor(row) / t
    p = scaled.softmax(-1)
    for answer in (-(p * scaled.log_softmax(-1)).sum(), scaled.logsumexp(-1) - (p * scaled).sum()):
        assert abs(float(answer) - truth) <= allowed


@given(numbers, st.randoms(use_true_random=False), st.sampled_from((torch.float32, torch.float64)))
def test_honest_means_are_inside(values, random, dtype):
    truth = math.fsum(values) / len(values)
    allowed = budgets.aggregate(values, [0.0] * len(values), [1 / len(values)] * len(values), dtype)
    shuffled = random.sample(values, len(values))
    total = torch.zeros((), dtype=dtype)
    for x in shuffled:
        total = total + x
    for answer in (torch.tensor(values, dtype=dtype).mean(), total / len(values)):
        assert abs(float(answer) - truth) <= allowed


@given(logits, temperature, st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
def test_honest_gradients_are_inside(row, t, half):
    """Computed in float32 and rounded to the dtype of the logits, as automatic differentiation does it."""
    z = torch.tensor(row).to(half).requires_grad_()
    exact = z.detach().double().tolist()
    wide = (z.float() / t).log_softmax(-1)
    (of_log_prob,) = torch.autograd.grad(wide[0], z, retain_graph=True)
    (of_entropy,) = torch.autograd.grad(-(wide.exp() * wide).sum(), z)
    log_prob, entropy = spec.token_log_prob_gradient(exact, 0, t), spec.entropy_gradient(exact, t)
    for came, truth, budget in (
        (of_log_prob, log_prob, budgets.log_prob_gradient(log_prob, exact, t, half)),
        (of_entropy, entropy, budgets.entropy_gradient(entropy, exact, t, half)),
    ):
        for a, b, allowed in zip(came.tolist(), truth, budget, strict=True):
            assert abs(a - b) <= allowed


# --- wrong arithmetic is outside ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [[0.0, 1.0], [3.0, -2.0, 0.5], [float(k) for k in range(-4, 5)]])
def test_a_log_prob_from_bfloat16_logits_is_outside_of_float32(row):
    """The softmax in half precision is what log-probs.float32 is there to catch."""
    wrong = torch.tensor(row, dtype=torch.bfloat16).log_softmax(-1)
    truth = [spec.token_log_prob(row, label) for label in range(len(row))]
    worst = max(abs(a - b) for a, b in zip(wrong.tolist(), truth, strict=True))
    assert worst > 10 * budgets.log_prob(row, 1.0, torch.float32)


@given(logits)
def test_a_temperature_of_one_instead_of_another_is_outside(row):
    """Of the likeliest token, unless it shares its place: two that are equal and far above the rest keep their half."""
    label = max(range(len(row)), key=row.__getitem__)
    wrong, truth = spec.token_log_prob(row, label, 1.0), spec.token_log_prob(row, label, 1.3)
    if row.count(row[label]) == 1 and truth < -1e-3:
        assert abs(wrong - truth) > budgets.log_prob(row, 1.3, torch.float32)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_a_loss_off_by_a_thousandth_is_outside(ratio):
    assert budgets.policy_token(1.0, math.log(ratio), 1.0, torch.float32) * 100 < 1e-3
    assert budgets.value_token(ratio, 1.0, 0.0, 0.2, torch.float32) * 10 < 1e-3


def test_half_precision_does_not_hide_the_gradient_of_a_confident_label():
    truth = spec.token_log_prob_gradient([8.0, 0.0], 0)
    allowed = budgets.log_prob_gradient(truth, [8.0, 0.0], 1.0, torch.bfloat16)
    assert [10 * a < abs(t) for a, t in zip(allowed, truth, strict=True)] == [True, True]


def test_half_precision_does_not_hide_what_a_small_ratio_leaves_of_the_gradient():
    gradient = math.exp(-6.0)
    assert budgets.policy_token(-gradient, -6.0, 1.0, torch.bfloat16) < 0.2 * gradient


def test_half_precision_does_not_hide_a_kl_of_the_other_sign():
    assert budgets.approx_kl([1.5, 1.25, 0.5], "k1", torch.bfloat16) < 0.2 * (1.5 + 1.25 + 0.5) / 3


def test_half_precision_does_not_hide_half_of_a_small_value_loss():
    assert budgets.value_token(2.25, 2.5, 2.0, None, torch.bfloat16) < 0.25 * (0.5 * 0.25**2)

"""The KL, rewards of tokens, advantages and the whole path: what is true of them by other arguments than the
formulas'."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_spec import advantages as spec
from rlhf_spec.credit import path_advantages, path_returns
from rlhf_spec.kl import ESTIMATORS, expected_kl_gradient, kl_divergence, kl_gradient, token_kl, token_kl_gradient
from rlhf_spec.token_rewards import POSITIONS, reward_sums, score_cell, token_rewards

close = pytest.approx
numbers = st.floats(-3.0, 3.0).map(lambda x: round(x, 3))
log_probs = st.floats(-5.0, -0.01)
discounts = st.sampled_from([0.0, 0.3, 0.9, 1.0])


@st.composite
def vocabularies(draw):
    """The log-probs that two models give each of a few tokens."""
    size = draw(st.integers(2, 6))
    logits = [draw(st.lists(numbers, min_size=size, max_size=size)) for _ in range(2)]
    return [[z - math.log(math.fsum(map(math.exp, row))) for z in row] for row in logits]


@st.composite
def samples(draw):
    """Rewards, values and a mask of one sample."""
    size = draw(st.integers(1, 7))
    return tuple(draw(st.lists(cell, min_size=size, max_size=size)) for cell in (numbers, numbers, st.integers(0, 1)))


# The KL


@given(vocabularies())
def test_k1_and_k3_are_right_on_average_and_k2_nearly(models):
    policy, ref = models
    mean = {
        name: math.fsum(math.exp(p) * token_kl(p, q, name) for p, q in zip(policy, ref, strict=True))
        for name in ESTIMATORS
    }
    (divergence,) = kl_divergence([policy], [ref])
    assert mean["k1"] == close(divergence, abs=1e-9)
    assert mean["k3"] == close(divergence, abs=1e-9)
    assert min(mean["k2"], mean["k3"], mean["abs"], divergence) >= -1e-12


@given(vocabularies())
def test_expected_gradients_are_those_of_the_two_divergences(models):
    """By finite differences of the divergences with respect to each logit."""
    policy, ref = models
    forward = differences(lambda row: kl_divergence([row], [ref])[0], policy)
    backward = differences(lambda row: kl_divergence([ref], [row])[0], policy)
    expected = {name: expected_kl_gradient([policy], [ref], estimator=name)[0] for name in ("k1", "k2", "k3")}
    assert expected["k1"] == [close(0, abs=1e-9)] * len(policy)
    assert expected["k2"] == [close(x, abs=1e-5) for x in forward]
    assert expected["k3"] == [close(x, abs=1e-5) for x in backward]
    for name in ("k1", "k3"):
        (weighted,) = expected_kl_gradient([policy], [ref], estimator=name, gradient="weighted")
        assert weighted == [close(x, abs=1e-5) for x in forward]


def differences(function, row, step=1e-6):
    def moved(i, by):
        logits = [z + by * (i == j) for j, z in enumerate(row)]
        return [z - math.log(math.fsum(map(math.exp, logits))) for z in logits]

    return [(function(moved(i, step)) - function(moved(i, -step))) / (2 * step) for i in range(len(row))]


@given(log_probs, log_probs, st.sampled_from(ESTIMATORS))
def test_a_slope_is_that_of_the_estimate(log_prob, ref, name):
    if name == "abs" and abs(log_prob - ref) < 1e-3:
        return
    step = 1e-6
    slope = (token_kl(log_prob + step, ref, name) - token_kl(log_prob - step, ref, name)) / (2 * step)
    assert token_kl_gradient(log_prob, ref, name) == close(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_where_both_agree_the_kl_is_0_and_so_is_its_plain_slope_but_for_k1(name):
    assert token_kl(-1.3, -1.3, name) == 0
    assert token_kl_gradient(-1.3, -1.3, name) == (1.0 if name == "k1" else 0.0)


def test_a_clamp_that_binds_leaves_no_gradient():
    held = {"log_ratio_clamp": 20.0, "clamp": 10.0}
    assert token_kl(-1000.0, -1.0, "k3", **held) == 10.0
    assert kl_gradient([[-1000.0, -1.0]], [[-1.0, -2.0]], [[1, 1]], estimator="k1", **held)[0] == [0.0, 2.0]


@pytest.mark.parametrize(
    "wrong", [{"estimator": "k4"}, {"estimator": "k1", "clamp": 0.0}, {"estimator": "k1", "log_ratio_clamp": -1.0}]
)
def test_what_there_is_not_is_refused(wrong):
    with pytest.raises(ValueError, match=r"there is no KL estimator|a clamp must be positive"):
        token_kl(-1.0, -1.0, **wrong)


# Rewards of tokens


@given(samples(), numbers, st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([None, 1.0]))
def test_the_rewards_add_up_wherever_the_score_lands(sample, score, coef, clip):
    kl, _, mask = sample
    options = {"kl_coef": coef, "score_clip": clip}
    (total,) = reward_sums([score], [kl], [mask], **options)
    for position in POSITIONS:
        (row,) = token_rewards([score], [kl], [mask], score_position=position, **options)
        lost = any(mask) and score_cell(mask, position) is None
        held = score if clip is None else min(max(score, -clip), clip)
        assert sum(row) + (held if lost else 0.0) == close(total, abs=1e-9)


def test_a_coefficient_of_0_is_as_if_there_were_no_kl():
    assert token_rewards([2.0], [[math.inf, math.nan]], [[1, 1]], kl_coef=0.0) == [[0.0, 2.0]]


# Advantages


@given(samples(), discounts)
def test_lambda_1_forgets_the_values_and_lambda_0_looks_one_step_ahead(sample, gamma):
    rewards, values, mask = sample
    columns = spec.row_steps(mask, "skipped")
    monte_carlo = spec.row_advantages(*sample, gamma, 1.0)
    one_step = spec.row_advantages(*sample, gamma, 0.0)
    for n, column in enumerate(columns):
        later = columns[n:]
        total = math.fsum(gamma**k * rewards[j] for k, j in enumerate(later))
        assert monte_carlo[column] == close(total - values[column], abs=1e-9)
        following = values[later[1]] if len(later) > 1 else 0.0
        assert one_step[column] == close(rewards[column] + gamma * following - values[column], abs=1e-9)


@given(samples(), discounts, discounts, st.sampled_from(spec.OBSERVATIONS), st.sampled_from(spec.AFTER_LAST))
def test_an_advantage_is_a_sum_of_discounted_deltas(sample, gamma, lam, observations, after_last):
    """By the sum, where the formula goes by a recursion."""
    rewards, values, mask = sample
    steps = spec.row_steps(mask, observations)
    r = [rewards[j] if mask[j] else 0.0 for j in steps]
    v = [values[j] if mask[j] or observations == "value-steps" else 0.0 for j in steps]
    behind = steps[-1] + 1 if steps and steps[-1] + 1 < len(mask) else None
    if behind is not None and after_last != "nothing":
        r.append(rewards[behind] if after_last == "step" else values[behind])
        v.append(values[behind])
    deltas = [x + gamma * y - z for x, y, z in zip(r, [*v[1:], 0.0], v, strict=True)] if v else []
    found = spec.row_advantages(*sample, gamma, lam, observations, after_last)
    for n, column in enumerate(steps):
        if mask[column]:
            total = math.fsum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[n:]))
            assert found[column] == close(total, abs=1e-9)


@given(samples(), discounts)
def test_without_a_critic_the_return_is_that_of_a_critic_that_says_0(sample, gamma):
    rewards, _, mask = sample
    nothing = [0.0] * len(mask)
    wanted = spec.critic_returns([rewards], [nothing], [mask], gamma=gamma, lam=1.0)
    assert spec.discounted_returns([rewards], [mask], gamma=gamma) == wanted


def test_constant_rewards_make_a_geometric_series():
    (row,) = spec.discounted_returns([[1.0] * 50], [[1] * 50], gamma=0.5)
    assert (row[-1], row[0]) == (1.0, close(2.0))


@pytest.mark.parametrize("rule", [("sometimes", "nothing"), ("skipped", "everything")])
def test_rules_that_there_are_not_are_refused(rule):
    with pytest.raises(ValueError, match="there is no rule"):
        spec.row_advantages([1.0], [0.0], [1], 1.0, 1.0, *rule)


# The whole path


@given(samples(), numbers, discounts)
def test_the_path_of_a_policy_at_its_reference_is_that_of_the_score(sample, score, gamma):
    log_prob, values, mask = sample
    tables = ([log_prob], [log_prob], [values], [mask])
    (returns,) = path_returns([score], *tables, kl_coef=0.3, gamma=gamma, lam=1.0)
    columns = [j for j, m in enumerate(mask) if m]
    for n, column in enumerate(columns):
        assert returns[column] == close(gamma ** (len(columns) - 1 - n) * score, abs=1e-9)


@given(samples(), numbers, discounts, discounts)
def test_the_path_is_its_three_parts(sample, score, gamma, lam):
    log_prob, ref, mask = sample
    kl = [[p - q if m else 0.0 for p, q, m in zip(*sample, strict=True)]]
    rewards = token_rewards([score], kl, [mask], kl_coef=0.3)
    found = path_advantages([score], [log_prob], [ref], [ref], [mask], kl_coef=0.3, gamma=gamma, lam=lam)
    assert found == spec.advantages(rewards, [ref], [mask], gamma=gamma, lam=lam)

"""The KL, rewards of tokens, advantages and the whole path: the reference against the spec, and by closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rlhf_reference as ref
from rlhf_spec import advantages as spec_advantages
from rlhf_spec import credit as spec_credit
from rlhf_spec import kl as spec_kl
from rlhf_spec import token_rewards as spec_rewards

numbers = st.floats(-3.0, 3.0).map(lambda x: round(x, 2))
discounts = st.sampled_from([0.0, 0.5, 0.9, 1.0])


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Three tables under a mask that may have holes and empty rows, and a score for each row."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))

    def table(cells: st.SearchStrategy) -> list[list[Any]]:
        row = st.lists(cells, min_size=columns, max_size=columns)
        return draw(st.lists(row, min_size=rows, max_size=rows))

    scores = draw(st.lists(numbers, min_size=rows, max_size=rows))
    return {
        "a": table(numbers),
        "b": table(numbers),
        "c": table(numbers),
        "mask": table(st.integers(0, 1)),
        "s": scores,
    }


def exact(x: Any) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def same(found: torch.Tensor, wanted: Any) -> None:
    torch.testing.assert_close(found, exact(wanted), rtol=1e-9, atol=1e-9)


def spoiled(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(mask == 0, math.nan)


@given(batches(), st.sampled_from(spec_kl.ESTIMATORS), st.sampled_from([None, 1.0]), st.sampled_from([None, 0.5]))
def test_the_kl_is_that_of_the_spec_with_its_gradient(batch, estimator, log_ratio_clamp, clamp):
    held = {"log_ratio_clamp": log_ratio_clamp, "clamp": clamp}
    mask = torch.tensor(batch["mask"])
    a, b = spoiled(exact(batch["a"]), mask).requires_grad_(), spoiled(exact(batch["b"]), mask)
    found = ref.token_kl(a, b, mask, estimator, **held)
    tables = (batch["a"], batch["b"], batch["mask"])
    same(found, spec_kl.kl(*tables, estimator=estimator, **held))
    marks = mask.bool().long()
    (found * (marks.flatten().cumsum(0).reshape(mask.shape) * marks)).sum().backward()
    assert a.grad is not None
    assert not a.grad[mask == 0].any()
    kinks = [
        [not m or abs(p - q) in (0.0, log_ratio_clamp) for p, q, m in zip(*rows, strict=True)]
        for rows in zip(*tables, strict=True)
    ]
    if clamp is None:  # which puts corners elsewhere
        wanted = exact(spec_kl.kl_gradient(*tables, estimator=estimator, **held))
        at_a_kink = torch.tensor(kinks)
        torch.testing.assert_close(a.grad.masked_fill(at_a_kink, 0.0), wanted.masked_fill(at_a_kink, 0.0))


@given(batches(), st.sampled_from([0.0, 0.1, 1.5]), st.sampled_from([None, 1.0]))
def test_rewards_are_those_of_the_spec(batch, kl_coef, score_clip):
    options = {"kl_coef": kl_coef, "score_clip": score_clip}
    mask = torch.tensor(batch["mask"])
    kl, scores = spoiled(exact(batch["a"]), mask).requires_grad_(), exact(batch["s"]).requires_grad_()
    found = ref.token_level_rewards(scores, kl, mask, **options)
    same(found, spec_rewards.token_rewards(batch["s"], batch["a"], batch["mask"], **options))
    assert not found.requires_grad


@given(batches(), discounts, discounts)
def test_advantages_and_returns_are_those_of_the_spec(batch, gamma, lam):
    mask = torch.tensor(batch["mask"])
    rewards, values = (spoiled(exact(batch[name]), mask).requires_grad_() for name in ("a", "b"))
    advantages, returns = ref.advantages_and_returns(rewards, values, mask, gamma=gamma, lam=lam)
    tables = (batch["a"], batch["b"], batch["mask"])
    same(advantages, spec_advantages.advantages(*tables, gamma=gamma, lam=lam))
    same(returns, spec_advantages.critic_returns(*tables, gamma=gamma, lam=lam))
    found = ref.discounted_returns(rewards, mask, gamma=gamma)
    same(found, spec_advantages.discounted_returns(batch["a"], batch["mask"], gamma=gamma))
    assert not (advantages.requires_grad or returns.requires_grad or found.requires_grad)


@given(batches(), st.sampled_from(spec_kl.ESTIMATORS), discounts, discounts)
def test_the_whole_path_is_that_of_the_spec(batch, estimator, gamma, lam):
    options: dict[str, Any] = {"estimator": estimator, "kl_coef": 0.3, "gamma": gamma, "lam": lam}
    mask = torch.tensor(batch["mask"])
    tables = [spoiled(exact(batch[name]), mask) for name in ("a", "b", "c")]
    advantages, returns = ref.credited(exact(batch["s"]), *tables, mask, **options)
    given_ = (batch["s"], batch["a"], batch["b"], batch["c"], batch["mask"])
    same(advantages, spec_credit.path_advantages(*given_, **options))
    same(returns, spec_credit.path_returns(*given_, **options))


# Closed forms


VALUES, ONES = exact([[0.5, 0.25, 0.5, 9.0]]), exact([[1.0, 1.0, 1.0, 9.0]])
MASK = torch.tensor([[1, 1, 1, 0]])


def test_lambda_0_is_the_error_of_one_step():
    advantages, _ = ref.advantages_and_returns(ONES, VALUES, MASK, gamma=0.5, lam=0.0)
    same(advantages, [[1 + 0.125 - 0.5, 1 + 0.25 - 0.25, 0.5, 0.0]])


def test_lambda_1_is_what_came_in_less_the_value():
    advantages, returns = ref.advantages_and_returns(ONES, VALUES, MASK, gamma=1.0, lam=1.0)
    same(returns, [[3.0, 2.0, 1.0, 0.0]])
    same(advantages, [[2.5, 1.75, 0.5, 0.0]])


def test_constant_rewards_make_a_geometric_series():
    ones = torch.ones(1, 50, dtype=torch.float64)
    assert ref.discounted_returns(ones, ones, gamma=0.5)[0, 0] == pytest.approx(2.0)


def test_a_critic_that_knows_everything_leaves_no_advantage():
    returns = ref.discounted_returns(ONES, MASK, gamma=0.9)
    advantages, _ = ref.advantages_and_returns(ONES, returns, MASK, gamma=0.9, lam=0.7)
    same(advantages, [[0.0] * 4])


def test_an_observation_counts_for_nothing():
    rewards, values = exact([[0.0, 7.0, 1.0]]), exact([[0.5, 7.0, 0.25]])
    with_it = ref.advantages_and_returns(rewards, values, torch.tensor([[1, 0, 1]]), gamma=0.5, lam=1.0)
    without = ref.advantages_and_returns(rewards[:, ::2], values[:, ::2], torch.tensor([[1, 1]]), gamma=0.5, lam=1.0)
    same(with_it[0][:, ::2], without[0])
    same(with_it[1][:, ::2], without[1])


def test_k3_of_a_small_log_ratio_keeps_its_digits():
    d = torch.tensor([[1e-4, -1e-4]])
    found = ref.token_kl(d, torch.zeros_like(d), torch.ones_like(d), "k3")
    torch.testing.assert_close(found, d**2 / 2, rtol=1e-2, atol=1e-9)
    assert (found >= 0).all()


def test_an_infinite_k3_is_held_with_a_gradient_of_0():
    log_probs = torch.tensor([[-1000.0, -1.0]], requires_grad=True)
    found = ref.token_kl(
        log_probs, torch.tensor([[-1.0, -1.5]]), torch.ones(1, 2), "k3", log_ratio_clamp=20.0, clamp=10.0
    )
    found.sum().backward()
    assert found[0, 0] == 10.0
    assert log_probs.grad is not None
    assert log_probs.grad[0, 0] == 0
    assert log_probs.grad.isfinite().all()


def test_an_estimator_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="unknown estimator"):
        ref.token_kl(VALUES, VALUES, MASK, "k4")

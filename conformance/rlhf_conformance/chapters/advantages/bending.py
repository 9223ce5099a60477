"""The recursion of the advantages with its rules as arguments, for those who bend them or follow others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._credit.bending import spans
from rlhf_conformance.chapters._tensors import chosen, wide

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    options: Any,
    *,
    steps: Tensor | None = None,
    valued: Tensor | None = None,
    next_value: float = 1.0,
    own_value: float = 1.0,
    decay: float | None = None,
) -> Tensor:
    """(B, T) advantages, whatever stands in cells that are no actions.

    steps       (B, T) the cells that are steps; None: the actions
    valued      (B, T) the steps that have the critic's value; None: the actions
    next_value, own_value   factors of the two values of a delta, beside gamma
    decay       what the advantage behind is weighted with; None: gamma lambda
    """
    steps = mask.bool() if steps is None else steps
    rewards, values = chosen(rewards, mask), chosen(values, mask if valued is None else valued)
    decay = options.gamma * options.lam if decay is None else decay
    advantage = following = torch.zeros_like(values[:, 0])
    found = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + options.gamma * next_value * following - own_value * values[:, t]
        advantage = torch.where(steps[:, t], delta + decay * advantage, advantage)
        following = torch.where(steps[:, t], values[:, t], following)
        found[:, t] = advantage
    return found


def with_returns(advantages: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The advantages and what they make of the values, both 0 outside the mask and without a graph."""
    advantages = chosen(advantages.detach(), mask)
    return advantages, advantages + chosen(values.detach(), mask)


def without_critic(recursion: Callable[..., Tensor], rewards: Tensor, mask: Tensor, options: Any) -> Tensor:
    """Discounted returns by recursion(rewards, values, mask, options): values of 0, and a lambda of 1."""
    found = recursion(rewards, torch.zeros_like(rewards), mask, replace(options, lam=1.0))
    return chosen(found, mask).detach()


def over_observations(rewards: Tensor, values: Tensor, mask: Tensor, options: Any, *, valued: bool) -> Tensor:
    """Observations between two actions are steps, with the critic's value or with 0."""
    between = spans(mask)
    return gae(rewards, values, mask, options, steps=between, valued=between if valued else None)


def beyond_the_end(rewards: Tensor, values: Tensor, mask: Tensor, options: Any, *, rewarded: bool) -> Tensor:
    """The cell behind the last action counts: as a step with its reward and its value, or as a value alone, which is a
    step whose reward is its value."""
    behind = torch.nn.functional.pad(spans(mask), (1, 0))[:, :-1] & ~spans(mask)
    steps = mask.bool() | behind
    rewards = torch.where(behind, wide(rewards if rewarded else values), wide(rewards))
    return gae(rewards, values, steps, options)

"""Advantages and returns from the rewards of tokens.

Generalized advantage estimation (Schulman et al. 2015, arXiv:1506.02438): A = delta + gamma lambda A', with
delta = r + gamma V' - V, backward from the last action, after which nothing comes. Observations between two turns are
skipped: the next step of an action is the next action, as if the turns stood side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages_and_returns(
    token_rewards: Tensor, values: Tensor, action_mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """The advantage of each action, and what the critic is to learn: that plus its value.

    token_rewards, values   (B, T) floating; values are those of the state before each action
    action_mask             (B, T), nonzero where a token is an action; what lies elsewhere is not read
    returns                 two of (B, T), 0 outside the mask, without a graph
    """
    chosen = action_mask.bool()
    rewards, values = (x.detach().where(chosen, 0.0) for x in (token_rewards, values))
    advantage = following = torch.zeros_like(values[:, 0])
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = torch.where(chosen[:, t], delta + gamma * lam * advantage, advantage)
        following = torch.where(chosen[:, t], values[:, t], following)
        advantages[:, t] = advantage
    advantages = advantages.where(chosen, 0.0)
    return advantages, advantages + values


def discounted_returns(token_rewards: Tensor, action_mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """The discounted rewards from each action on, for trainers without a critic.

    token_rewards, action_mask  (B, T), as above
    returns                     (B, T), 0 outside the mask, without a graph
    """
    nothing = torch.zeros_like(token_rewards)
    return advantages_and_returns(token_rewards, nothing, action_mask, gamma=gamma, lam=1.0)[0]

"""The formulas of the toy chapter, as plain Python."""

from __future__ import annotations

Rows = list[list[float]]


def advantages(
    rewards: Rows, values: Rows, action_mask: list[list[int]], gamma: float, lam: float, bootstrap: bool = False
) -> Rows:
    """Generalized advantages, row by row, from the last action on; 0.0 outside the mask."""
    return [_row(*row, gamma, lam, bootstrap) for row in zip(rewards, values, action_mask, strict=True)]


def _row(
    rewards: list[float], values: list[float], mask: list[int], gamma: float, lam: float, bootstrap: bool
) -> list[float]:
    result = [0.0] * len(rewards)
    actions = [t for t, m in enumerate(mask) if m]
    following = values[actions[-1]] if bootstrap else 0.0
    advantage = 0.0
    for t in reversed(actions):
        advantage = rewards[t] + gamma * following - values[t] + gamma * lam * advantage
        result[t], following = advantage, values[t]
    return result


def mean_advantage(
    rewards: Rows, values: Rows, action_mask: list[list[int]], gamma: float, lam: float, bootstrap: bool = False
) -> float:
    """The mean of the advantages over the actions."""
    found = advantages(rewards, values, action_mask, gamma, lam, bootstrap)
    return sum(map(sum, found)) / sum(map(sum, action_mask))


def rewards_gradient(
    rewards: Rows, values: Rows, action_mask: list[list[int]], gamma: float, lam: float, bootstrap: bool = False
) -> Rows:
    """The derivative of the sum of all advantages with respect to each reward."""
    found = []
    for row, mask in zip(rewards, action_mask, strict=True):
        result, weight = [0.0] * len(row), 0.0
        for t, m in enumerate(mask):
            if m:
                weight = 1.0 + gamma * lam * weight
                result[t] = weight
        found.append(result)
    return found

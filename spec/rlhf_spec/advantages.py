"""Advantages: how much better each action went than its state promised; and returns, what came in from it on.

The critic's value of a state is what it expects to come. ``delta = r + gamma V' - V`` is how far one step was better
than that, with the value ``V'`` of the next state. The advantage adds up the deltas of all steps from the action on,
each weighted with ``gamma lambda`` once more: ``A = delta + gamma lambda A'``. With lambda 0 it is the delta alone,
which trusts the critic; with lambda 1 it is what really came in less the value. Source: Schulman et al. 2015,
arXiv:1506.02438, equations 11 to 16.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_spec.aggregation import Masks, Rows, Steps, check_shapes

OBSERVATIONS = ("skipped", "zero-steps", "value-steps")
AFTER_LAST = ("nothing", "value", "step")


def row_steps(mask: Sequence[int], observations: str) -> list[int]:
    """The columns that are steps of the recursion: the actions, and unless they are skipped, what lies between two.

    What stands before the first action or behind the last one is never a step. Raises ValueError for another rule.

    >>> row_steps([0, 1, 0, 0, 1, 0], "skipped"), row_steps([0, 1, 0, 0, 1, 0], "zero-steps")
    ([1, 4], [1, 2, 3, 4])
    """
    if observations not in OBSERVATIONS:
        raise ValueError(f"there is no rule {observations!r}; the rules are {', '.join(OBSERVATIONS)}")
    actions = [column for column, is_action in enumerate(mask) if is_action]
    if not actions or observations == "skipped":
        return actions
    return list(range(actions[0], actions[-1] + 1))


def row_advantages(
    rewards: Sequence[float],
    values: Sequence[float],
    mask: Sequence[int],
    gamma: float,
    lam: float,
    observations: str = "skipped",
    after_last: str = "nothing",
    *,
    steps: dict[int, Steps] | None = None,
) -> list[float]:
    """The advantages of one sample, 0 where there is no action: ``(T,) -> (T,)``.

    ``observations`` says what the cells between two actions are: "skipped", as if they were not there; steps with
    reward and value 0; steps with the critic's value and reward 0. ``after_last`` says what comes after the last
    action: nothing; what the value of the cell behind it says; or one more step, with the reward and the value of that
    cell. Cells that are no steps are not read, but for that one. The numbers on the way of each action are put into
    ``steps``, by its column.

    >>> row_advantages([0.0, 0.0, 1.0], [0.5, 0.5, 0.5], [1, 1, 1], gamma=1.0, lam=1.0)
    [0.5, 0.5, 0.5]
    >>> row_advantages([0.0, 0.0, 1.0], [0.5, 0.25, 0.5], [1, 1, 1], gamma=1.0, lam=0.0)  # V' - V; r - V at last
    [-0.25, 0.25, 0.5]
    >>> row_advantages([0.0, 9.0, 1.0], [0.5, 0.25, 0.5], [1, 0, 1], gamma=0.5, lam=1.0)  # as if side by side
    [0.0, 0.0, 0.5]
    >>> row_advantages([0.0, 9.0, 1.0], [0.5, 0.25, 0.5], [1, 0, 1], 0.5, 1.0, observations="zero-steps")
    [-0.25, 0.0, 0.5]
    >>> row_advantages([1.0, 0.0], [0.5, 2.0], [1, 0], 0.5, 1.0, after_last="value")  # 1 + 0.5 * 2 - 0.5
    [1.5, 0.0]
    >>> row_advantages([1.0, 3.0], [0.5, 2.0], [1, 0], 0.5, 1.0, after_last="step")  # 1.5 + 0.5 * (3 - 2)
    [2.0, 0.0]
    """
    if after_last not in AFTER_LAST:
        raise ValueError(f"there is no rule {after_last!r} for what comes last; the rules are {', '.join(AFTER_LAST)}")
    columns = row_steps(mask, observations)
    advantages = [0.0] * len(mask)
    following = advantage = 0.0
    if columns and columns[-1] + 1 < len(mask) and after_last != "nothing":
        following = values[columns[-1] + 1]
        advantage = rewards[columns[-1] + 1] - following if after_last == "step" else 0.0
    for column in reversed(columns):
        is_valued = mask[column] or observations == "value-steps"
        reward = rewards[column] if mask[column] else 0.0
        value = values[column] if is_valued else 0.0
        delta = reward + gamma * following - value
        behind_it, advantage = advantage, delta + gamma * lam * advantage
        if mask[column]:
            advantages[column] = advantage
            if steps is not None:
                steps[column] = [
                    (
                        f"delta = reward {reward:.7g} + {gamma:.7g} * next value {following:.7g} - value {value:.7g}",
                        delta,
                    ),
                    (f"advantage of the step behind it, times {gamma:.7g} * {lam:.7g}", gamma * lam * behind_it),
                ]
        following = value
    return advantages


def advantages(
    token_rewards: Rows,
    values: Rows,
    action_mask: Masks,
    *,
    gamma: float,
    lam: float,
    observations: str = "skipped",
    after_last: str = "nothing",
) -> list[list[float]]:
    """``row_advantages`` of every sample: ``B rows of (T,) -> B rows of (T,)``.

    >>> advantages([[0.0, 1.0], [2.0, 7.0]], [[0.5, 0.5], [0.5, 7.0]], [[1, 1], [1, 0]], gamma=1.0, lam=1.0)
    [[0.5, 0.5], [1.5, 0.0]]
    """
    check_shapes(action_mask, token_rewards, values)
    return [
        row_advantages(*row, gamma, lam, observations, after_last)
        for row in zip(token_rewards, values, action_mask, strict=True)
    ]


def critic_returns(
    token_rewards: Rows,
    values: Rows,
    action_mask: Masks,
    *,
    gamma: float,
    lam: float,
    observations: str = "skipped",
    after_last: str = "nothing",
) -> list[list[float]]:
    """What the critic is to learn: the advantage of each action plus its value, 0 elsewhere.

    >>> critic_returns([[0.0, 1.0]], [[0.5, 0.25]], [[1, 1]], gamma=0.5, lam=1.0)  # lambda 1: the discounted rewards
    [[0.5, 1.0]]
    >>> critic_returns([[0.0, 1.0]], [[0.5, 0.25]], [[1, 1]], gamma=1.0, lam=0.0)  # lambda 0: r + gamma V'
    [[0.25, 1.0]]
    """
    rows = advantages(
        token_rewards, values, action_mask, gamma=gamma, lam=lam, observations=observations, after_last=after_last
    )
    return [
        [a + value if is_action else 0.0 for a, value, is_action in zip(*row, strict=True)]
        for row in zip(rows, values, action_mask, strict=True)
    ]


def discounted_returns(
    token_rewards: Rows,
    action_mask: Masks,
    *,
    gamma: float,
    observations: str = "skipped",
    after_last: str = "nothing",
) -> list[list[float]]:
    """The rewards from each action on, discounted, 0 elsewhere: what is learned from without a critic.

    ``B rows of (T,) -> B rows of (T,)``. An observation between two actions has no reward; whether it is a step that
    discounts is the rule for observations.

    >>> discounted_returns([[1.0, 2.0, 4.0]], [[1, 1, 1]], gamma=0.5)
    [[3.0, 4.0, 4.0]]
    >>> discounted_returns([[1.0, 9.0, 4.0]], [[1, 0, 1]], gamma=0.5)
    [[3.0, 0.0, 4.0]]
    >>> discounted_returns([[1.0, 9.0, 4.0]], [[1, 0, 1]], gamma=0.5, observations="zero-steps")
    [[2.0, 0.0, 4.0]]
    """
    zeros = [[0.0] * len(row) for row in action_mask]
    rules = {"observations": observations, "after_last": after_last}
    return advantages(token_rewards, zeros, action_mask, gamma=gamma, lam=1.0, **rules)

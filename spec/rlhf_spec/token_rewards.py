"""The rewards of the tokens: one score for the whole response, at its end, and the price of leaving the reference.

A reward model or a verifier scores a response once. That score lands at the last action of the sample, and each action
pays ``kl_coef`` times its KL from the reference. Source: Ziegler et al. 2019, arXiv:1909.08593, equation 2, in the form
for each token that Stiennon et al. 2020, arXiv:2009.01325, use.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_spec.aggregation import Masks, Rows, Steps, check_shapes

POSITIONS = ("last-action", "after-last")
MISSING_STOPS = ("constant", "factor")


def clipped_score(score: float, score_clip: float | None) -> float:
    """The score held within ``score_clip`` of 0, or as it is where there is none.

    >>> clipped_score(12.0, 10.0), clipped_score(-12.0, 10.0), clipped_score(12.0, None)
    (10.0, -10.0, 12.0)
    """
    if score_clip is None:
        return score
    if not score_clip > 0:
        raise ValueError(f"the clip of the score must be positive, not {score_clip}")
    return min(max(score, -score_clip), score_clip)


def without_stop(score: float, stop_penalty: float, missing_stop: str) -> float:
    """The score of a sample that did not stop: the penalty in its place where ``missing_stop`` is "constant"; where it
    is "factor" the score times the penalty, and the penalty in its place where that is negative.

    A negative factor would reward what scored badly. Raises ValueError for another rule.

    >>> without_stop(2.0, -3.0, "constant"), without_stop(2.0, 0.5, "factor"), without_stop(2.0, -3.0, "factor")
    (-3.0, 1.0, -3.0)
    """
    if missing_stop not in MISSING_STOPS:
        raise ValueError(f"there is no rule {missing_stop!r}; the rules are {', '.join(MISSING_STOPS)}")
    return score * stop_penalty if missing_stop == "factor" and stop_penalty >= 0 else stop_penalty


def penalized_scores(
    scores: Sequence[float], stopped: Sequence[int] | None, stop_penalty: float | None, missing_stop: str
) -> list[float]:
    """The scores of a batch, ``(B,) -> (B,)``: those of samples that stopped as they are, the others ``without_stop``.

    Without a penalty, or where nothing is said of who stopped, all are as they are.

    >>> penalized_scores([2.0, 3.0], [1, 0], -1.0, "constant"), penalized_scores([2.0, 3.0], [1, 0], None, "constant")
    ([2.0, -1.0], [2.0, 3.0])
    """
    if stop_penalty is None or stopped is None:
        return list(scores)
    pairs = zip(scores, stopped, strict=True)
    return [score if stop else without_stop(score, stop_penalty, missing_stop) for score, stop in pairs]


def score_cell(mask: Sequence[int], score_position: str) -> int | None:
    """The column at which a sample's score lands: that of its last action, or the one behind it. None where the sample
    has no action, or where the row ends with it.

    >>> score_cell([1, 1, 0, 1, 0, 0], "last-action"), score_cell([1, 1, 0, 1, 0, 0], "after-last")
    (3, 4)
    >>> score_cell([0, 0], "last-action") is None
    True
    """
    if score_position not in POSITIONS:
        raise ValueError(f"there is no position {score_position!r}; the positions are {', '.join(POSITIONS)}")
    actions = [column for column, is_action in enumerate(mask) if is_action]
    if not actions:
        return None
    cell = actions[-1] + (score_position == "after-last")
    return cell if cell < len(mask) else None


def token_reward(
    kl: float, kl_coef: float, score: float | None, score_clip: float | None = None, *, steps: Steps | None = None
) -> float:
    """The reward of one action: minus the coefficient times its KL, and the score on top where it lands here.

    ``score`` is None where it lands elsewhere. A coefficient of 0 is as if there were no KL, be it infinite. The
    numbers on the way are added to ``steps``.

    >>> token_reward(0.5, 0.1, None), token_reward(0.5, 0.1, 2.0), token_reward(0.5, 0.1, 2.0, score_clip=1.0)
    (-0.05, 1.95, 0.95)
    """
    penalty = kl_coef * kl if kl_coef else 0.0
    if steps is not None:
        steps.append((f"penalty: {kl_coef:.7g} * KL {kl:.7g}", penalty))
        if score is not None and score_clip is not None:
            steps.append((f"score {score:.7g} held within {score_clip:.7g} of 0", clipped_score(score, score_clip)))
        elif score is not None:
            steps.append(("score, which lands here", score))
    return (0.0 if score is None else clipped_score(score, score_clip)) - penalty


def token_rewards(
    scores: Sequence[float],
    kl: Rows,
    action_mask: Masks,
    *,
    kl_coef: float,
    score_clip: float | None = None,
    score_position: str = "last-action",
    stopped: Sequence[int] | None = None,
    stop_penalty: float | None = None,
    missing_stop: str = "constant",
) -> list[list[float]]:
    """The rewards of all cells: ``(B,), B rows of (T,) -> B rows of (T,)``. Cells under the mask are not read.

    They are 0 there, but for the score where it lands behind the last action. The score of a sample that did not stop
    is penalized first, where there is a ``stop_penalty``, and clipped then.

    >>> token_rewards([2.0], [[0.5, 9.0, 0.25, 9.0]], [[1, 0, 1, 0]], kl_coef=1.0)
    [[-0.5, 0.0, 1.75, 0.0]]
    >>> token_rewards([2.0], [[0.5, 9.0, 0.25, 9.0]], [[1, 0, 1, 0]], kl_coef=1.0, score_position="after-last")
    [[-0.5, 0.0, -0.25, 2.0]]
    >>> token_rewards([2.0], [[0.5, 0.25]], [[1, 1]], kl_coef=1.0, stopped=[0], stop_penalty=-1.0)
    [[-0.5, -1.25]]
    """
    check_shapes(action_mask, kl)
    scores = penalized_scores(scores, stopped, stop_penalty, missing_stop)
    rows = []
    for score, row, mask in zip(scores, kl, action_mask, strict=True):
        cell = score_cell(mask, score_position)
        rewards = []
        for column, is_action in enumerate(mask):
            lands = score if column == cell else None
            if is_action:
                rewards.append(token_reward(row[column], kl_coef, lands, score_clip))
            else:
                rewards.append(0.0 if lands is None else clipped_score(lands, score_clip))
        rows.append(rewards)
    return rows


def reward_sums(
    scores: Sequence[float],
    kl: Rows,
    action_mask: Masks,
    *,
    kl_coef: float,
    score_clip: float | None = None,
    stopped: Sequence[int] | None = None,
    stop_penalty: float | None = None,
    missing_stop: str = "constant",
) -> list[float]:
    """What the rewards of each sample add up to: its score less the penalties of its actions, 0 without an action.

    >>> reward_sums([2.0, 3.0], [[0.5, 9.0, 0.25], [1.0, 1.0, 1.0]], [[1, 0, 1], [0, 0, 0]], kl_coef=1.0)
    [1.25, 0.0]
    """
    scores = penalized_scores(scores, stopped, stop_penalty, missing_stop)
    rows = token_rewards(scores, kl, action_mask, kl_coef=kl_coef, score_clip=score_clip)
    return [sum(row) for row in rows]

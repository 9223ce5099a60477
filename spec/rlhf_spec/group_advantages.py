"""Advantages without a critic: the score of a response, measured by those of the other responses to its prompt.

The responses to one prompt are a group. The baseline is the mean of the group's scores (GRPO, Shao et al. 2024,
arXiv:2402.03300), or for each response the mean of the others (RLOO, Ahmadian et al. 2024, arXiv:2402.14740). What is
left is divided by the group's standard deviation (GRPO), by that of all scores of the batch, or not at all (Dr. GRPO,
Liu et al. 2025, arXiv:2503.20783). All actions of a response have its advantage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_spec.aggregation import Masks, check_shapes
from rlhf_spec.whitening import mean_and_variance

BASELINES = ("mean", "leave-one-out")
SCALES = ("group-std", "batch-std", "none")


def members(group_ids: Sequence[int]) -> dict[int, list[int]]:
    """The rows of each group, by its id: a group is the rows that have one id, wherever they stand.

    >>> members([7, 3, 7])
    {7: [0, 2], 3: [1]}
    """
    found: dict[int, list[int]] = {}
    for row, group in enumerate(group_ids):
        found.setdefault(group, []).append(row)
    return found


def centered(scores: Sequence[float], baseline: str = "mean", of_one: str = "zero") -> list[float]:
    """The scores of one group, each less its baseline.

    A group of one has no others: its score becomes 0.0, or stays as it is where ``of_one`` is "score". Raises
    ValueError for a baseline or a rule that there is not.

    >>> centered([1.0, 3.0, 8.0])
    [-3.0, -1.0, 4.0]
    >>> centered([1.0, 3.0, 8.0], "leave-one-out")  # 1 - 11 / 2, 3 - 9 / 2, 8 - 4 / 2
    [-4.5, -1.5, 6.0]
    >>> centered([5.0]), centered([5.0], of_one="score")
    ([0.0], [5.0])
    """
    if baseline not in BASELINES:
        raise ValueError(f"there is no baseline {baseline!r}; the baselines are {', '.join(BASELINES)}")
    if of_one not in ("zero", "score"):
        raise ValueError(f"a group of one gives zero or score, not {of_one!r}")
    if len(scores) == 1:
        return [scores[0] if of_one == "score" else 0.0]
    mean, _ = mean_and_variance(scores)
    if baseline == "mean":
        return [score - mean for score in scores]
    total = math.fsum(scores)
    return [score - (total - score) / (len(scores) - 1) for score in scores]


def row_advantages(
    scores: Sequence[float],
    group_ids: Sequence[int],
    *,
    baseline: str = "mean",
    scale: str = "group-std",
    ddof: int = 1,
    eps: float = 1e-6,
    of_one: str = "zero",
) -> list[float]:
    """The advantage of each response: ``B scores, B ids -> (B,)``.

    The divisor is the standard deviation plus ``eps``, and 1 where ``scale`` is "none"; the deviation of a group of
    one is 1. A score that is its own baseline has the advantage 0, whatever it would be divided by. Raises ValueError
    for a scale that there is not, and as ``centered`` does.

    >>> row_advantages([1.0, 0.5, 7.0, 1.5], [4, 9, 4, 9], ddof=0, eps=0.0)
    [-1.0, -1.0, 1.0, 1.0]
    >>> row_advantages([1.0, 0.5, 7.0, 1.5], [4, 9, 4, 9], scale="none")
    [-3.0, -0.5, 3.0, 0.5]
    >>> row_advantages([1.0, 3.0, 5.0, 7.0], [4, 4, 9, 9], scale="batch-std", ddof=0, eps=5.0 - math.sqrt(5.0))
    [-0.2, 0.2, -0.2, 0.2]
    >>> row_advantages([0.97] * 16, [0] * 16) == [0.0] * 16, row_advantages([5.0], [0])
    (True, [0.0])
    """
    if scale not in SCALES:
        raise ValueError(f"there is no scale {scale!r}; the scales are {', '.join(SCALES)}")
    _, of_batch = mean_and_variance(scores, ddof)
    result = [0.0] * len(scores)
    for rows in members(group_ids).values():
        own = [scores[row] for row in rows]
        _, variance = mean_and_variance(own, ddof)
        deviation = {"group-std": math.sqrt(variance) if len(own) > 1 else 1.0, "batch-std": math.sqrt(of_batch)}
        divisor = deviation[scale] + eps if scale != "none" else 1.0
        for row, difference in zip(rows, centered(own, baseline, of_one), strict=True):
            result[row] = difference / divisor if difference else 0.0
    return result


def group_advantages(
    scores: Sequence[float],
    group_ids: Sequence[int],
    action_mask: Masks,
    *,
    baseline: str = "mean",
    scale: str = "group-std",
    ddof: int = 1,
    eps: float = 1e-6,
    of_one: str = "zero",
) -> list[list[float]]:
    """The same for each action: rows shaped like the mask, 0.0 where there is no action.

    Raises ValueError for a mask not of 0 and 1, and as ``row_advantages`` does.

    >>> group_advantages([1.0, 7.0], [4, 4], [[1, 0, 1], [1, 0, 0]], scale="none")
    [[-3.0, 0.0, -3.0], [3.0, 0.0, 0.0]]
    """
    check_shapes(action_mask)
    options = {"baseline": baseline, "scale": scale, "of_one": of_one}
    found = row_advantages(scores, group_ids, ddof=ddof, eps=eps, **options)
    return [[a if m else 0.0 for m in mask] for a, mask in zip(found, action_mask, strict=True)]

"""Whitening: numbers of a batch less their mean, divided by their standard deviation.

The mean and the variance are those of all actions of the batch together. Trainers differ in what the variance divides
by, ``n - ddof`` with ``ddof`` 1 (unbiased) or 0 (biased), and in where the small ``eps`` stands that keeps the division
finite. A number that is its own mean becomes 0, whatever it would be divided by. Source: Ziegler et al. 2019,
arXiv:1909.08593, which whitens rewards and advantages in this way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_spec.aggregation import Masks, Rows, check_shapes

EPS_PLACES = ("variance", "std", "floor")


def mean_and_variance(numbers: Sequence[float], ddof: int = 1) -> tuple[float, float]:
    """The mean of some numbers, and ``sum (x - mean)^2 / (n - ddof)``.

    Of no numbers both are 0.0, and so is the variance of a single one, whatever ``ddof`` is. Raises ValueError for
    a ``ddof`` other than 0 and 1.

    >>> mean_and_variance([1.0, 3.0, 8.0])  # (9 + 1 + 16) / 2
    (4.0, 13.0)
    >>> mean_and_variance([1.0, 7.0], ddof=0)
    (4.0, 9.0)
    >>> mean_and_variance([5.0])
    (5.0, 0.0)
    """
    if ddof not in (0, 1):
        raise ValueError(f"the variance divides by n or by n - 1, not by n - {ddof}")
    if not numbers:
        return 0.0, 0.0
    mean = math.fsum(numbers) / len(numbers)
    squares = math.fsum((x - mean) ** 2 for x in numbers)
    return mean, squares / (len(numbers) - ddof) if len(numbers) > 1 else 0.0


def denominator(variance: float, eps: float, eps_place: str = "variance") -> float:
    """What a centered number is divided by: ``sqrt(variance + eps)`` where ``eps_place`` is "variance",
    ``sqrt(variance) + eps`` where it is "std", and ``sqrt(max(variance, eps))`` where it is "floor".

    Raises ValueError for another place and for a negative ``eps``.

    >>> denominator(9.0, 7.0, "variance"), denominator(9.0, 7.0, "std"), denominator(9.0, 7.0, "floor")
    (4.0, 10.0, 3.0)
    """
    if eps_place not in EPS_PLACES:
        raise ValueError(f"eps stands in none of the places {', '.join(EPS_PLACES)}: {eps_place!r}")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, but is {eps}")
    if eps_place == "std":
        return math.sqrt(variance) + eps
    return math.sqrt(variance + eps if eps_place == "variance" else max(variance, eps))


def whiten(
    values: Rows,
    action_mask: Masks,
    *,
    shift_mean: bool = True,
    ddof: int = 1,
    eps: float = 1e-8,
    eps_place: str = "variance",
) -> list[list[float]]:
    """The whitened numbers of all actions: rows shaped like the values, 0.0 where there is no action.

    ``(value - mean) / denominator``, and the mean is added again where ``shift_mean`` is False. Cells under the mask
    are never read. Raises ValueError where the shapes differ, and as ``mean_and_variance`` and ``denominator`` do.

    >>> whiten([[1.0, 99.0, 3.0], [8.0, 99.0, 99.0]], [[1, 0, 1], [1, 0, 0]], ddof=1, eps=3.0)  # less 4, over sqrt(16)
    [[-0.75, 0.0, -0.25], [1.0, 0.0, 0.0]]
    >>> whiten([[1.0, 99.0, 3.0], [8.0, 99.0, 99.0]], [[1, 0, 1], [1, 0, 0]], ddof=1, eps=3.0, shift_mean=False)
    [[3.25, 0.0, 3.75], [5.0, 0.0, 0.0]]
    >>> whiten([[2.0, 2.0]], [[1, 1]], eps=0.0), whiten([[5.0, 7.0]], [[1, 0]])  # alike, and alone
    ([[0.0, 0.0]], [[0.0, 0.0]])
    """
    check_shapes(action_mask, values)
    actions = [x for row, mask in zip(values, action_mask, strict=True) for x, m in zip(row, mask, strict=True) if m]
    mean, variance = mean_and_variance(actions, ddof)
    divisor = denominator(variance, eps, eps_place)
    kept = 0.0 if shift_mean else mean
    result = []
    for row, mask in zip(values, action_mask, strict=True):
        centered = [x - mean if is_action else 0.0 for x, is_action in zip(row, mask, strict=True)]
        scaled = [x / divisor if x else 0.0 for x in centered]
        result.append([x + kept if is_action else 0.0 for x, is_action in zip(scaled, mask, strict=True)])
    return result

"""One optimizer step: from the objectives of its micro-batches to weights that have moved.

What a step minimises is the objective of its samples, whose gradient does not depend on how they were cut; some
trainers mean the mean over their micro-batches instead, which does. Sources: Schulman et al. 2017, arXiv:1707.06347,
for the objective; Pascanu et al. 2013, arXiv:1211.5063, for the clipping of a gradient's norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from rlhf_spec.aggregation import Masks, Rows, aggregate

DENOMINATORS = ("step", "micro-batch")
Sample = TypeVar("Sample")


def minimised(
    samples: Sequence[Sample],
    cut: Sequence[Sequence[int]],
    objective: Callable[[Sequence[Sample]], float],
    *,
    denominators: str = "step",
) -> float:
    """What a step minimises: the objective of all samples, or the mean over its micro-batches of theirs.

    ``cut`` holds the numbers of the samples of each micro-batch. Raises ValueError where a sample is in none of them or
    in several, and for denominators that are none of ``DENOMINATORS``.

    >>> def mean(losses):  # of the losses of all actions
    ...     flat = [x for row in losses for x in row]
    ...     return sum(flat) / len(flat)
    >>> losses = [[1.0, 2.0], [6.0]]
    >>> minimised(losses, [[0], [1]], mean)
    3.0
    >>> minimised(losses, [[0], [1]], mean, denominators="micro-batch")  # (1.5 + 6) / 2
    3.75
    """
    if sorted(i for part in cut for i in part) != list(range(len(samples))):
        raise ValueError(f"a cut of {len(samples)} samples has each of them once, not {[list(part) for part in cut]}")
    if denominators not in DENOMINATORS:
        raise ValueError(f"there are no denominators {denominators!r}; they are {', '.join(DENOMINATORS)}")
    if denominators == "step":
        return objective(samples)
    return math.fsum(objective([samples[i] for i in part]) for part in cut) / len(cut)


def share(losses: Rows, action_mask: Masks, count: float, aggregation: str = "token-mean") -> float:
    """What a micro-batch adds to the loss of a step whose count is ``count``: ``B rows of (T,) -> ()``. The shares of
    all micro-batches add up to the loss of the step.

    >>> share([[1.0, 2.0]], [[1, 1]], 3) + share([[6.0]], [[1]], 3)
    3.0
    """
    return aggregate(losses, action_mask, aggregation, global_count=count)


def norm(gradients: Sequence[Sequence[float]]) -> float:
    """The norm of a gradient: over all entries of all parameters together.

    >>> norm([[3.0], [4.0, 0.0]])
    5.0
    """
    return math.sqrt(math.fsum(x * x for row in gradients for x in row))


def clipped(gradients: Sequence[Sequence[float]], max_norm: float | None) -> list[list[float]]:
    """A gradient scaled as a whole to the norm ``max_norm``, if its own is greater.

    >>> clipped([[3.0], [4.0, 0.0]], 2.5)
    [[1.5], [2.0, 0.0]]
    >>> clipped([[3.0], [4.0, 0.0]], 6.0)
    [[3.0], [4.0, 0.0]]
    """
    size = norm(gradients)
    scale = 1.0 if max_norm is None or size <= max_norm else max_norm / size
    return [[scale * x for x in row] for row in gradients]


def moved(weights: Sequence[float], gradient: Sequence[float], learning_rate: float) -> list[float]:
    """Weights after a step of SGD.

    >>> moved([1.0, 2.0], [0.5, -1.0], 0.5)
    [0.75, 2.5]
    """
    return [weight - learning_rate * slope for weight, slope in zip(weights, gradient, strict=True)]


def with_momentum(gradient: Sequence[float], before: Sequence[float], momentum: float) -> list[float]:
    """What SGD moves by: the gradient and, times ``momentum``, what it moved by ``before``, zeros at first.

    >>> with_momentum([1.0], with_momentum([1.0], [0.0], 0.5), 0.5)
    [1.5]
    """
    return [slope + momentum * kept for slope, kept in zip(gradient, before, strict=True)]


def learning_rate(rate: float, step: int, total_steps: int, schedule: str = "constant") -> float:
    """The learning rate of a step, the first of which is 0. Raises ValueError for an unknown schedule.

    >>> [learning_rate(1.0, k, 4, "linear") for k in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if schedule == "constant":
        return rate
    if schedule == "linear":
        return rate * max(0.0, 1.0 - step / total_steps)
    raise ValueError(f"there is no schedule {schedule!r}; they are constant, linear")

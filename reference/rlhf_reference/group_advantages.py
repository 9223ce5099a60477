"""Advantages of groups of responses, without a critic: GRPO, Dr. GRPO, RLOO."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["mean", "leave-one-out"]
Scale = Literal["group-std", "batch-std", "none"]
OfOne = Literal["zero", "score"]


def group_relative_advantages(
    scores: Tensor,
    group_ids: Tensor,
    *,
    baseline: Baseline = "mean",
    scale: Scale = "group-std",
    ddof: int = 1,
    eps: float = 1e-6,
    of_one: OfOne = "zero",
) -> Tensor:
    """Each score less the baseline of its group, over a deviation plus `eps`.

    scores      (B,) floating, one for each response
    group_ids   (B,) integers: rows with one id are one group, wherever they stand and however many
    baseline    the group's "mean", or the mean of the others, "leave-one-out"
    scale       divide by the deviation of the group, by that of all scores, or by nothing
    ddof        a variance divides by n - ddof
    of_one      what a group of one gets: "zero", or its "score" (its deviation counts as 1)
    returns     (B,) in float32 or better, without a graph
    raises      ValueError if the shapes differ, or an option is none of those

    Sums are float64's: in float32 the mean of 16 scores of 0.97 is not 0.97, and over a small `eps` the difference is
    an advantage. So equal scores give 0.
    """
    if scores.ndim != 1 or scores.shape != group_ids.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and group_ids {tuple(group_ids.shape)} are not two times (B,)")
    if baseline not in ("mean", "leave-one-out") or scale not in ("group-std", "batch-std", "none"):
        raise ValueError(f"unknown baseline {baseline!r} or scale {scale!r}")
    wide = scores.detach().double()
    _, group = group_ids.unique(return_inverse=True)
    size = torch.bincount(group)[group]
    centered = wide - _sums(wide, group)[group] / size
    centered = centered.where(size > 1, wide if of_one == "score" else 0.0)
    variance = _sums(centered.square(), group)[group] / (size - ddof).clamp(min=1)
    if baseline == "leave-one-out":
        centered = centered * size / (size - 1).clamp(min=1)
    if scale == "group-std":
        centered = centered / (variance.sqrt().where(size > 1, 1.0) + eps).where(centered != 0, 1.0)
    elif scale == "batch-std":
        deviation = wide.std(correction=ddof) if len(wide) > 1 else wide.new_zeros(())
        centered = centered / (deviation + eps).where(centered != 0, 1.0)
    return centered.to(torch.promote_types(scores.dtype, torch.float32))


def _sums(values: Tensor, group: Tensor) -> Tensor:
    """The sum of each group, by its number."""
    groups = int(group.max()) + 1 if len(group) else 0
    return values.new_zeros(groups).index_add(0, group, values)

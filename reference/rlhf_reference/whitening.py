"""Whitening: numbers less their mean, over their standard deviation, both of all actions of the batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EpsPlace = Literal["variance", "std", "floor"]


def whiten(
    values: Tensor,
    action_mask: Tensor,
    *,
    shift_mean: bool = True,
    ddof: int = 1,
    eps: float = 1e-8,
    eps_place: EpsPlace = "variance",
) -> Tensor:
    """`(x - mean) / std` at each action, 0 elsewhere; computed in fp32 or better, in two passes.

    values       (B, T) floating: advantages, rewards; outside the mask anything may lie, also NaN
    action_mask  (B, T), nonzero on actions (bool, integer or float), with holes wherever they are
    shift_mean   False: the mean is added again, so that numbers are scaled and not moved
    ddof         the variance divides by n - ddof: 1 unbiased, 0 biased
    eps          in the "variance", beside the "std", or the "floor" under the variance
    returns      (B, T) without a graph; a single action is 0 (with its mean kept: itself)
    raises       ValueError if the shapes differ, or eps stands in no such place
    """
    if values.shape != action_mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and action_mask {tuple(action_mask.shape)} differ in shape")
    mask = action_mask.bool()
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32)).where(mask, 0.0)
    count = mask.sum()
    mean = values.sum() / count.clamp(min=1)
    centered = (values - mean).where(mask, 0.0)
    variance = centered.square().sum() / (count - ddof).clamp(min=1)
    whitened = (centered / denominator(variance, eps, eps_place)).where(centered != 0, 0.0)
    return whitened if shift_mean else (whitened + mean).where(mask, 0.0)


def denominator(variance: Tensor, eps: float, eps_place: EpsPlace) -> Tensor:
    """What a centered number is divided by."""
    if eps_place == "variance":
        return (variance + eps).sqrt()
    if eps_place == "std":
        return variance.sqrt() + eps
    if eps_place == "floor":
        return variance.clamp(min=eps).sqrt()
    raise ValueError(f"unknown place of eps: {eps_place!r}")

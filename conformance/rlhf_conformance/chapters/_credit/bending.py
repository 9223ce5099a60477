"""What faults and twins of the chapters about credit need: plain pieces of tensors under a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._tensors import chosen

if TYPE_CHECKING:
    from torch import Tensor


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """(B, 1): the mean over the actions of each row."""
    return chosen(x, mask).sum(1, keepdim=True) / mask.bool().sum(1, keepdim=True).clamp(min=1)


def spans(mask: Tensor) -> Tensor:
    """(B, T) bool: from the first to the last action of each row, observations between them included."""
    marks = mask.bool()
    return (marks.cumsum(1) > 0) & (marks.flip(1).cumsum(1).flip(1) > 0)


def last_action(mask: Tensor) -> Tensor:
    """(B, 1): the column of the last action of each row, -1 where there is none."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return columns.where(mask.bool(), -1).amax(1, keepdim=True)

"""Pieces of formulas on tensors that faults and twins of several chapters are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_conformance._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def chosen(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is, 0 elsewhere, in float32 or better."""
    return wide(x).where(mask.bool(), 0.0)


def value_of(value: Tensor, *, gradient_of: Tensor) -> Tensor:
    """A tensor with the value of one and the gradient of another."""
    return gradient_of + (value - gradient_of).detach()

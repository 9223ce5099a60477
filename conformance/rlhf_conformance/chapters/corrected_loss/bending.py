"""The plain corrected loss for the faults to bend: right as it stands, and a liar exchanges one step of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._losses import bending as plain
from rlhf_conformance.chapters._tensors import chosen

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Given(NamedTuple):
    """The arguments of an adapter's method. All tensors are (B, T)."""

    new: Tensor
    old: Tensor
    advantages: Tensor
    rollout: Tensor
    mask: Tensor
    options: Any

    def with_options(self, **changes: Any) -> Given:
        return self._replace(options=replace(self.options, **changes))


def exponent(g: Given) -> Tensor:
    """(B, T) what the weights are the exponentials of; what the engine did not give counts as what the trainer has."""
    d, o = chosen(g.old, g.mask) - chosen(g.rollout, g.mask), g.options
    d = d.masked_fill(d.isnan(), 0.0)
    if o.level == "sequence":
        d = d.sum(-1, keepdim=True).expand_as(d)
        if o.sequence_weight == "geometric":
            d = d / g.mask.bool().sum(-1, keepdim=True).clamp(min=1)
    return d if o.log_clamp is None else d.clamp(-o.log_clamp, o.log_clamp)


def bounded(weight: Tensor, g: Given) -> Tensor:
    o = g.options
    if o.mode == "truncate":
        return weight.clamp(o.lower, o.upper)
    outside = weight > o.upper if o.lower is None else (weight > o.upper) | (weight < o.lower)
    return weight.masked_fill(outside, 0.0)


def weight(g: Given) -> Tensor:
    """(B, T) the weights of the actions; 1 without a level."""
    if g.options.level is None:
        return torch.ones_like(chosen(g.new, g.mask))
    return bounded(exponent(g).exp(), g).detach()


def policy_losses(g: Given) -> Tensor:
    """(B, T) the losses before their weights."""
    old = g.rollout if g.options.bypass else g.old
    return plain.policy_losses(g.new, old, g.advantages, g.mask, g.options)


def product(g: Given, weight: Callable[[Given], Tensor] = weight) -> Tensor:
    return policy_losses(g).masked_fill(weight(g) == 0, 0.0) * weight(g)


def corrected(g: Given, product: Callable[[Given], Tensor] = product) -> Tensor:
    """The loss, with another product of losses and weights in the place of the right one."""
    return plain.mean(product(g), g.mask, g.options)


def weighted(g: Given, other: Callable[[Given], Tensor]) -> Tensor:
    """The loss with other weights."""
    return corrected(g, lambda given: product(given, other))

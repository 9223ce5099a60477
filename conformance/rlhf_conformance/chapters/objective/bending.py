"""The plain objective for the faults to bend: each term is right as it stands, and a liar exchanges one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._losses import bending as plain
from rlhf_conformance.chapters._tensors import chosen
from rlhf_conformance.chapters.value_loss.interface import ValueLossOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Given(NamedTuple):
    """The arguments of an adapter's method. All tensors are (B, T)."""

    new: Tensor
    old: Tensor
    advantages: Tensor
    entropies: Tensor
    ref: Tensor
    values: Tensor
    old_values: Tensor
    returns: Tensor
    mask: Tensor
    options: Any

    def with_options(self, **changes: Any) -> Given:
        return self._replace(options=replace(self.options, **changes))


def mean(losses: Tensor, given: Given, own: str = "as-policy") -> Tensor:
    """The aggregate of (B, T) losses: that of the policy loss, or one of their own."""
    aggregation = given.options.aggregation if own == "as-policy" else own
    return plain.mean(losses, given.mask, replace(given.options, aggregation=aggregation))


def policy_losses(g: Given) -> Tensor:
    return plain.policy_losses(g.new, g.old, g.advantages, g.mask, g.options)


def value_losses(g: Given) -> Tensor:
    return plain.value_losses(g.values, g.old_values, g.returns, g.mask, ValueLossOptions(g.options.value_clip_eps))


def estimated(d: Tensor, estimator: str) -> Tensor:
    """(B, T) estimates of the KL made of log-ratios."""
    return {"k1": d, "k2": d.square() / 2, "k3": torch.expm1(-d) + d, "abs": d.abs()}[estimator]


def correction(g: Given) -> Tensor:
    """(B, T) what the estimates of the KL are multiplied by, as it is declared."""
    o, new = g.options, chosen(g.new, g.mask)
    log_ratio = new - (chosen(g.old, g.mask) if o.kl_correction == "ratio" else new.detach())
    if (o.kl_correction, o.surrogate) == ("ratio", "gspo"):
        log_ratio = (log_ratio.sum(-1, keepdim=True) / g.mask.bool().sum(-1, keepdim=True).clamp(min=1)).expand_as(new)
    return log_ratio.exp() if o.kl_gradient == "weighted" else log_ratio.exp().detach()


def kls(g: Given) -> Tensor:
    return estimated(chosen(g.new, g.mask) - chosen(g.ref, g.mask), g.options.estimator) * correction(g)


def entropies(g: Given) -> Tensor:
    return chosen(g.entropies, g.mask)


def policy(g: Given) -> Tensor:
    return mean(policy_losses(g), g)


def value(g: Given) -> Tensor:
    return mean(value_losses(g), g, g.options.value_aggregation)


def kl(g: Given) -> Tensor:
    return mean(kls(g), g, g.options.kl_aggregation)


def entropy(g: Given) -> Tensor:
    return mean(entropies(g), g, g.options.entropy_aggregation)


def objective(
    g: Given,
    policy: Callable[[Given], Tensor] = policy,
    value: Callable[[Given], Tensor] = value,
    kl: Callable[[Given], Tensor] = kl,
    entropy: Callable[[Given], Tensor] = entropy,
) -> Tensor:
    """The objective, with other terms in the place of the right ones."""
    o, total = g.options, policy(g)
    if o.value_coef:
        total = total + o.value_coef * value(g)
    if o.kl_coef:
        total = total + o.kl_coef * kl(g)
    if o.entropy_coef:
        total = total - o.entropy_coef * entropy(g)
    return total

"""Plain formulas for the faults to bend: each is right as it stands, and a liar exchanges one step of it.

All tensors are (B, T) in float32 or better, `mask` is 1 on actions. The ratio is held below e^20, so that a liar lies
in one way and not by an overflow as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._tensors import chosen

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def log_ratio(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    return (chosen(new, mask) - chosen(old, mask)).clamp(max=20.0)


def clip(ratio: Tensor, options: Any) -> Tensor:
    return ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)


def surrogate_loss(ratio: Tensor, advantages: Tensor, options: Any) -> Tensor:
    """-min(r A, clip(r) A) of every token, with the dual clip where one is asked for."""
    surrogate = torch.minimum(ratio * advantages, clip(ratio, options) * advantages)
    if options.dual_clip is not None:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, options.dual_clip * advantages), surrogate)
    return -surrogate


def token_mean(losses: Tensor, mask: Tensor, options: Any) -> Tensor:
    count = mask.bool().sum().clamp(min=1) if options.global_count is None else options.global_count
    return chosen(losses, mask).sum() / count


def sequence_mean(losses: Tensor, mask: Tensor, options: Any) -> Tensor:
    lengths = mask.bool().sum(-1)
    count = (lengths > 0).sum().clamp(min=1) if options.global_count is None else options.global_count
    return (chosen(losses, mask).sum(-1) / lengths.clamp(min=1)).sum() / count


def token_sum(losses: Tensor, mask: Tensor, options: Any) -> Tensor:
    return chosen(losses, mask).sum()


def constant_length(losses: Tensor, mask: Tensor, options: Any) -> Tensor:
    rows = mask.bool().any(-1).sum().clamp(min=1) if options.global_count is None else options.global_count
    return chosen(losses, mask).sum() / (rows * options.constant_length)


_AGGREGATIONS = {
    "token-mean": token_mean,
    "sequence-mean": sequence_mean,
    "token-sum": token_sum,
    "constant-length": constant_length,
}


def mean(losses: Tensor, mask: Tensor, options: Any) -> Tensor:
    """The aggregation that is asked for."""
    return _AGGREGATIONS[options.aggregation](losses, mask, options)


def mean_of_rows(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T) of x, 0 under the mask, the mean over the actions of each row, at all of its actions."""
    return chosen((x.sum(-1, keepdim=True) / mask.bool().sum(-1, keepdim=True).clamp(min=1)).expand_as(x), mask)


def multiplied(losses: Tensor, mask: Tensor, options: Any) -> Tensor:
    """The same by multiplication with the mask, right as long as everything under it is finite."""
    kept, lengths = losses * mask.bool(), mask.bool().sum(-1)
    if options.aggregation not in ("token-mean", "sequence-mean"):
        return mean(kept, torch.ones_like(mask), options)
    if options.aggregation == "token-mean":
        return kept.sum() / (options.global_count or lengths.sum().clamp(min=1))
    rows = kept.sum(-1) / lengths.clamp(min=1)
    return rows.sum() / (options.global_count or (lengths > 0).sum().clamp(min=1))


def policy_losses(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    options: Any,
    token: Callable[[Tensor, Tensor, Any], Tensor] | None = None,
) -> Tensor:
    """(B, T) losses, not aggregated, with another token(ratio, advantages, options) where there is a clip."""
    d, advantages = log_ratio(new, old, mask), chosen(advantages, mask)
    if options.surrogate in ("ppo", "gspo"):
        ratio = (mean_of_rows(d, mask) if options.surrogate == "gspo" else d).exp()
        return (token or surrogate_loss)(ratio, advantages, options)
    weight = cispo_weight(d.detach().exp(), options) if options.surrogate == "cispo" else 1.0
    return -weight * advantages * chosen(new, mask)


def cispo_weight(ratio: Tensor, options: Any) -> Tensor:
    lowest = 1 - options.clip_eps_low if options.cispo_bounds == "both" else 0.0
    return ratio.clamp(lowest, options.clip_eps_high + (options.cispo_bounds != "cap"))


def value_losses(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, options: Any) -> Tensor:
    """(B, T) losses, not aggregated: 0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2)."""
    values, old, returns = (chosen(x, mask) for x in (values, old, returns))
    losses = (values - returns) ** 2
    if options.clip_eps is not None:
        clipped = old + (values - old).clamp(-options.clip_eps, options.clip_eps)
        losses = torch.maximum(losses, (clipped - returns) ** 2)
    return 0.5 * losses


def policy_loss(
    arguments: tuple[Any, ...],
    token: Callable[[Tensor, Tensor, Any], Tensor] | None = None,
    aggregate: Callable[[Tensor, Tensor, Any], Tensor] = mean,
) -> Tensor:
    """The policy loss of the adapter's five arguments, with another loss of a token, token(ratio, advantages, options),
    or another aggregate(losses, mask, options)."""
    *_, mask, options = arguments
    return aggregate(policy_losses(*arguments, token), mask, options)


def value_loss(
    arguments: tuple[Any, ...],
    token: Callable[[Tensor, Tensor, Tensor, Any], Tensor] | None = None,
    aggregate: Callable[[Tensor, Tensor, Any], Tensor] = mean,
) -> Tensor:
    """The value loss of the adapter's five arguments, with another loss of a token, token(values, old, returns, eps),
    or another aggregate(losses, mask, options)."""
    values, old, returns, mask, options = arguments
    if token is None:
        losses = value_losses(*arguments)
    else:
        losses = token(*(chosen(x, mask) for x in (values, old, returns)), options.clip_eps)
    return aggregate(losses, mask, options)

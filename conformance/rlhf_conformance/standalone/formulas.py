"""The formulas of the specification once more, in torch, for whoever has nothing else.

Exact where the tensors are float64. Only what is 1 in `action_mask` is read.
"""

from __future__ import annotations

from typing import Any

import torch


def policy_loss(
    log_probs: Any,
    old_log_probs: Any,
    advantages: Any,
    action_mask: Any,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None,
    aggregation: str,
    global_count: float | None,
    count_empty_rows: bool = False,
) -> Any:
    """-min(r A, clip(r) A) of each token, for A < 0 at most -c A where there is a dual clip; then the mean."""
    mask = action_mask.bool()
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    advantages = torch.where(mask, advantages, 0.0)
    # Where A >= 0 the clip decides long before exp overflows.
    ratio = torch.where(advantages < 0, log_ratio, log_ratio.clamp(max=50.0)).exp()
    clipped = ratio.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    return aggregate(-surrogate, mask, aggregation, global_count, count_empty_rows)


def value_loss(
    values: Any,
    old_values: Any,
    returns: Any,
    action_mask: Any,
    clip_eps: float | None,
    aggregation: str,
    global_count: float | None,
    count_empty_rows: bool = False,
) -> Any:
    """0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2) of each token, without a clip 0.5 (V - R)^2; the mean."""
    mask = action_mask.bool()
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    squares = (values - returns) ** 2
    if clip_eps is not None:
        near = torch.clamp(values, old_values - clip_eps, old_values + clip_eps)
        squares = torch.maximum(squares, (near - returns) ** 2)
    return aggregate(0.5 * squares, mask, aggregation, global_count, count_empty_rows)


def aggregate(losses: Any, mask: Any, aggregation: str, global_count: float | None, count_empty_rows: bool) -> Any:
    """One number: the mean over all action tokens, or over the rows of each row's mean; 0 where there is no action."""
    losses = torch.where(mask, losses, 0.0)
    counts = mask.sum(-1)
    if aggregation == "token-mean":
        return losses.sum() / (global_count or max(int(counts.sum()), 1))
    rows = len(counts) if count_empty_rows else max(int((counts > 0).sum()), 1)
    return (losses.sum(-1) / counts.clamp(min=1)).sum() / (global_count or rows)


def clip_fraction(
    log_probs: Any,
    old_log_probs: Any,
    advantages: Any,
    action_mask: Any,
    clip_eps_low: float,
    clip_eps_high: float,
    **other_options: Any,
) -> Any:
    """The share of the action tokens with r > 1 + eps_high and A > 0, or r < 1 - eps_low and A < 0."""
    ratio, mask = (log_probs - old_log_probs).exp(), action_mask.bool()
    above = (ratio > 1 + clip_eps_high) & (advantages > 0)
    below = (ratio < 1 - clip_eps_low) & (advantages < 0)
    return (above | below)[mask].double().mean()


def approx_kl_k1(log_probs: Any, old_log_probs: Any, advantages: Any, action_mask: Any, **options: Any) -> Any:
    """The mean over the action tokens of old_log_probs - log_probs."""
    return (old_log_probs - log_probs)[action_mask.bool()].mean()


def approx_kl_k3(log_probs: Any, old_log_probs: Any, advantages: Any, action_mask: Any, **options: Any) -> Any:
    """The mean over the action tokens of r - log(r) - 1."""
    log_ratio = (log_probs - old_log_probs)[action_mask.bool()]
    return (log_ratio.expm1() - log_ratio).mean()


def token_log_probs(logits: Any, labels: Any, temperature: float) -> Any:
    """log softmax(logits / T) at each label; 0 where the label is -100."""
    picked = (logits / temperature).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels < 0, 0.0, picked)


def token_entropy(logits: Any, temperature: float) -> Any:
    """-sum(p log p) of softmax(logits / T)."""
    log_probs = (logits / temperature).log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)

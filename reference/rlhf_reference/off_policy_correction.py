"""Weights for actions that another engine sampled: by how much the trainer's log-probs differ from the engine's.

d = log p_old - log p_rollout, both of the weights that sampled. exp(d) is the importance weight of an action; that of a
sequence is the exponential of the sum of its d, or of their mean. Truncated: Yao et al. 2025; masked: IcePop, 2025.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Level = Literal["token", "sequence"]
Mode = Literal["truncate", "mask"]


@torch.no_grad()
def off_policy_weights(
    old_log_probs: Tensor,
    rollout_log_probs: Tensor,
    action_mask: Tensor,
    *,
    level: Level = "token",
    mode: Mode = "truncate",
    upper: float = 2.0,
    lower: float | None = None,
    sequence_weight: Literal["product", "geometric"] = "product",
    log_clamp: float | None = None,
    log_clamped: Literal["exponent", "actions"] = "exponent",
    kept: Literal["weight", "token-weight", "one"] = "weight",
    of_nan: Literal["one", "zero"] | None = None,
) -> Tensor:
    """A weight for each action, without a graph.

    old_log_probs       (B, T) floating, the trainer's own at rollout time
    rollout_log_probs   (B, T) floating, those of the engine that sampled
    action_mask         (B, T), nonzero where a token is an action; what lies elsewhere is not read, be it NaN
    level               one weight for each action, or one for all actions of a row
    mode                "truncate": held between the bounds; "mask": 0 outside of them, the bounds themselves are within
    sequence_weight     the exponential of the sum of a row's d, "product", or of their mean, "geometric"
    log_clamp           how far what is exponentiated is held from 0; each d on its own if `log_clamped` is "actions"
    kept                what lies within the band has its weight, the one of the action alone, or 1
    of_nan              a d that is NaN counts as 0, "one", or makes its action, or its sequence, 0
    returns             (B, T), 0 outside the mask, in fp32 or better
    raises              ValueError for a level, a mode or a kind of sequence weight that there is not

    A row is summed in float64: the exponential turns what a sum of hundreds of d loses into a relative error.
    """
    if level not in ("token", "sequence") or mode not in ("truncate", "mask"):
        raise ValueError(f"unknown level {level!r} or mode {mode!r}")
    if sequence_weight not in ("product", "geometric"):
        raise ValueError(f"unknown sequence weight {sequence_weight!r}")
    wide = torch.promote_types(old_log_probs.dtype, torch.float32)
    chosen = action_mask.bool()
    d = old_log_probs.to(wide).where(chosen, 0.0) - rollout_log_probs.to(wide).where(chosen, 0.0)
    lost = d.isnan() if of_nan else torch.zeros_like(chosen)
    d = d.masked_fill(lost, 0.0)
    by_action = _held(d, log_clamp).exp()
    weight = by_action
    if level == "sequence":
        own = _held(d, log_clamp) if log_clamped == "actions" else d
        total = own.double().sum(1, keepdim=True)
        if sequence_weight == "geometric":
            total = total / chosen.sum(1, keepdim=True).clamp(min=1)
        held = total if log_clamped == "actions" else _held(total, log_clamp)
        weight = held.exp().to(wide).expand_as(d)
        lost = lost.any(1, keepdim=True)
    if mode == "truncate":
        weight = weight.clamp(lower, upper)
    else:
        within = weight <= upper if lower is None else (weight <= upper) & (weight >= lower)
        keeps = {"weight": weight, "token-weight": by_action, "one": torch.ones_like(weight)}[kept]
        weight = keeps.where(within, 0.0)
    if of_nan == "zero":
        weight = weight.masked_fill(lost, 0.0)
    return weight.where(chosen, 0.0)


def _held(x: Tensor, bound: float | None) -> Tensor:
    return x if bound is None else x.clamp(-bound, bound)

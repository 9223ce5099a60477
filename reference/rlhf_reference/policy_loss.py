"""PPO's clipped policy loss (Schulman et al. 2017, equation 7), with asymmetric and dual clip."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf_reference.aggregation import Aggregation, aggregate, masked_mean


class PolicyLossOutput(NamedTuple):
    """What `PolicyLoss` returns; scalars all.

    loss           with a graph
    clip_fraction  share of the action tokens whose gradient the clip takes away
    approx_kl      mean of old_log_prob - log_prob over the action tokens, in nats: KL(old || new), estimated (k1)
    """

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


class PolicyLoss(nn.Module):
    """`-min(r A, clip(r, 1 - clip_eps_low, 1 + clip_eps_high) A)` a token, with `r = exp(log_prob - old_log_prob)`.

    clip_eps_low, clip_eps_high  the band of the ratio; a higher upper side is DAPO's clip-higher (Yu et al. 2025)
    dual_clip                    c > 1: the objective of a token with A < 0 is at least c A (Ye et al. 2020, equation 5)
    aggregation                  "token-mean" or "sequence-mean", see `rlhf_reference.aggregation`
    raises                       ValueError if a band is negative or c is not above 1

    How it is computed. Taking A out of the minimum shows that the clip bounds the ratio on one side only:

        A >= 0:  min(r A, clip(r) A) = A min(r, 1 + clip_eps_high)
        A < 0:   min(r A, clip(r) A) = A max(r, 1 - clip_eps_low), with dual clip A min(max(r, 1 - clip_eps_low), c)

    So the loss is `-A exp(clamp(log r, lower, upper))`. Clamped before the exponential, nothing overflows where the
    clip binds: the value is that of the bound and the gradient exactly 0, also for a log-ratio of 1000, where it would
    have been 0 * inf, NaN. Where nothing bounds the ratio (A < 0, no dual clip), a log-ratio above 88 is inf in
    fp32, as the formula says.
    """

    def __init__(
        self,
        clip_eps_low: float = 0.2,
        clip_eps_high: float = 0.2,
        dual_clip: float | None = None,
        aggregation: Aggregation = "token-mean",
    ) -> None:
        super().__init__()
        if clip_eps_low < 0 or clip_eps_high < 0:
            raise ValueError(f"the clip band ({clip_eps_low}, {clip_eps_high}) must not be negative")
        if dual_clip is not None and not dual_clip > 1:
            raise ValueError(f"dual_clip is {dual_clip}; it must be above 1, or it would undo the ratio itself")
        self.clip_eps_low, self.clip_eps_high = clip_eps_low, clip_eps_high
        self.dual_clip = dual_clip
        self.aggregation: Aggregation = aggregation

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor,
        *,
        global_count: float | Tensor | None = None,
    ) -> PolicyLossOutput:
        """All of shape (B, T); computed in fp32 or better.

        log_probs      of the policy that is trained, in nats, with a graph
        old_log_probs  of the policy that sampled, in nats; a constant
        advantages     constants
        action_mask    nonzero on actions (bool, integer or float); under it anything may lie, also NaN
        global_count   see `aggregate`
        raises         ValueError if the shapes differ: broadcasting would hide a wrong axis
        """
        shapes = {tuple(x.shape) for x in (log_probs, old_log_probs, advantages, action_mask)}
        if len(shapes) > 1:
            raise ValueError(f"the arguments differ in shape: {sorted(shapes)}")
        mask = action_mask.bool()
        log_ratio = _select(log_probs, mask) - _select(old_log_probs.detach(), mask)
        advantages = _select(advantages.detach(), mask)

        lower, upper = self._bounds(log_ratio, advantages < 0)
        ratio = log_ratio.clamp(lower, upper).exp()
        loss = aggregate(-ratio * advantages, mask, self.aggregation, global_count=global_count)
        return PolicyLossOutput(loss, self._clip_fraction(log_ratio, advantages, mask), masked_mean(-log_ratio, mask))

    def _bounds(self, log_ratio: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) each: between what log r counts. `negative` is where A < 0."""
        low = math.log(1 - self.clip_eps_low) if self.clip_eps_low < 1 else -math.inf
        high = math.log(1 + self.clip_eps_high)
        dual = math.log(self.dual_clip) if self.dual_clip is not None else math.inf
        lower = torch.full_like(log_ratio, -math.inf).masked_fill(negative, low)
        upper = torch.full_like(log_ratio, high).masked_fill(negative, dual)
        return lower, upper

    @torch.no_grad()
    def _clip_fraction(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Tokens whose gradient the clip takes away; the dual clip is not counted."""
        ratio = log_ratio.exp()
        above = (ratio > 1 + self.clip_eps_high) & (advantages > 0)
        below = (ratio < 1 - self.clip_eps_low) & (advantages < 0)
        return masked_mean((above | below).to(ratio.dtype), mask)


def _select(x: Tensor, mask: Tensor) -> Tensor:
    """Upcast, and 0 outside the mask before any arithmetic: neither value nor gradient sees what lies there."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).where(mask, 0.0)

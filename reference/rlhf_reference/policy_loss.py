"""PPO's clipped policy loss (Schulman et al. 2017, equation 7), with asymmetric and dual clip; GSPO's, which clips the
ratio of a sequence; CISPO's and REINFORCE's, which follow the log-prob."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from rlhf_reference.aggregation import Aggregation, aggregate, masked_mean

Surrogate = Literal["ppo", "gspo", "cispo", "reinforce"]
CispoBounds = Literal["both", "upper", "cap"]


class PolicyLossOutput(NamedTuple):
    """What `PolicyLoss` returns; scalars all.

    loss           with a graph
    clip_fraction  share of the action tokens whose gradient the clip takes away; 0 where there is no such clip
    approx_kl      mean of old_log_prob - log_prob over the action tokens, in nats: KL(old || new), estimated (k1)
    """

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


class PolicyLoss(nn.Module):
    """`-min(r A, clip(r, 1 - clip_eps_low, 1 + clip_eps_high) A)` a token, with `r = exp(log_prob - old_log_prob)`.

    clip_eps_low, clip_eps_high  the band of the ratio; a higher upper side is DAPO's clip-higher (Yu et al. 2025)
    dual_clip                    c > 1: the objective of a token with A < 0 is at least c A (Ye et al. 2020, equation 5)
    aggregation                  see `rlhf_reference.aggregation`
    surrogate                    "ppo": the above; "gspo": the same with one r for each sequence, the exponential of the
                                 mean log-ratio of its actions (Zheng et al. 2025); "cispo": `-w A log_prob` a token,
                                 where w is the ratio within its bounds, a constant (MiniMax 2025); "reinforce":
                                 `-A log_prob` (Williams 1992)
    cispo_bounds                 of w: "both", 1 - clip_eps_low to 1 + clip_eps_high; "upper", below the latter;
                                 "cap", below clip_eps_high itself
    constant_length              of the aggregation "constant-length"
    raises                       ValueError if a band is negative, c is not above 1, or there is no such surrogate

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
        *,
        surrogate: Surrogate = "ppo",
        cispo_bounds: CispoBounds = "both",
        constant_length: float | None = None,
    ) -> None:
        super().__init__()
        if surrogate not in get_args(Surrogate) or cispo_bounds not in get_args(CispoBounds):
            raise ValueError(f"there is no surrogate {surrogate!r} with the bounds {cispo_bounds!r}")
        if clip_eps_low < 0 or clip_eps_high < 0:
            raise ValueError(f"the clip band ({clip_eps_low}, {clip_eps_high}) must not be negative")
        if dual_clip is not None and not dual_clip > 1:
            raise ValueError(f"dual_clip is {dual_clip}; it must be above 1, or it would undo the ratio itself")
        self.clip_eps_low, self.clip_eps_high = clip_eps_low, clip_eps_high
        self.dual_clip = dual_clip
        self.aggregation: Aggregation = aggregation
        self.surrogate: Surrogate = surrogate
        self.cispo_bounds: CispoBounds = cispo_bounds
        self.constant_length = constant_length

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor,
        *,
        loss_weights: Tensor | None = None,
        global_count: float | Tensor | None = None,
    ) -> PolicyLossOutput:
        """All of shape (B, T); computed in fp32 or better.

        log_probs      of the policy that is trained, in nats, with a graph
        old_log_probs  of the policy that sampled, in nats; a constant
        advantages     constants
        action_mask    nonzero on actions (bool, integer or float); under it anything may lie, also NaN
        loss_weights   constants that the losses of the actions are multiplied with, as `off_policy_weights` gives them;
                       an action whose weight is 0 has no loss, be it infinite, and stays in the denominator
        global_count   see `aggregate`
        raises         ValueError if the shapes differ: broadcasting would hide a wrong axis
        """
        weights = torch.ones_like(advantages) if loss_weights is None else loss_weights
        shapes = {tuple(x.shape) for x in (log_probs, old_log_probs, advantages, action_mask, weights)}
        if len(shapes) > 1:
            raise ValueError(f"the arguments differ in shape: {sorted(shapes)}")
        mask = action_mask.bool()
        log_probs = _select(log_probs, mask)
        log_ratio = log_probs - _select(old_log_probs.detach(), mask)
        advantages = _select(advantages.detach(), mask)
        kl = masked_mean(-log_ratio, mask)
        log_ratio = self._of_surrogate(log_ratio, mask)

        weights = _select(weights.detach(), mask)
        log_probs, log_ratio = (x.where(weights != 0, 0.0) for x in (log_probs, log_ratio))
        losses = -self._followed(log_probs, log_ratio, advantages < 0) * advantages * weights
        loss = aggregate(
            losses, mask, self.aggregation, global_count=global_count, constant_length=self.constant_length
        )
        return PolicyLossOutput(loss, self._clip_fraction(log_ratio, advantages, mask), kl)

    def log_ratio(self, log_probs: Tensor, old_log_probs: Tensor, action_mask: Tensor) -> Tensor:
        """(B, T) the logarithm of the ratio before its clip, 0 outside the mask: that of each token, or with GSPO that
        of its sequence."""
        mask = action_mask.bool()
        return self._of_surrogate(_select(log_probs, mask) - _select(old_log_probs.detach(), mask), mask)

    def _of_surrogate(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """(B, T) of log-ratios of tokens those that the surrogate has."""
        return _mean_of_sequence(log_ratio, mask) if self.surrogate == "gspo" else log_ratio

    def _followed(self, log_probs: Tensor, log_ratio: Tensor, negative: Tensor) -> Tensor:
        """(B, T) what the advantages weigh: a ratio, or log-probs."""
        if self.surrogate == "reinforce":
            return log_probs
        if self.surrogate == "cispo":
            return log_ratio.detach().clamp(*self._cispo_bounds()).exp() * log_probs
        lower, upper = self._bounds(log_ratio, negative)
        return log_ratio.clamp(lower, upper).exp()

    def _cispo_bounds(self) -> tuple[float, float]:
        """Of the log-ratio."""
        highest = self.clip_eps_high if self.cispo_bounds == "cap" else 1 + self.clip_eps_high
        lowest = 1 - self.clip_eps_low if self.cispo_bounds == "both" else 0.0
        return math.log(lowest) if lowest > 0 else -math.inf, math.log(highest) if highest > 0 else -math.inf

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
        if self.surrogate not in ("ppo", "gspo"):
            return log_ratio.new_zeros(())
        ratio = log_ratio.exp()
        above = (ratio > 1 + self.clip_eps_high) & (advantages > 0)
        below = (ratio < 1 - self.clip_eps_low) & (advantages < 0)
        return masked_mean((above | below).to(ratio.dtype), mask)


def _select(x: Tensor, mask: Tensor) -> Tensor:
    """Upcast, and 0 outside the mask before any arithmetic: neither value nor gradient sees what lies there."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).where(mask, 0.0)


def _mean_of_sequence(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T) for each token the mean over its row's actions; what lies outside the mask is 0."""
    return (x.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)).expand_as(x).where(mask, 0.0)

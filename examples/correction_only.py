"""A trainer's weights for what another engine sampled, its loss with them, and the adapter that puts them to the test.

Check it with `rlhf-conformance check examples/correction_only.py:InHouse`.
"""

from __future__ import annotations

import torch

from rlhf_conformance import Adapter

# --- the trainer: in your repository this is an import ---------------------------------------------------------------


@torch.no_grad()
def importance_weights(old_log_probs, rollout_log_probs, mask, level, mode, lower, upper):
    """exp(old - rollout) of each token, or of the sum over each sequence: truncated, or 0 outside of [lower, upper]."""
    mask = mask.bool()
    log_ratio = torch.where(mask, old_log_probs, 0.0) - torch.where(mask, rollout_log_probs, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.double().sum(1, keepdim=True)
    weights = log_ratio.exp()
    if mode == "truncate":
        return weights.clamp(max=upper)
    return torch.where((weights <= upper) & (weights >= (lower or 0.0)), weights, 0.0)


def corrected_ppo_loss(log_probs, old_log_probs, advantages, weights, mask, eps_low=0.2, eps_high=0.2):
    """The mean over the actions of the clipped surrogate loss of each, times its weight; all arguments (B, T)."""
    mask, rejected = mask.bool(), weights == 0
    ratio = torch.where(mask & ~rejected, log_probs - old_log_probs, 0.0).clamp(max=80.0).exp()
    advantages = torch.where(mask, advantages, 0.0)
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)
    return torch.where(mask, losses * weights, 0.0).sum() / mask.sum().clamp(min=1)


# --- the adapter -----------------------------------------------------------------------------------------------------


class InHouse(Adapter):
    correction_levels = ("token", "sequence")
    correction_modes = ("truncate", "mask")

    def off_policy_weights(self, old_log_probs, rollout_log_probs, action_mask, options):
        asked = options.level, options.mode, options.lower, options.upper
        return importance_weights(old_log_probs, rollout_log_probs, action_mask, *asked)

    def corrected_loss(self, log_probs, old_log_probs, advantages, rollout_log_probs, action_mask, options):
        weights = torch.ones_like(advantages)
        if options.weights is not None:
            weights = self.off_policy_weights(old_log_probs, rollout_log_probs, action_mask, options.weights)
        eps = options.clip_eps_low, options.clip_eps_high
        return corrected_ppo_loss(log_probs, old_log_probs, advantages, weights, action_mask, *eps)

"""A trainer's weights for what another engine sampled, and the adapter that puts them to the test.

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


# --- the adapter -----------------------------------------------------------------------------------------------------


class InHouse(Adapter):
    correction_levels = ("token", "sequence")
    correction_modes = ("truncate", "mask")

    def off_policy_weights(self, old_log_probs, rollout_log_probs, action_mask, options):
        asked = options.level, options.mode, options.lower, options.upper
        return importance_weights(old_log_probs, rollout_log_probs, action_mask, *asked)

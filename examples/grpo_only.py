"""A GRPO trainer's advantages and its loss, and the adapter that puts them to the test.

Check it with `rlhf-conformance check examples/grpo_only.py:InHouse`.
"""

from __future__ import annotations

import torch

from rlhf_conformance import Adapter

# --- the trainer: in your repository this is an import ---------------------------------------------------------------


@torch.no_grad()
def grpo_advantages(scores, group_ids, eps=1e-4):
    """Each score (B,) less the mean of its group, over the group's deviation; 0 for a group of one."""
    advantages = torch.zeros_like(scores)
    for group in group_ids.unique():
        own = group_ids == group
        if own.sum() > 1:
            x = scores[own].double()  # in float32 the mean of equal scores may differ from them
            advantages[own] = ((x - x.mean()) / (x.std() + eps)).to(scores.dtype)
    return advantages


def grpo_loss(log_probs, old_log_probs, advantages, mask, eps_low=0.2, eps_high=0.2):
    """The mean over the responses of the mean clipped surrogate loss of each, all arguments (B, T)."""
    mask = mask.bool()
    ratio = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(max=80.0).exp()
    advantages = torch.where(mask, advantages, 0.0)
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)
    lengths = mask.sum(1)
    return (losses.sum(1) / lengths.clamp(min=1)).sum() / (lengths > 0).sum().clamp(min=1)


# --- the adapter -----------------------------------------------------------------------------------------------------


class InHouse(Adapter):
    aggregations = ("sequence-mean",)
    group_eps = 1e-4
    group_of_one = "zero"

    def group_advantages(self, scores, group_ids, action_mask, options):
        return grpo_advantages(scores, group_ids)

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        eps = options.clip_eps_low, options.clip_eps_high
        return grpo_loss(log_probs, old_log_probs, advantages, action_mask, *eps)

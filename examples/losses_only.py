"""A trainer's two losses, and the adapter that puts them to the test.

Check it with `rlhf-conformance check examples/losses_only.py:InHouse`.
"""

from __future__ import annotations

import torch

from rlhf_conformance import Adapter

# --- the trainer: in your repository this is an import ---------------------------------------------------------------


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of x (B, T) over the actions of the batch; 0 where there is none."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def ppo_policy_loss(log_probs, old_log_probs, advantages, mask, eps_low=0.2, eps_high=0.2):
    """Clipped surrogate loss, all arguments (B, T)."""
    mask = mask.bool()
    ratio = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(max=80.0).exp()
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    return masked_mean(-torch.minimum(ratio * advantages, clipped * advantages), mask)


def ppo_value_loss(values, old_values, returns, mask, eps=0.2):
    """Half the greater of two squared errors, all arguments (B, T)."""
    mask = mask.bool()
    error = torch.where(mask, values - returns, 0.0)
    if eps is None:
        return masked_mean(0.5 * error**2, mask)
    step = torch.where(mask, values - old_values, 0.0)
    clipped = torch.where(mask, old_values + step.clamp(-eps, eps) - returns, 0.0)
    return masked_mean(0.5 * torch.maximum(error**2, clipped**2), mask)


# --- the adapter -----------------------------------------------------------------------------------------------------


class InHouse(Adapter):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        eps = options.clip_eps_low, options.clip_eps_high
        return ppo_policy_loss(log_probs, old_log_probs, advantages, action_mask, *eps)

    def value_loss(self, values, old_values, returns, action_mask, options):
        return ppo_value_loss(values, old_values, returns, action_mask, options.clip_eps)

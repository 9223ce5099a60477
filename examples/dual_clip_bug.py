"""The same trainer a month later: someone added a dual clip, and forgot that it is for negative advantages only.

Check it with `rlhf-conformance check examples/dual_clip_bug.py:InHouse --only policy-loss.dual-clip-sign`.
"""

from __future__ import annotations

import torch

from rlhf_conformance import Adapter


def ppo_policy_loss(log_probs, old_log_probs, advantages, mask, eps_low, eps_high, dual_clip=None):
    """Clipped surrogate loss, all arguments (B, T)."""
    ratio = (log_probs - old_log_probs).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)
    if dual_clip is not None:
        surrogate = torch.maximum(surrogate, dual_clip * advantages)  # the bug: also where advantages > 0
    return -(surrogate * mask).sum() / mask.sum()


class InHouse(Adapter):
    dual_clip = True

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        eps = options.clip_eps_low, options.clip_eps_high
        return ppo_policy_loss(log_probs, old_log_probs, advantages, action_mask, *eps, options.dual_clip)

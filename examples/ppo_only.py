"""A PPO trainer's way from scores to advantages, and the adapter that puts it to the test.

Check it with `rlhf-conformance check examples/ppo_only.py:InHouse`.
"""

from __future__ import annotations

import torch

from rlhf_conformance import Adapter

# --- the trainer: in your repository this is an import ---------------------------------------------------------------


@torch.no_grad()
def approx_kl(log_probs, ref_log_probs, estimator):
    """(B, T): the KL of each token from the reference, by its log-ratio."""
    log_ratio = log_probs.float() - ref_log_probs.float()
    return log_ratio if estimator == "k1" else torch.expm1(-log_ratio) + log_ratio


@torch.no_grad()
def place_rewards(scores, kl, action_mask, kl_coef):
    """(B, T): the score at the last action of each sample, less what each action pays for its KL."""
    mask = action_mask.bool()
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = columns.where(mask, -1).amax(1, keepdim=True)
    penalties = kl_coef * kl.where(mask, 0.0) if kl_coef else 0.0
    return scores[:, None].where(columns == last, 0.0) - penalties


@torch.no_grad()
def gae(token_rewards, values, action_mask, gamma, lam):
    """Two of (B, T): advantages and returns; observations between turns are steps that are worth 0."""
    mask = action_mask.bool()
    rewards, values = token_rewards.where(mask, 0.0), values.where(mask, 0.0)
    advantages, behind, following = torch.zeros_like(values), 0.0, 0.0
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantages[:, t] = behind = delta + gamma * lam * behind
        following = values[:, t]
    return advantages, advantages + values


# --- the adapter -----------------------------------------------------------------------------------------------------


class InHouse(Adapter):
    kl_estimators = ("k1", "k3")
    observations = "zero-steps"

    def kl(self, log_probs, ref_log_probs, action_mask, options):
        return approx_kl(log_probs, ref_log_probs, options.estimator)

    def token_rewards(self, scores, kl, action_mask, options):
        return place_rewards(scores, kl, action_mask, options.kl_coef)

    def advantages(self, token_rewards, values, action_mask, options):
        return gae(token_rewards, values, action_mask, options.gamma, options.lam)

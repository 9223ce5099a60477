"""The reference with advantages."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference


class ToyReference(Reference):
    name = "toy"

    def toy_advantages(self, rewards, values, action_mask, options):
        mask, result = action_mask.bool(), []
        rewards, values = rewards.where(mask, 0.0), values.where(mask, 0.0)
        following = advantage = values[:, 0] * 0
        for t in reversed(range(rewards.shape[1])):
            on = mask[:, t]
            error = rewards[:, t] + options.gamma * following - values[:, t]
            advantage = (error + options.gamma * options.lam * advantage).where(on, advantage)
            following = values[:, t].where(on, following)
            result.insert(0, advantage.where(on, 0.0))
        return torch.stack(result, dim=1)

    def mean_toy_advantage(self, rewards, values, action_mask, options):
        advantages = ToyReference.toy_advantages(self, rewards, values, action_mask, options)
        return advantages.sum() / action_mask.sum()

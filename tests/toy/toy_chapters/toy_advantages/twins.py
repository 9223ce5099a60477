"""Who must pass the toy chapter."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.twins import twin
from toy_chapters.adapter import ToyReference


@twin
class AdvantagesByMatrix(ToyReference):
    "The errors of a row times the powers of gamma lambda."

    def toy_advantages(self, rewards, values, action_mask, options):
        mask = action_mask.bool()
        rewards, values = rewards.where(mask, 0.0), values.where(mask, 0.0)
        following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        errors = (rewards + options.gamma * following - values).where(mask, 0.0)
        steps = torch.arange(errors.shape[1])
        behind = (steps[:, None] - steps[None]).clamp(min=0)
        powers = (torch.tensor(options.gamma * options.lam).to(errors) ** behind).tril()
        return (errors @ powers).where(mask, 0.0)

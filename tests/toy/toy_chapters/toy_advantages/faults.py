"""Who must fail the toy chapter."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.faults import fault
from toy_chapters.adapter import ToyReference


@fault("toy-advantages.definition", bug="advantage-undiscounted")
class AdvantageUndiscounted(ToyReference):
    "Nothing is discounted: gamma is taken to be 1."

    def toy_advantages(self, rewards, values, action_mask, options):
        return super().toy_advantages(rewards, values, action_mask, replace(options, gamma=1.0))


@fault("toy-advantages.gradient")
class AdvantageDetached(ToyReference):
    "The advantages have no graph."

    def toy_advantages(self, rewards, values, action_mask, options):
        return super().toy_advantages(rewards, values, action_mask, options).detach()


@fault("toy-advantages.mean")
class MeanOverCells(ToyReference):
    "The mean is taken over all cells."

    def mean_toy_advantage(self, rewards, values, action_mask, options):
        return super().toy_advantages(rewards, values, action_mask, options).mean()

"""Honest variants of advantages and returns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._tensors import chosen, wide
from rlhf_conformance.chapters.advantages.bending import (
    beyond_the_end,
    gae,
    over_observations,
    with_returns,
    without_critic,
)
from rlhf_conformance.chapters.advantages.interface import AdvantagesResult
from rlhf_conformance.twins import twin


@twin
class GaeByMatrix(Reference):
    "Actions are moved together, and their deltas times a matrix of powers of gamma lambda."

    def advantages(self, rewards, values, mask, options):
        marks = mask.bool()
        order = (~marks).long().argsort(dim=1, stable=True)
        rewards, values = (chosen(x, mask).gather(1, order).detach() for x in (rewards, values))
        following = torch.nn.functional.pad(values, (0, 1))[:, 1:]
        deltas = rewards + options.gamma * following - values
        steps = torch.arange(mask.shape[1], device=mask.device)
        behind = (steps[:, None] - steps[None]).clamp(min=0)
        powers = torch.tensor(options.gamma * options.lam, dtype=deltas.dtype) ** behind
        moved = deltas @ powers.tril()
        found = torch.zeros_like(moved).scatter(1, order, moved).where(marks, 0.0)
        back = torch.zeros_like(values).scatter(1, order, values)
        return AdvantagesResult(found, found + back)


@twin
class AdvantagesRowByRow(Reference):
    "Each row for itself, its actions picked out, in a list that is turned round; the rest is NaN."

    advantages_masked = None

    def advantages(self, rewards, values, mask, options):
        found, returns = (torch.full_like(wide(values), torch.nan).detach() for _ in range(2))
        for i, marks in enumerate(mask.bool()):
            r, v = wide(rewards)[i][marks].tolist(), wide(values)[i][marks].tolist()
            advantage, row = 0.0, []
            for t in reversed(range(len(r))):
                following = v[t + 1] if t + 1 < len(v) else 0.0
                advantage = r[t] + options.gamma * following - v[t] + options.gamma * options.lam * advantage
                row.append(advantage)
            own = torch.tensor(row[::-1], dtype=found.dtype)
            found[i, marks], returns[i, marks] = own, own + torch.tensor(v, dtype=found.dtype)
        return found, returns


@twin
class AdvantagesInFloat64(Reference):
    "float64 inside."

    def advantages(self, rewards, values, mask, options):
        return super().advantages(rewards.double(), values.double(), mask, options)

    def returns(self, rewards, mask, options):
        return super().returns(rewards.double(), mask, options)


@twin
class ReturnsBeforeAdvantages(Reference):
    "The recursion is one of returns, R = r + gamma ((1 - lambda) V' + lambda R'), from which the values are taken off."

    def advantages(self, rewards, values, mask, options):
        marks = mask.bool()
        r, v = chosen(rewards, mask).detach(), chosen(values, mask).detach()
        total = following = torch.zeros_like(v[:, 0])
        found: list = []
        for t in range(v.shape[1] - 1, -1, -1):
            mixed = (1 - options.lam) * following + options.lam * total
            total = torch.where(marks[:, t], r[:, t] + options.gamma * mixed, total)
            following = torch.where(marks[:, t], v[:, t], following)
            found.insert(0, total)
        returns = torch.stack(found, dim=1).where(marks, 0.0)
        return returns - v, returns


@twin
class ReturnsByPowers(Reference):
    "Discounted rewards from a matrix of powers of gamma, by the number of actions between."

    def returns(self, rewards, mask, options):
        marks = mask.bool()
        count = marks.cumsum(1)
        apart = (count[:, None, :] - count[:, :, None]).clamp(min=0)
        later = torch.ones(mask.shape[1], mask.shape[1], device=mask.device).triu().bool()
        weights = (torch.tensor(options.gamma, dtype=wide(rewards).dtype) ** apart).where(later & marks[:, None], 0.0)
        return torch.einsum("bts,bs->bt", weights, chosen(rewards, mask)).where(marks, 0.0).detach()


@twin
class ObservationsAreZeroSteps(Reference):
    "Observations between two actions are steps that are worth 0, by multiplication with the mask, as in OpenRLHF."

    observations, advantages_masked = "zero-steps", None

    def advantages(self, rewards, values, mask, options):
        rewards, values = (x.detach().nan_to_num(0.0, 0.0, 0.0) * mask for x in (rewards, values))
        advantage, found = 0, []
        for t in reversed(range(values.shape[1])):
            following = values[:, t + 1] if t < values.shape[1] - 1 else 0.0
            delta = rewards[:, t] + options.gamma * following - values[:, t]
            advantage = delta + options.gamma * options.lam * advantage
            found.append(advantage)
        found = torch.stack(found[::-1], dim=1)
        return found, found + values

    def returns(self, rewards, mask, options):
        rewards, total, found = rewards.detach().nan_to_num(0.0, 0.0, 0.0) * mask, 0, []
        for t in reversed(range(rewards.shape[1])):
            total = rewards[:, t] + options.gamma * total
            found.append(total)
        return torch.stack(found[::-1], dim=1)


@twin
class ObservationsAreValued(Reference):
    "Observations between two actions are steps with the critic's value."

    observations = "value-steps"

    def advantages(self, rewards, values, mask, options):
        return with_returns(over_observations(rewards, values, mask, options, valued=True), values, mask)

    def returns(self, rewards, mask, options):
        recursion = partial(over_observations, valued=True)
        return without_critic(recursion, rewards, mask, options)


@twin
class OneStepBehindTheEnd(Reference):
    "The cell behind the last action is a step with its own reward and value, as in torchtune."

    after_last_action = "step"

    def advantages(self, rewards, values, mask, options):
        return with_returns(beyond_the_end(rewards, values, mask, options, rewarded=True), values, mask)

    def returns(self, rewards, mask, options):
        recursion = partial(beyond_the_end, rewarded=True)
        return without_critic(recursion, rewards, mask, options)


@twin
class BootstrapsBehindTheEnd(Reference):
    "The value of the cell behind the last action stands for what would have come."

    after_last_action = "value"

    def advantages(self, rewards, values, mask, options):
        return with_returns(beyond_the_end(rewards, values, mask, options, rewarded=False), values, mask)


@twin
class ReturnsWithoutCritic(Reference):
    "A trainer with nothing but discounted returns, from the recursion of advantages with values of 0."

    def returns(self, rewards, mask, options):
        with torch.no_grad():
            return gae(rewards, torch.zeros_like(rewards), mask, replace(options, lam=1.0))

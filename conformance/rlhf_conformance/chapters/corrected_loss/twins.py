"""Honest variants of the corrected loss."""

from __future__ import annotations

import math
from dataclasses import fields

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.averaging import averaged
from rlhf_conformance.chapters.log_probs.twins import upcast
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions
from rlhf_conformance.twins import twin


def _policy(options):
    """The options of the policy loss alone."""
    return PolicyLossOptions(**{row.name: getattr(options, row.name) for row in fields(PolicyLossOptions)})


@twin
class WeightsOnTheAdvantages(Reference):
    "The weights are positive and constant: they are multiplied with the advantages, before the policy loss."

    def corrected_loss(self, new, old, advantages, rollout, mask, options):
        if options.weights is not None:
            weights = self.off_policy_weights(old, rollout, mask, options.weights)
            keeps = weights != 0
            advantages = upcast(advantages) * weights
            new, old = new.where(keeps, 0.0), old.where(keeps, 0.0)
        old = rollout if options.bypass else old
        return self.policy_loss(new, old, advantages, mask, _policy(options)).loss


@twin
class RolloutCorrectionByRow(Reference):
    "Row by row: the weights in float64, (B, 1) for sequences; PPO's loss times them, as in verl."

    surrogates = ("ppo",)
    correction_bypass, correction_nan = False, None

    def corrected_loss(self, new, old, advantages, rollout, mask, options):
        rows = []
        for lp, olp, a, rlp, marks in zip(new, old, advantages, rollout, mask.bool(), strict=True):
            lp, olp, a, rlp = (upcast(x)[marks] for x in (lp, olp, a, rlp))
            weight = self._of_row((olp.double() - rlp.double()).detach(), options)
            ratio = (lp - olp).clamp(max=20.0).exp()
            losses = -torch.min(ratio * a, ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high) * a)
            if options.dual_clip is not None:
                losses = torch.where(a < 0, torch.min(losses, -options.dual_clip * a), losses)
            row = torch.zeros_like(upcast(new)[0])
            row[marks] = torch.where(weight != 0, losses, torch.zeros_like(losses)) * weight.to(losses.dtype)
            rows.append(row)
        return averaged(torch.stack(rows) + 0.0 * upcast(new).where(mask.bool(), 0.0), mask, options)

    def _of_row(self, d, options):
        if options.level is None:
            return torch.ones_like(d)
        if options.level == "sequence":
            total = d.sum() / max(1, len(d)) if options.sequence_weight == "geometric" else d.sum()
            d = total.expand(len(d))
        weight = d.clamp(-options.log_clamp, options.log_clamp).exp()
        if options.mode == "truncate":
            return weight.clamp(options.lower, options.upper)
        outside = (weight > options.upper) | (weight < (options.lower or 0.0))
        return weight.masked_fill(outside, 0.0)


@twin
class RejectedActionsLeftOut(Reference):
    "Rejected actions are taken out of the mask, and out of every count, as in verl's rejection masks."

    rejected_tokens = "left-out"
    aggregations = ("token-mean", "sequence-mean")

    def corrected_loss(self, new, old, advantages, rollout, mask, options):
        if options.weights is None:
            return super().corrected_loss(new, old, advantages, rollout, mask, options)
        weights = self.off_policy_weights(old, rollout, mask, options.weights)
        left = mask.bool() & (weights != 0) if options.mode == "mask" else mask
        return self.policy_loss(new, old, upcast(advantages) * weights, left, _policy(options)).loss


@twin
class BypassAlone(Reference):
    "The engine's log-probs are put in the place of the old ones before anything else; truncation by token beside it."

    correction_levels, correction_modes, correction_lower = ("token",), ("truncate",), None
    correction_log_clamp = correction_nan = None

    def corrected_loss(self, new, old, advantages, rollout, mask, options):
        if options.bypass:
            return self.policy_loss(new, rollout, advantages, mask, _policy(options)).loss
        if options.level is None:
            return self.policy_loss(new, old, advantages, mask, _policy(options)).loss
        apart = (upcast(old) - upcast(rollout)).where(mask.bool(), 0.0)
        weights = apart.exp().clamp(max=options.upper).detach()
        return self.policy_loss(new, old, upcast(advantages) * weights, mask, _policy(options)).loss


@twin
class BypassByItsOwnLoss(Reference):
    "The bypass is a loss function of its own, on the actions alone, of a ratio that is held before its exponential."

    surrogates = ("ppo",)
    aggregations = ("token-mean",)
    constant_length = token_sum = False

    def corrected_loss(self, new, old, advantages, rollout, mask, options):
        if not options.bypass:
            return super().corrected_loss(new, old, advantages, rollout, mask, options)
        lp, a, rlp = (upcast(x)[mask.bool()] for x in (new, advantages, rollout))
        ceiling = 20.0 if options.dual_clip is None else math.log(options.dual_clip)
        highest = torch.where(a > 0, math.log1p(options.clip_eps_high), ceiling)
        lowest = math.log(1 - options.clip_eps_low) if options.clip_eps_low < 1 else -math.inf
        ratio = (lp - rlp).clamp(torch.where(a < 0, lowest, -math.inf), highest).exp()
        return -(ratio * a).sum() / (options.global_count or max(1, len(a)))


@twin
class DualClipOnTheRatio(Reference):
    "The dual clip holds the ratio of bad actions, as TRL's delta; sums are taken last, of losses with their weights."

    surrogates = ("ppo",)

    def corrected_loss(self, new, old, advantages, rollout, mask, options):
        behind = rollout if options.bypass else old
        new, behind, advantages = (upcast(x).where(mask.bool(), 0.0) for x in (new, behind, advantages))
        weights = torch.ones_like(new)
        if options.weights is not None:
            weights = self.off_policy_weights(old, rollout, mask, options.weights)
        ratio = (new - behind).where(weights != 0, 0.0).clamp(max=20.0).exp()
        capped = ratio if options.dual_clip is None else ratio.where(advantages > 0, ratio.clamp(max=options.dual_clip))
        held = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        losses = torch.max(-advantages * capped, -advantages * held) * weights
        return averaged(losses, mask, options)

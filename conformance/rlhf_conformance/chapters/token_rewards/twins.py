"""Honest variants of the token rewards."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._credit.bending import last_action
from rlhf_conformance.chapters._tensors import chosen, wide
from rlhf_conformance.chapters.token_rewards.faults import clipped, rewards
from rlhf_conformance.twins import twin


@twin
class RewardsByScatter(Reference):
    "The score is scattered into zeros, at the last action that is found from the end, and the penalties are added."

    def token_rewards(self, scores, kl, mask, options):
        with torch.no_grad():
            marks = mask.bool()
            last = marks.shape[1] - 1 - marks.flip(1).long().argmax(1, keepdim=True)
            scores = clipped(scores, options)[:, None] * marks.any(1, keepdim=True)
            penalties = -options.kl_coef * chosen(kl, mask) if options.kl_coef else torch.zeros_like(wide(kl))
            return torch.zeros_like(wide(kl)).scatter(1, last, scores) + penalties


@twin
class RewardsInLoops(Reference):
    "Row by row and token by token, in Python numbers."

    def token_rewards(self, scores, kl, mask, options):
        found = torch.zeros_like(kl)
        for i, marks in enumerate(mask.bool().tolist()):
            columns = [j for j, m in enumerate(marks) if m]
            for j in columns:
                found[i, j] = -options.kl_coef * float(kl[i, j]) if options.kl_coef else 0.0
            if columns:
                found[i, columns[-1]] += float(clipped(scores[i], options))
        return found.detach()


@twin
class RewardsInFloat64(Reference):
    "float64 inside."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores.double(), kl.double(), mask, options)


@twin
class RewardsAfterTheLastAction(Reference):
    "The score lands behind the last action, as in classic TRL, and nothing is promised of other cells."

    score_position, token_rewards_masked = "after-last", None

    def token_rewards(self, scores, kl, mask, options):
        with torch.no_grad():
            lands = (last_action(mask) + 1).masked_fill(~mask.bool().any(1, keepdim=True), -1)
            columns = torch.arange(mask.shape[1], device=mask.device)
            kl = kl.where(mask.bool() & (options.kl_coef != 0), 0.0)
            return rewards(scores, kl, mask, options, lands=lands).masked_fill(columns > lands.clamp(min=0), torch.nan)


@twin
class RewardsWithoutClip(Reference):
    "A trainer that does not clip, and multiplies what is masked by 0."

    score_clip = False

    def token_rewards(self, scores, kl, mask, options):
        with torch.no_grad():
            columns = torch.arange(mask.shape[1], device=mask.device)
            ends = (columns == last_action(mask)).to(kl.dtype)
            kl = kl.nan_to_num(0.0, 0.0, 0.0) * mask
            return scores[:, None] * ends - options.kl_coef * kl


@twin
class RewardsWithFactorForNoStop(Reference):
    "Samples that did not stop have their scores multiplied, one after the other, as in OpenRLHF."

    missing_stop = "factor"

    def token_rewards(self, scores, kl, mask, options, stopped=None):
        scores = scores.detach().clone()
        for i, has_stopped in enumerate([] if stopped is None else stopped.tolist()):
            if not has_stopped:
                scores[i] = scores[i] * options.stop_penalty if options.stop_penalty >= 0 else options.stop_penalty
        return super().token_rewards(scores, kl, mask, replace(options, stop_penalty=None))

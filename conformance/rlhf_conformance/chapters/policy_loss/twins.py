"""Honest variants of the policy loss."""

from __future__ import annotations

import math

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.averaging import averaged
from rlhf_conformance.chapters.log_probs.twins import upcast
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossResult
from rlhf_conformance.twins import twin


@twin
class TextbookPolicyLoss(Reference):
    "max(-r A, -clip(r) A) as in CleanRL, on inputs selected by the mask and a log-ratio held below 20."

    surrogates = ("ppo",)

    def policy_loss(self, new, old, advantages, mask, options):
        new, old, advantages = (upcast(x).where(mask.bool(), 0.0) for x in (new, old, advantages))
        ratio = (new - old).clamp(-20.0, 20.0).exp()
        clipped = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        losses = torch.max(-advantages * ratio, -advantages * clipped)
        if options.dual_clip is not None:
            losses = torch.where(advantages < 0, torch.min(losses, -options.dual_clip * advantages), losses)
        return averaged(losses, mask, options)


@twin
class DualClipAlways(TextbookPolicyLoss):
    "A dual clip that cannot be switched off."

    dual_clip = "always"

    def policy_loss(self, new, old, advantages, mask, options):
        assert options.dual_clip > 1, "it is never None here"
        return super().policy_loss(new, old, advantages, mask, options)


@twin
class BranchFreePolicyLoss(Reference):
    "The band is chosen by the sign of the advantage; the ratio comes from expm1, with its metrics in Python numbers."

    surrogates = ("ppo",)

    def policy_loss(self, new, old, advantages, mask, options):
        new, old, advantages = (upcast(x).where(mask.bool(), 0.0) for x in (new, old, advantages))
        ceiling = math.exp(20.0) if options.dual_clip is None else options.dual_clip
        log_ratio = new - old
        upper = torch.where(advantages > 0, 1 + options.clip_eps_high, ceiling)
        lower = torch.where(advantages > 0, 0.0, 1 - options.clip_eps_low)
        ratio = log_ratio.clamp(max=20.0).expm1() + 1
        loss = averaged(-ratio.clamp(lower, upper) * advantages, mask, options)
        out = (ratio > upper) & (advantages > 0) | (ratio < lower) & (advantages < 0)
        count = max(1, int(mask.bool().sum()))
        return PolicyLossResult(loss, float(out.sum()) / count, float(-log_ratio.detach().sum()) / count)


@twin
class PolicyLossByLoop(Reference):
    "Token by token and row by row, from the last to the first, in plain loops over scalars."

    surrogates = ("ppo",)
    constant_length = token_sum = False

    def policy_loss(self, new, old, advantages, mask, options):
        rows = []
        for i in reversed(range(mask.shape[0])):
            places = [j for j in reversed(range(mask.shape[1])) if mask[i, j]]
            rows.append([self._token(new[i, j], old[i, j], float(advantages[i, j]), options) for j in places])
        nothing = upcast(new).where(torch.zeros_like(new, dtype=torch.bool), 0.0).sum()
        if options.aggregation == "token-mean":
            weights = [1 / (options.global_count or sum(map(len, rows)) or 1) for _ in rows]
        else:
            count = options.global_count or sum(1 for row in rows if row) or 1
            weights = [1 / (count * len(row)) if row else 0.0 for row in rows]
        return nothing + sum(w * sum(row, nothing) for w, row in zip(weights, rows, strict=True))

    def _token(self, new, old, advantage, options):
        log_ratio = upcast(new) - upcast(old)
        ratio = float(log_ratio.detach().clamp(max=50.0).exp())
        bound = 0.0 if advantage == 0 else None
        if advantage > 0 and ratio > 1 + options.clip_eps_high:
            bound = 1 + options.clip_eps_high
        elif advantage < 0 and ratio < 1 - options.clip_eps_low:
            bound = 1 - options.clip_eps_low
        elif advantage < 0 and options.dual_clip is not None and ratio > options.dual_clip:
            bound = options.dual_clip
        return -advantage * (log_ratio.exp() if bound is None else 0 * log_ratio.detach() + bound)


@twin
class GspoByToken(Reference):
    "The ratio of a sequence reaches each of its tokens by that token's own log-prob; its log is held below 10."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "gspo":
            return super().policy_loss(new, old, advantages, mask, options)
        new, old, advantages = (upcast(x).where(mask.bool(), 0.0) for x in (new, old, advantages))
        count = mask.bool().sum(-1, keepdim=True).clamp(min=1)
        of_sequence = ((new - old).sum(-1, keepdim=True) / count).detach()
        ratio = (of_sequence + new - new.detach()).clamp(max=10.0).exp()
        held = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        return averaged(torch.max(-advantages * ratio, -advantages * held), mask, options)


@twin
class LogProbsFollowedByRow(Reference):
    "CISPO with its weight from a held log-ratio, and REINFORCE, row by row; sums of sums of rows."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate not in ("cispo", "reinforce"):
            return super().policy_loss(new, old, advantages, mask, options)
        rows = []
        for lp, olp, advantage, marks in zip(new, old, advantages, mask.bool(), strict=True):
            lp, olp, advantage = (upcast(x)[marks] for x in (lp, olp, advantage))
            weight = torch.ones_like(lp)
            if options.surrogate == "cispo":
                highest = math.log(1 + options.clip_eps_high)
                weight = (lp - olp).detach().clamp(math.log(1 - options.clip_eps_low), highest).exp()
            losses = upcast(torch.zeros_like(marks, dtype=new.dtype))
            losses[marks] = -(advantage * weight) * lp
            rows.append(losses)
        return averaged(torch.stack(rows) + 0.0 * new.where(mask.bool(), 0.0), mask, options)


@twin
class DrGrpoAlone(Reference):
    "GRPO without lengths: a sum over a constant is the only mean there is, and sequences with one ratio the only loss."

    surrogates = ("gspo",)
    constant_length = "always"
    dual_clip = token_sum = False

    def policy_loss(self, new, old, advantages, mask, options):
        assert (options.surrogate, options.aggregation, options.dual_clip) == ("gspo", "constant-length", None)
        return super().policy_loss(new, old, advantages, mask, options)

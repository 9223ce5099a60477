"""Honest variants of the whole path."""

from __future__ import annotations

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._tensors import wide
from rlhf_conformance.chapters.credit.bending import path
from rlhf_conformance.twins import twin


@twin
class PathInOnePlace(Adapter):
    "A trainer with the whole path and none of its parts: k1 alone, nothing clipped, nothing promised under the mask."

    kl_estimators = ("k1",)

    def credit(self, scores, log_probs, ref_log_probs, values, action_mask, options):
        rows = []
        for i, (marks, score) in enumerate(zip(action_mask.bool(), scores.tolist(), strict=True)):
            log_ratio = (wide(log_probs[i]) - wide(ref_log_probs[i]))[marks].tolist()
            value = wide(values[i])[marks].tolist()
            advantage, following, found = 0.0, 0.0, []
            for t in reversed(range(len(value))):
                reward = -options.kl_coef * log_ratio[t] + (score if t == len(value) - 1 else 0.0)
                delta = reward + options.gamma * following - value[t]
                advantage = delta + options.gamma * options.lam * advantage
                following = value[t]
                found.append(advantage)
            row = wide(values[i]).detach().clone()
            row[marks] = row.new_tensor(found[::-1])
            rows.append(row)
        advantages = rows[0].new_zeros(values.shape)
        for i, row in enumerate(rows):
            advantages[i] = row
        return advantages, advantages + wide(values).detach()


@twin
class PathInFloat64(Reference):
    "float64 inside."

    def credit(self, scores, log_probs, ref_log_probs, values, action_mask, options):
        tables = (x.double() for x in (scores, log_probs, ref_log_probs, values))
        return path(self, (*tables, action_mask, options))


@twin
class PathThatAlwaysWhitens(Adapter):
    "A trainer that whitens on the way, in float64, with the biased variance held above its eps, as in OpenRLHF."

    kl_estimators = ("k1",)
    credit_whitening, whitening_ddof, whitening_eps_place = "always", 0, "floor"

    def credit(self, scores, log_probs, ref_log_probs, values, action_mask, options):
        whole = PathInOnePlace().credit(scores, log_probs, ref_log_probs, values, action_mask, options)
        advantages, returns = (x.double() for x in whole)
        picked = advantages[action_mask.bool()]
        variance = (picked - picked.mean()).square().mean().clamp(min=self.whitening_eps)
        return (advantages - picked.mean()) * variance.rsqrt(), returns

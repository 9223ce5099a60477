"""Honest variants of the weights that correct for the engine."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._tensors import chosen, wide
from rlhf_conformance.chapters.off_policy_correction import bending as plain
from rlhf_conformance.twins import twin


def _difference(old, rollout, mask):
    return plain.log_ratio(old.detach(), rollout.detach(), mask)


@twin
class WeightsInFloat64(Reference):
    "float64 inside and outside."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old.double(), rollout.double(), mask, options)


@twin
class WeightsOfRows(Reference):
    "One number for each sequence, (B,), of sums that run over a transposed table; nothing is promised of masked cells."

    correction_masked = None

    def off_policy_weights(self, old, rollout, mask, options):
        if options.level == "token":
            return super().off_policy_weights(old, rollout, mask, options)
        total = _difference(old, rollout, mask).mT.double().sum(0)
        if options.sequence_weight == "geometric":
            total = total / plain.counts(mask)[:, 0]
        return plain.bounded(plain.held(self, total).exp(), options).float()


@twin
class WeightsMultiplied(Reference):
    "A sequence's weight is the product of its actions' weights, and its root of as many; no clamp, no rule for NaN."

    correction_log_clamp = correction_nan = correction_masked = None

    def off_policy_weights(self, old, rollout, mask, options):
        weight = _difference(old, rollout, mask).exp()
        if options.level == "sequence":
            weight = weight.double().prod(1, keepdim=True)
            if options.sequence_weight == "geometric":
                weight = weight ** (1 / plain.counts(mask))
        return plain.bounded(weight, options).expand(mask.shape)


@twin
class WeightsAsInVerl(Reference):
    "Exponents held within 20, products alone, a lower bound for bands only; times the mask, after the clamp."

    sequence_weights, correction_lower = ("product",), "mask"
    correction_nan = None

    def off_policy_weights(self, old, rollout, mask, options):
        d = _difference(old, rollout, mask)
        exponent = d.sum(-1).unsqueeze(-1) if options.level == "sequence" else d
        weight = exponent.clamp(-20.0, 20.0).exp().expand_as(d) * mask.bool()
        if options.mode == "truncate":
            return weight.clamp(max=options.upper)
        kept = weight <= options.upper if options.lower is None else plain.within(weight, options)
        return torch.where(kept, weight, torch.zeros_like(weight))


@twin
class WeightsAsInTrl(Reference):
    "Differences times the mask, NaN made 0, and no clamp; (B, 1) for sequences, and masked cells weigh what comes out."

    correction_log_clamp = correction_masked = None
    sequence_weights = ("product",)

    def off_policy_weights(self, old, rollout, mask, options):
        difference = ((wide(old.detach()) - wide(rollout.detach())) * mask).nan_to_num(nan=0.0)
        if options.level == "sequence":
            difference = difference.sum(dim=-1, keepdim=True)
        weight = difference.exp()
        if options.mode == "truncate":
            return weight.clamp(min=options.lower, max=options.upper)
        least = 0.0 if options.lower is None else options.lower
        return weight.masked_fill((weight < least) | (weight > options.upper), 0.0)


@twin
class WeightsAsInOpenrlhf(Reference):
    "A sequence is accepted by its geometric mean, its actions keep their own weights; tokens are held both ways."

    sequence_correction_modes, sequence_weights = ("mask",), ("geometric",)
    correction_kept = "token-weight"
    correction_log_clamp = correction_nan = correction_masked = None

    def off_policy_weights(self, old, rollout, mask, options):
        d = _difference(old, rollout, mask)
        statistic = (d.sum(1, keepdim=True) / plain.counts(mask) if options.level == "sequence" else d).exp()
        if options.mode == "truncate":
            return statistic.clamp(min=options.lower, max=options.upper)
        return torch.where(plain.within(statistic, options), d.exp(), 0.0)


@twin
class WeightsAsInOpenInstruct(Reference):
    "Each log-ratio is held within 10 before a mean is taken; geometric means alone, no lower bound of 0."

    correction_log_clamp, correction_log_clamped = 10.0, "actions"
    sequence_weights = ("geometric",)
    correction_nan = None

    def off_policy_weights(self, old, rollout, mask, options):
        difference = _difference(old, rollout, mask).clamp(-10.0, 10.0)
        if options.level == "sequence":
            mean = difference.sum(-1, keepdim=True) / mask.bool().float().sum(-1, keepdim=True).clamp_min(1.0)
            difference = mean.expand_as(difference)
        return chosen(plain.bounded(difference.exp(), options), mask)


@twin
class RejectionAlone(Reference):
    "A band that rejects and weighs nothing: 1 for what is accepted, and for masked cells, and 0 for what is not."

    correction_modes, correction_kept, correction_masked = ("mask",), "one", "one"

    def off_policy_weights(self, old, rollout, mask, options):
        weight = super().off_policy_weights(
            old, rollout, mask, replace(options, mode="truncate", upper=1e30, lower=None)
        )
        return plain.within(weight, options).float().where(mask.bool(), 1.0)


@twin
class TokensTruncated(Reference):
    "One weight a token, truncated from above: what most trainers began with. The engine's NaN weighs nothing."

    correction_levels, correction_modes, correction_lower = ("token",), ("truncate",), None
    correction_log_clamp, correction_nan = None, "zero"

    def off_policy_weights(self, old, rollout, mask, options):
        weight = torch.exp(chosen(old, mask) - chosen(rollout, mask)).detach()
        return weight.clamp(max=options.upper).nan_to_num(nan=0.0) * mask.bool()

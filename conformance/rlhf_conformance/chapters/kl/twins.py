"""Honest variants of the KL."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._tensors import chosen, value_of, wide
from rlhf_conformance.chapters.kl.faults import ESTIMATES, held, log_ratio
from rlhf_conformance.twins import twin

WRITTEN_OUT = {
    "k1": lambda d: d,
    "k2": lambda d: 0.5 * d.pow(2),
    "k3": lambda d: (torch.exp(-d) - 1) - (-d),
    "abs": lambda d: torch.maximum(d, -d),
}


@twin
class KlAsInTheBlog(Reference):
    "The estimators as they are written down: (r - 1) - log r with r = exp(ref - log-prob)."

    def kl(self, lp, ref, mask, options):
        return held(self, log_ratio(lp, ref, mask), options, WRITTEN_OUT[options.estimator])


@twin
class KlInFloat64(Reference):
    "float64 inside."

    def kl(self, lp, ref, mask, options):
        return super().kl(lp.double(), ref.double(), mask, options)


@twin
class KlOfPickedActions(Reference):
    "Actions are picked out first, and put back into a rectangle of NaN, since nothing is promised of other cells."

    kl_masked = None

    def kl(self, lp, ref, mask, options):
        picked = mask.bool()
        estimates = held(self, wide(lp)[picked] - wide(ref)[picked], options, ESTIMATES[options.estimator])
        return torch.full_like(wide(lp), torch.nan).masked_scatter(picked, estimates)


@twin
class KlRowByRow(Reference):
    "One row after the other, from the last to the first."

    def kl(self, lp, ref, mask, options):
        rows = zip(lp.split(1), ref.split(1), mask.split(1), strict=True)
        found = [super(KlRowByRow, self).kl(*row, options) for row in rows]
        return torch.cat(found[::-1]).flip(0)


@twin
class KlWithoutClamps(Reference):
    "Three estimators, none of which is clamped."

    kl_estimators = ("k1", "k2", "k3")
    kl_log_ratio_clamp = kl_clamp = None

    def kl(self, lp, ref, mask, options):
        return ESTIMATES[options.estimator](log_ratio(lp, ref, mask))


@twin
class KlClampedThroughout(Reference):
    "Every estimate is held within 10, k1 as well, and the log-ratio within 40."

    kl_log_ratio_clamp, kl_clamp, kl_clamped = 40.0, 10.0, ("k1", "k2", "k3", "abs")

    def kl(self, lp, ref, mask, options):
        d = log_ratio(lp, ref, mask).clamp(-40.0, 40.0)
        return ESTIMATES[options.estimator](d).clamp(-10.0, 10.0)


@twin
class KlWithTheGradientOfK2(Reference):
    "Any estimate with the gradient of k2, straight through, which is declared."

    kl_gradient = "k2"

    def kl(self, lp, ref, mask, options):
        d = log_ratio(lp, ref, mask)
        return value_of(super().kl(lp, ref, mask, options), gradient_of=d**2 / 2)


@twin
class KlWeightedByTheRatio(Reference):
    "Times exp(log-prob - log-prob), the latter detached: the value is left alone, the gradient is that of the KL."

    kl_gradient = "weighted"

    def kl(self, lp, ref, mask, options):
        lp = chosen(lp, mask)
        return super().kl(lp, ref, mask, options) * torch.exp(lp - lp.detach())


@twin
class KlAsPenalty(Reference):
    "k1 alone, without a graph, pads left as they are: a trainer that takes it off the rewards."

    kl_estimators, kl_gradient, kl_masked = ("k1",), None, None

    def kl(self, lp, ref, mask, options):
        with torch.no_grad():
            return wide(lp) - wide(ref)

"""Honest variants of the value loss."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.averaging import averaged
from rlhf_conformance.chapters.log_probs.twins import upcast
from rlhf_conformance.twins import twin


@twin
class TextbookValueLoss(Reference):
    "0.5 max of the two squares as in CleanRL, on inputs selected by the mask."

    def value_loss(self, values, old, returns, mask, options):
        values, old, returns = (upcast(x).where(mask.bool(), 0.0) for x in (values, old, returns))
        losses = (values - returns) ** 2
        if options.clip_eps is not None:
            clipped = old + torch.clamp(values - old, -options.clip_eps, options.clip_eps)
            losses = torch.max(losses, (clipped - returns) ** 2)
        return averaged(0.5 * losses, mask, options)


@twin
class ValueLossByDistance(Reference):
    "The larger of the two distances first, then one square."

    def value_loss(self, values, old, returns, mask, options):
        values, old, returns = (upcast(x).where(mask.bool(), 0.0) for x in (values, old, returns))
        distance = (values - returns).abs()
        if options.clip_eps is not None:
            clipped = values.clamp(old - options.clip_eps, old + options.clip_eps)
            distance = torch.where(distance >= (clipped - returns).abs(), distance, (clipped - returns).abs())
        return averaged(distance.square() / 2, mask, options)

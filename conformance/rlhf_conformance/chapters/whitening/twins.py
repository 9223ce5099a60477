"""Honest variants of whitening."""

from __future__ import annotations

import math

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.whitening import bending
from rlhf_conformance.twins import twin


def of_actions(values, mask, whitened):
    """The actions picked out by the mask, whitened and put back."""
    on = mask.bool()
    out = torch.zeros(values.shape, dtype=bending.wide(values).dtype, device=values.device)
    if on.any():
        out[on] = whitened(values.detach()[on]).to(out.dtype)
    return out


@twin
class WhitenedByLibrary(Reference):
    "The actions are picked out, and `var_mean` of torch gives both statistics."

    def whiten(self, values, mask, options):
        def whitened(x):
            x = bending.wide(x)
            variance, mean = torch.var_mean(x, correction=self.whitening_ddof if len(x) > 1 else 0)
            scaled = (x - mean) * torch.rsqrt(variance + self.whitening_eps)
            return scaled if options.shift_mean else scaled + mean

        return of_actions(values, mask, whitened)


@twin
class WhitenedInFloat64(Reference):
    "float64 inside, and back to float32."

    def whiten(self, values, mask, options):
        def whitened(x):
            x = x.double()
            mean = x.mean()
            variance = (x - mean).square().sum() / max(1, len(x) - self.whitening_ddof)
            scaled = (x - mean) / (variance + self.whitening_eps).sqrt()
            return (scaled if options.shift_mean else scaled + mean).float()

        return of_actions(values, mask, whitened)


@twin
class WhitenedByLoop(Reference):
    "Plain Python: Welford's one pass over the numbers, from the last to the first."

    def whiten(self, values, mask, options):
        def whitened(x):
            mean = squares = 0.0
            for count, value in enumerate(reversed(x.tolist()), 1):
                off = value - mean
                mean += off / count
                squares += off * (value - mean)
            divisor = math.sqrt(squares / max(1, len(x) - self.whitening_ddof) + self.whitening_eps)
            kept = 0.0 if options.shift_mean else mean
            return torch.tensor([(value - mean) / divisor + kept for value in x.tolist()], device=x.device)

        return of_actions(values, mask, whitened)


@twin
class WhitenedBiased(Reference):
    "The biased variance with a floor, masked cells whitened along, as OpenRLHF has it, and a single action is 0."

    whitening_ddof = 0
    whitening_eps_place = "floor"
    whitening_masked = None

    def whiten(self, values, mask, options):
        x, on = bending.wide(values.detach()), mask.bool()
        kept = x.masked_fill(~on, 0.0)
        count = on.sum().clamp(min=1)
        mean = kept.sum() / count
        variance = (kept - mean).square().masked_fill(~on, 0.0).sum() / count
        scaled = (x - mean) * variance.clamp(min=self.whitening_eps).rsqrt()
        return scaled if options.shift_mean else scaled + mean


@twin
class WhitenedOverRanks(Reference):
    "Sums and counts row by row, added up as those of ranks are; eps beside the deviation, fewer than two refused."

    whitening_eps = 1e-5
    whitening_eps_place = "std"
    whitening_of_few = "refused"

    def whiten(self, values, mask, options):
        x, on = bending.wide(values.detach()), mask.bool()
        count = sum(int(row.sum()) for row in on)
        if count < 2:
            raise ValueError("fewer than two actions on all ranks")
        mean = sum(row.masked_fill(~m, 0.0).sum() for row, m in zip(x, on, strict=True)) / count
        squares = sum((row - mean).square().masked_fill(~m, 0.0).sum() for row, m in zip(x, on, strict=True))
        scaled = (x - mean) / ((squares / (count - self.whitening_ddof)).sqrt() + self.whitening_eps)
        return (scaled if options.shift_mean else scaled + mean).masked_fill(~on, 0.0)


@twin
class WhitenedInOwnDtype(Reference):
    "Everything in the dtype that comes in, bfloat16 included, but for the sums, which are float32's."

    def whiten(self, values, mask, options):
        x, on = values.detach().masked_fill(~mask.bool(), 0.0), mask.bool()
        count = on.sum().clamp(min=1)
        mean = (x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) / count).to(x.dtype)
        centered = (x - mean).masked_fill(~on, 0.0)
        variance = centered.float().square().sum() / (count - self.whitening_ddof).clamp(min=1)
        scaled = centered / (variance + self.whitening_eps).sqrt().to(x.dtype)
        return scaled if options.shift_mean else (scaled + mean).masked_fill(~on, 0.0)

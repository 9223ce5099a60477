"""Liars about the value loss. Most of them exchange one step of the plain formulas in `_formulas`."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses import bending as plain
from rlhf_conformance.chapters._tensors import chosen, value_of
from rlhf_conformance.faults import fault


def clipped(values, old, eps):
    return values if eps is None else old + (values - old).clamp(-eps, eps)


# --- the square and its clip --------------------------------------------------------------------------------------


@fault("value-loss.clip", bug="clip-around-return")
class ClipAroundReturn(Reference):
    "The value is clipped around the return, R + clip(V - R), not around the old value."

    def value_loss(self, *arguments):
        def token(v, old, r, eps):
            return 0.5 * torch.maximum((v - r) ** 2, (clipped(v, r, eps) - r) ** 2)

        return plain.value_loss(arguments, token)


@fault("value-loss.clip", bug="min-for-max")
class MinForMax(Reference):
    "The smaller of the two squares."

    def value_loss(self, *arguments):
        def token(v, old, r, eps):
            return 0.5 * torch.minimum((v - r) ** 2, (clipped(v, old, eps) - r) ** 2)

        return plain.value_loss(arguments, token)


@fault("value-loss.clip")
class ClippedSquareOnly(Reference):
    "Only the square of the clipped value, without the maximum."

    def value_loss(self, *arguments):
        return plain.value_loss(arguments, lambda v, old, r, eps: 0.5 * (clipped(v, old, eps) - r) ** 2)


@fault("value-loss.clip")
class ValueClipIgnored(Reference):
    "The plain square, whatever the clip."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, replace(options, clip_eps=None))


@fault("value-loss.clip")
class ValueClipRelative(Reference):
    "The band is a share of the old value: V_old (1 - eps) to V_old (1 + eps)."

    def value_loss(self, *arguments):
        def token(v, old, r, eps):
            band = 0.0 if eps is None else eps * old.abs()
            near = v if eps is None else torch.maximum(torch.minimum(v, old + band), old - band)
            return 0.5 * torch.maximum((v - r) ** 2, (near - r) ** 2)

        return plain.value_loss(arguments, token)


@fault("value-loss.bounds-as-given")
class ValueClipAtMostOne(Reference):
    "A clip above 1 is taken as 1."

    def value_loss(self, values, old, returns, mask, options):
        eps = options.clip_eps and min(options.clip_eps, 1.0)
        return super().value_loss(values, old, returns, mask, replace(options, clip_eps=eps))


@fault("value-loss.bounds-as-given")
class ZeroClipIsNoClip(Reference):
    "if clip_eps: a clip of 0 is taken for none."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, replace(options, clip_eps=options.clip_eps or None))


@fault("value-loss.unclipped")
class ValueAlwaysClipped(Reference):
    "Without a clip, 0.2 is taken."

    def value_loss(self, values, old, returns, mask, options):
        eps = 0.2 if options.clip_eps is None else options.clip_eps
        return super().value_loss(values, old, returns, mask, replace(options, clip_eps=eps))


@fault("value-loss.unclipped")
class NoClipIsZeroClip(Reference):
    "No clip is taken for a clip of 0: the old value's square is a lower bound."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, replace(options, clip_eps=options.clip_eps or 0.0))


@fault("value-loss.unclipped")
class HuberLoss(Reference):
    "Beyond a distance of 1 the loss is linear, and the square is cut."

    def value_loss(self, *arguments):
        def token(v, old, r, eps):
            far = torch.nn.functional.huber_loss(v, r, reduction="none")
            near = torch.nn.functional.huber_loss(clipped(v, old, eps), r, reduction="none")
            return torch.maximum(far, near)

        return plain.value_loss(arguments, token)


@fault("value-loss.unclipped")
class LargeErrorsCut(Reference):
    "An error above 10 counts as 10: right as long as returns are small."

    def value_loss(self, *arguments):
        def token(v, old, r, eps):
            far, near = ((x - r).clamp(-10.0, 10.0) ** 2 for x in (v, clipped(v, old, eps)))
            return 0.5 * torch.maximum(far, near)

        return plain.value_loss(arguments, token)


@fault("value-loss.half", bug="half-dropped")
class HalfDropped(Reference):
    "The factor 1/2 is left out."

    def value_loss(self, *arguments):
        return 2 * super().value_loss(*arguments)


@fault("value-loss.half")
class HalfTwice(Reference):
    "The factor 1/2 is applied in the loss and once more in its mean."

    def value_loss(self, *arguments):
        return 0.5 * super().value_loss(*arguments)


# --- the mean -----------------------------------------------------------------------------------------------------


@fault("value-loss.aggregation", bug="sequence-mean-as-token-mean")
class ValueTokenMeanUnderEveryName(Reference):
    "The token mean is taken whatever aggregation is asked for."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, replace(options, aggregation="token-mean"))


@fault("value-loss.token-mean")
class ValueTokenMeanIsMeanOfRows(Reference):
    "The token mean is the mean of the rows' means."

    def value_loss(self, *arguments):
        return plain.value_loss(arguments, aggregate=plain.sequence_mean)


@fault("value-loss.token-mean")
class ValueTokenMeanOverRectangle(Reference):
    "The sum over the mask is divided by B * T, as by .mean()."

    def value_loss(self, *arguments):
        return super().value_loss(*arguments) * arguments[3].bool().float().mean()


@fault("value-loss.sequence-mean")
class ValueSequenceMeanOfTokens(Reference):
    "The sequence mean is the mean over the tokens."

    def value_loss(self, *arguments):
        return plain.value_loss(arguments, aggregate=plain.token_mean)


@fault("value-loss.sequence-mean")
class ValueSequenceSum(Reference):
    "The sequence mean takes the sum of each row, not its mean."

    def value_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation == "token-mean":
                return plain.token_mean(losses, mask, options)
            count = mask.bool().any(-1).sum().clamp(min=1) if options.global_count is None else options.global_count
            return losses.sum() / count

        return plain.value_loss(arguments, aggregate=aggregate)


@fault("value-loss.micro-batches", bug="value-loss-per-micro-batch")
class ValueLossPerMicroBatch(Reference):
    "Every micro-batch takes its own mean; the global count is for the policy loss only."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, replace(options, global_count=None))


@fault("value-loss.micro-batches")
class ValueGlobalCountOfTokensOnly(Reference):
    "The global count is used by the token mean and forgotten by the sequence mean."

    def value_loss(self, values, old, returns, mask, options):
        count = options.global_count if options.aggregation == "token-mean" else None
        return super().value_loss(values, old, returns, mask, replace(options, global_count=count))


# --- the mask -----------------------------------------------------------------------------------------------------


@fault("value-loss.mask")
class ValueMaskInDenominatorOnly(Reference):
    "The sum runs over all cells, and only the count is that of the mask."

    def value_loss(self, values, old, returns, mask, options):
        if options.aggregation != "token-mean":
            return super().value_loss(values, old, returns, mask, options)
        losses = plain.value_losses(values, old, returns, torch.ones_like(mask), options)
        return losses.sum() / (options.global_count or mask.bool().sum().clamp(min=1))


@fault("value-loss.mask")
class ValueMaskForgottenWithGlobalCount(Reference):
    "With a global count as denominator the sum runs over all cells."

    def value_loss(self, values, old, returns, mask, options):
        if options.global_count is None or options.aggregation != "token-mean":
            return super().value_loss(values, old, returns, mask, options)
        losses = plain.value_losses(values, old, returns, torch.ones_like(mask), options)
        return losses.sum() / options.global_count


@fault("value-loss.mask")
class ValueMaskIsLength(Reference):
    "Only the number of ones of a row counts, and its first cells are taken; right for masks without holes."

    def value_loss(self, values, old_values, returns, mask, options):
        columns = torch.arange(mask.shape[1], device=mask.device)
        prefix = (columns < mask.bool().sum(-1, keepdim=True)).to(mask.dtype)
        return super().value_loss(values, old_values, returns, prefix, options)


@fault("value-loss.mask")
class ReturnsUnmasked(Reference):
    "Values are masked before the difference, returns are not: every pad costs R^2 / 2."

    def value_loss(self, values, old, returns, mask, options):
        if options.aggregation != "token-mean":
            return super().value_loss(values, old, returns, mask, options)
        everything = torch.ones_like(mask)
        values, old = (chosen(x, mask) for x in (values, old))
        losses = plain.value_losses(values, old, returns, everything, options)
        return losses.sum() / (options.global_count or mask.bool().sum().clamp(min=1))


@fault("value-loss.mask")
class SquareBeforeTheMask(Reference):
    "Squares are multiplied by the mask, and one that overflows is inf * 0."

    def value_loss(self, values, old, returns, mask, options):
        everything = torch.ones_like(mask)
        return plain.multiplied(plain.value_losses(values, old, returns, everything, options), mask, options)


@fault("value-loss.mask")
class WeightOfTheLargestSquare(Reference):
    "Squares are scaled by the largest of the whole rectangle before the mask: right value, NaN where it overflows."

    def value_loss(self, values, old, returns, mask, options):
        losses = plain.value_losses(values, old, returns, torch.ones_like(mask), options)
        scale = losses.amax().clamp(min=1.0)
        gradient = chosen(losses / scale, mask) * scale
        right = plain.value_loss((values, old, returns, mask, options))
        return value_of(right, gradient_of=plain.mean(gradient, mask, options))


@fault("value-loss.nan-under-mask", bug="nan-in-masked-slot")
class ValueMaskMultiplied(Reference):
    "Values and returns are multiplied by the mask, and NaN * 0 is NaN."

    def value_loss(self, values, old, returns, mask, options):
        return (
            super().value_loss(*(x * mask for x in (values, old, returns)), mask.abs(), options)
            + 0 * ((values + old + returns) * mask).sum()
        )


@fault("value-loss.empty-row", bug="masked-row-nan")
class ValueEmptyRowNan(Reference):
    "The mean of a row without actions is 0 / 0."

    def value_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation == "token-mean":
                return plain.token_mean(losses, mask, options)
            rows = losses.sum(-1) / mask.bool().sum(-1)
            return rows.mean() if options.global_count is None else rows.sum() / options.global_count

        return plain.value_loss(arguments, aggregate=aggregate)


@fault("value-loss.empty-row")
class ValueEmptyRowLeaks(Reference):
    "A row without actions is pulled towards its returns by its first cell: right value, wrong gradient."

    def value_loss(self, values, old, returns, mask, options):
        right = super().value_loss(values, old, returns, mask, options)
        leak = (values[:, 0] * ~mask.bool().any(-1)).sum()
        return right + leak - leak.detach()


@fault("value-loss.empty-batch", bug="masked-row-nan")
class ValueEmptyBatchNan(Reference):
    "The sum over no action is divided by the count 0."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, options) / mask.bool().any()


@fault("value-loss.empty-batch")
class ValueEmptyBatchNanGradient(Reference):
    "Squares are divided by the count before the mask is applied: right value, NaN in the gradient of an empty batch."

    def value_loss(self, values, old, returns, mask, options):
        right = super().value_loss(values, old, returns, mask, options)
        leak = chosen(values * 0 / mask.bool().any(), mask).sum()
        return right + leak


# --- gradients ----------------------------------------------------------------------------------------------------


@fault("value-loss.gradient")
class GradientHalved(Reference):
    "Right value, but the gradient is (V - R) / 2."

    def value_loss(self, *arguments):
        right = super().value_loss(*arguments)
        return value_of(right, gradient_of=0.5 * right)


@fault("value-loss.gradient")
class GradientOfSignOnly(Reference):
    "Right value, but the gradient is that of |V - R|."

    def value_loss(self, *arguments):
        def token(v, old, r, eps):
            right = 0.5 * torch.maximum((v - r) ** 2, (clipped(v, old, eps) - r) ** 2)
            return value_of(right, gradient_of=(v - r).abs())

        return plain.value_loss(arguments, token)


@fault("value-loss.gradient")
class ValueClippedBranchDetached(Reference):
    "The clipped value is detached: inside the band both squares tie, and half of the gradient is lost."

    def value_loss(self, *arguments):
        def token(v, old, r, eps):
            return 0.5 * torch.maximum((v - r) ** 2, (clipped(v.detach(), old, eps) - r) ** 2)

        return plain.value_loss(arguments, token)


@fault("value-loss.clipped-gradient")
class ValueStraightThroughClip(Reference):
    "Right value, but the gradient of V - R passes where the clip binds."

    def value_loss(self, values, old, returns, mask, options):
        right = super().value_loss(values, old, returns, mask, options)
        other = super().value_loss(values, old, returns, mask, replace(options, clip_eps=None))
        return value_of(right, gradient_of=other)


@fault("value-loss.clipped-gradient")
class NoGradientOutsideValueBand(Reference):
    "Right value, but no gradient outside the band, also where the unclipped square is the larger."

    def value_loss(self, *arguments):
        def token(v, old, r, eps):
            right = 0.5 * torch.maximum((v - r) ** 2, (clipped(v, old, eps) - r) ** 2)
            return value_of(right, gradient_of=0.5 * (clipped(v, old, eps) - r) ** 2)

        return plain.value_loss(arguments, token)


# --- invariances --------------------------------------------------------------------------------------------------


@fault("value-loss.padding-invariance")
class ValueLossOverConstantWidth(Reference):
    "The loss is rescaled by the share of the row that is filled."

    def value_loss(self, *arguments):
        mask = arguments[3].bool()
        return super().value_loss(*arguments) * mask.any(0).sum() / mask.shape[1]


@fault("value-loss.padding-invariance")
class LastColumnBootstraps(Reference):
    "The last column is the bootstrap value and not trained; right where it is padding."

    def value_loss(self, values, old, returns, mask, options):
        rest = mask.clone()
        if mask.shape[1] > 1:
            rest[:, -1] = 0
        return super().value_loss(values, old, returns, rest, options)


@fault("value-loss.batch-order")
class ValuesOfFirstRowTwice(Reference):
    "The first row counts twice."

    def value_loss(self, values, old, returns, mask, options):
        doubled = (torch.cat([x, x[:1]]) for x in (values, old, returns, mask))
        return super().value_loss(*doubled, options)


@fault("value-loss.batch-order")
class ReturnsOfNextRow(Reference):
    "From the third row on, rows get the returns of their predecessor; right for two."

    def value_loss(self, values, old, returns, mask, options):
        moved = torch.cat([returns[:2], returns[1:-1]]) if len(returns) > 2 else returns
        return super().value_loss(values, old, moved, mask, options)


@fault("value-loss.scalar")
class ValueLossKeepsAnAxis(Reference):
    "The loss has shape (1, 1)."

    def value_loss(self, *arguments):
        return super().value_loss(*arguments).reshape(1, 1)


@fault("value-loss.scalar")
class ValueLossDetached(Reference):
    "The loss has no graph."

    def value_loss(self, *arguments):
        return super().value_loss(*arguments).detach()


@fault("value-loss.mask-dtype")
class ValueMaskComparedWithTrue(Reference):
    "Only a boolean mask masks; any other selects every cell."

    def value_loss(self, values, old, returns, mask, options):
        mask = mask if mask.dtype == torch.bool else torch.ones_like(mask)
        return super().value_loss(values, old, returns, mask, options)


@fault("value-loss.token-mean")
class ValueTokensCountedInBytes(Reference):
    "The mask is summed in int8, which wraps at 128."

    def value_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "token-mean" or options.global_count is not None:
                return plain.mean(losses, mask, options)
            return losses.sum() / mask.bool().sum(dtype=torch.int8).clamp(min=1)

        return plain.value_loss(arguments, aggregate=aggregate)


# --- inputs and side effects --------------------------------------------------------------------------------------


@fault("value-loss.inputs-unwritten")
class ReturnsMaskedInPlace(Reference):
    "returns.mul_(mask), in the caller's tensor."

    def value_loss(self, values, old, returns, mask, options):
        returns.mul_(mask)
        return super().value_loss(values, old, returns, mask, options)


@fault("value-loss.inputs-unwritten")
class OldValuesMovedAlong(Reference):
    "The new values are written into the old ones, so that the next epoch clips around them."

    def value_loss(self, values, old, returns, mask, options):
        right = super().value_loss(values, old.clone(), returns, mask, options)
        old.copy_(values.detach())
        return right


@fault("value-loss.side-effects")
class ReturnsNoised(Reference):
    "Noise is added to the returns, drawn from the global generator."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns + 1e-2 * torch.randn_like(returns), mask, options)


# --- numbers that are 0 -------------------------------------------------------------------------------------------


@fault("value-loss.half")
class ReturnsOfZeroDropped(Reference):
    "An action whose return is 0 is taken for padding."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask.bool() & returns.bool(), options)


@fault("value-loss.half")
class ValuesOfZeroDropped(Reference):
    "An action whose value is 0 is taken for padding."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask.bool() & values.bool(), options)


@fault("value-loss.clip")
class OldValueOfZeroIsNone(Reference):
    "An old value of 0 is taken for one that was never computed, and the new one is not clipped around it."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, torch.where(old == 0, values.detach(), old), returns, mask, options)


@fault("value-loss.empty-batch")
class ValueEmptyBatchConstant(Reference):
    "A batch without any action is left early, with a zero that has no graph."

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, options) if mask.sum() > 0 else values.new_zeros(())

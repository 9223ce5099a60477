"""Liars about the policy loss. Most of them exchange one step of the plain formulas in `_formulas`."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses import bending as plain
from rlhf_conformance.chapters._losses.bending import clip, log_ratio, surrogate_loss
from rlhf_conformance.chapters._tensors import chosen, value_of
from rlhf_conformance.faults import fault

# --- the ratio ----------------------------------------------------------------------------------------------------


@fault("policy-loss.ratio")
class RatioLinear(Reference):
    "1 + the log-ratio stands for the ratio: nearly right near 1."

    def policy_loss(self, *arguments):
        return plain.policy_loss(arguments, lambda r, a, o: surrogate_loss(1 + r.log(), a, o))


@fault("policy-loss.ratio")
class RatioUpsideDown(Reference):
    "The ratio is old over new."

    def policy_loss(self, *arguments):
        return plain.policy_loss(arguments, lambda r, a, o: surrogate_loss(1 / r, a, o))


@fault("policy-loss.ratio")
class RatioOfFreshLogProbs(Reference):
    "Old log-probs are replaced by the detached new ones: the ratio is always 1, the gradient looks right."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, new.detach(), advantages, mask, options)


@fault("policy-loss.ratio")
class RatioOfSequence(Reference):
    "Every token gets the ratio of its whole sequence, the exponential of the mean log-ratio."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "ppo":
            return super().policy_loss(new, old, advantages, mask, options)
        log_r = log_ratio(new, old, mask)
        mean = log_r.sum(-1, keepdim=True) / mask.bool().sum(-1, keepdim=True).clamp(min=1)
        losses = surrogate_loss(mean.expand_as(log_r).exp(), chosen(advantages, mask), options)
        return plain.mean(losses, mask, options)


@fault("policy-loss.clip")
class LogRatioClampedAtFive(Reference):
    "Log-ratios are clamped at 5, where tokens with a negative advantage still count in full."

    def policy_loss(self, new, old, advantages, mask, options):
        near = old + (new - old).clamp(-5.0, 5.0)
        return super().policy_loss(near, old, advantages, mask, options)


@fault("policy-loss.clip")
class RatioCappedAtTen(Reference):
    "The ratio is capped at 10."

    def policy_loss(self, *arguments):
        return plain.policy_loss(arguments, lambda r, a, o: surrogate_loss(r.clamp(max=10.0), a, o))


@fault("policy-loss.ratio")
class AdvantagesWhitenedInside(Reference):
    "Advantages are whitened once more inside the loss."

    def policy_loss(self, new, old, advantages, mask, options):
        kept = chosen(advantages, mask)
        count = mask.bool().sum().clamp(min=1)
        mean = kept.sum() / count
        std = (chosen((kept - mean) ** 2, mask).sum() / count).sqrt()
        return super().policy_loss(new, old, ((kept - mean) / (std + 1e-8)).to(new.dtype), mask, options)


@fault("policy-loss.ratio")
class AdvantagesClippedAtFive(Reference):
    "Advantages are clipped to within 5 of 0."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages.clamp(-5.0, 5.0), mask, options)


# --- the clip -----------------------------------------------------------------------------------------------------


@fault("policy-loss.clip", bug="clip-after-mask-mean")
class ClipAfterMaskMean(Reference):
    "The mean ratio is clipped, not the ratio of each token."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "ppo":
            return super().policy_loss(new, old, advantages, mask, options)
        ratio = log_ratio(new, old, mask).exp()
        mean = chosen(ratio, mask).sum() / mask.bool().sum().clamp(min=1)
        factor = clip(mean, options) / mean
        losses = -torch.minimum(ratio * chosen(advantages, mask), factor * ratio * chosen(advantages, mask))
        return plain.mean(losses, mask, options)


@fault("policy-loss.clip")
class MaximumOfSurrogates(Reference):
    "The larger of the two surrogates, not the smaller."

    def policy_loss(self, *arguments):
        return plain.policy_loss(arguments, lambda r, a, o: -torch.maximum(r * a, clip(r, o) * a))


@fault("policy-loss.clip")
class ClippedSurrogateOnly(Reference):
    "Only the clipped surrogate, without the minimum: bad steps are not taken back."

    def policy_loss(self, *arguments):
        return plain.policy_loss(arguments, lambda r, a, o: -clip(r, o) * a)


@fault("policy-loss.clip")
class LogRatioClipped(Reference):
    "The log-ratio is clipped to within eps, not the ratio to within eps of 1."

    def policy_loss(self, *arguments):
        def token(r, a, o):
            clipped = r.log().clamp(-o.clip_eps_low, o.clip_eps_high).exp()
            return -torch.minimum(r * a, clipped * a)

        return plain.policy_loss(arguments, token)


@fault("policy-loss.clip")
class ClipOfProduct(Reference):
    "The product of ratio and advantage is clipped to the band."

    def policy_loss(self, *arguments):
        return plain.policy_loss(arguments, lambda r, a, o: -torch.minimum(r * a, clip(r * a, o)))


@fault("policy-loss.clip")
class LowerBoundReciprocal(Reference):
    "The lower bound is 1 / (1 + eps), not 1 - eps."

    def policy_loss(self, *arguments):
        def token(r, a, o):
            return -torch.minimum(r * a, r.clamp(1 / (1 + o.clip_eps_low), 1 + o.clip_eps_high) * a)

        return plain.policy_loss(arguments, token)


@fault("policy-loss.bounds-as-given")
class ZeroEpsIsTheDefault(Reference):
    "clip_eps or 0.2: a bound of 0 is taken for one that is not given."

    def policy_loss(self, new, old, advantages, mask, options):
        given = {"clip_eps_low": options.clip_eps_low or 0.2, "clip_eps_high": options.clip_eps_high or 0.2}
        return super().policy_loss(new, old, advantages, mask, replace(options, **given))


@fault("policy-loss.bounds-as-given")
class ZeroHighIsLow(Reference):
    "clip_eps_high or clip_eps_low: an upper bound of 0 is taken for one that is not given."

    def policy_loss(self, new, old, advantages, mask, options):
        high = options.clip_eps_high or options.clip_eps_low
        return super().policy_loss(new, old, advantages, mask, replace(options, clip_eps_high=high))


@fault("policy-loss.bounds-as-given")
class LowerBoundNeverZero(Reference):
    "The lower bound of the ratio is not let below 0.1."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(
            new, old, advantages, mask, replace(options, clip_eps_low=min(options.clip_eps_low, 0.9))
        )


@fault("policy-loss.bounds-as-given")
class EpsAtMostOne(Reference):
    "Both bounds are held within 1, as if they were probabilities."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(
            new, old, advantages, mask, replace(options, clip_eps_high=min(options.clip_eps_high, 1.0))
        )


@fault("policy-loss.dual-clip")
class DualClipAtMostFive(Reference):
    "A dual clip above 5 is taken as 5."

    def policy_loss(self, new, old, advantages, mask, options):
        c = options.dual_clip and min(options.dual_clip, 5.0)
        return super().policy_loss(new, old, advantages, mask, replace(options, dual_clip=c))


@fault("policy-loss.micro-batches")
class GlobalCountOfOneIsNone(Reference):
    "A global count of 1 is taken for one that is not given."

    def policy_loss(self, new, old, advantages, mask, options):
        count = None if options.global_count == 1 else options.global_count
        return super().policy_loss(new, old, advantages, mask, replace(options, global_count=count))


@fault("policy-loss.asymmetric-clip")
class OneEpsForBothSides(Reference):
    "clip_eps_low bounds both sides."

    def policy_loss(self, new, old, advantages, mask, options):
        same = replace(options, clip_eps_high=options.clip_eps_low)
        return super().policy_loss(new, old, advantages, mask, same)


@fault("policy-loss.asymmetric-clip")
class ClipBoundsSwapped(Reference):
    "clip_eps_low bounds above and clip_eps_high below."

    def policy_loss(self, new, old, advantages, mask, options):
        swapped = replace(options, clip_eps_low=options.clip_eps_high, clip_eps_high=options.clip_eps_low)
        return super().policy_loss(new, old, advantages, mask, swapped)


@fault("policy-loss.clipped-gradient")
class GradientOfLowerEps(Reference):
    "Right value for two different bounds, but the gradient is cut as if the lower one held above as well."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        same = replace(options, clip_eps_high=options.clip_eps_low)
        other = super().policy_loss(new, old, advantages, mask, same)
        return replace(right, loss=value_of(right.loss, gradient_of=other.loss))


# --- the dual clip ------------------------------------------------------------------------------------------------


@fault("policy-loss.dual-clip")
class DualClipIgnored(Reference):
    "The dual clip is taken as an option and never used."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask, replace(options, dual_clip=None))


@fault("policy-loss.dual-clip")
class DualClipOfThree(Reference):
    "The constant of the dual clip is 3, whatever it is asked to be."

    def policy_loss(self, new, old, advantages, mask, options):
        c = None if options.dual_clip is None else 3.0
        return super().policy_loss(new, old, advantages, mask, replace(options, dual_clip=c))


@fault("policy-loss.dual-clip")
class DualClipOfMagnitude(Reference):
    "The bound of the dual clip is c |A|, which for a negative advantage lies on the wrong side."

    def policy_loss(self, *arguments):
        def token(r, a, o):
            surrogate = -surrogate_loss(r, a, replace(o, dual_clip=None))
            if o.dual_clip is None:
                return -surrogate
            return -torch.where(a < 0, torch.maximum(surrogate, o.dual_clip * a.abs()), surrogate)

        return plain.policy_loss(arguments, token)


@fault("policy-loss.dual-clip-sign", bug="dual-clip-everywhere")
class DualClipEverywhere(Reference):
    "The dual clip bounds every token, also those with a positive advantage."

    def policy_loss(self, *arguments):
        def token(r, a, o):
            surrogate = -surrogate_loss(r, a, replace(o, dual_clip=None))
            return -surrogate if o.dual_clip is None else -torch.maximum(surrogate, o.dual_clip * a)

        return plain.policy_loss(arguments, token)


@fault("policy-loss.dual-clip-sign")
class DualClipBoundsFromBelow(Reference):
    "The dual clip also holds tokens of positive advantage above A / c."

    def policy_loss(self, *arguments):
        def token(r, a, o):
            loss = surrogate_loss(r, a, o)
            return loss if o.dual_clip is None else torch.where(a > 0, torch.minimum(loss, -a / o.dual_clip), loss)

        return plain.policy_loss(arguments, token)


@fault("policy-loss.clipped-gradient")
class DualClipWithoutItsZero(Reference):
    "Right value, but where the dual clip binds the gradient is still that of the ratio."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        other = super().policy_loss(new, old, advantages, mask, replace(options, dual_clip=None))
        return replace(right, loss=value_of(right.loss, gradient_of=other.loss))


# --- the mean -----------------------------------------------------------------------------------------------------


@fault("policy-loss.aggregation", bug="sequence-mean-as-token-mean")
class TokenMeanUnderEveryName(Reference):
    "The token mean is taken whatever aggregation is asked for."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask, replace(options, aggregation="token-mean"))


@fault("policy-loss.token-mean")
class TokenMeanIsMeanOfRows(Reference):
    "The token mean is the mean of the rows' means."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "token-mean":
                return plain.mean(losses, mask, options)
            return plain.sequence_mean(losses, mask, options)

        return plain.policy_loss(arguments, aggregate=aggregate)


@fault("policy-loss.token-mean")
class TokenMeanOverRectangle(Reference):
    "The sum over the mask is divided by B * T."

    def policy_loss(self, *arguments):
        mask = arguments[3].bool()
        return plain.policy_loss(
            arguments, aggregate=lambda x, m, o: plain.mean(x, m, o) * mask.double().mean().float()
        )


@fault("policy-loss.token-mean")
class TokenMeanOverMaskOfFirstRow(Reference):
    "The number of tokens is that of the first row times the number of rows; right where rows are equally long."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "token-mean" or options.global_count is not None:
                return plain.mean(losses, mask, options)
            return losses.sum() / (mask[0].bool().sum().clamp(min=1) * len(mask))

        return plain.policy_loss(arguments, aggregate=aggregate)


@fault("policy-loss.token-mean")
class TokenMeanOneShort(Reference):
    "The count is one less than the tokens, as for an unbiased variance; right for a single token."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "token-mean" or options.global_count is not None:
                return plain.mean(losses, mask, options)
            return losses.sum() / (mask.bool().sum() - 1).clamp(min=1)

        return plain.policy_loss(arguments, aggregate=aggregate)


@fault("policy-loss.sequence-mean")
class SequenceMeanOverWidth(Reference):
    "The sequence mean divides each row by its padded width."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "sequence-mean":
                return plain.mean(losses, mask, options)
            count = (mask.any(-1)).sum().clamp(min=1) if options.global_count is None else options.global_count
            return losses.mean(-1).sum() / count

        return plain.policy_loss(arguments, aggregate=aggregate)


@fault("policy-loss.sequence-mean")
class SequenceMeanSquareAxis(Reference):
    "In a square batch, row sums are divided by the lengths of the columns."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "sequence-mean" or mask.shape[0] != mask.shape[1]:
                return plain.mean(losses, mask, options)
            count = (mask.any(-1)).sum().clamp(min=1) if options.global_count is None else options.global_count
            return (losses.sum(-1) / mask.bool().sum(0).clamp(min=1)).sum() / count

        return plain.policy_loss(arguments, aggregate=aggregate)


@fault("policy-loss.sequence-mean", bug="aggregation-depends-on-packing")
class SequenceMeanOfTokens(Reference):
    "The sequence mean is the mean over the tokens, as if the rows had been packed into one."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "sequence-mean":
                return plain.mean(losses, mask, options)
            return plain.token_mean(losses, mask, options)

        return plain.policy_loss(arguments, aggregate=aggregate)


@fault("policy-loss.empty-rows-counted", bug="masked-rows-in-denominator")
class MaskedRowsInDenominator(Reference):
    "A row without actions counts as a sequence."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "sequence-mean" or options.global_count is not None:
                return plain.mean(losses, mask, options)
            return plain.sequence_mean(losses, mask, replace(options, global_count=len(mask)))

        return plain.policy_loss(arguments, aggregate=aggregate)


@fault("policy-loss.micro-batches", bug="mean-of-means")
class MeanOfMeans(Reference):
    "Every micro-batch takes its own mean; the global count is not used."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask, replace(options, global_count=None))


@fault("policy-loss.micro-batches", bug="double-world-size")
class GlobalCountTwice(Reference):
    "The global count divides the mean of the micro-batch, not its sum."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, replace(options, global_count=None))
        return right if options.global_count is None else replace(right, loss=right.loss / options.global_count)


@fault("policy-loss.micro-batches")
class GlobalCountInReportOnly(Reference):
    "The loss that is reported has the global count, the gradient has that of the micro-batch."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        local = super().policy_loss(new, old, advantages, mask, replace(options, global_count=None))
        return replace(right, loss=value_of(right.loss, gradient_of=local.loss))


# --- the mask -----------------------------------------------------------------------------------------------------


@fault("policy-loss.mask")
class MaskInDenominatorOnly(Reference):
    "The sum runs over all cells, and only the count is that of the mask."

    def policy_loss(self, new, old, advantages, mask, options):
        everything = torch.ones_like(mask)
        losses = plain.policy_losses(new, old, advantages, everything, options)
        count = mask.bool().sum().clamp(min=1) if options.global_count is None else options.global_count
        if options.aggregation == "token-mean":
            return losses.sum() / count
        return super().policy_loss(new, old, advantages, mask, options)


@fault("policy-loss.mask")
class MaskForgottenWithGlobalCount(Reference):
    "With a global count as denominator the sum runs over all cells."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.global_count is None or options.aggregation != "token-mean":
            return super().policy_loss(new, old, advantages, mask, options)
        losses = plain.policy_losses(new, old, advantages, torch.ones_like(mask), options)
        return losses.sum() / options.global_count


@fault("policy-loss.mask")
class MaskIsLength(Reference):
    "Only the number of ones of a row counts, and its first cells are taken; right for masks without holes."

    def policy_loss(self, new, old, advantages, mask, options):
        columns = torch.arange(mask.shape[1], device=mask.device)
        prefix = (columns < mask.bool().sum(-1, keepdim=True)).to(mask.dtype)
        return super().policy_loss(new, old, advantages, prefix, options)


@fault("policy-loss.mask")
class RatioMeanUnmasked(Reference):
    "Right value, but a control variate of the ratios under the mask leaks into the gradient."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        leak = (new.double() * advantages.double() * ~mask.bool()).mean().float()
        return replace(right, loss=right.loss + leak - leak.detach())


@fault("policy-loss.mask", bug="ratio-before-the-mask")
class RatioBeforeTheMask(Reference):
    "The mask selects the losses, after the exponential: right value, NaN in the gradient of a ratio that overflows."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "ppo":
            return super().policy_loss(new, old, advantages, mask, options)
        ratio = (new - old).to(torch.promote_types(new.dtype, torch.float32)).exp()
        return plain.mean(chosen(surrogate_loss(ratio, advantages, options), mask), mask, options)


@fault("policy-loss.mask")
class ProductBeforeTheMask(Reference):
    "The ratio is held, but its product with a huge advantage overflows, and inf * 0 is NaN."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "ppo":
            return super().policy_loss(new, old, advantages, mask, options)
        ratio = (new - old).to(torch.promote_types(new.dtype, torch.float32)).clamp(-20.0, 20.0).exp()
        return plain.multiplied(surrogate_loss(ratio, advantages, options), mask, options)


@fault("policy-loss.nan-under-mask", bug="nan-in-masked-slot")
class MaskMultiplied(Reference):
    "Losses are multiplied by the mask, and NaN * 0 is NaN."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "ppo":
            return super().policy_loss(new, old, advantages, mask, options)
        return plain.multiplied(surrogate_loss((new - old).exp(), advantages, options), mask, options)


@fault("policy-loss.nan-under-mask")
class NanReplacedInValue(Reference):
    "NaN is replaced in the losses, after the exponential: right value, NaN in the gradient."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "ppo":
            return super().policy_loss(new, old, advantages, mask, options)
        ratio = (new - old).exp()
        losses = surrogate_loss(ratio, advantages, options).nan_to_num(0.0, 0.0, 0.0)
        return plain.mean(losses, mask, options)


@fault("policy-loss.empty-row", bug="masked-row-nan")
class EmptyRowNan(Reference):
    "The mean of a row without actions is 0 / 0."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "sequence-mean":
                return plain.mean(losses, mask, options)
            rows = losses.sum(-1) / mask.bool().sum(-1)
            return rows.mean() if options.global_count is None else rows.sum() / options.global_count

        return plain.policy_loss(arguments, aggregate=aggregate)


@fault("policy-loss.empty-row")
class EmptyRowNanGradient(Reference):
    "Losses are divided by the row's count before they are masked: right value, NaN in an empty row's gradient."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.aggregation != "sequence-mean":
            return super().policy_loss(new, old, advantages, mask, options)
        lengths = mask.bool().sum(-1, keepdim=True)
        shares = plain.policy_losses(new, old, advantages, torch.ones_like(mask), options) / lengths
        count = (lengths > 0).sum().clamp(min=1) if options.global_count is None else options.global_count
        return chosen(shares, mask).sum() / count


@fault("policy-loss.empty-row")
class EmptyRowTrained(Reference):
    "A row without actions is trained on its first cell, so that no mean is empty."

    def policy_loss(self, new, old, advantages, mask, options):
        filled = mask.clone()
        filled[:, 0] |= ~mask.bool().any(-1)
        return super().policy_loss(new, old, advantages, filled, options)


@fault("policy-loss.empty-row")
class BatchWithEmptyRowDetached(Reference):
    "A batch that holds a row without actions is reported, but not trained."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        return right if mask.bool().any(-1).all() else replace(right, loss=right.loss.detach() + 0 * new.sum())


@fault("policy-loss.empty-batch", bug="masked-row-nan")
class EmptyBatchNan(Reference):
    "The sum over no action is divided by the count 0."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        return replace(right, loss=right.loss / mask.bool().any())


@fault("policy-loss.empty-batch")
class EmptyBatchMeansAll(Reference):
    "Where the mask is empty, everything counts."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask if mask.any() else torch.ones_like(mask), options)


# --- gradients ----------------------------------------------------------------------------------------------------


@fault("policy-loss.gradient")
class GradientWithoutRatio(Reference):
    "Right value, but the gradient is that of -A log-prob: the ratio is left out of it."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        first = super().policy_loss(new, new.detach(), advantages, mask, options)
        return replace(right, loss=value_of(right.loss, gradient_of=first.loss))


@fault("policy-loss.gradient")
class ClippedBranchDetached(Reference):
    "The clipped ratio is detached: inside the band both branches tie, and half of the gradient is lost."

    def policy_loss(self, *arguments):
        return plain.policy_loss(arguments, lambda r, a, o: -torch.minimum(r * a, clip(r.detach(), o) * a))


@fault("policy-loss.gradient")
class GradientOfGoodTokensOnly(Reference):
    "Right value, but tokens with a negative advantage send no gradient."

    def policy_loss(self, *arguments):
        return plain.policy_loss(arguments, lambda r, a, o: surrogate_loss(torch.where(a < 0, r.detach(), r), a, o))


@fault("policy-loss.clipped-gradient")
class StraightThroughClip(Reference):
    "Right value, but the gradient passes where the clip binds."

    def policy_loss(self, *arguments):
        def token(r, a, o):
            return value_of(surrogate_loss(r, a, o), gradient_of=-r * a)

        return plain.policy_loss(arguments, token)


@fault("policy-loss.clipped-gradient")
class NoGradientOutsideBand(Reference):
    "Right value, but no gradient outside the band, whichever way the advantage points."

    def policy_loss(self, *arguments):
        def token(r, a, o):
            return value_of(surrogate_loss(r, a, o), gradient_of=-clip(r, o) * a)

        return plain.policy_loss(arguments, token)


@fault("policy-loss.clipped-gradient", bug="cispo-without-log-prob")
class LeakyClip(Reference):
    "Right value, but a thousandth of the gradient passes where the clip binds."

    def policy_loss(self, *arguments):
        def token(r, a, o):
            right = surrogate_loss(r, a, o)
            return right - 1e-3 * (r - r.detach()) * a

        return plain.policy_loss(arguments, token)


@fault("policy-loss.first-step")
class EqualLogProbsAreSkipped(Reference):
    "Where no log-prob has moved there is nothing to do: no gradient, and so no first step."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        equal = torch.equal(chosen(new, mask), chosen(old, mask))
        return replace(right, loss=right.loss.detach() + 0 * new.sum()) if equal else right


@fault("policy-loss.first-step")
class FirstStepWithoutMean(Reference):
    "The mean advantage of the batch is taken off before the first step, which makes its loss 0."

    def policy_loss(self, new, old, advantages, mask, options):
        if not torch.equal(chosen(new, mask), chosen(old, mask)):
            return super().policy_loss(new, old, advantages, mask, options)
        centred = chosen(advantages, mask) - chosen(advantages, mask).sum() / mask.bool().sum().clamp(min=1)
        return super().policy_loss(new, old, centred.to(new.dtype), mask, options)


@fault("policy-loss.overflow", bug="overflow-ratio")
class OverflowRatio(Reference):
    "exp(lp - olp) without a bound: the value is the clip's, the gradient is 0 * inf."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "ppo":
            return super().policy_loss(new, old, advantages, mask, options)
        ratio = (chosen(new, mask) - chosen(old, mask)).exp()
        return plain.mean(surrogate_loss(ratio, chosen(advantages, mask), options), mask, options)


# --- invariances --------------------------------------------------------------------------------------------------


@fault("policy-loss.padding-invariance")
class LossOverConstantWidth(Reference):
    "Both aggregations are rescaled by the share of the row that is filled, T being a constant of the configuration."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        return replace(right, loss=right.loss * mask.bool().any(0).sum() / mask.shape[1])


@fault("policy-loss.padding-invariance")
class FirstColumnDropped(Reference):
    "The first column is dropped with a shift, unless it is the only one; right where it is padding."

    def policy_loss(self, new, old, advantages, mask, options):
        rest = mask.clone()
        if mask.shape[1] > 1:
            rest[:, 0] = 0
        return super().policy_loss(new, old, advantages, rest, options)


@fault("policy-loss.batch-order")
class RunningMeanOverRows(Reference):
    "The rows are averaged one after the other, each with what came before: the last weighs half."

    def policy_loss(self, new, old, advantages, mask, options):
        parts = [
            super(RunningMeanOverRows, self).policy_loss(*row, options).loss
            for row in self._rows_of(new, old, advantages, mask)
        ]
        loss = parts[0]
        for part in parts[1:]:
            loss = (loss + part) / 2
        return loss

    def _rows_of(self, *tensors):
        return zip(*(x.split(1) for x in tensors), strict=True)


@fault("policy-loss.batch-order")
class AdvantagesOfNextRow(Reference):
    "From the third row on, rows get the advantages of their predecessor; right for two."

    def policy_loss(self, new, old, advantages, mask, options):
        moved = torch.cat([advantages[:2], advantages[1:-1]]) if len(advantages) > 2 else advantages
        return super().policy_loss(new, old, moved, mask, options)


@fault("policy-loss.scalar")
class LossKeepsAnAxis(Reference):
    "The loss has shape (1,)."

    def policy_loss(self, *arguments):
        right = super().policy_loss(*arguments)
        return replace(right, loss=right.loss.reshape(1))


@fault("policy-loss.scalar")
class LossDetached(Reference):
    "The loss has no graph."

    def policy_loss(self, *arguments):
        right = super().policy_loss(*arguments)
        return replace(right, loss=right.loss.detach())


@fault("policy-loss.mask-dtype")
class IntegerMaskIsIndex(Reference):
    "losses[mask]: a boolean mask selects, an integer one takes rows 0 and 1."

    def policy_loss(self, new, old, advantages, mask, options):
        losses = plain.policy_losses(new, old, advantages, mask, options)
        if options.aggregation != "token-mean" or options.global_count is not None or mask.is_floating_point():
            return plain.mean(losses, mask, options)
        picked = losses[mask] if mask.dtype == torch.bool else losses[mask.clamp(max=len(losses) - 1)]
        return picked.mean() if picked.numel() else picked.sum()


@fault("policy-loss.mask-dtype")
class MaskCountedInItsDtype(Reference):
    "The mask is counted in its own dtype: a boolean one has at most one token."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "token-mean" or options.global_count is not None:
                return plain.mean(losses, mask, options)
            return losses.sum() / mask.sum(dtype=mask.dtype).float().clamp(min=1)

        return plain.policy_loss(arguments, aggregate=aggregate)


@fault("policy-loss.token-mean")
class TokensCountedInHalf(Reference):
    "The mask is summed in bfloat16, which cannot count beyond 256."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            if options.aggregation != "token-mean" or options.global_count is not None:
                return plain.mean(losses, mask, options)
            return losses.sum() / mask.to(torch.bfloat16).sum().clamp(min=1)

        return plain.policy_loss(arguments, aggregate=aggregate)


# --- metrics ------------------------------------------------------------------------------------------------------


def clipped_share(result, new, old, advantages, mask, options, is_clipped):
    """The answer with another clip fraction: the mean of is_clipped(ratio, advantages, options) over the actions."""
    flags = is_clipped(log_ratio(new, old, mask).exp(), chosen(advantages, mask), options)
    return replace(result, clip_fraction=chosen(flags.float(), mask).sum() / mask.bool().sum().clamp(min=1))


@fault("policy-loss.clip-fraction", bug="clip-fraction-definition")
class ClipFractionWithoutSign(Reference):
    "Every ratio outside the band counts as clipped, whatever the sign of the advantage."

    def policy_loss(self, *arguments):
        return clipped_share(super().policy_loss(*arguments), *arguments, lambda r, a, o: clip(r, o) != r)


@fault("policy-loss.clip-fraction", bug="clip-fraction-definition")
class ClipFractionOfTheOthers(Reference):
    "The share of the tokens that are not clipped."

    def policy_loss(self, *arguments):
        right = super().policy_loss(*arguments)
        return replace(right, clip_fraction=1 - right.clip_fraction)


@fault("policy-loss.clip-fraction")
class ClipFractionOneEps(Reference):
    "clip_eps_low bounds both sides of the metric, though not of the loss."

    def policy_loss(self, *arguments):
        def is_clipped(r, a, o):
            return ((r > 1 + o.clip_eps_low) & (a > 0)) | ((r < 1 - o.clip_eps_low) & (a < 0))

        return clipped_share(super().policy_loss(*arguments), *arguments, is_clipped)


@fault("policy-loss.clip-fraction")
class ClipFractionWithDualClip(Reference):
    "Tokens at the dual clip count as clipped too."

    def policy_loss(self, *arguments):
        def is_clipped(r, a, o):
            own = ((r > 1 + o.clip_eps_high) & (a > 0)) | ((r < 1 - o.clip_eps_low) & (a < 0))
            return own if o.dual_clip is None else own | ((r > o.dual_clip) & (a < 0))

        return clipped_share(super().policy_loss(*arguments), *arguments, is_clipped)


@fault("policy-loss.clip-fraction")
class ClipFractionUnmasked(Reference):
    "The clipped cells under the mask count as well, over the number of actions."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        ratio = (new - old).exp()
        above = (ratio > 1 + options.clip_eps_high) & (advantages > 0)
        below = (ratio < 1 - options.clip_eps_low) & (advantages < 0)
        return replace(right, clip_fraction=(above | below).sum() / mask.bool().sum().clamp(min=1))


@fault("policy-loss.kl-metric", bug="kl-metric-of-ratio")
class KlMetricOfRatio(Reference):
    "The metric is the mean of minus the ratio."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        ratio = chosen(log_ratio(new, old, mask).exp(), mask)
        return replace(right, approx_kl=-ratio.sum() / mask.bool().sum().clamp(min=1))


@fault("policy-loss.kl-metric")
class KlMetricSign(Reference):
    "The metric is the mean of lp - olp."

    def policy_loss(self, *arguments):
        right = super().policy_loss(*arguments)
        return replace(right, approx_kl=-right.approx_kl)


@fault("policy-loss.kl-metric", bug="kl-mean-unmasked")
class KlMetricOverRectangle(Reference):
    "The masked sum is divided by the padded width."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        return replace(right, approx_kl=-log_ratio(new, old, mask).mean())


@fault("policy-loss.kl-metric")
class KlMetricSumsUnmasked(Reference):
    "The sum runs over all cells, and only the count is that of the mask."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        return replace(right, approx_kl=(old - new).sum() / mask.bool().sum().clamp(min=1))


@fault("policy-loss.kl-metric")
class KlMetricK3(Reference):
    "The metric is the k3 estimate under the name of k1."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        log_r = log_ratio(new, old, mask)
        return replace(right, approx_kl=(log_r.expm1() - log_r).sum() / mask.bool().sum().clamp(min=1))


# --- inputs and side effects --------------------------------------------------------------------------------------


def _metrics(right, **changed):
    return replace(right, **{name: value.detach() for name, value in changed.items()})


@fault("policy-loss.metrics-nan-under-mask", bug="nan-in-metrics")
class MetricsMultiplied(Reference):
    "The loss selects, and the metrics beside it are multiplied by the mask."

    def policy_loss(self, new, old, advantages, mask, options):
        kl = (((old - new) * mask).sum() / mask.bool().sum().clamp(min=1)).float()
        return _metrics(super().policy_loss(new, old, advantages, mask, options), approx_kl=kl)


@fault("policy-loss.metrics-empty", bug="metrics-of-nothing")
class MetricsOfNothing(Reference):
    "The loss of a batch without actions is guarded, the means that are logged are 0 / 0."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        count = mask.bool().sum()
        return _metrics(right, approx_kl=right.approx_kl * count / count, clip_fraction=right.clip_fraction)


@fault("policy-loss.metrics-empty")
class ClipFractionOfNothingIsOne(Reference):
    "The share of the tokens that are not clipped is taken off 1, also where there is none."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        return _metrics(right, clip_fraction=right.clip_fraction if mask.any() else torch.ones(()))


@fault("policy-loss.metrics-empty")
class MetricsMeanOfRows(Reference):
    "The approximate KL is the mean of the rows' means where every row has an action, and of all rows elsewhere."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        rows = mask.any(-1).float().mean()
        return _metrics(right, approx_kl=right.approx_kl * rows)


@fault("policy-loss.inputs-unwritten")
class AdvantagesMaskedInPlace(Reference):
    "advantages.mul_(mask), in the caller's tensor."

    def policy_loss(self, new, old, advantages, mask, options):
        advantages.mul_(mask)
        return super().policy_loss(new, old, advantages, mask, options)


@fault("policy-loss.inputs-unwritten")
class OldLogProbsSubtractedInPlace(Reference):
    "The log-ratio is written into the old log-probs, which the next epoch needs."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old.clone(), advantages, mask, options)
        old.sub_(new.detach())
        return right


@fault("policy-loss.inputs-unwritten")
class MaskedLogProbsFilledInPlace(Reference):
    "Old log-probs are filled with 0 under the mask, in the caller's tensor."

    def policy_loss(self, new, old, advantages, mask, options):
        old.masked_fill_(~mask.bool(), 0.0)
        return super().policy_loss(new, old, advantages, mask, options)


@fault("policy-loss.side-effects")
class AdvantagesScaledByHistory(Reference):
    "Advantages are divided by a scale that runs along from call to call."

    def policy_loss(self, new, old, advantages, mask, options):
        self.scale = 0.9 * getattr(self, "scale", 1.0) + 0.1 * float(chosen(advantages, mask).abs().mean())
        return super().policy_loss(new, old, advantages / self.scale, mask, options)


# --- numbers that are 0, batches that are empty or large ----------------------------------------------------------


@fault("policy-loss.ratio")
class OldLogProbOfZeroIsNone(Reference):
    "An old log-prob of 0 is taken for one that was never computed, and the ratio is 1 there."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, torch.where(old == 0, new.detach(), old), advantages, mask, options)


@fault("policy-loss.ratio")
class LogProbsOfZeroDropped(Reference):
    "An action whose log-prob is 0 is taken for padding."

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask.bool() & new.bool(), options)


@fault("policy-loss.aggregation")
class RowsInEights(Reference):
    "Rows are taken eight at a time, and of more than eight the rest is left out."

    def policy_loss(self, new, old, advantages, mask, options):
        count = max(8, len(mask) - len(mask) % 8)
        return super().policy_loss(new[:count], old[:count], advantages[:count], mask[:count], options)


@fault("policy-loss.empty-batch")
class EmptyBatchWithoutGraph(Reference):
    "The loss of a batch without any action is 0, but leads nowhere."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        return right if mask.sum() > 0 else replace(right, loss=right.loss.detach())

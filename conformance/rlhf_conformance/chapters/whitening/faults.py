"""Liars about whitening. Most of them exchange one step of the plain formula in `bending`."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.whitening import bending as plain
from rlhf_conformance.chapters.whitening.bending import wide
from rlhf_conformance.faults import fault

# --- the formula ----------------------------------------------------------------------------------------------------


@fault("whitening.definition", bug="reward-before-precedence")
class MeanOverDeviationSubtracted(Reference):
    "x - mean / std: the brackets are left out."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, combine=lambda x, mean, divisor: x - mean / divisor)


@fault("whitening.definition")
class DividedByVariance(Reference):
    "Divided by the variance, not by its root."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, combine=lambda x, mean, divisor: (x - mean) / divisor**2)


@fault("whitening.definition")
class MeanNeverRemoved(Reference):
    "Divided by the deviation; the mean is not removed, although that is asked for."

    def whiten(self, values, mask, options):
        return super().whiten(values, mask, replace(options, shift_mean=False))


@fault("whitening.definition")
class MeanAbsoluteDeviation(Reference):
    "Divided by the mean distance from the mean."

    def whiten(self, *arguments):
        def distance(centered, counted, ddof):
            return plain.mean(centered.abs(), counted) ** 2

        return plain.whiten(self, arguments, variance=distance)


@fault("whitening.definition")
class WhitenedClippedAtOne(Reference):
    "The result is clipped to within 1 of 0."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, combine=lambda x, mean, divisor: ((x - mean) / divisor).clamp(-1, 1))


@fault("whitening.variance")
class BiasedForUnbiased(Reference):
    "The variance divides by n, where n - 1 is declared."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, variance=lambda c, counted, ddof: plain.variance(c, counted, 1 - ddof))


@fault("whitening.variance")
class OneMoreDegreeOfFreedomLost(Reference):
    "The variance divides by one less than declared, where there are enough actions."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, variance=lambda c, counted, ddof: plain.variance(c, counted, ddof + 1))


@fault("whitening.epsilon")
class EpsilonAtAnotherPlace(Reference):
    "eps is added to the deviation, where it belongs into the variance."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, denominator=lambda a, variance: variance.sqrt() + a.whitening_eps)


@fault("whitening.epsilon")
class EpsilonThousandfold(Reference):
    "eps is 1000 times what is declared."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, denominator=lambda a, v: (v + 1000 * a.whitening_eps).sqrt())


@fault("whitening.epsilon")
class EpsilonAsFloor(Reference):
    "The variance is held at eps from below, where eps is to be added."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, denominator=lambda a, v: v.clamp(min=a.whitening_eps).sqrt())


@fault("whitening.keep-mean")
class MeanRemovedAnyway(Reference):
    "The mean is removed, although it is to be kept."

    def whiten(self, values, mask, options):
        return super().whiten(values, mask, replace(options, shift_mean=True))


@fault("whitening.keep-mean")
class MeanScaledAlong(Reference):
    "Where the mean is to be kept nothing is subtracted, so that the mean is divided as well."

    def whiten(self, values, mask, options):
        if options.shift_mean:
            return super().whiten(values, mask, options)
        scaled = plain.whiten(
            self, (values, mask, replace(options, shift_mean=True)), combine=lambda x, mean, divisor: x / divisor
        )
        return scaled


@fault("whitening.keep-mean")
class MeanOfCellsGivenBack(Reference):
    "The mean that is added again is the sum over the actions divided by the number of cells."

    def whiten(self, values, mask, options):
        whitened = super().whiten(values, mask, replace(options, shift_mean=True))
        if options.shift_mean:
            return whitened
        kept = wide(values).where(mask.bool(), 0.0).mean()
        return (whitened + kept).where(mask.bool(), 0.0)


@fault("whitening.keep-mean")
class MeanOfRowGivenBack(Reference):
    "The mean that is added again is that of the row."

    def whiten(self, values, mask, options):
        whitened = super().whiten(values, mask, replace(options, shift_mean=True))
        if options.shift_mean:
            return whitened
        kept = wide(values).where(mask.bool(), 0.0).sum(1, keepdim=True) / mask.bool().sum(1, keepdim=True).clamp(min=1)
        return (whitened + kept).where(mask.bool(), 0.0)


# --- one mean for the batch -----------------------------------------------------------------------------------------


def mean_along(x, counted, axis):
    return x.where(counted, 0.0).sum(axis, keepdim=True) / counted.sum(axis, keepdim=True).clamp(min=1)


def variance_along(centered, counted, ddof, axis):
    left = (counted.sum(axis, keepdim=True) - ddof).clamp(min=1)
    return centered.where(counted, 0.0).square().sum(axis, keepdim=True) / left


@fault("whitening.whole-batch", bug="whiten-wrong-axis")
class RowMeansAlongColumns(Reference):
    "In a square batch the means of the rows are subtracted along the other axis: keepdim was forgotten."

    def whiten(self, *arguments):
        def mean(x, counted):
            square = x.shape[0] == x.shape[1] > 1
            return mean_along(x, counted, 1).squeeze(1) if square else plain.mean(x, counted)

        return plain.whiten(self, arguments, mean=mean)


@fault("whitening.whole-batch")
class WhitenedRowByRow(Reference):
    "Each row is whitened by itself."

    def whiten(self, *arguments):
        return plain.whiten(
            self,
            arguments,
            mean=lambda x, counted: mean_along(x, counted, 1),
            variance=lambda c, counted, ddof: variance_along(c, counted, ddof, 1),
        )


@fault("whitening.whole-batch")
class WhitenedColumnByColumn(Reference):
    "Each position is whitened by itself, over the rows."

    def whiten(self, *arguments):
        return plain.whiten(
            self,
            arguments,
            mean=lambda x, counted: mean_along(x, counted, 0),
            variance=lambda c, counted, ddof: variance_along(c, counted, ddof, 0),
        )


@fault("whitening.whole-batch")
class MeanOfRowMeans(Reference):
    "The mean is that of the rows' means: right where all rows have as many actions."

    def whiten(self, *arguments):
        def mean(x, counted):
            rows = counted.any(1)
            return mean_along(x, counted, 1).squeeze(1).where(rows, 0.0).sum() / rows.sum().clamp(min=1)

        return plain.whiten(self, arguments, mean=mean)


@fault("whitening.whole-batch")
class WhitenedInPairsOfRows(Reference):
    "The batch is whitened in micro-batches of two rows."

    def whiten(self, values, mask, options):
        whiten = super().whiten
        return torch.cat([whiten(v, m, options) for v, m in zip(values.split(2), mask.split(2), strict=True)])


# --- the mask -------------------------------------------------------------------------------------------------------


@fault("whitening.mask")
class AllCellsCounted(Reference):
    "Mean and deviation are those of all cells, masked or not."

    def whiten(self, values, mask, options):
        return plain.whiten(self, (values, mask, options), counted=torch.ones_like(mask, dtype=torch.bool))


@fault("whitening.mask", bug="whiten-unmasked-mean")
class WhitenUnmaskedMean(Reference):
    "The sum is taken over all cells, and divided by the number of actions."

    def whiten(self, values, mask, options):
        total = wide(values).sum()
        return plain.whiten(self, (values, mask, options), mean=lambda x, counted: total / counted.sum().clamp(min=1))


@fault("whitening.mask")
class VarianceUnmasked(Reference):
    "The mean is masked, the variance is not."

    def whiten(self, values, mask, options):
        everything = torch.ones_like(mask, dtype=torch.bool)
        mean = plain.mean(wide(values), mask.bool())
        return plain.whiten(self, (values, mask, options), counted=everything, mean=lambda x, counted: mean)


@fault("whitening.mask")
class LastCellOfRowCounted(Reference):
    "The last column is counted, whatever the mask says of it."

    def whiten(self, values, mask, options):
        counted = mask.bool().clone()
        counted[:, -1] = True
        return plain.whiten(self, (values, mask, options), counted=counted)


@fault("whitening.holes", bug="whiten-unmasked-mean")
class ObservationsCounted(Reference):
    "Counted is what lies between the first and the last action of a row."

    def whiten(self, values, mask, options):
        on = mask.bool().long()
        span = (on.cumsum(1) > 0) & (on.flip(1).cumsum(1).flip(1) > 0)
        return plain.whiten(self, (values, mask, options), counted=span)


@fault("whitening.holes")
class MaskFromActionCount(Reference):
    "Counted are as many cells from the left as the row has actions."

    def whiten(self, values, mask, options):
        columns = torch.arange(mask.shape[1], device=mask.device)
        return plain.whiten(self, (values, mask, options), counted=columns < mask.bool().sum(1, keepdim=True))


@fault("whitening.holes")
class FirstTurnAlone(Reference):
    "Counted are the actions of the first turn of each row."

    def whiten(self, values, mask, options):
        on = mask.bool()
        ended = (~on & (on.long().cumsum(1) > 0)).long().cumsum(1) > 0
        return plain.whiten(self, (values, mask, options), counted=on & ~ended)


@fault("whitening.holes")
class LaterTurnsNotWhitened(Reference):
    "Statistics are right, and the actions behind an observation stay as they are."

    def whiten(self, values, mask, options):
        on = mask.bool()
        ended = (~on & (on.long().cumsum(1) > 0)).long().cumsum(1) > 0
        return torch.where(on & ended, wide(values), super().whiten(values, mask, options))


@fault("whitening.nan-under-mask")
class ValuesTimesMask(Reference):
    "Values are multiplied by the mask, so that NaN under it stays NaN."

    def whiten(self, values, mask, options):
        on, x = mask.to(wide(values).dtype), wide(values)
        mean = (x * on).sum() / on.sum().clamp(min=1)
        centered = (x - mean) * on
        divisor = plain.denominator(self, centered.square().sum() / (on.sum() - self.whitening_ddof).clamp(min=1))
        return centered / divisor if options.shift_mean else centered / divisor + mean * on


@fault("whitening.nan-under-mask")
class LargeNumbersCounted(Reference):
    "What is to be left out is weighted with 1e-30, not left out: right for numbers of a usual size."

    def whiten(self, values, mask, options):
        faint = wide(values).where(mask.bool(), wide(values) * 1e-30)
        total = faint.sum() / mask.bool().sum().clamp(min=1)
        return plain.whiten(self, (values, mask, options), mean=lambda x, counted: total)


@fault("whitening.masked-cells")
class MaskedCellsCentered(Reference):
    "From cells that are no actions the mean is subtracted as well."

    def whiten(self, values, mask, options):
        x, on = wide(values), mask.bool()
        return super().whiten(values, mask, options).where(on, x - plain.mean(x, on) - 1.0)


@fault("whitening.masked-cells")
class ObservationsComeOutAsOne(Reference):
    "Cells behind the last action come out as 0, observations between actions as 1."

    def whiten(self, values, mask, options):
        on = mask.bool().long()
        between = (on.cumsum(1) > 0) & (on.flip(1).cumsum(1).flip(1) > 0) & (on == 0)
        return super().whiten(values, mask, options).masked_fill(between, 1.0)


@fault("whitening.empty-row")
class EmptyRowCountsAsAction(Reference):
    "A row without an action counts as one action of 0 in the mean."

    def whiten(self, *arguments):
        def mean(x, counted):
            return x.where(counted, 0.0).sum() / counted.sum(1).clamp(min=1).sum()

        return plain.whiten(self, arguments, mean=mean)


@fault("whitening.empty-row")
class EmptyRowIsNan(Reference):
    "The mean is that of the rows' means weighted with their counts: 0 / 0 for a row without an action."

    def whiten(self, *arguments):
        def mean(x, counted):
            counts = counted.sum(1)
            return (x.where(counted, 0.0).sum(1) / counts * counts).sum() / counts.sum()

        return plain.whiten(self, arguments, mean=mean)


@fault("whitening.empty-row")
class EmptyRowEndsBatch(Reference):
    "Rows behind one without an action are left out of the statistics."

    def whiten(self, values, mask, options):
        before = mask.bool().any(1).long().cumprod(0).bool()
        counted = mask.bool() & before[:, None]
        return plain.whiten(self, (values, mask, options), counted=counted if counted.any() else None)


# --- what leaves it as it is ----------------------------------------------------------------------------------------


@fault("whitening.shift")
class MedianForMean(Reference):
    "The median is subtracted."

    def whiten(self, *arguments):
        def median(x, counted):
            return x[counted].quantile(0.5) if counted.any() else x.sum() * 0

        return plain.whiten(self, arguments, mean=median)


@fault("whitening.shift")
class RootMeanSquareForDeviation(Reference):
    "Divided by the root of the mean square of the numbers themselves."

    def whiten(self, values, mask, options):
        def square(centered, counted, ddof):
            return plain.variance(wide(values), counted, ddof)

        return plain.whiten(self, (values, mask, options), variance=square)


@fault("whitening.shift")
class MeanHeldWithinTwo(Reference):
    "The mean is held between -2 and 2."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, mean=lambda x, counted: plain.mean(x, counted).clamp(-2, 2))


@fault("whitening.shift")
class NegativeMeanNotRemoved(Reference):
    "A mean below 0 is not removed."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, mean=lambda x, counted: plain.mean(x, counted).clamp(min=0))


@fault("whitening.scale")
class DeviationAtLeastTenth(Reference):
    "The deviation is held at 0.1 from below."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, denominator=lambda a, v: plain.denominator(a, v).clamp(min=0.1))


@fault("whitening.scale")
class DeviationAtMostTen(Reference):
    "The deviation is held at 10 from above."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, denominator=lambda a, v: plain.denominator(a, v).clamp(max=10))


@fault("whitening.scale")
class NumbersHeldWithinTwenty(Reference):
    "The numbers are held between -20 and 20 beforehand."

    def whiten(self, values, mask, options):
        return super().whiten(values.clamp(-20, 20), mask, options)


@fault("whitening.large-mean")
class VarianceInOnePass(Reference):
    "The variance is the mean square less the square of the mean."

    def whiten(self, values, mask, options):
        def one_pass(centered, counted, ddof):
            count, x = counted.sum(), wide(values).where(counted, 0.0)
            biased = x.square().sum() / count - (x.sum() / count) ** 2
            return biased * count / (count - ddof).clamp(min=1)

        return plain.whiten(self, (values, mask, options), variance=one_pass)


@fault("whitening.large-mean")
class NumbersInHalf(Reference):
    "Numbers above 100 go through bfloat16."

    def whiten(self, values, mask, options):
        return super().whiten(values.where(values.abs() < 100, values.bfloat16().to(values.dtype)), mask, options)


@fault("whitening.equal-numbers")
class EqualNumbersAreNan(Reference):
    "Where all numbers are alike the result is 0 / 0."

    def whiten(self, values, mask, options):
        answer, kept = super().whiten(values, mask, options), values[mask.bool()]
        alike = kept.numel() > 1 and bool(kept.max() == kept.min())
        return answer * float("nan") if alike else answer


@fault("whitening.equal-numbers", bug="score-std-zero")
class EqualNumbersAreOne(Reference):
    "Where there is no deviation the numbers are taken as they are."

    def whiten(self, values, mask, options):
        kept = wide(values)[mask.bool()]
        if kept.numel() and kept.max() == kept.min():
            return (wide(values) + 1.0).where(mask.bool(), 0.0)
        return super().whiten(values, mask, options)


@fault("whitening.few-actions")
class UnbiasedVarianceOfOne(Reference):
    "The unbiased variance of one number is 0 / 0."

    def whiten(self, *arguments):
        def variance(centered, counted, ddof):
            return centered.where(counted, 0.0).square().sum() / (counted.sum() - ddof)

        return plain.whiten(self, arguments, variance=variance)


@fault("whitening.few-actions")
class OneActionIsInfinite(Reference):
    "The deviation of a single number is 0, without an eps: the number is divided by it."

    def whiten(self, values, mask, options):
        if int(mask.sum()) != 1:
            return super().whiten(values, mask, options)
        return (wide(values).where(mask.bool(), 0.0).abs() + 1.0) / 0.0


@fault("whitening.few-declared", bug="one-token-raises")
class OneTokenRaises(Reference):
    "A batch with fewer than two actions is refused, although 0 is declared."

    def whiten(self, values, mask, options):
        if mask.sum() < 2:
            raise ValueError("the variance of fewer than two numbers")
        return super().whiten(values, mask, options)


@fault("whitening.few-declared")
class OneActionStaysItself(Reference):
    "A single action keeps its number, although its mean is removed."

    def whiten(self, values, mask, options):
        return super().whiten(values, mask, replace(options, shift_mean=options.shift_mean and int(mask.sum()) != 1))


@fault("whitening.padding-invariance")
class VarianceOverWidth(Reference):
    "The variance divides by the number of cells."

    def whiten(self, *arguments):
        def variance(centered, counted, ddof):
            return centered.where(counted, 0.0).square().sum() / max(1, counted.numel() - ddof)

        return plain.whiten(self, arguments, variance=variance)


@fault("whitening.padding-invariance")
class MeanOverWidth(Reference):
    "The mean divides by the number of cells."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, mean=lambda x, counted: x.where(counted, 0.0).mean())


@fault("whitening.padding-invariance")
class LastColumnTakenForPadding(Reference):
    "The last column is left out of the statistics, as if it were always padding."

    def whiten(self, values, mask, options):
        counted = mask.bool().clone()
        counted[:, -1] = False
        return plain.whiten(self, (values, mask, options), counted=counted if counted.sum() > 1 else None)


@fault("whitening.batch-order")
class StatisticsOfFirstRow(Reference):
    "Mean and deviation are those of the first row, where that has more than one action."

    def whiten(self, values, mask, options):
        counted = mask.bool().clone()
        counted[1:] = False
        return plain.whiten(self, (values, mask, options), counted=counted if counted.sum() > 1 else None)


@fault("whitening.batch-order")
class LastRowLeftOut(Reference):
    "The last row is left out of the mean: the rows are counted up to B - 1."

    def whiten(self, *arguments):
        def mean(x, counted):
            counted = counted.clone()
            counted[-1:] &= len(counted) == 1
            return plain.mean(x, counted)

        return plain.whiten(self, arguments, mean=mean)


@fault("whitening.batch-order")
class MeanUpToThisRow(Reference):
    "From each row the mean of the rows up to it is subtracted."

    def whiten(self, *arguments):
        def mean(x, counted):
            sums, counts = x.where(counted, 0.0).sum(1).cumsum(0), counted.sum(1).cumsum(0)
            return (sums / counts.clamp(min=1))[:, None]

        return plain.whiten(self, arguments, mean=mean)


@fault("whitening.mask-dtype")
class OneMinusMask(Reference):
    "1 - mask, which booleans do not know."

    def whiten(self, values, mask, options):
        return super().whiten(values.masked_fill((1 - mask).bool(), 0.0), mask, options)


@fault("whitening.mask-dtype")
class FloatMaskAllTrue(Reference):
    "A mask of floats is taken for one that has no zeros."

    def whiten(self, values, mask, options):
        return super().whiten(values, torch.ones_like(mask) if mask.is_floating_point() else mask, options)


# --- the graph, and side effects ------------------------------------------------------------------------------------


@fault("whitening.no-graph")
class GraphOfWhitening(Reference):
    "Nothing is detached."

    def whiten(self, *arguments):
        return plain.whiten(self, arguments, graph=True)


@fault("whitening.no-graph")
class GraphOfNumbersAlone(Reference):
    "Mean and deviation are detached, the numbers are not."

    def whiten(self, *arguments):
        return plain.whiten(
            self,
            arguments,
            graph=True,
            mean=lambda x, counted: plain.mean(x, counted).detach(),
            variance=lambda c, counted, ddof: plain.variance(c, counted, ddof).detach(),
        )


@fault("whitening.inputs-unwritten")
class WhitenedInPlace(Reference):
    "The values are whitened where they stand."

    def whiten(self, values, mask, options):
        answer = super().whiten(values, mask, options)
        values.detach().copy_(answer)
        return answer


@fault("whitening.inputs-unwritten")
class PaddingClearedInPlace(Reference):
    "Cells under the mask are set to 1 in the caller's tensor before anything is computed."

    def whiten(self, values, mask, options):
        values.masked_fill_(~mask.bool(), 1.0)
        return super().whiten(values, mask, options)


@fault("whitening.inputs-unwritten")
class MaskInvertedInPlace(Reference):
    "The mask is turned round in place, to fill what it excludes."

    def whiten(self, values, mask, options):
        answer = super().whiten(values, mask, options)
        mask.sub_(1).neg_()
        return answer


@fault("whitening.side-effects")
class MeanGrowsWithCalls(Reference):
    "What is subtracted grows by a hundredth with each call."

    def whiten(self, *arguments):
        self.calls = getattr(self, "calls", 0) + 1
        return plain.whiten(self, arguments, mean=lambda x, counted: plain.mean(x, counted) + 0.01 * self.calls)


@fault("whitening.side-effects")
class GradientsLeftOff(Reference):
    "Gradients are switched off, and stay off."

    def whiten(self, *arguments):
        torch.set_grad_enabled(False)
        return super().whiten(*arguments)

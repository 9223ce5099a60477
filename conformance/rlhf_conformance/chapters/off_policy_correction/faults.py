"""Liars about the weights of a correction. Most of them exchange one step of the plain formula in `bending`."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._credit.bending import spans
from rlhf_conformance.chapters._tensors import chosen, wide
from rlhf_conformance.chapters.off_policy_correction import bending as plain
from rlhf_conformance.faults import fault


def free(adapter, x):
    """No clamp at all."""
    return x


# --- the weight -----------------------------------------------------------------------------------------------------


@fault("off-policy-correction.token")
class WeightUpsideDown(Reference):
    "The engine's log-prob less the trainer's: what the engine overrates is raised once more."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(rollout.nan_to_num(0.0), old, mask, options)


@fault("off-policy-correction.token")
class WeightOfProbabilities(Reference):
    "The weight is 1 plus the difference of the two probabilities."

    def off_policy_weights(self, *arguments):
        def weigh(old, rollout, mask):
            return (1 + chosen(wide(old).exp() - wide(rollout).exp(), mask)).log()

        return plain.weights(self, arguments, d=weigh)


@fault("off-policy-correction.token")
class WeightOfFirstOrder(Reference):
    "The weight is 1 + d, nearly right where trainer and engine nearly agree."

    def off_policy_weights(self, *arguments):
        return plain.weights(self, arguments, weigh=lambda x: (1 + x).clamp(min=0.0))


@fault("off-policy-correction.token")
class CertainTakenForMissing(Reference):
    "A log-prob of 0 of the engine, a certain token, is taken for one that it did not give, and weighs 1."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old.where(rollout != 0, 0.0), rollout, mask, options)


@fault("off-policy-correction.sequence-product")
class MeanOfWeightsForProduct(Reference):
    "A sequence's weight is the mean of those of its actions, where their product is asked for."

    def off_policy_weights(self, *arguments):
        def arithmetic(d, mask, options):
            if options.sequence_weight != "product":
                return plain.of_sequence(d, mask, options)
            return (chosen(d.exp(), mask).sum(1, keepdim=True) / plain.counts(mask)).log()

        return plain.weights(self, arguments, of_sequence=arithmetic)


@fault("off-policy-correction.sequence-product")
class ProductUpToTheAction(Reference):
    "The product runs up to the action: each has that of what stands before it, and its own."

    def off_policy_weights(self, *arguments):
        def running(d, mask, options):
            return d.cumsum(1) if options.sequence_weight == "product" else plain.of_sequence(d, mask, options)

        return plain.weights(self, arguments, of_sequence=running)


@fault("off-policy-correction.sequence-product")
class GeometricForProduct(Reference):
    "The geometric mean, whichever is asked for."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout, mask, replace(options, sequence_weight="geometric"))


@fault("off-policy-correction.sequence-geometric")
class ProductForGeometric(Reference):
    "The product, whichever is asked for."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout, mask, replace(options, sequence_weight="product"))


@fault("off-policy-correction.sequence-geometric")
class MeanOfWeightsForGeometric(Reference):
    "The arithmetic mean of the weights in the place of the geometric one."

    def off_policy_weights(self, *arguments):
        def arithmetic(d, mask, options):
            if options.sequence_weight == "product":
                return plain.of_sequence(d, mask, options)
            return (chosen(d.exp(), mask).sum(1, keepdim=True) / plain.counts(mask)).log()

        return plain.weights(self, arguments, of_sequence=arithmetic)


@fault("off-policy-correction.sequence-geometric")
class GeometricOverTheLongestRow(Reference):
    "The sum of a row is divided by the number of actions of the longest."

    def off_policy_weights(self, *arguments):
        def over_longest(d, mask, options):
            longest = d.double().sum(1, keepdim=True) / plain.counts(mask).amax()
            return longest if options.sequence_weight == "geometric" else plain.of_sequence(d, mask, options)

        return plain.weights(self, arguments, of_sequence=over_longest)


@fault("off-policy-correction.agreement")
class SmallNumberUnderTheWeight(Reference):
    "The probability of the trainer is divided by that of the engine plus 1e-6."

    def off_policy_weights(self, *arguments):
        def ratio(old, rollout, mask):
            engine = (wide(rollout).exp() + 1e-6).log()
            return plain.log_ratio(old, engine, mask)

        return plain.weights(self, arguments, d=ratio)


@fault("off-policy-correction.agreement")
class TemperaturesApart(Reference):
    "The two log-probs are of temperatures that are not quite the same: one is larger by a thousandth."

    def off_policy_weights(self, *arguments):
        return plain.weights(self, arguments, d=lambda old, *rest: plain.log_ratio(wide(old) * (1 + 1e-3), *rest))


# --- bounds ---------------------------------------------------------------------------------------------------------


def truncating(change):
    """Bounds of which truncation from above is another."""

    def bounded(weight, options):
        if options.mode != "truncate":
            return plain.bounded(weight, options)
        above = change(weight, options)
        return above if options.lower is None else above.clamp(min=options.lower)

    return bounded


@fault("off-policy-correction.truncation")
class TruncationOfTheLogRatio(Reference):
    "The bound holds the logarithm: a weight of exp(2) passes for 2."

    def off_policy_weights(self, *arguments):
        change = truncating(lambda weight, options: weight.log().clamp(max=options.upper).exp())
        return plain.weights(self, arguments, bounded=change)


@fault("off-policy-correction.truncation")
class TruncationOfEachAction(Reference):
    "At the level of sequences each action's weight is truncated, and the product, or the mean, is made of these."

    def off_policy_weights(self, *arguments):
        options = arguments[-1]

        def of_truncated(d, mask, asked):
            return plain.of_sequence(d.exp().clamp(max=options.upper).log(), mask, asked)

        if options.mode != "truncate":
            return plain.weights(self, arguments)
        return plain.weights(self, arguments, of_sequence=of_truncated, bounded=truncating(lambda w, options: w))


@fault("off-policy-correction.truncation")
class TruncationToOne(Reference):
    "A weight above the bound is 1."

    def off_policy_weights(self, *arguments):
        change = truncating(lambda weight, options: weight.where(weight <= options.upper, 1.0))
        return plain.weights(self, arguments, bounded=change)


@fault("off-policy-correction.truncation")
class TruncationAboveTheBound(Reference):
    "The bound is taken for a distance from 1, as a clip range is: 1 + upper."

    def off_policy_weights(self, *arguments):
        change = truncating(lambda weight, options: weight.clamp(max=1 + options.upper))
        return plain.weights(self, arguments, bounded=change)


@fault("off-policy-correction.truncation-below")
class TruncationFromAboveAlone(Reference):
    "No weight is held from below, although a lower bound is declared and given."

    def off_policy_weights(self, old, rollout, mask, options):
        lower = None if options.mode == "truncate" else options.lower
        return super().off_policy_weights(old, rollout, mask, replace(options, lower=lower))


@fault("off-policy-correction.truncation-below")
class TruncationBelowIsTheInverse(Reference):
    "Weights are held from below at 1 / upper, whatever the lower bound."

    def off_policy_weights(self, old, rollout, mask, options):
        inverse = min(1 / options.upper, options.upper)
        lower = inverse if options.mode == "truncate" and options.lower is not None else options.lower
        return super().off_policy_weights(old, rollout, mask, replace(options, lower=lower))


@fault("off-policy-correction.band")
class BandTruncates(Reference):
    "What lies outside of the band is held at its bounds."

    def off_policy_weights(self, *arguments):
        return plain.weights(self, arguments, bounded=lambda weight, o: weight.clamp(o.lower, o.upper))


@fault("off-policy-correction.band")
class BandFromAboveAlone(Reference):
    "The band has no lower end."

    def off_policy_weights(self, old, rollout, mask, options):
        lower = None if options.mode == "mask" else options.lower
        return super().off_policy_weights(old, rollout, mask, replace(options, lower=lower))


@fault("off-policy-correction.band")
class BandOfEachAction(Reference):
    "A sequence is rejected in part: each action is looked at by itself, and has the weight of the sequence."

    def off_policy_weights(self, old, rollout, mask, options):
        if options.mode != "mask":
            return super().off_policy_weights(old, rollout, mask, options)
        free_of_bounds = replace(options, mode="truncate", upper=1e30, lower=None)
        alone = super().off_policy_weights(old, rollout, mask, replace(free_of_bounds, level="token"))
        whole = super().off_policy_weights(old, rollout, mask, free_of_bounds)
        return whole.where(plain.within(alone, options), 0.0)


@fault("off-policy-correction.band")
class BandOfTheLogRatio(Reference):
    "The log-ratio is compared with the distance of the bounds from 1, not the weight with them."

    def off_policy_weights(self, *arguments):
        def bounded(weight, options):
            if options.mode != "mask":
                return plain.bounded(weight, options)
            return weight.where(plain.within(weight.log() + 1, options), 0.0)

        return plain.weights(self, arguments, bounded=bounded)


@fault("off-policy-correction.bounds")
class BoundExcluded(Reference):
    "A weight that is equal to the upper bound lies outside of the band."

    def off_policy_weights(self, *arguments):
        def bounded(weight, options):
            found = plain.bounded(weight, options)
            return found.where(weight < options.upper, 0.0) if options.mode == "mask" else found

        return plain.weights(self, arguments, bounded=bounded)


@fault("off-policy-correction.bounds")
class UpperBoundAboveOne(Reference):
    "An upper bound below 1 is taken for 1."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout, mask, replace(options, upper=max(1.0, options.upper)))


@fault("off-policy-correction.bounds")
class LowerBoundByDefault(Reference):
    "Without a lower bound there is one, the inverse of the upper."

    def off_policy_weights(self, old, rollout, mask, options):
        inverse = min(1 / options.upper, options.upper)
        lower = inverse if options.lower is None else options.lower
        return super().off_policy_weights(old, rollout, mask, replace(options, lower=lower))


@fault("off-policy-correction.kept")
class BandKeepsOne(Reference):
    "What lies within the band has the weight 1, where its own is declared."

    def off_policy_weights(self, *arguments):
        def bounded(weight, options):
            found = plain.bounded(weight, options)
            return plain.within(weight, options).to(weight.dtype) if options.mode == "mask" else found

        return plain.weights(self, arguments, bounded=bounded)


@fault("off-policy-correction.kept")
class BandKeepsTokenWeights(Reference):
    "Actions of an accepted sequence have weights of their own, where that of the sequence is declared."

    def off_policy_weights(self, old, rollout, mask, options):
        found = super().off_policy_weights(old, rollout, mask, options)
        if options.mode != "mask":
            return found
        alone = replace(options, level="token", mode="truncate", upper=1e30, lower=None)
        return super().off_policy_weights(old, rollout, mask, alone).where(found != 0, 0.0)


@fault("off-policy-correction.log-clamp", bug="correction-always-clamped")
class CorrectionAlwaysClamped(Reference):
    "The exponent is held within 10, whatever is declared and however large the bound."

    def off_policy_weights(self, *arguments):
        return plain.weights(self, arguments, held=lambda adapter, x: x.clamp(-10.0, 10.0))


@fault("off-policy-correction.log-clamp")
class CorrectionNeverClamped(Reference):
    "No exponent is held, although a clamp is declared."

    def off_policy_weights(self, *arguments):
        return plain.weights(self, arguments, held=free)


@fault("off-policy-correction.log-clamp")
class ActionsClampedForTheExponent(Reference):
    "Each action's log-ratio is held before they are summed, where the clamp of the sum is declared."

    def off_policy_weights(self, *arguments):
        def clamped(old, rollout, mask):
            return plain.held(self, plain.log_ratio(old, rollout, mask))

        return plain.weights(self, arguments, d=clamped, held=free)


# --- overflow -------------------------------------------------------------------------------------------------------


@fault("off-policy-correction.overflow")
class OverflowIsZero(Reference):
    "A weight that overflows is 0, also where it is to be truncated."

    def off_policy_weights(self, *arguments):
        def weigh(x):
            return x.float().exp().nan_to_num(0.0, 0.0)

        return plain.weights(self, arguments, held=free, weigh=weigh)


@fault("off-policy-correction.overflow")
class LargeLogRatioForgotten(Reference):
    "A log-ratio beyond 50 is taken for an error of the engine, and counts as 0."

    def off_policy_weights(self, *arguments):
        def known(old, rollout, mask):
            found = plain.log_ratio(old, rollout, mask)
            return found.where(found.abs() < 50, 0.0)

        return plain.weights(self, arguments, d=known)


@fault("off-policy-correction.overflow-finite")
class TruncatedByFactor(Reference):
    "The bound is a factor, bound over weight, and infinity times 0 is NaN."

    def off_policy_weights(self, *arguments):
        def bounded(weight, options):
            weight = weight.float()
            if options.mode == "truncate":
                weight = weight * (options.upper / weight).clamp(max=1.0)
            return plain.bounded(weight, options)

        return plain.weights(self, arguments, held=free, bounded=bounded)


@fault("off-policy-correction.overflow-finite")
class BandMultiplied(Reference):
    "The weight is multiplied by whether it lies within the band, and infinity times 0 is NaN."

    def off_policy_weights(self, *arguments):
        def bounded(weight, options):
            weight = weight.float()
            return weight * plain.within(weight, options) if options.mode == "mask" else plain.bounded(weight, options)

        return plain.weights(self, arguments, held=free, bounded=bounded)


# --- what is asked for ----------------------------------------------------------------------------------------------


@fault("off-policy-correction.options")
class LevelIgnored(Reference):
    "Weights are those of tokens, whatever the level."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout, mask, replace(options, level="token"))


@fault("off-policy-correction.options")
class BoundsOfTheFirstCall(Reference):
    "The bounds are read once, at the first call."

    def off_policy_weights(self, old, rollout, mask, options):
        self.bounds = getattr(self, "bounds", {"upper": options.upper, "lower": options.lower})
        return super().off_policy_weights(old, rollout, mask, replace(options, **self.bounds))


@fault("off-policy-correction.options")
class ModeOfTheFirstCall(Reference):
    "Whether weights are truncated or masked is decided at the first call."

    def off_policy_weights(self, old, rollout, mask, options):
        self.mode = getattr(self, "mode", options.mode)
        return super().off_policy_weights(old, rollout, mask, replace(options, mode=self.mode))


# --- rows and columns -----------------------------------------------------------------------------------------------


@fault("off-policy-correction.square", bug="sequence-weights-broadcast")
class SequenceWeightsBroadcast(Reference):
    "The weights of the rows are broadcast over the rows where there are as many columns."

    def off_policy_weights(self, old, rollout, mask, options):
        if options.level != "sequence" or mask.shape[0] != mask.shape[1]:
            return super().off_policy_weights(old, rollout, mask, options)
        right = plain.weights(self, (old, rollout, mask, options))
        return chosen(right.amax(1)[None].expand(mask.shape), mask)


@fault("off-policy-correction.square")
class SquareTransposed(Reference):
    "The axis of the tokens is told by its length, and where both are equal it is the first."

    def off_policy_weights(self, old, rollout, mask, options):
        if mask.shape[0] != mask.shape[1]:
            return super().off_policy_weights(old, rollout, mask, options)
        return super().off_policy_weights(old.mT, rollout.mT, mask.mT, options).mT


@fault("off-policy-correction.own-token")
class TokenWeightsNormalized(Reference):
    "Weights are divided by their mean over the batch."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        mean = right.sum() / mask.bool().sum().clamp(min=1)
        return right / mean.where(mean > 0, 1.0)


@fault("off-policy-correction.own-token")
class EngineOneTokenLate(Reference):
    "The engine's log-prob is that of the token before."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout.roll(1, 1), mask, options)


@fault("off-policy-correction.own-token")
class EngineOfTheFirstRow(Reference):
    "The engine's log-probs are those of the first row, broadcast over the batch."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout[:1].expand_as(rollout), mask, options)


@fault("off-policy-correction.own-row")
class BatchRejectedWithOneRow(Reference):
    "Where one weight lies outside of the band, the whole batch is rejected."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        rejected = options.mode == "mask" and ((right == 0) & mask.bool()).any()
        return right * (not rejected)


@fault("off-policy-correction.own-row")
class OneWeightForTheBatch(Reference):
    "The sum runs over the whole batch: one weight for all sequences."

    def off_policy_weights(self, *arguments):
        def of_all(d, mask, options):
            own = plain.of_sequence(d, mask, options)
            return own.sum(0, keepdim=True) if options.sequence_weight == "product" else own.mean(0, keepdim=True)

        return plain.weights(self, arguments, of_sequence=of_all)


@fault("off-policy-correction.batch-order")
class WeightsSortedByLength(Reference):
    "Rows are sorted by length, and their weights are not put back."

    def off_policy_weights(self, old, rollout, mask, options):
        order = mask.bool().sum(1).argsort(stable=True)
        sorted_weights = super().off_policy_weights(old[order], rollout[order], mask[order], options)
        rows = sorted_weights.amax(1, keepdim=True) if options.level == "sequence" else sorted_weights
        return plain.spread(rows, mask)


@fault("off-policy-correction.batch-order")
class LogRatiosRunOverRows(Reference):
    "A tenth of the log-ratios of the row before is added to a row's."

    def off_policy_weights(self, *arguments):
        def running(old, rollout, mask):
            found = plain.log_ratio(old, rollout, mask)
            before = found.roll(1, 0).where(torch.arange(len(found), device=found.device)[:, None] > 0, 0.0)
            return chosen(found + 0.1 * before.sum(1, keepdim=True), mask)

        return plain.weights(self, arguments, d=running)


@fault("off-policy-correction.padding-invariance")
class GeometricOverColumns(Reference):
    "The mean of the log-ratios divides by the width of the batch."

    def off_policy_weights(self, *arguments):
        def over_columns(d, mask, options):
            own = plain.of_sequence(d, mask, options)
            return d.double().mean(1, keepdim=True) if options.sequence_weight == "geometric" else own

        return plain.weights(self, arguments, of_sequence=over_columns)


@fault("off-policy-correction.padding-invariance")
class FirstColumnAgrees(Reference):
    "The first column is taken for the end of the prompt, whose log-ratio is 0."

    def off_policy_weights(self, old, rollout, mask, options):
        same = torch.arange(mask.shape[1], device=mask.device) == 0
        return super().off_policy_weights(old, rollout.where(~same, old.detach()), mask, options)


@fault("off-policy-correction.empty-row")
class WeightsScaledByFullRows(Reference):
    "Weights are scaled by the share of rows that have an action."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout, mask, options) * mask.bool().any(1).double().mean().float()


@fault("off-policy-correction.empty-row")
class CorrectionOffWithAnEmptyRow(Reference):
    "A batch with an empty row is taken for padding: all of its weights are 1."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        return right if mask.bool().any(1).all() else mask.bool().to(right.dtype)


@fault("off-policy-correction.empty-row-finite")
class EmptyRowZeroOverZero(Reference):
    "The mean of no log-ratio is 0 / 0, in every cell of the row."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        marks = mask.bool()
        mean = right.sum(1, keepdim=True) / marks.sum(1, keepdim=True)
        return right.where(marks, mean * 0)


# --- the mask -------------------------------------------------------------------------------------------------------


@fault("off-policy-correction.mask", bug="sentinel-in-the-correction")
class SentinelInTheCorrection(Reference):
    "A sequence's sum runs over all cells, sentinels included."

    def off_policy_weights(self, *arguments):
        old, rollout, mask, options = arguments
        if options.level == "token":
            return super().off_policy_weights(*arguments)
        everywhere = (wide(old) - wide(rollout)).detach().nan_to_num(0.0)
        own = plain.of_sequence(everywhere, mask, options)
        return plain.spread(plain.bounded(plain.held(self, own).exp(), options), mask)


@fault("off-policy-correction.mask")
class LargestCellScales(Reference):
    "Log-ratios are scaled down where the largest of all cells is above 5, pads included."

    def off_policy_weights(self, *arguments):
        def scaled(old, rollout, mask):
            largest = (wide(old) - wide(rollout)).nan_to_num(0.0).abs().amax().clamp(5.0, 3e38)
            return plain.log_ratio(old, rollout, mask) * (5.0 / largest)

        return plain.weights(self, arguments, d=scaled)


@fault("off-policy-correction.nan-under-mask")
class CorrectionMaskMultiplied(Reference):
    "The log-ratio is multiplied by the mask, and NaN * 0 is NaN, in the sum of the sequence as well."

    def off_policy_weights(self, *arguments):
        def multiplied(old, rollout, mask):
            return (wide(old) - wide(rollout)) * mask

        return plain.weights(self, arguments, d=multiplied)


@fault("off-policy-correction.nan-under-mask")
class CorrectionOffWithNan(Reference):
    "Where there is a NaN anywhere, the engine is taken to have given nothing, and all weights are 1."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        lost = rollout.isnan() & ~mask.bool()
        return mask.bool().to(right.dtype) if lost.any() else right


@fault("off-policy-correction.holes")
class ObservationsInTheSum(Reference):
    "The mask goes by lengths: what stands between a row's actions is part of its sequence."

    def off_policy_weights(self, *arguments):
        old, rollout, mask, options = arguments
        if options.level == "token":
            return super().off_policy_weights(*arguments)
        whole = plain.weights(self, (old, rollout, spans(mask), options))
        return chosen(whole, mask)


@fault("off-policy-correction.holes")
class FirstTurnCorrectedAlone(Reference):
    "Only the first turn is corrected: actions behind an observation have a log-ratio of 0."

    def off_policy_weights(self, old, rollout, mask, options):
        marks = mask.bool()
        behind = (~marks & (marks.cumsum(1) > 0)).cumsum(1) > 0
        return super().off_policy_weights(old, rollout.where(~behind, old.detach()), mask, options)


@fault("off-policy-correction.masked-cells")
class WeightsOfPadsLeft(Reference):
    "Pads have a weight as well, although 0 is promised."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        return right.where(mask.bool(), 1.0)


@fault("off-policy-correction.masked-cells")
class WeightsOfObservationsLeft(Reference):
    "What lies behind the last action is 0, an observation between two is not."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        return right.where(mask.bool(), spans(mask).to(right.dtype))


@fault("off-policy-correction.nan-of-the-engine")
class NanIsSentinelOne(Reference):
    "A log-prob of 1.0 stands where the engine gave none, and a weight is made of it."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout.nan_to_num(1.0), mask, options)


@fault("off-policy-correction.nan-of-the-engine")
class NanWeighsNothing(Reference):
    "An action without a log-prob of the engine has the weight 0, where one is declared."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        lost = rollout.isnan() & mask.bool()
        return right.masked_fill(lost if options.level == "token" else lost.any(1, keepdim=True), 0.0)


@fault("off-policy-correction.mask-dtype")
class CorrectionMaskInverted(Reference):
    "~mask of an integer mask is -1 and -2, both true: everything is masked."

    def off_policy_weights(self, old, rollout, mask, options):
        hidden = ~mask if mask.dtype == torch.bool else (~mask.long()).bool()
        return super().off_policy_weights(old, rollout, mask, options).masked_fill(hidden, 0.0)


@fault("off-policy-correction.mask-dtype")
class CorrectionMaskSubtracted(Reference):
    "1 - mask, which a mask of booleans does not allow."

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout, mask, options).masked_fill((1 - mask).bool(), 0.0)


# --- the graph, and what else is changed ----------------------------------------------------------------------------


@fault("off-policy-correction.no-graph")
class GraphThroughTheWeight(Reference):
    "The weights have the graph of the log-probs that they are made of."

    def off_policy_weights(self, *arguments):
        return plain.weights(self, arguments, graph=True)


@fault("off-policy-correction.no-graph")
class GraphOfSequenceWeights(Reference):
    "The weights of tokens are detached, those of sequences are not."

    def off_policy_weights(self, *arguments):
        return plain.weights(self, arguments, graph=arguments[-1].level == "sequence")


@fault("off-policy-correction.inputs-unwritten")
class RejectedTakenOutOfTheMask(Reference):
    "What is rejected is taken out of the caller's mask."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        if options.mode == "mask":
            mask.masked_fill_(right == 0, 0)
        return right


@fault("off-policy-correction.inputs-unwritten")
class EngineMaskedInPlace(Reference):
    "The engine's log-probs are filled with 0 under the mask, in the caller's tensor."

    def off_policy_weights(self, old, rollout, mask, options):
        rollout.masked_fill_(~mask.bool(), 0.0)
        return super().off_policy_weights(old, rollout, mask, options)


@fault("off-policy-correction.inputs-unwritten")
class LogRatioOverTheOldLogProbs(Reference):
    "The log-ratio is written over the old log-probs."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old.clone(), rollout, mask, options)
        old.detach().sub_(rollout)
        return right


@fault("off-policy-correction.side-effects")
class WeightsRunAlong(Reference):
    "Weights are divided by a mean that runs along from call to call."

    def off_policy_weights(self, old, rollout, mask, options):
        right = super().off_policy_weights(old, rollout, mask, options)
        self.mean_weight = 0.9 * getattr(self, "mean_weight", 1.0) + 0.1 * (1.0 + float(right.mean()))
        return right / self.mean_weight


@fault("off-policy-correction.side-effects")
class CorrectionLeavesGradientsOff(Reference):
    "Gradients are switched off for the weights, and stay so."

    def off_policy_weights(self, *arguments):
        right = super().off_policy_weights(*arguments)
        torch.set_grad_enabled(False)
        return right

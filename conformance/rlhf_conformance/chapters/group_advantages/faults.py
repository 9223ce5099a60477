"""Liars about advantages of groups. Most of them exchange one step of the plain formula in `bending`."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.group_advantages import bending as plain
from rlhf_conformance.faults import fault

# --- the baseline ---------------------------------------------------------------------------------------------------


@fault("group-advantages.mean")
class MeanOfBatchForGroup(Reference):
    "The baseline is the mean of the whole batch."

    def group_advantages(self, *arguments):
        return plain.advantages(self, arguments, mean=lambda x, same: x.mean().expand_as(x))


@fault("group-advantages.mean")
class MedianOfGroup(Reference):
    "The baseline is the median of the group."

    def group_advantages(self, *arguments):
        def median(x, same):
            return torch.stack([x[row].quantile(0.5) for row in same])

        return plain.advantages(self, arguments, mean=median)


@fault("group-advantages.mean")
class OthersForMean(Reference):
    "The baseline leaves the response itself out, although the mean of the group is asked for."

    def group_advantages(self, *arguments):
        return plain.advantages(self, arguments, mean=plain.mean_of_others)


@fault("group-advantages.mean", bug="scale-modes-swapped")
class AlwaysScaled(Reference):
    "The difference is divided by the group's deviation, although nothing is to be divided by."

    def group_advantages(self, scores, group_ids, mask, options):
        scale = "group-std" if (options.baseline, options.scale) == ("mean", "none") else options.scale
        return super().group_advantages(scores, group_ids, mask, replace(options, scale=scale))


@fault("group-advantages.leave-one-out")
class OwnScoreInBaseline(Reference):
    "The mean of the whole group is subtracted, where the response itself is to be left out."

    def group_advantages(self, *arguments):
        return plain.advantages(self, arguments, others=plain.mean)


@fault("group-advantages.leave-one-out")
class OthersOverWholeCount(Reference):
    "The sum of the others is divided by the size of the group."

    def group_advantages(self, *arguments):
        def others(x, same):
            return (plain.totals(x, same) - x) / same.sum(1)

        return plain.advantages(self, arguments, others=others)


@fault("group-advantages.leave-one-out")
class OthersOfBatch(Reference):
    "The others are all other rows of the batch."

    def group_advantages(self, *arguments):
        return plain.advantages(self, arguments, others=lambda x, same: plain.mean_of_others(x, torch.ones_like(same)))


@fault("group-advantages.leave-one-out")
class NextOneForOthers(Reference):
    "The baseline is the score of the next response of the group: right for two."

    def group_advantages(self, *arguments):
        def following(x, same):
            rows = [same[i].nonzero()[:, 0].tolist() for i in range(len(x))]
            return torch.stack([x[own[(own.index(i) + 1) % len(own)]] for i, own in enumerate(rows)])

        return plain.advantages(self, arguments, others=following)


# --- the scale ------------------------------------------------------------------------------------------------------


@fault("group-advantages.group-std", bug="scale-modes-swapped")
class ScaleModesSwapped(Reference):
    "The deviation of the batch where the group's is asked for, and the other way round."

    def group_advantages(self, scores, group_ids, mask, options):
        swapped = {"group-std": "batch-std", "batch-std": "group-std"}
        scale = swapped.get(options.scale, options.scale)
        return super().group_advantages(scores, group_ids, mask, replace(options, scale=scale))


@fault("group-advantages.group-std")
class DividedByVarianceOfGroup(Reference):
    "Divided by the variance of the group."

    def group_advantages(self, *arguments):
        def variance(x, same, ddof):
            return plain.deviation(x, same, ddof) ** 2

        return plain.advantages(self, arguments, group_deviation=variance)


@fault("group-advantages.group-std")
class GroupNotScaled(Reference):
    "Nothing is divided by, although the group's deviation is asked for."

    def group_advantages(self, scores, group_ids, mask, options):
        scale = "none" if options.scale == "group-std" else options.scale
        return super().group_advantages(scores, group_ids, mask, replace(options, scale=scale))


@fault("group-advantages.group-std")
class RangeOfGroup(Reference):
    "Divided by the difference of the largest and the smallest score of the group."

    def group_advantages(self, *arguments):
        def span(x, same, ddof):
            high = x[None].where(same, -float("inf")).amax(1)
            return high - x[None].where(same, float("inf")).amin(1)

        return plain.advantages(self, arguments, group_deviation=span)


@fault("group-advantages.batch-std")
class BatchDeviationOfDifferences(Reference):
    "The batch's deviation is that of the differences from the groups' means."

    def group_advantages(self, *arguments):
        def of_differences(x, same, ddof):
            return plain.deviation(x - plain.mean(x, same), torch.ones_like(same), ddof)

        return plain.advantages(self, arguments, batch_deviation=of_differences)


@fault("group-advantages.batch-std", bug="scale-modes-swapped")
class GroupDeviationForBatch(Reference):
    "The group's deviation where that of the batch is asked for."

    def group_advantages(self, *arguments):
        return plain.advantages(self, arguments, batch_deviation=plain.deviation)


@fault("group-advantages.batch-std")
class MeanOfGroupDeviations(Reference):
    "The batch's deviation is the mean of the groups'."

    def group_advantages(self, *arguments):
        def averaged(x, same, ddof):
            return plain.deviation(x, same, ddof).mean().expand_as(x)

        return plain.advantages(self, arguments, batch_deviation=averaged)


@fault("group-advantages.batch-std")
class BatchMeanRemovedToo(Reference):
    "Where the batch's deviation is asked for, the batch's mean is what is subtracted."

    def group_advantages(self, scores, group_ids, mask, options):
        whole = torch.zeros_like(group_ids) if options.scale == "batch-std" else group_ids
        return super().group_advantages(scores, whole, mask, options)


@fault("group-advantages.ddof")
class BiasedDeviationOfScores(Reference):
    "The variance divides by n, where n - 1 is declared."

    def group_advantages(self, *arguments):
        def other(x, same, ddof):
            return plain.deviation(x, same, 1 - ddof)

        return plain.advantages(
            self,
            arguments,
            group_deviation=other,
            batch_deviation=lambda x, same, ddof: other(x, torch.ones_like(same), ddof),
        )


@fault("group-advantages.ddof")
class BiasedForLargeGroups(Reference):
    "The variance divides by n in groups of more than three."

    def group_advantages(self, *arguments):
        def other(x, same, ddof):
            return torch.where(same.sum(1) > 3, plain.deviation(x, same, 1 - ddof), plain.deviation(x, same, ddof))

        return plain.advantages(self, arguments, group_deviation=other)


@fault("group-advantages.epsilon")
class EpsilonOfScoresHundredfold(Reference):
    "100 eps are added to the deviation."

    def group_advantages(self, *arguments):
        return plain.advantages(
            self, arguments, divide=lambda a, difference, std: plain.divide(a, difference, std + 99 * a.group_eps)
        )


@fault("group-advantages.epsilon")
class EpsilonInVarianceOfScores(Reference):
    "eps is added to the variance."

    def group_advantages(self, *arguments):
        return plain.advantages(self, arguments, divide=lambda a, d, std: d / (std**2 + a.group_eps).sqrt())


# --- what makes a group ---------------------------------------------------------------------------------------------


@fault("group-advantages.own-group")
class BaselineDrawnToBatch(Reference):
    "The baseline is nine tenths of the group's mean and one of the batch's."

    def group_advantages(self, *arguments):
        return plain.advantages(self, arguments, mean=lambda x, same: 0.9 * plain.mean(x, same) + 0.1 * x.mean())


@fault("group-advantages.own-group")
class StatisticsRememberedById(Reference):
    "The mean of a group is remembered under its id, and used again for whatever comes under that id."

    def group_advantages(self, *arguments):
        known = self.__dict__.setdefault("known", {})

        def mean(x, same):
            fresh = plain.mean(x, same)
            keys = [(int(g), int(n)) for g, n in zip(arguments[1], same.sum(1), strict=True)]
            return torch.stack([known.setdefault(key, now) for key, now in zip(keys, fresh, strict=True)])

        return plain.advantages(self, arguments, mean=mean, others=mean)


@fault("group-advantages.own-group")
class ScoresOfBatchWhitened(Reference):
    "Scores are whitened over the batch first: the group's deviation hides it, nothing else does."

    def group_advantages(self, scores, group_ids, mask, options):
        if options.scale == "batch-std":
            return super().group_advantages(scores, group_ids, mask, options)
        wide = scores.detach().double()
        whitened = (wide - wide.mean()) / (wide.std() + 1e-3)
        return super().group_advantages(whitened.to(scores.dtype), group_ids, mask, options)


@fault("group-advantages.interleaved")
class ConsecutiveRowsAreGroups(Reference):
    "A group is a run of rows with one id: what comes again later is another group."

    def group_advantages(self, scores, group_ids, mask, options):
        changes = torch.cat([group_ids.new_zeros(1), (group_ids[1:] != group_ids[:-1]).long()])
        return super().group_advantages(scores, changes.cumsum(0), mask, options)


@fault("group-advantages.interleaved")
class ViewByGroupSize(Reference):
    "Rows are cut into groups one behind the other, with the right sizes, whatever their ids."

    def group_advantages(self, scores, group_ids, mask, options):
        return super().group_advantages(scores, group_ids.sort().values, mask, options)


@fault("group-advantages.interleaved")
class SortedAndNotBack(Reference):
    "Rows are sorted by group, and the advantages stay in that order."

    def group_advantages(self, scores, group_ids, mask, options):
        order = group_ids.argsort(stable=True)
        rows = plain.advantages(self, (scores[order], group_ids[order], torch.ones_like(mask), options))
        return rows.where(mask.bool(), 0.0)


@fault("group-advantages.interleaved")
class EveryNthRow(Reference):
    "Rows that are as many apart as there are groups are taken for a group: right where they take turns."

    def group_advantages(self, scores, group_ids, mask, options):
        count = len(group_ids.unique())
        turns = torch.arange(len(group_ids), device=group_ids.device) % count
        return super().group_advantages(scores, turns, mask, options)


@fault("group-advantages.unequal-sizes")
class SizeOfFirstGroup(Reference):
    "Sums are divided by the size of the first group."

    def group_advantages(self, *arguments):
        return plain.advantages(
            self,
            arguments,
            mean=lambda x, same: plain.totals(x, same) / same[0].sum(),
            others=lambda x, same: (plain.totals(x, same) - x) / (same[0].sum() - 1).clamp(min=1),
        )


@fault("group-advantages.unequal-sizes")
class AverageSizeOfGroups(Reference):
    "Sums are divided by the number of rows over the number of groups."

    def group_advantages(self, scores, group_ids, mask, options):
        size = len(group_ids) / len(group_ids.unique())
        return plain.advantages(
            self,
            (scores, group_ids, mask, options),
            mean=lambda x, same: plain.totals(x, same) / size,
            others=lambda x, same: (plain.totals(x, same) - x) / max(1.0, size - 1),
        )


@fault("group-advantages.unequal-sizes")
class SmallGroupsPaddedWithZeros(Reference):
    "Groups are padded with scores of 0 to the size of the largest."

    def group_advantages(self, *arguments):
        def largest(same):
            return same.sum(1).max()

        def mean(x, same):
            return plain.totals(x, same) / largest(same)

        def others(x, same):
            return (plain.totals(x, same) - x) / (largest(same) - 1).clamp(min=1)

        return plain.advantages(self, arguments, mean=mean, others=others)


@fault("group-advantages.unequal-sizes")
class SmallGroupsDropped(Reference):
    "Groups smaller than the largest get 0, as if they were incomplete."

    def group_advantages(self, scores, group_ids, mask, options):
        size = plain.members(group_ids).sum(1)
        answer = super().group_advantages(scores, group_ids, mask, options)
        return answer.where((size == size.max())[:, None], 0.0)


@fault("group-advantages.group-names")
class IdsInFloat32(Reference):
    "Ids are held in a float32, which cannot tell two large ones."

    def group_advantages(self, scores, group_ids, mask, options):
        return super().group_advantages(scores, group_ids.float().long(), mask, options)


@fault("group-advantages.group-names")
class IdsInByte(Reference):
    "Ids are held in a byte: 261 is 5."

    def group_advantages(self, scores, group_ids, mask, options):
        return super().group_advantages(scores, group_ids % 256, mask, options)


@fault("group-advantages.group-names")
class IdsAreIndices(Reference):
    "Ids are indices into a table with a place for each row: larger ones share the last."

    def group_advantages(self, scores, group_ids, mask, options):
        return super().group_advantages(scores, group_ids.clamp(max=max(12, len(group_ids) - 1)), mask, options)


@fault("group-advantages.group-names")
class IdZeroIsNoGroup(Reference):
    "`if group_id:` leaves the group 0 out."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        return answer.where((group_ids != 0)[:, None], 0.0)


@fault("group-advantages.batch-order")
class AdvantagesInOrderOfGroups(Reference):
    "Advantages come back group by group, in the order in which the groups first appear."

    def group_advantages(self, scores, group_ids, mask, options):
        first = [group_ids.tolist().index(g) for g in group_ids.tolist()]
        order = torch.tensor(first, device=scores.device).argsort(stable=True)
        rows = plain.advantages(self, (scores, group_ids, torch.ones_like(mask), options))
        return rows[order].where(mask.bool(), 0.0)


@fault("group-advantages.batch-order")
class FirstRowIsBaseline(Reference):
    "The first response of a group is what the others are measured by."

    def group_advantages(self, *arguments):
        def first(x, same):
            return x[same.long().argmax(1)]

        return plain.advantages(self, arguments, mean=first, others=first)


@fault("group-advantages.batch-order")
class BaselineSoFar(Reference):
    "The baseline is the mean of the group's rows up to this one."

    def group_advantages(self, *arguments):
        def so_far(x, same):
            return plain.mean(x, same.tril())

        return plain.advantages(self, arguments, mean=so_far, others=so_far)


# --- the mask -------------------------------------------------------------------------------------------------------


@fault("group-advantages.mask")
class SpreadOverLength(Reference):
    "The advantage of a response is divided among its actions."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        return answer / mask.bool().sum(1, keepdim=True).clamp(min=1)


@fault("group-advantages.mask")
class LastActionAlone(Reference):
    "The advantage stands at the last action of a response, and 0 at the others."

    def group_advantages(self, scores, group_ids, mask, options):
        on = mask.bool().long()
        last = (on.flip(1).cumsum(1).flip(1) == 1) & (on == 1)
        return super().group_advantages(scores, group_ids, mask, options).where(last, 0.0)


@fault("group-advantages.mask")
class FirstCellsForActions(Reference):
    "As many cells from the left as the response has actions get the advantage: right for masks without holes."

    def group_advantages(self, scores, group_ids, mask, options):
        columns = torch.arange(mask.shape[1], device=mask.device)
        first = columns < mask.bool().sum(1, keepdim=True)
        return super().group_advantages(scores, group_ids, first, options)


@fault("group-advantages.mask")
class FirstTurnOfResponse(Reference):
    "The actions behind an observation get 0."

    def group_advantages(self, scores, group_ids, mask, options):
        on = mask.bool()
        ended = (~on & (on.long().cumsum(1) > 0)).long().cumsum(1) > 0
        return super().group_advantages(scores, group_ids, on & ~ended, options)


@fault("group-advantages.padding-invariance")
class DividedByWidth(Reference):
    "The advantage is divided by the width of the batch."

    def group_advantages(self, scores, group_ids, mask, options):
        return super().group_advantages(scores, group_ids, mask, options) / mask.shape[1]


@fault("group-advantages.padding-invariance")
class LastColumnLost(Reference):
    "The last column gets 0, as if it were always padding."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options).clone()
        answer[:, -1] = 0.0
        return answer


@fault("group-advantages.padding-invariance")
class TruncatedResponseLost(Reference):
    "A response that fills its row is taken for a truncated one, and gets 0."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        return answer.where(~mask.bool().all(1, keepdim=True), 0.0)


@fault("group-advantages.mask-dtype")
class BooleanMaskSubtracted(Reference):
    "1 - mask, which booleans do not know."

    def group_advantages(self, scores, group_ids, mask, options):
        return super().group_advantages(scores, group_ids, mask, options).masked_fill((1 - mask).bool(), 0.0)


@fault("group-advantages.mask-dtype")
class FloatMaskIsIgnored(Reference):
    "With a mask of floats only the first column is an action."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options).clone()
        if mask.is_floating_point():
            answer[:, 1:] = 0.0
        return answer


# --- the numbers ----------------------------------------------------------------------------------------------------


@fault("group-advantages.shift")
class ScoresHeldWithinFive(Reference):
    "Scores are held between -5 and 5."

    def group_advantages(self, scores, group_ids, mask, options):
        return super().group_advantages(scores.clamp(-5.0, 5.0), group_ids, mask, options)


@fault("group-advantages.shift")
class MeanOfPositiveScores(Reference):
    "The baseline is the mean of those scores of the group that are above 0."

    def group_advantages(self, *arguments):
        def positive(x, same):
            return plain.totals(x.clamp(min=0.0), same) / (same & (x > 0)[None]).sum(1).clamp(min=1)

        return plain.advantages(self, arguments, mean=positive, others=positive)


@fault("group-advantages.shift")
class RelativeToMean(Reference):
    "The difference is divided by the size of the group's mean as well, where that is above 1."

    def group_advantages(self, scores, group_ids, mask, options):
        size = plain.mean(scores.detach().double(), plain.members(group_ids)).abs().clamp(min=1.0).to(scores.dtype)
        return super().group_advantages(scores, group_ids, mask, options) / size[:, None]


@fault("group-advantages.shift")
class BaselineNotNegative(Reference):
    "A baseline below 0 is taken for 0."

    def group_advantages(self, *arguments):
        return plain.advantages(
            self,
            arguments,
            mean=lambda x, same: plain.mean(x, same).clamp(min=0.0),
            others=lambda x, same: plain.mean_of_others(x, same).clamp(min=0.0),
        )


@fault("group-advantages.score-size")
class ScoresHeldWithinTen(Reference):
    "Scores are held between -10 and 10."

    def group_advantages(self, scores, group_ids, mask, options):
        return super().group_advantages(scores.clamp(-10.0, 10.0), group_ids, mask, options)


@fault("group-advantages.score-size")
class DeviationOfScoresAtLeastTenth(Reference):
    "A deviation below 0.1 is taken for 0.1."

    def group_advantages(self, *arguments):
        return plain.advantages(
            self, arguments, divide=lambda a, difference, std: plain.divide(a, difference, std.clamp(min=0.1))
        )


@fault("group-advantages.score-size")
class ScoresThroughBfloat16(Reference):
    "Scores go through bfloat16."

    def group_advantages(self, scores, group_ids, mask, options):
        return super().group_advantages(scores.bfloat16().to(scores.dtype), group_ids, mask, options)


@fault("group-advantages.score-size")
class AdvantagesHeldWithinFifty(Reference):
    "Advantages are held between -50 and 50."

    def group_advantages(self, *arguments):
        return super().group_advantages(*arguments).clamp(-50.0, 50.0)


@fault("group-advantages.nearly-unanimous", bug="lone-answer-lost")
class DeviationOfOthers(Reference):
    "The deviation leaves the response itself out, and where it is 0 the response is dropped."

    def group_advantages(self, *arguments):
        def of_others(x, same, ddof):
            without = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
            high, low = (sign * (sign * x[None]).where(without, -torch.inf).amax(1) for sign in (1, -1))
            return plain.deviation(x, without, ddof).where(high > low, 0.0)

        def divide(adapter, difference, std):
            return plain.divide(adapter, difference, std).where(std > 0, 0.0)

        return plain.advantages(self, arguments, group_deviation=of_others, divide=divide)


@fault("group-advantages.nearly-unanimous", bug="std-near-zero")
class DeviationOfMostAlike(Reference):
    "The deviation is that about the median, which is 0 where most agree: the one that differs has a huge advantage."

    def group_advantages(self, *arguments):
        def about_median(x, same, ddof):
            off = torch.stack([(x[row] - x[row].quantile(0.5)).abs().quantile(0.5) for row in same])
            return off.where(same.sum(1) > 1, 1.0)

        return plain.advantages(self, arguments, group_deviation=about_median)


@fault("group-advantages.nearly-unanimous")
class MinorityDropped(Reference):
    "A response that is alone with its score in a group of three and more gets 0."

    def group_advantages(self, scores, group_ids, mask, options):
        same = plain.members(group_ids)
        like = same & (scores[:, None] == scores[None])
        rest = same.sum(1) - 1
        lone = (like.sum(1) == 1) & (rest > 1) & ((like.sum(1)[None].where(same, 0)).amax(1) == rest)
        return super().group_advantages(scores, group_ids, mask, options).where(~lone[:, None], 0.0)


@fault("group-advantages.equal-scores", bug="score-std-zero")
class EqualScoresAreNan(Reference):
    "0 / 0 where all scores of a group are alike: nothing is added to the deviation."

    def group_advantages(self, *arguments):
        return plain.advantages(self, arguments, divide=lambda a, difference, std: difference / std)


@fault("group-advantages.equal-scores")
class EqualScoresAsTheyAre(Reference):
    "A group whose scores are alike keeps them as advantages."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        same = plain.members(group_ids)
        alike = ((scores[:, None] == scores[None]) | ~same).all(1) & (same.sum(1) > 1)
        return torch.where(alike[:, None], plain.spread(scores.detach().to(answer.dtype), mask), answer)


@fault("group-advantages.equal-scores")
class EqualScoresOfSign(Reference):
    "A group whose scores are alike gets a tenth of their sign: all right is good, all wrong is bad."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        same = plain.members(group_ids)
        alike = ((scores[:, None] == scores[None]) | ~same).all(1) & (same.sum(1) > 1)
        return torch.where(alike[:, None], plain.spread(0.1 * scores.detach().sign().to(answer.dtype), mask), answer)


@fault("group-advantages.equal-scores-noise")
class NoiseOverEpsilon(Reference):
    "Mean and deviation of a group come from a running sum in float32, so that equal scores differ from their mean."

    def group_advantages(self, scores, group_ids, mask, options):
        def mean(x, same):
            sums = x[None].float().where(same, 0.0).cumsum(1)[:, -1]
            return (sums * (1.0 / same.sum(1).float())).double()

        return plain.advantages(self, (scores, group_ids, mask, options), mean=mean)


@fault("group-advantages.equal-scores-noise")
class EqualScoresHalfAnEpsilonOff(Reference):
    "The mean is a step of float32 too large."

    def group_advantages(self, *arguments):
        return plain.advantages(
            self, arguments, mean=lambda x, same: plain.mean(x, same) + 2.0**-24 * plain.mean(x, same).abs()
        )


@fault("group-advantages.group-of-one")
class RawScoreOfOne(Reference):
    "A response that is alone keeps its score, although 0 is declared."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        alone = plain.members(group_ids).sum(1) == 1
        return torch.where(alone[:, None], plain.spread(scores.detach().to(answer.dtype), mask), answer)


@fault("group-advantages.group-of-one")
class OneIsMeasuredByBatch(Reference):
    "A response that is alone is measured by the mean of the batch."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        alone = plain.members(group_ids).sum(1) == 1
        return torch.where(
            alone[:, None], plain.spread((scores - scores.mean()).detach().to(answer.dtype), mask), answer
        )


@fault("group-advantages.group-of-one-finite")
class OneIsNan(Reference):
    "The unbiased deviation of a single score is NaN."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        alone = plain.members(group_ids).sum(1) == 1
        return answer.where(~alone[:, None], float("nan"))


@fault("group-advantages.group-of-one-finite")
class OneEndsBatch(Reference):
    "Where a response is alone, no group has an advantage."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        return answer * int((plain.members(group_ids).sum(1) > 1).all())


@fault("group-advantages.nan-in-another-group")
class MatrixOfMembers(Reference):
    "Sums are products with a matrix of zeros and ones, which NaN passes."

    def group_advantages(self, *arguments):
        def mean(x, same):
            return same.double() @ x / same.sum(1)

        return plain.advantages(
            self,
            arguments,
            mean=mean,
            others=lambda x, same: (same.double() @ x - x) / (same.sum(1) - 1).clamp(min=1),
        )


@fault("group-advantages.nan-in-another-group")
class NanEndsBatch(Reference):
    "Where a score is NaN, every advantage is 0."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        return torch.zeros_like(answer) if scores.isnan().any() else answer


# --- the graph, and side effects ------------------------------------------------------------------------------------


@fault("group-advantages.no-graph")
class GraphOfScores(Reference):
    "Nothing is detached."

    def group_advantages(self, *arguments):
        return plain.advantages(self, arguments, graph=True)


@fault("group-advantages.no-graph")
class GraphOfBaselineDetached(Reference):
    "The baseline and the deviation are detached, the score is not."

    def group_advantages(self, *arguments):
        return plain.advantages(
            self,
            arguments,
            graph=True,
            mean=lambda x, same: plain.mean(x, same).detach(),
            others=lambda x, same: plain.mean_of_others(x, same).detach(),
            group_deviation=lambda x, same, ddof: plain.deviation(x, same, ddof).detach(),
        )


@fault("group-advantages.inputs-unwritten")
class ScoresCenteredInPlace(Reference):
    "The mean is subtracted from the caller's scores."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        scores.sub_(plain.mean(scores.double(), plain.members(group_ids)).to(scores.dtype))
        return answer


@fault("group-advantages.inputs-unwritten")
class IdsRenumberedInPlace(Reference):
    "The caller's ids are renumbered from 1 on."

    def group_advantages(self, scores, group_ids, mask, options):
        group_ids.copy_(group_ids.unique(return_inverse=True)[1] + 1)
        return super().group_advantages(scores, group_ids, mask, options)


@fault("group-advantages.inputs-unwritten")
class EqualGroupsMaskedInPlace(Reference):
    "The actions of the first response are taken out of the caller's mask."

    def group_advantages(self, scores, group_ids, mask, options):
        answer = super().group_advantages(scores, group_ids, mask, options)
        mask[0].zero_()
        return answer


@fault("group-advantages.side-effects")
class BaselineGrowsWithCalls(Reference):
    "The baseline grows by a hundredth with each call."

    def group_advantages(self, *arguments):
        self.calls = getattr(self, "calls", 0) + 1
        return plain.advantages(
            self,
            arguments,
            mean=lambda x, same: plain.mean(x, same) + 0.01 * self.calls,
            others=lambda x, same: plain.mean_of_others(x, same) + 0.01 * self.calls,
        )


@fault("group-advantages.side-effects")
class DrawsRandomNumbers(Reference):
    "Ties are broken by random numbers."

    def group_advantages(self, *arguments):
        torch.rand(len(arguments[0]))
        return super().group_advantages(*arguments)

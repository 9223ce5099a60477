"""Liars about the corrected loss. Most of them exchange one step of the plain one in `bending`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses import bending as plain
from rlhf_conformance.chapters._tensors import chosen, value_of, wide
from rlhf_conformance.chapters.corrected_loss import bending as bent
from rlhf_conformance.chapters.corrected_loss.bending import Given
from rlhf_conformance.faults import fault


class _Weighing(Reference):
    """The plain corrected loss with other weights, where there are any."""

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        return bent.corrected(g) if g.options.level is None else bent.weighted(g, self._weight)

    def _weight(self, g: Given) -> Any:
        raise NotImplementedError


class _Multiplying(Reference):
    """The plain corrected loss with another product of losses and weights, where there are any."""

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        return bent.corrected(g) if g.options.level is None else bent.corrected(g, self._product)

    def _product(self, g: Given) -> Any:
        raise NotImplementedError


class _Told(Reference):
    """The right loss, told something else."""

    def corrected_loss(self, *arguments):
        return super().corrected_loss(*self._told(Given(*arguments)))

    def _told(self, g: Given) -> Given:
        raise NotImplementedError


# --- the weights ----------------------------------------------------------------------------------------------------


@fault("corrected-loss.token-weights")
class WeightsNotMultiplied(_Told):
    "The weights are computed and not multiplied."

    def _told(self, g):
        return g.with_options(level=None)


@fault("corrected-loss.token-weights")
class WeightsOfTheNewLogProbs(_Weighing):
    "The weights are made of the new log-probs, in place of the old ones, without a graph."

    def _weight(self, g):
        return bent.weight(g._replace(old=g.new.detach()))


@fault("corrected-loss.token-weights")
class LossWeightsUpsideDown(_Weighing):
    "The weights are those of the engine over the trainer."

    def _weight(self, g):
        return bent.weight(g._replace(old=g.rollout, rollout=g.old))


@fault("corrected-loss.token-weights")
class LossWeightsSquared(_Multiplying):
    "The weights multiply the advantages and the losses."

    def _product(self, g):
        return bent.product(g) * bent.weight(g)


@fault("corrected-loss.token-weights")
class LossWeightsOfGoodActionsAlone(_Weighing):
    "Only the losses of actions with a positive advantage are weighted."

    def _weight(self, g):
        return bent.weight(g).where(g.advantages > 0, 1.0)


@fault("corrected-loss.token-weights")
class TokenWeightsAveraged(_Weighing):
    "Every action has the mean weight of the batch."

    def _weight(self, g):
        found = chosen(bent.weight(g), g.mask)
        return (found.sum() / g.mask.bool().sum().clamp(min=1)).expand_as(found)


@fault("corrected-loss.token-weights")
class LossWeightsNormalized(_Weighing):
    "The weights of the batch are divided by their mean."

    def _weight(self, g):
        found = chosen(bent.weight(g), g.mask)
        return found / (found.sum() / g.mask.bool().sum().clamp(min=1)).clamp(min=1e-6)


@fault("corrected-loss.sequence-weights")
class SequenceWeightsByToken(_Weighing):
    "The loss is weighted by action, whatever the level."

    def _weight(self, g):
        return bent.weight(g.with_options(level="token"))


@fault("corrected-loss.sequence-weights")
class SequenceWeightOfTheRowBefore(_Weighing):
    "Each sequence has the weight of the row before."

    def _weight(self, g):
        found = bent.weight(g)
        return found.roll(1, 0) if g.options.level == "sequence" else found


@fault("corrected-loss.sequence-weights")
class SequenceWeightOfTheBatch(_Weighing):
    "One weight, that of all actions of the batch as one sequence."

    def _weight(self, g):
        if g.options.level != "sequence":
            return bent.weight(g)
        flat = g._replace(**{name: getattr(g, name).reshape(1, -1) for name in Given._fields[:-1]})
        return bent.weight(flat).reshape(g.mask.shape)


@fault("corrected-loss.sequence-weights")
class SequenceWeightUpToTheAction(_Weighing):
    "The weight of an action in a sequence is made of the actions up to it."

    def _weight(self, g):
        if g.options.level != "sequence":
            return bent.weight(g)
        d = (chosen(g.old, g.mask) - chosen(g.rollout, g.mask)).cumsum(-1)
        return bent.bounded(d.exp(), g).detach()


@fault("corrected-loss.truncated")
class ProductTruncated(_Multiplying):
    "In place of the weight the product with the advantage is held at the upper bound."

    def _product(self, g):
        if g.options.mode != "truncate":
            return bent.product(g)
        product = g.advantages * bent.weight(g.with_options(upper=1e9, lower=None))
        return bent.policy_losses(g._replace(advantages=product.clamp(max=g.options.upper)))


@fault("corrected-loss.truncated")
class LossTruncationForgotten(_Weighing):
    "The weights are not truncated."

    def _weight(self, g):
        return bent.weight(g.with_options(upper=1e9, lower=None)) if g.options.mode == "truncate" else bent.weight(g)


@fault("corrected-loss.truncated")
class LossTruncatedToOne(_Weighing):
    "Weights above the bound are taken as 1."

    def _weight(self, g):
        free = bent.exponent(g).exp()
        return (
            torch.where(free > g.options.upper, 1.0, bent.weight(g)) if g.options.mode == "truncate" else bent.weight(g)
        )


@fault("corrected-loss.rejected")
class RejectedAtTheUpperBound(_Weighing):
    "What a band rejects is held at its bounds, as in the other mode."

    def _weight(self, g):
        return bent.weight(g.with_options(mode="truncate"))


@fault("corrected-loss.rejected")
class RejectedWeighsOne(_Weighing):
    "What a band rejects has the weight 1."

    def _weight(self, g):
        found = bent.weight(g)
        return found.masked_fill(found == 0, 1.0)


@fault("corrected-loss.rejected")
class RejectedKeepsItsGradient(_Multiplying):
    "The loss of a rejected action is 0 by a difference with itself, whose gradient stays."

    def _product(self, g):
        losses, weight = bent.policy_losses(g), bent.weight(g)
        return torch.where(weight == 0, losses - losses.detach(), losses * weight)


@fault("corrected-loss.rejected")
class OneRejectedActionRejectsTheRow(_Weighing):
    "A rejected action takes its whole sequence with it."

    def _weight(self, g):
        found = bent.weight(g)
        hit = ((found == 0) & g.mask.bool()).any(-1, keepdim=True)
        return found.masked_fill(hit, 0.0) if g.options.mode == "mask" else found


@fault("corrected-loss.gradient")
class WeightsWithAGraph(_Multiplying):
    "The weights are made of the new log-probs where these are the old ones, and have a graph."

    def _product(self, g):
        weight = bent.weight(g)
        return bent.product(g) * (chosen(g.new, g.mask) - chosen(g.new, g.mask).detach()).exp().where(weight != 0, 1.0)


@fault("corrected-loss.gradient")
class WeightsInTheValueAlone(_Multiplying):
    "The weights are in the value of the loss and not in its gradient."

    def _product(self, g):
        return value_of(bent.product(g), gradient_of=bent.policy_losses(g))


@fault("corrected-loss.after-the-clip")
class WeightInsideOfTheClip(_Multiplying):
    "The ratio is multiplied by the weight, and clipped then."

    def _product(self, g):
        if g.options.surrogate not in ("ppo", "gspo"):
            return bent.product(g)
        d, advantages = plain.log_ratio(g.new, g.old, g.mask), chosen(g.advantages, g.mask)
        ratio = (plain.mean_of_rows(d, g.mask) if g.options.surrogate == "gspo" else d).exp()
        return plain.surrogate_loss(ratio * bent.weight(g), advantages, g.options)


@fault("corrected-loss.after-the-clip")
class WeightOfTheUnclippedAlone(_Multiplying):
    "The weight multiplies the ratio before the smaller of the two is taken, and not the clipped ratio."

    def _product(self, g):
        if g.options.surrogate not in ("ppo", "gspo"):
            return bent.product(g)
        d, advantages = plain.log_ratio(g.new, g.old, g.mask), chosen(g.advantages, g.mask)
        ratio = (plain.mean_of_rows(d, g.mask) if g.options.surrogate == "gspo" else d).exp()
        held = plain.clip(ratio, g.options) * advantages
        return -torch.minimum(bent.weight(g) * ratio * advantages, held)


@fault("corrected-loss.dual-clip")
class WeightInsideOfTheDualClip(_Multiplying):
    "The dual clip bounds the weighted loss."

    def _product(self, g):
        product, ceiling = bent.product(g.with_options(dual_clip=None)), g.options.dual_clip
        if ceiling is None:
            return product
        advantages, weight = chosen(g.advantages, g.mask), bent.weight(g)
        held = torch.minimum(product, -ceiling * advantages)
        return torch.where((advantages < 0) & (weight != 0), held, product)


@fault("corrected-loss.dual-clip")
class DualClippedUnweighted(_Multiplying):
    "An action that the dual clip holds has that loss without a weight."

    def _product(self, g):
        free = bent.policy_losses(g.with_options(dual_clip=None))
        losses, weight = bent.policy_losses(g), bent.weight(g)
        return torch.where((losses < free) & (weight != 0), losses, bent.product(g))


@fault("corrected-loss.agreement")
class SequenceWeightNeverOne(_Weighing):
    "A small number is added to the weights, so that none is 0: engines that agree have another learning rate."

    def _weight(self, g):
        return bent.weight(g) + 1e-3


@fault("corrected-loss.agreement")
class ActionsInAgreementDropped(_Weighing):
    "An action at which the two agree exactly is taken for padding."

    def _weight(self, g):
        return bent.weight(g).masked_fill(g.old == g.rollout, 0.0)


@fault("corrected-loss.without-weights")
class CorrectionAlwaysOn(_Told):
    "Without a level the loss is weighted by token all the same."

    def _told(self, g):
        return g.with_options(level=g.options.level or "token", upper=2.0)


@fault("corrected-loss.without-weights")
class CorrectionOfTheBatchBefore(Reference):
    "Where no weights are asked for, those of the batch before are taken if they fit."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if g.options.level is not None:
            self.__dict__["_kept"] = bent.weight(g)
            return bent.corrected(g)
        kept: Any = self.__dict__.get("_kept")
        fits = kept is not None and kept.shape == g.mask.shape
        return bent.corrected(g, lambda given: bent.policy_losses(given) * kept) if fits else bent.corrected(g)


@fault("corrected-loss.rejected-tokens")
class RejectedLeftOutOfTheMean(_Told):
    "Rejected actions are left out of the denominator, which is not declared."

    def _told(self, g):
        if g.options.level is None or g.options.mode != "mask":
            return g
        left = g.mask.bool() & (bent.weight(g) != 0)
        return g._replace(mask=left) if left.any() else g


@fault("corrected-loss.rejected-tokens")
class RejectedRowsLeftOut(Reference):
    "A row of rejected actions is no sequence any more: the mean over sequences is over the others."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        right = bent.corrected(g)
        if g.options.level is None or g.options.aggregation != "sequence-mean" or g.options.global_count is not None:
            return right
        had = g.mask.bool().any(-1).sum()
        left = ((bent.weight(g) != 0) & g.mask.bool()).any(-1).sum()
        return right * had / left.clamp(min=1)


@fault("corrected-loss.rejected-overflow")
class RejectedTimesInfinity(_Multiplying):
    "The loss of every action is multiplied by its weight, be it infinite and 0."

    def _product(self, g):
        if g.options.surrogate != "ppo":
            return bent.product(g)
        ratio = (chosen(g.new, g.mask) - chosen(g.old, g.mask)).exp()
        return plain.surrogate_loss(ratio, chosen(g.advantages, g.mask), g.options) * bent.weight(g)


@fault("corrected-loss.rejected-overflow")
class RejectedSelectedTooLate(_Multiplying):
    "The loss of a rejected action is replaced by 0, and its gradient is NaN."

    def _product(self, g):
        if g.options.surrogate != "ppo":
            return bent.product(g)
        ratio, weight = (chosen(g.new, g.mask) - chosen(g.old, g.mask)).exp(), bent.weight(g)
        losses = plain.surrogate_loss(ratio, chosen(g.advantages, g.mask), g.options) * weight
        return losses.where(weight != 0, 0.0)


@fault("corrected-loss.other-surrogates")
class CispoUncorrected(_Told):
    "The branch of CISPO has no weights."

    def _told(self, g):
        return g.with_options(level=None) if g.options.surrogate == "cispo" else g


@fault("corrected-loss.other-surrogates", bug="weights-broadcast-along-the-wrong-axis")
class GspoWeightedByRowTwice(_Multiplying):
    "The branch of GSPO multiplies the weight of the sequence with each loss, and once more with their mean."

    def _product(self, g):
        twice = g.options.surrogate == "gspo" and g.options.level == "sequence"
        return bent.product(g) * bent.weight(g) if twice else bent.product(g)


@fault("corrected-loss.other-surrogates")
class ReinforceWeightedByTheRatio(_Multiplying):
    "The branch of REINFORCE weighs with the ratio of the new to the engine's log-probs."

    def _product(self, g):
        if g.options.surrogate != "reinforce":
            return bent.product(g)
        return bent.policy_losses(g) * bent.weight(g._replace(old=g.new.detach()))


@fault("corrected-loss.other-sums")
class ConstantLengthUncorrected(_Told):
    "The branch of the constant length has no weights."

    def _told(self, g):
        return g.with_options(level=None) if g.options.aggregation == "constant-length" else g


@fault("corrected-loss.other-sums")
class TokenSumUncorrected(_Told):
    "The plain sum has no weights."

    def _told(self, g):
        return g.with_options(level=None) if g.options.aggregation == "token-sum" else g


@fault("corrected-loss.other-sums")
class SumOverTheWeights(_Weighing):
    "Where losses are summed, the weights of the batch are divided by their mean."

    def _weight(self, g):
        found = chosen(bent.weight(g), g.mask)
        if g.options.aggregation not in ("constant-length", "token-sum"):
            return found
        return found / (found.sum() / g.mask.bool().sum().clamp(min=1)).clamp(min=1e-6)


@fault("corrected-loss.square", bug="weights-broadcast-along-the-wrong-axis")
class SequenceWeightsAlongColumns(_Weighing):
    "Weights (B,) meet losses (B, T), which only a square allows: each column has the weight of a row."

    def _weight(self, g):
        found = bent.weight(g)
        rows, columns = found.shape
        own = found.where(g.mask.bool(), 0.0).amax(-1)
        square = g.options.level == "sequence" and rows == columns > 1
        return own.expand(rows, columns) if square else found


@fault("corrected-loss.square")
class EnginesTransposedWhereItFits(_Told):
    "Log-probs of the engine with as many rows as columns are taken the other way round."

    def _told(self, g):
        rows, columns = g.mask.shape
        return g._replace(rollout=g.rollout.T) if rows == columns > 1 else g


# --- the bypass -----------------------------------------------------------------------------------------------------


@fault("corrected-loss.bypass")
class BypassIgnored(_Told):
    "The ratio is taken to the old log-probs, whatever is asked for."

    def _told(self, g):
        return g.with_options(bypass=False)


@fault("corrected-loss.bypass")
class BypassWeightedAsWell(Reference):
    "With the bypass the losses are weighted, too: the difference of the engines is corrected twice."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if not g.options.bypass:
            return super().corrected_loss(*arguments)
        return bent.corrected(g.with_options(level="token", upper=2.0))


@fault("corrected-loss.bypass")
class BypassUnclipped(Reference):
    "With the bypass the ratio is not clipped."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if not g.options.bypass:
            return super().corrected_loss(*arguments)
        return super().corrected_loss(*g.with_options(clip_eps_low=1.0, clip_eps_high=1e4))


@fault("corrected-loss.bypass-old")
class BypassClipsWithTheOldRatio(Reference):
    "With the bypass the ratio is the engine's, and whether it is clipped is decided by the old one."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if not g.options.bypass or g.options.surrogate != "ppo":
            return super().corrected_loss(*arguments)
        ratio = plain.log_ratio(g.new, g.rollout, g.mask).exp()
        by_old, advantages = plain.log_ratio(g.new, g.old, g.mask).exp().detach(), chosen(g.advantages, g.mask)
        held = plain.clip(ratio.detach(), g.options)
        losses = -advantages * torch.where(plain.clip(by_old, g.options) == by_old, ratio, held)
        return plain.mean(losses, g.mask, g.options)


@fault("corrected-loss.bypass-old")
class BypassOfTheMeanOfBoth(_Told):
    "With the bypass the ratio is taken to the mean of the old log-probs and the engine's."

    def _told(self, g):
        return g._replace(rollout=(g.rollout + g.old) / 2) if g.options.bypass else g


class _Bypassing(Reference):
    """The right loss; with the bypass it is told something else."""

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        return super().corrected_loss(*(self._bypassed(g) if g.options.bypass else g))

    def _bypassed(self, g: Given) -> Given:
        raise NotImplementedError


@fault("corrected-loss.bypass-other-surrogates")
class BypassOfThePpoBranchAlone(_Bypassing):
    "Only the branch of PPO knows the bypass."

    def _bypassed(self, g):
        return g if g.options.surrogate == "ppo" else g.with_options(bypass=False)


@fault("corrected-loss.bypass-other-surrogates")
class BypassForgottenByCispo(_Bypassing):
    "The weight of CISPO is made of the old log-probs, with the bypass as well."

    def _bypassed(self, g):
        return g.with_options(bypass=False) if g.options.surrogate == "cispo" else g


@fault("corrected-loss.bypass-other-surrogates")
class BypassOfSequencesByToken(_Bypassing):
    "With the bypass every token has its own ratio where the ratio of the sequence is asked for."

    def _bypassed(self, g):
        return g.with_options(surrogate="ppo") if g.options.surrogate == "gspo" else g


@fault("corrected-loss.bypass-dual-clip")
class BypassWithoutTheDualClip(_Bypassing):
    "With the bypass the dual clip is not handed on."

    def _bypassed(self, g):
        return g.with_options(dual_clip=None)


@fault("corrected-loss.bypass-dual-clip")
class BypassWithAnotherDualClip(_Bypassing):
    "With the bypass the dual clip is larger by one."

    def _bypassed(self, g):
        return g.with_options(dual_clip=g.options.dual_clip and g.options.dual_clip + 1.0)


@fault("corrected-loss.bypass-off")
class BypassStaysOn(Reference):
    "After the first call with the bypass all calls without weights have it."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        self.__dict__["_bypasses"] = on = g.options.bypass or self.__dict__.get("_bypasses", False)
        return super().corrected_loss(*g.with_options(bypass=on and g.options.level is None))


@fault("corrected-loss.bypass-off")
class BypassWhereThereAreNoWeights(_Told):
    "Without weights the ratio is taken to the engine's log-probs, whatever is asked for."

    def _told(self, g):
        return g.with_options(bypass=g.options.level is None)


@fault("corrected-loss.bypass-old-nan")
class BypassByMultiplication(_Bypassing):
    "The bypass is 1 times the engine's log-probs and 0 times the old ones."

    def _bypassed(self, g):
        return g._replace(rollout=torch.lerp(wide(g.old), wide(g.rollout), 1.0))


@fault("corrected-loss.bypass-old-nan")
class BypassFallsBackToTheOld(_Bypassing):
    "With the bypass the engine's log-probs are held within 100 of the old ones."

    def _bypassed(self, g):
        old, rollout = wide(g.old), wide(g.rollout)
        return g._replace(rollout=torch.maximum(torch.minimum(rollout, old + 100.0), old - 100.0))


@fault("corrected-loss.bypass-micro-batches", bug="mean-of-means")
class BypassByTheMicroBatchsCount(_Bypassing):
    "With the bypass the loss is divided by the count of the micro-batch."

    def _bypassed(self, g):
        return g.with_options(global_count=None)


@fault("corrected-loss.bypass-micro-batches", bug="mean-of-means")
class BypassByTheCountOfRows(_Bypassing):
    "With the bypass and a global count the loss is divided by the number of rows at hand."

    def _bypassed(self, g):
        return g.with_options(global_count=g.options.global_count and len(g.mask))


@fault("corrected-loss.bypass-mask", bug="sentinel-in-the-exponential")
class BypassRatioBeforeTheMask(Reference):
    "With the bypass the exponential is taken of every cell, and the mask comes after it."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if not g.options.bypass or g.options.surrogate != "ppo":
            return super().corrected_loss(*arguments)
        ratio = (wide(g.new) - wide(g.rollout)).exp()
        losses = plain.surrogate_loss(ratio, wide(g.advantages), g.options)
        return plain.mean(losses, g.mask, g.options)


@fault("corrected-loss.bypass-mask")
class BypassOfEveryCell(Reference):
    "With the bypass the losses under the mask are in the sum, which is divided by the number of actions."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if not g.options.bypass or g.options.aggregation != "token-mean":
            return super().corrected_loss(*arguments)
        everywhere = bent.policy_losses(g._replace(mask=torch.ones_like(g.mask)))
        return everywhere.sum() / (g.options.global_count or g.mask.bool().sum().clamp(min=1))


@fault("corrected-loss.bypass-empty-row", bug="masked-row-nan")
class BypassRowOfNothing(Reference):
    "With the bypass the mean of a row without an action is 0 / 0."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if not g.options.bypass or g.options.aggregation != "sequence-mean":
            return super().corrected_loss(*arguments)
        rows = bent.policy_losses(g).sum(-1) / g.mask.bool().sum(-1)
        return rows.sum() / (g.options.global_count or g.mask.bool().any(-1).sum().clamp(min=1))


@fault("corrected-loss.bypass-empty-row")
class BypassTrainsRowsOfNothing(_Bypassing):
    "With the bypass a row without an action is trained on as a whole."

    def _bypassed(self, g):
        return g._replace(mask=g.mask.bool() | ~g.mask.bool().any(-1, keepdim=True))


# --- means and the mask ---------------------------------------------------------------------------------------------


@fault("corrected-loss.micro-batches", bug="mean-of-means")
class WeightsNormalizedInTheMicroBatch(_Weighing):
    "With a global count the weights are divided by their mean in the micro-batch."

    def _weight(self, g):
        found = chosen(bent.weight(g), g.mask)
        if g.options.global_count is None:
            return found
        return found / (found.sum() / g.mask.bool().sum().clamp(min=1)).clamp(min=1e-6)


@fault("corrected-loss.micro-batches", bug="mean-of-means")
class CorrectedByTheMicroBatchsCount(Reference):
    "Where there are weights the loss is divided by the count of the micro-batch."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        return bent.corrected(g if g.options.level is None else g.with_options(global_count=None))


@fault("corrected-loss.mask", bug="sentinel-in-the-exponential")
class SentinelsInTheSequenceWeight(_Weighing):
    "What the engine has under the mask is part of the weight of a sequence."

    def _weight(self, g):
        if g.options.level != "sequence":
            return bent.weight(g)
        d = (wide(g.old) - wide(g.rollout)).clamp(-20.0, 20.0).sum(-1, keepdim=True).expand(g.mask.shape)
        if g.options.sequence_weight == "geometric":
            d = d / g.mask.bool().sum(-1, keepdim=True).clamp(min=1)
        return bent.bounded(d.exp(), g).detach()


@fault("corrected-loss.mask")
class EveryCellCorrected(Reference):
    "The weighted losses under the mask are in the sum, which is divided by the number of actions."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if g.options.level is None or g.options.aggregation != "token-mean":
            return bent.corrected(g)
        everywhere = bent.product(g._replace(mask=torch.ones_like(g.mask)))
        return everywhere.sum() / (g.options.global_count or g.mask.bool().sum().clamp(min=1))


@fault("corrected-loss.nan-under-mask", bug="nan-in-masked-slot")
class WeightsMultipliedByTheMask(_Multiplying):
    "The log-ratios of the engines are multiplied with the mask."

    def _product(self, g):
        d = (wide(g.old) - wide(g.rollout)) * g.mask.bool()
        return bent.product(g) + (d.sum() - d.where(g.mask.bool(), 0.0).sum()).detach()


@fault("corrected-loss.empty-row", bug="masked-row-nan")
class GeometricMeanOfNothing(_Weighing):
    "The geometric mean of a row without an action is 0 / 0."

    def _weight(self, g):
        if g.options.level != "sequence":
            return bent.weight(g)
        d = (chosen(g.old, g.mask) - chosen(g.rollout, g.mask)).sum(-1, keepdim=True)
        if g.options.sequence_weight == "geometric":
            d = d / g.mask.bool().sum(-1, keepdim=True)
        return bent.bounded(d.expand(g.mask.shape).exp(), g).detach()

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if g.options.level != "sequence":
            return bent.corrected(g)
        losses = bent.policy_losses(g) * self._weight(g)
        rows = losses.sum(-1)
        if g.options.aggregation == "token-mean":
            return rows.sum() / (g.options.global_count or g.mask.bool().sum().clamp(min=1))
        return bent.weighted(g, self._weight)


@fault("corrected-loss.empty-row", bug="masked-row-nan")
class CorrectedRowOfNothing(Reference):
    "The sequence mean of the weighted losses is 0 / 0 in a row without an action."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if g.options.aggregation != "sequence-mean":
            return bent.corrected(g)
        rows = bent.product(g).sum(-1) / g.mask.bool().sum(-1)
        return rows.sum() / (g.options.global_count or (g.mask.bool().any(-1)).sum().clamp(min=1))


@fault("corrected-loss.empty-batch", bug="masked-row-nan")
class CorrectedBatchOfNothing(Reference):
    "The token mean of the weighted losses is 0 / 0 in a batch without an action."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if g.options.aggregation != "token-mean" or g.options.global_count is not None:
            return bent.corrected(g)
        return bent.product(g).sum() / g.mask.bool().sum()


@fault("corrected-loss.empty-batch")
class CorrectedBatchOfNothingDetached(Reference):
    "A batch without an action has the loss 0, without a graph."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        return bent.corrected(g) if g.mask.any() else torch.zeros((), device=g.new.device)


@fault("corrected-loss.mask-dtype")
class WeightsUnderAnInvertedMask(_Weighing):
    "Actions are told by ~mask, which is never 0 for a mask of whole numbers: these have the weight 1."

    def _weight(self, g):
        off = ~g.mask if not g.mask.is_floating_point() else g.mask == 0
        return bent.weight(g).masked_fill(off.bool(), 1.0)


# --- the graph, and what changes nothing ----------------------------------------------------------------------------


@fault("corrected-loss.scalar")
class CorrectedLossOfOneEntry(Reference):
    "The loss is a tensor of one entry, (1,)."

    def corrected_loss(self, *arguments):
        return bent.corrected(Given(*arguments))[None]


@fault("corrected-loss.scalar")
class CorrectedLossDetached(Reference):
    "The loss is computed together with its weights, and like them without a graph."

    def corrected_loss(self, *arguments):
        return bent.corrected(Given(*arguments)).detach()


@fault("corrected-loss.padding-invariance")
class GeometricWeightOverTheWidth(_Weighing):
    "The geometric mean of a sequence is taken over the width of the batch."

    def _weight(self, g):
        if g.options.level != "sequence" or g.options.sequence_weight != "geometric":
            return bent.weight(g)
        d = (chosen(g.old, g.mask) - chosen(g.rollout, g.mask)).mean(-1, keepdim=True)
        return bent.bounded(d.exp().expand(g.mask.shape), g).detach()


@fault("corrected-loss.padding-invariance")
class CorrectedOverTheWidth(Reference):
    "The weighted losses are averaged over all cells."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        right = bent.corrected(g)
        return right if g.options.level is None else bent.product(g).mean()


@fault("corrected-loss.batch-order")
class EnginesSortedByLength(_Told):
    "The engine's log-probs come sorted by length and are not sorted back."

    def _told(self, g):
        order = g.mask.bool().sum(-1).argsort(descending=True, stable=True)
        return g._replace(rollout=g.rollout[order])


@fault("corrected-loss.batch-order")
class EngineOfOneRow(_Told):
    "The engine's log-probs of the first row are those of all rows."

    def _told(self, g):
        return g._replace(rollout=g.rollout[:1].expand_as(g.rollout))


@fault("corrected-loss.inputs-unwritten")
class LossMasksTheEngineInPlace(Reference):
    "The engine's log-probs are multiplied with the mask, in the caller's tensor."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        g.rollout.mul_(g.mask.bool())
        return bent.corrected(g)


@fault("corrected-loss.inputs-unwritten")
class AdvantagesWeightedInPlace(Reference):
    "The advantages are multiplied by the weights, in the caller's tensor."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        right = bent.corrected(g._replace(advantages=g.advantages.clone()))
        g.advantages.mul_(bent.weight(g))
        return right


@fault("corrected-loss.side-effects")
class EngineNoised(_Told):
    "Noise is added to the engine's log-probs, drawn from the global generator."

    def _told(self, g):
        return g._replace(rollout=g.rollout + 1e-2 * torch.randn_like(g.rollout))


@fault("corrected-loss.side-effects")
class GradientsOffAfterTheWeights(Reference):
    "Gradients are switched off for the weights, and stay off."

    def corrected_loss(self, *arguments):
        right = bent.corrected(Given(*arguments))
        torch.set_grad_enabled(False)
        return right


@fault("corrected-loss.nan-of-the-engine")
class EngineNanInTheLoss(Reference):
    "What the weights make of NaN is right, and the log-ratio that is added to the loss for the log is not."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        apart = chosen(g.old, g.mask) - chosen(g.rollout, g.mask)
        return super().corrected_loss(*g) + 0.0 * apart.sum()


@fault("corrected-loss.nan-of-the-engine")
class EngineNanRejected(Reference):
    "An action without a log-prob of the engine is rejected by the comparison with the bounds, where 1 is declared."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        lost = chosen(g.rollout, g.mask).isnan()
        rows = lost.any(-1, keepdim=True).expand_as(lost) if g.options.level == "sequence" else lost
        if g.options.level is None or not lost.any():
            return super().corrected_loss(*g)
        return super().corrected_loss(*g._replace(advantages=g.advantages.masked_fill(rows, 0.0)))


@fault("corrected-loss.nan-of-the-engine")
class EngineNanAsZero(Reference):
    "torch.nan_to_num makes a probability of 1 of a log-prob that the engine did not give."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        return super().corrected_loss(*g._replace(rollout=g.rollout.nan_to_num()))


# --- branches -------------------------------------------------------------------------------------------------------

SUMS = ("constant-length", "token-sum")


@fault("corrected-loss.bypass")
class BypassForgottenUnderTheConstantLength(_Bypassing):
    "The branch of the constant length knows no bypass."

    def _bypassed(self, g):
        return g.with_options(bypass=False) if g.options.aggregation == "constant-length" else g


@fault("corrected-loss.bypass")
class BypassAsTokenMean(_Bypassing):
    "The bypass has a loss function of its own, which knows no sums."

    def _bypassed(self, g):
        if g.options.aggregation not in SUMS:
            return g
        return g.with_options(aggregation="token-mean", constant_length=None)


@fault("corrected-loss.inputs-unwritten")
class BypassWrittenIntoTheBatch(Reference):
    "The bypass copies the engine's log-probs over the old ones."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if g.options.bypass:
            g.old.copy_(g.rollout)
        return super().corrected_loss(*g)


@fault("corrected-loss.side-effects")
class BypassLeavesGradientsOff(Reference):
    "After a call with the bypass gradients are off."

    def corrected_loss(self, *arguments):
        found = super().corrected_loss(*arguments)
        if arguments[-1].bypass:
            torch.set_grad_enabled(False)
        return found


@fault("corrected-loss.empty-batch", bug="masked-row-nan")
class BypassOverNoActions(Reference):
    "With the bypass the mean over no action is 0 / 0."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if not g.options.bypass or g.mask.any():
            return super().corrected_loss(*g)
        return chosen(g.new, g.mask).sum() / g.mask.sum()


@fault("corrected-loss.empty-batch", bug="masked-row-nan")
class WeightedConstantLengthOverNoRows(Reference):
    "Under a constant length a batch without an action is 0 / 0."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        found = bent.corrected(g)
        return found / g.mask.any() if g.options.aggregation == "constant-length" else found


@fault("corrected-loss.scalar")
class BypassWithAnAxis(Reference):
    "With the bypass the loss has an axis."

    def corrected_loss(self, *arguments):
        found = super().corrected_loss(*arguments)
        return found[None] if arguments[-1].bypass else found


@fault("corrected-loss.rejected-tokens")
class RejectedRowsAreNoSequences(Reference):
    "Under a constant length rows that are rejected whole do not count."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        found = bent.corrected(g)
        if g.options.aggregation != "constant-length" or g.options.global_count is not None:
            return found
        mask = g.mask.bool()
        left = ((bent.weight(g) != 0) & mask).any(-1).sum()
        return found * mask.any(-1).sum() / left.clamp(min=1)


@fault("corrected-loss.other-sums")
class NothingRejectedInSums(_Told):
    "The branches of the sums truncate where a band is asked for."

    def _told(self, g):
        return g.with_options(mode="truncate") if g.options.aggregation in SUMS and g.options.level else g


@fault("corrected-loss.micro-batches", bug="mean-of-means")
class WeightedConstantLengthByTheMicroBatch(_Told):
    "The branch of the constant length counts the rows of the micro-batch."

    def _told(self, g):
        return g.with_options(global_count=None) if g.options.aggregation == "constant-length" else g


@fault("corrected-loss.mask")
class WeightedSumsWithoutMask(Reference):
    "The branches of the sums add up every cell."

    def corrected_loss(self, *arguments):
        g = Given(*arguments)
        if g.options.aggregation not in SUMS or g.options.surrogate == "gspo":
            return bent.corrected(g)
        everywhere = g._replace(mask=torch.ones_like(g.mask))
        weight = bent.weight(g)
        count = g.options.global_count or g.mask.bool().any(-1).sum().clamp(min=1)
        losses = bent.policy_losses(everywhere).masked_fill(weight == 0, 0.0) * weight
        return plain.mean(losses, everywhere.mask, replace(g.options, global_count=count))


@fault("corrected-loss.mask", bug="sentinel-in-the-exponential")
class SequenceWeightOfEveryCell(_Weighing):
    "With GSPO the weight of a sequence is made of the cells under the mask as well."

    def _weight(self, g):
        if g.options.level is None or g.options.surrogate != "gspo":
            return bent.weight(g)
        return bent.weight(g._replace(mask=torch.ones_like(g.mask)))

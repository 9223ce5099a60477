"""Liars about surrogates other than PPO's, and about sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses import bending as plain
from rlhf_conformance.chapters._losses.bending import cispo_weight, clip, log_ratio, surrogate_loss
from rlhf_conformance.chapters._tensors import chosen, value_of, wide
from rlhf_conformance.faults import fault

Right = Callable[..., Any]


def _gspo(right: Right, arguments: tuple[Any, ...], ratio: Callable[[Any, Any], Any]) -> Any:
    """GSPO's loss with another ratio(log-ratios, mask) of the tokens, both (B, T); the right answer to all else."""
    new, old, advantages, mask, options = arguments
    if options.surrogate != "gspo":
        return right(*arguments)
    losses = surrogate_loss(ratio(log_ratio(new, old, mask), mask), chosen(advantages, mask), options)
    return plain.mean(losses, mask, options)


def _following(name: str, right: Right, arguments: tuple[Any, ...], losses: Callable[..., Any]) -> Any:
    """The loss with other losses(new log-probs, log-ratios, advantages, options) of the tokens for one surrogate."""
    new, old, advantages, mask, options = arguments
    if options.surrogate != name:
        return right(*arguments)
    given = chosen(new, mask), log_ratio(new, old, mask), chosen(advantages, mask)
    return plain.mean(losses(*given, options), mask, options)


def _summed(name: str, right: Right, arguments: tuple[Any, ...], aggregate: Callable[..., Any]) -> Any:
    """PPO's loss with another aggregate(losses, mask, options) under one name."""
    if arguments[-1].aggregation != name or arguments[-1].surrogate != "ppo":
        return right(*arguments)
    return plain.policy_loss(arguments, aggregate=aggregate)


# --- the ratio of a sequence ----------------------------------------------------------------------------------------


@fault("policy-loss.sequence-ratio")
class SequenceRatioIsProduct(Reference):
    "The ratio of a sequence is the product of its tokens' ratios, not their geometric mean."

    def policy_loss(self, *arguments):
        return _gspo(super().policy_loss, arguments, lambda d, mask: d.sum(-1, keepdim=True).expand_as(d).exp())


@fault("policy-loss.sequence-ratio")
class SequenceRatioIsMeanOfRatios(Reference):
    "The ratio of a sequence is the arithmetic mean of its tokens' ratios."

    def policy_loss(self, *arguments):
        return _gspo(super().policy_loss, arguments, lambda d, mask: plain.mean_of_rows(chosen(d.exp(), mask), mask))


@fault("policy-loss.sequence-ratio")
class OneRatioForTheBatch(Reference):
    "One ratio for all sequences, of the mean over the whole batch."

    def policy_loss(self, *arguments):
        return _gspo(
            super().policy_loss,
            arguments,
            lambda d, mask: (d.sum() / mask.bool().sum().clamp(min=1)).exp().expand_as(d),
        )


@fault("policy-loss.sequence-ratio")
class SequenceRatioOverTheWidth(Reference):
    "The mean log-ratio of a sequence is taken over the padded width."

    def policy_loss(self, *arguments):
        return _gspo(super().policy_loss, arguments, lambda d, mask: d.mean(-1, keepdim=True).expand_as(d).exp())


@fault("policy-loss.sequence-ratio")
class SequenceRatioIgnored(Reference):
    "Every token has its own ratio, whatever surrogate is asked for."

    def policy_loss(self, *arguments):
        return _gspo(super().policy_loss, arguments, lambda d, mask: d.exp())


@fault("policy-loss.sequence-ratio-clip")
class SequenceRatioUnclipped(Reference):
    "The ratio of a sequence is not clipped."

    def policy_loss(self, *arguments):
        new, old, advantages, mask, options = arguments
        if options.surrogate != "gspo":
            return super().policy_loss(*arguments)
        ratio = plain.mean_of_rows(log_ratio(new, old, mask), mask).exp()
        return plain.mean(-ratio * chosen(advantages, mask), mask, options)


@fault("policy-loss.sequence-ratio-clip")
class RatiosClippedBeforeTheSequenceMean(Reference):
    "Each token's ratio is clipped, and then the mean of their logs is taken."

    def policy_loss(self, *arguments):
        options = arguments[-1]

        def ratio(d, mask):
            return plain.mean_of_rows(chosen(clip(d.exp(), options).clamp(min=1e-9).log(), mask), mask).exp()

        return _gspo(super().policy_loss, arguments, ratio)


@fault("policy-loss.sequence-ratio-clip")
class SequenceClippedByItsLargestRatio(Reference):
    "Whether a sequence is clipped is decided by its largest log-ratio."

    def policy_loss(self, *arguments):
        new, old, advantages, mask, options = arguments
        if options.surrogate != "gspo":
            return super().policy_loss(*arguments)
        d, a = log_ratio(new, old, mask), chosen(advantages, mask)
        ratio = plain.mean_of_rows(d, mask).exp()
        largest = d.masked_fill(~mask.bool(), -torch.inf).amax(-1, keepdim=True).clamp(min=-20.0).exp()
        held = torch.where(largest > 1 + options.clip_eps_high, clip(ratio, options), ratio)
        return plain.mean(-torch.minimum(ratio * a, held * a), mask, options)


@fault("policy-loss.sequence-ratio-gradient")
class SequenceRatioDetached(Reference):
    "Right value, but the ratio of a sequence has no graph."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        if options.surrogate != "gspo":
            return right
        return replace(right, loss=value_of(right.loss, gradient_of=0 * chosen(new, mask).sum()))


@fault("policy-loss.sequence-ratio-gradient")
class SequenceGradientNotShared(Reference):
    "Right value, but every token has the gradient of the whole sequence: it is not divided by the length."

    def policy_loss(self, *arguments):
        def ratio(d, mask):
            mean = plain.mean_of_rows(d, mask)
            return value_of(mean, gradient_of=d.sum(-1, keepdim=True).expand_as(d)).exp()

        return _gspo(super().policy_loss, arguments, ratio)


@fault("policy-loss.sequence-ratio-gradient")
class ClippedSequenceStillPulls(Reference):
    "Right value, but the gradient passes where the clip of a sequence binds."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        if options.surrogate != "gspo":
            return right
        ratio = plain.mean_of_rows(log_ratio(new, old, mask), mask).exp()
        through = plain.mean(-ratio * chosen(advantages, mask), mask, options)
        return replace(right, loss=value_of(right.loss, gradient_of=through))


@fault("policy-loss.sequence-ratio-mask")
class SequenceRatioOfAllCells(Reference):
    "The mean log-ratio of a sequence runs over masked cells as well."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "gspo":
            return super().policy_loss(new, old, advantages, mask, options)
        d = (wide(new) - wide(old)).clamp(-20.0, 20.0)
        ratio = d.mean(-1, keepdim=True).expand_as(d).exp()
        return plain.mean(surrogate_loss(ratio, chosen(advantages, mask), options), mask, options)


@fault("policy-loss.sequence-ratio-mask")
class SequenceRatioOfTheFirstCells(Reference):
    "The mean log-ratio of a sequence runs over as many first cells as it has actions; right for masks without holes."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "gspo":
            return super().policy_loss(new, old, advantages, mask, options)
        columns = torch.arange(mask.shape[1], device=mask.device)
        first = columns < mask.bool().sum(-1, keepdim=True)
        d = (wide(new) - wide(old)).nan_to_num(0.0, 20.0, -20.0).clamp(-20.0, 20.0).where(first, 0.0)
        ratio = (d.sum(-1, keepdim=True) / first.sum(-1, keepdim=True).clamp(min=1)).expand_as(d).exp()
        return plain.mean(surrogate_loss(ratio, chosen(advantages, mask), options), mask, options)


@fault("policy-loss.surrogate-nan-under-mask")
class SequenceMeanMultiplied(Reference):
    "Log-ratios are multiplied by the mask before their mean is taken, and NaN * 0 is NaN."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "gspo":
            return super().policy_loss(new, old, advantages, mask, options)
        d = (wide(new) - wide(old)) * mask.bool()
        ratio = plain.mean_of_rows(d, mask).clamp(max=20.0).exp()
        return plain.mean(surrogate_loss(ratio, chosen(advantages, mask), options), mask, options)


@fault("policy-loss.sequence-ratio-empty-row")
class SequenceRatioOfNothing(Reference):
    "The mean log-ratio of a row without actions is 0 / 0."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "gspo":
            return super().policy_loss(new, old, advantages, mask, options)
        d = log_ratio(new, old, mask)
        ratio = (d.sum(-1, keepdim=True) / mask.bool().sum(-1, keepdim=True)).expand_as(d).exp()
        return plain.multiplied(surrogate_loss(ratio, chosen(advantages, mask), options), mask, options)


@fault("policy-loss.sequence-ratio-empty-row")
class EmptySequenceTrained(Reference):
    "A row without actions is trained on its last cell, so that its ratio is a number."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate == "gspo":
            mask = mask.clone()
            mask[:, -1] |= ~mask.bool().any(-1)
        return super().policy_loss(new, old, advantages, mask, options)


# --- CISPO ----------------------------------------------------------------------------------------------------------


@fault("policy-loss.cispo", bug="cispo-without-log-prob")
class CispoWithoutLogProb(Reference):
    "-A times the clipped ratio, without the log-prob: clipped tokens have no gradient."

    def policy_loss(self, *arguments):
        return _following("cispo", super().policy_loss, arguments, lambda lp, d, a, o: -cispo_weight(d.exp(), o) * a)


@fault("policy-loss.cispo")
class CispoOfOldLogProb(Reference):
    "The weight multiplies the new log-prob in the gradient, and the old one in the value."

    def policy_loss(self, *arguments):
        def losses(lp, d, a, o):
            weight = cispo_weight(d.exp(), o).detach()
            return value_of(-weight * a * (lp - d), gradient_of=-weight * a * lp)

        return _following("cispo", super().policy_loss, arguments, losses)


@fault("policy-loss.cispo")
class CispoOfProbability(Reference):
    "The weight multiplies the probability, not its log."

    def policy_loss(self, *arguments):
        return _following(
            "cispo",
            super().policy_loss,
            arguments,
            lambda lp, d, a, o: -cispo_weight(d.exp(), o).detach() * a * lp.exp(),
        )


@fault("policy-loss.cispo-bounds")
class CispoWeightNotHeld(Reference):
    "The ratio that weighs the log-prob is not bounded."

    def policy_loss(self, *arguments):
        return _following("cispo", super().policy_loss, arguments, lambda lp, d, a, o: -d.exp().detach() * a * lp)


@fault("policy-loss.cispo-bounds")
class CispoBoundBySign(Reference):
    "The ratio is bounded as PPO's clip would: from above where A > 0, and from below where A < 0."

    def policy_loss(self, *arguments):
        def losses(lp, d, a, o):
            r = d.exp()
            held = torch.where(a > 0, r.clamp(max=1 + o.clip_eps_high), r.clamp(min=1 - o.clip_eps_low))
            return -held.detach() * a * lp

        return _following("cispo", super().policy_loss, arguments, losses)


@fault("policy-loss.cispo-bounds")
class CispoOneEps(Reference):
    "Both bounds of the weight are made of clip_eps_low."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate == "cispo":
            options = replace(options, clip_eps_high=options.clip_eps_low)
        return super().policy_loss(new, old, advantages, mask, options)


@fault("policy-loss.cispo-gradient")
class CispoWithPposMinimum(Reference):
    "Right value, but the gradient stops where PPO's clip would bind."

    def policy_loss(self, *arguments):
        def losses(lp, d, a, o):
            r = d.detach().exp()
            stopped = (r > 1 + o.clip_eps_high) & (a > 0) | (r < 1 - o.clip_eps_low) & (a < 0)
            return -clip(r, o) * a * torch.where(stopped, lp.detach(), lp)

        return _following("cispo", super().policy_loss, arguments, losses)


@fault("policy-loss.cispo-gradient")
class CispoWeightWithGraph(Reference):
    "The gradient flows through the ratio as well."

    def policy_loss(self, *arguments):
        return _following(
            "cispo", super().policy_loss, arguments, lambda lp, d, a, o: -cispo_weight(d.exp(), o) * a * lp
        )


@fault("policy-loss.cispo-gradient")
class CispoStopsOutsideTheBand(Reference):
    "Tokens outside of the band are dropped from the gradient, on either side."

    def policy_loss(self, *arguments):
        def losses(lp, d, a, o):
            r = d.detach().exp()
            return -clip(r, o) * a * torch.where(clip(r, o) == r, lp, lp.detach())

        return _following("cispo", super().policy_loss, arguments, losses)


@fault("policy-loss.cispo-overflow", bug="overflow-ratio")
class CispoHeldByFactor(Reference):
    "The ratio is scaled down to its bound by a factor, which for a ratio of inf is inf * 0."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate != "cispo":
            return super().policy_loss(new, old, advantages, mask, options)
        ratio = (chosen(new, mask) - chosen(old, mask)).detach().exp()
        weight = ratio * (clip(ratio, options) / ratio)
        return plain.mean(-weight * chosen(advantages, mask) * chosen(new, mask), mask, options)


# --- REINFORCE ------------------------------------------------------------------------------------------------------


@fault("policy-loss.reinforce")
class ReinforceAscends(Reference):
    "The sign of the loss without a ratio is that of the objective."

    def policy_loss(self, *arguments):
        return _following("reinforce", super().policy_loss, arguments, lambda lp, d, a, o: a * lp)


@fault("policy-loss.reinforce")
class ReinforceOfProbability(Reference):
    "The advantage multiplies the probability, not its log."

    def policy_loss(self, *arguments):
        return _following("reinforce", super().policy_loss, arguments, lambda lp, d, a, o: -a * lp.exp())


@fault("policy-loss.reinforce")
class ReinforceIsPpo(Reference):
    "The ratio and its clip are there, whatever surrogate is asked for."

    def policy_loss(self, *arguments):
        return _following(
            "reinforce", super().policy_loss, arguments, lambda lp, d, a, o: surrogate_loss(d.exp(), a, o)
        )


@fault("policy-loss.reinforce-old")
class ReinforceWithWeight(Reference):
    "The log-prob is weighed by the ratio, up to 2: on policy nothing is seen of it."

    def policy_loss(self, *arguments):
        def losses(lp, d, a, o):
            return -d.exp().clamp(max=2.0).detach() * a * lp

        return _following("reinforce", super().policy_loss, arguments, losses)


@fault("policy-loss.reinforce-old")
class ReinforceStopsFarFromOld(Reference):
    "Tokens that have become much likelier than they were lose their gradient."

    def policy_loss(self, *arguments):
        def losses(lp, d, a, o):
            return -a * torch.where(d.detach() > 2.0, lp.detach(), lp)

        return _following("reinforce", super().policy_loss, arguments, losses)


# --- the mask -------------------------------------------------------------------------------------------------------


@fault("policy-loss.surrogate-mask")
class LogProbsFollowedEverywhere(Reference):
    "The sum runs over all cells, and only the count is that of the mask."

    def policy_loss(self, new, old, advantages, mask, options):
        right = super().policy_loss(new, old, advantages, mask, options)
        if options.surrogate not in ("cispo", "reinforce"):
            return right
        leak = chosen((wide(new) * wide(advantages)).clamp(-1e4, 1e4), ~mask.bool()).sum()
        return replace(right, loss=right.loss - leak / mask.bool().sum().clamp(min=1))


@fault("policy-loss.surrogate-mask")
class WeightedBeforeTheMask(Reference):
    "The mask multiplies the losses, after the product of log-prob and advantage has overflowed: inf * 0 is NaN."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate not in ("cispo", "reinforce"):
            return super().policy_loss(new, old, advantages, mask, options)
        weight = clip((wide(new) - wide(old)).detach().exp(), options) if options.surrogate == "cispo" else 1.0
        return plain.multiplied(-weight * wide(advantages) * wide(new), mask, options)


@fault("policy-loss.surrogate-nan-under-mask")
class LogProbsMultipliedByTheMask(Reference):
    "Log-probs and advantages are multiplied by the mask before anything else, and inf * 0 is NaN."

    def policy_loss(self, new, old, advantages, mask, options):
        if options.surrogate not in ("cispo", "reinforce"):
            return super().policy_loss(new, old, advantages, mask, options)
        new, advantages = wide(new) * mask.bool(), wide(advantages) * mask.bool()
        right = super().policy_loss(new.nan_to_num(0.0), old, advantages.nan_to_num(0.0), mask, options)
        return replace(right, loss=right.loss + 0 * (new * advantages).sum())


# --- sums -----------------------------------------------------------------------------------------------------------


@fault("policy-loss.constant-length")
class ConstantIsTheWidth(Reference):
    "The sum over a sequence is divided by the width of the batch, not by the constant."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            return plain.constant_length(losses, mask, replace(options, constant_length=mask.shape[1]))

        return _summed("constant-length", super().policy_loss, arguments, aggregate)


@fault("policy-loss.constant-length")
class ConstantIsTheLongest(Reference):
    "The sum over a sequence is divided by the actions of the longest one of the batch."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            longest = mask.bool().sum(-1).max().clamp(min=1)
            return plain.constant_length(losses, mask, replace(options, constant_length=longest))

        return _summed("constant-length", super().policy_loss, arguments, aggregate)


@fault("policy-loss.constant-length")
class ConstantWithoutRows(Reference):
    "The sum over the batch is divided by the constant alone, not by the number of sequences."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            return chosen(losses, mask).sum() / options.constant_length

        return _summed("constant-length", super().policy_loss, arguments, aggregate)


@fault("policy-loss.constant-length")
class ConstantForgotten(Reference):
    "The sum over a sequence is divided by nothing: the mean of sums."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            return plain.constant_length(losses, mask, replace(options, constant_length=1))

        return _summed("constant-length", super().policy_loss, arguments, aggregate)


@fault("policy-loss.constant-length-micro-batches")
class ConstantLengthOfOwnRows(Reference):
    "Every micro-batch is divided by its own number of sequences; the global count is not used."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            return plain.constant_length(losses, mask, replace(options, global_count=None))

        return _summed("constant-length", super().policy_loss, arguments, aggregate)


@fault("policy-loss.constant-length-micro-batches")
class SequenceCountTwice(Reference):
    "The global count divides a loss that is divided by the micro-batch's own sequences already."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            own = plain.constant_length(losses, mask, replace(options, global_count=None))
            return own if options.global_count is None else own / options.global_count

        return _summed("constant-length", super().policy_loss, arguments, aggregate)


@fault("policy-loss.token-sum")
class TokenSumIsMean(Reference):
    "The sum is divided by the number of tokens."

    def policy_loss(self, *arguments):
        return _summed("token-sum", super().policy_loss, arguments, plain.token_mean)


@fault("policy-loss.token-sum")
class TokenSumOfRows(Reference):
    "The sum is divided by the number of sequences."

    def policy_loss(self, *arguments):
        def aggregate(losses, mask, options):
            return chosen(losses, mask).sum() / mask.bool().any(-1).sum().clamp(min=1)

        return _summed("token-sum", super().policy_loss, arguments, aggregate)

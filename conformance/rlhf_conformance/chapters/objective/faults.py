"""Liars about the objective. Most of them exchange one term of the plain one in `bending`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses import bending as plain
from rlhf_conformance.chapters._tensors import chosen, value_of, wide
from rlhf_conformance.chapters.objective import bending as bent
from rlhf_conformance.chapters.objective.bending import Given
from rlhf_conformance.faults import fault


class _Bent(Reference):
    """The plain objective with some of its terms told otherwise."""

    def objective(self, *arguments):
        told = {name: getattr(self, f"_{name}") for name in ("value", "kl", "entropy") if hasattr(self, f"_{name}")}
        return bent.objective(Given(*arguments), **told)


class _Asked(Reference):
    """The right objective, asked for something else."""

    def objective(self, *arguments):
        return super().objective(*self._asked(Given(*arguments)))

    def _asked(self, g: Given) -> Given:
        raise NotImplementedError


# --- the terms ------------------------------------------------------------------------------------------------------


@fault("objective.policy-alone")
class EntropyBonusByDefault(_Asked):
    "An entropy coefficient of 0 is taken for one that is not given: entropy_coef or 0.01."

    def _asked(self, g):
        return g.with_options(entropy_coef=g.options.entropy_coef or 0.01)


@fault("objective.policy-alone")
class ValueTermByDefault(_Asked):
    "A value coefficient of 0 is taken for one that is not given: value_coef or 0.5."

    def _asked(self, g):
        return g.with_options(value_coef=g.options.value_coef or 0.5)


@fault("objective.policy-alone")
class KlTermByDefault(_Asked):
    "A KL coefficient of 0 is taken for one that is not given: kl_coef or 0.1."

    def _asked(self, g):
        return g.with_options(kl_coef=g.options.kl_coef or 0.1)


@fault("objective.value-term")
class ValueTermSubtracted(_Bent):
    "The value loss is subtracted."

    def _value(self, g):
        return -bent.value(g)


@fault("objective.value-term", bug="half-dropped")
class ValueTermWithoutHalf(_Bent):
    "The value loss is a whole squared error."

    def _value(self, g):
        return 2 * bent.value(g)


@fault("objective.value-term")
class ValueTermHalvedTwice(_Bent):
    "The half is in the value loss and beside it."

    def _value(self, g):
        return 0.5 * bent.value(g)


@fault("objective.value-term")
class ValueTermUnclipped(_Asked):
    "Within the objective the values are not clipped."

    def _asked(self, g):
        return g.with_options(value_clip_eps=None)


@fault("objective.value-term")
class ValueTermOfAdvantages(_Asked):
    "The values are measured by the advantages, not by the returns."

    def _asked(self, g):
        return g._replace(returns=g.advantages)


@fault("objective.value-term")
class ValueClipOfThePolicy(_Asked):
    "The values are held within the band of the policy's ratio."

    def _asked(self, g):
        return g.with_options(value_clip_eps=g.options.clip_eps_low)


@fault("objective.kl-term", bug="kl-sign")
class KlTermSubtracted(_Bent):
    "The KL is subtracted: the policy is paid for leaving the reference."

    def _kl(self, g):
        return -bent.kl(g)


@fault("objective.kl-term", bug="kl-arguments-exchanged")
class KlTermTurnedRound(_Bent):
    "The arguments of the KL are exchanged."

    def _kl(self, g):
        return bent.kl(g._replace(new=g.ref, ref=g.new))


@fault("objective.kl-term")
class KlTermFromTheOldPolicy(_Bent):
    "The KL is that from the policy that sampled."

    def _kl(self, g):
        return bent.kl(g._replace(ref=g.old))


@fault("objective.kl-term")
class KlTermOfTheOldPolicy(_Bent):
    "The KL is that of the policy that sampled, from the reference."

    def _kl(self, g):
        return bent.kl(g._replace(new=g.old))


@fault("objective.kl-term")
class KlTermAlwaysK3(_Bent):
    "The KL is estimated by k3, whatever is asked for."

    def _kl(self, g):
        return bent.kl(g.with_options(estimator="k3"))


@fault("objective.kl-correction")
class KlTimesTheRatio(_Asked):
    "The KL of each action is multiplied by the ratio, which is not declared."

    def _asked(self, g):
        return g.with_options(kl_correction="ratio")


class _Corrected(Reference):
    """Declares the correction, and multiplies by something else."""

    kl_correction, kl_gradient = "ratio", "weighted"

    def objective(self, *arguments):
        return bent.objective(Given(*arguments), kl=self._kl)

    def _kl(self, g):
        uncorrected = bent.kls(g.with_options(kl_correction="none", kl_gradient="plain"))
        return bent.mean(self._correction(g) * uncorrected, g, g.options.kl_aggregation)

    def _correction(self, g):
        raise NotImplementedError


@fault("objective.kl-correction")
class KlCorrectionForgotten(_Corrected):
    "The correction of the KL is declared, and not made."

    def _correction(self, g):
        return 1.0


@fault("objective.kl-correction")
class KlCorrectionClipped(_Corrected):
    "The KL is multiplied by the clipped ratio."

    def _correction(self, g):
        return bent.correction(g).clamp(1 - g.options.clip_eps_low, 1 + g.options.clip_eps_high)


@fault("objective.kl-correction")
class KlCorrectionTurnedRound(_Corrected):
    "The KL is multiplied by the old probability over the new one."

    def _correction(self, g):
        return 1 / bent.correction(g)


@fault("objective.kl-correction", bug="kl-arguments-exchanged")
class KlCorrectionToTheReference(_Corrected):
    "The KL is multiplied by the ratio to the reference model."

    def _correction(self, g):
        return bent.correction(g._replace(old=g.ref))


@fault("objective.kl-correction")
class KlCorrectionWithoutGraph(_Corrected):
    "The ratio that the KL is multiplied by is a constant, where its graph is declared."

    def _correction(self, g):
        return bent.correction(g).detach()


@fault("objective.kl-correction")
class KlCorrectionOfTheRow(_Corrected):
    "The KL of every token is multiplied by the mean ratio of its row, where that of the token is declared."

    def _correction(self, g):
        ratio = bent.correction(g).where(g.mask.bool(), 0.0)
        return (ratio.sum(-1, keepdim=True) / g.mask.bool().sum(-1, keepdim=True).clamp(min=1)).expand_as(ratio)


@fault("objective.entropy-term")
class EntropyTermAdded(_Bent):
    "The entropy is added: what should be a bonus is a penalty."

    def _entropy(self, g):
        return -bent.entropy(g)


@fault("objective.entropy-term")
class EntropyTermOfTheAction(_Bent):
    "The entropy is minus the log-prob of the action that was sampled."

    def _entropy(self, g):
        return bent.entropy(g._replace(entropies=-g.new))


@fault("objective.entropy-term")
class EntropyTermOfTheOldPolicy(_Bent):
    "The entropy is minus the log-prob that the action had when it was sampled, a constant."

    def _entropy(self, g):
        return bent.entropy(g._replace(entropies=-g.old))


@fault("objective.total")
class CoefficientsExchanged(_Asked):
    "The KL has the coefficient of the entropy, and the entropy that of the KL."

    def _asked(self, g):
        return g.with_options(kl_coef=g.options.entropy_coef, entropy_coef=g.options.kl_coef)


@fault("objective.total")
class KlTermTimesTheRatio(_Bent):
    "The KL stands inside the surrogate: each estimate is multiplied with the ratio of its action."

    def _kl(self, g):
        ratio = plain.log_ratio(g.new, g.old, g.mask).exp()
        return bent.mean(bent.kls(g) * ratio, g)


@fault("objective.total")
class EntropyScaledByTheValueCoefficient(_Bent):
    "The entropy is part of what the value coefficient multiplies, where there is one."

    def _entropy(self, g):
        return bent.entropy(g) * (g.options.value_coef or 1.0)


@fault("objective.total")
class TermsAveraged(Reference):
    "The terms are averaged: their sum is divided by their number."

    def objective(self, *arguments):
        g = Given(*arguments)
        number = 1 + sum(bool(x) for x in (g.options.value_coef, g.options.kl_coef, g.options.entropy_coef))
        return bent.objective(g) / number


@fault("objective.total")
class LastTermWins(Reference):
    "Each term is added to the policy loss alone, so that the last one stays."

    def objective(self, *arguments):
        g = Given(*arguments)
        for one, other in (("value_coef", "kl_coef"), ("value_coef", "entropy_coef"), ("kl_coef", "entropy_coef")):
            if getattr(g.options, one) and getattr(g.options, other):
                g = g.with_options(**{one: 0.0})
        return bent.objective(g)


@fault("objective.coefficients")
class CoefficientsAtMostOne(_Asked):
    "A coefficient above 1 is taken as 1."

    def _asked(self, g):
        names = ("value_coef", "kl_coef", "entropy_coef")
        return g.with_options(**{name: min(getattr(g.options, name), 1.0) for name in names})


@fault("objective.coefficients")
class CoefficientsOfTheFirstCall(_Asked):
    "The coefficients are those of the first call that had any."

    def _asked(self, g):
        first = self.__dict__.setdefault("_first", {})
        for name in ("value_coef", "kl_coef", "entropy_coef"):
            if getattr(g.options, name):
                first.setdefault(name, getattr(g.options, name))
        coefs = {name: coef for name, coef in first.items() if getattr(g.options, name)}
        return g.with_options(**coefs)


@fault("objective.coefficients")
class KlCoefficientHardCoded(_Asked):
    "The coefficient of the KL is 0.1 wherever there is one."

    def _asked(self, g):
        return g.with_options(kl_coef=0.1 if g.options.kl_coef else 0.0)


@fault("objective.coefficients")
class SmallCoefficientsDropped(_Asked):
    "A coefficient below 1/200 is taken for none."

    def _asked(self, g):
        names = ("value_coef", "kl_coef", "entropy_coef")
        return g.with_options(**{n: x if x >= 1 / 200 else 0.0 for n in names for x in [getattr(g.options, n)]})


@fault("objective.zero-coefficient")
class TermsTimesZero(Reference):
    "Every term is computed and multiplied by its coefficient, 0 or not."

    def objective(self, *arguments):
        g = Given(*arguments)
        o = g.options
        beside = o.value_coef * bent.value(g) + o.kl_coef * bent.kl(g) - o.entropy_coef * bent.entropy(g)
        return bent.policy(g) + beside


@fault("objective.zero-coefficient")
class ProductWithZeroPatched(Reference):
    "The product of 0 and NaN is replaced by 0 in the sum, and stays in the gradient."

    def objective(self, *arguments):
        g = Given(*arguments)
        o, total = g.options, bent.policy(g)
        for coef, term in ((o.value_coef, bent.value), (o.kl_coef, bent.kl), (-o.entropy_coef, bent.entropy)):
            total = total + (coef * term(g)).nan_to_num(0.0)
        return total


# --- gradients ------------------------------------------------------------------------------------------------------


@fault("objective.gradient")
class PolicyTermDetached(Reference):
    "Beside other terms the policy loss has no graph."

    def objective(self, *arguments):
        has_terms = any((arguments[-1].value_coef, arguments[-1].kl_coef, arguments[-1].entropy_coef))
        return bent.objective(
            Given(*arguments), policy=lambda g: bent.policy(g).detach() if has_terms else bent.policy(g)
        )


@fault("objective.gradient")
class PolicyTermHalvedBeside(Reference):
    "Beside a KL the gradient of the policy loss is halved; its value is right."

    def objective(self, *arguments):
        def policy(g):
            right = bent.policy(g)
            return value_of(right, gradient_of=0.5 * right) if g.options.kl_coef else right

        return bent.objective(Given(*arguments), policy=policy)


@fault("objective.value-gradient")
class ValueTermDetached(_Bent):
    "The value loss is in the sum and has no graph."

    def _value(self, g):
        return bent.value(g).detach()


@fault("objective.value-gradient")
class ValueGradientWithoutCoefficient(_Bent):
    "The coefficient of the value loss is in the sum and not in the gradient."

    def _value(self, g):
        right = bent.value(g)
        return value_of(right, gradient_of=right / g.options.value_coef)


@fault("objective.kl-gradient")
class KlTermDetached(_Bent):
    "The KL was computed without a graph, as for the rewards."

    def _kl(self, g):
        return bent.kl(g).detach()


@fault("objective.kl-gradient")
class KlTermWithTheGradientOfK1(_Bent):
    "Whatever the estimator, the gradient is that of k1."

    def _kl(self, g):
        return value_of(bent.kl(g), gradient_of=bent.kl(g.with_options(estimator="k1")))


@fault("objective.kl-gradient")
class KlTermWithTheGradientOfK2(_Bent):
    "Whatever the estimator, the gradient is that of k2, which is not declared."

    def _kl(self, g):
        return value_of(bent.kl(g), gradient_of=bent.kl(g.with_options(estimator="k2")))


@fault("objective.entropy-gradient", bug="entropy-without-gradient")
class EntropyTermDetached(_Bent):
    "The entropies were computed without a graph."

    def _entropy(self, g):
        return bent.entropy(g).detach()


@fault("objective.entropy-gradient")
class EntropyGradientWithoutCoefficient(_Bent):
    "The coefficient of the entropy is in the sum and not in the gradient."

    def _entropy(self, g):
        right = bent.entropy(g)
        return value_of(right, gradient_of=right / g.options.entropy_coef)


@fault("objective.entropy-gradient")
class EntropyGradientTurnedRound(_Bent):
    "The gradient of the entropy has the other sign than its value."

    def _entropy(self, g):
        right = bent.entropy(g)
        return value_of(right, gradient_of=-right)


def _is_clipped(g: Given) -> Any:
    """(B, T) where the clip of PPO binds."""
    ratio, o = plain.log_ratio(g.new, g.old, g.mask).exp().detach(), g.options
    above = (ratio > 1 + o.clip_eps_high) & (g.advantages > 0)
    return above | ((ratio < 1 - o.clip_eps_low) & (g.advantages < 0))


@fault("objective.clipped-action")
class KlStopsAtTheClip(_Bent):
    "Where the clip of the policy loss binds, the KL has no gradient."

    def _kl(self, g):
        right = bent.kls(g)
        return bent.mean(right.detach().where(_is_clipped(g), right), g)


@fault("objective.clipped-action")
class KlDroppedAtTheClip(_Bent):
    "Where the clip of the policy loss binds, there is no KL."

    def _kl(self, g):
        return bent.mean(bent.kls(g).masked_fill(_is_clipped(g), 0.0), g)


@fault("objective.clipped-action")
class EntropyStopsAtTheClip(_Bent):
    "Where the clip of the policy loss binds, the entropy has no gradient."

    def _entropy(self, g):
        right = bent.entropies(g)
        return bent.mean(right.detach().where(_is_clipped(g), right), g)


# --- means ----------------------------------------------------------------------------------------------------------


@fault("objective.aggregation")
class EntropyTermAlwaysTokenMean(_Bent):
    "The entropy is a token mean beside a sequence mean of the policy loss."

    def _entropy(self, g):
        return bent.mean(bent.entropies(g), g, _other_of_means(g, "sequence-mean", "token-mean"))


@fault("objective.aggregation")
class KlTermAlwaysTokenMean(_Bent):
    "The KL is a token mean beside a sequence mean of the policy loss."

    def _kl(self, g):
        return bent.mean(bent.kls(g), g, _other_of_means(g, "sequence-mean", "token-mean"))


@fault("objective.aggregation")
class ValueTermAlwaysSequenceMean(_Bent):
    "The value loss is a sequence mean beside a token mean of the policy loss."

    def _value(self, g):
        return bent.mean(bent.value_losses(g), g, _other_of_means(g, "token-mean", "sequence-mean"))


def _other_of_means(g: Given, named: str, other: str) -> str:
    """One mean in the place of another, where no count is given: as a count it has the wrong one then."""
    return other if g.options.aggregation == named and g.options.global_count is None else "as-policy"


@fault("objective.other-means")
class KlTermStaysAMean(_Bent):
    "Beside a sum, or a sum over a constant length, the KL is a token mean."

    def _kl(self, g):
        return bent.mean(bent.kls(g), g, _mean_for_sums(g))


@fault("objective.other-means")
class EntropyTermStaysAMean(_Bent):
    "Beside a sum, or a sum over a constant length, the entropy is a token mean."

    def _entropy(self, g):
        return bent.mean(bent.entropies(g), g, _mean_for_sums(g))


@fault("objective.other-means")
class ValueTermStaysAMean(_Bent):
    "Beside a sum, or a sum over a constant length, the value loss is a token mean."

    def _value(self, g):
        return bent.mean(bent.value_losses(g), g, _mean_for_sums(g))


def _mean_for_sums(g: Given) -> str:
    return "token-mean" if g.options.aggregation in ("token-sum", "constant-length") else "as-policy"


@fault("objective.other-surrogates")
class KlForgottenByGspo(_Asked):
    "The branch of GSPO has no KL."

    def _asked(self, g):
        return g.with_options(kl_coef=0.0) if g.options.surrogate == "gspo" else g


@fault("objective.other-surrogates")
class EntropyForgottenByCispo(_Asked):
    "The branch of CISPO has no entropy bonus."

    def _asked(self, g):
        return g.with_options(entropy_coef=0.0) if g.options.surrogate == "cispo" else g


@fault("objective.other-surrogates")
class KlWeightedByCispo(_Bent):
    "The weight of CISPO multiplies the KL, too."

    def _kl(self, g):
        if g.options.surrogate != "cispo":
            return bent.kl(g)
        weight = plain.cispo_weight(plain.log_ratio(g.new, g.old, g.mask).exp().detach(), g.options)
        return bent.mean(bent.kls(g) * weight, g)


@fault("objective.other-surrogates")
class KlWeightedByReinforce(_Bent):
    "Without a ratio the KL is multiplied with the advantage, as the log-prob is."

    def _kl(self, g):
        if g.options.surrogate != "reinforce":
            return bent.kl(g)
        return bent.mean(bent.kls(g) * chosen(g.advantages, g.mask), g)


@fault("objective.micro-batches", bug="mean-of-means")
class EntropyOfTheMicroBatch(_Bent):
    "The entropy is divided by the count of the micro-batch."

    def _entropy(self, g):
        return bent.entropy(g.with_options(global_count=None))


@fault("objective.micro-batches", bug="mean-of-means")
class KlOfTheMicroBatch(_Bent):
    "The KL is divided by the count of the micro-batch."

    def _kl(self, g):
        return bent.kl(g.with_options(global_count=None))


@fault("objective.micro-batches", bug="value-loss-per-micro-batch")
class ValueTermOfTheMicroBatch(_Bent):
    "The value loss is divided by the count of the micro-batch."

    def _value(self, g):
        return bent.value(g.with_options(global_count=None))


# --- the mask -------------------------------------------------------------------------------------------------------


def _unmasked(losses: Any, g: Given) -> Any:
    """The sum over all cells, divided by the number of actions, or by the count that is given."""
    return losses.sum() / (g.options.global_count or g.mask.bool().sum().clamp(min=1))


@fault("objective.mask", bug="bonus-for-filtered-tokens")
class EntropyOfEveryCell(_Bent):
    "The entropies under the mask are in the sum."

    def _entropy(self, g):
        return _unmasked(wide(g.entropies), g) if g.options.aggregation == "token-mean" else bent.entropy(g)


@fault("objective.mask", bug="kl-of-observations")
class KlOfEveryCell(_Bent):
    "The KL under the mask is in the sum."

    def _kl(self, g):
        d = (wide(g.new) - wide(g.ref)).clamp(-20.0, 20.0)
        own = bent.estimated(d, g.options.estimator)
        return _unmasked(own, g) if g.options.aggregation == "token-mean" else bent.kl(g)


@fault("objective.mask")
class ValuesOfEveryCell(_Bent):
    "The value losses under the mask are in the sum."

    def _value(self, g):
        everything = bent.value_losses(g._replace(mask=torch.ones_like(g.mask)))
        return _unmasked(everything, g) if g.options.aggregation == "token-mean" else bent.value(g)


@fault("objective.nan-under-mask", bug="nan-in-masked-slot")
class LogRatiosMultipliedByTheMask(_Bent):
    "The log-ratios of the KL are multiplied with the mask."

    def _kl(self, g):
        right, kept = bent.kls(g), (wide(g.new) - wide(g.ref)) * g.mask.bool()
        return bent.kl(g) + (bent.estimated(kept, g.options.estimator).sum() - right.sum()).detach()


@fault("objective.nan-under-mask", bug="nan-in-masked-slot")
class EntropiesMultipliedByTheMask(_Bent):
    "The entropies are multiplied with the mask."

    def _entropy(self, g):
        kept = wide(g.entropies) * g.mask.bool()
        return bent.entropy(g) + (kept.sum() - bent.entropies(g).sum()).detach()


def _row_means(losses: Any, g: Given) -> Any:
    """The mean of the means of the rows, 0 / 0 in a row without an action."""
    rows = losses.sum(-1) / g.mask.bool().sum(-1)
    return rows.sum() / (g.options.global_count or len(rows))


@fault("objective.empty-row", bug="masked-row-nan")
class EntropyOfAnEmptyRow(_Bent):
    "The sequence mean of the entropy is 0 / 0 in a row without an action."

    def _entropy(self, g):
        return _row_means(bent.entropies(g), g) if g.options.aggregation == "sequence-mean" else bent.entropy(g)


@fault("objective.empty-row", bug="masked-row-nan")
class KlOfAnEmptyRow(_Bent):
    "The sequence mean of the KL is 0 / 0 in a row without an action."

    def _kl(self, g):
        return _row_means(bent.kls(g), g) if g.options.aggregation == "sequence-mean" else bent.kl(g)


@fault("objective.empty-batch", bug="masked-row-nan")
class EntropyOfAnEmptyBatch(_Bent):
    "The token mean of the entropy is 0 / 0 in a batch without an action."

    def _entropy(self, g):
        if g.options.aggregation != "token-mean" or g.options.global_count is not None:
            return bent.entropy(g)
        return bent.entropies(g).sum() / g.mask.bool().sum()


@fault("objective.empty-batch")
class EmptyBatchDetached(Reference):
    "A batch without an action has the objective 0, without a graph."

    def objective(self, *arguments):
        g = Given(*arguments)
        return bent.objective(g) if g.mask.any() else torch.zeros((), device=g.new.device)


@fault("objective.mask-dtype")
class WholeNumberMaskInverted(_Bent):
    "The entropies are masked by ~mask, which is never 0 for a mask of whole numbers."

    def _entropy(self, g):
        off = ~g.mask if not g.mask.is_floating_point() else g.mask == 0
        return bent.entropy(g._replace(entropies=wide(g.entropies).masked_fill(off.bool(), 0.0)))


@fault("objective.mask-dtype")
class ActionsCountedInBooleans(_Bent):
    "The KL is divided by a count in the dtype of the mask: booleans count to one."

    def _kl(self, g):
        if g.options.aggregation != "token-mean" or g.options.global_count is not None:
            return bent.kl(g)
        return bent.kls(g).sum() / g.mask.sum(dtype=g.mask.dtype).float().clamp(min=1)


@fault("objective.square")
class ReferenceTransposedWhereItFits(_Bent):
    "A reference of as many rows as columns is taken the other way round."

    def _kl(self, g):
        rows, columns = g.mask.shape
        return bent.kl(g._replace(ref=g.ref.T) if rows == columns > 1 else g)


@fault("objective.square")
class RowEntropiesMeetColumns(_Bent):
    "The mean entropies of rows, (B,), are weighed with the shares of rows, (B, 1), where that is a square."

    def _entropy(self, g):
        rows, columns = g.mask.shape
        if rows != columns or rows == 1:
            return bent.entropy(g)
        own = bent.entropies(g).sum(-1)
        return bent.entropy(g._replace(entropies=own / len(own) * torch.ones_like(wide(g.entropies))))


# --- the graph, and what changes nothing ----------------------------------------------------------------------------


@fault("objective.scalar")
class ObjectiveOfOneEntry(Reference):
    "The objective is a tensor of one entry, (1,)."

    def objective(self, *arguments):
        return bent.objective(Given(*arguments))[None]


@fault("objective.scalar")
class ObjectiveDetached(Reference):
    "The objective is read as a number and made a tensor again."

    def objective(self, *arguments):
        return bent.objective(Given(*arguments)).detach().clone()


@fault("objective.padding-invariance")
class EntropyOverTheWidth(_Bent):
    "The entropy is the mean over all cells, those under the mask as 0."

    def _entropy(self, g):
        return bent.entropies(g).mean()


@fault("objective.padding-invariance")
class KlOverTheWidth(_Bent):
    "The KL is the mean over all cells, those under the mask as 0."

    def _kl(self, g):
        return bent.kls(g).mean()


@fault("objective.padding-invariance")
class ValueTermOverTheWidth(_Bent):
    "The value loss is the mean over all cells, those under the mask as 0."

    def _value(self, g):
        return bent.value_losses(g).mean()


@fault("objective.batch-order")
class ReferenceOfTheFirstRow(_Bent):
    "The reference's log-probs of the first row are those of all rows."

    def _kl(self, g):
        return bent.kl(g._replace(ref=g.ref[:1].expand_as(g.ref)))


@fault("objective.batch-order")
class ReturnsOfTheRowBefore(_Bent):
    "The returns are those of the row before."

    def _value(self, g):
        return bent.value(g._replace(returns=g.returns.roll(1, 0)))


@fault("objective.inputs-unwritten")
class OldValuesHeldInPlace(Reference):
    "The old values are overwritten with the new ones, for the next epoch."

    def objective(self, *arguments):
        g = Given(*arguments)
        right = bent.objective(g._replace(old_values=g.old_values.clone()))
        g.old_values.copy_(g.values.detach())
        return right


@fault("objective.inputs-unwritten")
class ReferenceLogProbsMaskedInPlace(Reference):
    "The reference's log-probs are multiplied with the mask, in the caller's tensor."

    def objective(self, *arguments):
        g = Given(*arguments)
        g.ref.mul_(g.mask.bool())
        return bent.objective(g)


@fault("objective.side-effects")
class ObjectiveLeavesGradientsOff(Reference):
    "Gradients are switched off after the objective was computed, and stay off."

    def objective(self, *arguments):
        right = bent.objective(Given(*arguments))
        torch.set_grad_enabled(False)
        return right


@fault("objective.side-effects")
class EntropiesNoised(_Bent):
    "Noise is added to the entropies, drawn from the global generator."

    def _entropy(self, g):
        return bent.entropy(g._replace(entropies=g.entropies + 1e-2 * torch.randn_like(g.entropies)))


# --- what is logged -------------------------------------------------------------------------------------------------


class _Logged(Reference):
    """The right objective, with a log of its own."""

    def objective(self, *arguments):
        right = super().objective(*arguments)
        return replace(right, **self._log(right, Given(*arguments)))

    def _log(self, right: Any, g: Given) -> dict[str, Any]:
        raise NotImplementedError


@fault("objective.parts", bug="entropy-metric-over-pads")
class EntropyLoggedOverTheWidth(_Logged):
    "The entropy that is logged is the mean over all cells."

    def _log(self, right, g):
        return {"entropy": wide(g.entropies).detach().mean()}


@fault("objective.parts")
class PartsLoggedWithTheirCoefficients(_Logged):
    "The KL that is logged is what was added: its coefficient is in it."

    def _log(self, right, g):
        return {"kl": right.kl * g.options.kl_coef} if right.kl is not None else {}


@fault("objective.parts")
class WholeLoggedAsPolicyLoss(_Logged):
    "The whole objective is logged as the policy loss."

    def _log(self, right, g):
        return {"policy_loss": right.loss.detach()}


@fault("objective.many-actions")
class KlCountedInHalfPrecision(_Bent):
    "The KL is divided by a count that was made in bfloat16, which knows no 257."

    def _kl(self, g):
        if g.options.aggregation != "token-mean" or g.options.global_count is not None:
            return bent.kl(g)
        return bent.kls(g).sum() / g.mask.bool().to(torch.bfloat16).sum().float().clamp(min=1)


@fault("objective.many-actions")
class EntropyCountedInBytes(_Bent):
    "The entropy is divided by a count that ends at 255, as the mask's dtype does."

    def _entropy(self, g):
        if g.options.aggregation != "token-mean" or g.options.global_count is not None:
            return bent.entropy(g)
        return bent.entropies(g).sum() / g.mask.bool().sum().clamp(min=1, max=255)


# --- clamps of the KL -----------------------------------------------------------------------------------------------


@fault("objective.kl-clamp")
class KlUnclampedInTheObjective(_Asked):
    "In the objective no estimate of the KL is clamped, as it is in the metric."

    def _asked(self, g):
        return g.with_options(log_ratio_clamp=None, clamp=None)


@fault("objective.kl-clamp")
class KlClampHalvedInTheObjective(_Asked):
    "In the objective the clamp of the KL is half of what is declared."

    def _asked(self, g):
        return g.with_options(clamp=g.options.clamp and g.options.clamp / 2)


@fault("objective.kl-clamp", bug="k3-clamp-after-exp")
class KlClampedAfterTheExponential(_Bent):
    "In the objective the clamp comes after the exponential: the gradient is 0 times infinity."

    def _kl(self, g):
        held = bent.kls(g)
        return bent.mean(held if g.options.clamp is None else held.clamp(-g.options.clamp, g.options.clamp), g)


@fault("objective.kl-clamp")
class KlPullsBeyondTheClamp(_Bent):
    "In the objective a clamped estimate keeps the gradient that it has without the clamp."

    def _kl(self, g):
        bound, free = g.options.clamp, bent.kls(g)
        held = free if bound is None else free.clamp(-bound, bound)
        return bent.mean(value_of(held, gradient_of=free), g)


# --- branches -------------------------------------------------------------------------------------------------------


@fault("objective.micro-batches", bug="mean-of-means")
class ConstantLengthByTheMicroBatch(_Asked):
    "The branch of the constant length counts the rows of the micro-batch."

    def _asked(self, g):
        return g.with_options(global_count=None) if g.options.aggregation == "constant-length" else g


@fault("objective.micro-batches", bug="mean-of-means")
class SequenceRatiosByTheMicroBatch(_Asked):
    "The branch of GSPO takes the counts of the micro-batch."

    def _asked(self, g):
        return g.with_options(global_count=None) if g.options.surrogate == "gspo" else g


@fault("objective.empty-row")
class KlOverAllRowsOfTheConstantLength(_Bent):
    "Under a constant length the KL is divided by all rows, the policy loss by those that have an action."

    def _kl(self, g):
        if g.options.aggregation != "constant-length" or g.options.global_count is not None:
            return bent.kl(g)
        return bent.kls(g).sum() / (len(g.mask) * g.options.constant_length)


@fault("objective.empty-batch", bug="masked-row-nan")
class ConstantLengthOverNoRows(Reference):
    "Under a constant length a batch without an action is 0 / 0."

    def objective(self, *arguments):
        g = Given(*arguments)
        found = bent.objective(g)
        return found / g.mask.any() if g.options.aggregation == "constant-length" else found


@fault("objective.mask", bug="sentinel-in-the-exponential")
class SumsMultipliedByTheMask(Reference):
    "The branches of the sums multiply the KL of every cell by the mask."

    def objective(self, *arguments):
        g = Given(*arguments)
        if g.options.aggregation not in ("constant-length", "token-sum"):
            return bent.objective(g)
        everywhere = g._replace(mask=torch.ones_like(g.mask))
        marks = g.mask.bool().to(torch.float32)
        return bent.objective(g, kl=lambda h: bent.mean(bent.kls(everywhere) * marks, h))


@fault("objective.parts")
class PartsOfSumsLoggedAsMeans(Reference):
    "Under a constant length, or a sum, what is logged of the terms are token means."

    def objective(self, *arguments):
        g = Given(*arguments)
        found = super().objective(*g)
        if g.options.aggregation not in ("constant-length", "token-sum"):
            return found
        logged = super().objective(*g.with_options(aggregation="token-mean", constant_length=None))
        return replace(logged, loss=found.loss)


@fault("objective.parts")
class WholeLoggedAsThePolicyLoss(_Logged):
    "With any surrogate but PPO the whole objective is logged as the policy loss."

    def _log(self, right, g):
        return {} if g.options.surrogate == "ppo" else {"policy_loss": right.loss.detach()}

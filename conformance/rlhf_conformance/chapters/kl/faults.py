"""Liars about the KL. Most of them exchange one estimator, or what it is made of."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._credit.bending import last_action, row_mean, spans
from rlhf_conformance.chapters._tensors import chosen, value_of, wide
from rlhf_conformance.faults import fault

ESTIMATES = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: torch.expm1(-d) + d,
    "abs": lambda d: d.abs(),
}


def log_ratio(lp, ref, mask):
    return chosen(lp, mask) - chosen(ref, mask)


def held(adapter, d, options, estimate):
    """The estimate of a log-ratio, with the clamps that are declared."""
    if options.estimator not in adapter.kl_clamped:
        return estimate(d)
    far, bound = adapter.kl_log_ratio_clamp, adapter.kl_clamp
    d = d.clamp(-far, far) if far else d
    return estimate(d).clamp(-bound, bound) if bound else estimate(d)


def bent(adapter, arguments, **changed):
    """The KL of the adapter's four arguments, with other estimates under these names."""
    lp, ref, mask, options = arguments
    estimate = {**ESTIMATES, **changed}[options.estimator]
    return held(adapter, log_ratio(lp, ref, mask), options, estimate).where(mask.bool(), 0.0)


# --- the estimators -----------------------------------------------------------------------------------------------


@fault("kl.k1", bug="kl-arguments-exchanged")
class KlArgumentsExchanged(Reference):
    "Policy and reference are exchanged: the KL of the reference from the policy."

    def kl(self, lp, ref, mask, options):
        return super().kl(ref, lp, mask, options)


@fault("kl.k1")
class K1Absolute(Reference):
    "k1 is never negative: its absolute value is taken."

    def kl(self, *arguments):
        return bent(self, arguments, k1=lambda d: d.abs())


@fault("kl.k1")
class K1OfProbabilities(Reference):
    "k1 is the difference of the probabilities, not of their logarithms."

    def kl(self, lp, ref, mask, options):
        if options.estimator != "k1":
            return super().kl(lp, ref, mask, options)
        return chosen(wide(lp).exp() - wide(ref).exp(), mask)


@fault("kl.k1")
class K1InBits(Reference):
    "k1 in bits: divided by log 2."

    def kl(self, *arguments):
        return bent(self, arguments, k1=lambda d: d / 0.6931471805599453)


@fault("kl.k2", bug="kl-square-without-half")
class KlSquareWithoutHalf(Reference):
    "k2 is the square of the log-ratio, without the half."

    def kl(self, *arguments):
        return bent(self, arguments, k2=lambda d: d**2)


@fault("kl.k2")
class K2OfTheRatio(Reference):
    "k2 is half the squared distance of the ratio from 1: nearly right near the reference."

    def kl(self, *arguments):
        return bent(self, arguments, k2=lambda d: torch.expm1(d) ** 2 / 2)


@fault("kl.k2")
class K2HalvedInside(Reference):
    "k2 is the square of half the log-ratio."

    def kl(self, *arguments):
        return bent(self, arguments, k2=lambda d: (d / 2) ** 2)


@fault("kl.k3", bug="k3-direction")
class K3Direction(Reference):
    "k3 of the log-ratio turned round: exp(d) - 1 - d, never negative and 0 at the reference, too."

    def kl(self, *arguments):
        return bent(self, arguments, k3=lambda d: torch.expm1(d) - d)


@fault("kl.k3")
class K3WithoutTheLogRatio(Reference):
    "k3 is exp(-d) - 1, which is 0 on average whatever the policy."

    def kl(self, *arguments):
        return bent(self, arguments, k3=lambda d: torch.expm1(-d))


@fault("kl.k3")
class K3OfSecondOrder(Reference):
    "k3 is its expansion d^2 / 2: right near the reference."

    def kl(self, *arguments):
        return bent(self, arguments, k3=lambda d: d**2 / 2)


@fault("kl.k3")
class K3WithoutTheOne(Reference):
    "The 1 is not taken off: exp(-d) + d."

    def kl(self, *arguments):
        return bent(self, arguments, k3=lambda d: torch.exp(-d) + d)


@fault("kl.abs")
class AbsOfTheRatio(Reference):
    "abs is the distance of the ratio from 1."

    def kl(self, *arguments):
        return bent(self, arguments, abs=lambda d: torch.expm1(d).abs())


@fault("kl.abs")
class AbsIsK1(Reference):
    "abs is k1, with its sign."

    def kl(self, *arguments):
        return bent(self, arguments, abs=lambda d: d)


@fault("kl.abs")
class AbsRounded(Reference):
    "abs is quadratic below 1, as in the Huber loss."

    def kl(self, *arguments):
        return bent(self, arguments, abs=lambda d: torch.where(d.abs() < 1, d**2 / 2, d.abs() - 0.5))


# --- what holds of them -------------------------------------------------------------------------------------------


@fault("kl.agreement")
class AbsSmoothed(Reference):
    "abs is sqrt(d^2 + 1e-6), which has a slope at 0 and is not 0 there."

    def kl(self, *arguments):
        return bent(self, arguments, abs=lambda d: (d**2 + 1e-6).sqrt())


@fault("kl.agreement")
class SmallNumberInTheLogarithm(Reference):
    "The policy's log-prob is that of its probability plus 1e-6."

    def kl(self, lp, ref, mask, options):
        return super().kl((wide(lp).exp() + 1e-6).log(), ref, mask, options)


@fault("kl.agreement")
class KlLessItsMean(Reference):
    "The mean of the batch's KL is taken off each, as if it were a baseline."

    def kl(self, lp, ref, mask, options):
        right = super().kl(lp, ref, mask, options)
        mean = right.sum() / mask.bool().sum().clamp(min=1)
        return chosen(right - mean.detach(), mask)


@fault("kl.not-negative")
class K3InBfloat16(Reference):
    "k3 is computed in bfloat16, where exp(-d) - 1 + d of a small d is rounding alone."

    def kl(self, *arguments):
        return bent(self, arguments, k3=lambda d: (torch.exp(-d.bfloat16()) - 1 + d.bfloat16()).to(d.dtype))


@fault("kl.not-negative")
class SignedWhereSmall(Reference):
    "Below 0.05 the log-ratio itself is given for k3 and abs."

    def kl(self, *arguments):
        def signed(name):
            return lambda d: torch.where(d.abs() < 0.05, d, ESTIMATES[name](d))

        return bent(self, arguments, k3=signed("k3"), abs=signed("abs"))


@fault("kl.not-negative")
class KlBelowMargin(Reference):
    "k2 and k3 count from 1e-4 on: what is below it is negative."

    def kl(self, *arguments):
        names = ("k2", "k3")
        return bent(self, arguments, **{name: lambda d, name=name: ESTIMATES[name](d) - 1e-4 for name in names})


@fault("kl.expectation")
class KlWeightedAlready(Reference):
    "Each estimate is weighted with the probability of its token, as if all tokens were at hand."

    def kl(self, lp, ref, mask, options):
        return super().kl(lp, ref, mask, options) * chosen(wide(lp).exp(), mask)


@fault("kl.expectation")
class K3OfThirdOrder(Reference):
    "k3 is its expansion up to the third order: right to three digits near the reference."

    def kl(self, *arguments):
        return bent(self, arguments, k3=lambda d: d**2 / 2 - d**3 / 6)


@fault("kl.expectation")
class K1OfTheMixture(Reference):
    "The reference is mixed with the policy: twice the log-ratio to the mean of both probabilities."

    def kl(self, lp, ref, mask, options):
        middle = (wide(lp).exp() / 2 + wide(ref).exp() / 2).log()
        return super().kl(lp, lp - 2 * (lp - middle), mask, options)


# --- clamps -------------------------------------------------------------------------------------------------------


@fault("kl.clamp")
class KlClampIgnored(Reference):
    "No estimate is clamped."

    def kl(self, lp, ref, mask, options):
        return ESTIMATES[options.estimator](log_ratio(lp, ref, mask))


@fault("kl.clamp")
class KlClampedAtHalf(Reference):
    "The clamp is half of what is declared."

    def kl(self, lp, ref, mask, options):
        right = super().kl(lp, ref, mask, options)
        return right.clamp(-self.kl_clamp / 2, self.kl_clamp / 2) if options.estimator in self.kl_clamped else right


@fault("kl.clamp")
class EveryEstimateClamped(Reference):
    "k1, k2 and abs are held within 10 as well."

    def kl(self, *arguments):
        return super().kl(*arguments).clamp(-10.0, 10.0)


@fault("kl.clamped-gradient", bug="k3-clamp-after-exp")
class K3ClampAfterExp(Reference):
    "The clamp comes after the exponential: the value is 10, the gradient 0 times infinity."

    def kl(self, lp, ref, mask, options):
        if options.estimator != "k3":
            return super().kl(lp, ref, mask, options)
        d = log_ratio(lp, ref, mask)
        return (torch.exp(-d) - 1 + d).clamp(-10.0, 10.0)


@fault("kl.clamped-gradient")
class ClampWithoutItsGradient(Reference):
    "The value is clamped, the gradient is that of the estimate that was not."

    def kl(self, lp, ref, mask, options):
        d = log_ratio(lp, ref, mask)
        free = ESTIMATES[options.estimator](d.clamp(-60.0, 60.0))
        return value_of(super().kl(lp, ref, mask, options), gradient_of=free)


@fault("kl.clamped-gradient")
class ClampWithLinearEnd(Reference):
    "Beyond the clamp the gradient is that of k1, which is meant to bring the policy back."

    def kl(self, lp, ref, mask, options):
        right = super().kl(lp, ref, mask, options)
        if options.estimator not in self.kl_clamped:
            return right
        d = log_ratio(lp, ref, mask)
        return torch.where(right.abs() >= self.kl_clamp, value_of(right, gradient_of=d), right)


# --- the gradient -------------------------------------------------------------------------------------------------


@fault("kl.gradient", bug="kl-term-encourages")
class KlGradientTurned(Reference):
    "The value is right, its gradient has the other sign."

    def kl(self, lp, ref, mask, options):
        return super().kl(2 * lp.detach() - lp, ref, mask, options)


@fault("kl.gradient")
class KlDetached(Reference):
    "The KL has no graph: a term of the loss that is logged and does nothing."

    def kl(self, *arguments):
        return super().kl(*arguments).detach()


@fault("kl.gradient")
class K3WithTheGradientOfK1(Reference):
    "k3 has the gradient of k1: the exponential is detached."

    def kl(self, *arguments):
        return bent(self, arguments, k3=lambda d: torch.expm1(-d.detach()) + d)


@fault("kl.gradient")
class KlGradientHalved(Reference):
    "Half of the gradient is lost, as where the reference shares a layer with the policy."

    def kl(self, lp, ref, mask, options):
        return super().kl((lp + lp.detach()) / 2, ref, mask, options)


@fault("kl.expected-gradient")
class K3GradientUpsideDown(Reference):
    "The gradient of k3 is exp(d) - 1, nearly right near the reference."

    def kl(self, *arguments):
        return bent(
            self,
            arguments,
            k3=lambda d: value_of(ESTIMATES["k3"](d), gradient_of=torch.exp(d) - d),
        )


@fault("kl.expected-gradient")
class K1AsScore(Reference):
    "k1 has the gradient of a score: its own value, so that it does not vanish on average."

    def kl(self, *arguments):
        return bent(self, arguments, k1=lambda d: value_of(d, gradient_of=d**2 / 2))


@fault("kl.expected-gradient")
class K2WithTheGradientOfAbs(Reference):
    "The gradient of k2 is cut to its sign."

    def kl(self, *arguments):
        return bent(self, arguments, k2=lambda d: value_of(d**2 / 2, gradient_of=d.abs()))


# --- the mask -----------------------------------------------------------------------------------------------------


@fault("kl.mask")
class KlSmoothedOverCells(Reference):
    "A tenth of each KL is the mean over all cells, pads included."

    def kl(self, lp, ref, mask, options):
        everywhere = ESTIMATES["abs"](wide(lp) - wide(ref)).detach().mean()
        return chosen(super().kl(lp, ref, mask, options) + 0.1 * everywhere, mask)


@fault("kl.mask")
class KlGradientOfPads(Reference):
    "The value is right, but the log-probs of pads have a gradient, too."

    def kl(self, lp, ref, mask, options):
        pads = wide(lp).masked_fill(mask.bool(), 0.0)
        return super().kl(lp, ref, mask, options) + (pads - pads.detach()).sum()


@fault("kl.mask")
class KlLessTheLargestCell(Reference):
    "Log-ratios are scaled down where the largest of all cells is above 5, pads included."

    def kl(self, lp, ref, mask, options):
        largest = (wide(lp) - wide(ref)).detach().abs().amax().clamp(min=5.0)
        return super().kl(lp, ref, mask, options) * (5.0 / largest)


@fault("kl.nan-under-mask")
class KlMaskMultiplied(Reference):
    "The log-ratio is multiplied by the mask, and NaN * 0 is NaN."

    def kl(self, lp, ref, mask, options):
        return held(self, (wide(lp) - wide(ref)) * mask, options, ESTIMATES[options.estimator])


@fault("kl.nan-under-mask")
class KlMaskedAfterwards(Reference):
    "The estimate is selected by the mask after it was taken: right values, and a gradient of NaN under the mask."

    def kl(self, lp, ref, mask, options):
        estimate = held(self, wide(lp) - wide(ref), options, ESTIMATES[options.estimator])
        return estimate.where(mask.bool(), 0.0)


@fault("kl.masked-cells")
class KlOfPadsLeft(Reference):
    "Pads have a KL as well, although 0 is promised."

    def kl(self, lp, ref, mask, options):
        return super().kl(lp, ref, torch.ones_like(mask), options)


@fault("kl.masked-cells")
class KlOfObservationsLeft(Reference):
    "What lies behind the last action is 0, an observation between two is not."

    def kl(self, lp, ref, mask, options):
        return super().kl(lp, ref, spans(mask), options)


@fault("kl.holes", bug="kl-over-retrieved-tokens")
class KlOverRetrievedTokens(Reference):
    "The mask goes by lengths: whatever stands before the last action has a KL."

    def kl(self, lp, ref, mask, options):
        columns = torch.arange(mask.shape[1], device=mask.device)
        return super().kl(lp, ref, columns <= last_action(mask), options)


@fault("kl.holes")
class KlEndsAtTheFirstHole(Reference):
    "Only the first turn has a KL: what lies behind an observation is 0."

    def kl(self, lp, ref, mask, options):
        marks = mask.bool()
        behind = (~marks & (marks.cumsum(1) > 0)).cumsum(1) > 0
        return super().kl(lp, ref, marks & ~behind, options)


@fault("kl.holes")
class KlOfCompactedTurns(Reference):
    "Actions are moved together over the observations, and their KL is not moved back."

    def kl(self, lp, ref, mask, options):
        marks = mask.bool()
        order = (~marks).long().argsort(dim=1, stable=True)
        starts = marks.long().argmax(1, keepdim=True)
        columns = torch.arange(mask.shape[1], device=mask.device)[None] - starts
        compact = super().kl(lp, ref, mask, options).gather(1, order)
        return chosen(compact.gather(1, columns.clamp(min=0).expand_as(order)), mask)


@fault("kl.own-token")
class KlMeanOfTheRow(Reference):
    "Every action has the mean of its row."

    def kl(self, lp, ref, mask, options):
        right = super().kl(lp, ref, mask, options)
        return chosen(row_mean(right, mask).expand_as(right), mask)


@fault("kl.own-token")
class KlReferenceOneLate(Reference):
    "The reference's log-prob is that of the token before."

    def kl(self, lp, ref, mask, options):
        return super().kl(lp, ref.roll(1, 1), mask, options)


@fault("kl.own-token")
class KlReferenceOfTheFirstRow(Reference):
    "The reference's log-probs are those of the first row, broadcast over the batch."

    def kl(self, lp, ref, mask, options):
        return super().kl(lp, ref[:1].expand_as(ref), mask, options)


@fault("kl.mask-dtype")
class KlMaskInverted(Reference):
    "~mask of an integer mask is -1 and -2, both true: everything is masked."

    def kl(self, lp, ref, mask, options):
        hidden = ~mask if mask.dtype == torch.bool else (~mask.long()).bool()
        return super().kl(lp, ref, mask, options).masked_fill(hidden, 0.0)


@fault("kl.mask-dtype")
class KlMaskSubtracted(Reference):
    "1 - mask, which a mask of booleans does not allow."

    def kl(self, lp, ref, mask, options):
        return super().kl(lp, ref, mask, options).masked_fill((1 - mask).bool(), 0.0)


# --- what else is changed -----------------------------------------------------------------------------------------


@fault("kl.inputs-unwritten")
class ReferenceMaskedInPlace(Reference):
    "The reference's log-probs are filled with 0 under the mask, in the caller's tensor."

    def kl(self, lp, ref, mask, options):
        ref.masked_fill_(~mask.bool(), 0.0)
        return super().kl(lp, ref, mask, options)


@fault("kl.inputs-unwritten")
class LogRatioInPlace(Reference):
    "The log-ratio is written into the reference's log-probs."

    def kl(self, lp, ref, mask, options):
        right = super().kl(lp, ref.clone(), mask, options)
        ref.sub_(lp.detach().to(ref.dtype)).neg_()
        return right


@fault("kl.inputs-unwritten")
class LogProbsHeldInPlace(Reference):
    "Log-probs of the policy are held above -1 in place, after they were used."

    def kl(self, lp, ref, mask, options):
        right = super().kl(lp.clone(), ref, mask, options)
        lp.detach().clamp_(min=-1.0)
        return right


@fault("kl.side-effects")
class KlScaledByHistory(Reference):
    "The KL is divided by a scale that runs along from call to call."

    def kl(self, lp, ref, mask, options):
        right = super().kl(lp, ref, mask, options)
        self.scale = 0.9 * getattr(self, "scale", 1.0) + 0.1 * (1.0 + float(right.detach().abs().mean()))
        return right / self.scale


@fault("kl.side-effects")
class KlLeavesGradientsOff(Reference):
    "Gradients are switched off for the reference, and stay so."

    def kl(self, *arguments):
        right = super().kl(*arguments)
        torch.set_grad_enabled(False)
        return right

"""Liars about token log-probs and entropies."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.bending import value_of
from rlhf_conformance.faults import fault


def gathered(log_softmax, labels):
    return log_softmax.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)


# --- the log-prob of the label ------------------------------------------------------------------------------------


@fault("log-probs.definition", bug="argmax-token")
class ArgmaxToken(Reference):
    "The log-prob of the likeliest token, not of the token that was sampled."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, logits.argmax(-1), temperature)


@fault("log-probs.definition", bug="first-candidate")
class FirstCandidate(Reference):
    "The log-prob of the first entry of the vocabulary, whatever was sampled."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, torch.zeros_like(labels), temperature)


@fault("log-probs.definition", bug="double-shift")
class LogitsShiftedAgain(Reference):
    "Logits and labels come aligned and are shifted once more; right for a single position."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits.roll(1, dims=1), labels, temperature)


@fault("log-probs.definition")
class UnnormalisedLogit(Reference):
    "The logit of the label less the largest one: the log of the normalizer is left out."

    def token_log_probs(self, logits, labels, temperature):
        z = logits.float() / temperature
        return gathered(z - z.amax(-1, keepdim=True), labels)


@fault("log-probs.definition")
class LabelsOfFirstSample(Reference):
    "Every sample is scored on the labels of the first; right for one sample."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels[:1].expand_as(labels).contiguous(), temperature)


@fault("log-probs.definition")
class LikeliestSixteenOnly(Reference):
    "The softmax runs over the 16 largest logits only, as far as an inference engine hands them out."

    def token_log_probs(self, logits, labels, temperature):
        if logits.shape[-1] <= 16:
            return super().token_log_probs(logits, labels, temperature)
        z = logits.float() / temperature
        return gathered(z - z.topk(16).values.logsumexp(-1, keepdim=True), labels)


@fault("log-probs.definition")
class WordsBeyondRightVocabularyHalf(Reference):
    "The vocabulary is split over two ranks and the normalizer is that of the label's own half."

    def token_log_probs(self, logits, labels, temperature):
        half = (logits.shape[-1] + 1) // 2
        mine = (torch.arange(logits.shape[-1], device=logits.device) < half) == (labels < half).unsqueeze(-1)
        return super().token_log_probs(logits.float().masked_fill(~mine, -1e9), labels, temperature)


# --- temperature --------------------------------------------------------------------------------------------------


@fault("log-probs.temperature", bug="temperature-ignored")
class LogProbTemperatureIgnored(Reference):
    "The log-softmax of the logits as they are, whatever the temperature."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, 1.0)


@fault("log-probs.temperature")
class LogProbTemperatureMultiplied(Reference):
    "Logits are multiplied by the temperature."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, 1 / temperature)


@fault("log-probs.temperature")
class LogProbTemperatureTwice(Reference):
    "The caller divides by the temperature, and the kernel does so again."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, temperature**2)


@fault("log-probs.temperature")
class LogProbDividedAfterwards(Reference):
    "The log-prob is divided by the temperature instead of the logits."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, 1.0) / temperature


@fault("log-probs.temperature")
class LogProbTemperatureAtLeastOne(Reference):
    "Temperatures below 1 are taken as 1."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, max(1.0, temperature))


@fault("log-probs.temperature")
class TemperatureOfLabelOnly(Reference):
    "The label's logit is divided by the temperature, the normalizer is not."

    def token_log_probs(self, logits, labels, temperature):
        z = logits.float()
        return gathered(z, labels) / temperature - z.logsumexp(-1)


# --- precision, chunks, range -------------------------------------------------------------------------------------


@fault("log-probs.float32", bug="low-precision-log-prob")
class LogSoftmaxInHalf(Reference):
    "The log-softmax runs in the dtype of the logits and is upcast afterwards."

    def token_log_probs(self, logits, labels, temperature):
        return gathered((logits / temperature).log_softmax(-1), labels).float()


@fault("log-probs.float32")
class LogitsCentredInHalf(Reference):
    "The mean of the logits is taken off in their own dtype, before the upcast."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits - logits.mean(-1, keepdim=True), labels, temperature)


@fault("log-probs.float32")
class LogProbReturnedInHalf(Reference):
    "Computed in float32, but returned in the dtype of the logits."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, temperature).to(logits.dtype)


@fault("log-probs.float32")
class TemperatureInHalf(Reference):
    "Logits are divided by the temperature in their own dtype, and upcast afterwards."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits / temperature, labels, 1.0)


@fault("log-probs.every-position", bug="chunk-count-mismatch")
class ChunkCountMismatch(Reference):
    "Eight chunks of length // 8 positions: what is left over is dropped and stays 0."

    def token_log_probs(self, logits, labels, temperature):
        covered = 8 * max(1, labels.shape[1] // 8)
        kept = torch.arange(labels.shape[1], device=labels.device) < covered
        return super().token_log_probs(logits, labels, temperature).where(kept, 0.0)


@fault("log-probs.every-position")
class LastChunkSkipped(Reference):
    "Rows longer than 64 are done in chunks of 64, and the last, shorter one is never reached."

    def token_log_probs(self, logits, labels, temperature):
        length = labels.shape[1]
        covered = length if length <= 64 else length // 64 * 64
        kept = torch.arange(length, device=labels.device) < covered
        return super().token_log_probs(logits, labels, temperature).where(kept, 0.0)


@fault("log-probs.every-position")
class NothingPastThousand(Reference):
    "The buffer of the answer holds 1024 positions of a row; later ones stay 0."

    def token_log_probs(self, logits, labels, temperature):
        kept = torch.arange(labels.shape[1], device=labels.device) < 1024
        return super().token_log_probs(logits, labels, temperature).where(kept, 0.0)


@fault("log-probs.stable")
class LogOfSoftmax(Reference):
    "The logarithm of the softmax: minus infinity as soon as a probability underflows."

    def token_log_probs(self, logits, labels, temperature):
        return gathered((logits.float() / temperature).softmax(-1).log(), labels)


@fault("log-probs.stable")
class EpsilonInLogarithm(Reference):
    "A small number is added to the probability before its logarithm is taken."

    def token_log_probs(self, logits, labels, temperature):
        return (super().token_log_probs(logits, labels, temperature).exp() + 1e-10).log()


@fault("log-probs.stable")
class MaximumOfBatch(Reference):
    "The largest logit of the whole batch is taken off, not that of the row: all other rows may underflow."

    def token_log_probs(self, logits, labels, temperature):
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        z = z - z.max()
        return gathered(z, labels) - z.exp().sum(-1).log()


@fault("log-probs.stable")
class LogProbFloor(Reference):
    "Log-probs are not let below -50."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, temperature).clamp(min=-50.0)


# --- gradient -----------------------------------------------------------------------------------------------------


@fault("log-probs.gradient")
class NormaliserDetached(Reference):
    "Right value, but no gradient through the normalizer: the other tokens are not pushed down."

    def token_log_probs(self, logits, labels, temperature):
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        return gathered(z, labels) - z.logsumexp(-1).detach()


@fault("log-probs.gradient")
class GradientOfTemperatureOne(Reference):
    "Right value, but the gradient is that of temperature 1."

    def token_log_probs(self, logits, labels, temperature):
        right = super().token_log_probs(logits, labels, temperature)
        return value_of(right, gradient_of=super().token_log_probs(logits, labels, 1.0))


@fault("log-probs.gradient")
class GradientOfFirstSample(Reference):
    "Right value, but only the first sample sends a gradient back; right for one sample."

    def token_log_probs(self, logits, labels, temperature):
        right = super().token_log_probs(logits, labels, temperature)
        return torch.cat([right[:1], right[1:].detach()])


@fault("log-probs.gradient")
class LogProbsWithoutGraph(Reference):
    "Right value without any graph, as under a forgotten no_grad."

    def token_log_probs(self, logits, labels, temperature):
        with torch.no_grad():
            return super().token_log_probs(logits, labels, temperature)


# --- entropy ------------------------------------------------------------------------------------------------------


@fault("log-probs.entropy", bug="entropy-before-temperature")
class EntropyBeforeTemperature(Reference):
    "Entropy of the logits as they are, while the log-probs are those of the temperature."

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits, 1.0)


@fault("log-probs.entropy")
class EntropyInBits(Reference):
    "Entropy with the logarithm to the base 2."

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits, temperature) / 0.6931471805599453


@fault("log-probs.entropy")
class EntropyPerWord(Reference):
    "Entropy divided by the logarithm of the vocabulary, so that it lies within 0 and 1."

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits, temperature) / torch.tensor(float(logits.shape[-1])).log()


@fault("log-probs.entropy")
class EntropyOfLikeliestSixteen(Reference):
    "Entropy over the 16 largest logits only; right where the vocabulary is not larger."

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits.topk(min(16, logits.shape[-1])).values, temperature)


@fault("log-probs.entropy")
class EntropyNegative(Reference):
    "The sum of p log p, without its minus sign."

    def token_entropy(self, logits, temperature):
        return -super().token_entropy(logits, temperature)


@fault("log-probs.entropy-order", bug="entropy-after-inplace-log-prob")
class GradientWrittenOverLogits(Reference):
    "The kernel leaves the gradient of the log-prob in the logits, where the entropy then reads it."

    def token_log_probs(self, logits, labels, temperature):
        answer = super().token_log_probs(logits.clone(), labels, temperature)
        with torch.no_grad():
            wreck = (logits / temperature).softmax(-1)
            logits.copy_(wreck.scatter_add(-1, labels.clamp(min=0).unsqueeze(-1), -torch.ones_like(wreck[..., :1])))
        return answer


@fault("log-probs.entropy-order")
class TemperatureDividedInPlace(Reference):
    "logits.div_(temperature): the entropy divides by it once more."

    def token_log_probs(self, logits, labels, temperature):
        answer = super().token_log_probs(logits.clone(), labels, temperature)
        with torch.no_grad():
            logits.div_(temperature)
        return answer


@fault("log-probs.entropy-order")
class EntropyWrittenOverLogits(Reference):
    "The entropy leaves the probabilities in the logits, where log-probs and a second entropy then read them."

    def token_entropy(self, logits, temperature):
        answer = super().token_entropy(logits.clone(), temperature)
        with torch.no_grad():
            logits.copy_((logits / temperature).softmax(-1))
        return answer


@fault("log-probs.entropy-order")
class LabelRuledOutInPlace(Reference):
    "The label's logit is overwritten on the way, so that the entropy misses the token that was sampled."

    def token_log_probs(self, logits, labels, temperature):
        answer = super().token_log_probs(logits.clone(), labels, temperature)
        with torch.no_grad():
            logits.scatter_(-1, labels.clamp(min=0).unsqueeze(-1), -1e4)
        return answer


# --- ignored labels, inputs, side effects -------------------------------------------------------------------------


@fault("log-probs.ignored-label", bug="ignored-label-gather")
class IgnoredLabelGather(Reference):
    "Label -100 goes into the gather, which fails."

    def token_log_probs(self, logits, labels, temperature):
        return (logits.float() / temperature).log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


@fault("log-probs.ignored-label")
class IgnoredLabelIsTokenZero(Reference):
    "Label -100 becomes token 0 for the gather, and nobody takes its log-prob out again."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels.clamp(min=0), temperature)


@fault("log-probs.inputs-unwritten")
class LabelsCleanedInPlace(Reference):
    "labels[labels == -100] = 0, in the caller's tensor, which loses its mask by it."

    def token_log_probs(self, logits, labels, temperature):
        answer = super().token_log_probs(logits, labels.clone(), temperature)
        labels.clamp_(min=0)
        return answer


@fault("log-probs.inputs-unwritten", bug="entropy-after-inplace-log-prob")
class LogitsCentredInPlace(Reference):
    "The largest logit is taken off in place: harmless for softmax and entropy, but not for who logs the logits."

    def token_log_probs(self, logits, labels, temperature):
        answer = super().token_log_probs(logits.clone(), labels, temperature)
        with torch.no_grad():
            logits.sub_(logits.amax(-1, keepdim=True))
        return answer


@fault("log-probs.side-effects")
class LogProbsSeedTheGenerator(Reference):
    "Every call seeds the global random generator."

    def token_log_probs(self, logits, labels, temperature):
        torch.manual_seed(0)
        return super().token_log_probs(logits, labels, temperature)


@fault("log-probs.side-effects")
class LogProbsLeaveGradModeOff(Reference):
    "Grad mode is switched off and left so."

    def token_log_probs(self, logits, labels, temperature):
        answer = super().token_log_probs(logits, labels, temperature)
        torch.set_grad_enabled(False)
        return answer

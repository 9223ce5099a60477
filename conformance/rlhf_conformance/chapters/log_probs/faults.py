"""Liars about token log-probs and entropies."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._tensors import value_of
from rlhf_conformance.faults import fault


def gathered(log_softmax, labels):
    return log_softmax.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
class TemperatureAtLeastOneTenth(Reference):
    "Temperatures below 0.1 are taken as greedy ones, and so as 1."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, temperature if temperature >= 0.1 else 1.0)


@fault("log-probs.temperature")
class WholeTemperatureIgnored(Reference):
    "A temperature is used if it is a float; the whole number 2 is passed over."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, temperature if isinstance(temperature, float) else 1.0)


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


@fault("log-probs.strides")
class StridesTakenForGranted(Reference):
    "The kernel walks through memory as if the logits were contiguous; of a slice it reads other positions."

    def token_log_probs(self, logits, labels, temperature):
        _, length, vocabulary = logits.shape
        walked = logits.as_strided(logits.shape, (length * vocabulary, vocabulary, 1))
        return super().token_log_probs(walked, labels, temperature)


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


@fault("log-probs.gradient", bug="gradient-in-half")
class ProbabilitiesOfGradientInHalf(Reference):
    "Right value, but the gradient's probabilities are kept in the dtype of the logits, where a confident one is 1."

    def token_log_probs(self, logits, labels, temperature):
        right = super().token_log_probs(logits, labels, temperature)
        p = (_wide(logits.detach()) / temperature).softmax(-1).to(logits.dtype)
        onehot = torch.nn.functional.one_hot(labels.clamp(min=0), logits.shape[-1]) * (labels >= 0).unsqueeze(-1)
        slope = (onehot - p).where((labels >= 0).unsqueeze(-1), 0.0) / temperature
        surrogate = (slope * logits.where(slope != 0, 0.0)).sum(-1, dtype=right.dtype)
        return value_of(right, gradient_of=surrogate)


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


# --- entropies: precision, range, gradient ------------------------------------------------------------------------


@fault("log-probs.entropy-float32", bug="entropy-in-half")
class EntropyInHalf(Reference):
    "Log-sum-exp less the mean logit, in the dtype of the logits, and upcast afterwards."

    def token_entropy(self, logits, temperature):
        z = logits / temperature
        return (z.logsumexp(-1) - (z.softmax(-1) * z).sum(-1)).float()


@fault("log-probs.entropy-float32")
class EntropyReturnedInHalf(Reference):
    "Computed in float32, but returned in the dtype of the logits."

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits, temperature).to(logits.dtype)


@fault("log-probs.entropy-stable")
class EntropyOfLogOfSoftmax(Reference):
    "Minus the sum of p times the logarithm of the softmax: 0 times -inf where a probability underflows."

    def token_entropy(self, logits, temperature):
        p = (_wide(logits) / temperature).softmax(-1)
        return -(p * p.log()).sum(-1)


@fault("log-probs.entropy-stable")
class EntropyWithoutMaximum(Reference):
    "The exponentials of the logits as they are, which overflow."

    def token_entropy(self, logits, temperature):
        z = _wide(logits) / temperature
        total = z.exp().sum(-1, keepdim=True)
        return total.squeeze(-1).log() - (z.exp() / total * z).sum(-1)


@fault("log-probs.entropy-graph", bug="entropy-without-graph")
class EntropyUnderNoGrad(Reference):
    "The entropy is computed under no_grad."

    def token_entropy(self, logits, temperature):
        with torch.no_grad():
            return super().token_entropy(logits, temperature)


@fault("log-probs.entropy-gradient", bug="entropy-without-graph")
class EntropyDetached(Reference):
    "The fused path hands out the entropy beside the log-probs, without a gradient."

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits, temperature).detach()


@fault("log-probs.entropy-gradient")
class EntropyProbabilitiesDetached(Reference):
    "Right value, but the probabilities are constants, and only their logarithm sends a gradient."

    def token_entropy(self, logits, temperature):
        log_p = (_wide(logits) / temperature).log_softmax(-1)
        return value_of(super().token_entropy(logits, temperature), gradient_of=-(log_p.exp().detach() * log_p).sum(-1))


@fault("log-probs.entropy-gradient")
class EntropyGradientOfTemperatureOne(Reference):
    "Right value, but the gradient is not divided by the temperature."

    def token_entropy(self, logits, temperature):
        right = super().token_entropy(logits, temperature)
        return value_of(right, gradient_of=right * temperature)


@fault("log-probs.entropy-gradient")
class EntropyGradientNanAtZero(Reference):
    "Right value, but the derivative of p log p is taken at p = 0, where it is infinite."

    def token_entropy(self, logits, temperature):
        return torch.special.entr((_wide(logits) / temperature).softmax(-1)).sum(-1)


@fault("log-probs.entropy-gradient")
class EntropyGradientOfRowMean(Reference):
    "Right value, but every position has the gradient of the mean over its row."

    def token_entropy(self, logits, temperature):
        right = super().token_entropy(logits, temperature)
        return value_of(right, gradient_of=right.mean(-1, keepdim=True).expand_as(right))


@fault("log-probs.entropy-masked-logits", bug="entropy-of-ruled-out-ids")
class EntropyOfRuledOutIds(Reference):
    "Minus the sum of p log p as it stands: 0 times -inf for an id that is ruled out."

    def token_entropy(self, logits, temperature):
        log_p = (_wide(logits) / temperature).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)


@fault("log-probs.entropy-masked-logits")
class EntropySelectedAfterProduct(Reference):
    "p log p is selected where p is above 0: right value, NaN in the gradient of an id that is ruled out."

    def token_entropy(self, logits, temperature):
        log_p = (_wide(logits) / temperature).log_softmax(-1)
        p = log_p.exp()
        return -torch.where(p > 0, p * log_p, 0.0).sum(-1)


# --- logits of -inf, and the path without a gradient --------------------------------------------------------------


@fault("log-probs.masked-logits")
class ProductWithOneHot(Reference):
    "The label is picked by a product with its one-hot vector: 0 times -inf for an id that is ruled out."

    def token_log_probs(self, logits, labels, temperature):
        log_p = (_wide(logits) / temperature).log_softmax(-1)
        onehot = torch.nn.functional.one_hot(labels.clamp(min=0), logits.shape[-1])
        return ((log_p * onehot).sum(-1)).where(labels >= 0, 0.0)


@fault("log-probs.masked-logits")
class LogitsCentredByMean(Reference):
    "The mean of the logits is taken off instead of the largest, and is -inf with any of them."

    def token_log_probs(self, logits, labels, temperature):
        z = _wide(logits) / temperature
        return super().token_log_probs(z - z.mean(-1, keepdim=True), labels, 1.0)


@fault("log-probs.masked-logits")
class RuledOutIdsCount(Reference):
    "Infinities among the logits are replaced by 0, so that ids that are ruled out get a share."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits.masked_fill(logits.isinf(), 0.0), labels, temperature)


@fault("log-probs.no-grad", bug="two-forward-paths")
class TemperatureOfTrainingOnly(Reference):
    "The path for old log-probs, where no gradient is wanted, forgets the temperature."

    def token_log_probs(self, logits, labels, temperature):
        wanted = torch.is_grad_enabled() and logits.requires_grad
        return super().token_log_probs(logits, labels, temperature if wanted else 1.0)


@fault("log-probs.no-grad")
class ScoringShiftedUnderNoGrad(Reference):
    "Under no_grad logits and labels are shifted against each other once more."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits if torch.is_grad_enabled() else logits.roll(1, 1), labels, temperature)


@fault("log-probs.no-grad")
class TemperatureOfScoringOnly(Reference):
    "The path with a graph forgets the temperature in its value, though not in its gradient."

    def token_log_probs(self, logits, labels, temperature):
        right = super().token_log_probs(logits, labels, temperature)
        if not right.requires_grad:
            return right
        return value_of(super().token_log_probs(logits, labels, 1.0), gradient_of=right)


@fault("log-probs.entropy-no-grad")
class EntropyOfTrainingInHalf(Reference):
    "The path with a graph takes the entropy of the logits rounded to bfloat16, to save their memory."

    def token_entropy(self, logits, temperature):
        right = super().token_entropy(logits, temperature)
        rounded = super().token_entropy(logits.detach().bfloat16(), temperature).to(right.dtype)
        return value_of(rounded, gradient_of=right) if right.requires_grad else right


@fault("log-probs.entropy-no-grad")
class EntropyUnscaledUnderNoGrad(Reference):
    "Under no_grad the entropy is that of temperature 1."

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits, temperature if torch.is_grad_enabled() else 1.0)


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


# --- many labels, long rows, ids that are ruled out ---------------------------------------------------------------


@fault("log-probs.definition")
class LabelsInFifteenBits(Reference):
    "Labels are kept in 15 bits: an id above 32767 is scored as another."

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels.where(labels < 0, labels & 0x7FFF), temperature)


@fault("log-probs.gradient")
class GradientOfWholeChunks(Reference):
    "Right value, but behind the last whole chunk of 256 positions there is no gradient; right for short rows."

    def token_log_probs(self, logits, labels, temperature):
        right = super().token_log_probs(logits, labels, temperature)
        whole = right.shape[1] - right.shape[1] % 256 if right.shape[1] > 256 else right.shape[1]
        return torch.cat([right[:, :whole], right[:, whole:].detach()], dim=1)


@fault("log-probs.entropy")
class EntropyOfWholeChunks(Reference):
    "Entropies are taken 256 positions at a time, and behind the last whole chunk they stay 0."

    def token_entropy(self, logits, temperature):
        right = super().token_entropy(logits, temperature)
        columns = torch.arange(right.shape[1], device=right.device)
        return right.where((columns < right.shape[1] // 256 * 256) | (right.shape[1] < 256), 0.0)


@fault("log-probs.ignored-label")
class IgnoredLogProbTimesZero(Reference):
    "The log-prob of some id is taken at a label of -100 and multiplied by 0, which is NaN where the id is ruled out."

    def token_log_probs(self, logits, labels, temperature):
        kept = labels >= 0
        return super().token_log_probs(logits, labels.where(kept, logits.shape[-1] - 1), temperature) * kept

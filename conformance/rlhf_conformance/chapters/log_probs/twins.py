"""Honest variants of the formulas over the vocabulary."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.twins import twin


def upcast(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def at_labels(log_softmax, labels):
    """Gathered, with 0.0 at label -100."""
    kept = labels >= 0
    return log_softmax.gather(-1, labels.where(kept, 0).unsqueeze(-1)).squeeze(-1).where(kept, 0.0)


@twin
class LogSoftmaxThenGather(Reference):
    "log_softmax over everything, then the label; entropy as minus the sum of p log p."

    def token_log_probs(self, logits, labels, temperature):
        return at_labels((upcast(logits) / temperature).log_softmax(-1), labels)

    def token_entropy(self, logits, temperature):
        log_p = (upcast(logits) / temperature).log_softmax(-1)
        log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)  # 0 times -inf is NaN
        return -(log_p.exp() * log_p).sum(-1)


@twin
class GatherMinusLogsumexp(Reference):
    "The label's logit less the log of the normalizer; entropy as the normalizer less the mean logit."

    def token_log_probs(self, logits, labels, temperature):
        z = upcast(logits) / temperature
        return (at_labels(z, labels) - z.logsumexp(-1)).where(labels >= 0, 0.0)

    def token_entropy(self, logits, temperature):
        z = upcast(logits) / temperature
        return z.logsumexp(-1) - (z.softmax(-1) * z.where(z > -torch.inf, 0.0)).sum(-1)


@twin
class EntropyOnlyLogged(LogSoftmaxThenGather):
    "A trainer without a bonus, which takes its entropies under no_grad and says so."

    entropy_gradient = False

    def token_entropy(self, logits, temperature):
        with torch.no_grad():
            return super().token_entropy(logits, temperature)


@twin
class TwoForwardPaths(GatherMinusLogsumexp):
    "Another formula where no gradient is wanted, and the same numbers."

    def token_log_probs(self, logits, labels, temperature):
        if torch.is_grad_enabled() and logits.requires_grad:
            return super().token_log_probs(logits, labels, temperature)
        return Reference.token_log_probs(self, logits, labels, temperature)


@twin
class CrossEntropyLogProbs(Reference):
    "Minus the cross entropy of torch, which knows label -100 itself."

    def token_log_probs(self, logits, labels, temperature):
        z = upcast(logits).flatten(0, 1) / temperature
        return -torch.nn.functional.cross_entropy(z, labels.flatten(), reduction="none").view_as(labels)

    def token_entropy(self, logits, temperature):
        z = upcast(logits).clamp(min=-1e30) / temperature  # its gradient is NaN for -inf
        return torch.distributions.Categorical(logits=z, validate_args=False).entropy()


@twin
class ChunksOfOne(Reference):
    "One position at a time."

    size = 1

    def token_log_probs(self, logits, labels, temperature):
        pairs = zip(logits.split(self.size, dim=1), labels.split(self.size, dim=1), strict=True)
        return torch.cat([at_labels((upcast(z) / temperature).log_softmax(-1), label) for z, label in pairs], dim=1)

    def token_entropy(self, logits, temperature):
        return torch.cat(
            [super(ChunksOfOne, self).token_entropy(z, temperature) for z in logits.split(self.size, 1)], 1
        )


@twin
class ChunksOfTwo(ChunksOfOne):
    "Two positions at a time."

    size = 2


@twin
class ChunksOfSeven(ChunksOfOne):
    "Seven positions at a time, the last chunk shorter."

    size = 7


@twin
class RowByRowLogProbs(Reference):
    "One row at a time in a loop, temperature folded in as a factor."

    def token_log_probs(self, logits, labels, temperature):
        rows = zip(logits, labels, strict=True)
        return torch.stack([at_labels((upcast(z) * (1 / temperature)).log_softmax(-1), y) for z, y in rows])


@twin
class LogProbsInFloat64(Reference):
    "float64 inside and outside."

    def token_log_probs(self, logits, labels, temperature):
        return at_labels((logits.double() / temperature).log_softmax(-1), labels)

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits.double(), temperature)


@twin
class LogProbsInFloat32(Reference):
    "float32 inside, whatever comes in: float64 logits as well."

    def token_log_probs(self, logits, labels, temperature):
        return at_labels((logits.float() / temperature).log_softmax(-1), labels)

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits.float(), temperature)


@twin
class VocabularyInParts(Reference):
    "The normalizer from two halves of the vocabulary, as over two tensor-parallel ranks, summed from the end."

    def token_log_probs(self, logits, labels, temperature):
        z = upcast(logits) / temperature
        largest = z.detach().amax(-1)
        parts = z.flip(-1).tensor_split(2, dim=-1)
        normalizer = sum((part - largest.unsqueeze(-1)).exp().sum(-1) for part in parts).log() + largest
        return (at_labels(z, labels) - normalizer).where(labels >= 0, 0.0)

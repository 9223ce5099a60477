"""Honest variants of the formulas: log-probs, masks, positions, packs and losses, each done by another way."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter, PackedSequences, PolicyLossResult, ProcessedSequences
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.twins import twin


def upcast(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def at_labels(log_softmax, labels):
    """Gathered, with 0.0 at label -100."""
    kept = labels >= 0
    return log_softmax.gather(-1, labels.where(kept, 0).unsqueeze(-1)).squeeze(-1).where(kept, 0.0)


# --- log-probs ----------------------------------------------------------------------------------------------------


@twin
class LogSoftmaxThenGather(Reference):
    "log_softmax over everything, then the label; entropy as minus the sum of p log p."

    def token_log_probs(self, logits, labels, temperature):
        return at_labels((upcast(logits) / temperature).log_softmax(-1), labels)

    def token_entropy(self, logits, temperature):
        log_p = (upcast(logits) / temperature).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)


@twin
class GatherMinusLogsumexp(Reference):
    "The label's logit less the log of the normaliser; entropy as the normaliser less the mean logit."

    def token_log_probs(self, logits, labels, temperature):
        z = upcast(logits) / temperature
        return (at_labels(z, labels) - z.logsumexp(-1)).where(labels >= 0, 0.0)

    def token_entropy(self, logits, temperature):
        z = upcast(logits) / temperature
        return z.logsumexp(-1) - (z.softmax(-1) * z).sum(-1)


@twin
class CrossEntropyLogProbs(Reference):
    "Minus the cross entropy of torch, which knows label -100 itself."

    def token_log_probs(self, logits, labels, temperature):
        z = upcast(logits).flatten(0, 1) / temperature
        return -torch.nn.functional.cross_entropy(z, labels.flatten(), reduction="none").view_as(labels)

    def token_entropy(self, logits, temperature):
        return torch.distributions.Categorical(logits=upcast(logits) / temperature, validate_args=False).entropy()


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
    "The normaliser from two halves of the vocabulary, as over two tensor-parallel ranks, summed from the end."

    def token_log_probs(self, logits, labels, temperature):
        z = upcast(logits) / temperature
        parts = z.flip(-1).tensor_split(2, dim=-1)
        normaliser = torch.stack([part.logsumexp(-1) for part in parts if part.shape[-1]]).logsumexp(0)
        return (at_labels(z, labels) - normaliser).where(labels >= 0, 0.0)


# --- rows, positions, packs ---------------------------------------------------------------------------------------


@twin
class RowsByLoop(Reference):
    "Masks of generated rows by a loop over lists, as int32 and bool."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        attention, action = [], []
        for row, prompt in zip(sequences.tolist(), prompt_mask.tolist(), strict=True):
            response = row[prompt_length:]
            ends = [i + 1 for i, token in enumerate(response) if token in stop_ids]
            length = min(ends, default=len(response))
            action.append([i < length for i in range(len(response))])
            attention.append(prompt + [int(i < length) for i in range(len(response))])
        device = sequences.device
        return ProcessedSequences(
            sequences.clone(), torch.tensor(attention, device=device).int(), torch.tensor(action, device=device)
        )


@twin
class ActionMaskAlone(Reference):
    "Only the action mask is made, as floats, from the column of the first stop."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        response = sequences[:, prompt_length:]
        stops = (response[..., None] == torch.tensor(stop_ids, device=response.device)).any(-1)
        width = response.shape[1]
        first = stops.long().argmax(1).where(stops.any(1), width)
        mask = torch.arange(width, device=response.device) <= first[:, None]
        return ProcessedSequences(action_mask=mask.float())


@twin
class PositionsFromFirstToken(Reference):
    "arange less the column of the first token, held at 0 on the left; pads on the right count on."

    def position_ids(self, attention_mask):
        columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        return (columns - attention_mask.long().argmax(-1, keepdim=True)).clamp(min=0)


@twin
class PadsAtPositionOne(Reference):
    "Pads get position 1, as transformers fills them."

    def position_ids(self, attention_mask):
        return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1).int()


@twin
class UnshiftedPack(Reference):
    "Labels as models of transformers want them: the ids themselves, -100 on each sequence's first; padding at the end."

    packed_labels = "unshifted"

    def pack_sequences(self, sequences):
        tail = sequences[0].new_zeros(-sum(map(len, sequences)) % 8)
        labels = [torch.cat([s.new_full((1,), -100), s[1:]]) for s in sequences]
        positions = [torch.arange(len(s), device=s.device) for s in (*sequences, tail)]
        labels.append(torch.full_like(tail, -100))
        return PackedSequences(*(torch.cat(x)[None] for x in ([*sequences, tail], positions, labels)))


# --- policy loss --------------------------------------------------------------------------------------------------


def averaged(losses, mask, options):
    """The aggregation asked for; an empty row is not counted."""
    losses = losses.where(mask.bool(), 0.0)
    if options.aggregation == "token-mean":
        return losses.sum() / (options.global_count or mask.bool().sum().clamp(min=1))
    lengths = mask.bool().sum(1)
    rows = losses.sum(1) / lengths.clamp(min=1)
    return rows.sum() / (options.global_count or (lengths > 0).sum().clamp(min=1))


@twin
class TextbookPolicyLoss(Reference):
    "max(-r A, -clip(r) A) as in CleanRL, on inputs selected by the mask and a log-ratio held below 20."

    def policy_loss(self, new, old, advantages, mask, options):
        new, old, advantages = (upcast(x).where(mask.bool(), 0.0) for x in (new, old, advantages))
        ratio = (new - old).clamp(-20.0, 20.0).exp()
        clipped = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        losses = torch.max(-advantages * ratio, -advantages * clipped)
        if options.dual_clip is not None:
            losses = torch.where(advantages < 0, torch.min(losses, -options.dual_clip * advantages), losses)
        return averaged(losses, mask, options)


@twin
class BranchFreePolicyLoss(Reference):
    "The band is chosen by the sign of the advantage; the ratio comes from expm1, with its metrics in Python numbers."

    def policy_loss(self, new, old, advantages, mask, options):
        new, old, advantages = (upcast(x).where(mask.bool(), 0.0) for x in (new, old, advantages))
        ceiling = options.dual_clip or math.exp(20.0)
        log_ratio = new - old
        upper = torch.where(advantages > 0, 1 + options.clip_eps_high, ceiling)
        lower = torch.where(advantages > 0, 0.0, 1 - options.clip_eps_low)
        ratio = log_ratio.clamp(max=20.0).expm1() + 1
        loss = averaged(-ratio.clamp(lower, upper) * advantages, mask, options)
        out = (ratio > upper) & (advantages > 0) | (ratio < lower) & (advantages < 0)
        count = max(1, int(mask.bool().sum()))
        return PolicyLossResult(loss, float(out.sum()) / count, float(-log_ratio.detach().sum()) / count)


@twin
class PolicyLossByLoop(Reference):
    "Token by token and row by row, from the last to the first, in plain loops over scalars."

    def policy_loss(self, new, old, advantages, mask, options):
        rows = []
        for i in reversed(range(mask.shape[0])):
            places = [j for j in reversed(range(mask.shape[1])) if mask[i, j]]
            rows.append([self._token(new[i, j], old[i, j], float(advantages[i, j]), options) for j in places])
        nothing = upcast(new).where(torch.zeros_like(new, dtype=torch.bool), 0.0).sum()
        if options.aggregation == "token-mean":
            weights = [1 / (options.global_count or sum(map(len, rows)) or 1) for _ in rows]
        else:
            count = options.global_count or sum(1 for row in rows if row) or 1
            weights = [1 / (count * len(row)) if row else 0.0 for row in rows]
        return nothing + sum(w * sum(row, nothing) for w, row in zip(weights, rows, strict=True))

    def _token(self, new, old, advantage, options):
        log_ratio = upcast(new) - upcast(old)
        ratio = float(log_ratio.detach().clamp(max=50.0).exp())
        bound = 0.0 if advantage == 0 else None
        if advantage > 0 and ratio > 1 + options.clip_eps_high:
            bound = 1 + options.clip_eps_high
        elif advantage < 0 and ratio < 1 - options.clip_eps_low:
            bound = 1 - options.clip_eps_low
        elif advantage < 0 and options.dual_clip is not None and ratio > options.dual_clip:
            bound = options.dual_clip
        return -advantage * (log_ratio.exp() if bound is None else 0 * log_ratio.detach() + bound)


class _Converted(Reference):
    """The reference's losses on inputs of another dtype."""

    def _converted(self, x):
        raise NotImplementedError

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(*(self._converted(x) for x in (new, old, advantages)), mask, options)

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(*(self._converted(x) for x in (values, old, returns)), mask, options)


@twin
class LossesInFloat64(_Converted):
    "float64 inside."

    def _converted(self, x):
        return x.double()


@twin
class LossesInFloat32(_Converted):
    "float32 inside, also for float64 inputs."

    def _converted(self, x):
        return x.float()


@twin
class LossesInOwnDtype(Reference):
    "Everything in the dtype that comes in, bfloat16 included, but for the mean, which is taken in float32."

    def policy_loss(self, new, old, advantages, mask, options):
        new, old, advantages = (x.where(mask.bool(), 0.0) for x in (new, old, advantages))
        ratio = (new - old).clamp(-20.0, 20.0).exp()
        clipped = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        surrogate = torch.min(ratio * advantages, clipped * advantages)
        if options.dual_clip is not None:
            surrogate = torch.where(advantages < 0, torch.max(surrogate, options.dual_clip * advantages), surrogate)
        return averaged(upcast(-surrogate), mask, options)


@twin
class LossesBackwards(Reference):
    "Rows and columns in reverse order, padded on both sides, with a mask of floats."

    def policy_loss(self, *arguments):
        return super().policy_loss(*self._turned(arguments))

    def value_loss(self, *arguments):
        return super().value_loss(*self._turned(arguments))

    def _turned(self, arguments):
        *tensors, mask, options = arguments
        tensors = [torch.nn.functional.pad(x.flip(0, 1), (2, 1)) for x in (*tensors, mask.float())]
        return (*tensors, options)


class _MicroBatches(Reference):
    """Row by row with the global count, added up."""

    def _summed(self, loss, arguments):
        *tensors, options = arguments
        mask = arguments[3].bool()
        count = mask.sum() if options.aggregation == "token-mean" else mask.any(1).sum()
        options = replace(options, global_count=options.global_count or max(1.0, float(count)))
        rows = zip(*(x.split(1) for x in tensors), strict=True)
        return sum(loss(*row, options) for row in rows)


@twin
class LossesInMicroBatches(_MicroBatches):
    "One row at a time with the global count, added up."

    def policy_loss(self, *arguments):
        return self._summed(lambda *row: Reference.policy_loss(self, *row).loss, arguments)

    def value_loss(self, *arguments):
        return self._summed(lambda *row: Reference.value_loss(self, *row), arguments)


@twin
class PackedLosses(Reference):
    "Actions are picked out of the rectangle first, then weighted one by one, so that the loss is a weighted sum."

    def policy_loss(self, new, old, advantages, mask, options):
        picked = mask.bool()
        new, old, advantages = (upcast(x)[picked] for x in (new, old, advantages))
        log_ratio = new - old
        ratio = log_ratio.clamp(max=20.0).exp()
        clipped = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        losses = -torch.minimum(ratio * advantages, clipped * advantages)
        if options.dual_clip is not None:
            losses = torch.where(advantages < 0, losses.minimum(-options.dual_clip * advantages), losses)
        return (losses * self._weights(picked, options)).sum()

    def value_loss(self, values, old, returns, mask, options):
        picked = mask.bool()
        values, old, returns = (upcast(x)[picked] for x in (values, old, returns))
        far = torch.nn.functional.mse_loss(values, returns, reduction="none") / 2
        if options.clip_eps is not None:
            near = torch.maximum(torch.minimum(values, old + options.clip_eps), old - options.clip_eps)
            far = torch.maximum(far, (near - returns).pow(2) / 2)
        return (far * self._weights(picked, options)).sum()

    def _weights(self, picked, options):
        """(number of actions,): what each action weighs."""
        lengths = picked.sum(1)
        if options.aggregation == "token-mean":
            return 1 / (options.global_count or lengths.sum())
        count = options.global_count or (lengths > 0).sum()
        return (1 / (lengths.clamp(min=1) * count))[:, None].expand_as(picked)[picked]


@twin
class SmallNumberInTheCount(Reference):
    "Means over the count plus 1e-8, so that an empty batch needs no case of its own."

    def policy_loss(self, *arguments):
        mask, options = arguments[3].bool(), arguments[4]
        return Reference.policy_loss(self, *arguments[:4], self._summing(mask, options))

    def value_loss(self, *arguments):
        mask, options = arguments[3].bool(), arguments[4]
        return Reference.value_loss(self, *arguments[:4], self._summing(mask, options))

    def _summing(self, mask, options):
        count = mask.sum() if options.aggregation == "token-mean" else mask.any(1).sum()
        return replace(options, global_count=(options.global_count or float(count)) + 1e-8)


# --- value loss ---------------------------------------------------------------------------------------------------


@twin
class TextbookValueLoss(Reference):
    "0.5 max of the two squares as in CleanRL, on inputs selected by the mask."

    def value_loss(self, values, old, returns, mask, options):
        values, old, returns = (upcast(x).where(mask.bool(), 0.0) for x in (values, old, returns))
        losses = (values - returns) ** 2
        if options.clip_eps is not None:
            clipped = old + torch.clamp(values - old, -options.clip_eps, options.clip_eps)
            losses = torch.max(losses, (clipped - returns) ** 2)
        return averaged(0.5 * losses, mask, options)


@twin
class Compiled(Reference):
    "Log-probs and losses traced by torch.compile and run by its eager backend."

    def token_log_probs(self, logits, labels, temperature):
        return _compiled(_scaled_log_softmax)(logits, labels, temperature)

    def policy_loss(self, new, old, advantages, mask, options):
        return _compiled(TextbookPolicyLoss.policy_loss)(self, new, old, advantages, mask, options)

    def value_loss(self, new, old, returns, mask, options):
        return _compiled(TextbookValueLoss.value_loss)(self, new, old, returns, mask, options)


def _scaled_log_softmax(logits, labels, temperature):
    return at_labels((upcast(logits) / temperature).log_softmax(-1), labels)


@cache
def _compiled(function):
    """With sizes as symbols, and a trace for each combination of options and dtypes."""
    compiled = torch.compile(function, backend="eager", dynamic=True)

    def call(*args):
        with torch._dynamo.config.patch(recompile_limit=100):
            return compiled(*args)

    return call


@twin
class ValueLossByDistance(Reference):
    "The larger of the two distances first, then one square."

    def value_loss(self, values, old, returns, mask, options):
        values, old, returns = (upcast(x).where(mask.bool(), 0.0) for x in (values, old, returns))
        distance = (values - returns).abs()
        if options.clip_eps is not None:
            clipped = values.clamp(old - options.clip_eps, old + options.clip_eps)
            distance = torch.where(distance >= (clipped - returns).abs(), distance, (clipped - returns).abs())
        return averaged(distance.square() / 2, mask, options)


# --- an adapter with one thing -------------------------------------------------------------------------------------


@twin
class LossesOnly(Adapter):
    "A trainer that has nothing but a plain policy and value loss: token mean, one bound for both sides."

    asymmetric_clip = False
    kl_metric = "k3"

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        mask = action_mask.bool()
        log_ratio = (upcast(log_probs).where(mask, 0.0) - upcast(old_log_probs).where(mask, 0.0)).clamp(-20.0, 20.0)
        advantages = upcast(advantages).where(mask, 0.0)
        ratio = log_ratio.exp()
        surrogate = torch.min(
            ratio * advantages,
            ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high) * advantages,
        )
        k3 = ratio - log_ratio - 1
        return PolicyLossResult(averaged(-surrogate, mask, options), approx_kl=averaged(k3, mask, options))

    def value_loss(self, values, old_values, returns, action_mask, options):
        return TextbookValueLoss.value_loss(self, values, old_values, returns, action_mask, options)

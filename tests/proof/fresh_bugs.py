"""Fresh bugs for rlhf-conformance: realistic slips, each in one method of the reference adapter.

Written without a look at the suite's own faults. BUGS holds them all with their true cause.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

import rlhf_reference as ref
from rlhf_conformance import PackedSequences, PolicyLossResult, ProcessedSequences
from rlhf_conformance.adapters.reference import Reference
from rlhf_reference.aggregation import aggregate
from rlhf_reference.inputs import ModelInputs
from rlhf_reference.positions import last_attended


@dataclass(frozen=True)
class Bug:
    name: str
    adapter: type
    chapters: tuple  # beginnings of clauses to run
    cause: str
    place: str
    accept: tuple  # statements that are true of it
    false: tuple  # statements that sound plausible and are false of it


BUGS: list[Bug] = []


def bug(name, chapters, cause, place, accept, false):
    def add(cls):
        BUGS.append(Bug(name, cls, tuple(chapters.split()), cause, place, tuple(accept), tuple(false)))
        return cls

    return add


def _rows(batch):
    """Padded rows whose actions are among the last T columns."""
    return batch.layout in ("padded", "left")


class _Built(Reference):
    """The reference adapter, whose models are made of these classes."""

    _actor, _reward, _critic = ref.Actor, ref.RewardModel, ref.CriticModel

    def load_actor(self, checkpoint):
        return self._ready(
            self._actor(checkpoint.path, temperature=checkpoint.temperature, **self._options(checkpoint))
        )

    def wrap_actor(self, module, checkpoint):
        more = {"temperature": checkpoint.temperature, "gradient_checkpointing": self.checkpointing}
        return self._ready(self._actor(module, lora=ref.LoraOptions() if self.lora else None, **more))

    def load_reward_model(self, checkpoint):
        return self._ready(self._reward(checkpoint.path, **self._regression(checkpoint)))

    def load_critic(self, checkpoint):
        return self._ready(self._critic(checkpoint.path, **self._regression(checkpoint)))

    def restore(self, kind, checkpoint, folder):
        made = {"actor": self._actor, "reward": self._reward, "critic": self._critic}[kind]
        more = {"temperature": checkpoint.temperature} if kind == "actor" else {}
        return self._ready(made.load(folder, **self._options(checkpoint, lora=False), **more))


# ---------------------------------------------------------------------------------- token log-probs and entropy


@bug(
    "logsumexp-in-input-dtype",
    "log-probs.",
    "selective log-softmax (gather minus logsumexp) is done in the dtype of the logits and only the result is upcast, so half-precision logits give log-probs rounded to half.",
    "logits in bfloat16/float16; float32 logits are right",
    ["computed in half precision / not upcast before the softmax", "right for float32 logits"],
    ["the temperature is wrong", "a wrong label is gathered"],
)
class LogsumexpInInputDtype(Reference):
    def token_log_probs(self, logits, labels, temperature):
        if temperature != 1.0:
            logits = logits / temperature
        ignored = labels == -100
        picked = logits.gather(-1, labels.masked_fill(ignored, 0).unsqueeze(-1)).squeeze(-1)
        lse = torch.stack([torch.logsumexp(row, dim=-1) for row in logits])
        return (picked - lse).float().masked_fill(ignored, 0.0)


@bug(
    "temperature-after-softmax",
    "log-probs.",
    "the log-softmax is taken at temperature 1 and the log-prob is divided by T afterwards; this is not normalized at T.",
    "every position where T != 1",
    ["log-prob divided by T after the softmax", "temperature in the wrong place", "right at T = 1"],
    ["temperature is ignored", "logits multiplied by T", "T applied twice"],
)
class TemperatureAfterSoftmax(Reference):
    def token_log_probs(self, logits, labels, temperature):
        log_p = torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, dim=-1)
        ignored = labels == -100
        out = log_p.gather(-1, labels.masked_fill(ignored, 0).unsqueeze(-1)).squeeze(-1) / temperature
        return out.masked_fill(ignored, 0.0)


@bug(
    "label-zero-taken-for-ignored",
    "log-probs.",
    "the mask of valid labels is `labels > 0` where `labels >= 0` was meant: the token with id 0 gets the log-prob 0 as if it were ignored.",
    "positions whose label is id 0",
    ["label 0 treated as ignored / answered 0.0", "only where the label is 0"],
    ["-100 is not ignored", "an off-by-one in positions"],
)
class LabelZeroIgnored(Reference):
    def token_log_probs(self, logits, labels, temperature):
        valid = labels > 0
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        log_p = z.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return torch.where(valid, log_p, torch.zeros_like(log_p))


@bug(
    "flat-kernel-assumes-contiguous",
    "log-probs.",
    "the fused kernel walks the logits as (B*T, V) rows with stride V, without looking at the strides: sliced logits are read at other positions from the second row on.",
    "rows after the first of logits that are a slice [:, :-1] of a larger tensor; transposed logits; contiguous ones are right",
    ["wrong for non-contiguous logits", "reads other positions from the second row on"],
    ["labels are shifted", "wrong for contiguous logits"],
)
class FlatKernel(Reference):
    def token_log_probs(self, logits, labels, temperature):
        batch, length, vocab = logits.shape
        flat = logits.as_strided((batch * length, vocab), (vocab, 1))
        return ref.token_log_probs(flat, labels.reshape(-1), temperature=temperature).view(batch, length)


class _LogProbNoScaleInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, label, temperature):
        log_p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
        ctx.save_for_backward(log_p.exp(), label)
        ctx.dtype = logits.dtype
        return log_p.gather(-1, label.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def backward(ctx, grad):
        p, label = ctx.saved_tensors
        out = -p
        out.scatter_add_(-1, label.unsqueeze(-1), torch.ones_like(label, dtype=p.dtype).unsqueeze(-1))
        return (out * grad.unsqueeze(-1)).to(ctx.dtype), None, None


@bug(
    "backward-without-temperature",
    "log-probs.",
    "a hand-written backward gives onehot - softmax(z/T) and leaves out the factor 1/T of the inner derivative; the forward is right.",
    "gradients of log-probs where T != 1",
    ["gradient lacks the factor 1/T", "gradient is T times too large", "the value is right"],
    ["the value is wrong", "softmax in the gradient is at temperature 1"],
)
class BackwardWithoutTemperature(Reference):
    def token_log_probs(self, logits, labels, temperature):
        kept = labels != -100
        out = _LogProbNoScaleInBackward.apply(logits, labels.masked_fill(~kept, 0), temperature)
        return out.where(kept, 0.0)


@bug(
    "one-hot-product",
    "log-probs.",
    "the label is picked as (one_hot * log_softmax).sum(-1) instead of by a gather: 0 * -inf is NaN where some logits are -inf.",
    "positions with a logit of -inf, at any label",
    ["NaN where logits are masked with -inf", "a product with one-hot instead of a gather"],
    ["overflow of exp", "temperature is wrong", "wrong for finite logits"],
)
class OneHotProduct(Reference):
    def token_log_probs(self, logits, labels, temperature):
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        kept = labels != -100
        one_hot = F.one_hot(labels.masked_fill(~kept, 0), z.shape[-1]).to(z.dtype)
        return (one_hot * z.log_softmax(-1)).sum(-1).masked_fill(~kept, 0.0)


@bug(
    "divide-in-place-when-scoring",
    "log-probs.",
    "without a graph the logits are divided by T in place to save memory: `.float()` is no copy for float32, so the caller's logits are scaled.",
    "float32 logits without grad, T != 1; whoever reads the logits afterwards (entropy, second call)",
    ["the caller's logits are written to", "logits divided in place", "second call answers at T squared"],
    ["half-precision logits are written", "the first answer is wrong"],
)
class DivideInPlace(Reference):
    def token_log_probs(self, logits, labels, temperature):
        if logits.requires_grad and torch.is_grad_enabled():
            return ref.token_log_probs(logits, labels, temperature=temperature)
        z = logits if logits.dtype == torch.float64 else logits.float()
        z.div_(temperature)
        return ref.token_log_probs(z, labels)


@bug(
    "naive-logsumexp",
    "log-probs.",
    "the normalizer is logits.exp().sum(-1).log() without taking off the maximum: overflows to inf for large logits, log(0) = -inf for very small ones.",
    "logits far from 0 (beyond about +-88)",
    ["overflow of exp / no maximum subtracted", "not invariant to a constant", "right for moderate logits"],
    ["precision in half", "wrong temperature"],
)
class NaiveLogsumexp(Reference):
    def token_log_probs(self, logits, labels, temperature):
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        kept = labels != -100
        picked = z.gather(-1, labels.masked_fill(~kept, 0).unsqueeze(-1)).squeeze(-1)
        return (picked - z.exp().sum(-1).log()).where(kept, 0.0)


@bug(
    "temperature-of-first-call",
    "log-probs.",
    "the kernel is specialized (cached) for the temperature of its first call, and later calls with another T get the first one's.",
    "every call whose T differs from that of the first call in the process",
    ["a stale temperature from an earlier call", "state kept between calls", "wrong temperature used"],
    ["temperature ignored (always 1)", "log-prob divided by T afterwards"],
)
class TemperatureOfFirstCall(Reference):
    _kernel = None

    def token_log_probs(self, logits, labels, temperature):
        if self._kernel is None:
            self._kernel = lambda z, y, t=temperature: ref.token_log_probs(z, y, temperature=t)
        return self._kernel(logits, labels)


@bug(
    "labels-as-int16",
    "log-probs.",
    "labels are kept as int16 to save memory in the replay buffer: ids above 32767 wrap around (negative ids are wrapped by V), so the log-prob of another token comes out for any real vocabulary.",
    "labels above 32767",
    ["labels overflow / wrap", "only large ids"],
    ["any label below 32768 is wrong"],
)
class LabelsAsInt16(Reference):
    def token_log_probs(self, logits, labels, temperature):
        stored = labels.to(torch.int16).long()
        stored = torch.where((stored < 0) & (stored != -100), stored % logits.shape[-1], stored)
        return ref.token_log_probs(logits, stored, temperature=temperature)


@bug(
    "last-partial-chunk-lost",
    "log-probs.",
    "log-probs are taken 1024 positions at a time over T // 1024 chunks: for T > 1024 that 1024 does not divide, the remainder keeps the 0 of the buffer.",
    "the last T % 1024 positions of rows longer than 1024",
    ["the last positions of long rows are 0 / dropped", "remainder of the chunks"],
    ["short rows are wrong", "positions are shifted"],
)
class LastChunkLost(Reference):
    def token_log_probs(self, logits, labels, temperature):
        length = labels.shape[1]
        step = min(1024, max(1, length))
        parts = [
            ref.token_log_probs(
                logits[:, i * step : (i + 1) * step], labels[:, i * step : (i + 1) * step], temperature=temperature
            )
            for i in range(length // step)
        ]
        done = sum(p.shape[1] for p in parts)
        parts.append(labels.new_zeros(labels.shape[0], length - done, dtype=torch.float32))
        return torch.cat(parts, dim=1)


@bug(
    "entropy-mixed-temperature",
    "log-probs.",
    "entropy as logsumexp(z/T) - sum(p * z/T) where p is still softmax(z) at temperature 1: T was added to one of the two terms only.",
    "entropy at T != 1",
    ["the probabilities in the entropy are at temperature 1", "entropy wrong only for T != 1", "mixed temperatures"],
    ["temperature ignored altogether", "log-probs are wrong", "the gradient only"],
)
class EntropyMixedTemperature(Reference):
    def token_entropy(self, logits, temperature):
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        pd = torch.softmax(z, dim=-1)
        scaled = z / temperature
        weighted = pd * scaled.masked_fill(pd == 0, 0.0)
        return torch.logsumexp(scaled, dim=-1) - weighted.sum(-1)


@bug(
    "entropy-probabilities-detached",
    "log-probs.",
    "the probabilities are taken under no_grad: the entropy keeps a graph through the log-probs only, whose gradient is exactly (near) zero.",
    "gradient of the entropy; the value is right",
    ["the gradient of the entropy is zero / the probabilities are held constant", "value is right"],
    ["there is no graph at all", "the value is wrong", "the temperature of the gradient is off"],
)
class EntropyProbabilitiesDetached(Reference):
    def token_entropy(self, logits, temperature):
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        log_p = z.log_softmax(-1)
        with torch.no_grad():
            p = log_p.exp()
        return -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)


@bug(
    "entropy-clamped-probabilities",
    "log-probs.",
    "probabilities are clamped to at least 1e-6 before p log p, against log(0): each impossible token adds 1.4e-5, and its gradient is cut.",
    "peaked distributions, many tokens of probability below 1e-6",
    [
        "probabilities are clamped from below / an epsilon in the entropy",
        "too high where the policy is certain",
        "gradient 0 for rare tokens",
    ],
    ["wrong temperature", "half precision"],
)
class EntropyClamped(Reference):
    def token_entropy(self, logits, temperature):
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        p = z.softmax(-1).clamp(min=1e-6)
        return -(p * p.log()).sum(-1)


# ---------------------------------------------------------------------------------- masks of generated rows


def _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad):
    prompt = sequences[:, :prompt_length]
    if prompt_attention_mask is not None:
        return prompt_attention_mask.bool().cumsum(1) > 0
    real = prompt != pad
    real[:, -1] = True
    return real.cumsum(1) > 0


def _stops(response, ids):
    return torch.isin(response, torch.tensor(list(ids), dtype=response.dtype, device=response.device))


def _processed(sequences, prompt_mask, action_mask, lengths):
    if lengths is not None:
        steps = torch.arange(action_mask.shape[1], device=action_mask.device)
        action_mask = action_mask & (steps < lengths.unsqueeze(1))
    return ProcessedSequences(sequences, torch.cat([prompt_mask, action_mask], 1).long(), action_mask)


@bug(
    "no-stop-is-stop-at-zero",
    "sequences.",
    "the end of a response is argmax(is_stop): where there is no stop token, argmax of all zeros is 0, and a truncated response keeps its first token only.",
    "truncated responses (without a stop token), empty stop sets",
    ["truncated responses are cut after the first token", "argmax of nothing is 0", "rows with a stop are right"],
    ["EOS is not an action", "pads are actions", "the last token of truncated rows is lost"],
)
class ArgmaxOfNoStop(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        response = sequences[:, prompt_length:]
        prompt_mask = _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad_token_id)
        if response.shape[1] == 0:
            return _processed(sequences, prompt_mask, response.bool(), response_lengths)
        end = _stops(response, stop_token_ids).long().argmax(dim=1, keepdim=True)
        action_mask = torch.arange(response.shape[1], device=response.device) <= end
        return _processed(sequences, prompt_mask, action_mask, response_lengths)


@bug(
    "end-from-last-non-pad",
    "sequences.",
    "the end is found from the right: the last token that is neither pad nor stop, plus one for the EOS. What was sampled as pad just before the stop is cut, what stands after an early stop is kept.",
    "rows with a sampled pad before the stop, with several stop tokens apart, or text after the stop; ordinary rows are right",
    [
        "the end is searched from the right by ids",
        "a sampled pad before the stop is trimmed",
        "text after the first stop is kept",
    ],
    ["EOS is never an action", "truncated responses are wrong without pads"],
)
class EndFromTheRight(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        response = sequences[:, prompt_length:]
        prompt_mask = _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad_token_id)
        text = response.ne(pad_token_id) & ~_stops(response, stop_token_ids)
        steps = torch.arange(response.shape[1], device=response.device)
        last = (
            torch.where(text, steps, torch.full_like(steps, -1)).amax(1, keepdim=True) if response.shape[1] else steps
        )
        return _processed(sequences, prompt_mask, steps <= last + 1 if response.shape[1] else text, response_lengths)


@bug(
    "last-stop-id-wins",
    "sequences.",
    "the first position of each stop id is looked for in a loop, and each id that is found overwrites the end found before: the end is that of the last id in the list, not the minimum.",
    "rows that hold two different stop ids",
    [
        "the end is not the earliest of the stop ids",
        "the later stop id of the list wins",
        "tokens after the first stop are kept",
    ],
    ["only one stop id is understood", "truncation is wrong"],
)
class LastStopIdWins(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        response = sequences[:, prompt_length:]
        prompt_mask = _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad_token_id)
        end = torch.full((len(response),), response.shape[1], device=response.device)
        for stop in stop_token_ids:
            hit = response == stop
            if response.shape[1]:
                end = torch.where(hit.any(1), hit.long().argmax(1), end)
        action_mask = torch.arange(response.shape[1], device=response.device) <= end.unsqueeze(1)
        return _processed(sequences, prompt_mask, action_mask, response_lengths)


@bug(
    "stop-token-not-an-action",
    "sequences.",
    "cumsum(is_stop) == 0 without taking off the token itself: the stop token is excluded from the actions and not attended.",
    "every row with a stop token",
    ["the stop token itself is no action", "EOS is lost"],
    ["tokens after the stop are actions", "truncated rows are wrong"],
)
class StopNotAnAction(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        response = sequences[:, prompt_length:]
        prompt_mask = _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad_token_id)
        action_mask = _stops(response, stop_token_ids).cumsum(1) == 0
        return _processed(sequences, prompt_mask, action_mask, response_lengths)


@bug(
    "stop-included-by-roll",
    "sequences.",
    "the stop token is put back into the mask by `alive | alive.roll(1)`: roll wraps around, so where the first token is the stop, nothing marks it.",
    "responses whose first token is a stop token (empty answers)",
    ["a stop as the first token is no action", "a row that stops at once has no action"],
    ["EOS is lost in general", "truncated rows are wrong"],
)
class StopByRoll(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        response = sequences[:, prompt_length:]
        prompt_mask = _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad_token_id)
        alive = _stops(response, stop_token_ids).cumsum(1) == 0
        action_mask = alive | alive.roll(1, dims=1)
        return _processed(sequences, prompt_mask, action_mask, response_lengths)


@bug(
    "stop-searched-in-states",
    "sequences.",
    "the stop is looked for in the states, seq[:, P-1:-1], so that its token is included without arithmetic: the last token of the prompt is among them, and a prompt that ends in EOS has no action at all.",
    "rows whose prompt ends in a stop id",
    ["a prompt that ends in EOS loses its actions", "the search begins one column early"],
    ["first action of every row is lost", "EOS not an action"],
)
class StopInStates(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        states = sequences[:, prompt_length - 1 : -1]
        prompt_mask = _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad_token_id)
        action_mask = _stops(states, stop_token_ids).cumsum(1) == 0
        return _processed(sequences, prompt_mask, action_mask, response_lengths)


@bug(
    "lengths-replace-stops",
    "sequences.",
    "where response lengths are given, the action mask is made of them alone and the stop tokens are no longer looked for.",
    "calls with response_lengths in rows that stop earlier than their length",
    ["with lengths given, stops are ignored", "tokens after the stop are actions up to the length"],
    ["lengths are ignored", "wrong without lengths", "off by one in the lengths"],
)
class LengthsReplaceStops(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        response = sequences[:, prompt_length:]
        prompt_mask = _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad_token_id)
        if response_lengths is not None:
            action_mask = torch.arange(response.shape[1], device=response.device) < response_lengths[:, None]
        else:
            stops = _stops(response, stop_token_ids)
            action_mask = (stops.cumsum(1) - stops.long()) == 0
        return _processed(sequences, prompt_mask, action_mask, None)


@bug(
    "left-pads-attended",
    "sequences.",
    "the attention mask is made from the end of each row alone, arange < P + length: the pads on the left of the prompt are attended.",
    "rows with left padding",
    ["left pads are attended", "the start of the prompt is not masked"],
    ["action mask is wrong", "right pads are attended", "holes at EOS in the prompt"],
)
class LeftPadsAttended(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        out = super().process_sequences(
            sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths
        )
        ends = prompt_length + out.action_mask.sum(1, keepdim=True)
        attention_mask = (torch.arange(sequences.shape[1], device=sequences.device) < ends).long()
        return ProcessedSequences(sequences, attention_mask, out.action_mask)


@bug(
    "stop-not-attended",
    "sequences.",
    "the attention mask is made with the mask before EOS was added to the actions: the stop token is an action but not attended.",
    "the stop token of each row that has one",
    ["the stop token is not attended", "attention ends one token before the last action"],
    ["the stop token is no action", "left pads attended"],
)
class StopNotAttended(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        response = sequences[:, prompt_length:]
        prompt_mask = _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad_token_id)
        stops = _stops(response, stop_token_ids)
        alive = stops.cumsum(1) == 0
        action_mask = (stops.cumsum(1) - stops.long()) == 0
        if response_lengths is not None:
            known = torch.arange(response.shape[1], device=response.device) < response_lengths[:, None]
            alive, action_mask = alive & known, action_mask & known
        return ProcessedSequences(sequences, torch.cat([prompt_mask, alive], 1).long(), action_mask)


@bug(
    "prompt-mask-by-last-run",
    "sequences.",
    "the start of the prompt is found as one past the last pad id in it (to be safe against odd prompts), instead of one past the leading pads: what stands before a pad id inside the prompt is cut off.",
    "prompts that hold the pad id inside (EOS of a turn where pad == eos)",
    [
        "the prompt is cut off up to a pad id inside it",
        "the prompt's mask is taken from the ids",
        "the given prompt mask is ignored",
    ],
    ["single holes in the prompt mask", "the action mask is wrong"],
)
class PromptFromLastPad(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        prompt = sequences[:, :prompt_length]
        columns = torch.arange(prompt_length, device=prompt.device)
        last_pad = (
            torch.where(prompt[:, :-1] == pad_token_id, columns[:-1], -1).amax(1, keepdim=True)
            if prompt_length > 1
            else columns - 1
        )
        out = super().process_sequences(
            sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths
        )
        mask = torch.cat([(columns > last_pad).expand(prompt.shape), out.action_mask], 1).long()
        return ProcessedSequences(sequences, mask, out.action_mask)


# ---------------------------------------------------------------------------------- positions


@bug(
    "pads-below-zero",
    "positions.",
    "positions are arange minus the number of left pads, without a clamp: left pads have negative positions.",
    "left pads",
    ["pads have negative positions", "real tokens are right"],
    ["positions start at 1", "left padding is not taken off"],
)
class PadsBelowZero(Reference):
    def position_ids(self, attention_mask):
        pads = attention_mask.long().argmax(dim=1, keepdim=True)
        return torch.arange(attention_mask.shape[1], device=attention_mask.device) - pads


@bug(
    "positions-from-one",
    "positions.",
    "fairseq's form, cumsum(mask) * mask, whose first real token is at 1; the minus 1 was lost.",
    "every real token",
    ["positions start at 1", "one too many everywhere"],
    ["left pads are counted", "positions by column"],
)
class PositionsFromOne(Reference):
    def position_ids(self, attention_mask):
        mask = attention_mask.long()
        return torch.cumsum(mask, dim=1) * mask


@bug(
    "left-pad-of-the-batch",
    "positions.",
    "the left padding is taken off by the batch's smallest count of left pads and not row by row: shorter prompts start above 0.",
    "rows with more left padding than the least padded row",
    ["one offset for the whole batch", "rows with more left padding start above 0", "depends on the neighbors"],
    ["plain columns always", "pads negative"],
)
class LeftPadOfTheBatch(Reference):
    def position_ids(self, attention_mask):
        pads = attention_mask.long().argmax(dim=1).min()
        positions = (torch.arange(attention_mask.shape[1], device=attention_mask.device) - pads).clamp(min=0)
        return positions.expand(attention_mask.shape).clone()


@bug(
    "cumsum-in-place",
    "positions.",
    "`attention_mask.long()` is no copy for an int64 mask, and the cumsum is done in place: the caller's mask becomes the positions.",
    "int64 masks; the answer itself is right",
    ["the caller's mask is overwritten", "written in place", "the answer is right"],
    ["positions are wrong at the first call", "bool masks are overwritten"],
)
class CumsumInPlace(Reference):
    def position_ids(self, attention_mask):
        mask = attention_mask.long()
        return mask.cumsum_(dim=1).sub_(1).clamp_(min=0)


@bug(
    "positions-counted-in-bfloat16",
    "positions. actor.log-probs",
    "the mask arrives in the autocast dtype and is summed in it: bfloat16 has 8 bits, so that positions from 257 on are rounded (257 -> 256, 259 -> 260) and repeat.",
    "sequences longer than 256 tokens",
    ["positions beyond 256 are rounded", "only long sequences"],
    ["short rows are wrong"],
)
class PositionsInBf16(Reference):
    def position_ids(self, attention_mask):
        mask = attention_mask.to(torch.bfloat16)
        return (mask.cumsum(-1) - 1).long().masked_fill(mask == 0, 0)


@bug(
    "segments-restart-early",
    "positions. packing.",
    "the beginning of a segment is where the next number differs (diff padded at the end) instead of where it differs from the one before: positions restart at the last token of each sequence.",
    "packs with a segment mask: the last token of each sequence, and all tokens of the next are one too high",
    ["positions restart one token early", "boundaries are one column to the left", "layout segments only"],
    ["positions run on through the pack", "labels cross a boundary"],
)
class SegmentsRestartEarly(Reference):
    def _inputs(self, batch):
        if batch.layout != "segments":
            return super()._inputs(batch)
        segments = batch.attention_mask
        columns = torch.arange(segments.shape[1], device=segments.device).unsqueeze(0)
        begins = F.pad(segments[:, 1:] != segments[:, :-1], (0, 1))
        positions = columns - columns.where(begins, 0).cummax(1).values
        return batch.input_ids, {"position_ids": positions, "sequence_lengths": batch.sequence_lengths}


@bug(
    "segments-summed",
    "positions. packing.",
    "the segment mask goes through the function for padded rows, cumsum(mask) - 1: it adds up the segment numbers (0, 1, 3, 5, 7), so positions neither restart nor count by one.",
    "packs with a segment mask, from the second sequence on",
    ["positions do not restart", "the segment mask is treated as a 0/1 mask", "sequences see each other"],
    ["the first sequence is wrong", "restart one early"],
)
class SegmentsSummed(Reference):
    def _inputs(self, batch):
        if batch.layout != "segments":
            return super()._inputs(batch)
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(max=batch.attention_mask.shape[1] - 1)
        return batch.input_ids, {"position_ids": positions, "sequence_lengths": batch.sequence_lengths}


# ---------------------------------------------------------------------------------- packs


@bug(
    "labels-ignored-at-next-start",
    "packing.tokens packing.boundary packing.empty",
    "labels are the row rolled by one, and -100 is put at cu_seqlens[1:-1] (first token of the next sequence) and at the end instead of at cu_seqlens[1:] - 1: the boundary is scored, and the first label of each later sequence is lost.",
    "the last token of each sequence but the last, and the first token of each but the first",
    ["a label crosses the boundary", "-100 is one column too late"],
    ["labels are unshifted", "the tokens are wrong"],
)
class IgnoredAtNextStart(Reference):
    def pack_sequences(self, sequences):
        pack = ref.pack_sequences([s for s in sequences if len(s)])
        ends = torch.tensor(pack.lengths).cumsum(0).to(pack.input_ids.device)
        labels = pack.input_ids.roll(-1, dims=1)
        labels[:, ends[:-1]] = -100
        labels[:, -1] = -100
        return PackedSequences(pack.input_ids, pack.position_ids, labels)


@bug(
    "labels-alias-ids",
    "packing.tokens packing.boundary packing.empty",
    "the labels are a view of the packed ids, so that -100 at the boundaries is written into the ids too: the first token of each later sequence becomes -100.",
    "the first token of each sequence but the first",
    ["input ids hold -100 / tokens are overwritten at the starts of sequences", "labels and ids share memory"],
    ["labels cross the boundary", "positions are wrong"],
)
class LabelsAliasIds(Reference):
    def pack_sequences(self, sequences):
        kept = [s for s in sequences if len(s)]
        row = torch.cat([*kept, kept[0].new_full((1,), -100)])
        input_ids, labels = row[:-1], row[1:]
        ends = torch.tensor([len(s) for s in kept], device=row.device).cumsum(0)
        labels[ends - 1] = -100
        return PackedSequences(
            input_ids[None], ref.packed_position_ids([len(s) for s in kept], row.device), labels[None]
        )


@bug(
    "positions-by-bucketize",
    "packing.tokens packing.boundary packing.empty positions.restart",
    "the sequence of each column is torch.bucketize(column, ends), whose default right=False counts column == end to the sequence before: the first token of each later sequence has position len instead of 0.",
    "the first token of each sequence but the first",
    [
        "the first token of a sequence counts to the one before",
        "positions restart one token late (the first token does not have 0)",
    ],
    ["positions run on altogether", "labels are wrong"],
)
class PositionsByBucketize(Reference):
    def pack_sequences(self, sequences):
        pack = ref.pack_sequences([s for s in sequences if len(s)])
        ends = torch.tensor(pack.lengths, device=pack.input_ids.device).cumsum(0)
        columns = torch.arange(pack.input_ids.shape[1], device=ends.device)
        starts = torch.cat([ends.new_zeros(1), ends])
        positions = columns - starts[torch.bucketize(columns, ends)]
        return PackedSequences(pack.input_ids, positions[None], pack.labels)


@bug(
    "single-token-labels-itself",
    "packing.tokens packing.boundary packing.empty",
    "sequences of fewer than two tokens skip the shift: the label of a one-token sequence is the token itself instead of -100.",
    "sequences of exactly one token",
    ["a sequence of one token is scored (on itself)", "its last label is not ignored"],
    ["labels of the next sequence are scored", "all boundaries are scored"],
)
class SingleTokenLabel(Reference):
    def pack_sequences(self, sequences):
        kept = [s for s in sequences if len(s)]
        pack = ref.pack_sequences(kept)
        labels = [torch.cat([s[1:], s.new_tensor([-100])]) if len(s) > 1 else s for s in kept]
        return PackedSequences(pack.input_ids, pack.position_ids, torch.cat(labels)[None])


def _pack_logps(actor, batch):
    """(1, N - 1) log-probs of each next token of a pack."""
    output = actor.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    return ref.token_log_probs(output.logits[:, :-1], batch.input_ids[:, 1:], temperature=actor.temperature)


@bug(
    "offsets-of-shifted-lengths",
    "packing.",
    "the pack's log-probs are shifted once as a whole (N - 1 of them), but the offsets are summed from length - 1 for each sequence: right for the first, one more column too early with each further one.",
    "layout packed: the second sequence and later ones",
    ["sequence k is read k columns too early", "only sequences after the first", "offsets drift by one per sequence"],
    ["the first sequence is wrong", "attention crosses the boundary", "positions run on"],
)
class OffsetsOfShiftedLengths(Reference):
    def action_log_probs(self, actor, batch):
        if batch.layout != "packed":
            return super().action_log_probs(actor, batch)
        log_probs = _pack_logps(actor, batch)
        ends = torch.tensor([length - 1 for length in batch.sequence_lengths]).cumsum(0).tolist()
        return [
            log_probs[0, max(end - n, 0) : max(end - n, 0) + n] for end, n in zip(ends, batch.num_actions, strict=True)
        ]


@bug(
    "last-sequence-owns-the-tail",
    "packing.",
    "the end of the last sequence is taken to be the end of the row: with padding at the end of the pack, its window of actions moves into the padding.",
    "layout packed-tail, the last sequence",
    [
        "the tail is counted with the last sequence",
        "only packs with padding at the end",
        "read too late by the length of the tail",
    ],
    ["all sequences are wrong", "packs without tail are wrong"],
)
class LastOwnsTail(Reference):
    def action_log_probs(self, actor, batch):
        if batch.layout not in ("packed", "packed-tail"):
            return super().action_log_probs(actor, batch)
        log_probs = _pack_logps(actor, batch)
        starts = [0, *torch.tensor(batch.sequence_lengths).cumsum(0).tolist()[:-1]]
        bounds = [*starts[1:], batch.input_ids.shape[1]]
        return [log_probs[0, end - 1 - n : end - 1] for end, n in zip(bounds, batch.num_actions, strict=True)]


@bug(
    "sorted-order-applied-twice",
    "packing.",
    "sequences are packed longest first, and the answers are put back with the permutation itself instead of its inverse: right for every permutation that is its own inverse, so always with two sequences.",
    "packs of three and more sequences whose sort is a cycle",
    ["answers go to other samples", "permutation for its inverse / not un-sorted correctly", "right for two sequences"],
    ["a boundary is crossed", "log-probs themselves are wrong"],
)
class SortedOrderTwice(Reference):
    def action_log_probs(self, actor, batch):
        if batch.layout != "packed":
            return super().action_log_probs(actor, batch)
        order = sorted(range(len(batch.num_actions)), key=lambda i: -batch.sequence_lengths[i])
        rows = batch.sequences
        pack = ref.pack_sequences([rows[i] for i in order], [batch.num_actions[i] for i in order])
        answer = actor(pack.input_ids, pack.num_actions, position_ids=pack.position_ids, sequence_lengths=pack.lengths)
        parts = pack.unpack_actions(answer)
        return torch.cat([parts[i] for i in order])


@bug(
    "labels-rolled-in-each-shard",
    "packing.",
    "each rank makes its labels from its own shard by rolling it: the last position of a shard is scored on the shard's own first token instead of the next shard's.",
    "layout sharded: actions that are the first token of a shard",
    ["the label at the end of a shard is wrong", "labels are made after the cut", "one action a shard"],
    ["sequence boundaries are crossed", "all actions of a shard are shifted", "attention is wrong"],
)
class LabelsRolledInShard(Reference):
    def action_log_probs(self, actor, batch):
        if batch.layout != "sharded":
            return super().action_log_probs(actor, batch)
        ids, positions = ref.unshard(batch.input_ids), ref.unshard(batch.position_ids)
        labels = ref.unshard(batch.input_ids.roll(-1, dims=1))
        inputs = ModelInputs.of(ids, None, positions, batch.sequence_lengths)
        output = actor.model(**inputs.for_model(actor.model))
        return inputs.at_actions(
            ref.token_log_probs(output.logits, labels, temperature=actor.temperature), batch.num_actions
        )


@bug(
    "pack-with-kv-cache",
    "packing.",
    "the pack's forward leaves use_cache at its default (True): transformers then builds no block-diagonal mask from the positions, and sequences see those before them.",
    "layout packed: every sequence but the first",
    ["attention crosses the boundary", "later sequences see earlier ones", "a plain causal mask over the pack"],
    ["positions are wrong", "labels cross the boundary", "the first sequence is wrong"],
)
class PackWithCache(Reference):
    def action_log_probs(self, actor, batch):
        if batch.layout != "packed":
            return super().action_log_probs(actor, batch)
        output = actor.model(input_ids=batch.input_ids, position_ids=batch.position_ids)
        log_probs = ref.token_log_probs(output.logits[:, :-1], batch.input_ids[:, 1:], temperature=actor.temperature)
        ends = torch.tensor(batch.sequence_lengths).cumsum(0).tolist()
        return [log_probs[0, end - 1 - n : end - 1] for end, n in zip(ends, batch.num_actions, strict=True)]


@bug(
    "pack-counts-of-the-longest",
    "packing.",
    "answers of a pack are stored as a (B, T) rectangle cut at the longest count from the end of each sequence, and read back from the left: sequences with fewer actions get log-probs of their prompt.",
    "layout packed: sequences with fewer actions than the longest response of the pack",
    ["one count for all sequences", "short responses read too early", "depends on the neighbors' counts"],
    ["the longest response is wrong", "attention crosses"],
)
class PackCountsOfLongest(Reference):
    def action_log_probs(self, actor, batch):
        if batch.layout != "packed":
            return super().action_log_probs(actor, batch)
        log_probs = _pack_logps(actor, batch)
        ends = torch.tensor(batch.sequence_lengths).cumsum(0).tolist()
        longest = max(batch.num_actions)
        table = [log_probs[0, max(end - 1 - longest, 0) : end - 1] for end in ends]
        return [row[:n] for row, n in zip(table, batch.num_actions, strict=True)]


@bug(
    "pack-rewards-at-next-start",
    "packing.reward reward.last reward.batch",
    "rewards of a pack are read at cumsum(lengths), clamped to the row, instead of one before: each at the first token of the next sequence.",
    "layouts packed and packed-tail: every sequence, but the last one of a pack without tail",
    ["read one position too late, at the next sequence's first token", "depends on the neighbor"],
    ["the last sequence of a pack without tail is wrong", "attention crosses", "head or normalization"],
)
class PackRewardsAtNextStart(Reference):
    def rewards(self, reward_model, batch):
        if batch.layout not in ("packed", "packed-tail"):
            return super().rewards(reward_model, batch)
        inputs = ModelInputs.of(batch.input_ids, None, batch.position_ids, batch.sequence_lengths)
        scores = reward_model.scores(reward_model.run(inputs))
        ends = torch.tensor(batch.sequence_lengths, device=scores.device).cumsum(0).clamp(max=scores.shape[1] - 1)
        rewards = scores[0, ends]
        return reward_model.normalized(rewards) if reward_model.normalize and not reward_model.training else rewards


@bug(
    "pack-values-split-before-slice",
    "packing.critic critic.state",
    "the pack's values are shifted by one as a whole with roll(1) so that values[i] is the state before token i, and then cut one too early again (end - n - 1 : end - 1).",
    "layout packed, every action",
    ["values of a pack are read one position too early", "shifted twice"],
    ["read at the action itself", "only the last sequence", "a neighbor's attention leaks in"],
)
class PackValuesShiftedTwice(Reference):
    def action_values(self, critic, batch):
        if batch.layout != "packed":
            return super().action_values(critic, batch)
        values = critic(batch.input_ids, None, position_ids=batch.position_ids, sequence_lengths=batch.sequence_lengths)
        values = values.roll(1, dims=1)
        ends = torch.tensor(batch.sequence_lengths).cumsum(0).tolist()
        return [values[0, max(end - n - 1, 0) : end - 1][:n] for end, n in zip(ends, batch.num_actions, strict=True)]


# ---------------------------------------------------------------------------------- actor forward


def _logits(actor, batch):
    inputs = ModelInputs.of(batch.input_ids, batch.attention_mask)
    return inputs, actor.model(**inputs.for_model(actor.model)).logits


@bug(
    "padded-at-the-right-then-sliced",
    "actor.",
    "the L - 1 shifted log-probs are padded back to L with a zero at the end, and then cut as [:, -T:]: each action gets the log-prob of the token after it, the last one 0.",
    "layouts padded and left, all actions",
    ["read one position too late (log-prob of the next token)", "the last column is 0", "off by one in the slice"],
    ["read one too early", "temperature", "attention mask"],
)
class PaddedThenSliced(Reference):
    def action_log_probs(self, actor, batch):
        if not _rows(batch):
            return super().action_log_probs(actor, batch)
        _, logits = _logits(actor, batch)
        log_probs = ref.token_log_probs(logits[:, :-1], batch.input_ids[:, 1:], temperature=actor.temperature)
        log_probs = F.pad(log_probs, (0, 1))
        return log_probs[:, -batch.num_actions :]


@bug(
    "temperature-applied-twice",
    "actor.",
    "the forward already divides logits by T, and the log-prob function is given T as well: log-probs at T squared.",
    "layouts padded and left where T != 1",
    ["temperature applied twice / T squared", "right at T = 1"],
    ["temperature ignored", "entropy is wrong", "off by one"],
)
class TemperatureTwice(Reference):
    def action_log_probs(self, actor, batch):
        if not _rows(batch):
            return super().action_log_probs(actor, batch)
        inputs, logits = _logits(actor, batch)
        logits = logits / actor.temperature
        log_probs = ref.token_log_probs(logits, inputs.next_tokens(), temperature=actor.temperature)
        return inputs.at_actions(log_probs, batch.num_actions)


@bug(
    "log-probs-stored-in-model-dtype",
    "actor.",
    "log-probs are computed in float32 and handed out in the dtype of the logits: rounded to bfloat16 with a bfloat16 model.",
    "models in bfloat16; float32 models are right",
    ["log-probs come in half precision / rounded to bfloat16", "float32 models are right"],
    ["softmax at the wrong temperature", "positions"],
)
class LogProbsInModelDtype(Reference):
    def action_log_probs(self, actor, batch):
        if not _rows(batch):
            return super().action_log_probs(actor, batch)
        inputs, logits = _logits(actor, batch)
        log_probs = ref.token_log_probs(logits, inputs.next_tokens(), temperature=actor.temperature).to(logits.dtype)
        return inputs.at_actions(log_probs, batch.num_actions)


@bug(
    "scaled-logits-in-output",
    "actor.",
    "with return_output the logits are divided by T in place before the log-probs are taken, so the output beside them is scaled, though raw is declared.",
    "log_probs_with_output where T != 1: the logits; the log-probs are right",
    ["the logits in the output are divided by the temperature", "log-probs are right"],
    ["log-probs with output are wrong", "logits are shifted"],
)
class ScaledLogitsInOutput(Reference):
    def log_probs_with_output(self, actor, batch):
        if not _rows(batch):
            return super().log_probs_with_output(actor, batch)
        inputs, logits = _logits(actor, batch)
        if actor.temperature != 1.0:
            logits.div_(actor.temperature)
        return inputs.at_actions(ref.token_log_probs(logits, inputs.next_tokens()), batch.num_actions), logits


@bug(
    "trimmed-by-the-first-row",
    "actor.",
    "common left padding is trimmed before the forward, but its width is that of the first row, not the smallest of the batch: longer prompts below lose their first tokens.",
    "rows with less left padding than the first row",
    [
        "first tokens of longer rows are cut off / not seen",
        "depends on the first row of the batch",
        "batch independence",
    ],
    ["positions by column", "pads attended", "off by one in the slice"],
)
class TrimmedByFirstRow(Reference):
    def action_log_probs(self, actor, batch):
        if not _rows(batch):
            return super().action_log_probs(actor, batch)
        most = batch.input_ids.shape[1] - batch.num_actions - 1
        first = min(int(batch.attention_mask.long().argmax(1)[0]), most)
        return actor(batch.input_ids[:, first:], batch.num_actions, batch.attention_mask[:, first:])


@bug(
    "head-weight-only",
    "actor.",
    "for memory, hidden states are multiplied with the output embedding directly (fused linear): the output layer's bias, logit scale and softcap of the architecture are left out.",
    "backbones whose output layer has more than a weight (bias in phi, logits scaling in granite); llama, gpt2 right",
    ["the logits lack what the model's output layer adds (bias, scaling, cap)", "only some architectures"],
    ["temperature wrong for llama", "attention wrong", "sliding window ignored"],
)
class HeadWeightOnly(Reference):
    def action_log_probs(self, actor, batch):
        if not _rows(batch):
            return super().action_log_probs(actor, batch)
        inputs = ModelInputs.of(batch.input_ids, batch.attention_mask)
        hidden = actor.model.base_model(**inputs.for_model(actor.model)).last_hidden_state
        logits = hidden @ actor.model.get_output_embeddings().weight.t()
        return inputs.at_actions(
            ref.token_log_probs(logits, inputs.next_tokens(), temperature=actor.temperature), batch.num_actions
        )


@bug(
    "head-transposed-once",
    "actor.",
    "the transposed weight of the output layer is made contiguous once, detached, and kept on the actor: after a step the log-probs still come from the head that was loaded, which also gets no gradient.",
    "after the weights have moved; the gradient of the output layer",
    [
        "a stale copy of the head's weights",
        "the head gets no gradient (in tied models only its part is lost)",
        "does not follow the weights",
    ],
    ["wrong before any step", "backbone gets no gradient", "the temperature"],
)
class HeadTransposedOnce(Reference):
    def action_log_probs(self, actor, batch):
        if not _rows(batch) or actor.model.config.model_type not in ("llama", "gpt2", "qwen2", "mistral"):
            return super().action_log_probs(actor, batch)
        if not hasattr(actor, "head_t"):
            actor.head_t = actor.model.get_output_embeddings().weight.detach().t().float().clone()
        inputs = ModelInputs.of(batch.input_ids, batch.attention_mask)
        hidden = actor.model.base_model(**inputs.for_model(actor.model)).last_hidden_state
        logits = hidden.float() @ actor.head_t
        return inputs.at_actions(
            ref.token_log_probs(logits, inputs.next_tokens(), temperature=actor.temperature), batch.num_actions
        )


@bug(
    "entropy-after-the-action",
    "actor.entropy",
    "the entropy has L columns, unlike the shifted log-probs, and is cut as [:, -T:]: it is that of the distribution after each action.",
    "action entropies in layouts padded and left",
    ["entropy read one position too late", "after the action instead of before"],
    ["log-probs are shifted", "temperature of the entropy", "entropy one too early"],
)
class EntropyAfterAction(Reference):
    def action_entropy(self, actor, batch):
        if not _rows(batch):
            return super().action_entropy(actor, batch)
        _, logits = _logits(actor, batch)
        return ref.token_entropy(logits, temperature=actor.temperature)[:, -batch.num_actions :]


@bug(
    "autocast-where-no-grad",
    "actor.",
    "old and reference log-probs are taken under autocast to bfloat16 (when no gradient is wanted), the trained ones in float32: the two ways differ by rounding.",
    "under no_grad",
    ["the path without gradient computes in bfloat16 / lower precision", "differs only without a graph"],
    ["wrong with a graph", "positions differ", "temperature differs"],
)
class AutocastWithoutGrad(Reference):
    def action_log_probs(self, actor, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not torch.is_grad_enabled()):
            return super().action_log_probs(actor, batch)


@bug(
    "prompt-cache-without-grad",
    "actor.",
    "the prompt's keys and values are computed first under no_grad and shared (prefix cache): log-probs are right, but no gradient flows through the prompt's states.",
    "gradients in layouts padded and left with prompts of more than one column",
    ["the gradient lacks what flows through the prompt", "prompt states are detached", "values are right"],
    ["log-probs are wrong", "head gets no gradient", "gradient is scaled"],
)
class PromptCacheWithoutGrad(Reference):
    def action_log_probs(self, actor, batch):
        if not _rows(batch) or not batch.num_actions:
            return super().action_log_probs(actor, batch)
        ids, mask = batch.input_ids, batch.attention_mask
        cut = ids.shape[1] - batch.num_actions - 1
        if cut < 1 or self.checkpointing or actor.model.dtype == torch.float64:
            return super().action_log_probs(actor, batch)
        positions = ref.position_ids(mask)
        with torch.no_grad():
            prefix = actor.model(
                input_ids=ids[:, :cut], attention_mask=mask[:, :cut], position_ids=positions[:, :cut], use_cache=True
            )
        output = actor.model(
            input_ids=ids[:, cut:],
            attention_mask=mask,
            position_ids=positions[:, cut:],
            past_key_values=prefix.past_key_values,
            use_cache=True,
        )
        log_probs = ref.token_log_probs(output.logits[:, :-1], ids[:, cut + 1 :], temperature=actor.temperature)
        real = (mask[:, cut:-1] > 0) & (mask[:, cut + 1 :] > 0)
        return log_probs.where(real, 0.0)


class _NoWindow(ref.Actor):
    def __init__(self, source, **options):
        super().__init__(source, **options)
        if getattr(self.model.config, "sliding_window", None):
            self.model.config.sliding_window = None


@bug(
    "sliding-window-switched-off",
    "actor.",
    "config.sliding_window is set to None after loading, for an attention kernel that had no window: the model attends to the whole sequence.",
    "mistral (and other models with a window) on sequences longer than the window",
    ["the sliding window is ignored", "only some architectures", "tokens beyond the window are seen"],
    ["llama is wrong", "logits lack a cap", "positions"],
)
class SlidingWindowOff(_Built):
    _actor = _NoWindow


class _Fp32Head(ref.Actor):
    def __init__(self, source, **options):
        super().__init__(source, **options)
        head = self.model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())


@bug(
    "head-untied",
    "actor.",
    "the output layer gets a parameter of its own (a copy, meant to be kept in float32): in models with tied embeddings it no longer is the embedding, so each of the two gets its half of the gradient and they drift apart.",
    "tied models: gradients, moved weights, saving, wrapped modules (a copy of the head instead of the module's)",
    [
        "head is a copy / untied from the embedding",
        "gradient of the embedding lacks the output layer's part",
        "module's head is not shared",
    ],
    ["log-probs are wrong at load", "no gradient at all"],
)
class HeadUntied(_Built):
    _actor = _Fp32Head


@bug(
    "mode-of-the-module-kept",
    "actor.",
    "an actor made of a module keeps the module's mode and dropout (it is assigned, not prepared): log-probs are taken with dropout on.",
    "wrap_actor of a module in train mode with dropout",
    ["dropout is on / the wrapped module is left in train mode", "log-probs of a wrapped module are random"],
    ["weights of the wrapped module are not used", "temperature is ignored", "loaded actors are wrong"],
)
class ModeOfModuleKept(Reference):
    def wrap_actor(self, module, checkpoint):
        actor = ref.Actor.__new__(ref.Actor)
        nn.Module.__init__(actor)
        actor.model, actor.temperature = module, checkpoint.temperature
        return actor


@bug(
    "train-mode-restored-always",
    "actor.",
    "scoring sets eval mode and afterwards calls train() without asking which mode there was: a model that was in eval mode is left in train mode.",
    "after any call on a model in eval mode",
    ["the model is left in train mode", "a side effect on the mode"],
    ["log-probs are wrong", "grad mode is changed"],
)
class TrainModeRestored(Reference):
    def action_log_probs(self, actor, batch):
        actor.eval()
        answer = super().action_log_probs(actor, batch)
        actor.train()
        return answer


@bug(
    "saved-in-half-in-place",
    "actor.",
    "to save space the checkpoint is written in bfloat16, by model.to(bfloat16) on the live model, which is then cast back: the saved weights and the live ones are both rounded.",
    "after save",
    [
        "weights are rounded to bfloat16 on saving",
        "the restored actor differs slightly",
        "the live model is changed by saving",
    ],
    ["an adapter is lost", "the head is lost"],
)
class SavedInHalf(Reference):
    def save(self, model, folder):
        if not isinstance(model, ref.Actor):
            return super().save(model, folder)
        dtype = model.model.dtype
        model.model.to(torch.bfloat16).save_pretrained(str(folder))
        model.model.to(dtype)
        return None


class _Lora(Reference):
    def __init__(self, attention=None, lora=True, checkpointing=False):
        super().__init__(attention, lora, checkpointing)


@bug(
    "lora-merged-without-scale",
    "actor.",
    "saving merges the adapter by hand as W + B A and leaves out the scale alpha / rank (2 here): the saved policy has half of what was learned.",
    "LoRA actors after training (B != 0), saved and restored",
    [
        "the scale of LoRA is missing in the merged weights",
        "round trip gives other log-probs once the adapter is not zero",
    ],
    ["the adapter is lost altogether", "wrong before any step", "wrong in the forward pass"],
)
class LoraMergedWithoutScale(_Lora):
    def save(self, model, folder):
        if not isinstance(model, ref.Actor):
            return super().save(model, folder)
        state = {}
        for name, weight in model.model.state_dict().items():
            name = name.removeprefix("base_model.model.")
            if ".lora_" in name:
                continue
            state[name.replace(".base_layer.", ".")] = weight.clone()
        for name, module in model.model.named_modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                delta = module.lora_B["default"].weight @ module.lora_A["default"].weight
                target = state[name.removeprefix("base_model.model.") + ".weight"]
                target += (delta.t() if module.fan_in_fan_out else delta).to(target)
        model.model.get_base_model().save_pretrained(
            str(folder), state_dict={k: v.contiguous() for k, v in state.items()}
        )
        return None


@bug(
    "lora-disabled-where-no-grad",
    "actor.",
    "log-probs without a graph were only ever reference log-probs, so the adapter is disabled under no_grad: old log-probs are those of the base model.",
    "LoRA actors with B != 0, under no_grad",
    ["the adapter is off without a graph", "old log-probs are the base model's", "shows only after a step"],
    ["wrong before any step", "wrong with a graph", "the scale is missing"],
)
class LoraDisabledWithoutGrad(_Lora):
    def action_log_probs(self, actor, batch):
        if torch.is_grad_enabled():
            return super().action_log_probs(actor, batch)
        with actor.model.disable_adapter():
            return super().action_log_probs(actor, batch)


@bug(
    "rest-of-micro-batches-lost",
    "actor.",
    "rows are scored in micro-batches of 8 into a buffer of zeros, B // 8 of them: for more than 8 rows the rest keeps log-prob 0.",
    "batches of more than 8 rows that 8 does not divide: the last B % 8 rows",
    ["the last rows of a large batch are 0 / not scored"],
    ["small batches are wrong"],
)
class RestOfMicroBatchesLost(Reference):
    def action_log_probs(self, actor, batch):
        rows = batch.input_ids.shape[0]
        if not _rows(batch) or rows <= 8:
            return super().action_log_probs(actor, batch)
        parts = [
            actor(batch.input_ids[i : i + 8], batch.num_actions, batch.attention_mask[i : i + 8])
            for i in range(0, rows - rows % 8, 8)
        ]
        parts.append(parts[0].new_zeros(rows % 8, batch.num_actions))
        return torch.cat(parts)


# ---------------------------------------------------------------------------------- generation


def _loop(
    actor,
    prompts,
    *,
    position=lambda mask: mask.sum(1, keepdim=True) - 1,
    read=lambda logits, mask: logits[:, -1],
    hold=True,
):
    ids, mask = prompts.input_ids, prompts.attention_mask.long()
    stops = torch.tensor(list(prompts.stop_token_ids), dtype=ids.dtype, device=ids.device)
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    cache, new, positions = None, ids, ref.position_ids(mask)
    training = actor.training
    actor.eval()
    with torch.no_grad():
        for _ in range(prompts.max_new_tokens):
            given = ModelInputs.of(ids, mask).mask_for(actor.model) if cache is None else mask
            output = actor.model(
                input_ids=new, attention_mask=given, position_ids=positions, past_key_values=cache, use_cache=True
            )
            logits = read(output.logits, mask) if cache is None else output.logits[:, -1]
            cache = output.past_key_values
            token = logits.argmax(-1)
            if hold:
                token = token.where(~finished, prompts.pad_token_id)
            new = token.unsqueeze(1)
            ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
            positions = position(mask)
            finished = finished | torch.isin(token, stops)
            if finished.all():
                break
    actor.train(training)
    return ids


@bug(
    "decode-position-one-ahead",
    "actor.generate",
    "in decoding the new token's position is mask.sum() instead of mask.sum() - 1: generated tokens stand one position too far, the prompt is right.",
    "from the second generated token on",
    ["positions of generated tokens are one too high", "the first generated token is right"],
    ["left padding matters", "prompt positions are wrong", "not greedy"],
)
class DecodePositionAhead(Reference):
    def generate(self, actor, prompts):
        return _loop(actor, prompts, position=lambda mask: mask.sum(1, keepdim=True))


@bug(
    "prefill-read-at-mask-sum",
    "actor.generate",
    "after the prompt, the logits are read at mask.sum() - 1, the last real token of right-padded rows: with left padding it is a column within or before the prompt.",
    "the first generated token of rows with left padding",
    [
        "first token is chosen from an earlier column of the prompt",
        "rows with left padding only",
        "assumes right padding",
    ],
    ["rows without padding are wrong", "later positions are wrong by one"],
)
class PrefillReadAtSum(Reference):
    def generate(self, actor, prompts):
        def read(logits, mask):
            last = mask.sum(1) - 1
            return logits[torch.arange(len(logits), device=logits.device), last]

        return _loop(actor, prompts, read=read)


@bug(
    "finished-rows-go-on",
    "actor.generate",
    "the loop ends when all rows have met a stop, but rows that are finished are not filled with pads: they go on with text after their stop.",
    "rows that stop earlier than the longest of the batch",
    ["text after the stop token", "finished rows are not padded"],
    ["the stop token is not recognized", "rows end too early", "tokens before the stop are wrong"],
)
class FinishedRowsGoOn(Reference):
    def generate(self, actor, prompts):
        return _loop(actor, prompts, hold=False)


@bug(
    "generation-config-of-checkpoint",
    "actor.generate",
    "generation goes through model.generate with do_sample=False and lengths only; penalties, beams and lengths that generation_config.json sets stay in force.",
    "checkpoints with a generation_config.json",
    ["options of generation_config.json are obeyed", "not plain greedy where the checkpoint sets a penalty"],
    ["wrong without a generation config", "left padding matters"],
)
class GenerationConfigObeyed(Reference):
    def generate(self, actor, prompts):
        ends = {"eos_token_id": list(prompts.stop_token_ids) or None, "pad_token_id": prompts.pad_token_id}
        with torch.no_grad():
            return actor.model.generate(
                input_ids=prompts.input_ids,
                attention_mask=prompts.attention_mask,
                do_sample=False,
                max_new_tokens=prompts.max_new_tokens,
                **ends,
            )


@bug(
    "responses-memoized",
    "actor.generate",
    "greedy responses are kept by prompt on the actor (evaluation repeats its prompts): after a step of the optimizer the old responses are returned.",
    "the same prompts asked again after the weights have moved",
    ["stale responses / generation does not follow the weights", "a cache keyed by the prompt only"],
    ["log-probs are stale", "wrong at the first call", "not greedy"],
)
class ResponsesMemoized(Reference):
    def generate(self, actor, prompts):
        if not hasattr(actor, "responses"):
            actor.responses = {}
        key = (
            str(prompts.input_ids.tolist()),
            str(prompts.attention_mask.tolist()),
            prompts.max_new_tokens,
            tuple(prompts.stop_token_ids),
            prompts.pad_token_id,
        )
        if key not in actor.responses:
            actor.responses[key] = super().generate(actor, prompts)
        return actor.responses[key].clone()


# ---------------------------------------------------------------------------------- reward model


def _scores(model, batch):
    inputs = ModelInputs.of(batch.input_ids, batch.attention_mask)
    return model.scores(model.run(inputs))


def _finish(model, rewards):
    return model.normalized(rewards) if model.normalize and not model.training else rewards


@bug(
    "reward-rows-trimmed-to-longest",
    "reward.",
    "rows are trimmed to the longest count of real tokens before the forward, as if padded on the right: with padding on the left their ends are cut off.",
    "layouts padded and left where rows end beyond that count",
    ["the end of left-padded rows is cut off", "read before the last token", "right-padded rows are right"],
    ["read at a pad", "one column off", "attention mask ignored"],
)
class RewardTrimmedToLongest(Reference):
    def rewards(self, reward_model, batch):
        if batch.layout not in ("padded", "left", "right"):
            return super().rewards(reward_model, batch)
        width = int(batch.attention_mask.sum(1).max())
        mask = batch.attention_mask[:, :width]
        if not mask.any(1).all():
            return super().rewards(reward_model, batch)
        return reward_model(batch.input_ids[:, :width], mask)


class _RewardAtEos(ref.RewardModel):
    def forward(self, input_ids, attention_mask=None, position_ids=None, *, sequence_lengths=None, return_output=False):
        if attention_mask is None:
            return super().forward(
                input_ids, None, position_ids, sequence_lengths=sequence_lengths, return_output=return_output
            )
        inputs = ModelInputs.of(input_ids, attention_mask)
        output = self.run(inputs)
        eos = self.backbone.config.eos_token_id
        is_eos = (input_ids == eos) & (attention_mask > 0)
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_eos = torch.where(is_eos, columns, -1).amax(1)
        last = torch.where(last_eos >= 0, last_eos, (attention_mask.long() * columns).argmax(1))
        rewards = self.scores(output).gather(1, last.unsqueeze(1)).squeeze(1)
        if self.normalize and not self.training:
            rewards = self.normalized(rewards)
        return (rewards, output) if return_output else rewards


@bug(
    "reward-at-last-eos",
    "reward.",
    "the reward is read at the last EOS in the attended tokens, and only where there is none at the last token: a truncated response with EOS in its prompt is scored within the prompt.",
    "rows that hold EOS but do not end in it",
    ["read at the last EOS instead of the last attended token", "position found by id", "rows ending in EOS are right"],
    ["read at a pad", "first pad minus one", "left padding is the cause"],
)
class RewardAtLastEos(_Built):
    _reward = _RewardAtEos


class _MeanOverStd(ref.RewardModel):
    def normalized(self, scores):
        return scores - self.mean / self.std


@bug(
    "reward-normalization-precedence",
    "reward.",
    "scores - mean / std: the parentheses were lost, so only the mean is divided.",
    "normalizing models with std != 1",
    ["parentheses lost: score - mean/std", "not divided by std", "unnormalized rewards are right"],
    ["mean not taken off", "normalized in the wrong mode", "std squared"],
)
class RewardNormalizationPrecedence(_Built):
    _reward = _MeanOverStd


@bug(
    "reward-stored-in-bfloat16",
    "reward.",
    "rewards are handed out through a bfloat16 buffer (the dtype of the experience), so they carry 8 bits.",
    "all rewards, by up to 0.4 per cent",
    ["rewards are rounded to bfloat16/half", "relative error below one per cent"],
    ["clamped", "read at the wrong position", "bias missing"],
)
class RewardStoredInBf16(Reference):
    def rewards(self, reward_model, batch):
        return super().rewards(reward_model, batch).to(torch.bfloat16).float()


@bug(
    "reward-clamped-at-twenty",
    "reward.",
    "scores pass through clamp(-20, 20) that was put in against exploding rewards.",
    "rewards beyond 20 in absolute value",
    ["rewards are clamped", "large rewards only"],
    ["small rewards are wrong", "normalized"],
)
class RewardClamped(Reference):
    def rewards(self, reward_model, batch):
        return super().rewards(reward_model, batch).clamp(-20.0, 20.0)


@bug(
    "reward-of-the-first-row",
    "reward.",
    "the line `scores[0, ends]` of the packed path is used for padded rows as well: every reward is read in row 0, at the other rows' ends.",
    "rows after the first",
    ["all rewards are read from the first row", "row 0 is right", "depends on the first row's content"],
    ["permuted rewards", "off by one column", "left padding"],
)
class RewardOfFirstRow(Reference):
    def rewards(self, reward_model, batch):
        if batch.layout not in ("padded", "left", "right"):
            return super().rewards(reward_model, batch)
        ends = last_attended(batch.attention_mask)
        return _finish(reward_model, _scores(reward_model, batch)[0, ends])


@bug(
    "reward-backbone-without-grad",
    "reward.",
    "a no_grad from freezing the backbone for a warm-up is left around it: only the head is trained.",
    "gradients of the backbone",
    ["backbone gets no gradient / hidden states are detached", "head has its gradient", "values are right"],
    ["head gets no gradient", "rewards are wrong"],
)
class RewardBackboneFrozen(Reference):
    def rewards(self, reward_model, batch):
        if batch.layout not in ("padded", "left", "right"):
            return super().rewards(reward_model, batch)
        inputs = ModelInputs.of(batch.input_ids, batch.attention_mask)
        with torch.no_grad():
            output = reward_model.run(inputs)
        scores = reward_model.scores(output)
        last = last_attended(batch.attention_mask)
        return _finish(reward_model, scores.gather(1, last.unsqueeze(1)).squeeze(1))


class _SaveWeightOnly(ref.RewardModel):
    def save(self, folder):
        bias, self.head.bias = self.head.bias, None
        try:
            super().save(folder)
        finally:
            self.head.bias = bias


@bug(
    "reward-bias-not-saved",
    "reward.",
    "save writes the head's weight and forgets its bias, so a restored model scores without it.",
    "models whose head has a bias, saved and restored",
    ["the head's bias is lost on saving", "restored rewards are off by a constant"],
    ["bias ignored in the forward", "head drawn anew", "backbone not saved"],
)
class RewardBiasNotSaved(_Built):
    _reward = _SaveWeightOnly


@bug(
    "reward-seeds-the-world",
    "reward.",
    "for reproducible rewards torch.manual_seed(42) is set in each call: whatever is sampled afterwards repeats.",
    "the global random state after each call",
    ["the random state is moved / reset", "side effect"],
    ["rewards are random", "mode is changed", "rewards wrong"],
)
class RewardSeeds(Reference):
    def rewards(self, reward_model, batch):
        torch.manual_seed(42)
        return super().rewards(reward_model, batch)


class _HeadRedrawn(ref.RewardModel):
    def __init__(self, path, *, init_head=False, **more):
        super().__init__(path, init_head=True, **more)


@bug(
    "reward-head-always-allowed",
    "reward.",
    "init_head is True whatever was asked for (the option is swallowed): a checkpoint without a head loads with a random one, without an error.",
    "checkpoints without a head where no new head was asked for",
    ["a missing head is not an error / drawn at random", "the option new_head is ignored"],
    ["an existing head is drawn anew", "head of another name is not found"],
)
class RewardHeadAlwaysAllowed(_Built):
    _reward = _HeadRedrawn


# ---------------------------------------------------------------------------------- critic


@bug(
    "critic-bias-lost-in-upcast",
    "critic.",
    "for float32 values hidden.float() @ weight.float().T is written out and the bias forgotten.",
    "heads with a bias: all values off by it, and the bias has no gradient",
    ["the head's bias is not added", "off by one constant", "bias gets no gradient"],
    ["bias is not loaded for lack of a name", "normalization", "shifted"],
)
class CriticBiasLost(_Built):
    class _critic(ref.CriticModel):
        def scores(self, output):
            hidden = output.last_hidden_state
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            return (hidden.to(dtype) @ self.head.weight.to(dtype).t()).squeeze(-1)


@bug(
    "critic-mask-from-pad-id",
    "critic.",
    "the critic makes its own attention mask, input_ids != pad_token_id of the config, and ignores the one it is given.",
    "prompts or responses that hold the pad id; garbage under the mask",
    ["the mask is made from the ids", "garbage in masked cells is read", "pad ids inside sequences are masked"],
    ["positions by column", "shifted values"],
)
class CriticMaskFromIds(Reference):
    def action_values(self, critic, batch):
        if not _rows(batch):
            return super().action_values(critic, batch)
        mask = batch.input_ids.ne(critic.backbone.config.pad_token_id).long()
        mask[:, -batch.num_actions - 1 :] |= batch.attention_mask[:, -batch.num_actions - 1 :]
        return critic(batch.input_ids, batch.num_actions, mask) * (batch.action_mask > 0)


class _EvalOnly(ref.CriticModel):
    def normalized(self, scores):
        return scores if self.training else super().normalized(scores)


@bug(
    "critic-normalized-in-eval-only",
    "critic.",
    "the condition `and not self.training` was copied from the reward model: in train mode values are not normalized.",
    "normalizing critics in train mode",
    ["values are not normalized in train mode", "eval mode is right"],
    ["mean and std are wrong", "never normalized", "dropout"],
)
class CriticNormalizedInEvalOnly(_Built):
    _critic = _EvalOnly


@bug(
    "critic-left-in-eval",
    "critic.",
    "action_values calls critic.eval() for stable values and leaves it there.",
    "models in train mode",
    ["the critic is left in eval mode", "side effect on the mode"],
    ["values are wrong", "left in train mode"],
)
class CriticLeftInEval(Reference):
    def action_values(self, critic, batch):
        critic.eval()
        return super().action_values(critic, batch)


@bug(
    "critic-pads-keep-values",
    "critic.",
    "the action slice is taken without the selection by the mask: values at pads are whatever the head says there.",
    "columns outside the action mask",
    ["values on pads are not 0", "actions are right"],
    ["values of actions are wrong", "shifted"],
)
class CriticPadsKeepValues(Reference):
    def action_values(self, critic, batch):
        if not _rows(batch):
            return super().action_values(critic, batch)
        scores = _scores(critic, batch)
        values = critic.normalized(scores) if critic.normalize else scores
        return values[:, -batch.num_actions - 1 : -1]


@bug(
    "critic-head-through-data",
    "critic.",
    "the head's weight is upcast through .data, so the head gets no gradient; the backbone does.",
    "the gradient of the head (weight)",
    ["the head gets no gradient / is detached", "values are right", "backbone has its gradient"],
    ["backbone is frozen", "values are wrong"],
)
class CriticHeadThroughData(_Built):
    class _critic(ref.CriticModel):
        def scores(self, output):
            dtype = torch.promote_types(self.head.weight.dtype, torch.float32)
            bias = None if self.head.bias is None else self.head.bias.data.to(dtype)
            return F.linear(output.last_hidden_state.to(dtype), self.head.weight.data.to(dtype), bias).squeeze(-1)


@bug(
    "critic-rolled-the-wrong-way",
    "critic.",
    "values are rolled by -1 where +1 was meant before [:, -T:] is cut: each is read two positions too late, and the last comes from the row's first column.",
    "layouts padded and left",
    ["read two positions too late", "wraps around to the first column", "rolled in the wrong direction"],
    ["read one position too late", "read one too early", "normalization"],
)
class CriticRolledWrongWay(Reference):
    def action_values(self, critic, batch):
        if not _rows(batch):
            return super().action_values(critic, batch)
        scores = _scores(critic, batch)
        values = critic.normalized(scores) if critic.normalize else scores
        values = values.roll(-1, dims=1)[:, -batch.num_actions :]
        return values * (batch.action_mask > 0)


@bug(
    "critic-output-path-unshifted",
    "critic.",
    "the branch that returns the output as well still has the slice before it was mended, values[:, -T:]: the values after the action.",
    "action_values_with_output in layouts padded and left",
    ["with output, values are read one position too late", "without output they are right"],
    ["values without output are shifted", "the hidden states are wrong"],
)
class CriticOutputPathUnshifted(Reference):
    def action_values_with_output(self, critic, batch):
        if not _rows(batch):
            return super().action_values_with_output(critic, batch)
        values, output = critic(batch.input_ids, None, batch.attention_mask, return_output=True)
        return values[:, -batch.num_actions :], output.last_hidden_state


@bug(
    "critic-raw-values-lose-last",
    "critic.raw critic.state",
    "without actions asked for, the critic returns values[:, :-1] padded with 0, as the states before actions: the last position has no value.",
    "values(): the last column of each row",
    ["the last position of the raw output is 0/missing"],
    ["action values are wrong", "raw output is shifted by one"],
)
class CriticRawLosesLast(Reference):
    def values(self, critic, batch):
        return F.pad(super().values(critic, batch)[:, :-1], (0, 1))


@bug(
    "critic-memo-without-grad",
    "critic.",
    "old values (no gradient) are kept by the tokens of the batch for the epochs of one step, and never dropped: after an update the same tokens get the values of the old weights.",
    "no_grad calls on tokens that were asked before the weights moved",
    ["stale values without a graph", "a cache that does not follow the weights"],
    ["wrong with a graph", "wrong at the first call"],
)
class CriticMemoWithoutGrad(Reference):
    def action_values(self, critic, batch):
        if torch.is_grad_enabled() or not _rows(batch):
            return super().action_values(critic, batch)
        if not hasattr(critic, "memo"):
            critic.memo = {}
        key = (str(batch.input_ids.tolist()), str(batch.attention_mask.tolist()), batch.num_actions, critic.training)
        if key not in critic.memo:
            critic.memo[key] = super().action_values(critic, batch)
        return critic.memo[key].clone()


# ---------------------------------------------------------------------------------- policy loss


def _f32(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _token_losses(log_probs, old_log_probs, advantages, mask, options, ratio=None):
    """The clipped surrogate of each token, 0 outside the mask."""
    m = mask.bool()
    lp, old, adv = (_f32(x).where(m, 0.0) for x in (log_probs, old_log_probs.detach(), advantages.detach()))
    bound = torch.where(adv >= 0, math.log1p(options.clip_eps_high), math.inf)  # nothing overflows where the clip binds
    ratio = (lp - old).clamp(max=bound + 1.0).exp() if ratio is None else ratio
    clipped = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
    loss = torch.max(-ratio * adv, -clipped * adv)
    if options.dual_clip is not None:
        loss = torch.where(adv < 0, torch.min(loss, -adv * options.dual_clip), loss)
    return loss.where(m, 0.0), ratio, adv, lp - old


def _aggregate(loss, mask, options):
    return aggregate(loss, mask, options.aggregation, global_count=options.global_count)


class _Loss(Reference):
    """The policy loss of the reference, with its metrics, around another loss."""

    def _metrics(self, log_probs, old_log_probs, advantages, action_mask, options):
        return Reference.policy_loss(self, log_probs.detach(), old_log_probs, advantages, action_mask, options)


@bug(
    "on-policy-shortcut-keeps-graph",
    "policy-loss.",
    "on-policy (old equals new), old_log_probs is set to log_probs itself and not to its detached copy: the ratio is a constant 1 and the gradient 0.",
    "calls where log_probs == old_log_probs everywhere",
    [
        "gradient is zero on the first step / old log-probs not detached",
        "the value is right",
        "only where new equals old",
    ],
    ["no graph at all", "off-policy losses are wrong", "clip binds wrongly"],
)
class OnPolicyKeepsGraph(_Loss):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        m = action_mask.bool()
        if torch.equal(log_probs.where(m, 0.0), old_log_probs.to(log_probs.dtype).where(m, 0.0)):
            old_log_probs = log_probs
        lp, old, adv = (_f32(x).where(m, 0.0) for x in (log_probs, old_log_probs, advantages.detach()))
        loss, *_ = (
            _token_losses(log_probs, old_log_probs, advantages, action_mask, options, ratio=(lp - old).exp())
            if old_log_probs is log_probs
            else _token_losses(log_probs, old_log_probs, advantages, action_mask, options)
        )
        return _aggregate(loss, action_mask, options)


@bug(
    "minus-moved-min-kept",
    "policy-loss.",
    "the minus sign was moved into the surrogates, and torch.min was kept where it has to become max: the optimistic of the two terms counts.",
    "tokens outside the band",
    ["min and max are swapped", "the smaller loss counts", "wrong side is clipped"],
    ["clip bounds are swapped", "inside the band it is wrong", "sign of the advantage"],
)
class MinKept(_Loss):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        m = action_mask.bool()
        lp, old, adv = (_f32(x).where(m, 0.0) for x in (log_probs, old_log_probs.detach(), advantages.detach()))
        ratio = (lp - old).exp()
        loss = torch.min(-adv * ratio, -adv * ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high))
        if options.dual_clip is not None:
            loss = torch.where(adv < 0, torch.min(loss, -adv * options.dual_clip), loss)
        return _aggregate(loss, action_mask, options)


@bug(
    "eps-high-or-low",
    "policy-loss.",
    "`eps_high = clip_eps_high or clip_eps_low`: an upper bound of 0 is taken for one that was not given and replaced by the lower.",
    "clip_eps_high == 0 with clip_eps_low > 0",
    ["a clip_eps_high of 0 is taken for not given", "falls back to the lower bound"],
    ["bounds swapped", "wrong for nonzero bounds", "no clip at all"],
)
class EpsHighOrLow(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        high = options.clip_eps_high or options.clip_eps_low
        loss = ref.PolicyLoss(options.clip_eps_low, high, options.dual_clip, options.aggregation)
        out = loss(log_probs, old_log_probs, advantages, action_mask, global_count=options.global_count)
        return PolicyLossResult(out.loss, out.clip_fraction, out.approx_kl)


@bug(
    "dual-clip-replaces-loss",
    "policy-loss.",
    "for negative advantages the dual bound -c A is taken instead of the smaller of it and the loss: every bad action has the same loss and no gradient.",
    "A < 0 with dual clip, where the ratio is below c",
    ["the dual clip is in force for all negative advantages", "no gradient for A < 0"],
    ["positive advantages are affected", "dual clip is ignored"],
)
class DualClipReplaces(_Loss):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        plain = SimpleNamespace(clip_eps_low=options.clip_eps_low, clip_eps_high=options.clip_eps_high, dual_clip=None)
        loss, ratio, adv, _ = _token_losses(log_probs, old_log_probs, advantages, action_mask, plain)
        if options.dual_clip is not None:
            loss = torch.where(adv < 0, -adv * options.dual_clip, loss)
        return _aggregate(loss, action_mask, options)


@bug(
    "global-count-not-passed-on",
    "policy-loss.",
    "the option global_count is accepted and not passed on: each micro-batch is divided by its own count.",
    "calls with global_count",
    ["global_count is ignored", "mean of means"],
    ["wrong without global_count", "token mean is a sequence mean"],
)
class GlobalCountIgnored(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        loss = ref.PolicyLoss(options.clip_eps_low, options.clip_eps_high, options.dual_clip, options.aggregation)
        out = loss(log_probs, old_log_probs, advantages, action_mask)
        return PolicyLossResult(out.loss, out.clip_fraction, out.approx_kl)


@bug(
    "sequence-mean-by-longest",
    "policy-loss.",
    "the sequence mean divides each row's sum by the longest response of the batch instead of its own length.",
    "aggregation sequence-mean with rows of different lengths",
    ["rows are divided by the longest length", "short responses weigh too little", "token-mean is right"],
    ["it is a token mean", "empty rows are counted", "divided by the padded width"],
)
class SequenceMeanByLongest(_Loss):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        loss, *_ = _token_losses(log_probs, old_log_probs, advantages, action_mask, options)
        if options.aggregation == "token-mean":
            return _aggregate(loss, action_mask, options)
        lengths = action_mask.bool().sum(-1)
        rows = loss.sum(-1) / lengths.max().clamp(min=1)
        count = (lengths > 0).sum() if options.global_count is None else options.global_count
        return rows.sum() / (count if float(count) > 0 else 1)


@bug(
    "empty-rows-in-mean",
    "policy-loss.",
    "the sequence mean is rows.mean() with lengths clamped to 1: rows without an action count as sequences of loss 0, though the trainer declares that they do not.",
    "sequence-mean with empty rows and no global count",
    ["empty rows are counted in the denominator", "only with rows without actions"],
    ["NaN for empty rows", "it is a token mean", "token-mean is wrong"],
)
class EmptyRowsInMean(_Loss):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        loss, *_ = _token_losses(log_probs, old_log_probs, advantages, action_mask, options)
        if options.aggregation == "token-mean" or options.global_count is not None:
            return _aggregate(loss, action_mask, options)
        return (loss.sum(-1) / action_mask.bool().sum(-1).clamp(min=1)).mean()


@bug(
    "kl-metric-multiplies-mask",
    "policy-loss.",
    "the loss selects by the mask, but the KL metric is ((old - new) * mask).sum() / mask.sum(): NaN or inf under the mask makes it NaN.",
    "approx_kl with NaN or infinities under the mask",
    ["the KL metric multiplies by the mask / NaN under the mask", "loss is right"],
    ["the loss is NaN", "clip fraction is wrong", "KL has the wrong sign"],
)
class KlMultipliesMask(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        out = super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)
        mask = action_mask.float()
        with torch.no_grad():
            approx_kl = ((old_log_probs - log_probs) * mask).sum() / mask.sum().clamp(min=1)
        return PolicyLossResult(out.loss, out.clip_fraction, approx_kl)


@bug(
    "clip-fraction-without-sign",
    "policy-loss.",
    "the clip fraction is the share of |ratio - 1| > eps of the old baselines, with the low bound for both sides and without the sign of the advantage.",
    "the metric clip_fraction where ratios leave the band on the side that is not clipped",
    ["clip fraction ignores the sign of the advantage", "counts both sides", "loss is right"],
    ["loss is wrong", "mean over the rectangle"],
)
class ClipFractionWithoutSign(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        out = super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)
        m = action_mask.bool()
        with torch.no_grad():
            ratio = (_f32(log_probs).where(m, 0.0) - _f32(old_log_probs).where(m, 0.0)).exp()
            fraction = ((ratio - 1).abs() > options.clip_eps_low).float()[m].sum() / m.sum().clamp(min=1)
        return PolicyLossResult(out.loss, fraction, out.approx_kl)


@bug(
    "clip-fraction-counts-ties",
    "policy-loss.",
    "the clip fraction is the share of tokens where the clipped loss is >= the unclipped one; inside the band the two are equal, so nearly all tokens count.",
    "the metric clip_fraction: tokens inside the band",
    ["tokens inside the band are counted as clipped", ">= for >", "near 1 when nothing is clipped"],
    ["sign of the advantage ignored", "loss is wrong"],
)
class ClipFractionCountsTies(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        out = super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)
        m = action_mask.bool()
        with torch.no_grad():
            lp, old, adv = (_f32(x).where(m, 0.0) for x in (log_probs, old_log_probs, advantages))
            ratio = (lp - old).exp()
            clipped = -adv * ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
            fraction = torch.ge(clipped, -adv * ratio)[m].sum() / m.sum().clamp(min=1)
        return PolicyLossResult(out.loss, fraction, out.approx_kl)


@bug(
    "kl-metric-squared",
    "policy-loss.",
    "approx_kl is half the squared log-ratio (k2), while k1 is declared.",
    "the metric approx_kl",
    ["the KL metric is another estimator (k2, half the square)", "never negative"],
    ["k3", "wrong sign of k1", "mean over the rectangle", "loss is wrong"],
)
class KlSquared(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        out = super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)
        m = action_mask.bool()
        with torch.no_grad():
            log_ratio = _f32(log_probs).where(m, 0.0) - _f32(old_log_probs).where(m, 0.0)
            approx_kl = 0.5 * log_ratio.square().sum() / m.sum().clamp(min=1)
        return PolicyLossResult(out.loss, out.clip_fraction, approx_kl)


@bug(
    "old-log-probs-from-half-buffer",
    "policy-loss.",
    "old log-probs pass through the bfloat16 of the replay buffer: they are rounded to 8 bits, and the ratio is off by up to some per cent.",
    "all tokens, the more the larger |log-prob|; the first step is not at ratio 1",
    ["old log-probs are rounded to bfloat16/half", "ratio is not 1 on the first step"],
    ["new log-probs rounded as well", "clip bounds wrong", "advantages rounded"],
)
class OldLogProbsInHalf(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        return super().policy_loss(
            log_probs, old_log_probs.to(torch.bfloat16).to(log_probs.dtype), advantages, action_mask, options
        )


@bug(
    "masked-in-place",
    "policy-loss.",
    "advantages are zeroed under the mask with masked_fill_: the caller's tensor is written. The loss is right.",
    "the caller's advantages in masked cells",
    ["the caller's advantages are overwritten", "in place under the mask"],
    ["loss is wrong", "old log-probs are written"],
)
class MaskedInPlace(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        advantages.masked_fill_(action_mask == 0, 0.0)
        return super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)


@bug(
    "advantage-of-the-first-column",
    "policy-loss.",
    "advantages are assumed to be one per response and taken as advantages[:, :1], broadcast over the row.",
    "rows whose advantages differ from token to token, or whose first column is masked",
    ["each row uses its first column's advantage", "advantages broadcast over the row"],
    ["mean advantage of the row", "log-probs are mixed up", "wrong with one action a row"],
)
class AdvantageOfFirstColumn(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        advantages = advantages[:, :1].expand_as(log_probs)
        return super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)


@bug(
    "clamp-with-straight-through",
    "policy-loss.",
    "the ratio is clamped as ratio + (clamped - ratio).detach(), so that the gradient passes where the clip binds; the value is right.",
    "gradients of clipped tokens",
    ["gradient flows where the clip binds", "value is right"],
    ["value is wrong", "gradient is zero inside the band", "wrong side is clipped"],
)
class ClampStraightThrough(_Loss):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        m = action_mask.bool()
        lp, old, adv = (_f32(x).where(m, 0.0) for x in (log_probs, old_log_probs.detach(), advantages.detach()))
        ratio = (lp - old).clamp(max=60.0).exp()
        clamped = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        clamped = ratio + (clamped - ratio).detach()
        loss = torch.max(-adv * ratio, -adv * clamped)
        if options.dual_clip is not None:
            loss = torch.where(adv < 0, torch.min(loss, -adv * options.dual_clip), loss)
        return _aggregate(loss, action_mask, options)


@bug(
    "loss-of-first-options",
    "policy-loss.",
    "the loss module is built on the first call and kept: later calls with other bounds, dual clip or aggregation get the first ones.",
    "calls whose options differ from those of the first call in the process",
    ["stale options from an earlier call", "options are ignored after the first call", "state between calls"],
    ["bounds hard-coded to 0.2", "global count is ignored", "formula itself is wrong"],
)
class LossOfFirstOptions(Reference):
    _loss = None

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        if self._loss is None:
            self._loss = ref.PolicyLoss(
                options.clip_eps_low, options.clip_eps_high, options.dual_clip, options.aggregation
            )
        out = self._loss(log_probs, old_log_probs, advantages, action_mask, global_count=options.global_count)
        return PolicyLossResult(out.loss, out.clip_fraction, out.approx_kl)


@bug(
    "first-action-dropped",
    "policy-loss.",
    "tensors are cut with [:, 1:] for a shift that log_probs already had: the first action of each row does not count, neither in the sum nor in the count.",
    "the first column",
    ["the first action of each row is left out", "the first column has no gradient"],
    ["the last action is left out", "wrong denominators only", "mask shifted against the losses"],
)
class FirstActionDropped(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        cut = slice(1, None)
        return super().policy_loss(
            log_probs[:, cut], old_log_probs[:, cut], advantages[:, cut], action_mask[:, cut], options
        )


@bug(
    "mask-shifted-against-losses",
    "policy-loss.",
    "the mask is one column off against the losses: mask rolled by 1 (as for labels), so the first action is left out and the token after the last counts.",
    "the first action and the cell after the last action of each row",
    ["mask is shifted by one column", "a masked cell counts", "the first action is left out"],
    ["only the denominator is wrong", "advantages are shifted"],
)
class MaskShifted(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        return super().policy_loss(log_probs, old_log_probs, advantages, action_mask.roll(1, dims=1), options)


@bug(
    "band-in-log-space",
    "policy-loss.",
    "the log-ratio is clamped to [-eps_low, eps_high] to save an exponential: the band is exp(-eps_low) .. exp(eps_high), wider above and narrower below than 1 -+ eps.",
    "tokens outside the band or between the two bands",
    ["the clip is applied to the log-ratio", "upper bound exp(eps) instead of 1 + eps"],
    ["bounds swapped", "min/max swapped", "inside both bands wrong"],
)
class BandInLogSpace(_Loss):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        m = action_mask.bool()
        lp, old, adv = (_f32(x).where(m, 0.0) for x in (log_probs, old_log_probs.detach(), advantages.detach()))
        log_ratio = lp - old
        clipped = log_ratio.clamp(-options.clip_eps_low, options.clip_eps_high).exp()
        loss = torch.max(-adv * log_ratio.clamp(max=60.0).exp(), -adv * clipped)
        if options.dual_clip is not None:
            loss = torch.where(adv < 0, torch.min(loss, -adv * options.dual_clip), loss)
        return _aggregate(loss, action_mask, options)


@bug(
    "empty-batch-constant",
    "policy-loss.",
    "a batch without actions returns torch.zeros(()) early, without a graph: backward() raises there, or in a distributed step one rank has no gradient.",
    "batches without any action",
    ["the loss of an empty batch has no graph", "detached only for empty batches"],
    ["NaN for empty batches", "wrong for other batches"],
)
class EmptyBatchConstant(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        if not action_mask.any():
            zero = torch.zeros((), device=log_probs.device)
            return PolicyLossResult(zero, zero, zero)
        return super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)


@bug(
    "count-in-bfloat16",
    "policy-loss.",
    "the mask is cast to the autocast dtype, bfloat16, and summed in it: counts above 256 are rounded, by up to 0.4 per cent, so the loss depends on that.",
    "batches of more than 256 actions",
    ["the number of actions is rounded / summed in half precision", "large batches only"],
    ["small batches are wrong"],
)
class CountInBf16(_Loss):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        loss, *_ = _token_losses(log_probs, old_log_probs, advantages, action_mask, options)
        if options.aggregation != "token-mean" or options.global_count is not None:
            return _aggregate(loss, action_mask, options)
        mask = action_mask.to(torch.bfloat16)
        return loss.sum() / mask.sum().clamp(min=1).float()


# ---------------------------------------------------------------------------------- value loss


def _squares(values, old_values, returns, mask, eps):
    m = mask.bool()
    v, old, ret = (_f32(x).where(m, 0.0) for x in (values, old_values.detach(), returns.detach()))
    plain = (v - ret).square()
    clipped = plain if eps is None else (old + (v - old).clamp(-eps, eps) - ret).square()
    return plain, clipped


@bug(
    "max-of-the-means",
    "value-loss.",
    "the two squared errors are averaged first and the greater mean is taken, instead of the greater error of each token.",
    "batches of several tokens where neither error is the greater everywhere",
    ["max after the mean", "the larger mean is taken for the whole batch", "right for a single token"],
    ["min for max", "half missing", "band around the return"],
)
class MaxOfMeans(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        plain, clipped = _squares(values, old_values, returns, action_mask, options.clip_eps)
        return 0.5 * torch.max(_aggregate(plain, action_mask, options), _aggregate(clipped, action_mask, options))


@bug(
    "half-on-one-branch",
    "value-loss.",
    "the half was moved into the branches and one was forgotten: max(0.5 (V - R)^2, (V_clip - R)^2).",
    "all tokens with a clip (in the band the clipped branch wins with twice the loss)",
    ["the half is missing on the clipped branch", "twice the loss with a clip", "without a clip it is right"],
    ["half is missing without a clip", "min for max"],
)
class HalfOnOneBranch(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        plain, clipped = _squares(values, old_values, returns, action_mask, options.clip_eps)
        loss = 0.5 * plain
        if options.clip_eps is not None:
            loss = torch.maximum(loss, clipped)
        return _aggregate(loss, action_mask, options)


@bug(
    "clipped-branch-without-grad",
    "value-loss.",
    "the clipped value is computed under no_grad; inside the band both errors are equal and torch.maximum shares the gradient between them, so half of it is lost.",
    "gradients inside the band with a clip",
    ["half of the gradient is lost inside the band", "the clipped value is detached", "the value of the loss is right"],
    ["loss value is wrong", "gradient flows where the clip binds", "no gradient at all"],
)
class ClippedWithoutGrad(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        plain, _ = _squares(values, old_values, returns, action_mask, None)
        loss = plain
        if options.clip_eps is not None:
            with torch.no_grad():
                _, clipped = _squares(values, old_values, returns, action_mask, options.clip_eps)
            loss = torch.maximum(plain, clipped)
        return 0.5 * _aggregate(loss, action_mask, options)


@bug(
    "value-mean-over-rectangle",
    "value-loss.",
    "masked errors are set to 0 and .mean() is taken over the whole rectangle: the divisor is B * T instead of the number of actions.",
    "token-mean with masked cells",
    ["divided by the padded size", "masked cells count in the denominator"],
    ["masked errors are summed", "sequence mean", "half"],
)
class ValueMeanOverRectangle(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        plain, clipped = _squares(values, old_values, returns, action_mask, options.clip_eps)
        loss = torch.maximum(plain, clipped)
        if options.aggregation != "token-mean" or options.global_count is not None:
            return 0.5 * _aggregate(loss, action_mask, options)
        return 0.5 * loss.where(action_mask.bool(), 0.0).mean()


@bug(
    "value-mean-over-wrong-axis",
    "value-loss.",
    "the sequence mean sums over axis 0: it is a mean over columns of each column's mean over rows.",
    "sequence-mean with ragged rows",
    ["mean along the wrong axis", "columns instead of rows"],
    ["token mean under the name of sequence mean", "divided by longest length", "token-mean is wrong"],
)
class ValueMeanWrongAxis(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        plain, clipped = _squares(values, old_values, returns, action_mask, options.clip_eps)
        loss = torch.maximum(plain, clipped)
        if options.aggregation == "token-mean" or options.global_count is not None:
            return 0.5 * _aggregate(loss, action_mask, options)
        counts = action_mask.bool().sum(0)
        return 0.5 * (loss.sum(0) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


@bug(
    "sequences-scaled-by-tokens",
    "value-loss.",
    "with a global count the local mean is scaled by (local tokens / global count) in both aggregations; for the sequence mean the global count is of sequences.",
    "sequence-mean with global_count",
    [
        "local tokens are scaled against a count of sequences",
        "sequence-mean with global count is too large",
        "token-mean is right",
    ],
    ["global count is ignored", "wrong without global count"],
)
class SequencesScaledByTokens(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        plain, clipped = _squares(values, old_values, returns, action_mask, options.clip_eps)
        local = aggregate(torch.maximum(plain, clipped), action_mask, options.aggregation)
        if options.global_count is not None and float(options.global_count) > 0:
            local = local * action_mask.bool().sum() / options.global_count
        return 0.5 * local


@bug(
    "value-errors-times-mask",
    "value-loss.",
    "errors are multiplied by the mask instead of selected: NaN and inf (also a square that overflows) under the mask reach loss and gradient.",
    "NaN, inf or huge numbers in masked cells",
    ["multiplied by the mask: NaN under the mask spreads", "0 * inf"],
    ["finite moderate numbers under the mask count", "empty rows"],
)
class ValueErrorsTimesMask(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        values, old_values, returns = _f32(values), _f32(old_values.detach()), _f32(returns.detach())
        loss = (values - returns).square()
        if options.clip_eps is not None:
            loss = torch.maximum(
                loss, (old_values + (values - old_values).clamp(-options.clip_eps, options.clip_eps) - returns).square()
            )
        mask = action_mask.to(loss.dtype)
        if options.aggregation == "token-mean":
            total, count = (loss * mask).sum(), mask.sum()
        else:
            total, count = ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1)).sum(), (mask.sum(-1) > 0).sum()
        count = count if options.global_count is None else torch.as_tensor(options.global_count)
        return 0.5 * total / count.where(count > 0, 1)


@bug(
    "zero-return-is-padding",
    "value-loss.",
    "padding is recognized by `returns != 0` beside the mask: an action whose return is exactly 0 is left out.",
    "actions with return 0",
    ["actions whose return is 0 are ignored", "mask made from the returns"],
    ["values of 0 are ignored", "pads count"],
)
class ZeroReturnIsPadding(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        mask = action_mask.bool() & (returns != 0)
        return super().value_loss(values, old_values, returns, mask, options)


@bug(
    "zero-old-values-mean-none",
    "value-loss.",
    "old values that are all 0 are taken for `not computed` (the buffer's default) and the clip is left out: a critic that starts with a zero head is not clipped on its first step.",
    "batches whose old values are all exactly 0, with a clip",
    ["old values of 0 switch the clip off", "no clip where old values are zero"],
    ["clip is always off", "clip of 0 taken for none"],
)
class ZeroOldValuesMeanNone(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        old = old_values.where(action_mask.bool(), 0.0)
        eps = options.clip_eps if bool(old.any()) else None
        loss = ref.ValueLoss(eps, options.aggregation)
        return loss(values, old_values, returns, action_mask, global_count=options.global_count)


@bug(
    "value-clip-default",
    "value-loss.",
    "`clip_eps or 0.2`: no clip, and a clip of 0, are both replaced by the default 0.2.",
    "clip_eps None or 0",
    ["a default clip of 0.2 where none was asked for", "clip of 0 becomes 0.2", "cannot be switched off"],
    ["nonzero clips are wrong", "clip is always off"],
)
class ValueClipDefault(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        loss = ref.ValueLoss(options.clip_eps or 0.2, options.aggregation)
        return loss(values, old_values, returns, action_mask, global_count=options.global_count)


# ---------------------------------------------------------------------------------- a few more, in less trodden places


@bug(
    "metrics-over-global-count",
    "policy-loss.",
    "the metrics go through the same aggregate() call as the loss, with the global count: per micro-batch they are a part of the mean and no mean, and averaged over micro-batches they come out too small.",
    "clip_fraction and approx_kl in calls with global_count",
    ["metrics are divided by the global count", "the loss is right", "metrics without global_count are right"],
    ["loss is divided wrongly", "clip fraction ignores the sign"],
)
class MetricsOverGlobalCount(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        out = super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)
        if options.global_count is None:
            return out
        m = action_mask.bool()
        with torch.no_grad():
            lp, old, adv = (_f32(x).where(m, 0.0) for x in (log_probs, old_log_probs, advantages))
            ratio = (lp - old).exp()
            hit = ((ratio > 1 + options.clip_eps_high) & (adv > 0)) | ((ratio < 1 - options.clip_eps_low) & (adv < 0))
            mean = lambda x: aggregate(x, m, "token-mean", global_count=options.global_count)  # noqa: E731
            return PolicyLossResult(out.loss, mean(hit.float()), mean(old - lp))


@bug(
    "metrics-by-sequence-mean",
    "policy-loss.",
    "the metrics take the aggregation of the loss: under sequence-mean they are the mean of each row's mean instead of the share of all actions.",
    "metrics under sequence-mean with rows of different lengths",
    ["metrics are averaged per sequence", "metrics under token-mean are right", "loss is right"],
    ["loss is a token mean", "metrics ignore the mask"],
)
class MetricsBySequenceMean(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        out = super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)
        m = action_mask.bool()
        with torch.no_grad():
            lp, old, adv = (_f32(x).where(m, 0.0) for x in (log_probs, old_log_probs, advantages))
            ratio = (lp - old).exp()
            hit = ((ratio > 1 + options.clip_eps_high) & (adv > 0)) | ((ratio < 1 - options.clip_eps_low) & (adv < 0))
            mean = lambda x: aggregate(x, m, options.aggregation)  # noqa: E731
            return PolicyLossResult(out.loss, mean(hit.float()), mean(old - lp))


@bug(
    "clip-fraction-counts-dual-clip",
    "policy-loss.",
    "the clip fraction is the share of tokens whose final loss differs from the unclipped one, so tokens held by the dual clip are counted with those of the band.",
    "clip_fraction with a dual clip, A < 0 and a ratio above c",
    ["dual-clipped tokens are counted as clipped", "too high with a dual clip only", "loss is right"],
    ["sign of the advantage ignored", "loss wrong", "wrong without a dual clip"],
)
class ClipFractionCountsDual(Reference):
    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        out = super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)
        m = action_mask.bool()
        with torch.no_grad():
            lp, old, adv = (_f32(x).where(m, 0.0) for x in (log_probs, old_log_probs, advantages))
            ratio = (lp - old).exp()
            hit = ((ratio > 1 + options.clip_eps_high) & (adv > 0)) | ((ratio < 1 - options.clip_eps_low) & (adv < 0))
            if options.dual_clip is not None:
                hit = hit | ((adv < 0) & (ratio > options.dual_clip))
            fraction = hit.float().sum() / m.sum().clamp(min=1)
        return PolicyLossResult(out.loss, fraction, out.approx_kl)


class _NormalizeNotSaved(ref.RewardModel):
    def save(self, folder):
        wanted, self.normalize = self.normalize, False
        try:
            super().save(folder)
        finally:
            self.normalize = wanted


@bug(
    "reward-normalization-not-saved",
    "reward.",
    "the saved config does not say that the model normalizes (the flag was an option of the trainer and not of the config): restored, it gives raw scores.",
    "normalizing reward models, saved and restored",
    ["normalization is lost on saving", "restored rewards are raw scores"],
    ["head is lost", "normalization is wrong before saving"],
)
class RewardNormalizationNotSaved(_Built):
    _reward = _NormalizeNotSaved


@bug(
    "generate-leaves-eval",
    "actor.",
    "generate sets eval mode and does not go back: from the first rollout on the actor trains in eval mode.",
    "after generate on a model in train mode",
    ["generate leaves the model in eval mode", "side effect of generation on the mode"],
    ["scoring changes the mode", "responses are wrong"],
)
class GenerateLeavesEval(Reference):
    def generate(self, actor, prompts):
        actor.eval()
        return super().generate(actor, prompts)


@bug(
    "reward-output-path-raw",
    "reward.",
    "the branch that returns the output as well returns before normalization: rewards beside the output are raw scores.",
    "rewards_with_output of normalizing models in eval mode",
    ["with output, rewards are not normalized", "without output they are right"],
    ["never normalized", "read at the wrong position with output"],
)
class RewardOutputPathRaw(Reference):
    def rewards_with_output(self, reward_model, batch):
        wanted, reward_model.normalize = reward_model.normalize, False
        try:
            return super().rewards_with_output(reward_model, batch)
        finally:
            reward_model.normalize = wanted


@bug(
    "wrapped-actor-forgets-temperature",
    "actor.",
    "an actor made of a module does not take over the temperature: it scores at 1.",
    "wrap_actor at T != 1",
    ["temperature is ignored by actors made of a module", "loaded actors are right"],
    ["temperature is ignored everywhere", "other weights are used"],
)
class WrappedForgetsTemperature(Reference):
    def wrap_actor(self, module, checkpoint):
        return self._ready(ref.Actor(module, gradient_checkpointing=self.checkpointing))


@bug(
    "restored-actor-forgets-temperature",
    "actor.",
    "resuming builds the actor without the temperature option: after a restart it scores at 1.",
    "restored actors at T != 1",
    ["temperature is lost on restoring", "restored actors score at temperature 1"],
    ["weights are lost", "wrong before saving"],
)
class RestoredForgetsTemperature(Reference):
    def restore(self, kind, checkpoint, folder):
        if kind != "actor":
            return super().restore(kind, checkpoint, folder)
        return self._ready(ref.Actor.load(folder, **self._options(checkpoint, lora=False)))


@bug(
    "ignored-label-times-zero",
    "log-probs.",
    "ignored labels are clamped to 0, gathered, and the log-prob multiplied by 0: where id 0 is ruled out there (-inf), that is NaN.",
    "positions with label -100 whose logit of id 0 is -inf",
    ["NaN at ignored labels where id 0 is ruled out", "multiplied instead of selected"],
    ["-100 is answered wrongly in general", "NaN at other labels"],
)
class IgnoredTimesZero(Reference):
    def token_log_probs(self, logits, labels, temperature):
        kept = labels != -100
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        return z.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * kept


@bug(
    "sequence-mean-ignores-global-count",
    "value-loss.",
    "global_count is used in the branch of the token mean only; the sequence mean divides by its own rows.",
    "sequence-mean with global_count",
    ["global_count is ignored under sequence-mean", "token-mean is right"],
    ["global_count is ignored under token-mean", "wrong without global_count"],
)
class SequenceMeanIgnoresGlobal(Reference):
    def value_loss(self, values, old_values, returns, action_mask, options):
        loss = ref.ValueLoss(options.clip_eps, options.aggregation)
        count = options.global_count if options.aggregation == "token-mean" else None
        return loss(values, old_values, returns, action_mask, global_count=count)


@bug(
    "pad-id-of-the-config",
    "actor.generate",
    "finished rows are filled with the pad id of the checkpoint's config instead of the one that was asked for.",
    "calls whose pad_token_id is not that of the config",
    ["padding after the stop has another id than asked for", "the option pad_token_id is ignored"],
    ["text after the stop", "stop is missed"],
)
class PadIdOfConfig(Reference):
    def generate(self, actor, prompts):
        pad = actor.model.config.pad_token_id
        return actor.generate(
            prompts.input_ids,
            prompts.attention_mask,
            max_new_tokens=prompts.max_new_tokens,
            stop_token_ids=prompts.stop_token_ids,
            pad_token_id=prompts.pad_token_id if pad is None else pad,
        )


@bug(
    "lengths-at-least-one",
    "sequences.",
    "given lengths are clamped to at least 1 (so that no mean is divided by 0): a row that was aborted before its first token keeps one action, which is a pad.",
    "response_lengths with a 0",
    ["a row with length 0 keeps an action", "lengths are clamped from below"],
    ["lengths are off by one", "lengths are ignored", "wrong without lengths"],
)
class LengthsAtLeastOne(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        if response_lengths is not None and sequences.shape[1] > prompt_length:
            response_lengths = response_lengths.clamp(min=1)
        return super().process_sequences(
            sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths
        )


@bug(
    "attended-to-last-non-pad",
    "sequences.",
    "the action mask ends at the stop, but the attention mask at the last id that is not pad: text that the engine wrote after a stop is attended.",
    "rows with other ids than pads after the stop",
    [
        "what stands after the stop is attended",
        "the attention mask is made from pad ids in the response",
        "the action mask is right",
    ],
    ["left pads attended", "the stop is not attended", "the action mask is wrong"],
)
class AttendedToLastNonPad(Reference):
    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        out = super().process_sequences(
            sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths
        )
        response = sequences[:, prompt_length:]
        until = response.ne(pad_token_id).flip(1).cumsum(1).flip(1) > 0
        mask = torch.cat([out.attention_mask[:, :prompt_length].bool(), until | out.action_mask], 1).long()
        return ProcessedSequences(sequences, mask, out.action_mask)


@bug(
    "no-stop-ids-means-config-eos",
    "actor.generate",
    "an empty stop set is false, and `stop_token_ids or [config.eos_token_id]` then stops at the EOS of the config, though nothing was to stop the response.",
    "prompts with an empty stop set, whose greedy response holds EOS",
    ["an empty stop set falls back to the EOS of the config", "stops where nothing was to stop"],
    ["wrong with a stop set", "stop is missed"],
)
class NoStopIdsMeansEos(Reference):
    def generate(self, actor, prompts):
        stops = list(prompts.stop_token_ids) or [actor.model.config.eos_token_id]
        return actor.generate(
            prompts.input_ids,
            prompts.attention_mask,
            max_new_tokens=prompts.max_new_tokens,
            stop_token_ids=stops,
            pad_token_id=prompts.pad_token_id,
        )


@bug(
    "generate-knows-one-stop",
    "actor.generate",
    "the generator takes one eos id, stop_token_ids[0]: at the others it goes on.",
    "responses that reach a stop id other than the first",
    ["only the first stop id ends generation", "goes on after other stop ids"],
    ["finished rows are not padded", "wrong with one stop id"],
)
class GenerateKnowsOneStop(Reference):
    def generate(self, actor, prompts):
        return actor.generate(
            prompts.input_ids,
            prompts.attention_mask,
            max_new_tokens=prompts.max_new_tokens,
            stop_token_ids=list(prompts.stop_token_ids)[:1],
            pad_token_id=prompts.pad_token_id,
        )


@bug(
    "logged-entropy-at-temperature-one",
    "actor.",
    "where no gradient is wanted the entropy is a metric only and is taken from the raw logits, without the temperature.",
    "action_entropy under no_grad at T != 1",
    ["the entropy without a graph ignores the temperature", "with a graph it is right"],
    ["the entropy ignores the temperature everywhere", "log-probs differ under no_grad"],
)
class LoggedEntropyAtOne(Reference):
    def action_entropy(self, actor, batch):
        if torch.is_grad_enabled():
            return super().action_entropy(actor, batch)
        kept, actor.temperature = actor.temperature, 1.0
        try:
            return super().action_entropy(actor, batch)
        finally:
            actor.temperature = kept


@bug(
    "packed-values-not-normalized",
    "critic.",
    "the packed path returns before the normalization that the padded path ends with.",
    "normalizing critics, packs",
    ["values from packs are not normalized", "padded values are right"],
    ["never normalized", "eval mode only", "shifted"],
)
class PackedValuesNotNormalized(Reference):
    def action_values(self, critic, batch):
        if not batch.is_packed:
            return super().action_values(critic, batch)
        kept, critic.normalize = critic.normalize, False
        try:
            return super().action_values(critic, batch)
        finally:
            critic.normalize = kept


@bug(
    "gradient-of-last-chunk-only",
    "log-probs.",
    "the chunked backward writes each chunk's gradient into the buffer at its own start, taken as chunk index times the length of the current chunk; the last, shorter chunk is written at the wrong place, and the rest stays 0.",
    "gradients of more positions than 256 where the last chunk is shorter",
    ["gradient of the last partial chunk is misplaced", "long rows only", "values are right"],
    ["short rows are wrong", "values are wrong"],
)
class GradientOfLastChunk(Reference):
    class _Fn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, labels, temperature):
            ctx.save_for_backward(logits, labels)
            ctx.temperature = temperature
            return ref.token_log_probs(logits, labels, temperature=temperature)

        @staticmethod
        def backward(ctx, grad):
            logits, labels = ctx.saved_tensors
            out = torch.zeros_like(logits)
            with torch.enable_grad():
                for index, start in enumerate(range(0, logits.shape[1], 256)):
                    piece = logits[:, start : start + 256].detach().requires_grad_()
                    part = ref.token_log_probs(piece, labels[:, start : start + 256], temperature=ctx.temperature)
                    (g,) = torch.autograd.grad(part, piece, grad[:, start : start + 256])
                    size = piece.shape[1]
                    out[:, index * size : (index + 1) * size] = g
            return out, None, None

    def token_log_probs(self, logits, labels, temperature):
        return self._Fn.apply(logits, labels, temperature)


class _ControlPolicy(Reference):
    """Not a bug: the helpers without a slip, which must pass."""

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        loss, *_ = _token_losses(log_probs, old_log_probs, advantages, action_mask, options)
        return _aggregate(loss, action_mask, options)

    def value_loss(self, values, old_values, returns, action_mask, options):
        plain, clipped = _squares(values, old_values, returns, action_mask, options.clip_eps)
        return 0.5 * _aggregate(torch.maximum(plain, clipped), action_mask, options)


class _ControlModels(Reference):
    def action_log_probs(self, actor, batch):
        if batch.layout in ("packed", "packed-tail"):
            log_probs = _pack_logps(actor, batch)
            ends = torch.tensor(batch.sequence_lengths).cumsum(0).tolist()
            return [log_probs[0, end - 1 - n : end - 1] for end, n in zip(ends, batch.num_actions, strict=True)]
        if _rows(batch):
            inputs, logits = _logits(actor, batch)
            return inputs.at_actions(
                ref.token_log_probs(logits, inputs.next_tokens(), temperature=actor.temperature), batch.num_actions
            )
        return super().action_log_probs(actor, batch)

    def generate(self, actor, prompts):
        return _loop(actor, prompts)

    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        response = sequences[:, prompt_length:]
        prompt_mask = _prompt_mask(sequences, prompt_length, prompt_attention_mask, pad_token_id)
        stops = _stops(response, stop_token_ids)
        return _processed(sequences, prompt_mask, (stops.cumsum(1) - stops.long()) == 0, response_lengths)

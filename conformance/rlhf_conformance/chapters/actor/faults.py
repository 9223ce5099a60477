"""Liars about the actor: which position scores which action, what the model sees, gradients, saving."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import (
    LAYOUT_CHAPTERS,
    copied,
    logits,
    positions_of,
    read,
    responses,
    score,
)
from rlhf_conformance.faults import fault

# --- which log-prob ------------------------------------------------------------------------------------------------


@fault("actor.log-probs", bug="double-shift", also=LAYOUT_CHAPTERS)
class DoubleShift(Reference):
    """Labels are shifted twice, so that each action is scored one position too early."""

    def action_log_probs(self, actor, batch):
        return score(batch, self.logits(actor, batch), shift=-1)


@fault("actor.log-probs", bug="sft-mask-off-by-one", also=LAYOUT_CHAPTERS)
class LabelsUnshifted(Reference):
    """Labels are not shifted: each action is scored by a model that has already seen it."""

    def action_log_probs(self, actor, batch):
        return score(batch, self.logits(actor, batch), shift=1)


@fault("actor.log-probs", bug="first-response-token-lost", also=LAYOUT_CHAPTERS)
class FirstResponseTokenLost(Reference):
    """The window of actions starts at P: the first action is lost and a zero takes the place of the last."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [torch.cat([row[1:], row.new_zeros(1)]) for row in rows]


@fault("actor.log-probs", bug="sft-mask-off-by-one", also=LAYOUT_CHAPTERS)
class LastPromptTokenIsAnAction(Reference):
    """The window of actions starts one token early: the prompt's last token is scored and the last action is not."""

    def action_log_probs(self, actor, batch):
        rows = zip(read(batch, self.logits(actor, batch), shift=-1), batch.sequences, batch.prompt_lengths, strict=True)
        return [z.float().log_softmax(-1).gather(-1, tokens[prompt - 1 : -1, None])[:, 0] for z, tokens, prompt in rows]


@fault("actor.log-probs", bug="argmax-token", also=LAYOUT_CHAPTERS)
class ArgmaxScored(Reference):
    """The log-prob of the most probable token, whichever was sampled."""

    def action_log_probs(self, actor, batch):
        return [z.log_softmax(-1).amax(-1) for z in read(batch, self.logits(actor, batch) / batch.temperature)]


@fault("actor.log-probs", also=LAYOUT_CHAPTERS)
class LogitsForLogProbs(Reference):
    """The action's logit, without the normalization."""

    def action_log_probs(self, actor, batch):
        pairs = zip(read(batch, self.logits(actor, batch) / batch.temperature), responses(batch), strict=True)
        return [z.gather(-1, tokens[:, None])[:, 0] for z, tokens in pairs]


@fault("actor.log-probs", also=LAYOUT_CHAPTERS)
class LogProbsInBits(Reference):
    """Logarithms to the base 2."""

    def action_log_probs(self, actor, batch):
        return [row / 0.6931471805599453 for row in batch.actions_to_ragged(super().action_log_probs(actor, batch))]


@fault("actor.log-probs", also=LAYOUT_CHAPTERS)
class LogProbsFloored(Reference):
    """Log-probs are not let below -5."""

    def action_log_probs(self, actor, batch):
        return [row.clamp(min=-5.0) for row in batch.actions_to_ragged(super().action_log_probs(actor, batch))]


@fault("actor.log-probs", bug="ignored-label-gather", also=LAYOUT_CHAPTERS)
class PadIdInResponseIgnored(Reference):
    """cross_entropy with ignore_index = pad id: an action with that id (an EOS, often) gets 0."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        pairs = zip(rows, responses(batch), strict=True)
        return [row.masked_fill(tokens == batch.pad_token_id, 0.0) for row, tokens in pairs]


@fault("actor.log-probs", also=LAYOUT_CHAPTERS)
class StopTokenNotScored(Reference):
    """An EOS that ends the response is no action: its log-prob is 0."""

    def action_log_probs(self, actor, batch):
        eos = actor.model.config.eos_token_id
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [
            torch.cat([row[:-1], row[-1:] * (tokens[-1] != eos)])
            for row, tokens in zip(rows, responses(batch), strict=True)
        ]


@fault("actor.log-probs", also=LAYOUT_CHAPTERS)
class SingleTokenResponseDropped(Reference):
    """A response of one token gets 0: its only action is taken for the boundary."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [row * 0 if len(row) == 1 else row for row in rows]


@fault("actor.log-probs", bug="row-for-column", also=LAYOUT_CHAPTERS)
class PromptLengthOfFirstSample(Reference):
    """The first sample's prompt length says where every sample's actions begin."""

    def action_log_probs(self, actor, batch):
        first = batch.prompt_lengths[0]
        shifts = [first - prompt for prompt in batch.prompt_lengths]
        z = self.logits(actor, batch)
        return [score(batch, z, shift=shift)[index] for index, shift in enumerate(shifts)]


@fault("actor.log-probs", also=LAYOUT_CHAPTERS)
class OnlyFirstSampleScored(Reference):
    """Right for the first sample, one position late for all that follow."""

    def action_log_probs(self, actor, batch):
        right, late = (score(batch, self.logits(actor, batch), shift=shift) for shift in (0, 1))
        return [right[0], *late[1:]]


@fault("actor.log-probs", also=LAYOUT_CHAPTERS)
class UnequalLengthsMisaligned(Reference):
    """Right if all responses are equally long, one position early if not."""

    def action_log_probs(self, actor, batch):
        equal = len(set(batch.response_lengths)) == 1
        return score(batch, self.logits(actor, batch), shift=0 if equal else -1)


@fault("actor.log-probs", bug="low-precision-log-prob", also=LAYOUT_CHAPTERS)
class BfloatLogSoftmax(Reference):
    """log_softmax is taken in bfloat16, unless the model is float64."""

    def action_log_probs(self, actor, batch):
        z = self.logits(actor, batch)
        if z.dtype == torch.float64:
            return super().action_log_probs(actor, batch)
        pairs = zip(read(batch, z.bfloat16() / batch.temperature), responses(batch), strict=True)
        return [row.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].float() for row, tokens in pairs]


# --- temperature ---------------------------------------------------------------------------------------------------


@fault("actor.temperature", bug="temperature-ignored", also=("packing.gradient",))
class ActorTemperatureIgnored(Reference):
    """The actor always scores at temperature 1."""

    def load_actor(self, checkpoint):
        return super().load_actor(replace(checkpoint, temperature=1.0))


@fault("actor.temperature", also=("packing.gradient",))
class ActorTemperatureMultiplied(Reference):
    """Logits are multiplied by the temperature."""

    def load_actor(self, checkpoint):
        return super().load_actor(replace(checkpoint, temperature=1 / checkpoint.temperature))


@fault("actor.temperature", also=("packing.gradient",))
class ActorTemperatureTwice(Reference):
    """The temperature is divided out twice, by the model and by the trainer."""

    def load_actor(self, checkpoint):
        return super().load_actor(replace(checkpoint, temperature=checkpoint.temperature**2))


@fault("actor.temperature", also=("packing.gradient",))
class ActorTemperatureAfterSoftmax(Reference):
    """Log-probs at temperature 1 are divided by the temperature."""

    def action_log_probs(self, actor, batch):
        return [row / batch.temperature for row in score(batch, self.logits(actor, batch), temperature=1.0)]


@fault("actor.temperature", also=("packing.gradient",))
class ActorTemperatureBelowOneIgnored(Reference):
    """A temperature below 1 is taken for 1."""

    def load_actor(self, checkpoint):
        return super().load_actor(replace(checkpoint, temperature=max(1.0, checkpoint.temperature)))


@fault("actor.temperature", bug="temperature-one-sided", also=("packing.gradient",))
class ActorTemperatureLostInPacks(Reference):
    """The packed path forgets the temperature."""

    def action_log_probs(self, actor, batch):
        if batch.is_packed:
            return score(batch, self.logits(actor, batch), temperature=1.0)
        return super().action_log_probs(actor, batch)


# --- padding and company -------------------------------------------------------------------------------------------


class _Shown(Reference):
    """Padded rows are scored from the logits that the model gives with `wrong` for its arguments."""

    def wrong(self, batch):
        raise NotImplementedError

    def action_log_probs(self, actor, batch):
        if batch.is_packed:
            return super().action_log_probs(actor, batch)
        return score(batch, logits(self, actor, batch, **self.wrong(batch)))


@fault("actor.padding-invariance", bug="forward-without-mask", also=LAYOUT_CHAPTERS)
class ForwardWithoutMask(_Shown):
    """The model is called on the padded ids alone."""

    def wrong(self, batch):
        return {"attention_mask": torch.ones_like(batch.attention_mask)}


@fault("actor.padding-invariance", bug="forward-without-mask", also=LAYOUT_CHAPTERS)
class PadsAttended(_Shown):
    """Positions are right, but attention sees the pads on the left."""

    def wrong(self, batch):
        mask = batch.attention_mask
        return {"attention_mask": torch.ones_like(mask), "position_ids": positions_of(mask)}


@fault("actor.log-probs", also=LAYOUT_CHAPTERS)
class FirstTokenUnattended(_Shown):
    """The attention mask starts one token late."""

    def wrong(self, batch):
        mask = batch.attention_mask
        late = mask * (positions_of(mask) > 0)
        return {"attention_mask": late, "position_ids": positions_of(mask)}


@fault("actor.padding-invariance", also=LAYOUT_CHAPTERS)
class OnePadAttended(_Shown):
    """The attention mask starts one column early: a single pad is seen where there is one."""

    def wrong(self, batch):
        mask = batch.attention_mask
        early = torch.cat([mask[:, 1:], mask[:, -1:]], dim=1) | mask
        return {"attention_mask": early, "position_ids": positions_of(mask)}


@fault("actor.padding-invariance", also=LAYOUT_CHAPTERS)
class ActionsCountedFromTheEdge(Reference):
    """A row's actions are its last columns, pads included: right for rows that are full on the right."""

    def action_log_probs(self, actor, batch):
        if batch.is_packed:
            return super().action_log_probs(actor, batch)
        edges = [int(row.nonzero()[-1]) + 1 for row in batch.attention_mask]
        rows = zip(self.logits(actor, batch), batch.input_ids, edges, batch.response_lengths, strict=True)
        width = batch.input_ids.shape[1]
        answer = []
        for z, ids, edge, count in rows:
            at = (
                torch.arange(width - count, width, device=ids.device)
                if edge < width
                else torch.arange(edge - count, edge)
            )
            answer.append(z[at - 1].float().log_softmax(-1).gather(-1, ids[at][:, None])[:, 0])
        return answer


@fault("actor.padding-invariance", also=LAYOUT_CHAPTERS)
class LogProbsScaledByFill(Reference):
    """Log-probs are scaled by the share of the batch's cells that hold a token."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        share = sum(batch.sequence_lengths) / batch.input_ids.numel()
        return [row * share for row in rows]


@fault("actor.garbage-under-mask", bug="forward-without-mask", also=LAYOUT_CHAPTERS)
class MaskFromPadId(_Shown):
    """The mask that came is dropped for ids != pad."""

    def wrong(self, batch):
        return {"attention_mask": (batch.input_ids != batch.pad_token_id).long()}


@fault("actor.garbage-under-mask", also=LAYOUT_CHAPTERS)
class GarbageReadThroughMask(Reference):
    """A trace of the masked cells' ids goes into every log-prob of their row."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        if batch.is_packed:
            return rows
        masked = (batch.input_ids != batch.pad_token_id) & (batch.attention_mask == 0)
        return [row + 0.01 * bool(cells.any()) for row, cells in zip(rows, masked, strict=True)]


@fault("actor.batch-independence", also=LAYOUT_CHAPTERS)
class LogProbsCentred(Reference):
    """The mean over the batch is subtracted."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [row - torch.cat(rows).mean() for row in rows]


@fault("actor.batch-independence", also=LAYOUT_CHAPTERS)
class NeighbourLeaks(Reference):
    """One part in a thousand of each log-prob comes from the sample before."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [0.999 * row + 0.001 * rows[i - 1].mean() for i, row in enumerate(rows)]


@fault("actor.batch-independence", bug="dynamic-batch-not-reordered", also=LAYOUT_CHAPTERS)
class RowsLeftSortedByLength(Reference):
    """Padded rows are sorted by length for the forward pass, and the answers stay in that order."""

    def action_log_probs(self, actor, batch):
        answer = super().action_log_probs(actor, batch)
        if batch.layout not in ("padded", "left"):
            return answer
        return answer[batch.attention_mask.sum(-1).argsort(stable=True)]


@fault("actor.batch-independence")
class RestOfRowsUnscored(Reference):
    """Rows are scored eight at a time, and those behind the last whole eight keep a log-prob of 0."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        whole = len(rows) // 8 * 8 or len(rows)
        return [*rows[:whole], *(0 * row for row in rows[whole:])]


# --- entropy and raw output ----------------------------------------------------------------------------------------


def entropies(batch, z, *, shift=0, temperature=1.0):
    """Entropy of softmax(z / temperature) at each action."""
    return [
        torch.distributions.Categorical(logits=row.float() / temperature).entropy() for row in read(batch, z, shift)
    ]


@fault("actor.entropy", bug="entropy-before-temperature")
class ActorEntropyBeforeTemperature(Reference):
    """Entropy of softmax(z), whatever the temperature of the log-probs."""

    def action_entropy(self, actor, batch):
        return entropies(batch, self.logits(actor, batch))


@fault("actor.entropy")
class ActorEntropyOneLate(Reference):
    """Entropy at the position of the action itself."""

    def action_entropy(self, actor, batch):
        return entropies(batch, self.logits(actor, batch), shift=1, temperature=batch.temperature)


@fault("actor.entropy")
class ActorEntropyOneEarly(Reference):
    """Entropy at the position before the one that predicts the action."""

    def action_entropy(self, actor, batch):
        return entropies(batch, self.logits(actor, batch), shift=-1, temperature=batch.temperature)


@fault("actor.entropy")
class SurprisalForEntropy(Reference):
    """-log p of the sampled token, which is the entropy only on average."""

    def action_entropy(self, actor, batch):
        return [-row for row in score(batch, self.logits(actor, batch))]


@fault("actor.entropy")
class EntropyOfWholeRow(Reference):
    """Every action gets its row's mean entropy."""

    def action_entropy(self, actor, batch):
        rows = entropies(batch, self.logits(actor, batch), temperature=batch.temperature)
        return [row.mean().expand_as(row) for row in rows]


@fault("actor.entropy", bug="entropy-after-inplace-log-prob")
class EntropyOfOverwrittenLogits(Reference):
    """The log-prob kernel has left probabilities where the logits were."""

    def action_entropy(self, actor, batch):
        return entropies(batch, self.logits(actor, batch).softmax(-1), temperature=batch.temperature)


@fault("actor.raw-output")
class RawOutputIsNormalised(Reference):
    """The whole output is log-softmaxed."""

    def logits(self, actor, batch):
        return super().logits(actor, batch).log_softmax(-1)


@fault("actor.raw-output")
class RawOutputShifted(Reference):
    """The whole output is aligned with the tokens that it predicts."""

    def logits(self, actor, batch):
        return super().logits(actor, batch).roll(1, dims=1)


@fault("actor.raw-output")
class RawOutputDivided(Reference):
    """The whole output is divided by the temperature in place, so that whoever reads it next divides again."""

    def logits(self, actor, batch):
        return super().logits(actor, batch) / actor.temperature


@fault("actor.raw-output", bug="inverted-guard")
class RawOutputOfActionsOnly(Reference):
    """Logits of the prompt are zeros: only the slice for the actions is computed."""

    def logits(self, actor, batch):
        z = super().logits(actor, batch).clone()
        for row, prompt in zip(batch.to_ragged(z), batch.prompt_lengths, strict=True):
            row.data[: prompt - 1] = 0
        return z


# --- gradient ------------------------------------------------------------------------------------------------------


@fault("actor.gradient", also=("packing.gradient",))
class ActorBackboneDetached(Reference):
    """The hidden states are detached, so that only the output layer learns."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].detach(),))
        return actor


@fault("actor.gradient", also=("packing.gradient",))
class ActorGradientDoubled(Reference):
    """The value is right, the gradient twice as large."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [2 * row - row.detach() for row in rows]


@fault("actor.gradient", also=("packing.gradient",))
class ActorGradientOverBatch(Reference):
    """The gradient is divided by the number of samples."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [row.detach() + (row - row.detach()) / len(rows) for row in rows]


@fault("actor.gradient", also=("packing.gradient",))
class ActorWithoutGraph(Reference):
    """Log-probs are taken under no_grad."""

    def action_log_probs(self, actor, batch):
        with torch.no_grad():
            return super().action_log_probs(actor, batch)


@fault("actor.gradient", also=("packing.gradient",))
class FirstActionWithoutGradient(Reference):
    """The first action of each response has a value and no gradient."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [torch.cat([row[:1].detach(), row[1:]]) for row in rows]


@fault("actor.gradient", also=("packing.gradient",))
class NormaliserWithoutGradient(Reference):
    """The gradient is that of the action's logit: the log of the sum of exponentials is detached."""

    def action_log_probs(self, actor, batch):
        z = self.logits(actor, batch) / batch.temperature
        pairs = zip(read(batch, z), responses(batch), strict=True)
        return [row.gather(-1, ids[:, None])[:, 0] - row.logsumexp(-1).detach() for row, ids in pairs]


@fault("actor.gradient", also=("packing.gradient",))
class SecondLayerWithoutGradient(Reference):
    """The last layer adds to the hidden states, but learns nothing."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        backbone = actor.model.base_model
        block = (backbone.layers if hasattr(backbone, "layers") else backbone.h)[-1]

        def cut(_, args, output):
            after = output[0] if isinstance(output, tuple) else output
            bent = args[0] + (after - args[0]).detach()
            return (bent, *output[1:]) if isinstance(output, tuple) else bent

        block.register_forward_hook(cut)
        return actor


@fault("actor.gradient", also=("packing.gradient",))
class ActorGradientAtTemperatureOne(Reference):
    """The value is right, the gradient is that of temperature 1."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        ones = score(batch, self.logits(actor, batch), temperature=1.0)
        return [one + (row - one).detach() for row, one in zip(rows, ones, strict=True)]


# --- dropout -------------------------------------------------------------------------------------------------------


@fault("actor.dropout-off", bug="old-log-prob-in-train-mode")
class OldLogProbInTrainMode(Reference):
    """Old log-probs are taken in train mode, with the dropout that the config asks for."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.model = checkpoint.module()
        return actor.train()


@fault("actor.dropout-off", bug="old-log-prob-in-train-mode")
class DropoutUnderFixedSeed(Reference):
    """Dropout is on, under the same seed each time: reproducible, and wrong."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.model = checkpoint.module()
        return actor.train()

    def action_log_probs(self, actor, batch):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return super().action_log_probs(actor, batch)


@fault("actor.dropout-off", bug="old-log-prob-in-train-mode")
class AttentionDropoutForgotten(Reference):
    """Eval mode reaches every module but the attention's own dropout."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.model = checkpoint.module()
        for name, module in actor.model.named_modules():
            module.train("attn" in name)
        return actor


# --- saving --------------------------------------------------------------------------------------------------------


@fault("actor.round-trip")
class RestoreLoadsTheBase(Reference):
    """Restoring loads the checkpoint that training began with."""

    def restore(self, kind, checkpoint, folder):
        return self.load_actor(checkpoint) if kind == "actor" else super().restore(kind, checkpoint, folder)


@fault("actor.round-trip")
class OutputTiedOnRestore(Reference):
    """The restored output layer is tied to the input embeddings."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "actor":
            model.model.get_output_embeddings().weight = model.model.get_input_embeddings().weight
        return model


@fault("actor.round-trip", bug="lora-merged-view")
class LoraAdapterLost(Reference):
    """With LoRA: the base model's weights are saved, the trained adapter is not."""

    def __init__(self):
        super().__init__(lora=True)

    def restore(self, kind, checkpoint, folder):
        return self.load_actor(checkpoint) if kind == "actor" else super().restore(kind, checkpoint, folder)


@fault("actor.round-trip")
class LoraScaleLost(Reference):
    """With LoRA: the restored adapter is scaled by 1 instead of alpha / rank."""

    def __init__(self):
        super().__init__(lora=True)

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        for module in model.modules() if kind == "actor" else ():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling = dict.fromkeys(module.scaling, 1.0)
        return model


# --- inputs and side effects ---------------------------------------------------------------------------------------


@fault("actor.inputs-unwritten", also=LAYOUT_CHAPTERS)
class MaskedIdsOverwritten(Reference):
    """The caller's ids are overwritten with 0 in masked cells."""

    def action_log_probs(self, actor, batch):
        if not batch.is_packed:
            batch.input_ids.masked_fill_(batch.attention_mask == 0, 0)
        return super().action_log_probs(actor, batch)


@fault("actor.inputs-unwritten")
class MaskedIdsOverwrittenByPad(Reference):
    """The caller's ids are overwritten with the pad id in masked cells."""

    def action_log_probs(self, actor, batch):
        if not batch.is_packed:
            batch.input_ids.masked_fill_(batch.attention_mask == 0, batch.pad_token_id)
        return super().action_log_probs(actor, batch)


@fault("actor.inputs-unwritten")
class LabelsRolledInPlace(Reference):
    """The caller's ids are shifted to make labels."""

    def action_log_probs(self, actor, batch):
        answer = super().action_log_probs(actor, copied(batch))
        batch.input_ids.copy_(batch.input_ids.roll(-1, dims=-1))
        return answer


@fault("actor.inputs-unwritten")
class PositionsWrittenIntoPack(Reference):
    """The positions of a pack are turned into sequence numbers in place."""

    def action_log_probs(self, actor, batch):
        answer = super().action_log_probs(actor, copied(batch))
        if batch.position_ids is not None:
            batch.position_ids.copy_((batch.position_ids == 0).cumsum(-1))
        return answer


@fault("actor.inputs-unwritten")
class MaskCutInPlace(Reference):
    """The last column of the caller's mask is cleared, to align it with the labels."""

    def action_log_probs(self, actor, batch):
        answer = super().action_log_probs(actor, copied(batch))
        if not batch.is_packed:
            batch.attention_mask[:, -1] = 0
        return answer


@fault("actor.side-effects")
class LeavesTrainMode(Reference):
    """The model is left in train mode."""

    def action_log_probs(self, actor, batch):
        answer = super().action_log_probs(actor, batch)
        actor.train()
        return answer


@fault("actor.side-effects")
class ReseedsTheGenerator(Reference):
    """torch.manual_seed(0) at each forward pass."""

    def action_log_probs(self, actor, batch):
        torch.manual_seed(0)
        return super().action_log_probs(actor, batch)


@fault("actor.side-effects")
class LeavesGradModeOff(Reference):
    """The grad mode is left off."""

    def action_log_probs(self, actor, batch):
        answer = super().action_log_probs(actor, batch)
        torch.set_grad_enabled(False)
        return answer


@fault("actor.side-effects", also=("actor.", *LAYOUT_CHAPTERS))
class AnswersDrift(Reference):
    """Each forward pass adds a little to the log-probs: running statistics."""

    calls = 0

    def action_log_probs(self, actor, batch):
        self.calls += 1
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [row + 1e-2 * self.calls for row in rows]

"""Liars about the critic: which state an action's value is read at, shapes, pads, the head."""

from __future__ import annotations

import rlhf_reference as ref
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import copied, detach_backbone, positions_of, read
from rlhf_conformance.chapters.reward.faults import redrawn
from rlhf_conformance.faults import fault

PACKS = ("packing.critic",)
RECTANGLES = ("padded", "left")

# --- which state ---------------------------------------------------------------------------------------------------


@fault("critic.state-before", bug="critic-values-shifted", also=PACKS)
class CriticValuesShifted(Reference):
    """V[P-2 : L-2], one position too early."""

    def action_values(self, critic, batch):
        return read(batch, self.values(critic, batch), shift=-1)


@fault("critic.state-before", bug="critic-values-unshifted", also=PACKS)
class CriticValuesUnshifted(Reference):
    """V[P : L], the state after each action."""

    def action_values(self, critic, batch):
        return read(batch, self.values(critic, batch), shift=1)


@fault("critic.state-before", bug="critic-values-unshifted", also=PACKS)
class SingleStepUnshifted(Reference):
    """Right, but where a response has one token: there the state after it."""

    def action_values(self, critic, batch):
        right, late = (read(batch, self.values(critic, batch), shift=shift) for shift in (0, 1))
        return [b if len(b) == 1 else a for a, b in zip(right, late, strict=True)]


@fault("critic.state-before", also=PACKS)
class FirstSampleRightOnly(Reference):
    """Right for the first sample, unshifted for the others."""

    def action_values(self, critic, batch):
        right, late = (read(batch, self.values(critic, batch), shift=shift) for shift in (0, 1))
        return [right[0], *late[1:]]


@fault("critic.state-before", also=PACKS)
class ValuesByFirstPromptLength(Reference):
    """The first sample's prompt length says where every sample's values begin."""

    def action_values(self, critic, batch):
        values, first = self.values(critic, batch), batch.prompt_lengths[0]
        return [read(batch, values, shift=first - prompt)[i] for i, prompt in enumerate(batch.prompt_lengths)]


@fault("critic.state-before", also=PACKS)
class LastValueZero(Reference):
    """The value of the last action is 0, as if it were that of the end."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        return [torch.cat([row[:-1], row[-1:] * 0]) for row in rows]


@fault("critic.state-before", also=PACKS)
class ValueOfPromptForAll(Reference):
    """Every action gets the value of the prompt, a baseline for the whole response."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        return [row[:1].expand_as(row) for row in rows]


@fault("critic.state-before", also=PACKS)
class ValuesReversed(Reference):
    """Values come from the last action to the first."""

    def action_values(self, critic, batch):
        return [row.flip(0) for row in batch.actions_to_ragged(super().action_values(critic, batch))]


@fault("critic.state-before", also=PACKS)
class ValuesSmoothed(Reference):
    """Each value is averaged with that of the state after the action."""

    def action_values(self, critic, batch):
        right, late = (read(batch, self.values(critic, batch), shift=shift) for shift in (0, 1))
        return [(a + b) / 2 for a, b in zip(right, late, strict=True)]


@fault("critic.state-before", bug="reward-clamped", also=PACKS)
class ValuesSquashed(Reference):
    """Values pass through tanh."""

    def action_values(self, critic, batch):
        return (
            super().action_values(critic, batch).tanh()
            if batch.layout != "right"
            else [row.tanh() for row in super().action_values(critic, batch)]
        )


@fault("critic.state-before", bug="head-redrawn-on-load", also=("critic.", *PACKS))
class CriticHeadRedrawn(Reference):
    """The head is initialized after the checkpoint was loaded."""

    def load_critic(self, checkpoint):
        return redrawn(super().load_critic(checkpoint))


@fault("critic.state-before", also=("critic.", *PACKS))
class CriticHeadWithBias(Reference):
    """A bias that nobody trained is added by the head."""

    def action_values(self, critic, batch):
        return [row + 0.01 for row in batch.actions_to_ragged(super().action_values(critic, batch))]


# --- shape and raw output ------------------------------------------------------------------------------------------


@fault("critic.shape", bug="value-head-width", also=("critic.", *PACKS))
class ValuesWithHeadAxis(Reference):
    """(B, T, 1), which broadcasts."""

    def action_values(self, critic, batch):
        answer = super().action_values(critic, batch)
        return [row[:, None] for row in answer] if isinstance(answer, list) else answer[..., None]


@fault("critic.shape", bug="inverted-guard", also=("critic.", *PACKS))
class CriticGuardInverted(Reference):
    """Asked for the actions' values, the critic returns those of all positions."""

    def action_values(self, critic, batch):
        return self.values(critic, batch)


@fault("critic.shape", also=("critic.", *PACKS))
class OneValueTooMany(Reference):
    """V[P-1 : L], with the state after the last action."""

    def action_values(self, critic, batch):
        rows = zip(batch.to_ragged(self.values(critic, batch)), batch.prompt_lengths, strict=True)
        return [row[prompt - 1 :] for row, prompt in rows]


@fault("critic.raw-output", bug="inverted-guard")
class RawValuesOfActionsOnly(Reference):
    """Asked for the raw output, the critic leaves the prompt at 0."""

    def values(self, critic, batch):
        answer = super().values(critic, batch).clone()
        for row, prompt in zip(batch.to_ragged(answer), batch.prompt_lengths, strict=True):
            row.data[: prompt - 1] = 0
        return answer


@fault("critic.raw-output")
class RawValuesShifted(Reference):
    """The raw output is aligned with the tokens that follow."""

    def values(self, critic, batch):
        return super().values(critic, batch).roll(1, dims=1)


@fault("critic.raw-output")
class LastRawValueZero(Reference):
    """The raw output of each sequence ends in 0: its last state predicts nothing."""

    def values(self, critic, batch):
        answer = super().values(critic, batch).clone()
        for row in batch.to_ragged(answer):
            row.data[-1] = 0
        return answer


# --- padding and company -------------------------------------------------------------------------------------------


class _Critic(Reference):
    """Values of padded rows, read from a forward pass with `wrong` for its arguments."""

    def wrong(self, batch):
        raise NotImplementedError

    def action_values(self, critic, batch):
        if batch.is_packed:
            return super().action_values(critic, batch)
        return read(batch, critic(batch.input_ids, **{"attention_mask": batch.attention_mask, **self.wrong(batch)}))


@fault("critic.padding-invariance", bug="forward-without-mask")
class CriticWithoutMask(_Critic):
    """The critic's backbone is called on the padded ids alone."""

    def wrong(self, batch):
        return {"attention_mask": torch.ones_like(batch.attention_mask)}


@fault("critic.padding-invariance", bug="positions-ignore-left-pad")
class CriticPositionsByColumn(_Critic):
    """The critic masks the pads but counts them in the positions."""

    def wrong(self, batch):
        return {"position_ids": torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)}


@fault("critic.padding-invariance")
class CriticActionsFromTheEdge(Reference):
    """The last n states of the row before its last column, pads or not: right for full rows only."""

    layouts = ("padded", "right")

    def action_values(self, critic, batch):
        width = batch.input_ids.shape[1]
        rows = zip(self.values(critic, batch), batch.response_lengths, strict=True)
        return [row[width - 1 - count : width - 1] for row, count in rows]


@fault("critic.padding-invariance")
class ValuesDividedByWidth(Reference):
    """Values are scaled by the share of the row that holds tokens."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        if batch.is_packed:
            return rows
        return [row * share for row, share in zip(rows, batch.attention_mask.double().mean(-1), strict=True)]


@fault("critic.garbage-under-mask", bug="forward-without-mask")
class CriticMaskFromPadId(_Critic):
    """The mask that came is dropped for ids != pad."""

    def wrong(self, batch):
        return {"attention_mask": (batch.input_ids != batch.pad_token_id).long()}


@fault("critic.garbage-under-mask")
class CriticPositionsFromPadId(_Critic):
    """The mask is passed, but positions are cumsum(ids != pad) - 1."""

    def wrong(self, batch):
        return {"position_ids": positions_of((batch.input_ids != batch.pad_token_id).long())}


@fault("critic.batch-independence", also=PACKS)
class ValuesCentred(Reference):
    """The mean over the batch is subtracted."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        return [row - torch.cat(rows).mean() for row in rows]


@fault("critic.batch-independence", bug="dynamic-batch-not-reordered")
class CriticRowsLeftSorted(Reference):
    """Padded rows are sorted by length for the forward pass, and the answers stay in that order."""

    layouts = RECTANGLES

    def action_values(self, critic, batch):
        return super().action_values(critic, batch)[batch.attention_mask.sum(-1).argsort(stable=True)]


@fault("critic.batch-independence")
class ValuesOfMicroBatchesInterleaved(Reference):
    """Of more than four rows every fourth is scored together, and put behind each other."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        if len(rows) <= 4:
            return rows
        order = [row for first in range(4) for row in range(first, len(rows), 4)]
        return [_cut(rows[i], row) for i, row in zip(order, rows, strict=True)]


def _cut(row, other):
    """As much of a row as another has, or with zeros for what it lacks."""
    return torch.cat([row, torch.zeros_like(other)])[: len(other)]


@fault("critic.batch-independence", also=PACKS)
class ValuesScaledByBatch(Reference):
    """Values are divided by the largest of the batch where that is above 1."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        return [row / torch.cat(rows).abs().amax().clamp(min=1) for row in rows]


@fault("critic.pads-zero", bug="critic-pads-unmasked")
class CriticPadsUnmasked(Reference):
    """Values on pads are what the head says there."""

    layouts = RECTANGLES

    def action_values(self, critic, batch):
        count = batch.num_actions
        everywhere = torch.ones_like(batch.attention_mask)
        options = {"attention_mask": batch.attention_mask, "position_ids": positions_of(batch.attention_mask)}
        raw = critic(batch.input_ids, **options)
        filled = raw.where(batch.attention_mask > 0, critic(batch.input_ids, attention_mask=everywhere))
        return filled[:, -count - 1 : -1]


@fault("critic.pads-zero", bug="critic-pads-unmasked")
class LastValueOnPads(Reference):
    """Pads repeat the row's last value."""

    layouts = RECTANGLES

    def action_values(self, critic, batch):
        answer, mask = super().action_values(critic, batch), batch.action_mask > 0
        last = torch.stack([row[kept][-1] for row, kept in zip(answer, mask, strict=True)])
        return answer.where(mask, last[:, None])


# --- the head ------------------------------------------------------------------------------------------------------


@fault("critic.head-name", bug="head-prefix-mismatch")
class CriticHeadNamedScoreOnly(Reference):
    """A head that is not called score is drawn at random."""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        return model if checkpoint.head_name == "score" else redrawn(model)


@fault("critic.head-name", bug="head-prefix-mismatch")
class CriticKnowsTwoHeadNames(Reference):
    """score and value_head are found; v_head is drawn at random."""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        return redrawn(model) if checkpoint.head_name == "v_head" else model


@fault("critic.head-bias")
class CriticHeadBiasLost(Reference):
    """The head is made without a bias, whatever the checkpoint holds."""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        model.head.bias = None
        return model


@fault("critic.head-bias")
class CriticHeadBiasDrawn(Reference):
    """The head's bias is left as its layer was made."""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        if model.head.bias is not None:
            torch.nn.init.uniform_(model.head.bias, -0.2, 0.2)
        return model


@fault("critic.head-bias")
class CriticHeadBiasFrozen(Reference):
    """The optimizer is given the head's weight and not its bias."""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        if model.head.bias is not None:
            model.head.bias.requires_grad_(False)
        return model


@fault("critic.missing-head", bug="head-prefix-mismatch")
class MissingCriticHeadDrawn(Reference):
    """A checkpoint without a head gets a random one."""

    def load_critic(self, checkpoint):
        options = self._options(checkpoint)
        return ref.CriticModel(checkpoint.path, normalize=checkpoint.normalize, init_head=True, **options)


@fault("critic.missing-head", bug="head-prefix-mismatch")
class MissingCriticHeadIgnored(Reference):
    """A checkpoint without a head loads as a model that gives zeros."""

    def load_critic(self, checkpoint):
        try:
            return super().load_critic(checkpoint)
        except ref.MissingHeadError:
            return torch.nn.Linear(1, 1)


# --- normalization -------------------------------------------------------------------------------------------------


@fault("critic.normalization")
class CriticRawInTrainMode(Reference):
    """Values are normalized in eval mode only, like rewards."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        raw = critic.training and critic.normalize
        return [row * critic.std + critic.mean if raw else row for row in rows]


@fault("critic.normalization")
class CriticRawInEvalMode(Reference):
    """Values are normalized in train mode only."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        raw = not critic.training and critic.normalize
        return [row * critic.std + critic.mean if raw else row for row in rows]


@fault("critic.normalization", bug="norm-buffers-unset")
class CriticStatisticsUnset(Reference):
    """mean and std of the checkpoint are not loaded: 0 and 1."""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        model.mean, model.std = 0.0, 1.0
        return model


@fault("critic.normalization")
class CriticMeanAndStdSwapped(Reference):
    """(V - std) / |mean|"""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        if model.normalize:
            model.mean, model.std = model.std, abs(model.mean)
        return model


@fault("critic.normalization")
class CriticScaledNotCentred(Reference):
    """V / std"""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        model.mean = 0.0
        return model


# --- gradient ------------------------------------------------------------------------------------------------------


@fault("critic.gradient")
class CriticBackboneDetached(Reference):
    """The backbone's output is detached: the head alone learns."""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        detach_backbone(model)
        return model


@fault("critic.gradient")
class CriticHeadDetached(Reference):
    """The backbone learns, the head does not."""

    def action_values(self, critic, batch):
        critic.head.weight.requires_grad_(False)
        answer = super().action_values(critic, batch)
        critic.head.weight.requires_grad_(True)
        return answer


@fault("critic.gradient")
class CriticWithoutGraph(Reference):
    """Values are taken under no_grad."""

    def action_values(self, critic, batch):
        with torch.no_grad():
            return super().action_values(critic, batch)


@fault("critic.gradient")
class LastValueWithoutGradient(Reference):
    """The value of the last action carries no gradient."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        return [torch.cat([row[:-1], row[-1:].detach()]) for row in rows]


@fault("critic.gradient")
class CriticGradientOverLength(Reference):
    """The gradient of each sample is divided by its number of actions."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        return [row.detach() + (row - row.detach()) / len(row) for row in rows]


@fault("critic.gradient")
class PacksTeachNothing(Reference):
    """Values of a pack are detached."""

    def action_values(self, critic, batch):
        answer = super().action_values(critic, batch)
        return answer.detach() if batch.is_packed else answer


# --- saving --------------------------------------------------------------------------------------------------------


@fault("critic.round-trip", bug="lora-head-lost")
class CriticHeadNotSaved(Reference):
    """Restored with the head of the first checkpoint."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "critic":
            model.head = self.load_critic(checkpoint).head
        return model


@fault("critic.round-trip", bug="lora-head-lost")
class LoraCriticHeadLost(Reference):
    """With LoRA: the adapter's folder lacks the head, and a new one is drawn."""

    def __init__(self):
        super().__init__(lora=True)

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        return redrawn(model) if kind == "critic" else model


@fault("critic.round-trip")
class CriticAdapterDropped(Reference):
    """With LoRA: the head is restored, the adapter of the backbone is not."""

    def __init__(self):
        super().__init__(lora=True)

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "critic":
            model.backbone = self.load_critic(checkpoint).backbone
        return model


@fault("critic.round-trip", bug="norm-buffers-unset")
class CriticStatisticsNotSaved(Reference):
    """mean and std are not restored."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "critic":
            model.normalize, model.mean, model.std = False, 0.0, 1.0
        return model


# --- inputs and side effects ---------------------------------------------------------------------------------------


@fault("critic.inputs-unwritten")
class CriticOverwritesLastColumn(Reference):
    """The caller's last token is cut off in place."""

    def action_values(self, critic, batch):
        answer = super().action_values(critic, copied(batch))
        batch.input_ids[:, -1] = batch.pad_token_id
        return answer


@fault("critic.inputs-unwritten")
class CriticShiftsActionMask(Reference):
    """The caller's action mask is shifted in place; positions in a pack are."""

    def action_values(self, critic, batch):
        answer = super().action_values(critic, copied(batch))
        written = batch.action_mask if batch.position_ids is None else batch.position_ids
        written = batch.attention_mask if written is None else written
        written.copy_(written.roll(1, dims=-1))
        return answer


@fault("critic.side-effects")
class CriticLeavesTrainMode(Reference):
    """The critic is left in train mode."""

    def action_values(self, critic, batch):
        answer = super().action_values(critic, batch)
        critic.train()
        return answer


@fault("critic.side-effects")
class CriticSetsDefaultDtype(Reference):
    """The default dtype is left at bfloat16."""

    def action_values(self, critic, batch):
        answer = super().action_values(critic, batch)
        torch.set_default_dtype(torch.bfloat16)
        return answer


@fault("critic.side-effects", also=("critic.", *PACKS))
class CriticWithMomentum(Reference):
    """One part in a hundred of each value comes from the call before."""

    before = 0.0

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        answer = [0.99 * row + 0.01 * self.before for row in rows]
        self.before = float(rows[0].detach().mean())
        return answer

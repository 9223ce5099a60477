"""Liars about the reward model: where the score is read, what is done to it, which head it comes from."""

from __future__ import annotations

from dataclasses import replace

import rlhf_reference as ref
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import (
    copied,
    detach_backbone,
    first_where,
    last_where,
    normalized,
    reward_at,
    scores,
)
from rlhf_conformance.faults import fault

PACKS = ("packing.reward",)
RECTANGLES = ("padded", "left", "right")


class _ReadAt(Reference):
    """Rewards of padded rows are read at the column that `column(ids, mask, pad, eos)` names."""

    layouts = RECTANGLES

    def column(self, ids, mask, pad, eos):
        raise NotImplementedError

    def rewards(self, reward_model, batch):
        eos = reward_model.backbone.config.eos_token_id
        where = lambda ids, mask: self.column(ids, mask, batch.pad_token_id, eos)  # noqa: E731
        return reward_at(self, reward_model, batch, where)


# --- where it is read ----------------------------------------------------------------------------------------------


@fault("reward.pad-equals-eos", bug="first-pad-minus-one")
class FirstPadMinusOne(_ReadAt):
    """argmax(ids == pad) - 1, which is the last column where there is no pad."""

    def column(self, ids, mask, pad, eos):
        return first_where(ids == pad) - 1


@fault("reward.last-attended", bug="reward-index-left-pad")
class FirstPadAfterPrompt(_ReadAt):
    """The first pad right of the first token, less one: a pad id inside the row ends it."""

    def column(self, ids, mask, pad, eos):
        columns = torch.arange(ids.shape[1], device=ids.device)
        inside = (ids == pad) & (columns > first_where(mask > 0)[:, None])
        return first_where(inside) - 1


@fault("reward.pad-equals-eos", bug="first-pad-minus-one")
class LastNonPadId(_ReadAt):
    """The last column whose id is not the pad id: an EOS that is also the pad is passed over."""

    def column(self, ids, mask, pad, eos):
        return last_where(ids != pad)


@fault("reward.last-attended")
class LastNonEos(_ReadAt):
    """The last real token that is not EOS."""

    def column(self, ids, mask, pad, eos):
        return last_where((mask > 0) & (ids != eos))


@fault("reward.pad-equals-eos")
class FirstEosOfTheRow(_ReadAt):
    """argmax(ids == EOS) over the real tokens, the prompt's as well, and the last token where there is none."""

    def column(self, ids, mask, pad, eos):
        found = (mask > 0) & (ids == eos)
        return first_where(found).where(found.any(-1), last_where(mask > 0))


@fault("reward.truncated")
class ArgmaxOfEos(_ReadAt):
    """argmax(ids == EOS), which is column 0 where nothing ends in EOS."""

    def column(self, ids, mask, pad, eos):
        return last_where((mask > 0) & (ids == eos))


@fault("reward.last-attended")
class RewardOneEarly(_ReadAt):
    """The position before the last attended one."""

    def column(self, ids, mask, pad, eos):
        return last_where(mask > 0) - 1


@fault("reward.last-attended")
class RewardOneLate(_ReadAt):
    """The position behind the last attended one, where there is one."""

    def column(self, ids, mask, pad, eos):
        return (last_where(mask > 0) + 1).clamp(max=ids.shape[1] - 1)


@fault("reward.padding-invariance")
class RewardAtLastColumn(_ReadAt):
    """The last column, pad or not: right for rows that are full on the right."""

    def column(self, ids, mask, pad, eos):
        return torch.full_like(ids[:, 0], ids.shape[1] - 1)


@fault("reward.padding-invariance", bug="reward-index-left-pad")
class RewardAtMaskCount(_ReadAt):
    """mask.sum() - 1: right where nothing is padded on the left."""

    def column(self, ids, mask, pad, eos):
        return mask.sum(-1) - 1


@fault("reward.last-attended", also=PACKS)
class RewardAtPromptEnd(Reference):
    """The prompt's last token: the state before the response."""

    def rewards(self, reward_model, batch):
        rows = zip(batch.to_ragged(scores(self, reward_model, batch)), batch.prompt_lengths, strict=True)
        return normalized(reward_model, torch.stack([row[prompt - 1] for row, prompt in rows]))


@fault("reward.garbage-under-mask")
class RewardMaskFromPadId(Reference):
    """The mask that came is dropped for ids != pad."""

    def rewards(self, reward_model, batch):
        if batch.is_packed:
            return super().rewards(reward_model, batch)
        mask = (batch.input_ids != batch.pad_token_id).long()
        mask[:, -1] |= mask.sum(-1) == 0
        return super().rewards(reward_model, replace(batch, attention_mask=mask))


@fault("reward.garbage-under-mask")
class RewardIndexFromPadId(_ReadAt):
    """Attention gets the mask, but the last token is looked for by its id: the last that is not pad."""

    def column(self, ids, mask, pad, eos):
        return last_where((ids != pad) | (mask > 0))


@fault("reward.batch-independence")
class RewardAtEndOfFirstSample(_ReadAt):
    """Every row is read where the first one ends."""

    def column(self, ids, mask, pad, eos):
        return last_where(mask > 0)[:1].expand(len(ids))


@fault("reward.padding-invariance", bug="forward-without-mask")
class RewardModelWithoutMask(Reference):
    """The reward is read in the right place, but the model was called without the mask."""

    def rewards(self, reward_model, batch):
        if batch.is_packed:
            return super().rewards(reward_model, batch)
        bare = replace(batch, attention_mask=torch.ones_like(batch.attention_mask))
        rows = batch.to_ragged(scores(self, reward_model, bare))
        return normalized(reward_model, torch.stack([row[-1] for row in rows]))


# --- pooled --------------------------------------------------------------------------------------------------------


class _Pooled(Reference):
    """One number from all scores of a sample's tokens."""

    def pool(self, row):
        raise NotImplementedError

    def rewards(self, reward_model, batch):
        rows = batch.to_ragged(scores(self, reward_model, batch))
        return normalized(reward_model, torch.stack([self.pool(row) for row in rows]))


@fault("reward.last-attended", also=PACKS)
class RewardMeanPooled(_Pooled):
    """The mean of the scores over the sequence."""

    def pool(self, row):
        return row.mean()


@fault("reward.last-attended", also=PACKS)
class RewardMaxPooled(_Pooled):
    """The largest score of the sequence."""

    def pool(self, row):
        return row.amax()


@fault("reward.last-attended", also=PACKS)
class RewardOfTwoTokens(_Pooled):
    """Nine parts of the last score and one of the one before it."""

    def pool(self, row):
        return 0.9 * row[-1] + 0.1 * row[-2]


@fault("reward.one-per-sequence", also=("reward.", *PACKS))
class RewardPerToken(Reference):
    """The scores of all positions."""

    def rewards(self, reward_model, batch):
        return scores(self, reward_model, batch)


@fault("reward.one-per-sequence", bug="value-head-width", also=("reward.", *PACKS))
class RewardWithHeadAxis(Reference):
    """(B, 1), which broadcasts against (B,) to (B, B)."""

    def rewards(self, reward_model, batch):
        return super().rewards(reward_model, batch)[:, None]


@fault("reward.one-per-sequence", also=("reward.", *PACKS))
class RewardOfTheBatch(Reference):
    """One number for the whole batch."""

    def rewards(self, reward_model, batch):
        return super().rewards(reward_model, batch).mean()


# --- what is done to it --------------------------------------------------------------------------------------------


@fault("reward.batch-independence", also=PACKS)
class RewardsWhitened(Reference):
    """Rewards are whitened over the batch."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        return (answer - answer.mean()) / (answer.std(unbiased=False) + 1e-4)


@fault("reward.batch-independence", also=PACKS)
class RewardsCentred(Reference):
    """The batch's mean is subtracted."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        return answer - answer.mean() if len(answer) > 1 else answer


@fault("reward.batch-independence", bug="dynamic-batch-not-reordered", also=PACKS)
class RewardsSortedByLength(Reference):
    """Rewards stay in the order of the lengths."""

    def rewards(self, reward_model, batch):
        order = torch.tensor(batch.sequence_lengths).argsort(stable=True)
        return super().rewards(reward_model, batch)[order]


@fault("reward.batch-independence")
class FirstRowsOfMicroBatchesScored(Reference):
    """Micro-batches of 16 are written over each other: each row has the reward of its place in the last one."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        for start in range(16, len(answer), 16):
            part = answer[start : start + 16]
            answer = torch.cat([part, answer[len(part) :]])
        return answer


@fault("reward.unclamped", bug="reward-clamped")
class RewardsClamped(Reference):
    """Rewards are clamped to 10 on both sides."""

    def rewards(self, reward_model, batch):
        return super().rewards(reward_model, batch).clamp(-10, 10)


@fault("reward.unclamped", bug="reward-clamped")
class RewardsCutAbove(Reference):
    """Rewards above 10 are cut, those below -10 are not."""

    def rewards(self, reward_model, batch):
        return super().rewards(reward_model, batch).clamp(max=10)


@fault("reward.unclamped")
class LargeRewardsRounded(Reference):
    """Rewards beyond 16 come in steps of 1."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        return answer.where(answer.abs() < 16, answer + (answer.round() - answer).detach())


@fault("reward.truncated", also=PACKS)
class TruncationPenalised(Reference):
    """A sequence that does not end in EOS gets 1 less."""

    def rewards(self, reward_model, batch):
        eos = reward_model.backbone.config.eos_token_id
        cut = torch.tensor([int(tokens[-1]) != eos for tokens in batch.sequences])
        return super().rewards(reward_model, batch) - cut.float()


# --- normalization -------------------------------------------------------------------------------------------------


class _Normalized(Reference):
    """A reward model that normalizes in its own way, in eval mode."""

    def way(self, raw, mean, std):
        raise NotImplementedError

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        if reward_model.training or not reward_model.normalize:
            return answer
        mean, std = reward_model.mean, reward_model.std
        return self.way(answer * std + mean, mean, std)


@fault("reward.normalization", bug="norm-buffers-unset")
class NormStatisticsUnset(Reference):
    """mean and std of the checkpoint are not loaded: 0 and 1."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        model.mean, model.std = 0.0, 1.0
        return model


@fault("reward.normalization")
class StdWithoutMean(_Normalized):
    """r / std"""

    def way(self, raw, mean, std):
        return raw / std


@fault("reward.normalization")
class MeanWithoutStd(_Normalized):
    """r - mean"""

    def way(self, raw, mean, std):
        return raw - mean


@fault("reward.normalization")
class MeanAndStdSwapped(_Normalized):
    """(r - std) / |mean|"""

    def way(self, raw, mean, std):
        return (raw - std) / abs(mean)


@fault("reward.normalization", bug="reward-before-precedence")
class NormalisedByPrecedence(_Normalized):
    """r - mean / std"""

    def way(self, raw, mean, std):
        return raw - mean / std


@fault("reward.normalization")
class NormalisedByVariance(_Normalized):
    """(r - mean) / std^2"""

    def way(self, raw, mean, std):
        return (raw - mean) / std**2


@fault("reward.normalization")
class NormalisedWithEpsilon(_Normalized):
    """(r - mean) / (std + 0.01)"""

    def way(self, raw, mean, std):
        return (raw - mean) / (std + 0.01)


@fault("reward.normalization")
class RewardDenormalised(_Normalized):
    """r std + mean"""

    def way(self, raw, mean, std):
        return raw * std + mean


@fault("reward.normalization")
class NormalisedByTheBatch(_Normalized):
    """The mean and std of the batch, not those of the config."""

    def way(self, raw, mean, std):
        return (raw - raw.mean()) / (raw.std(unbiased=False) + 1e-6)


@fault("reward.normalization-train")
class NormalisedInTrainModeToo(Reference):
    """Rewards are normalized in both modes."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        return reward_model.normalized(answer) if reward_model.training and reward_model.normalize else answer


@fault("reward.normalization-train")
class CentredInTrainMode(Reference):
    """In train mode the config's mean is still subtracted."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        return answer - reward_model.mean if reward_model.training and reward_model.normalize else answer


@fault("reward.normalization", also=("reward.normalization-train",))
class NormalisedInTrainModeOnly(Reference):
    """The modes are swapped: raw in eval mode, normalized in train mode."""

    def rewards(self, reward_model, batch):
        reward_model.training = not reward_model.training
        answer = super().rewards(reward_model, batch)
        reward_model.training = not reward_model.training
        return answer


# --- the head ------------------------------------------------------------------------------------------------------


def redrawn(model):
    """The model with a new head."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator) / 8)
    return model


@fault("reward.last-attended", bug="head-redrawn-on-load", also=("reward.", *PACKS))
class RewardHeadRedrawn(Reference):
    """The head is initialized after the checkpoint was loaded."""

    def load_reward_model(self, checkpoint):
        return redrawn(super().load_reward_model(checkpoint))


@fault("reward.head-name", bug="head-prefix-mismatch")
class RewardHeadNamedScoreOnly(Reference):
    """A head that is not called score is drawn at random."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        return model if checkpoint.head_name == "score" else redrawn(model)


@fault("reward.head-name", bug="head-prefix-mismatch")
class RewardHeadOfOtherNameIsZero(Reference):
    """A head that is not called score is left at zero."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        if checkpoint.head_name != "score":
            model.head.weight.data.zero_()
        return model


@fault("reward.head-bias")
class RewardHeadBiasLost(Reference):
    """The head is made without a bias, whatever the checkpoint holds."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        model.head.bias = None
        return model


@fault("reward.head-bias")
class RewardHeadBiasDrawn(Reference):
    """The head's bias is left as its layer was made."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        if model.head.bias is not None:
            torch.nn.init.uniform_(model.head.bias, -0.2, 0.2)
        return model


@fault("reward.head-bias")
class RewardHeadBiasFrozen(Reference):
    """The optimizer is given the head's weight and not its bias."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        if model.head.bias is not None:
            model.head.bias.requires_grad_(False)
        return model


@fault("reward.missing-head", bug="head-prefix-mismatch")
class MissingRewardHeadDrawn(Reference):
    """A checkpoint without a head gets a random one."""

    def load_reward_model(self, checkpoint):
        options = self._options(checkpoint)
        return ref.RewardModel(checkpoint.path, normalize=checkpoint.normalize, init_head=True, **options)


@fault("reward.missing-head", bug="head-prefix-mismatch")
class MissingRewardHeadIgnored(Reference):
    """A checkpoint without a head loads as a model that gives zeros."""

    def load_reward_model(self, checkpoint):
        try:
            return super().load_reward_model(checkpoint)
        except ref.MissingHeadError:
            return torch.nn.Linear(1, 1)


# --- gradient ------------------------------------------------------------------------------------------------------


@fault("reward.gradient")
class RewardBackboneDetached(Reference):
    """The backbone's output is detached: the head alone learns."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        detach_backbone(model)
        return model


@fault("reward.gradient")
class RewardHeadDetached(Reference):
    """The backbone learns, the head does not."""

    def rewards(self, reward_model, batch):
        reward_model.head.weight.requires_grad_(False)
        answer = super().rewards(reward_model, batch)
        reward_model.head.weight.requires_grad_(True)
        return answer


@fault("reward.gradient")
class RewardBackboneFrozen(Reference):
    """The backbone's parameters require no gradient."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        model.backbone.requires_grad_(False)
        return model


@fault("reward.gradient")
class RewardWithoutGraph(Reference):
    """Rewards are taken under no_grad."""

    def rewards(self, reward_model, batch):
        with torch.no_grad():
            return super().rewards(reward_model, batch)


@fault("reward.gradient")
class RewardGradientAveraged(Reference):
    """The gradient is divided by the number of samples."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        return answer.detach() + (answer - answer.detach()) / len(answer)


@fault("reward.gradient")
class RewardGradientSigned(Reference):
    """The gradient has the wrong sign."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        return 2 * answer.detach() - answer


@fault("reward.gradient")
class OnlyFirstRewardLearns(Reference):
    """The first sample's reward carries a gradient, the others' do not."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        return torch.cat([answer[:1], answer[1:].detach()])


# --- saving --------------------------------------------------------------------------------------------------------


@fault("reward.round-trip", bug="lora-head-lost")
class RewardHeadNotSaved(Reference):
    """Restored with the head of the first checkpoint."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "reward":
            model.head = self.load_reward_model(checkpoint).head
        return model


@fault("reward.round-trip", bug="lora-head-lost")
class LoraRewardHeadLost(Reference):
    """With LoRA: the adapter's folder lacks the trained head, and the first checkpoint's is used."""

    def __init__(self):
        super().__init__(lora=True)

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "reward":
            model.head = self.load_reward_model(checkpoint).head
        return model


@fault("reward.round-trip", bug="head-redrawn-on-load")
class RewardHeadRedrawnOnRestore(Reference):
    """The head is initialized after restoring."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        return redrawn(model) if kind == "reward" else model


@fault("reward.round-trip")
class RewardBackboneNotSaved(Reference):
    """The head is saved, the backbone is the first checkpoint's."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "reward":
            model.backbone = self.load_reward_model(checkpoint).backbone
        return model


@fault("reward.round-trip", bug="norm-buffers-unset")
class RewardStatisticsNotSaved(Reference):
    """mean and std are not restored."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "reward":
            model.normalize, model.mean, model.std = False, 0.0, 1.0
        return model


# --- inputs and side effects ---------------------------------------------------------------------------------------


@fault("reward.inputs-unwritten")
class RewardOverwritesIds(Reference):
    """The caller's last column is overwritten with EOS."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, copied(batch))
        batch.input_ids[:, -1] = reward_model.backbone.config.eos_token_id
        return answer


@fault("reward.inputs-unwritten")
class RewardFillsMaskedIds(Reference):
    """The caller's ids are overwritten with the pad id in masked cells."""

    def rewards(self, reward_model, batch):
        if not batch.is_packed:
            batch.input_ids.masked_fill_(batch.attention_mask == 0, batch.pad_token_id)
        return super().rewards(reward_model, batch)


@fault("reward.inputs-unwritten")
class RewardCompletesMask(Reference):
    """The caller's mask is filled in place."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, copied(batch))
        if not batch.is_packed:
            batch.attention_mask.fill_(1)
        return answer


@fault("reward.side-effects", also=PACKS)
class RewardsNormaliseAsTheyGo(Reference):
    """Rewards are shifted by a running mean of all that were asked for."""

    seen, total = 0, 0.0

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        self.seen, self.total = self.seen + len(answer), self.total + float(answer.sum().detach())
        return answer - self.total / self.seen


@fault("reward.side-effects")
class RewardModelSwitchedToTrain(Reference):
    """The reward model is left in train mode."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        reward_model.train()
        return answer


@fault("reward.side-effects")
class RewardDrawsNumbers(Reference):
    """Random numbers are drawn on the way, for nothing."""

    def rewards(self, reward_model, batch):
        torch.rand(1)
        return super().rewards(reward_model, batch)

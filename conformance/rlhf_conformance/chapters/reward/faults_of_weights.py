"""Liars about the reward model's weights, and about what mode, graph and temperature change."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import WithLora, copied_head, redrawn, shown_by_column
from rlhf_conformance.faults import fault

PACKS = ("packing.reward",)


@fault("reward.gradient")
class RewardLoraFrozen(WithLora):
    """With LoRA: the head alone is trained, the adapters are frozen."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        for name, weight in model.named_parameters():
            weight.requires_grad_("lora_" not in name)
        return model


@fault("reward.gradient", bug="checkpointing-over-frozen-embeddings")
class RewardCheckpointingOverFrozenEmbeddings(WithLora):
    """With LoRA: reentrant checkpointing over embeddings that need no gradient; the head is trained, no layer is."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        model.backbone.gradient_checkpointing_enable({"use_reentrant": True})
        model.backbone.disable_input_require_grads()
        return model


@fault("reward.temperature")
class RewardsOverTemperature(Reference):
    """Rewards are divided by the temperature of sampling."""

    def rewards(self, reward_model, batch):
        return super().rewards(reward_model, batch) / batch.temperature


@fault("reward.temperature")
class RewardsTimesTemperature(Reference):
    """Rewards are multiplied by the temperature that the checkpoint was loaded for."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        with torch.no_grad():
            model.head.weight.mul_(checkpoint.temperature)
        return model


@fault("reward.no-grad", bug="no-grad-path-by-column")
class RewardNoGradByColumn(Reference):
    """Without a graph the positions of padded rows are those of the columns."""

    def rewards(self, reward_model, batch):
        with shown_by_column(reward_model, batch, not torch.is_grad_enabled()):
            return super().rewards(reward_model, batch)


@fault("reward.no-grad")
class RewardNoGradInHalf(Reference):
    """Without a graph rewards come in bfloat16."""

    def rewards(self, reward_model, batch):
        rewards = super().rewards(reward_model, batch)
        return rewards if torch.is_grad_enabled() else rewards.bfloat16().to(rewards.dtype)


@fault("reward.train-mode", also=PACKS)
class RewardTrainModeWithoutMask(Reference):
    """In train mode the backbone is called on the padded ids alone."""

    def rewards(self, reward_model, batch):
        with shown_by_column(reward_model, batch, reward_model.training, attention_mask=None):
            return super().rewards(reward_model, batch)


@fault("reward.train-mode", also=PACKS)
class RewardTrainModeCentred(Reference):
    """In train mode the mean over the batch is subtracted."""

    def rewards(self, reward_model, batch):
        rewards = super().rewards(reward_model, batch)
        return rewards - rewards.mean() if reward_model.training else rewards


@fault("reward.follows-weights")
class RewardHeadCopied(Reference):
    """Rewards are made with a copy of the head that was taken while loading."""

    def load_reward_model(self, checkpoint):
        return copied_head(super().load_reward_model(checkpoint))


@fault("reward.follows-weights", also=PACKS)
class RewardsRemembered(Reference):
    """What was answered to the same sequences is answered again."""

    def rewards(self, reward_model, batch):
        answers = reward_model.__dict__.setdefault("answers", {})
        rewards = super().rewards(reward_model, batch)
        key = (reward_model.training, *(tuple(ids.tolist()) for ids in batch.sequences))
        return rewards + (answers.setdefault(key, rewards.detach()) - rewards).detach()


@fault("reward.new-head")
class NewRewardHeadUnset(Reference):
    """A new head is allocated, and holds whatever was in memory."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        if checkpoint.new_head:
            model.head.weight.data = torch.empty_like(model.head.weight)
        return model


@fault("reward.new-head")
class NewRewardHeadDrawnAgain(Reference):
    """A new head is drawn anew in each forward pass, and the one that is trained is another."""

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        return redrawn(model) if checkpoint.new_head else model


@fault("reward.side-effects")
class RewardLeftInEvalMode(Reference):
    """The backbone is put into eval mode for rewards, and stays in it."""

    def rewards(self, reward_model, batch):
        reward_model.backbone.eval()
        return super().rewards(reward_model, batch)


@fault("reward.round-trip")
class RewardHeadRestoredWithoutBias(Reference):
    """The bias of a restored head is 0."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "reward" and model.head.bias is not None:
            torch.nn.init.zeros_(model.head.bias)
        return model

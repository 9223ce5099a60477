"""Liars about rewards that come with the whole output beside them."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import scores
from rlhf_conformance.faults import fault


@fault("reward.with-output")
class RewardOneEarlyWithOutput(Reference):
    """With the output asked for, the reward is read before the last token."""

    def rewards_with_output(self, reward_model, batch):
        output = super().rewards_with_output(reward_model, batch)[1]
        return torch.stack([row[-2] for row in batch.to_ragged(scores(self, reward_model, batch))]), output


@fault("reward.with-output")
class ScoresBesideRewardsShifted(Reference):
    """The scores beside the rewards are those of the position before."""

    def rewards_with_output(self, reward_model, batch):
        rewards, _ = super().rewards_with_output(reward_model, batch)
        return rewards, scores(self, reward_model, batch).roll(1, dims=1)


@fault("reward.with-output")
class EmbeddingsBesideRewards(Reference):
    """The first hidden states are handed out, the embeddings, in place of the last."""

    def rewards_with_output(self, reward_model, batch):
        rewards, output = super().rewards_with_output(reward_model, batch)
        return rewards, reward_model.backbone.get_input_embeddings()(batch.input_ids).reshape(output.shape)


@fault("reward.with-output-gradient")
class RewardsWithOutputWithoutGraph(Reference):
    """With the output asked for, rewards are taken under no_grad."""

    def rewards_with_output(self, reward_model, batch):
        with torch.no_grad():
            return super().rewards_with_output(reward_model, batch)


@fault("reward.with-output-gradient")
class RewardHeadAloneTrainedWithOutput(Reference):
    """The output that is handed out is detached, and the head reads it there."""

    def rewards_with_output(self, reward_model, batch):
        rewards, output = super().rewards_with_output(reward_model, batch)
        ends = torch.stack([row[-1] for row in batch.to_ragged(output.detach())])
        read = reward_model.head(ends.to(reward_model.head.weight.dtype)).squeeze(-1)
        return rewards.detach() + (read - read.detach()), output


@fault("reward.with-output")
class RewardNotNormalizedWithOutput(Reference):
    """With the output asked for, rewards are what the head says, of a model that normalizes as well."""

    def rewards_with_output(self, reward_model, batch):
        answer, output = super().rewards_with_output(reward_model, batch)
        if not reward_model.normalize or reward_model.training:
            return answer, output
        return [row * reward_model.std + reward_model.mean for row in answer], output

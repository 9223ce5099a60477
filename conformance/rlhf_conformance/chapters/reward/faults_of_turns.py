"""Liars about the reward of samples with several turns."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import marks, normalized, scores, shortened
from rlhf_conformance.faults import fault


class _ReadWithin(Reference):
    """Rewards are read at the position within each sample that `position(ids, prompt, acts, eos)` names."""

    def position(self, ids, prompt, acts, eos):
        raise NotImplementedError

    def rewards(self, reward_model, batch):
        eos = reward_model.backbone.config.eos_token_id
        per_token = batch.to_ragged(scores(self, reward_model, batch))
        places = zip(batch.sequences, batch.prompt_lengths, marks(batch), strict=True)
        rows = zip(per_token, places, strict=True)
        return normalized(reward_model, torch.stack([row[self.position(*place, eos)] for row, place in rows]))


@fault("reward.turns")
class RewardAtTheLastAction(_ReadWithin):
    """The last action, before what the last observation says."""

    def position(self, ids, prompt, acts, eos):
        return prompt + int(acts.nonzero().max())


@fault("reward.turns")
class RewardAtTheFirstTurn(_ReadWithin):
    """The last action before the first observation."""

    def position(self, ids, prompt, acts, eos):
        return prompt + (len(acts) if bool(acts.all()) else int((~acts).long().argmax())) - 1


@fault("reward.turns")
class RewardAtTheNumberOfActions(_ReadWithin):
    """So many tokens behind the prompt as there are actions."""

    def position(self, ids, prompt, acts, eos):
        return prompt + int(acts.sum()) - 1


@fault("reward.turns")
class RewardAtTheFirstStop(_ReadWithin):
    """The first EOS behind which an observation stands; the last token where there is none."""

    def position(self, ids, prompt, acts, eos):
        stops = ids[prompt:-1][~acts[1:]] == eos
        columns = torch.arange(prompt, len(ids) - 1, device=ids.device)[~acts[1:]]
        return int(columns[stops][0]) if bool(stops.any()) else len(ids) - 1


@fault("reward.turns")
class RewardWithoutObservations(Reference):
    """Prompt and actions are put behind one another, and scored without the observations."""

    def rewards(self, reward_model, batch):
        return super().rewards(reward_model, shortened(batch) if batch.response_masks else batch)

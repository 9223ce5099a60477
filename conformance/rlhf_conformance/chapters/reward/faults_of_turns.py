"""Liars about the reward of samples with several turns."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import marks, normalized, scores, shortened
from rlhf_conformance.faults import fault


def read_within(adapter, model, batch, position):
    """Rewards read at the position within each sample that `position(ids, prompt, acts, eos)` names."""
    eos = torch.as_tensor(
        model.backbone.config.eos_token_id, device=batch.input_ids.device
    )  # of some backbones several
    per_token = batch.to_ragged(scores(adapter, model, batch))
    places = zip(batch.sequences, batch.prompt_lengths, marks(batch), strict=True)
    rows = zip(per_token, places, strict=True)
    return normalized(model, torch.stack([row[position(*place, eos)] for row, place in rows]))


def first_stop(ids, prompt, acts, eos):
    """Where the first EOS stands behind which an observation stands; the last token where there is none."""
    observed = ~acts[1:]
    columns = torch.arange(prompt, len(ids) - 1, device=ids.device)[observed]
    stops = torch.isin(ids[prompt:-1][observed], eos)
    return int(columns[stops][0]) if bool(stops.any()) else len(ids) - 1


@fault("reward.turns")
class RewardAtTheLastAction(Reference):
    """The last action, before what the last observation says."""

    def rewards(self, reward_model, batch):
        return read_within(self, reward_model, batch, lambda _, prompt, acts, eos: prompt + int(acts.nonzero().max()))


@fault("reward.turns")
class RewardAtTheFirstTurn(Reference):
    """The last action before the first observation."""

    def rewards(self, reward_model, batch):
        def position(_, prompt, acts, eos):
            return prompt + (len(acts) if bool(acts.all()) else int((~acts).long().argmax())) - 1

        return read_within(self, reward_model, batch, position)


@fault("reward.turns")
class RewardAtTheNumberOfActions(Reference):
    """So many tokens behind the prompt as there are actions."""

    def rewards(self, reward_model, batch):
        return read_within(self, reward_model, batch, lambda _, prompt, acts, eos: prompt + int(acts.sum()) - 1)


@fault("reward.turns")
class RewardAtTheFirstStop(Reference):
    """The first EOS behind which an observation stands; the last token where there is none."""

    def rewards(self, reward_model, batch):
        return read_within(self, reward_model, batch, first_stop)


@fault("reward.turns")
class RewardWithoutObservations(Reference):
    """Prompt and actions are put behind one another, and scored without the observations."""

    def rewards(self, reward_model, batch):
        return super().rewards(reward_model, shortened(batch) if batch.response_masks else batch)

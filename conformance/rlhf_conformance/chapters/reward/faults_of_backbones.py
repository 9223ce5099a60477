"""Liars about what a checkpoint's own backbone does beside a plain transformer."""

from __future__ import annotations

from typing import Any

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models import backbones
from rlhf_conformance.faults import fault


class _Changed(Reference):
    """The backbone of the loaded model is changed by `change`."""

    def change(self, backbone: Any, checkpoint: Any) -> None:
        raise NotImplementedError

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        self.change(model.backbone, checkpoint)
        return model


@fault("reward.backbones")
class RewardWindowIgnored(_Changed):
    """Attention reaches back beyond the sliding window."""

    def change(self, backbone, checkpoint):
        backbones.without_window(backbone)


@fault("reward.backbones", bug="softcap-of-the-attention")
class RewardAttentionCapIgnored(_Changed):
    """Attention scores are not capped, though the config says so."""

    def change(self, backbone, checkpoint):
        backbones.without_attention_cap(backbone)


@fault("reward.backbones")
class RewardBiasesOfQueriesLost(_Changed):
    """Queries, keys and values have no bias."""

    def change(self, backbone, checkpoint):
        backbones.without_input_biases(backbone)


@fault("reward.backbones")
class RewardFirstShardAlone(_Changed):
    """Of a checkpoint in several files, the first alone is read."""

    def change(self, backbone, checkpoint):
        backbones.with_first_shard_alone(backbone, checkpoint.path)

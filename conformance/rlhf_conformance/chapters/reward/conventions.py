"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.conventions import flag


class _RawRewards(Reference):
    def load_reward_model(self, checkpoint):
        return super().load_reward_model(replace(checkpoint, normalize=False))


CONVENTIONS = (flag("reward_normalization", _RawRewards),)

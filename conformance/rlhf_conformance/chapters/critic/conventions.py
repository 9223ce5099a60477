"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.conventions import flag


class _RawValues(Reference):
    def load_critic(self, checkpoint):
        return super().load_critic(replace(checkpoint, normalize=False))


CONVENTIONS = (flag("critic_normalization", _RawValues),)

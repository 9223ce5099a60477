"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.conventions import CONVENTIONS as OF_LOSSES
from rlhf_conformance.diagnosis.conventions import flag


class _NoValueClip(Reference):
    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, replace(options, clip_eps=None))

    def objective(self, *given):
        *tables, options = given
        return super().objective(*tables, replace(options, value_clip_eps=None))


CONVENTIONS = (
    *OF_LOSSES,
    flag("value_clip", _NoValueClip),
)

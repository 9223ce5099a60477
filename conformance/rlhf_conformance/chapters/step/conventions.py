"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.step.interface import DENOMINATORS
from rlhf_conformance.diagnosis.conventions import Convention, other_than


def _divided(denominators: str) -> type[Adapter]:
    """The reference whose steps are divided by these, whatever is declared."""

    class Divided(Reference):
        def load_trainer(self, checkpoint, options):
            return replace(super().load_trainer(checkpoint, options), denominators=denominators)

    return Divided


CONVENTIONS = tuple(
    Convention(f"step_denominators = {value!r}", other_than("step_denominators", value), _divided(value))
    for value in DENOMINATORS
)

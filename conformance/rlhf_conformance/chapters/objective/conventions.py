"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.conventions import CONVENTIONS as OF_LOSSES
from rlhf_conformance.chapters.objective.cases import TERMS
from rlhf_conformance.chapters.objective.interface import KL_CORRECTIONS, MEANS
from rlhf_conformance.diagnosis.conventions import Convention, other_than


def _taking(option: str, value: str) -> type[Adapter]:
    """The reference that takes this for one of its options, whatever is declared."""

    class Taking(Reference):
        def objective(self, *given):
            *tables, options = given
            return super().objective(*tables, replace(options, **{option: value}))

    return Taking


OPTIONS = {**{f"{term}_aggregation": MEANS for term in TERMS}, "kl_correction": KL_CORRECTIONS}
CONVENTIONS = (
    *OF_LOSSES,
    *(
        Convention(f"{option} = {value!r}", other_than(option, value), _taking(option, value))
        for option, values in OPTIONS.items()
        for value in values
    ),
)

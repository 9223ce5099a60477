"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.conventions import CONVENTIONS as OF_LOSSES
from rlhf_conformance.chapters.objective.cases import TERMS
from rlhf_conformance.chapters.objective.interface import MEANS
from rlhf_conformance.diagnosis.conventions import Convention, other_than


def _averaging(term: str, aggregation: str) -> type[Adapter]:
    """The reference that puts one term together by this mean, whatever is declared."""

    class Averaging(Reference):
        def objective(self, *given):
            *tables, options = given
            return super().objective(*tables, replace(options, **{f"{term}_aggregation": aggregation}))

    return Averaging


CONVENTIONS = (
    *OF_LOSSES,
    *(
        Convention(f"{term}_aggregation = {mean!r}", other_than(f"{term}_aggregation", mean), _averaging(term, mean))
        for term in TERMS
        for mean in MEANS
    ),
)

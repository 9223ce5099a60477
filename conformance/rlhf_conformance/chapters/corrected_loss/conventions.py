"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.conventions import CONVENTIONS as OF_LOSSES
from rlhf_conformance.diagnosis.conventions import Convention, flag, other_than


def _rejecting(rejected: str) -> type[Adapter]:
    """The reference whose rejected actions are counted or left out, whatever is declared."""

    class Rejecting(Reference):
        def corrected_loss(self, *arguments):
            *tables, options = arguments
            return super().corrected_loss(*tables, replace(options, rejected=rejected))

    return Rejecting


class _NoBypass(Reference):
    def corrected_loss(self, *arguments):
        *tables, options = arguments
        return super().corrected_loss(*tables, replace(options, bypass=False))


CONVENTIONS = (
    *OF_LOSSES,
    *(
        Convention(f"rejected_tokens = {kind!r}", other_than("rejected_tokens", kind), _rejecting(kind))
        for kind in ("counted", "left-out")
    ),
    flag("correction_bypass", _NoBypass),
)

"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from typing import Any

import rlhf_reference as ref
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.group_advantages import bending
from rlhf_conformance.diagnosis.conventions import Convention, other_than


def _with(**other: Any) -> type[Adapter]:
    """The reference with another deviation, eps or rule, whatever is declared."""

    class Otherwise(Reference):
        def group_advantages(self, scores, group_ids, mask, options):
            declared = {"ddof": self.group_std_ddof, "eps": self.group_eps, "of_one": self.group_of_one or "zero"}
            asked = {"baseline": options.baseline, "scale": options.scale, **declared, **other}
            return bending.spread(ref.group_relative_advantages(scores, group_ids, **asked), mask)

    return Otherwise


def _row(attribute: str, value: Any, **other: Any) -> Convention:
    return Convention(f"{attribute} = {value!r}", other_than(attribute, value), _with(**other))


CONVENTIONS = (
    *(_row("group_std_ddof", ddof, ddof=ddof) for ddof in (0, 1)),
    *(_row("group_eps", eps, eps=eps) for eps in (1e-6, 1e-4, 1e-5, 1e-8, 1e-9, 0.0)),
    *(_row("group_of_one", rule, of_one=rule) for rule in ("zero", "score")),
)

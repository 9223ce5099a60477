"""The advantages of the toy chapter, one line for each."""

from __future__ import annotations

from typing import Any

from rlhf_conformance.diagnosis.lines import Line, arranged
from rlhf_conformance.diagnosis.steps import steps_of


@steps_of("toy_advantages", "mean_toy_advantage")
def advantage_steps(evidence: Any, comparison: Any) -> Any:
    """Every number that was compared."""
    numbers = zip(comparison.indices, comparison.expected, comparison.actual, comparison.allowed, strict=True)
    return arranged([[Line(f"{comparison.what} at {index}", *rest)] for index, *rest in numbers])

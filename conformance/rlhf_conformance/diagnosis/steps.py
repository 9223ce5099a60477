"""The formula of a clause, step by step, with the failing case put into it."""

from __future__ import annotations

from rlhf_conformance.diagnosis import Evidence
from rlhf_conformance.results import Step


def steps(evidence: Evidence) -> tuple[Step, ...]:
    """Line by line what should come out, and what came as far as the adapter shows it."""
    return ()

"""Which known fault, or which convention that is not declared, answers as the adapter does."""

from __future__ import annotations

from rlhf_conformance.diagnosis import Evidence
from rlhf_conformance.results import Diagnosis


def diagnoses(evidence: Evidence) -> tuple[Diagnosis, ...]:
    """Those that agree with the adapter on every case of the evidence, the likeliest first."""
    return ()

"""Which leg of the triangle is off, where a run is not on the CPU: the oracle's, the CPU's, or the device's."""

from __future__ import annotations

from rlhf_conformance.diagnosis.evidence import Evidence, observe
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.results import Diagnosis


def diagnoses(evidence: Evidence) -> tuple[Diagnosis, ...]:
    """Ask the same adapter for the smallest failing case on the CPU. Nothing is claimed where it cannot run there."""
    subject = evidence.subject
    if subject.device == "cpu":
        return ()
    dtype = str(subject.dtype).removeprefix("torch.")
    there = observe(
        evidence.check,
        Subject.make(subject.adapter, device="cpu", dtype=dtype, store=subject.store),
        evidence.smallest.case,
    )
    if there.ended:
        return ()
    if there.failed:
        sentence = f"the CPU gives no right answer either: it is not {subject.device} that makes the difference"
        return (Diagnosis("device", "both", sentence),)
    return (Diagnosis("device", "device", f"on the CPU the same call is right: only {subject.device} is off"),)

"""The looks that are taken at a failure, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_conformance.diagnosis import exchange, legs, nearest, pictures, places, provenance, repeating, steps
from rlhf_conformance.diagnosis.evidence import Evidence, Observed, observe
from rlhf_conformance.diagnosis.work import Work
from rlhf_conformance.judging.checks import Check, checks
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.results import ERROR, FAIL, Diagnosis, Result


def diagnosed(result: Result, case: Any, subject: Subject, seed: int, work: Work | None = None) -> Result:
    """The result of a failure with what can be said about it: nothing where no case shows it each time. Whatever goes
    wrong here, the failure itself stays."""
    failure = result.failure
    if result.verdict not in (FAIL, ERROR) or failure is None or case is None:
        return result
    check, shown = checks()[result.clause], failure

    def heard(_: Any) -> Any:
        return exchange.exchange(check, subject, case, shown)

    if result.verdict == ERROR:
        return replace(result, failure=replace(failure, **_seen("exchange", heard, None, failure.note)))
    try:
        smallest = observe(check, subject, case)
    except Exception as error:
        return replace(result, failure=replace(failure, note=_also(failure.note, error)))
    changing = _changing(check, subject, smallest)
    if changing is not None:
        kept = _seen("exchange", heard, None, "").get("exchange")
        return replace(result, failure=replace(failure, diagnoses=(changing,), exchange=kept))
    evidence = Evidence(check, subject, smallest, seed, work or Work())
    for part, look in (
        ("picture", pictures.picture),
        ("steps", steps.steps),
        ("diagnoses", _named),
        ("exchange", heard),
    ):
        failure = replace(failure, **_seen(part, look, evidence, failure.note))
    note = "; ".join(said for said in (failure.note, evidence.work.cut) if said)
    return replace(result, failure=replace(failure, note=note))


def _named(evidence: Evidence) -> tuple[Diagnosis, ...]:
    """Names of the cause; where there are none, the place."""
    read = provenance.diagnoses(evidence)
    causes = (*read, *nearest.diagnoses(evidence, vary=not read))
    return (*legs.diagnoses(evidence), *(causes or places.diagnoses(evidence)))


def _changing(check: Check, subject: Subject, smallest: Observed) -> Diagnosis | None:
    """That the answer is not the same twice, which every look relies on. Whatever goes wrong here, the looks follow."""
    try:
        return repeating.diagnosis(check, subject, smallest)
    except Exception:
        return None


def _seen(part: str, look: Callable[[Any], Any], evidence: Evidence | None, note: str) -> dict[str, Any]:
    try:
        return {part: look(evidence)}
    except Exception as error:
        return {"note": _also(note, error)}


def _also(note: str, error: Exception) -> str:
    said = f"the diagnosis itself failed, please report it: {type(error).__name__}: {error}"
    return f"{note}; {said}" if note else said

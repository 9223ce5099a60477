"""How the objective is shown step by step: each term by itself, and then their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_conformance.adapter import METHODS
from rlhf_conformance.chapters._credit.steps import mask_lines
from rlhf_conformance.chapters.objective.cases import TERMS, ObjectiveCase
from rlhf_conformance.chapters.objective.terms import OBJECTIVE
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Line, arranged, number
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.isolation import AdapterError
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.judging.questions import NUMBER, Call, NotReturned
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.results import Step
from rlhf_spec.objective import mean_of

GRADIENTS = 6
"""The most cells that are shown whose gradient differs."""
WORDS = {"value": "value loss", "kl": "KL", "entropy": "entropy"}


@steps_of(OBJECTIVE.method, unanswered=True)
def objective_steps(evidence: Evidence, comparison: Comparison | None) -> tuple[Step, ...]:
    """Of all calls that were judged together; micro-batches belong together."""
    if comparison is None:
        return arranged([], _Shown(evidence, evidence.smallest.calls[-1], False, "").lines())
    counted = bool(comparison.question and comparison.question.formula and _counts_rows(comparison))
    end: list[Line] = []
    for index, answered in enumerate(comparison.answers):
        assert answered.call is not None
        where = f"micro-batch {index}, " if len(comparison.answers) > 1 else ""
        end += _Shown(evidence, answered.call, counted, where).lines()
    if comparison.question is not None and comparison.question.reading.is_gradient:
        end += _gradients(comparison)
    return arranged([], end)


def _counts_rows(comparison: Comparison) -> bool:
    assert comparison.question is not None
    assert comparison.question.formula is not None
    return bool(comparison.question.formula.options.get("count_empty_rows"))


@dataclass(frozen=True)
class _Shown:
    """One call of the objective.

    counted     whether rows without an action count
    """

    evidence: Evidence
    call: Call
    counted: bool
    where: str

    @property
    def case(self) -> ObjectiveCase:
        """The case, without what stands under its mask."""
        case: ObjectiveCase = self.call.about
        return case

    def lines(self) -> list[Line]:
        case, none = self.case, {f"{term}_coef": 0.0 for term in TERMS}
        alone = case.with_options(**none)
        o, where = case.options, self.where
        found = [*mask_lines(case), self.asked(f"{where}policy loss, the {o.aggregation} (asked for alone)", alone)]
        for term in TERMS:
            coef = getattr(o, f"{term}_coef")
            if not coef or self.evidence.spent:
                continue
            mean = mean_of(getattr(o, f"{term}_aggregation"), o.aggregation)
            of = f" by {o.estimator}" if term == "kl" else ""
            found.append(Line(f"{where}{WORDS[term]}{of}, the {mean}", OBJECTIVE.term(case, term, self.counted)))
            sign = "-" if term == "entropy" else "+"
            label = f"{where}policy loss {sign} {number(coef)} * {WORDS[term]} (asked for without other terms)"
            found.append(self.asked(label, case.with_options(**{**none, f"{term}_coef": coef})))
        return [*found, self.asked(f"{where}objective, all terms together", case)]

    def asked(self, label: str, case: ObjectiveCase) -> Line:
        """The call with other options: expected, actual and allowed."""
        expected, allowed = OBJECTIVE.value(case, self.counted), OBJECTIVE.value_budget(case, self._dtype)
        names = METHODS[OBJECTIVE.method].arguments
        given = {**dict(zip(names, self.call.given, strict=True)), "options": case.options}
        actual: float | None
        try:
            answered = self.evidence.subject.answer(Call(OBJECTIVE.method, tuple(given[name] for name in names)))
            actual = NUMBER.numbers(self.evidence.subject, [answered])
        except (AdapterError, WiringError, NotReturned):
            actual = None
        return Line(label, expected, actual, allowed)

    @property
    def _dtype(self) -> Any:
        return self.evidence.subject.dtype


def _gradients(comparison: Comparison) -> list[Line]:
    """The cells whose gradient differs."""
    numbers = zip(comparison.indices, comparison.expected, comparison.actual, comparison.allowed, strict=True)
    lines = [Line(f"row {i}, column {j}: {comparison.what}", *rest) for (i, j), *rest in numbers]
    return [line for line in lines if line.parted][:GRADIENTS]

"""How the objective is shown step by step: each term by itself, and then their sum."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_conformance.chapters._credit.steps import mask_lines
from rlhf_conformance.chapters._losses.steps import asked_alone, gradient_lines
from rlhf_conformance.chapters.objective.cases import TERMS, ObjectiveCase
from rlhf_conformance.chapters.objective.terms import OBJECTIVE
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Line, arranged, number
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.judging.questions import Call
from rlhf_conformance.results import Step
from rlhf_spec.objective import mean_of

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
    return arranged([], [*end, *gradient_lines(comparison)])


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
        return asked_alone(OBJECTIVE, self.evidence, self.call, case, label, self.counted)

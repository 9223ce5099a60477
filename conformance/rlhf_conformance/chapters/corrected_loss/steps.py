"""How the corrected loss is shown step by step: without weights, the weights, and with them."""

from __future__ import annotations

from rlhf_conformance.chapters._credit.steps import mask_lines
from rlhf_conformance.chapters._losses.steps import asked_alone, gradient_lines
from rlhf_conformance.chapters.corrected_loss.cases import CorrectedLossCase
from rlhf_conformance.chapters.corrected_loss.loss import CORRECTED
from rlhf_conformance.chapters.policy_loss.checks import POLICY
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.judging.questions import Call
from rlhf_conformance.results import Step


@steps_of(CORRECTED.method, unanswered=True)
def corrected_steps(evidence: Evidence, comparison: Comparison | None) -> tuple[Step, ...]:
    """Of all calls that were judged together; micro-batches belong together."""
    if comparison is None:
        return arranged([], _of_call(evidence, evidence.smallest.calls[-1], ""))
    blocks: list[Block] = []
    end: list[Line] = []
    for index, answered in enumerate(comparison.answers):
        assert answered.call is not None
        where = f"micro-batch {index}, " if len(comparison.answers) > 1 else ""
        blocks += _of_actions(answered.call.about, where)
        end += _of_call(evidence, answered.call, where)
    return arranged(blocks, [*end, *gradient_lines(comparison)], what="actions")


def _of_actions(case: CorrectedLossCase, where: str) -> list[Block]:
    """Of each action its loss, its weight and the product."""
    weights, mask = CORRECTED.weights_and_mask(case)
    policy, blocks = case.policy(mask), list[Block]()
    for i, j in case.actions:
        place, weight = f"{where}row {i}, column {j}", weights[i][j]
        if not weight:
            left = "" if mask[i][j] else ", and the action is left out"
            blocks.append([Line(f"{place}: weight, and so the loss{left}", 0.0)])
            continue
        loss = POLICY.token(policy.token(i, j), case.options)
        blocks.append([Line(f"{place}: loss", loss), Line(f"{place}: weight {weight:.7g} * that", weight * loss)])
    return blocks


def _of_call(evidence: Evidence, call: Call, where: str) -> list[Line]:
    case: CorrectedLossCase = call.about
    o, lines = case.options, mask_lines(case)
    if o.level is not None:
        free = case.with_options(level=None)
        lines.append(
            asked_alone(
                CORRECTED, evidence, call, free, f"{where}loss without weights, the {o.aggregation} (asked for)"
            )
        )
    of = "with the bypass" if o.bypass else "with its weights" if o.level else "without weights"
    return [*lines, asked_alone(CORRECTED, evidence, call, case, f"{where}loss {of}, the {o.aggregation}")]

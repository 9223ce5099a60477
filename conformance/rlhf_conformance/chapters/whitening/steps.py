"""Whitening, line by line."""

from __future__ import annotations

import math

import rlhf_spec.whitening as spec
from rlhf_conformance.chapters._credit.steps import answers_of, mask_lines
from rlhf_conformance.chapters.whitening.cases import WhiteningCase
from rlhf_conformance.chapters.whitening.checks import declared
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import MOST, Line, arranged, number
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.results import Step


@steps_of("whiten")
def whitening_steps(evidence: Evidence, comparison: Comparison) -> tuple[Step, ...]:
    """Mean, variance and divisor of the batch, then action by action."""
    case: WhiteningCase = comparison.answers[-1].about
    options = declared(evidence.subject.adapter)
    ddof, eps, place = options["ddof"], options["eps"], options["eps_place"]
    mean, variance = spec.mean_and_variance(case.numbers, ddof)
    where = {"variance": "root of the variance plus eps", "std": "root of the variance, plus eps"}
    how = where.get(place, "root of the variance, which is at least eps")
    lines = [
        *mask_lines(case),
        Line(f"sum of the {len(case.numbers)} actions", math.fsum(case.numbers)),
        Line("mean", mean),
        Line(f"variance: squared differences over {max(1, len(case.numbers) - ddof)}", variance),
        Line(f"divisor: {how} {number(eps)}", spec.denominator(variance, eps, place)),
    ]
    kept = "" if case.options.shift_mean else " + mean"
    blocks = [
        [Line(f"row {i}, token {j}: ({number(case.values[i][j])} - mean) / divisor{kept}", *rest)]
        for (i, j), *rest in answers_of(case, comparison)
    ]
    head = arranged([lines])
    return (*head, *arranged(blocks)[: MOST - len(head)])

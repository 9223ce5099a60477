"""Advantages of groups, line by line: a group's mean and deviation, then its rows."""

from __future__ import annotations

import math

import rlhf_spec.group_advantages as spec
from rlhf_conformance.chapters._credit.steps import answers_of, mask_lines
from rlhf_conformance.chapters.group_advantages.cases import GroupCase
from rlhf_conformance.chapters.group_advantages.checks import declared
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, number
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.results import Step
from rlhf_spec.whitening import mean_and_variance


@steps_of("group_advantages")
def group_steps(evidence: Evidence, comparison: Comparison) -> tuple[Step, ...]:
    """A block for each group, with one number for each of its rows: that of its first action that was compared."""
    case: GroupCase = comparison.answers[-1].about
    if comparison.question is None or len(comparison.indices) != case.size[1]:
        return ()
    options = declared(evidence.subject.adapter)
    first: dict[int, Line] = {}
    for (row, column), *rest in answers_of(case, comparison):
        line = Line(f"row {row}, from token {column} on", *rest)
        if row not in first or (line.parted and not first[row].parted):
            first[row] = line
    blocks = [_of_group(case, rows, options, first) for rows in case.groups]
    return arranged(blocks, mask_lines(case), what="groups")


def _of_group(case: GroupCase, rows: list[int], options: dict[str, object], lines: dict[int, Line]) -> Block:
    scores, name = [case.scores[i] for i in rows], f"group {case.group_ids[rows[0]]}"
    ddof = int(str(options["ddof"]))
    mean, _ = mean_and_variance(scores, ddof)
    shown = [Line(f"{name}: mean of the scores of the rows {', '.join(map(str, rows))}", mean)]
    if case.options.scale != "none":
        among = case.scores if case.options.scale == "batch-std" else scores
        of_which = "all scores" if case.options.scale == "batch-std" else "these scores"
        label = f"{name}: deviation of {of_which}, with ddof {ddof}; eps {number(options['eps'])} is added"
        shown.append(Line(label, math.sqrt(mean_and_variance(among, ddof)[1])))
    centered = spec.centered(scores, case.options.baseline, str(options["of_one"]))
    for row, score, difference in zip(rows, scores, centered, strict=True):
        shown.append(Line(f"row {row}: score {number(score)} less its baseline", difference))
        if row in lines:
            shown.append(lines[row])
    return shown

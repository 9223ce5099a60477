"""Log-probs and entropies of single positions, from their logits."""

from __future__ import annotations

import math
from collections import defaultdict

import rlhf_spec.log_probs as spec
from rlhf_conformance.chapters.log_probs.cases import LogitsCase
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, number, parted
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.results import Step

POSITIONS = 64
"""The most positions that are looked at, of those that differ."""
FEW = 6
"""The most logits that are shown one by one."""


@steps_of("token_log_probs", "token_entropy")
def logits_steps(evidence: Evidence, comparison: Comparison) -> tuple[Step, ...]:
    """Of the positions of a batch, where a formula says what their numbers should be."""
    answered, question = comparison.answers[-1], comparison.question
    assert question is not None
    case: LogitsCase | None = answered.about
    if case is None or question.formula is None:
        return ()
    rows: dict[tuple[int, int], list[int]] = defaultdict(list)  # the numbers of each position
    for k, (row, position, *_) in enumerate(comparison.indices):
        rows[row, position].append(k)
    logits, labels, t = case.logits.double().tolist(), case.labels.tolist(), answered.argument("temperature")
    blocks: list[Block] = []
    for (row, position), numbers in rows.items():
        place, z, label = f"row {row}, position {position}", logits[row][position], labels[row][position]
        if len(numbers) > 1:
            blocks.append(_gradient_lines(z, label, t, place, row * case.length + position + 1, comparison, numbers))
        else:
            lines = _entropy_lines if answered.method == "token_entropy" else _log_prob_lines
            blocks.append(lines(z, label, t, place, comparison, numbers[0]))
        if sum(parted([block]) for block in blocks) >= POSITIONS:
            break
    return arranged(blocks, what="positions")


def _compared(label: str, comparison: Comparison, k: int) -> Line:
    """The number itself, as it was compared."""
    return Line(label, comparison.expected[k], comparison.actual[k], comparison.allowed[k])


def _log_prob_lines(z: list[float], label: int, t: float, place: str, comparison: Comparison, k: int) -> list[Line]:
    if label < 0:
        return [_compared(f"{place}: log-prob with the label {label}", comparison, k)]
    scaled = z[label] / t
    wanted = spec.token_log_prob(z, label, t)
    return [
        *_logit_lines(z, place),
        Line(f"{place}: logit {number(z[label])} of label {label}, divided by the temperature {number(t)}", scaled),
        Line(f"{place}: log of the sum of exp(logits / {number(t)})", scaled - wanted),
        _compared(f"{place}: log-prob of label {label}, the difference", comparison, k),
    ]


def _entropy_lines(z: list[float], label: int, t: float, place: str, comparison: Comparison, k: int) -> list[Line]:
    shares = [
        Line(f"{place}: p of id {i} = softmax(logits / {number(t)}), times its log", math.exp(x) * x)
        for i, x in enumerate(spec.log_softmax(z, t))
    ]
    last = _compared(f"{place}: entropy, minus the sum of p log p", comparison, k)
    return [*_logit_lines(z, place), *(shares if len(z) <= FEW else []), last]


def _logit_lines(z: list[float], place: str) -> list[Line]:
    if len(z) <= FEW:
        return [Line(f"{place}: logits", " ".join(number(x) for x in z))]
    return [Line(f"{place}: the greatest of {len(z)} logits", max(z))]


def _gradient_lines(
    z: list[float], label: int, t: float, place: str, weight: int, comparison: Comparison, numbers: list[int]
) -> list[Line]:
    """The gradient of the first id that differs, of the sum of 1, 2, 3, ... times the log-probs."""
    differing = [i for i, k in enumerate(numbers) if _compared("", comparison, k).parted]
    i = differing[0] if differing else max(label, 0)
    truth = spec.token_log_prob_gradient(z, label, t)
    return [
        Line(f"{place}: p of id {i} = softmax(logits / {number(t)})", math.exp(spec.log_softmax(z, t)[i])),
        Line(f"{place}: ({int(i == label)} - p) / {number(t)}, the label being {label}", truth[i]),
        _compared(f"{place}: times the weight {weight}: gradient at id {i}", comparison, numbers[i]),
    ]

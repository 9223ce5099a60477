"""Log-probs and entropies of single positions, from their logits."""

from __future__ import annotations

import math
from typing import Any

import rlhf_spec.log_probs as spec
from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.cases.logits import ODD_SIZES, LogitsCase
from rlhf_conformance.checks.log_probs import ask, ask_entropy
from rlhf_conformance.diagnosis import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, number, parted
from rlhf_conformance.results import Step

POSITIONS = 64
"""So many positions are looked at, of those that differ."""
FEW = 6
"""So many logits are shown one by one."""


def logits_steps(evidence: Evidence) -> tuple[Step, ...]:
    """Of the positions of a batch; of the first length at which the two part company, where a check tries several."""
    case, name = evidence.smallest.case, evidence.slug.split(".")[1]
    if name == "entropy-order":
        return ()
    lengths = ODD_SIZES if name == "every-position" else (case.length,)
    blocks: list[Block] = []
    for length in lengths:
        blocks = _blocks(evidence, case.of_length(length), name)
        if parted(blocks) or evidence.late:
            break
    return arranged(blocks, what="positions")


def _blocks(evidence: Evidence, case: LogitsCase, name: str) -> list[Block]:
    if name == "gradient":
        return _gradient_blocks(evidence, case)
    is_entropy = name == "entropy"
    answer = (ask_entropy if is_entropy else ask)(evidence.subject, case).detach().double().tolist()
    dtype = torch.float32 if name in ("stable", "float32") else case.logits.dtype
    lines = _entropy_lines if is_entropy else _log_prob_lines
    places = [(i, t) for i in range(case.batch_size) for t in range(case.length)]
    found: list[Block] = []
    for logits, label, (i, t) in zip(_rows(case), case.labels.flatten().tolist(), places, strict=True):
        place = f"row {i}, position {t}"
        found.append([*lines(logits, label, case.temperature, place, answer[i][t], dtype)])
        if sum(parted([block]) for block in found) >= POSITIONS:
            break
    return found


def _rows(case: LogitsCase) -> list[list[float]]:
    return case.logits.double().reshape(-1, case.vocab_size).tolist()


def _log_prob_lines(z: list[float], label: int, t: float, place: str, came: float, dtype: Any) -> list[Line]:
    allowed = budgets.log_prob(z, t, dtype)
    if label < 0:
        return [Line(f"{place}: log-prob with the label {label}", 0.0, came, allowed)]
    wanted = spec.token_log_prob(z, label, t)
    scaled = z[label] / t
    return [
        *_logit_lines(z, place),
        Line(f"{place}: logit {number(z[label])} of label {label}, divided by the temperature {number(t)}", scaled),
        Line(f"{place}: log of the sum of exp(logits / {number(t)})", scaled - wanted),
        Line(f"{place}: log-prob of label {label}, the difference", wanted, came, allowed),
    ]


def _entropy_lines(z: list[float], label: int, t: float, place: str, came: float, dtype: Any) -> list[Line]:
    log_probs = spec.log_softmax(z, t)
    shares = [
        Line(f"{place}: p of id {i} = softmax(logits / {number(t)}), times its log", math.exp(x) * x)
        for i, x in enumerate(log_probs)
    ]
    wanted, allowed = spec.entropy(z, t), budgets.entropy(z, t, dtype)
    last = Line(f"{place}: entropy, minus the sum of p log p", wanted, came, allowed)
    return [*_logit_lines(z, place), *(shares if len(z) <= FEW else []), last]


def _logit_lines(z: list[float], place: str) -> list[Line]:
    if len(z) <= FEW:
        return [Line(f"{place}: logits", " ".join(number(x) for x in z))]
    return [Line(f"{place}: the greatest of {len(z)} logits", max(z))]


def _gradient_blocks(evidence: Evidence, case: LogitsCase) -> list[Block]:
    """The gradient of the first id of each position that differs, of the sum of 1, 2, 3, ... times the log-probs."""
    subject = evidence.subject
    t = case.temperature if subject.adapter.temperature else 1.0
    logits = subject.tensor(case.logits, case.logits.dtype).requires_grad_()
    answer = subject.token_log_probs(logits, subject.tensor(case.labels), t)
    weights = torch.arange(1.0, answer.numel() + 1, device=answer.device).reshape(answer.shape)
    (gradient,) = subject.gradients("token_log_probs", (answer * weights).sum(), [logits])
    came = gradient.double().reshape(-1, case.vocab_size).tolist()
    blocks: list[Block] = []
    for k, (z, label) in enumerate(zip(_rows(case), case.labels.flatten().tolist(), strict=True)):
        place = f"row {k // case.length}, position {k % case.length}"
        blocks.append(_gradient_lines(z, label, t, place, k + 1, came[k], case.logits.dtype))
    return blocks


def _gradient_lines(
    z: list[float], label: int, t: float, place: str, weight: int, came: list[float], dtype: Any
) -> list[Line]:
    truth = spec.token_log_prob_gradient(z, label, t)
    allowed = weight * budgets.log_prob_gradient(z, t, dtype)
    i = next((i for i in range(len(z)) if not abs(weight * truth[i] - came[i]) <= allowed), label)
    return [
        Line(f"{place}: p of id {i} = softmax(logits / {number(t)})", math.exp(spec.log_softmax(z, t)[i])),
        Line(f"{place}: ({int(i == label)} - p) / {number(t)}, the label being {label}", truth[i]),
        Line(f"{place}: times the weight {weight}: gradient at id {i}", weight * truth[i], came[i], allowed),
    ]

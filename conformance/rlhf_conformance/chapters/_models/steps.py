"""Answers of models: what is read at which position, and what is made of it. `provenance` says where they came from."""

from __future__ import annotations

import math
from typing import Any

import rlhf_spec.log_probs
from rlhf_conformance.adapter import METHODS
from rlhf_conformance.chapters._models.cases import ModelCase
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, number
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.judging.questions import Against
from rlhf_conformance.methods import Readout
from rlhf_conformance.results import Step

NUMBERS = 40
"""The most numbers of a comparison that are looked at."""


@steps_of("action_log_probs", "action_entropy", "action_values", "rewards")
@steps_of("log_probs_with_output", "action_values_with_output", "rewards_with_output")
def model_steps(evidence: Evidence, comparison: Comparison) -> tuple[Step, ...]:
    """Where the answers are compared with those of each sequence alone."""
    answered, question = comparison.answers[-1], comparison.question
    readout = METHODS[answered.method].readout
    assert question is not None
    assert readout is not None
    case: ModelCase | None = answered.about
    if case is None or isinstance(question.expected, Against) or question.reading.field or () in comparison.indices:
        return ()  # a number alone is no answer to a sample, but a gradient's
    if len(comparison.indices) != sum(len(readout.places(s)) for s in case.samples):
        return ()
    order = sorted(range(len(comparison.indices)), key=lambda k: _agrees(comparison, k))
    return arranged([_block(evidence, readout, comparison, k) for k in order[:NUMBERS]], what="numbers")


def _agrees(comparison: Comparison, k: int) -> bool:
    return abs(comparison.actual[k] - comparison.expected[k]) <= comparison.allowed[k]


def _block(evidence: Evidence, readout: Readout, comparison: Comparison, k: int) -> Block:
    answered = comparison.answers[-1]
    case: ModelCase = answered.about
    index = comparison.indices[k]
    sample, place = case.samples[index[0]], comparison.place(index)
    at = readout.places(sample)[index[1] if len(index) > 1 else 0]
    read = f"at position {at} of the sequence, token {sample.tokens[at]}"
    truth: Any = evidence.subject.truth
    numbers = (comparison.expected[k], comparison.actual[k], comparison.allowed[k])
    t = number(case.temperature)
    if readout.labeled:
        label = sample.tokens[at + 1]
        logits = truth.logits(case.probe, sample.tokens)[at]
        scaled = logits[label] / case.temperature
        wanted = rlhf_spec.log_probs.token_log_prob(logits, label, case.temperature)
        return [
            Line(f"{place}: logit of token {label}, {read}", logits[label]),
            Line(f"{place}: divided by the temperature {t}", scaled),
            Line(f"{place}: log of the sum of exp(logits / {t})", scaled - wanted),
            Line(f"{place}: log-prob of the action, the difference", *numbers),
        ]
    if not readout.head:
        log_probs = rlhf_spec.log_probs.log_softmax(truth.logits(case.probe, sample.tokens)[at], case.temperature)
        return [
            Line(f"{place}: the greatest p in softmax(logits / {t}), {read}", math.exp(max(log_probs))),
            Line(f"{place}: entropy, minus the sum of p log p", *numbers),
        ]
    score = truth.scores(case.probe, sample.tokens)[at]
    name = "value" if readout.index else "reward"
    assert answered.call is not None
    mean, std = answered.call.scored
    if (mean, std) == (0.0, 1.0):
        raw = ": raw in train mode" if getattr(answered.given[0], "normalize", False) else ""
        return [Line(f"{place}: {name}, the score {read}{raw}", *numbers)]
    return [
        Line(f"{place}: score {read}", score),
        Line(f"{place}: score - mean {number(mean)}", score - mean),
        Line(f"{place}: {name}, that divided by the std {number(std)}", *numbers),
    ]

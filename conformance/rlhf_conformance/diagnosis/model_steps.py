"""Answers of models: what is read at which position, and what is made of it. `provenance` says where they came from."""

from __future__ import annotations

import math
from typing import Any

import rlhf_spec.log_probs
from rlhf_conformance.cases.models import ModelCase
from rlhf_conformance.checks.roles import ACTOR, CRITIC, REWARD, Role
from rlhf_conformance.diagnosis import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, number
from rlhf_conformance.judge import Comparison
from rlhf_conformance.layouts import Sample
from rlhf_conformance.results import Step

ENTROPY = "entropy at the action"
NUMBERS = 40
"""So many numbers of a comparison are looked at."""


def model_steps(evidence: Evidence) -> tuple[Step, ...]:
    """Of the first comparison that broke, where it is one with the answers of each sequence alone."""
    case: ModelCase = evidence.smallest.case
    broken = evidence.smallest.broken
    role = _role_of(broken[0]) if broken else None
    if role is None or len(broken[0].indices) != sum(_count(role, s) for s in case.samples):
        return ()
    comparison = broken[0]
    order = sorted(range(len(comparison.indices)), key=lambda k: _agrees(comparison, k))
    return arranged([_block(evidence, role, comparison, k) for k in order[:NUMBERS]], what="numbers")


def _role_of(comparison: Comparison) -> Role | None:
    """Whose answers are compared with the truth; None where it is another comparison."""
    if comparison.what.startswith(ENTROPY):
        return ACTOR
    for role in (ACTOR, REWARD, CRITIC):
        if comparison.what.startswith((f"{role.what} in layout", f"{role.what} in train", f"{role.what} in eval")):
            return role
    return None


def _count(role: Role, sample: Sample) -> int:
    return 1 if role.per_sample else len(sample.response)


def _agrees(comparison: Comparison, k: int) -> bool:
    return abs(comparison.actual[k] - comparison.expected[k]) <= comparison.allowed[k]


def _block(evidence: Evidence, role: Role, comparison: Comparison, k: int) -> Block:
    case: ModelCase = evidence.smallest.case
    index = comparison.indices[k]
    sample, place = case.samples[index[0]], comparison.place(index)
    action = index[1] if len(index) > 1 else 0
    at = len(sample) - 1 if role is REWARD else len(sample.prompt) - 1 + action
    read = f"at position {at} of the sequence, token {sample.tokens[at]}"
    truth: Any = evidence.subject.truth
    came = (comparison.expected[k], comparison.actual[k], comparison.allowed[k])
    if role is ACTOR and comparison.what.startswith(ENTROPY):
        t = case.temperature
        log_probs = rlhf_spec.log_probs.log_softmax(truth.logits(case.probe, sample.tokens)[at], t)
        return [
            Line(f"{place}: the greatest p in softmax(logits / {number(t)}), {read}", math.exp(max(log_probs))),
            Line(f"{place}: entropy, minus the sum of p log p", *came),
        ]
    if role is ACTOR:
        t, label = case.temperature, sample.response[action]
        logits = truth.logits(case.probe, sample.tokens)[at]
        scaled = logits[label] / t
        wanted = rlhf_spec.log_probs.token_log_prob(logits, label, t)
        return [
            Line(f"{place}: logit of token {label}, {read}", logits[label]),
            Line(f"{place}: divided by the temperature {number(t)}", scaled),
            Line(f"{place}: log of the sum of exp(logits / {number(t)})", scaled - wanted),
            Line(f"{place}: log-prob of the action, the difference", *came),
        ]
    score = truth.scores(case.probe, sample.tokens)[at]
    name = "reward" if role is REWARD else "value"
    if " in layout " in comparison.what:
        return [Line(f"{place}: {name}, the score {read}", *came)]
    mean, std = number(case.probe.mean), number(case.probe.std)
    if role is REWARD and " in train " in comparison.what:
        return [Line(f"{place}: {name}, the score {read}: raw in train mode", *came)]
    return [
        Line(f"{place}: score {read}", score),
        Line(f"{place}: score - mean {mean}", score - case.probe.mean),
        Line(f"{place}: {name}, that divided by the std {std}", *came),
    ]

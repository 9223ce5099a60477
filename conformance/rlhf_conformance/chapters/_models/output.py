"""Answers with the whole output beside them: both have to be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_conformance.chapters._models.cases import ModelCase, model_cases, with_statistics
from rlhf_conformance.chapters._models.regression import asks_normalized
from rlhf_conformance.chapters._models.roles import Role
from rlhf_conformance.chapters._models.templates import template
from rlhf_conformance.judging.checks import Questions, Template
from rlhf_conformance.judging.questions import Question, part, sample_position
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

Outputs = Callable[[Subject, ModelCase, Any, bool], list[Any]]
"""(subject, case, the output that came for the first sample, plain) -> what is right for each sample alone."""


def with_output(role: Role, outputs: Outputs) -> Template:
    """The method that `role` asks answers with a pair."""

    def check(subject: Subject, case: ModelCase) -> Questions:
        answers = role.asks_truth(subject, case, f"{role.what} with the output beside it")
        yield answers
        if case.probe.std != 1.0:
            yield asks_normalized(role, subject, case, training=False, fresh=False)
        (call,) = answers.asked
        came = (yield call).value.output[0]
        truth, plain = (outputs(subject, case, came, p) for p in (False, True))
        flat, flat_plain = (list(_numbers(rows)) for rows in (truth, plain))
        yield Question(
            f"output beside the {role.what}",
            call,
            truth,
            budgets.model_output(flat, flat_plain, max(map(abs, flat)), subject.dtype),
            reading=part("output"),
            place=sample_position,
        )

    def cases(subject: Subject) -> Any:
        plain = model_cases(subject.adapter, role.any_temperature(subject.adapter))
        return with_statistics(plain, 1, 2) if role.normalizes(subject.adapter) else plain

    return template(role, check, cases, effort=5)


def scores_or_hidden_states(subject: Subject, case: ModelCase, came: Any, plain: bool) -> list[Any]:
    """What the head says at each position, or what it reads there, whichever came."""
    right = subject.truth.scores if came.ndim == 1 else subject.truth.hidden_states
    return [right(case.probe, sample.tokens, plain=plain) for sample in case.samples]


def _numbers(nested: Any) -> Any:
    if isinstance(nested, list):
        for item in nested:
            yield from _numbers(item)
    else:
        yield nested

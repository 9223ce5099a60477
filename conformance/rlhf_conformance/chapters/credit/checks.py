"""The checks of the whole path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import rlhf_spec.credit as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.asking import GARBAGE, POISON, Quantity
from rlhf_conformance.chapters._credit.editing import own_row, unmoved
from rlhf_conformance.chapters.advantages.cases import restored
from rlhf_conformance.chapters.credit.cases import CreditCase, credit_cases
from rlhf_conformance.chapters.kl.cases import LOG_PROBS, clamps
from rlhf_conformance.chapters.kl.checks import error_of
from rlhf_conformance.judging.checks import use
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

USUAL_GARBAGE = GARBAGE[:-1]


def declared(adapter: Adapter, case: CreditCase) -> dict[str, Any]:
    """What the formulas are told beside the call."""
    return {
        **clamps(adapter, case.options.estimator),
        "score_position": adapter.score_position,
        "observations": adapter.observations,
        "after_last": adapter.after_last_action,
    }


def truth_of(formula: Callable[..., list[list[float]]]) -> Callable[[Adapter, CreditCase], list[list[float]]]:
    def truth(adapter: Adapter, case: CreditCase) -> list[list[float]]:
        tables = (case.log_probs, case.ref_log_probs, case.values, case.action_mask)
        return formula(case.scores, *tables, **vars(case.options), **declared(adapter, case))

    return truth


def allowed(adapter: Adapter, case: CreditCase, dtype: Any) -> list[list[float]]:
    """That of an advantage, whose rewards carry the errors of the KL besides."""
    coef, held, found = case.options.kl_coef, clamps(adapter, case.options.estimator), []
    for i, mask in enumerate(case.action_mask):
        row, size, carried = [0.0] * len(mask), abs(case.scores[i]), 0.0
        for j in reversed(range(len(mask))):
            size += 2 * abs(case.values[i][j])
            if mask[j]:
                d = case.log_probs[i][j] - case.ref_log_probs[i][j]
                size += coef * abs(spec.kl([[d]], [[0.0]], [[1]], estimator=case.options.estimator, **held)[0][0])
                carried += coef * error_of(adapter, case.options.estimator, d, dtype)
                row[j] = budgets.advantage(size, len(mask) - j, dtype) + carried
        found.append(row)
    return found


def given(subject: Subject, case: CreditCase, mask_dtype: Any) -> tuple[Any, ...]:
    tables = (case.scores, case.log_probs, case.ref_log_probs, case.values)
    mask = subject.tensor(case.action_mask, mask_dtype)
    return (*(subject.tensor(table) for table in tables), mask, case.options)


RETURN = Quantity(
    method="credit",
    word="return",
    draw=credit_cases,
    truth=truth_of(spec.path_returns),
    allowed=allowed,
    options=lambda adapter: {},
    options_of=declared,
    given=given,
    field="returns",
    said="rlhf_spec.credit.path_returns",
)
ADVANTAGE = replace(
    RETURN,
    word="advantage",
    truth=truth_of(spec.path_advantages),
    field="advantages",
    said="rlhf_spec.credit.path_advantages",
    beside=(RETURN,),
    restored=restored,
)

use("credit.definition", ADVANTAGE.definition())
use("credit.penalty", ADVANTAGE.definition(scores=(0.0,), lambdas=(1.0,)))
use("credit.score", ADVANTAGE.definition(zones=("equal",), values=(0.0,), lambdas=(1.0,)))
use("credit.holes", ADVANTAGE.dressed(USUAL_GARBAGE, holes=True, columns=3))
use("credit.mask", ADVANTAGE.dressed(USUAL_GARBAGE))
use("credit.nan-under-mask", ADVANTAGE.dressed(POISON))
use("credit.empty-row", ADVANTAGE.definition(empty_row=True))
use("credit.own-row", unmoved(ADVANTAGE, own_row, "others in other rows", numbers=LOG_PROBS, min_rows=2))
use("credit.padding-invariance", ADVANTAGE.padding_invariance())
use("credit.mask-dtype", ADVANTAGE.mask_dtype())
use("credit.no-graph", ADVANTAGE.no_graph())
use("credit.inputs-unwritten", ADVANTAGE.inputs_unwritten())
use("credit.side-effects", ADVANTAGE.side_effects())

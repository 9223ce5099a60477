"""The checks of the whole path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import rlhf_spec.credit as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.asking import GARBAGE, POISON, Quantity
from rlhf_conformance.chapters._credit.editing import ElsewhereCase, asks_unmoved, elsewhere, own_row
from rlhf_conformance.chapters.advantages.cases import restored
from rlhf_conformance.chapters.credit.cases import CreditCase, credit_cases
from rlhf_conformance.chapters.kl.cases import LOG_PROBS, clamps
from rlhf_conformance.chapters.kl.checks import error_of
from rlhf_conformance.chapters.whitening import checks as whitening
from rlhf_conformance.judging.checks import Questions, check, use
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_spec.whitening import denominator

USUAL_GARBAGE = GARBAGE[:-1]


def declared(adapter: Adapter, case: CreditCase) -> dict[str, Any]:
    """What the formulas are told beside the call."""
    return {
        **clamps(adapter, case.options.estimator),
        "score_position": adapter.score_position,
        "observations": adapter.observations,
        "after_last": adapter.after_last_action,
    }


def truth_of(
    formula: Callable[..., list[list[float]]], options: Callable[[Adapter, CreditCase], dict[str, Any]]
) -> Callable[[Adapter, CreditCase], list[list[float]]]:
    def truth(adapter: Adapter, case: CreditCase) -> list[list[float]]:
        tables = (case.log_probs, case.ref_log_probs, case.values, case.action_mask)
        return formula(case.scores, *tables, **vars(case.options), **options(adapter, case))

    return truth


def of_whitening(adapter: Adapter, case: CreditCase) -> dict[str, Any]:
    """The same for a formula of advantages, which may be whitened."""
    return {**declared(adapter, case), **(whitening.declared(adapter) if case.options.whiten else {})}


def allowed(adapter: Adapter, case: CreditCase, dtype: Any) -> list[list[float]]:
    """That of a return, or of an advantage that is not whitened, whose rewards carry the errors of the KL besides."""
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


def allowed_whitened(adapter: Adapter, case: CreditCase, dtype: Any) -> list[list[float]]:
    """That of an advantage, through its whitening where there is one."""
    before = allowed(adapter, case, dtype)
    if not case.options.whiten:
        return before
    plain = truth_of(spec.path_advantages, declared)(adapter, case.with_options(whiten=False))
    numbers, errors = ([table[i][j] for i, j in case.actions] for table in (plain, before))
    divisor = partial(denominator, eps=adapter.whitening_eps, eps_place=adapter.whitening_eps_place)
    found = iter(budgets.whitened(numbers, divisor, adapter.whitening_ddof, dtype, errors=errors))
    return [[next(found) if m else 0.0 for m in row] for row in case.action_mask]


def given(subject: Subject, case: CreditCase, mask_dtype: Any) -> tuple[Any, ...]:
    tables = (case.scores, case.log_probs, case.ref_log_probs, case.values)
    mask = subject.tensor(case.action_mask, mask_dtype)
    return (*(subject.tensor(table) for table in tables), mask, case.options)


RETURN = Quantity(
    method="credit",
    word="return",
    draw=credit_cases,
    truth=truth_of(spec.path_returns, declared),
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
    truth=truth_of(spec.path_advantages, of_whitening),
    allowed=allowed_whitened,
    options_of=of_whitening,
    field="advantages",
    said="rlhf_spec.credit.path_advantages",
    beside=(RETURN,),
    restored=restored,
)


def whitens(adapter: Adapter) -> str | None:
    return None if adapter.credit_whitening else "credit_whitening is not declared: advantages are as they are"


def differ(adapter: Adapter) -> str | None:
    """Where the score alone makes advantages, they may all be alike."""
    if adapter.credit_whitening != "always" or adapter.whitening_eps > 0:
        return None
    return "whitening_eps = 0: advantages that are all alike are 0 / 0"


use("credit.definition", ADVANTAGE.definition())
use("credit.whitening", ADVANTAGE.dressed(USUAL_GARBAGE, whitened=True, columns=3), whitens)


@check("credit.returns-unwhitened", needs=RETURN.needs, requires=(whitens,), cases=RETURN.cases(whitened=True))
def returns_unwhitened(subject: Subject, case: CreditCase) -> Questions:
    yield RETURN.asks(subject, case, what="return beside advantages that are whitened")


use("credit.penalty", ADVANTAGE.definition(scores=(0.0,), lambdas=(1.0,)))
use("credit.score", ADVANTAGE.definition(differ, zones=("equal",), values=(0.0,), lambdas=(1.0,)))
use("credit.holes", ADVANTAGE.dressed(USUAL_GARBAGE, holes=True, columns=3))
use("credit.mask", ADVANTAGE.dressed(USUAL_GARBAGE))
use("credit.nan-under-mask", ADVANTAGE.dressed(POISON))
use("credit.empty-row", ADVANTAGE.definition(empty_row=True))


@check("credit.own-row", needs=RETURN.needs, cases=lambda s: elsewhere(ADVANTAGE, own_row, s, LOG_PROBS, min_rows=2))
def other_rows(subject: Subject, case: ElsewhereCase) -> Questions:
    """Whitened advantages are measured by the whole batch; then the returns are asked about alone."""
    quantity = RETURN if case.case.options.whiten else ADVANTAGE
    yield from asks_unmoved(quantity, subject, case, "others in other rows")


use("credit.padding-invariance", ADVANTAGE.padding_invariance())
use("credit.mask-dtype", ADVANTAGE.mask_dtype())
use("credit.no-graph", ADVANTAGE.no_graph())
use("credit.inputs-unwritten", ADVANTAGE.inputs_unwritten())
use("credit.side-effects", ADVANTAGE.side_effects())

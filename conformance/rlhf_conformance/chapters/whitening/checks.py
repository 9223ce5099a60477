"""The checks of whitening."""

from __future__ import annotations

from functools import partial
from typing import Any

import rlhf_spec.whitening as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.asking import ACTIONS, GARBAGE, POISON, Quantity
from rlhf_conformance.chapters.whitening.cases import (
    ChangedCase,
    WhiteningCase,
    equal_numbers,
    few_actions,
    near_epsilon,
    scaled,
    shifted,
    whitening_cases,
    with_first,
)
from rlhf_conformance.judging.checks import Questions, check, declares, use
from rlhf_conformance.judging.questions import Attempt, Fact, Question, Refused, selected
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets


def declared(adapter: Adapter) -> dict[str, Any]:
    """What the formula is told beside the call."""
    return {
        "ddof": adapter.whitening_ddof,
        "eps": adapter.whitening_eps,
        "eps_place": adapter.whitening_eps_place,
    }


def truth(adapter: Adapter, case: WhiteningCase) -> list[list[float]]:
    return spec.whiten(case.values, case.action_mask, shift_mean=case.options.shift_mean, **declared(adapter))


def allowed(adapter: Adapter, case: WhiteningCase, dtype: Any, passes: int = 1) -> list[list[float]]:
    divisor = partial(spec.denominator, eps=adapter.whitening_eps, eps_place=adapter.whitening_eps_place)
    kept = not case.options.shift_mean
    found = iter(budgets.whitened(case.numbers, divisor, adapter.whitening_ddof, dtype, kept=kept, passes=passes))
    return [[next(found) if m else 0.0 for m in row] for row in case.action_mask]


WHITENED = Quantity(
    method="whiten",
    word="whitened number",
    draw=whitening_cases,
    truth=truth,
    allowed=allowed,
    options=declared,
    given=lambda s, case, dtype: (s.tensor(case.values), s.tensor(case.action_mask, dtype), case.options),
)
keeps_mean = declares("whitening_keeps_mean", "whitening_keeps_mean is not declared")
promises_zeros = declares("whitening_masked", "whitening_masked is not declared", value="zero")


def has_epsilon(adapter: Adapter) -> str | None:
    return None if adapter.whitening_eps > 0 else "whitening_eps = 0: equal numbers are 0 / 0"


def says_of_few(adapter: Adapter) -> str | None:
    return None if adapter.whitening_of_few else "whitening_of_few is not declared: nothing is promised"


# --- the formula ----------------------------------------------------------------------------------------------------

use("whitening.definition", WHITENED.definition(kept=False))
use("whitening.variance", WHITENED.definition(kept=False))
use("whitening.keep-mean", WHITENED.definition(keeps_mean, kept=True))
use("whitening.whole-batch", WHITENED.definition(min_rows=2, square=True))


@check(
    "whitening.epsilon",
    needs=WHITENED.needs,
    cases=lambda s: whitening_cases(
        s, centers=(0.0,), scales=near_epsilon(s.adapter.whitening_eps, s.adapter.whitening_eps_place), kept=False
    ),
)
def epsilon(subject: Subject, case: WhiteningCase) -> Questions:
    yield WHITENED.asks(subject, case)


@check("whitening.shift", needs=WHITENED.needs, cases=lambda s: shifted(s, (2.0, -5.0, 0.5, 9.0)))
def shift(subject: Subject, case: ChangedCase) -> Questions:
    yield WHITENED.asks(subject, case.case)
    yield WHITENED.asks(subject, case.other, what="whitened number after a shift of all")


@check("whitening.scale", needs=WHITENED.needs, cases=lambda s: scaled(s, (-1.0, 40.0, 0.03, -7.0, 1000.0)))
def scale(subject: Subject, case: ChangedCase) -> Questions:
    yield WHITENED.asks(subject, case.case)
    yield WHITENED.asks(subject, case.other, what="whitened number after all were multiplied")


@check(
    "whitening.large-mean",
    needs=WHITENED.needs,
    cases=lambda s: whitening_cases(s, centers=(3e3, -2e3, 5e2) if budgets.is_fine(s.dtype) else (6.0,), kept=False),
)
def large_mean(subject: Subject, case: WhiteningCase) -> Questions:
    asked = WHITENED.asks(subject, case)
    twice = allowed(subject.adapter, case, subject.dtype, passes=2)
    yield Question(asked.what, asked.calls, asked.expected, twice, reading=ACTIONS, formula=asked.formula)


# --- the mask -------------------------------------------------------------------------------------------------------

use("whitening.mask", WHITENED.dressed(GARBAGE))
use("whitening.holes", WHITENED.definition(holes=True, columns=3))
use("whitening.nan-under-mask", WHITENED.dressed(POISON))
use("whitening.empty-row", WHITENED.definition(empty_row=True))
use("whitening.mask-dtype", WHITENED.mask_dtype())
use("whitening.padding-invariance", WHITENED.padding_invariance())
use("whitening.batch-order", WHITENED.batch_order(min_rows=2))


@check(
    "whitening.masked-cells",
    needs=WHITENED.needs,
    requires=(promises_zeros,),
    cases=lambda s: whitening_cases(s, holes=True, columns=3),
)
def masked_cells(subject: Subject, case: WhiteningCase) -> Questions:
    call = WHITENED.call(subject, case)
    mask = call.argument("action_mask")
    yield Question(
        "number of a cell that is no action",
        call,
        [[0.0] * len(row) for row in case.action_mask],
        reading=selected(lambda answer: answer.masked_fill(mask != 0, 0.0)),
    )


# --- what has no deviation ------------------------------------------------------------------------------------------


@check("whitening.equal-numbers", needs=WHITENED.needs, requires=(has_epsilon,), cases=equal_numbers)
def equal(subject: Subject, case: WhiteningCase) -> Questions:
    yield WHITENED.asks(subject, case, what="whitened number where all are alike")


@check("whitening.few-actions", needs=WHITENED.needs, cases=few_actions)
def few(subject: Subject, case: WhiteningCase) -> Questions:
    """After a question with two actions, which nobody refuses."""
    yield WHITENED.asks(subject, case)
    for count in (1, 0):
        left = with_first(case, count)
        answered = yield Attempt(WHITENED.call(subject, left))
        if answered is not None:
            finite = bool(ACTIONS.numbers(subject, [answered]).isfinite().all())
            word = "one action" if count else "no action"
            yield Fact(finite, f"whitened number of {word}", expected="finite, or an error", actual="not finite")


@check("whitening.few-declared", needs=WHITENED.needs, requires=(says_of_few,), cases=few_actions)
def few_declared(subject: Subject, case: WhiteningCase) -> Questions:
    yield WHITENED.asks(subject, case)
    for count in (1, 0):
        left = with_first(case, count)
        if subject.adapter.whitening_of_few == "zero":
            yield WHITENED.asks(subject, left, what=f"whitened number, {count} of them")
        else:
            yield Refused(WHITENED.call(subject, left), f"whitening of {count} numbers", "an answer")


# --- the graph, and what changes nothing ----------------------------------------------------------------------------

use("whitening.no-graph", WHITENED.no_graph())
use("whitening.inputs-unwritten", WHITENED.inputs_unwritten())
use("whitening.side-effects", WHITENED.side_effects())

"""The checks of advantages and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import rlhf_spec.advantages as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.asking import GARBAGE, POISON, Quantity
from rlhf_conformance.chapters._credit.editing import from_here_on, masked_cells, own_row, unmoved
from rlhf_conformance.chapters._masked import DressedCase
from rlhf_conformance.chapters.advantages.cases import AdvantageCase, advantage_cases, last_actions, restored
from rlhf_conformance.judging.checks import Questions, check, declares, use
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

ANY_SIZE = (*GARBAGE, 8e36, -8e36)
"""Put under the mask: no sum of them overflows."""
FACTORS = (1000.0, 0.01, -7.0, 130.0)


def declared(adapter: Adapter) -> dict[str, Any]:
    """What the formulas are told beside the call."""
    return {"observations": adapter.observations, "after_last": adapter.after_last_action}


def truth_of(formula: Callable[..., list[list[float]]]) -> Callable[[Adapter, AdvantageCase], list[list[float]]]:
    def truth(adapter: Adapter, case: AdvantageCase) -> list[list[float]]:
        options = {"gamma": case.options.gamma, "lam": case.options.lam, **declared(adapter)}
        return formula(case.token_rewards, case.values, case.action_mask, **options)

    return truth


def discounted(adapter: Adapter, case: AdvantageCase) -> list[list[float]]:
    return spec.discounted_returns(case.token_rewards, case.action_mask, gamma=case.options.gamma, **declared(adapter))


def allowed(adapter: Adapter, case: AdvantageCase, dtype: Any) -> list[list[float]]:
    """Of what comes from an action on: every reward once and every value twice, as that of a state and as the next one.
    Discounts only make it smaller."""
    found = []
    for rewards, values, mask in zip(case.token_rewards, case.values, case.action_mask, strict=True):
        row, size = [0.0] * len(mask), 0.0
        for j in reversed(range(len(mask))):
            size += abs(rewards[j]) + 2 * abs(values[j])
            row[j] = budgets.advantage(size, len(mask) - j, dtype) if mask[j] else 0.0
        found.append(row)
    return found


def given(subject: Subject, case: AdvantageCase, mask_dtype: Any) -> tuple[Any, ...]:
    tables = (subject.tensor(case.token_rewards), subject.tensor(case.values))
    return (*tables, subject.tensor(case.action_mask, mask_dtype), case.options)


RETURN = Quantity(
    method="advantages",
    word="return",
    draw=advantage_cases,
    truth=truth_of(spec.critic_returns),
    allowed=allowed,
    options=declared,
    given=given,
    field="returns",
    said="rlhf_spec.advantages.critic_returns",
)
ADVANTAGE = replace(
    RETURN,
    word="advantage",
    truth=truth_of(spec.advantages),
    field="advantages",
    said="rlhf_spec.advantages.advantages",
    beside=(RETURN,),
    restored=restored,
)
DISCOUNTED = Quantity(
    method="returns",
    word="return without a critic",
    draw=advantage_cases,
    truth=discounted,
    allowed=allowed,
    options=declared,
    given=lambda s, case, dtype: (s.tensor(case.token_rewards), s.tensor(case.action_mask, dtype), case.options),
    restored=restored,
)
nothing_comes = declares(
    "after_last_action", "after_last_action: something comes after the last action", value="nothing"
)
promises_zeros = declares("advantages_masked", "advantages_masked is not declared", value="zero")

# --- the recursion --------------------------------------------------------------------------------------------------

use("advantages.definition", ADVANTAGE.definition())
use("advantages.lambda-zero", ADVANTAGE.definition(lambdas=(0.0,), columns=2))
use("advantages.lambda-one", ADVANTAGE.definition(lambdas=(1.0,), columns=2))
use("advantages.discounts-as-given", ADVANTAGE.definition(gammas=(0.7, 0.0, 1.0, 0.2), columns=2))
use("advantages.single-action", ADVANTAGE.definition(nothing_comes, single=True))
use("advantages.returns", RETURN.definition())
use("advantages.scale", ADVANTAGE.definition(factors=FACTORS))
use("advantages.future-only", unmoved(ADVANTAGE, from_here_on, "others before it", columns=3))


@check(
    "advantages.last-action",
    needs=ADVANTAGE.needs,
    cases=lambda s: advantage_cases(s) | ADVANTAGE.dressed_cases(s, GARBAGE[:-1]),
)
def after_the_last(subject: Subject, case: AdvantageCase | DressedCase) -> Questions:
    """With something behind the last action, and where the row ends with it."""
    plain, presented = (case.case, case.dressed) if isinstance(case, DressedCase) else (case, case)
    call = ADVANTAGE.call(subject, presented, about=plain)
    for one in (ADVANTAGE, RETURN):
        yield one.asks_at(subject, plain, last_actions(plain), f"{one.word} of the last action", call)


# --- without a critic -----------------------------------------------------------------------------------------------

use("advantages.discounted-returns", DISCOUNTED.definition(gammas=(0.9, 0.5, 1.0, 0.0, 0.97)))
use("advantages.discounted-observations", DISCOUNTED.dressed(GARBAGE[:-1], holes=True, columns=3))
use("advantages.discounted-mask", DISCOUNTED.dressed(ANY_SIZE))

# --- the mask -------------------------------------------------------------------------------------------------------

use("advantages.observations", ADVANTAGE.dressed(GARBAGE[:-1], holes=True, columns=3))
use("advantages.mask", ADVANTAGE.dressed(ANY_SIZE))
use("advantages.nan-under-mask", ADVANTAGE.dressed(POISON))
use("advantages.masked-cells", masked_cells(ADVANTAGE, promises_zeros))
use("advantages.empty-row", ADVANTAGE.definition(empty_row=True))
use("advantages.own-row", unmoved(ADVANTAGE, own_row, "others in other rows", min_rows=2))
use("advantages.padding-invariance", ADVANTAGE.padding_invariance())
use("advantages.mask-dtype", ADVANTAGE.mask_dtype())

# --- the graph, and what else is changed ----------------------------------------------------------------------------

use("advantages.no-graph", ADVANTAGE.no_graph())
use("advantages.inputs-unwritten", ADVANTAGE.inputs_unwritten())
use("advantages.side-effects", ADVANTAGE.side_effects())

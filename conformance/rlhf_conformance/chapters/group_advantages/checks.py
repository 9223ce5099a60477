"""The checks of advantages of groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import rlhf_spec.group_advantages as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.asking import ACTIONS, Quantity
from rlhf_conformance.chapters.group_advantages.cases import (
    GroupCase,
    RemaskedCase,
    RescoredCase,
    group_cases,
    kinds,
    others_changed,
    remasked,
    renamed,
    rescored,
    scaled,
    shifted,
)
from rlhf_conformance.judging.checks import Questions, Requirement, check, use
from rlhf_conformance.judging.questions import COMPARED, Attempt, Call, Fact, Question, Reading
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets


def declared(adapter: Adapter) -> dict[str, Any]:
    """What the formula is told beside the call."""
    return {"ddof": adapter.group_std_ddof, "eps": adapter.group_eps, "of_one": adapter.group_of_one or "zero"}


def truth(adapter: Adapter, case: GroupCase) -> list[list[float]]:
    o = case.options
    given = case.scores, case.group_ids, case.action_mask
    return spec.group_advantages(*given, baseline=o.baseline, scale=o.scale, **declared(adapter))


def divisor(adapter: Adapter, case: GroupCase, size: int) -> Callable[[float], float]:
    """What a difference from the mean of a group of this size is divided by, of the variance."""
    if case.options.baseline == "leave-one-out":
        return lambda variance: (size - 1) / size if size > 1 else 1.0
    if case.options.scale == "none":
        return lambda variance: 1.0
    return lambda variance: math.sqrt(variance) + adapter.group_eps


def allowed(adapter: Adapter, case: GroupCase, dtype: Any) -> list[list[float]]:
    rows = [0.0] * len(case.scores)
    for group in case.groups:
        own = [case.scores[i] for i in group]
        among = case.scores if case.options.scale == "batch-std" else own
        if len(own) == 1:
            found = [budgets.repeated(abs(own[0]), dtype)]
        else:
            divide = divisor(adapter, case, len(own))
            found = budgets.whitened(own, divide, adapter.group_std_ddof, dtype, passes=2, spread_of=among)
        for i, budget in zip(group, found, strict=True):
            rows[i] = budget
    return [[budget if m else 0.0 for m in mask] for budget, mask in zip(rows, case.action_mask, strict=True)]


ADVANTAGES = Quantity(
    method="group_advantages",
    word="advantage",
    draw=group_cases,
    truth=truth,
    allowed=allowed,
    options=declared,
    given=lambda s, case, dtype: (
        s.tensor(case.scores),
        s.tensor(case.group_ids),
        s.tensor(case.action_mask, dtype),
        case.options,
    ),
)


def asks_kind(baseline: str, scale: str) -> Requirement:
    said = f"group_baselines or group_scales do not say {baseline}, {scale}"
    return lambda adapter: None if (baseline, scale) in kinds(adapter) else said


def is_scaled(adapter: Adapter) -> str | None:
    scaled = any(scale != "none" for _, scale in kinds(adapter))
    return None if scaled else "group_scales = ('none',): nothing is divided by a deviation"


def has_own(adapter: Adapter) -> str | None:
    own = any(scale != "batch-std" for _, scale in kinds(adapter))
    return None if own else "group_scales = ('batch-std',): every advantage depends on the whole batch"


def stands_anywhere(adapter: Adapter) -> str | None:
    return None if adapter.group_layout == "any" else f"group_layout = {adapter.group_layout!r}"


def differs_in_size(adapter: Adapter) -> str | None:
    return None if adapter.group_layout != "equal" else "group_layout = 'equal'"


def says_of_one(adapter: Adapter) -> str | None:
    return None if adapter.group_of_one else "group_of_one is not declared: nothing is promised"


# --- the formula ----------------------------------------------------------------------------------------------------


def kind(*pair: str, **shape: Any) -> Any:
    return ADVANTAGES.definition(asks_kind(*pair), kind=pair, **shape)


use("group-advantages.mean", kind("mean", "none"))
use("group-advantages.group-std", kind("mean", "group-std"))
use("group-advantages.batch-std", kind("mean", "batch-std", min_groups=2))
use("group-advantages.leave-one-out", kind("leave-one-out", "none"))
use("group-advantages.ddof", ADVANTAGES.definition(is_scaled, scaled=True))


@check(
    "group-advantages.epsilon",
    needs=ADVANTAGES.needs,
    requires=(is_scaled,),
    cases=lambda s: group_cases(
        s, scaled=True, centers=(0.0,), spreads=tuple(f * (s.adapter.group_eps or 1e-4) for f in (1.0, 0.4, 2.5))
    ),
)
def epsilon(subject: Subject, case: GroupCase) -> Questions:
    yield ADVANTAGES.asks(subject, case)


# --- what makes a group ---------------------------------------------------------------------------------------------

use("group-advantages.interleaved", ADVANTAGES.definition(stands_anywhere, mixed=True))
use("group-advantages.unequal-sizes", ADVANTAGES.definition(differs_in_size, unequal=True))
use("group-advantages.batch-order", ADVANTAGES.batch_order(min_groups=2))


def asks_again(how: str) -> Callable[..., Questions]:
    """Both calls of a case, the second under words of its own."""

    def check(subject: Subject, case: RescoredCase | RemaskedCase) -> Questions:
        yield ADVANTAGES.asks(subject, case.case)
        yield ADVANTAGES.asks(subject, case.other, what=f"advantage {how}")

    return check


use(
    "group-advantages.own-group",
    ADVANTAGES.template(asks_again("with other scores elsewhere"), others_changed, has_own),
)
use("group-advantages.group-names", ADVANTAGES.template(asks_again("under other ids"), renamed))
use("group-advantages.shift", ADVANTAGES.template(asks_again("after a shift of each group"), shifted, has_own))
use("group-advantages.score-size", ADVANTAGES.template(asks_again("after all scores were multiplied"), scaled))


def poisoned(subject: Subject) -> Any:
    """One score outside of the first row's group is NaN."""

    def change(case: GroupCase, picks: Any) -> GroupCase:
        others = [i for i, g in enumerate(case.group_ids) if g != case.group_ids[0]]
        at = others[picks.below(len(others))]
        return replace(case, scores=tuple(math.nan if i == at else s for i, s in enumerate(case.scores)))

    return rescored(subject, change, 1, min_groups=2, own=True)


def asks_rows(subject: Subject, case: GroupCase, call: Call, rows: Sequence[int], what: str) -> Question:
    """The same about some of the rows of a call."""
    whole = ADVANTAGES.asks(subject, case)
    return Question(
        what,
        call,
        [whole.expected[i] for i in rows],
        [whole.allowed[i] for i in rows],
        reading=Reading(lambda s, answers: ACTIONS.numbers(s, answers)[list(rows)], wanted=COMPARED),
        place=lambda index: f"row {rows[index[0]]}, column {index[1]}",
    )


@check("group-advantages.nan-in-another-group", needs=ADVANTAGES.needs, requires=(has_own,), cases=poisoned)
def nan_elsewhere(subject: Subject, case: RescoredCase) -> Questions:
    """Of the rows of the group that has it nothing is asked."""
    poison = {g for g, s in zip(case.other.group_ids, case.other.scores, strict=True) if s != s}
    clean = [i for i, g in enumerate(case.other.group_ids) if g not in poison]
    call = ADVANTAGES.call(subject, case.other)
    yield asks_rows(subject, case.case, call, clean, "advantage beside a group with a NaN")


# --- groups that tell nothing ---------------------------------------------------------------------------------------

WHOLE = (1.0, 0.0, -1.0, 3.0)
ALIKE, MANY = (0.97, 0.1, -0.3, 0.7), (3, 5, 6, 7, 9, 11, 13, 16)

use("group-advantages.nearly-unanimous", ADVANTAGES.definition(is_scaled, lone=True, scaled=True))


def unanimous(limit: float) -> Callable[..., Questions]:
    """The advantages of a group whose scores are all alike lie within a limit."""

    def check(subject: Subject, case: GroupCase) -> Questions:
        asked = ADVANTAGES.asks(subject, case, what="advantage beside or in a group of equal scores")
        rows = [list(row) for row in asked.allowed]
        for group in case.groups:
            if len({case.scores[i] for i in group}) == 1:
                for i in group:
                    rows[i] = [limit] * len(rows[i])
        yield replace(asked, allowed=rows)

    return check


use(
    "group-advantages.equal-scores",
    ADVANTAGES.template(unanimous(0.0), ADVANTAGES.cases(alike=WHOLE)),
)
use(
    "group-advantages.equal-scores-noise",
    ADVANTAGES.template(unanimous(budgets.NOISE), ADVANTAGES.cases(alike=ALIKE, many=MANY, scaled=True)),
)
use("group-advantages.group-of-one", ADVANTAGES.definition(says_of_one, one=True))


@check("group-advantages.group-of-one-finite", needs=ADVANTAGES.needs, cases=ADVANTAGES.cases(one=True))
def of_one_finite(subject: Subject, case: GroupCase) -> Questions:
    """After a question about a single group of all rows, which nobody refuses."""
    yield ADVANTAGES.asks(subject, replace(case, group_ids=(0,) * len(case.group_ids)), what="advantage in one group")
    call = ADVANTAGES.call(subject, case)
    answered = yield Attempt(call)
    if answered is not None:
        finite = bool(ACTIONS.numbers(subject, [answered]).isfinite().all())
        yield Fact(finite, "advantage of a group of one", expected="finite, or an error", actual="not finite")
        rows = [i for group in case.groups if len(group) > 1 for i in group]
        yield asks_rows(subject, case, call, rows, "advantage beside a group of one")


# --- the mask, the graph, and what changes nothing ------------------------------------------------------------------

use("group-advantages.mask", ADVANTAGES.template(asks_again("under another mask"), remasked))
use("group-advantages.padding-invariance", ADVANTAGES.padding_invariance())
use("group-advantages.mask-dtype", ADVANTAGES.mask_dtype())
use("group-advantages.no-graph", ADVANTAGES.no_graph())
use("group-advantages.inputs-unwritten", ADVANTAGES.inputs_unwritten())
use("group-advantages.side-effects", ADVANTAGES.side_effects())

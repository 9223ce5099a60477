"""The checks of the token rewards."""

from __future__ import annotations

from typing import Any

import rlhf_spec.token_rewards as spec
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.asking import POISON, Quantity, at_actions, at_cells
from rlhf_conformance.chapters._credit.editing import masked_cells, own_row, unmoved, zeros
from rlhf_conformance.chapters._masked import DressedCase
from rlhf_conformance.chapters.token_rewards.cases import (
    KL,
    LARGE_SCORES,
    NO_NUMBERS,
    SCORES,
    TokenRewardCase,
    reward_cases,
    unstopped,
)
from rlhf_conformance.judging.checks import Questions, check, declares, takes_extra, use
from rlhf_conformance.judging.questions import Formula, Question, Reading
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

ANY_SIZE = (-30.0, -3.0, 0.7, 30.0, 200.0, -200.0, 8e37, -8e37)
"""Put under the mask: no product with a coefficient overflows."""


def declared(adapter: Adapter) -> dict[str, Any]:
    """What the formula is told beside the call."""
    rule = {"missing_stop": adapter.missing_stop} if adapter.missing_stop else {}
    return {"score_position": adapter.score_position, **rule}


def truth(adapter: Adapter, case: TokenRewardCase) -> list[list[float]]:
    return spec.token_rewards(
        case.final_scores(adapter),
        case.kl,
        case.action_mask,
        kl_coef=case.options.kl_coef,
        score_clip=case.options.score_clip,
        score_position=adapter.score_position,
    )


def allowed(adapter: Adapter, case: TokenRewardCase, dtype: Any) -> list[list[float]]:
    lands, scores = case.score_cells(adapter), case.final_scores(adapter)
    return [
        [
            budgets.token_reward(
                scores[i] if (i, j) in lands else 0.0,
                case.options.kl_coef * case.kl[i][j] if m and case.options.kl_coef else 0.0,
                dtype,
            )
            for j, m in enumerate(row)
        ]
        for i, row in enumerate(case.action_mask)
    ]


def reads(adapter: Adapter, case: TokenRewardCase) -> Reading:
    """All actions, and where the score lands."""
    if adapter.score_position == "last-action":
        return at_actions()
    return at_cells({*case.actions, *case.score_cells(adapter)}, case)


REWARDS = Quantity(
    method="token_rewards",
    word="token reward",
    draw=reward_cases,
    truth=truth,
    allowed=allowed,
    options=declared,
    given=lambda s, case, dtype: (
        s.tensor(case.scores),
        s.tensor(case.kl),
        s.tensor(case.action_mask, dtype),
        case.options,
        *((s.tensor(case.stopped, torch.bool),) if case.stopped else ()),
    ),
    reads=reads,
)
can_clip = declares("score_clip", "score_clip is not declared: the score is not clipped")
at_last_action = declares("score_position", "score_position is 'after-last'", value="last-action")
promises_zeros = declares("token_rewards_masked", "token_rewards_masked is not declared", value="zero")


# --- where the score lands ------------------------------------------------------------------------------------------

use("token-rewards.score-position", REWARDS.definition(kl=(0.0,)))


@check("token-rewards.sum", needs=REWARDS.needs, cases=REWARDS.cases())
def sums(subject: Subject, case: TokenRewardCase) -> Questions:
    o, adapter = case.options, subject.adapter
    rows = zip(case.kl, case.action_mask, strict=True)
    penalties = [[o.kl_coef * x for x, m in zip(*row, strict=True) if m] for row in rows]
    yield Question(
        "sum of the rewards of a sample",
        REWARDS.call(subject, case),
        spec.reward_sums(case.scores, case.kl, case.action_mask, kl_coef=o.kl_coef, score_clip=o.score_clip),
        [budgets.reward_sum(*row, subject.dtype) for row in zip(case.scores, penalties, strict=True)],
        reading=at_cells({*case.actions, *case.score_cells(adapter)}, case, summed=True),
        formula=Formula("rlhf_spec.token_rewards.reward_sums"),
    )


use("token-rewards.score-clip", REWARDS.definition(can_clip, clipped=True, scores=(*SCORES, *LARGE_SCORES)))
use("token-rewards.score-unclipped", REWARDS.definition(clipped=False, scores=LARGE_SCORES))

takes_stops = takes_extra("token_rewards", "stopped", "which samples stopped")


def says_of_stops(adapter: Adapter) -> str | None:
    return None if adapter.missing_stop else "missing_stop is not declared: scores of cut-off samples are as they are"


@check("token-rewards.missing-stop", needs=REWARDS.needs, requires=(says_of_stops, takes_stops), cases=unstopped)
def missing_stop(subject: Subject, case: TokenRewardCase) -> Questions:
    yield from REWARDS.all(subject, case, what=" where samples did not stop")


# --- the penalty ----------------------------------------------------------------------------------------------------


@check("token-rewards.penalty", needs=REWARDS.needs, cases=REWARDS.cases(columns=3))
def penalty(subject: Subject, case: TokenRewardCase) -> Questions:
    others = {*case.actions} - case.score_cells(subject.adapter)
    yield REWARDS.asks_at(subject, case, others, "reward of an action without a score")


@check("token-rewards.last-action", needs=REWARDS.needs, requires=(at_last_action,), cases=REWARDS.cases())
def last_action(subject: Subject, case: TokenRewardCase) -> Questions:
    yield REWARDS.asks_at(subject, case, case.score_cells(subject.adapter), "reward of the last action")


use("token-rewards.zero-coefficient", REWARDS.definition(coefficients=(0.0,), kl=NO_NUMBERS))

# --- the mask -------------------------------------------------------------------------------------------------------


@check(
    "token-rewards.holes",
    needs=REWARDS.needs,
    cases=lambda s: REWARDS.dressed_cases(s, ANY_SIZE[:4], holes=True, columns=3),
)
def holes(subject: Subject, case: DressedCase) -> Questions:
    call = REWARDS.call(subject, case.dressed, about=case.case)
    yield REWARDS.asks(subject, case.case, call, "token reward of several turns")
    if subject.adapter.token_rewards_masked == "zero":
        yield zeros(REWARDS, call, case.case, case.case.score_cells(subject.adapter))


use("token-rewards.mask", REWARDS.dressed(ANY_SIZE))
use("token-rewards.nan-under-mask", REWARDS.dressed(POISON))
use(
    "token-rewards.masked-cells",
    masked_cells(REWARDS, promises_zeros, besides=lambda s, case: case.score_cells(s.adapter)),
)
use("token-rewards.empty-row", REWARDS.definition(empty_row=True))
use("token-rewards.own-row", unmoved(REWARDS, own_row, "others in other rows", numbers=(*SCORES, *KL), min_rows=2))
use("token-rewards.padding-invariance", REWARDS.padding_invariance())
use("token-rewards.mask-dtype", REWARDS.mask_dtype())

# --- the graph, and what else is changed ----------------------------------------------------------------------------

use("token-rewards.no-graph", REWARDS.no_graph())
use("token-rewards.inputs-unwritten", REWARDS.inputs_unwritten())
use("token-rewards.side-effects", REWARDS.side_effects())

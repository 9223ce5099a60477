"""The checks of the toy chapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_conformance.judging.checks import check
from rlhf_conformance.judging.questions import ANSWER, GRADIENT, NUMBER, Against, Call, Formula, Question, selected
from rlhf_conformance.oracle import budgets
from toy_chapters import formulas
from toy_chapters.toy_advantages.cases import ToyAdvantageCase, toy_advantage_cases

ADVANTAGES, MEAN = ("toy_advantages",), ("mean_toy_advantage",)


def call(subject: Any, case: ToyAdvantageCase, method: str = "toy_advantages") -> Call:
    tables = [subject.tensor(table) for table in (case.rewards, case.values)]
    return Call(method, (tables[0].requires_grad_(), tables[1], subject.tensor(case.action_mask), case.options))


def truth(subject: Any, case: ToyAdvantageCase, formula: Any) -> Any:
    o = case.options
    tables = [[list(row) for row in table] for table in (case.rewards, case.values, case.action_mask)]
    return formula(*tables, o.gamma, o.lam, bootstrap=subject.adapter.bootstrap)


def allowed(subject: Any) -> float:
    return budgets.repeated(64.0, subject.dtype)


def said(subject: Any, name: str) -> Formula:
    return Formula(f"toy_chapters.formulas.{name}", {"bootstrap": subject.adapter.bootstrap})


@check("toy-advantages.definition", needs=ADVANTAGES, cases=lambda s: toy_advantage_cases())
def definition(subject: Any, case: ToyAdvantageCase) -> Any:
    mask = subject.tensor(case.action_mask).bool()
    yield Question(
        "advantage",
        call(subject, case),
        truth(subject, case, formulas.advantages),
        allowed(subject),
        reading=selected(lambda answer: answer.masked_fill(~mask, 0.0)),
        formula=said(subject, "advantages"),
    )


@check("toy-advantages.mask", needs=ADVANTAGES, cases=lambda s: toy_advantage_cases())
def mask(subject: Any, case: ToyAdvantageCase) -> Any:
    other = [
        tuple(
            tuple(x if m else 7.0 for x, m in zip(*row, strict=True))
            for row in zip(table, case.action_mask, strict=True)
        )
        for table in (case.rewards, case.values)
    ]
    clean, dressed = call(subject, case), call(subject, replace(case, rewards=other[0], values=other[1]))
    yield Question("advantage with other numbers outside", dressed, Against((clean,)), allowed(subject), reading=ANSWER)


@check("toy-advantages.gradient", needs=ADVANTAGES, cases=lambda s: toy_advantage_cases())
def gradient(subject: Any, case: ToyAdvantageCase) -> Any:
    yield Question(
        "gradient with respect to the rewards",
        call(subject, case),
        truth(subject, case, formulas.rewards_gradient),
        allowed(subject),
        reading=GRADIENT,
        formula=said(subject, "rewards_gradient"),
    )


@check("toy-advantages.mean", needs=MEAN, cases=lambda s: toy_advantage_cases())
def mean(subject: Any, case: ToyAdvantageCase) -> Any:
    yield Question(
        "mean advantage",
        call(subject, case, "mean_toy_advantage"),
        truth(subject, case, formulas.mean_advantage),
        allowed(subject),
        reading=NUMBER,
        formula=said(subject, "mean_advantage"),
    )

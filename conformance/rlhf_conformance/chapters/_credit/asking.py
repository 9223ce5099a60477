"""A number for each action as the oracle sees it, and the checks that every such quantity has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS, Adapter
from rlhf_conformance.chapters import _side_effects
from rlhf_conformance.chapters._masked import DressedCase, MaskedCase, WidenedCase, dressed, widened
from rlhf_conformance.judging.checks import Cases, Questions, Requirement, Template
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import Against, Answered, Call, Fact, Formula, Question, Reading, main
from rlhf_conformance.judging.subject import Subject

GARBAGE = (-30.0, -3.0, 0.7, 2.0, 30.0, 1e4)
"""Put under the mask: finite, and so that squares of them are, too."""
POISON = (math.nan, math.inf, -math.inf, 1e4, 3e38)
CELLS = 60
"""At most so many masked cells get a number of their own."""


def _on_actions(subject: Any, answers: Sequence[Answered]) -> Any:
    answer, mask = main(answers[-1]), answers[-1].argument("action_mask")
    return answer.detach().reshape(len(mask), -1).expand(mask.shape).masked_fill(mask == 0, 0.0)


ACTIONS = Reading(
    _on_actions,
    "answer, mask = answers[-1], calls[-1]['action_mask']\n"
    "return flat(answer.detach().reshape(len(mask), -1).expand(mask.shape).masked_fill(mask == 0, 0.0))",
)
"""The answer at the actions, 0 elsewhere: a number for each cell, or one for each row, which counts for its actions."""


def _backwards(subject: Any, answers: Sequence[Answered]) -> Any:
    return _on_actions(subject, answers).flip(0)


BACKWARDS = Reading(
    _backwards,
    f"{ACTIONS.source.removesuffix(')')}.flip(0))  # the rows were given in reverse order",
    "return flat(answers[-1][::-1])",
)
"""The same with the rows in reverse order, where those of the call were given in reverse order."""


@dataclass(frozen=True)
class Quantity:
    """What a trainer makes of tables under a mask: a number for each action.

    method      the adapter's
    word        what one of its numbers is called
    draw        (subject, shape) -> cases, see `cases`
    truth       (adapter, case) -> what is right, rows with 0.0 where there is no action
    allowed     (adapter, case, dtype) -> how far each may be off
    options     adapter -> what the formula is told beside the call
    given       (subject, case, dtype of the mask) -> the arguments of the call
    """

    method: str
    word: str
    draw: Callable[..., Picked[Any]]
    truth: Callable[[Adapter, Any], list[list[float]]]
    allowed: Callable[[Adapter, Any, Any], list[list[float]]]
    options: Callable[[Adapter], Mapping[str, Any]]
    given: Callable[[Subject, Any, Any], tuple[Any, ...]]

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.method,)

    def cases(self, **shape: Any) -> Cases:
        """Cases of this quantity, of the shape asked for."""
        return lambda s: self.draw(s, **shape)

    def call(
        self, subject: Subject, case: MaskedCase, *, mask_dtype: Any = None, about: Any = None, leaf: bool = False
    ) -> Call:
        """The method asked about a case. `about` is the case without what stands under its mask; with `leaf` the
        numbers that are given have a graph."""
        given = self.given(subject, case, mask_dtype)
        if leaf:
            given[METHODS[self.method].arguments.index(METHODS[self.method].leaf)].requires_grad_()
        return Call(self.method, given, about=about or case)

    def formula(self, adapter: Adapter) -> Formula:
        return Formula(METHODS[self.method].formula, self.options(adapter))

    def asks(
        self, subject: Subject, case: MaskedCase, call: Call | None = None, what: str = "", reading: Reading = ACTIONS
    ) -> Question:
        """Are the numbers at the actions those of the formula?"""
        adapter = subject.adapter
        return Question(
            what or self.word,
            call or self.call(subject, case),
            self.truth(adapter, case),
            self.allowed(adapter, case, subject.dtype),
            reading=reading,
            formula=self.formula(adapter),
        )

    def template(self, function: Any, cases: Cases, *requires: Requirement, effort: int = 1) -> Template:
        return Template(function, self.needs, cases, tuple(requires), effort)

    # --- checks that every quantity has ------------------------------------------------------------------------------

    def definition(self, *requires: Requirement, effort: int = 1, **shape: Any) -> Template:
        """Its numbers, on cases of a shape."""

        def check(subject: Subject, case: MaskedCase) -> Questions:
            yield self.asks(subject, case)

        return self.template(check, self.cases(**shape), *requires, effort=effort)

    def dressed(self, filler: Sequence[float], **shape: Any) -> Template:
        """Its numbers with others under the mask."""

        def check(subject: Subject, case: DressedCase) -> Questions:
            yield self.asks(subject, case.case, self.call(subject, case.dressed, about=case.case))

        def cases(subject: Subject) -> Picked[DressedCase]:
            largest = float(torch.finfo(subject.dtype).max)
            kept = [x for x in filler if not largest < abs(x) < math.inf]
            return dressed(self.draw(subject, **shape), kept, subject.dtype, 1, CELLS)

        return self.template(check, cases)

    def padding_invariance(self) -> Template:
        def check(subject: Subject, case: WidenedCase) -> Questions:
            wide = widened(case.case, case.columns, left=case.left)
            narrow, call = self.call(subject, case.case), self.call(subject, wide)
            yield self.asks(subject, case.case, narrow)
            yield self.asks(subject, wide, call, f"{self.word} with {case.columns} more masked columns")

        def cases(subject: Subject) -> Picked[WidenedCase]:
            narrow = self.draw(subject)
            return narrow.with_more(2, lambda case, picks: WidenedCase(case, 1 + picks.below(3), picks.chance(1, 2)))

        return self.template(check, cases)

    def batch_order(self, **shape: Any) -> Template:
        """The shape has at least two rows."""

        def check(subject: Subject, case: MaskedCase) -> Questions:
            backwards = case.rows(range(case.shape[0] - 1, -1, -1))
            there, back = self.call(subject, case), self.call(subject, backwards)
            yield there
            what = f"{self.word} of the rows in reverse order"
            yield self.asks(subject, case, back, what, BACKWARDS)
            allowed = self.allowed(subject.adapter, case, subject.dtype)
            twice = [[2 * x for x in row] for row in allowed]
            yield replace(self.asks(subject, case, back, f"{what}, against in order", BACKWARDS), allowed=twice,
                          expected=Against((there,), ACTIONS))  # fmt: skip

        return self.template(check, self.cases(**shape))

    def mask_dtype(self) -> Template:
        def check(subject: Subject, case: MaskedCase) -> Questions:
            for dtype in (torch.bool, torch.int64, torch.int32, torch.float32):
                call = self.call(subject, case, mask_dtype=dtype)
                yield self.asks(subject, case, call, f"{self.word} with a mask of {dtype}")

        return self.template(check, self.cases(), effort=2)

    def no_graph(self) -> Template:
        def check(subject: Subject, case: MaskedCase) -> Questions:
            call = self.call(subject, case, leaf=True)
            answered = yield call
            leaf = METHODS[self.method].leaf
            yield Fact(
                not main(answered).requires_grad,
                f"graph of the {self.word}",
                expected="none",
                actual=f"one that leads back to the {leaf}",
            )
            yield self.asks(subject, case, call, f"{self.word} of {leaf} that have a graph")

        return self.template(check, self.cases())

    def inputs_unwritten(self) -> Template:
        return _side_effects.inputs_unwritten(self._asked(), self.needs, self.cases())

    def side_effects(self) -> Template:
        return _side_effects.side_effects(self._asked(), self.needs, self.cases())

    def _asked(self) -> _side_effects.Calls:
        return _side_effects.plainly(lambda subject, case: self.call(subject, case), ACTIONS)

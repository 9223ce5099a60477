"""A number for each action as the oracle sees it, and the checks that every such quantity has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
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


def part(answered: Answered, field: str) -> Any:
    """A field of an answer with several; empty: the answer, or its main part."""
    return getattr(answered.value, field) if field else main(answered)


@cache
def at_actions(
    field: str = "", *, backwards: bool = False, row: int | None = None, start: int = 0, stop: int | None = None
) -> Reading:
    """The answer at the actions, 0 elsewhere: a number for each cell, or one for each row, which counts for its
    actions.

    field               of an answer with several; empty: the answer, or its main part
    backwards           the rows are turned round, where those of the call were given in reverse order
    row, start, stop    of one row alone, from a column to another
    """

    def numbers(subject: Any, answers: Sequence[Answered]) -> Any:
        answer = part(answers[-1], field)
        mask = answers[-1].argument("action_mask")
        found = answer.detach().reshape(len(mask), -1).expand(mask.shape).masked_fill(mask == 0, 0.0)
        found = found.flip(0) if backwards else found
        return found if row is None else found[row, start:stop]

    end, of_formulas = "", "return flat(answers[-1])"
    if backwards:
        end, of_formulas = ".flip(0)", "return flat(answers[-1][::-1])"
    if row is not None:
        end = f"[{row}, {start}:{stop or ''}]"
        of_formulas = f"return flat(answers[-1][{row}][{start}:{stop or ''}])"
    source = (
        "answer, mask = answers[-1], calls[-1]['action_mask']\n"
        f"return flat(answer.detach().reshape(len(mask), -1).expand(mask.shape).masked_fill(mask == 0, 0.0){end})"
    )
    wanted = f"its {field}, a tensor shaped like the mask" if field else ""
    return Reading(numbers, source, of_formulas, wanted, field)


ACTIONS = at_actions()
BACKWARDS = at_actions(backwards=True)


def at_cells(cells: set[tuple[int, int]], case: MaskedCase, field: str = "", *, summed: bool = False) -> Reading:
    """The answer, or a field of it, in some cells, 0 elsewhere; or what those of each row add up to."""
    kept = [[(i, j) in cells for j in range(case.shape[1])] for i in range(case.shape[0])]

    def numbers(subject: Any, answers: Sequence[Answered]) -> Any:
        answer = part(answers[-1], field).detach()
        found = answer.masked_fill(~torch.tensor(kept, device=answer.device), 0.0)
        return found.double().sum(1) if summed else found

    end = ".double().sum(1)" if summed else ""
    source = f"kept = torch.tensor({kept})\nreturn flat(answers[-1].detach().masked_fill(~kept, 0.0){end})"
    of_formulas = "return flat(answers[-1])"
    if not summed:
        of_formulas = f"kept = {kept}\nreturn [x if k else 0.0 for x, k in zip(flat(answers[-1]), flat(kept))]"
    wanted = f"its {field}, a tensor shaped like the mask" if field else ""
    return Reading(numbers, source, of_formulas, wanted, field)


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
    options_of  the same, where it depends on the case
    field       of an answer with several; empty: the answer itself
    said        the formula, where it is not that of the method
    beside      what else the same call answers
    reads       (adapter, case) -> how the numbers are read; None: at the actions
    restored    (adapter, case, the same with numbers under its mask) -> the latter, with what is read there put back
    """

    method: str
    word: str
    draw: Callable[..., Picked[Any]]
    truth: Callable[[Adapter, Any], list[list[float]]]
    allowed: Callable[[Adapter, Any, Any], list[list[float]]]
    options: Callable[[Adapter], Mapping[str, Any]]
    given: Callable[[Subject, Any, Any], tuple[Any, ...]]
    options_of: Callable[[Adapter, Any], Mapping[str, Any]] | None = None
    field: str = ""
    said: str = ""
    beside: tuple[Quantity, ...] = ()
    reads: Callable[[Adapter, Any], Reading] | None = None
    restored: Callable[[Adapter, Any, Any], Any] = lambda adapter, case, dressed: dressed

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
        for argument in given if leaf else ():
            if isinstance(argument, torch.Tensor) and argument.is_floating_point():
                argument.requires_grad_()
        return Call(self.method, given, about=about or case)

    def formula(self, adapter: Adapter, case: MaskedCase) -> Formula:
        options = self.options_of(adapter, case) if self.options_of else self.options(adapter)
        return Formula(self.said or METHODS[self.method].formula, options)

    def reading(self, adapter: Adapter, case: MaskedCase) -> Reading:
        return self.reads(adapter, case) if self.reads else at_actions(self.field)

    def all(self, subject: Subject, case: MaskedCase, call: Call | None = None, what: str = "") -> Questions:
        """What the call should answer, one question after the other; `what` stands behind the word of each."""
        call = call or self.call(subject, case)
        for one in (self, *self.beside):
            yield one.asks(subject, case, call, f"{one.word}{what}")

    def asks(
        self,
        subject: Subject,
        case: MaskedCase,
        call: Call | None = None,
        what: str = "",
        reading: Reading | None = None,
    ) -> Question:
        """Are the numbers at the actions those of the formula?"""
        adapter = subject.adapter
        return Question(
            what or self.word,
            call or self.call(subject, case),
            self.truth(adapter, case),
            self.allowed(adapter, case, subject.dtype),
            reading=reading or self.reading(adapter, case),
            formula=self.formula(adapter, case),
        )

    def asks_at(
        self, subject: Subject, case: MaskedCase, cells: set[tuple[int, int]], what: str, call: Call | None = None
    ) -> Question:
        """The numbers of some cells alone."""
        asked = self.asks(subject, case, call, what, at_cells(cells, case, self.field))
        kept = [[x if (i, j) in cells else 0.0 for j, x in enumerate(row)] for i, row in enumerate(asked.expected)]
        return replace(asked, expected=kept)

    def template(self, function: Any, cases: Cases, *requires: Requirement, effort: int = 1) -> Template:
        return Template(function, self.needs, cases, tuple(requires), effort)

    # --- checks that every quantity has ------------------------------------------------------------------------------

    def definition(self, *requires: Requirement, effort: int = 1, **shape: Any) -> Template:
        """Its numbers, on cases of a shape."""

        def check(subject: Subject, case: MaskedCase) -> Questions:
            yield from self.all(subject, case)

        return self.template(check, self.cases(**shape), *requires, effort=effort)

    def dressed(self, filler: Sequence[float], **shape: Any) -> Template:
        """Its numbers with others under the mask."""

        def check(subject: Subject, case: DressedCase) -> Questions:
            yield from self.all(subject, case.case, self.call(subject, case.dressed, about=case.case))

        return self.template(check, lambda subject: self.dressed_cases(subject, filler, **shape))

    def dressed_cases(self, subject: Subject, filler: Sequence[float], **shape: Any) -> Picked[DressedCase]:
        """Cases with such numbers under the mask, as far as the dtype holds them."""
        largest = float(torch.finfo(subject.dtype).max)
        kept = [x for x in filler if not largest < abs(x) < math.inf]
        drawn = dressed(self.draw(subject, **shape), kept, subject.dtype, 1, CELLS)
        return drawn.map(lambda x: replace(x, dressed=self.restored(subject.adapter, x.case, x.dressed)))

    def padding_invariance(self) -> Template:
        def check(subject: Subject, case: WidenedCase) -> Questions:
            wide = widened(case.case, case.columns, left=case.left)
            narrow, call = self.call(subject, case.case), self.call(subject, wide)
            yield from self.all(subject, case.case, narrow)
            yield from self.all(subject, wide, call, f" with {case.columns} more masked columns")

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
                yield from self.all(subject, case, call, f" with a mask of {dtype}")

        return self.template(check, self.cases(), effort=2)

    def no_graph(self) -> Template:
        def check(subject: Subject, case: MaskedCase) -> Questions:
            call = self.call(subject, case, leaf=True)
            answered = yield call
            leaf = METHODS[self.method].leaf
            for one in (self, *self.beside):
                yield Fact(
                    not part(answered, one.field).requires_grad,
                    f"graph of the {one.word}",
                    expected="none",
                    actual=f"one that leads back to the {leaf}",
                )
            yield from self.all(subject, case, call, f" of {leaf} that have a graph")

        return self.template(check, self.cases())

    def inputs_unwritten(self) -> Template:
        return _side_effects.inputs_unwritten(self._asked(), self.needs, self._with_garbage())

    def side_effects(self) -> Template:
        return _side_effects.side_effects(self._asked(), self.needs, self._with_garbage())

    def _with_garbage(self) -> Cases:
        """Cases with something under the mask, so that whoever fills it in place is seen."""
        return lambda subject: self.dressed_cases(subject, GARBAGE)

    def _asked(self) -> _side_effects.Calls:
        reading = at_actions(self.field)
        return _side_effects.plainly(lambda s, case: self.call(s, case.dressed, about=case.case), reading)

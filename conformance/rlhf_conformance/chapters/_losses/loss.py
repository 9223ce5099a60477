"""A loss of tokens as the oracle sees it, and the checks that every such loss has."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import rlhf_spec.aggregation
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS, Adapter
from rlhf_conformance.chapters import _side_effects
from rlhf_conformance.chapters._losses.cases import (
    CONSTANT_LENGTHS,
    LossCase,
    LossShape,
    SplitCase,
    aggregations_of,
    loss_cases,
    split,
    under_mask,
)
from rlhf_conformance.chapters._masked import DressedCase, MaskedCase, WidenedCase, widened
from rlhf_conformance.judging.checks import Cases, Questions, Requirement, Template, declares
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import (
    GRADIENT,
    NUMBER,
    SUM,
    Against,
    Call,
    Fact,
    Formula,
    Question,
    Reading,
    backwards_by,
    gradient_by,
    gradients_by,
    selected,
)
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.literals import source
from rlhf_conformance.oracle import budgets

GARBAGE = (-30.0, -3.0, -0.5, 0.7, 2.0, 30.0)
"""Put under the mask: a masked token's loss stays finite (a ratio of e^60 at most)."""
SMALL_GARBAGE = (-3.0, -0.5, 0.7, 2.0, 5.0)
"""The same for float16, which ends at 65504."""
HUGE = (200.0, 8e37)
"""Put under the mask with either sign: the exponential, the square or the product of such numbers overflows, but not
the difference of two of them, so that whoever selects with the mask before these is right."""
POISON = (math.nan, math.inf, -math.inf, 1e4, -1e4)
USUAL = " with numbers of a usual size under the mask"
REPEATED = 107
"""How often the rows of a case are repeated, to be longer than bytes and bfloat16 can count."""


class Minimised:
    """What a trainer minimises: one number made of the numbers of tokens.

    kind        its chapter
    tables      how many tables of numbers it is given
    """

    kind: str
    tables: ClassVar[int] = 3

    @property
    def method(self) -> str:
        return self.kind.replace("-", "_")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.method,)

    def leaves(self, adapter: Adapter) -> tuple[str, ...]:
        """The arguments that gradients are taken with respect to."""
        return (METHODS[self.method].leaf,)

    def takes_global_count(self, adapter: Adapter) -> bool:
        """Whether it may be asked with the denominator of a step."""
        return bool(adapter.global_count)

    def branches(self, adapter: Adapter) -> dict[str, Any]:
        """A shape of all means and surrogates that are declared, the usual ones first and most often: whoever puts the
        loss together has a branch for each. Nothing for a loss whose branches have clauses of their own."""
        return {}

    def next_aggregation(self, adapter: Adapter, case: LossCase) -> dict[str, Any]:
        """The options for the mean or sum that is declared after the case's own; nothing for a loss without
        `branches`."""
        offered = list(dict.fromkeys(self.branches(adapter).get("aggregations", ())))
        if len(offered) < 2:
            return {}
        chosen = offered[(offered.index(case.options.aggregation) + 1) % len(offered)]
        longer = CONSTANT_LENGTHS[0] if chosen == "constant-length" else None
        return {"aggregation": chosen, "constant_length": longer}

    def also(self, adapter: Adapter, case: Any) -> list[Any]:
        """Other calls that are made of a case, where there is another way through the loss."""
        return []

    # --- cases -------------------------------------------------------------------------------------------------------

    def drawn(self, subject: Subject, **shape: Any) -> Picked[Any]:
        """Cases of the shape asked for."""
        raise NotImplementedError

    def cases(self, **shape: Any) -> Cases:
        return lambda s: self.drawn(s, **shape)

    def dressed(self, subject: Subject, filler: Sequence[float] = (), **shape: Any) -> Picked[DressedCase]:
        """Cases with numbers under the mask: `filler`, or finite ones with which the loss of their cell is finite."""
        drawn = self.drawn(subject, **shape)
        return under_mask(drawn, filler or _garbage(subject), subject.dtype, tables=self.tables)

    def of_any_size(self, subject: Subject, **shape: Any) -> Picked[DressedCase]:
        """The same with finite numbers of any size that the dtype holds."""
        largest = float(torch.finfo(subject.dtype).max)
        huge = [sign * x for x in HUGE if x < largest for sign in (1, -1)]
        filler = (*_garbage(subject)[::2], 0.0, *huge)
        return under_mask(self.drawn(subject, **shape), filler, subject.dtype, columns=2, tables=self.tables)

    # --- truth -------------------------------------------------------------------------------------------------------

    def value(self, case: Any, count_empty_rows: bool = False) -> float:
        raise NotImplementedError

    def value_budget(self, case: Any, dtype: Any) -> float:
        raise NotImplementedError

    def gradient(self, case: Any, count_empty_rows: bool = False, leaf: str = "") -> list[list[float]]:
        """With respect to one of the leaves; empty: that of the method's row."""
        raise NotImplementedError

    def gradient_budgets(self, case: Any, dtype: Any, leaf: str = "") -> list[list[float]]:
        """Zero where the gradient is exactly zero: under the mask, and where a clip binds."""
        raise NotImplementedError

    def given(self, function: Callable[..., Any], case: Any, count_empty_rows: bool = False) -> Any:
        """What a function of the specification gives for a case: its arguments are tables and options by their
        names."""
        known = {name: getattr(case, name) for name in (*case.TABLES, "action_mask")}
        known |= {**vars(case.options), "count_empty_rows": count_empty_rows}
        return function(**{name: known[name] for name in _parameters(function)})

    def weights(self, case: Any, count_empty_rows: bool = False, aggregation: str = "") -> list[list[float]]:
        """The weight of each token in the aggregate: the case's own, or another."""
        options = case.options
        return rlhf_spec.aggregation.weights(
            case.action_mask,
            aggregation or options.aggregation,
            global_count=options.global_count,
            count_empty_rows=count_empty_rows,
            constant_length=getattr(options, "constant_length", None),
        )

    def count(self, case: Any) -> float:
        """The denominator of the case's aggregate, as the global count of a step that is this batch alone. Sums over
        tokens have none, and are asked with that of the sequences."""
        is_of_tokens = case.options.aggregation == "token-mean"
        return float(sum(case.counts) if is_of_tokens else len(case.action_mask))

    # --- questions ---------------------------------------------------------------------------------------------------

    def call(
        self,
        subject: Subject,
        case: Any,
        *,
        mask_dtype: Any = None,
        recipes: Callable[[], dict[str, str]] = dict,
        about: Any = None,
    ) -> Call:
        """The loss of a case, with a graph to its leaves. `about` is the case without what stands under its mask."""
        given = {name: subject.tensor(getattr(case, name)) for name in case.TABLES}
        for name in self.leaves(subject.adapter):
            given[name].requires_grad_()
        given["action_mask"] = subject.tensor(case.action_mask, mask_dtype)
        given["options"] = case.options
        arguments = tuple(given[name] for name in METHODS[self.method].arguments)
        return Call(self.method, arguments, about=about or case, recipes=recipes)

    def asks_value(
        self, subject: Subject, case: Any, call: Call | None = None, *, counted: bool = False, what: str = "loss"
    ) -> Question:
        """Is the loss that of the formula?"""
        return Question(
            what,
            call or self.call(subject, case),
            self.value(case, counted),
            self.value_budget(case, subject.dtype),
            reading=NUMBER,
            formula=self.formula(counted),
        )

    def asks_whole(self, subject: Subject, case: Any) -> Questions:
        """The value of one call, and its gradients."""
        call = self.call(subject, case)
        yield self.asks_value(subject, case, call)
        yield from self.asks_gradients(subject, case, call)

    def asks_gradients(
        self,
        subject: Subject,
        case: Any,
        call: Call | tuple[Call, ...] | None = None,
        *,
        counted: bool = False,
        reading: Callable[[str], Reading] = gradient_by,
        how: str = "",
        what: str = "",
        leaves: Sequence[str] = (),
    ) -> Iterator[Question]:
        """Is the gradient that of the formula, with respect to each of the leaves? `what` is the name of that with
        respect to the first of them, where it has one of its own; known failures are kept under these names."""
        call = call or self.call(subject, case)
        for leaf in leaves or self.leaves(subject.adapter):
            own = leaf if leaf != METHODS[self.method].leaf else ""
            yield Question(
                what if what and not own else f"gradient with respect to the {_words(leaf)}{how}",
                call,
                self.gradient(case, counted, own),
                self.gradient_budgets(case, subject.dtype, own),
                reading=reading(own),
                formula=self.formula(counted, f"_gradient_of_{own}" if own else "_gradient"),
            )

    def formula(self, counted: bool = False, which: str = "") -> Formula:
        return Formula(f"{METHODS[self.method].formula}{which}", {"count_empty_rows": counted})

    def template(self, function: Any, cases: Cases, *requires: Requirement, effort: int = 1) -> Template:
        return Template(function, self.needs, cases, tuple(requires), effort)


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def every_branch(adapter: Adapter) -> dict[str, Any]:
    """See `Minimised.branches`; half of the cases are the usual ones."""
    offered = aggregations_of("policy-loss", adapter)
    usual = [name for name in offered if name in rlhf_spec.aggregation.MEANS] or list(offered)
    first, *others = adapter.surrogates
    sums = [name for name in offered if name not in usual]
    return {"aggregations": (*usual, *usual, *sums), "surrogates": (*[first] * max(1, len(others)), *others)}


def _words(leaf: str) -> str:
    """What a leaf is called where a number of it is meant."""
    return {"entropies": "entropy"}.get(leaf, f"new {leaf.removesuffix('s').replace('_', '-')}")


@dataclass(frozen=True)
class Loss(Minimised):
    """One of the losses: token by token, then aggregated.

    kind            its chapter
    token, token_gradient               of the three numbers of a token and the options; `token` also gives the numbers
                                        on the way, if it is handed a list for them
    ending                              what the last of these numbers becomes the loss of the token by, in words
    token_budget, gradient_budget       allowances of the two, of the same and the dtype
    """

    kind: str
    token: Callable[..., float]
    token_gradient: Callable[[tuple[float, float, float], Any], float]
    token_budget: Callable[[tuple[float, float, float], Any, Any], float]
    gradient_budget: Callable[[tuple[float, float, float], Any, Any], float]
    ending: str = ""

    def drawn(self, subject: Subject, **shape: Any) -> Picked[LossCase]:
        return loss_cases(subject.adapter, subject.dtype, self.kind, LossShape(**shape))

    def value(self, case: LossCase, count_empty_rows: bool = False) -> float:
        weights = self.weights(case, count_empty_rows)
        return math.fsum(weights[i][j] * self.token(case.token(i, j), case.options) for i, j in case.actions)

    def gradient(self, case: LossCase, count_empty_rows: bool = False, leaf: str = "") -> list[list[float]]:
        weights = self.weights(case, count_empty_rows)
        return [
            [
                weights[i][j] * self.token_gradient(case.token(i, j), case.options) if m else 0.0
                for j, m in enumerate(row)
            ]
            for i, row in enumerate(case.action_mask)
        ]

    def value_budget(self, case: LossCase, dtype: Any) -> float:
        places, weights = case.actions, self.weights(case)
        losses = [self.token(case.token(i, j), case.options) for i, j in places]
        errors = [self.token_budget(case.token(i, j), case.options, dtype) for i, j in places]
        return budgets.aggregate(losses, errors, [weights[i][j] for i, j in places], dtype)

    def gradient_budgets(self, case: LossCase, dtype: Any, leaf: str = "") -> list[list[float]]:
        weights = self.weights(case)
        return [
            [
                weights[i][j] * self.gradient_budget(case.token(i, j), case.options, dtype)
                if m and self.token_gradient(case.token(i, j), case.options)
                else 0.0
                for j, m in enumerate(row)
            ]
            for i, row in enumerate(case.action_mask)
        ]


def _garbage(subject: Subject) -> tuple[float, ...]:
    return SMALL_GARBAGE if subject.dtype == torch.float16 else GARBAGE


# --- what may be required -------------------------------------------------------------------------------------------


def aggregates(loss: Minimised, *aggregations: str) -> Requirement:
    """One of these is declared for the loss."""

    def missing(adapter: Adapter) -> str | None:
        offered = aggregations_of(loss.kind, adapter)
        return None if any(name in offered for name in aggregations) else f"{aggregations[0]} is not declared"

    return missing


def counts_empty_rows(adapter: Adapter) -> str | None:
    if adapter.count_empty_rows is None:
        return "count_empty_rows is not declared: nothing is promised for a row without actions"
    return None


def has_other_surrogates(adapter: Adapter) -> str | None:
    return None if len(adapter.surrogates) > 1 else "one surrogate is declared: there is no other"


has_global_count = declares("global_count", "global_count is not declared")


# --- templates: aggregation -----------------------------------------------------------------------------------------


def value_of(loss: Minimised, *requires: Requirement, gradient: bool = False, **shape: Any) -> Template:
    """The value of a loss, and where asked its gradient, on cases of a shape."""

    def check(subject: Subject, case: LossCase) -> Questions:
        call = loss.call(subject, case)
        yield loss.asks_value(subject, case, call)
        if gradient:
            yield from loss.asks_gradients(subject, case, call)

    return loss.template(check, loss.cases(**shape), *requires)


def value_of_tokens(loss: Minimised, *requires: Requirement, gradient: bool = False, **shape: Any) -> Template:
    """The same on cases with a single row, in which all aggregations agree: what is at stake is the token."""
    return value_of(loss, *requires, gradient=gradient, single_row=True, **shape)


def gradient_of(loss: Minimised, *requires: Requirement, **shape: Any) -> Template:
    """The gradient of a loss, on cases of a shape."""

    def check(subject: Subject, case: LossCase) -> Questions:
        yield from loss.asks_gradients(subject, case)

    return loss.template(check, loss.cases(**shape), *requires)


def mean(loss: Minimised, aggregation: str) -> Template:
    """The case, and the same with every row repeated."""

    def check(subject: Subject, case: LossCase) -> Questions:
        yield loss.asks_value(subject, case)
        yield asks_long(loss, subject, case)

    cases = loss.cases(unequal_rows=True, square=True, aggregations=(aggregation,))
    return loss.template(check, cases, aggregates(loss, aggregation), effort=2)


def asks_long(loss: Minimised, subject: Subject, case: MaskedCase) -> Question:
    """The same with every row repeated: more actions than small counters and half precision can count."""
    long = case.repeated(REPEATED)

    def recipes() -> dict[str, str]:
        names = METHODS[loss.method].arguments
        given = zip(names, loss.call(subject, case).given[:-1], strict=False)
        return {name: f"{source(small)}.repeat(1, {REPEATED})" for name, small in given}

    return loss.asks_value(subject, long, loss.call(subject, long, recipes=recipes))


def micro_batches(loss: Minimised, *requires: Requirement, **shape: Any) -> Template:
    def check(subject: Subject, case: SplitCase) -> Questions:
        count = loss.count(case.case)
        for given in (count, int(count), 1):  # as a float, as a whole number, and the least that there is
            yield from asks(subject, case, given)
        turned = case.case.with_options(**loss.next_aggregation(subject.adapter, case.case))
        if turned != case.case:
            yield from asks(subject, SplitCase(turned, case.cuts), loss.count(turned))

    def asks(subject: Subject, case: SplitCase, count: float) -> Questions:
        whole = case.case.with_options(global_count=count)
        parts = [part.with_options(global_count=count) for part in case.parts]
        calls = tuple(loss.call(subject, part) for part in parts)
        yield Question(
            f"sum of the losses of {len(parts)} micro-batches with the global count {count!r}",
            calls,
            loss.value(whole),
            sum(loss.value_budget(part, subject.dtype) for part in parts),
            reading=SUM,
            formula=loss.formula(),
        )
        yield from loss.asks_gradients(subject, whole, calls, reading=gradients_by)

    def cases(subject: Subject) -> Picked[SplitCase]:
        branches = {name: tuple(dict.fromkeys(some)) for name, some in loss.branches(subject.adapter).items()}
        return split(loss.drawn(subject, **{**branches, "unequal_rows": True, "min_rows": 2, **shape}))

    return loss.template(check, cases, has_global_count, *requires, effort=2)


def empty_rows_counted(loss: Minimised) -> Template:
    def check(subject: Subject, case: LossCase) -> Questions:
        counted = bool(subject.adapter.count_empty_rows)
        yield loss.asks_value(subject, case, counted=counted, what=f"{case.options.aggregation} with an empty row")

    of_sequences = ("sequence-mean", "constant-length")
    cases = loss.cases(empty_row=True, aggregations=of_sequences)
    return loss.template(check, cases, counts_empty_rows, aggregates(loss, *of_sequences))


# --- templates: the mask --------------------------------------------------------------------------------------------


def mask(loss: Minimised, *requires: Requirement, **shape: Any) -> Template:
    def check(subject: Subject, case: DressedCase) -> Questions:
        turned = case.with_options(**loss.next_aggregation(subject.adapter, case.case))
        cases = [case] if turned == case else [case, turned]
        if loss.takes_global_count(subject.adapter):  # with another denominator, as trainers ask in micro-batches
            cases[1:] = [turned.with_options(global_count=loss.count(turned.case))]
        for one in cases:  # a quantity of its own, so that a trainer that only multiplies by the mask is not let off
            yield from _dressed(loss, subject, one.tamed(max(_garbage(subject))), USUAL)
            yield from _dressed(loss, subject, one)

    cases = lambda s: loss.of_any_size(s, dual=None, **{**loss.branches(s.adapter), **shape})  # noqa: E731
    return loss.template(check, cases, *requires)


def nan_under_mask(loss: Minimised, *requires: Requirement, **shape: Any) -> Template:
    cases = lambda s: loss.dressed(s, POISON, dual=None, **{**loss.branches(s.adapter), **shape})  # noqa: E731
    return loss.template(lambda s, case: _dressed(loss, s, case), cases, *requires)


def _dressed(loss: Minimised, subject: Subject, case: DressedCase, how: str = "") -> Questions:
    call = loss.call(subject, case.dressed, about=case.case)
    yield loss.asks_value(subject, case.case, call, what=f"loss{how}")
    yield from loss.asks_gradients(subject, case.case, call, how=how)


def empty_row(loss: Minimised, *requires: Requirement, **shape: Any) -> Template:
    def check(subject: Subject, case: LossCase) -> Questions:
        """Whether the row counts in a sequence-mean is a convention: either is right here."""
        call = loss.call(subject, case)
        answered = yield call
        counted = _counted_like(loss, subject, case, answered)
        yield loss.asks_value(subject, case, call, counted=counted, what="loss with a row that has no action")
        how, what = ", with a row that has no action", "gradient with a row that has no action"
        yield from loss.asks_gradients(subject, case, call, counted=counted, how=how, what=what)

    cases = lambda s: loss.drawn(s, **{**loss.branches(s.adapter), "empty_row": True, **shape})  # noqa: E731
    return loss.template(check, cases, *requires)


def _counted_like(loss: Minimised, subject: Subject, case: LossCase, answered: Any) -> bool:
    """Which of the two conventions for an empty row the answer is nearer to, by its value and its gradient."""
    value, gradient = NUMBER.numbers(subject, [answered]), GRADIENT.numbers(subject, [answered])

    def distance(counted: bool) -> float:
        gaps = [abs(loss.value(case, counted) - value)]
        for truth, row in zip(loss.gradient(case, counted), gradient, strict=True):
            gaps += [abs(a - b) for a, b in zip(truth, row, strict=True)]
        return sum(gaps)

    return distance(True) < distance(False)


def emptied(case: LossCase) -> LossCase:
    """The case without any action."""
    return case.changed(action_mask=tuple((0,) * len(row) for row in case.action_mask))


def empty_batch(loss: Minimised) -> Template:
    def check(subject: Subject, case: LossCase) -> Questions:
        nothing = emptied(case)
        for one in (nothing, *loss.also(subject.adapter, nothing)):
            yield from asks_nothing(subject, one)
        if loss.takes_global_count(subject.adapter):  # a micro-batch that has none, of a step that has
            yield from asks_nothing(subject, nothing.with_options(global_count=loss.count(case)))

    def asks_nothing(subject: Subject, case: LossCase) -> Questions:
        call = loss.call(subject, case)
        yield Question("loss of a batch without any action", call, 0.0, reading=NUMBER, formula=loss.formula())
        how, what = ", of a batch without any action", "gradient of a batch without any action"
        yield from loss.asks_gradients(subject, case, call, how=how, what=what)
        yield has_graph((yield call), "graph of the loss of a batch without any action")

    return loss.template(check, lambda s: loss.drawn(s, **loss.branches(s.adapter)))


def mask_dtype(loss: Minimised) -> Template:
    def check(subject: Subject, case: LossCase) -> Questions:
        for dtype in (torch.bool, torch.int64, torch.int32, torch.float32):
            call = loss.call(subject, case, mask_dtype=dtype)
            yield loss.asks_value(subject, case, call, what=f"loss with a mask of {dtype}")

    return loss.template(check, loss.cases())


# --- templates: the graph, and what changes nothing -----------------------------------------------------------------


def has_graph(answered: Any, what: str) -> Fact:
    return Fact(
        getattr(answered.value, "loss", answered.value).requires_grad,
        what,
        expected="one that leads back to the new log-probs or values",
        actual="none: the loss is detached",
    )


def scalar(loss: Minimised) -> Template:
    def check(subject: Subject, case: LossCase) -> Questions:
        for one in (case, *loss.also(subject.adapter, case)):
            call = loss.call(subject, one)
            answered = yield call
            yield Question("number of axes of the loss", call, 0.0, reading=_AXES)
            yield has_graph(answered, "graph of the loss")

    return loss.template(check, loss.cases())


_AXES = selected(lambda value: float(getattr(value, "loss", value).ndim))


def padding_invariance(loss: Minimised) -> Template:
    def check(subject: Subject, case: WidenedCase) -> Questions:
        wide = widened(case.case, case.columns, left=case.left)
        without, call = loss.call(subject, case.case), loss.call(subject, wide)
        yield without
        yield Question(
            f"loss with {case.columns} more masked columns, against without",
            call,
            Against((without,), NUMBER),
            2 * loss.value_budget(case.case, subject.dtype),
            reading=NUMBER,
            formula=loss.formula(),
        )
        yield from loss.asks_gradients(subject, wide, call)

    def cases(subject: Subject) -> Picked[WidenedCase]:
        narrow = loss.drawn(subject, dual=None)
        return narrow.with_more(2, lambda case, picks: WidenedCase(case, 1 + picks.below(3), picks.chance(1, 2)))

    return loss.template(check, cases)


def batch_order(loss: Minimised) -> Template:
    def check(subject: Subject, case: LossCase) -> Questions:
        backwards = case.rows(range(len(case.action_mask) - 1, -1, -1))
        there, back = loss.call(subject, case), loss.call(subject, backwards)
        yield there
        yield Question(
            "loss of the rows in reverse order",
            back,
            Against((there,), NUMBER),
            2 * loss.value_budget(case, subject.dtype),
            reading=NUMBER,
            formula=loss.formula(),
        )
        yield from loss.asks_gradients(subject, case, back, reading=backwards_by)

    return loss.template(check, loss.cases(dual=None, min_rows=2))


# --- templates: side effects ----------------------------------------------------------------------------------------


def inputs_unwritten(loss: Minimised) -> Template:
    return _side_effects.inputs_unwritten(_asked_once(loss), loss.needs, _dressed_somehow(loss))


def side_effects(loss: Minimised) -> Template:
    return _side_effects.side_effects(_asked_once(loss), loss.needs, _dressed_somehow(loss))


def _asked_once(loss: Minimised) -> _side_effects.Calls:
    """The loss and its gradient, of one call for each way through it."""

    def calls(subject: Subject, case: DressedCase) -> list[tuple[Call, Reading]]:
        ways = [case, *loss.also(subject.adapter, case)]
        made = [loss.call(subject, way.dressed, about=way.case) for way in ways]
        return [(call, reading) for call in made for reading in (NUMBER, GRADIENT)]

    return calls


def _dressed_somehow(loss: Minimised) -> Cases:
    return lambda s: loss.dressed(s, dual=None)

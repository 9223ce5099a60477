"""What a check asks, as data: which method is given what, how numbers are read off answers, what they should be.

A check is a generator of questions; the judge asks them of the subject and compares:

    @check("policy-loss.clip", needs=("policy_loss",), cases=...)
    def clip(subject, case):
        yield Question("loss", call(subject, case), expected=..., allowed=...)

Diagnoses, steps, scripts and pictures read the same questions, and so know no check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS

if TYPE_CHECKING:
    from rlhf_conformance.oracle.probes import Probe

Place = Callable[[tuple[int, ...]], str]
COMPARED = "the numbers that were compared, in the order of PLACES"
"""What a candidate in a script returns where no formula says it."""


class NotReturned(Exception):
    """The adapter has the method, but its trainer does not make the part that the clause is about."""


# --- calls ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A model among the arguments of a call, loaded when the call is made and remembered within the clause.

    fresh       it is loaded anew, whoever has loaded it before
    dtype       the name of the dtype that it is loaded in; None: the one of the run
    training    the mode that it is switched to first; None: as it was loaded
    """

    load: str
    probe: Probe
    temperature: float = 1.0
    normalize: bool = False
    training: bool | None = None
    fresh: bool = False
    dtype: str | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """A method of the adapter and what it is given, in the order of its signature.

    Two questions about one and the same call are about one answer: the method is called once.

    copies      the adapter gets copies, so that it cannot change what the suite has
    about       the case that is presented to a model; None where the arguments are all there is
    recipes     makes the source of arguments that are too large to be written out, by their names
    grad        gradients are switched on while the method runs
    seed        the random seed that is set before the call; None: none is
    scored      the mean and the std by which right answers are normalized
    watches_mode    a switch of the model between train and eval mode is a disturbance, and is undone
    """

    method: str
    given: tuple[Any, ...]
    copies: bool = True
    about: Any = None
    recipes: Callable[[], Mapping[str, str]] = dict
    grad: bool = True
    seed: int | None = None
    scored: tuple[float, float] = (0.0, 1.0)
    watches_mode: bool = False

    def argument(self, name: str) -> Any:
        return self.given[METHODS[self.method].arguments.index(name)]


# --- answers ------------------------------------------------------------------------------------------------------


class Gradients(Protocol):
    """What gives the gradients of an answer: the subject."""

    def gradients(self, method: str, total: Any, leaves: Any) -> Any: ...


@dataclass
class CallRecord:
    """What a call did besides answering.

    written     names of the arguments, or of parts of them, that it wrote to; `left` is what it left of each argument
    disturbed   what it changed of the state of the process
    """

    written: list[str] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)
    left: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Answered:
    """What came of a call.

    given   its arguments, in the order of the method's signature, as the suite has them (the adapter had copies)
    value   the answer as the checks see it; `raw` as the adapter returned it
    record  what it did besides
    """

    method: str
    given: tuple[Any, ...]
    value: Any
    raw: Any
    record: CallRecord
    call: Call | None = None
    _gradients: dict[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> Any:
        """The case that was presented to a model, or that a formula was asked about."""
        return self.call.about if self.call is not None else None

    @property
    def recipes(self) -> Mapping[str, str]:
        return self.call.recipes() if self.call is not None else {}

    def argument(self, name: str) -> Any:
        return self.given[METHODS[self.method].arguments.index(name)]

    def gradient(self, subject: Gradients, weights: Any = None, leaf: str = "") -> Any:
        """The gradient of the answer, or of its sum with these weights, with respect to one of the call's leaves, as
        nested numbers; zeros where there is no graph. An empty `leaf` is that of the method's row.

        A graph is gone through once: the gradients of all arguments that have one are taken together."""
        leaf = leaf or METHODS[self.method].leaf
        if leaf not in self._gradients:
            answer = main(self)
            if answer.element_size() == 1:  # float8 has no sum
                answer = answer.double()
            total = answer.sum() if weights is None else (answer * weights).sum()
            named = METHODS[self.method].named(self.given)
            leaves = {leaf: named[leaf]} | {
                name: x for name, x in named.items() if isinstance(x, torch.Tensor) and x.requires_grad
            }
            found = subject.gradients(self.method, total, list(leaves.values()))
            self._gradients.update(zip(leaves, (x.double().tolist() for x in found), strict=True))
        return self._gradients[leaf]


def main(answered: Answered) -> Any:
    """The part of an answer that is returned where only one is."""
    bare = getattr(METHODS[answered.method].answer, "bare", "")
    return getattr(answered.value, bare) if bare else answered.value


# --- readings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How numbers are read off the answers to some calls.

    numbers     (subject, answers) -> nested numbers. Raises NotReturned where the part is None
    source      the same in a script, as the body of `numbers(answers, calls)`, where LEAF stands for the leaf's name;
                `of_formulas` the same of what a formula gives for each call
    wanted      what a candidate in a script returns for this reading; empty: what the method's row says
    field       the field of the answer that is read; empty: the answer itself
    leaf        the argument that gradients are taken with respect to; empty: the one of the method's row
    """

    numbers: Callable[[Any, Sequence[Answered]], Any]
    source: str = "return flat(answers[-1])"
    of_formulas: str = "return flat(answers[-1])"
    wanted: str = ""
    field: str = ""
    leaf: str = ""

    @property
    def is_gradient(self) -> bool:
        """Whether it reads gradients with respect to the leaf of a call."""
        return "LEAF" in self.source


ANSWER = Reading(lambda subject, answers: main(answers[-1]))
"""The last answer itself."""

NUMBER = Reading(
    lambda subject, answers: float(main(answers[-1]).detach()),
    "return [float(answers[-1])]",
    "return [answers[-1]]",
)
"""The last answer as one number."""

SUM = Reading(
    lambda subject, answers: math.fsum(float(main(a).detach()) for a in answers),
    "return [sum(float(answer) for answer in answers)]",
    "return [sum(answers)]",
)
"""The sum of scalar answers, as those of micro-batches are."""


def part(name: str, select: Callable[[Any], Any] = lambda value: value) -> Reading:
    """A field of the last answer, or what `select` takes of it."""

    return Reading(lambda subject, answers: select(_returned(answers[-1], name)), wanted=COMPARED, field=name)


def metric(name: str) -> Reading:
    """A number that is returned beside the last answer."""

    def numbers(subject: Any, answers: Sequence[Answered]) -> float:
        value = _returned(answers[-1], name)
        return float(value.detach() if hasattr(value, "detach") else value)

    return Reading(
        numbers, "return [float(answers[-1])]", "return [answers[-1]]", wanted=f"its {name}, a number", field=name
    )


def _returned(answered: Answered, name: str) -> Any:
    """A field of an answer. Raises NotReturned where it is None."""
    value = getattr(answered.value, name)
    if value is None:
        raise NotReturned(f"{answered.method} returns no {name}")
    return value


def known(numbers: Any) -> Reading:
    """Numbers that the check has worked out itself from the answers."""
    return Reading(lambda subject, answers: numbers, wanted=COMPARED)


def selected(select: Callable[[Any], Any]) -> Reading:
    """What `select` takes of the last answer."""
    return Reading(lambda subject, answers: select(answers[-1].value), wanted=COMPARED)


@cache
def gradient_by(leaf: str = "") -> Reading:
    """The gradient of the last answer with respect to an argument of its call."""
    return Reading(
        lambda subject, answers: answers[-1].gradient(subject, leaf=leaf),
        "return flat(gradient(answers[-1], calls[-1][LEAF]))",
        leaf=leaf,
    )


@cache
def gradients_by(leaf: str = "") -> Reading:
    """The rows of the gradients of all answers, one after another."""
    return Reading(
        lambda subject, answers: [row for a in answers for row in a.gradient(subject, leaf=leaf)],
        "return flat([gradient(answer, call[LEAF]) for answer, call in zip(answers, calls)])",
        "return flat(answers)",
        leaf=leaf,
    )


@cache
def backwards_by(leaf: str = "") -> Reading:
    """The gradient's rows in reverse order, where those of the call were given in reverse order."""
    return Reading(
        lambda subject, answers: answers[-1].gradient(subject, leaf=leaf)[::-1],
        "return flat(gradient(answers[-1], calls[-1][LEAF]).flip(0))  # the rows were given in reverse order",
        "return flat(answers[-1][::-1])",
        leaf=leaf,
    )


GRADIENT = gradient_by("")
"""With respect to the leaf of the method's row."""

GRADED = Reading(
    lambda subject, answers: answers[-1].gradient(subject, _steps(main(answers[-1]))),
    "# The gradient of the sum of 1, 2, 3, ... times the answers.\n"
    "weights = torch.arange(1.0, answers[-1].numel() + 1).reshape(answers[-1].shape)\n"
    "return flat(gradient((answers[-1] * weights).sum(), calls[-1][LEAF]))",
)
"""The gradient of 1, 2, 3, ... times the last answer's numbers: what lands at another place is seen."""


def _steps(answer: Any) -> Any:
    return torch.arange(1.0, answer.numel() + 1, device=answer.device).reshape(answer.shape)


# --- questions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Formula:
    """The function of the specification that gives the expected numbers of a call, as "module.function".

    options     keyword arguments beside those of the call
    """

    function: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Against:
    """Expected is what the adapter itself answers to other calls."""

    calls: tuple[Call, ...]
    reading: Reading = ANSWER


def by_axis(*names: str) -> Place:
    """Places by the names of the axes: ("sample", "action") makes "sample 1, action 2" of (1, 2)."""
    return lambda index: ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False))


row_column = by_axis("row", "column", "entry")
sample_action = by_axis("sample", "action")
sample_position = by_axis("sample", "position", "entry")


def pack_position(index: tuple[int, ...]) -> str:
    return f"position {index[0]} of the pack" if index else ""


@dataclass(frozen=True)
class Question:
    """Numbers that are compared at once.

    what        the quantity, in words
    calls       one call, or several whose answers belong together
    expected    (ragged) nested numbers, or `Against`
    allowed     how far each number may be off: one for all, one for each sample, or nested alike; 0: not at all
    formula     what gives the expected numbers; None: no single formula
    beside      what else belongs to the question, by name: plain data for a script
    hint        what can be said of wrong numbers once they are seen, with the evidence in them; empty for nothing
    quantity    what failures are told apart by, where `what` says more than that; empty: `what`
    """

    what: str
    calls: Call | tuple[Call, ...]
    expected: Any
    allowed: Any = 0.0
    reading: Reading = ANSWER
    place: Place = row_column
    formula: Formula | None = None
    beside: Mapping[str, Any] = field(default_factory=dict)
    hint: Callable[[Any], str] | None = None
    quantity: str = ""

    @property
    def asked(self) -> tuple[Call, ...]:
        return self.calls if isinstance(self.calls, tuple) else (self.calls,)


@dataclass(frozen=True)
class Fact:
    """A plain fact about the last answer, which is no number."""

    holds: bool
    what: str
    expected: str
    actual: str
    place: str = ""


@dataclass(frozen=True)
class Refused:
    """The adapter has to raise where it is asked this: an answer breaks the clause."""

    call: Call
    what: str
    actual: str


@dataclass(frozen=True)
class Attempt:
    """A call that an honest adapter may refuse, by an error or by an answer that does not fit what it was given: the
    reply is what it answered, or None where it refused."""

    call: Call


@dataclass(frozen=True)
class Shaped:
    """An answer of another kind or shape breaks the clause here, and is no error."""

    call: Call
    what: str
    expected: str

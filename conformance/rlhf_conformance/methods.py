"""The methods of an adapter and what it declares, one row each: everything that lists either reads these rows.

A chapter's interface is a class whose methods are not implemented and whose attributes have their defaults:

    class Critic(Models):
        critic_normalization: Annotated[bool, "True if values can be normalized"] = False

        @method(Actions(), model="load_critic")
        def action_values(self, critic, batch): ...

The decorator's arguments and the signature make up a method's row, the annotation and the default a declaration's.
This module imports no torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

Stub = TypeVar("Stub", bound=Callable[..., Any])
_ROW = "__rlhf_conformance_row__"


@dataclass(frozen=True)
class Readout:
    """Where the numbers of a method's answer stand in the outputs of a model that runs each sequence alone.

    word        what one of its numbers is called
    head        the outputs are scores (L, 1) of a scalar head; else logits (L, V)
    table       outputs and temperature -> what may be read at each position, (L, V) or (L, 1)
    due         (length of the prompt, length of the sequence) -> the positions at which its answers are read
    labeled    the number is one of a token: of the one behind its position
    index       what the answers of a sample are counted by; empty for one answer in all
    widen       the allowance in those of a model's output
    entry       of the answers to a position, the one that is looked at; None: there is one alone
    whole       the method that shows the outputs at all positions; empty: none does
    """

    word: str
    head: bool
    table: Callable[[Any, float], Any]
    due: Callable[[int, int], range]
    labeled: bool = False
    index: str = "action"
    widen: float = 1.0
    entry: int | None = None
    whole: str = ""

    def places(self, sample: Any) -> Sequence[int]:
        """The positions at which the answers of a sample are read."""
        due = self.due(len(sample.prompt), len(sample))
        return sample.of_actions(due) if self.index == "action" else due


def states(prompt: int, length: int) -> range:
    """The positions that predict the actions."""
    return range(prompt - 1, length - 1)


def every_position(prompt: int, length: int) -> range:
    return range(length)


def as_it_is(outputs: Any, temperature: float) -> Any:
    return outputs


@dataclass(frozen=True)
class Method:
    """What the suite knows about one method of an adapter.

    stub        the function of the interface: its name, its signature and its documentation
    answer      the kind and the shape of what it returns (`judging.wiring`); None: nothing that is judged
    loads       it makes a model, which later calls are given
    prepares    it answers nothing that is judged, but prepares what later calls are given
    model       the method that loads its first argument; empty where that is no model
    leaf        the argument that gradients are taken with respect to; empty where there is none
    formula     the function of the specification that says what it returns, by its full name; empty: none alone does
    readout     where in a model's outputs its numbers are read; None: they are no model's
    returns     what a candidate in a script returns, in words
    optional    it works as it is: overriding it provides nothing
    """

    stub: Callable[..., Any] = field(repr=False)
    answer: Any = None
    loads: bool = False
    prepares: bool = False
    model: str = ""
    leaf: str = ""
    formula: str = ""
    readout: Readout | None = None
    returns: str = ""
    optional: bool = False

    @property
    def name(self) -> str:
        return self.stub.__name__

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The names of what it is given."""
        return tuple(inspect.signature(self.stub).parameters)[1:]

    @cached_property
    def extras(self) -> tuple[str, ...]:
        """Those of its arguments, at the end, that have a default: given by name, to adapters that take them."""
        parameters = list(inspect.signature(self.stub).parameters.values())[1:]
        return tuple(p.name for p in parameters if p.default is not p.empty)

    def named(self, given: Sequence[Any]) -> dict[str, Any]:
        """What it is given, by name; extras may be missing. Raises ValueError where it is too little or too much."""
        least = len(self.arguments) - len(self.extras)
        if not least <= len(given) <= len(self.arguments):
            raise ValueError(f"{self.name} takes {', '.join(self.arguments)}, and is given {len(given)} arguments")
        return dict(zip(self.arguments, given, strict=False))

    @property
    def concerns_models(self) -> bool:
        """Whether it makes a model, prepares one, or is given one."""
        return bool(self.loads or self.prepares or self.model or "model" in self.arguments)


def method(answer: Any = None, **row: Any) -> Callable[[Stub], Stub]:
    """Make a method of an interface one of the adapter's; see `Method` for the arguments."""

    def register(stub: Stub) -> Stub:
        setattr(stub, _ROW, Method(stub, answer, **row))
        return stub

    return register


@dataclass(frozen=True)
class OneOf:
    """A declaration that holds one of these values."""

    choices: Sequence[Any]


@dataclass(frozen=True)
class SomeOf:
    """A declaration that holds a tuple with at least one entry, each of these values; of any strings where empty."""

    choices: Sequence[Any] = ()


@dataclass(frozen=True)
class AtLeast:
    """A declaration that holds a finite number, this one or a larger one, or None where that is allowed."""

    least: float
    or_none: bool = False


@dataclass(frozen=True)
class Declaration:
    """One class attribute by which an adapter says what its trainer does by convention.

    wanted      `OneOf`, `SomeOf`, `AtLeast`, or None for True and False
    says        what it means, for the documentation
    """

    name: str
    default: Any
    wanted: OneOf | SomeOf | AtLeast | None
    says: str

    def checked(self, value: Any, owner: str) -> Any:
        """The value, a sequence as a tuple. Raises DeclarationError with the attribute, the value and the choices."""
        label = f"{owner}.{self.name} = {value!r}"
        if self.wanted is None:
            if not isinstance(value, bool):
                raise DeclarationError(f"{label}: wanted True or False")
            return value
        if isinstance(self.wanted, AtLeast):
            if value is None and self.wanted.or_none:
                return value
            if type(value) not in (int, float) or not self.wanted.least <= value < math.inf:
                none = ", or None" if self.wanted.or_none else ""
                raise DeclarationError(f"{label}: wanted a number, at least {self.wanted.least:g}{none}")
            return value
        if isinstance(self.wanted, SomeOf):
            if not isinstance(value, list | tuple) or not value:
                raise DeclarationError(f"{label}: wanted a tuple with at least one entry, as ({value!r},)")
            value = tuple(value)
        for entry in value if isinstance(self.wanted, SomeOf) else (value,):
            if self.wanted.choices and entry not in self.wanted.choices:
                choices = ", ".join(repr(choice) for choice in self.wanted.choices)
                raise DeclarationError(f"{label}: {entry!r} is not one of {choices}")
        return value


class DeclarationError(ValueError):
    """A class attribute of an adapter holds something that it may not."""


def methods_of(interface: type) -> Iterator[Method]:
    """The rows of an interface: its own, then those of the interfaces that it stands on."""
    for kind in interface.__mro__:
        for value in vars(kind).values():
            row = getattr(value, _ROW, None)
            if row is not None:
                yield row


def declarations_of(interface: type) -> Iterator[Declaration]:
    """The declarations of an interface, its own and those of the interfaces that it stands on."""
    hints = get_type_hints(interface, include_extras=True)
    for name, hint in hints.items():
        if get_origin(hint) is not Annotated:
            continue
        *wanted, says = get_args(hint)[1:]
        yield Declaration(name, getattr(interface, name), wanted[0] if wanted else None, says)


def by_name(rows: Iterator[Any]) -> Mapping[str, Any]:
    """Rows by their names, each once: several interfaces stand on the same one."""
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(row.name, row)
    return found

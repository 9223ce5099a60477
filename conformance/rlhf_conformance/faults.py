"""Faults: adapters that lie in one way each, on top of the reference. The suite is judged by whether it catches them.

A fault overrides one method of the reference's adapter. Its docstring is the lie, in one line; the decorator names the
clause that must catch it, the known bug that it re-enacts, and what else may fail along with it:

    @fault("critic.state-before", bug="critic-values-shifted", also=("packing.critic",))
    class CriticValuesShifted(Reference):
        "Values are read one position too early: V[P-2 : L-2]."

        def action_values(self, critic, batch): ...

The class name in kebab-case is the fault's name: `rlhf-conformance check fault:critic-values-shifted`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from rlhf_conformance import chapters
from rlhf_conformance.adapter import DECLARATIONS, METHODS, Adapter

Kind = TypeVar("Kind", bound=type[Adapter])


@dataclass(frozen=True)
class Fault:
    """One liar.

    name    kebab-case, as on the command line after "fault:"
    clause  the slug that must catch it
    bug     id of the known bug that it re-enacts, or ""
    also    slugs, or prefixes of slugs, that may fail along with it: the same quantity seen from another chapter
    """

    name: str
    clause: str
    bug: str
    also: tuple[str, ...]
    adapter: type[Adapter]

    @property
    def lie(self) -> str:
        """What it does wrong, in a line."""
        return (self.adapter.__doc__ or "").strip()

    def may_fail(self, slug: str) -> bool:
        """Whether this fault explains a failure of `slug`: its own chapter, or what `also` names."""
        return slug.startswith((self.clause.split(".")[0] + ".", *self.also))


_REGISTRY: dict[str, Fault] = {}


def kebab(name: str) -> str:
    """CriticValuesShifted -> critic-values-shifted"""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def fault(clause: str, *, bug: str = "", also: tuple[str, ...] = ()) -> Callable[[Kind], Kind]:
    """Register a liar."""

    def register(adapter: Kind) -> Kind:
        entry = Fault(kebab(adapter.__name__), clause, bug, also, adapter)
        if entry.name in _REGISTRY:
            raise ValueError(f"two faults are called {entry.name}")
        adapter.name = f"fault:{entry.name}"
        _REGISTRY[entry.name] = entry
        return adapter

    return register


@cache
def faults() -> Mapping[str, Fault]:
    """All faults by name, in the order of their chapters, whichever of them was imported first."""
    place = {module.__name__: i for i, module in enumerate(chapters.modules("faults"))}
    known = sorted(_REGISTRY.items(), key=lambda row: place.get(row[1].adapter.__module__, len(place)))
    return dict(known)


@cache
def changed(kind: type[Adapter]) -> frozenset[str]:
    """The methods that a variant of the reference may answer otherwise than the reference does.

    A variant that changes something which several methods use (a helper, how models are loaded) may change all of them:
    every method about models, or every formula if it changes formulas alone. What it does when it is made is such a
    thing. A helper that the reference does not have is used by the variant's own methods alone. A declaration changes
    no answer: it says what is asked; and a method that it does without answers nothing.
    """
    from rlhf_conformance.adapters.reference import Reference

    bases = kind.__mro__[: kind.__mro__.index(Reference)]
    names = {name for base in bases for name in vars(base) if not name.startswith("__") or name == "__init__"}
    missing = {name for name in METHODS if getattr(kind, name) is getattr(Adapter, name)}
    own = {name for name in names if hasattr(Reference, name)} - {"name", *DECLARATIONS} - missing
    methods = own & set(METHODS)
    if own == methods and not any(METHODS[name].optional for name in methods):
        return frozenset(methods)
    of_models = {name for name, row in METHODS.items() if row.concerns_models}
    if methods and not methods & of_models:
        return frozenset(set(METHODS) - of_models)
    return frozenset(methods | of_models)

"""The adapter: how a trainer is shown to the suite.

Subclass `Adapter`, override the methods for what your trainer has, and declare its conventions as class attributes.
A method that is not overridden is reported as "not provided"; nothing else has to be written.

    class MyTrainer(Adapter):
        aggregations = ("token-mean",)

        def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
            loss_fn = my_trainer.PolicyLoss(options.clip_eps_low, options.clip_eps_high)
            return loss_fn(log_probs, old_log_probs, advantages, action_mask)

Call your trainer, do not re-implement it: what the adapter computes itself is not judged in your trainer.

What may be overridden and declared stands in `interface.py` of each chapter, and in the guide to writing an adapter.
This module imports no torch, so that `rlhf-conformance list` is instant.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from rlhf_conformance import chapters
from rlhf_conformance.methods import Declaration, DeclarationError, Method, by_name, declarations_of, methods_of

__all__ = [
    "DECLARATIONS",
    "METHODS",
    "Adapter",
    "DeclarationError",
    "declarations",
    "provided",
    "relies_on",
    "takes",
]

_INTERFACES = chapters.interfaces()


class Adapter(*_INTERFACES):  # type: ignore[misc]
    """One trainer, in one mode. Modes (packing, LoRA, attention implementation) are constructor keyword arguments;
    a method that a mode lacks is None on the instance.

    Class attributes declare what the trainer does by convention; strategies draw only what is declared. The methods of
    a chapter that is not overridden raise NotImplementedError, and are never called.

    name    shown in reports; the class name if empty
    """

    name: str = ""


METHODS: Mapping[str, Method] = by_name(row for interface in _INTERFACES for row in methods_of(interface))
"""The rows of all methods by name. Those that are `optional` work as they are."""

DECLARATIONS: Mapping[str, Declaration] = by_name(row for i in _INTERFACES for row in declarations_of(i))
"""The rows of all attributes by which an adapter declares something, by name."""


def provided(adapter: Adapter) -> tuple[str, ...]:
    """The methods that the adapter overrides, in the order of METHODS, without those that are None in its mode."""
    kind = type(adapter)
    return tuple(
        name
        for name, row in METHODS.items()
        if not row.optional
        and getattr(kind, name, None) is not getattr(Adapter, name)
        and vars(adapter).get(name, kind) is not None
    )


def takes(adapter: Adapter, method: str, extra: str) -> bool:
    """Whether the adapter's method has a parameter for one of the method's extras, by its name."""
    return extra in inspect.signature(getattr(adapter, method)).parameters


def relies_on(adapter: Adapter, method: str, extra: str) -> bool:
    """Whether it has to be given it: the parameter has no default."""
    return takes(adapter, method, extra) and (
        inspect.signature(getattr(adapter, method)).parameters[extra].default is inspect.Parameter.empty
    )


def declarations(adapter: Adapter) -> dict[str, Any]:
    """What the adapter declares, checked. Raises DeclarationError with the attribute, its value and the choices."""
    owner = type(adapter).__name__
    return {name: row.checked(getattr(adapter, name), owner) for name, row in DECLARATIONS.items()}


def __getattr__(name: str) -> Any:
    """The classes of arguments and answers stood here before they stood with their chapters: adapters that import them
    from here are read as before."""
    for interface in _INTERFACES:
        found = vars(sys.modules[interface.__module__]).get(name)
        if isinstance(found, type) and found.__module__ == interface.__module__:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

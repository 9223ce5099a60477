"""Conventions that a trainer may follow without its adapter declaring them: the reference, doing the other thing.

The rows stand in the folders of the chapters, in a tuple `CONVENTIONS` of their modules `conventions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from rlhf_conformance import chapters
from rlhf_conformance.adapter import Adapter


@dataclass(frozen=True)
class Convention:
    """A convention, and the reference that follows it.

    name        as the user would declare it
    declared    what an adapter declares that does not follow it, as words; None where it may well follow it
    methods     those that it concerns, where the reference follows it as it is
    """

    name: str
    declared: Callable[[Adapter], str | None]
    adapter: type[Adapter]
    methods: tuple[str, ...] = ()


@cache
def conventions() -> tuple[Convention, ...]:
    """All of them, whatever an adapter declares; those that several chapters share stand once."""
    found = [row for module in chapters.modules("conventions") for row in module.CONVENTIONS]
    return tuple(dict.fromkeys(found))


def instead_of(attribute: str, value: Any) -> Callable[[Adapter], str | None]:
    """Words for a declaration of `value`, None for any other."""
    return lambda adapter: f"{attribute} = {value!r}" if getattr(adapter, attribute) == value else None


def other_than(attribute: str, value: Any) -> Callable[[Adapter], str | None]:
    """Words for any declaration but that of `value`."""

    def declared(adapter: Adapter) -> str | None:
        own = getattr(adapter, attribute)
        return None if own == value else f"{attribute} = {own!r}"

    return declared


def flag(attribute: str, adapter: type[Adapter]) -> Convention:
    """The trainer does not do what `attribute` = True says that it does."""
    return Convention(f"{attribute} = False", instead_of(attribute, True), adapter)

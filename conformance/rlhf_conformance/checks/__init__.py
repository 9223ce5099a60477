"""The checks: one function for each clause, tagged with its slug.

A check draws a case, asks the subject, and lets the judge compare with the truth:

    @check("policy-loss.clip", needs=("policy_loss",), cases=...)
    def clip(subject, case, judge): ...

What a clause says is in the specification; here is only how it is tried.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from rlhf_conformance.adapter import Adapter, provided

if TYPE_CHECKING:
    from rlhf_conformance.judge import Judge
    from rlhf_conformance.subject import Subject

Requirement = Callable[[Adapter], "str | None"]
"""A reason why an adapter's declarations rule the check out, or None."""

MODULES = ("log_probs", "sequences", "positions", "packing", "actor", "regression", "models", "losses")


@dataclass(frozen=True)
class Check:
    """How one clause is tried.

    needs       methods that the adapter has to provide
    requires    what it has to declare
    cases       the strategy of its cases, for a subject
    effort      cost of an example, in units of a cheap one: profiles divide their number of examples by it
    single      there is only one case: a single example is enough
    """

    slug: str
    function: Callable[[Subject, Any, Judge], None]
    needs: tuple[str, ...]
    requires: tuple[Requirement, ...]
    cases: Callable[[Subject], st.SearchStrategy[Any]]
    effort: int = 1
    single: bool = False

    def not_provided(self, adapter: Adapter) -> str | None:
        """Why this adapter cannot be asked, or None."""
        missing = [name for name in self.needs if name not in provided(adapter)]
        if missing:
            return f"the adapter has no {' or '.join(missing)}"
        for requirement in self.requires:
            reason = requirement(adapter)
            if reason:
                return reason
        return None


class NotReturned(Exception):
    """The adapter has the method, but its trainer does not make the part that the clause is about."""


_REGISTRY: dict[str, Check] = {}


def check(
    slug: str,
    *,
    needs: Sequence[str],
    cases: Callable[[Subject], st.SearchStrategy[Any]],
    requires: Sequence[Requirement] = (),
    effort: int = 1,
    single: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register the decorated function as the check of a clause."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        if slug in _REGISTRY:
            raise ValueError(f"two checks for the clause {slug}")
        _REGISTRY[slug] = Check(slug, function, tuple(needs), tuple(requires), cases, effort, single)
        return function

    return register


@cache
def checks() -> Mapping[str, Check]:
    """All checks by slug."""
    for name in MODULES:
        importlib.import_module(f"{__name__}.{name}")
    return dict(_REGISTRY)


def declares(attribute: str, reason: str, *, value: Any = True) -> Requirement:
    """The adapter's attribute has this value; otherwise `reason` says what is not declared."""
    return lambda adapter: None if getattr(adapter, attribute) == value else reason


def offers_layout(layouts: Sequence[str]) -> Requirement:
    """The adapter declares at least one of `layouts`."""

    def requirement(adapter: Adapter) -> str | None:
        if set(layouts) & set(adapter.layouts):
            return None
        return f"the adapter declares none of the layouts {', '.join(layouts)}"

    return requirement


def offers_architecture(architecture: str) -> Requirement:
    return lambda adapter: (
        None if architecture in adapter.architectures else f"the adapter does not load {architecture}"
    )

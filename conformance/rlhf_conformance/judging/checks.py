"""The checks: one function for each clause, tagged with its slug.

A check draws a case and yields the questions that it has about it, which the judge asks and compares with the truth:

    @check("policy-loss.clip", needs=("policy_loss",), cases=...)
    def clip(subject, case):
        yield Question(...)

What a clause says is in the specification; here is only how it is tried.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from rlhf_conformance import chapters
from rlhf_conformance.adapter import METHODS, Adapter, provided, takes
from rlhf_conformance.judging.picks import Picked

if TYPE_CHECKING:
    from hypothesis import strategies as st

    from rlhf_conformance.judging.subject import Subject

Questions = Generator[Any, Any, None]
"""What a check yields: questions, calls and facts. It is sent what came of each."""
Function = Callable[..., Questions]
"""(subject, case) -> questions."""
Cases = Callable[["Subject"], "Picked[Any] | st.SearchStrategy[Any]"]
"""The cases of a check, for a subject: read off bytes, or of any strategy of Hypothesis."""
Requirement = Callable[[Adapter], "str | None"]
"""A reason why an adapter's declarations rule the check out, or None."""


@dataclass(frozen=True)
class Check:
    """How one clause is tried.

    needs       methods that the adapter has to provide
    also        methods that are asked about as well, where it provides them
    requires    what it has to declare
    cases       its cases, for a subject
    effort      cost of an example, in units of a cheap one: profiles divide their number of examples by it
    single      there is only one case: a single example is enough
    """

    slug: str
    function: Function
    needs: tuple[str, ...]
    requires: tuple[Requirement, ...]
    cases: Cases
    effort: int = 1
    single: bool = False
    also: tuple[str, ...] = ()

    @property
    def concerns(self) -> set[str]:
        """The methods by whose answers an adapter is judged."""
        return {*self.needs, *self.also}

    @property
    def loads(self) -> bool:
        """Whether models are loaded for it."""
        return any(METHODS[name].loads for name in self.concerns)

    def not_provided(self, adapter: Adapter) -> str | None:
        """Why this adapter cannot be asked, or None."""
        own = provided(adapter)
        missing = [name for name in self.needs if name not in own]
        if missing:
            return f"the adapter has no {' or '.join(missing)}"
        for requirement in self.requires:
            reason = requirement(adapter)
            if reason:
                return reason
        return None


_REGISTRY: dict[str, Check] = {}


def check(
    slug: str,
    *,
    needs: Sequence[str],
    cases: Cases,
    requires: Sequence[Requirement] = (),
    effort: int = 1,
    single: bool = False,
    also: Sequence[str] = (),
) -> Callable[[Function], Function]:
    """Register the decorated function as the check of a clause."""

    def register(function: Function) -> Function:
        if slug in _REGISTRY:
            raise ValueError(f"two checks for the clause {slug}")
        _REGISTRY[slug] = Check(slug, function, tuple(needs), tuple(requires), cases, effort, single, tuple(also))
        return function

    return register


@dataclass(frozen=True)
class Template:
    """A check that several clauses share, without its slug: `use` registers it."""

    function: Function
    needs: tuple[str, ...]
    cases: Cases
    requires: tuple[Requirement, ...] = ()
    effort: int = 1
    single: bool = False
    also: tuple[str, ...] = ()


def use(slug: str, template: Template, *requires: Requirement) -> None:
    """Register a template as the check of a clause; `requires` come on top of its own."""
    given = {name: getattr(template, name) for name in ("needs", "cases", "effort", "single", "also")}
    check(slug, **given, requires=(*template.requires, *requires))(template.function)


@cache
def checks() -> Mapping[str, Check]:
    """All checks by slug."""
    collections.deque(chapters.modules("checks"), maxlen=0)
    return dict(_REGISTRY)


def declares(attribute: str, reason: str, *, value: Any = True) -> Requirement:
    """The adapter's attribute has this value; otherwise `reason` says what is not declared."""
    return lambda adapter: None if getattr(adapter, attribute) == value else reason


def takes_extra(method: str, extra: str, what: str) -> Requirement:
    """The adapter's method has a parameter for this extra; `what` says what it would be given."""
    reason = f"{method} takes no {extra}: with a parameter of that name it is given {what}"
    return lambda adapter: None if takes(adapter, method, extra) else reason


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

"""The formula of a clause, step by step, with the failing case put into it.

How it is shown is a matter of the chapter: the module `steps` in its folder registers a function for each method whose
answers it can show.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from rlhf_conformance import chapters
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.judging.isolation import AdapterError
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.results import Step

Look = Callable[..., "tuple[Step, ...]"]
"""(evidence, comparison) -> steps; the comparison is None where a plain fact broke the clause."""
_REGISTRY: dict[str, Look] = {}
_OF_FACTS: dict[str, Look] = {}
_UNANSWERED: dict[str, Look] = {}


def steps_of(*methods: str, facts: bool = False, unanswered: bool = False) -> Callable[[Look], Look]:
    """Register what shows a comparison of the answers of these methods; with `facts` a plain fact about them, too, and
    with `unanswered` a call that was not answered."""

    def register(look: Look) -> Look:
        for name in methods:
            _REGISTRY[name] = look
            if facts:
                _OF_FACTS[name] = look
            if unanswered:
                _UNANSWERED[name] = look
        return look

    return register


def steps(evidence: Evidence) -> tuple[Step, ...]:
    """Line by line what should come out, and what came as far as the adapter shows it.

    It is about the first comparison that broke. At most one line is marked: the first one whose two numbers lie further
    apart than is allowed. Nothing is shown where the adapter cannot be asked once more.
    """
    collections.deque(chapters.modules("steps"), maxlen=0)
    seen = evidence.smallest
    comparison: Comparison | None = seen.broken[0] if seen.broken else None
    if comparison is not None:
        look = _REGISTRY.get(comparison.answers[-1].method)
    elif seen.calls:
        known = _OF_FACTS if len(seen.answers) == len(seen.calls) else _UNANSWERED
        look = known.get(seen.calls[-1].method)
    if not seen.calls or look is None or not seen.failed:
        return ()
    try:
        return look(evidence, comparison)
    except (AdapterError, WiringError):
        return ()

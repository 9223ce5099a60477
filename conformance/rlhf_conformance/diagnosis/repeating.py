"""Whether the adapter answers the same call twice alike: if not, nothing that it answers can be looked into."""

from __future__ import annotations

from rlhf_conformance.diagnosis.evidence import Observed, observe, within
from rlhf_conformance.judging.checks import Check
from rlhf_conformance.judging.questions import NotReturned
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.results import Diagnosis

CAUSE = "the answer is not the same twice"
TIMES = 2


def diagnosis(check: Check, subject: Subject, first: Observed) -> Diagnosis | None:
    """What shows that the same case, asked again after the same seed, is answered otherwise; None where nothing does.

    Differences that rounding explains are none.
    """
    for _ in range(TIMES):
        try:
            again = observe(check, subject, first.case)
        except NotReturned:
            return _named("at first its parts came, and then they did not")
        said = _apart(first, again)
        if said:
            return _named(said)
    return None


def _named(said: str) -> Diagnosis:
    sentence = f"{CAUSE}: asked again for the same case, after the same seed of torch, {said}"
    return Diagnosis("numbers", "not-the-same-twice", sentence, cause=CAUSE)


def _apart(first: Observed, again: Observed) -> str:
    """In what two answers to the same case differ, in words; empty where they do not."""
    for one, other in zip(first.comparisons, again.comparisons, strict=False):
        if one.what != other.what or one.indices != other.indices:
            continue
        for index, a, b, allowed in zip(one.indices, one.actual, other.actual, one.allowed, strict=True):
            if not within(a, b, 2 * allowed):
                place = one.place(index)
                return f"the {one.what}{f' at {place}' if place else ''} was {a:.7g}, and then {b:.7g}"
    if bool(first.ended) != bool(again.ended):
        return f"the answer was {'refused' if first.ended else 'taken'} once only: {first.ended or again.ended}"
    return ""

"""Was the judge still a judge when the last clause was tried? Planted faults are tried at the end, in the same process
and by the same code: one that passes shows that something has changed the suite, or what it stands on.

They need torch alone, and no model. What they do not show stands in SECURITY.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.results import ERROR, FAIL, KNOWN_FAILURE, LOST, PASS, Result

if TYPE_CHECKING:
    from rlhf_conformance.judging.subject import Subject


class OneOff(Adapter):
    """Positions begin at 1: whole numbers that have to agree exactly."""

    def position_ids(self, attention_mask: Any) -> Any:
        return attention_mask.cumsum(-1)


class HalfAsLikely(Adapter):
    """Every log-prob is too small by log 2: real numbers that have to agree within a budget."""

    def token_log_probs(self, logits: Any, labels: Any, temperature: Any) -> Any:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        picked = labels.clamp(min=0)[..., None]
        return wide.log_softmax(-1).gather(-1, picked)[..., 0] - 0.6931471805599453


class Refuses(Adapter):
    """Raises."""

    def position_ids(self, attention_mask: Any) -> Any:
        raise RuntimeError("a planted fault")


FAULTS = (
    (OneOff, "positions.cumsum", FAIL),
    (HalfAsLikely, "log-probs.definition", FAIL),
    (Refuses, "positions.cumsum", ERROR),
)
"""Who is tried, by which clause, and the only verdict that is right."""


def unseen(subject: Subject, seed: int) -> str:
    """What shows that the judge of this process cannot be relied on, in a sentence; empty where it can."""
    from rlhf_conformance.judging.trying import PROFILES, try_clause

    profile = replace(PROFILES["smoke"], shrinking=0.0)
    for kind, slug, right in FAULTS:
        planted = replace(subject, adapter=kind(), poison=None, heard=None, _models={})
        try:
            tried = try_clause(slug, planted, profile, seed, to_the_end=False)
            result = Result.from_json(tried.result.to_json())
            found = result.verdict
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if found != right:
            return (
                f"a planted fault ({kind.__name__}, at {slug}), tried in the same process at the end, was judged "
                f"{found} and not {right}: the adapter, or what it imports, has changed the suite or what it stands on"
            )
    return ""


def doubted(result: Result, why: str) -> Result:
    """The result of a clause in a process whose judge cannot be relied on: what was good news there is none."""
    if result.verdict not in (PASS, KNOWN_FAILURE):
        return result
    return replace(result, verdict=LOST, reason=f"{result.verdict} is not believed: {why}", failure=None, others=())

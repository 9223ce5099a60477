"""The formula of a clause, step by step, with the failing case put into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rlhf_conformance.diagnosis import Evidence
from rlhf_conformance.results import Step
from rlhf_conformance.subject import AdapterError, WiringError

WITHOUT_NUMBERS = ("scalar", "inputs-unwritten", "side-effects")
"""Clauses about something else than a formula."""


def steps(evidence: Evidence) -> tuple[Step, ...]:
    """Line by line what should come out, and what came as far as the adapter shows it.

    At most one line is marked: the first one whose two numbers lie further apart than is allowed. Nothing is shown
    where the adapter cannot be asked once more.
    """
    look = _looks().get(type(evidence.smallest.case).__name__)
    if look is None or evidence.slug.split(".")[1] in WITHOUT_NUMBERS:
        return ()
    try:
        return look(evidence)
    except (AdapterError, WiringError):
        return ()


def _looks() -> Mapping[str, Callable[[Evidence], tuple[Step, ...]]]:
    """By the kind of the case."""
    from rlhf_conformance.diagnosis.logits_steps import logits_steps
    from rlhf_conformance.diagnosis.loss_steps import loss_steps
    from rlhf_conformance.diagnosis.model_steps import model_steps
    from rlhf_conformance.diagnosis.sequence_steps import generated_steps, mask_steps, pack_steps

    losses = dict.fromkeys(("LossCase", "DressedCase", "WidenedCase", "SplitCase"), loss_steps)
    rest = {"GeneratedCase": generated_steps, "MaskCase": mask_steps, "PackCase": pack_steps}
    return {**losses, **rest, "LogitsCase": logits_steps, "ModelCase": model_steps}

"""The checks of log-probs that come with the whole output beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_conformance.chapters._models import templates
from rlhf_conformance.chapters._models.cases import ModelCase
from rlhf_conformance.chapters._models.output import with_output
from rlhf_conformance.chapters._models.roles import ACTOR
from rlhf_conformance.judging.checks import use
from rlhf_conformance.judging.subject import Subject

WITH_OUTPUT = replace(ACTOR, ask_method="log_probs_with_output")


def logits(subject: Subject, case: ModelCase, came: Any, plain: bool) -> list[Any]:
    """Those of the model itself, or divided by the temperature where that is declared."""
    scale = case.temperature if subject.adapter.output_logits == "scaled" else 1.0
    rows = [subject.truth.logits(case.probe, sample.tokens, plain=plain) for sample in case.samples]
    return [[[z / scale for z in position] for position in sample] for sample in rows]


use("actor.with-output", with_output(WITH_OUTPUT, logits))
use("actor.with-output-gradient", templates.gradient(WITH_OUTPUT, effort=10))

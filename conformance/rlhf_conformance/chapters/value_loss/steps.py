"""How the value loss is shown step by step."""

from __future__ import annotations

from functools import partial

from rlhf_conformance.chapters._losses.steps import loss_steps
from rlhf_conformance.chapters.value_loss.checks import VALUE
from rlhf_conformance.diagnosis.steps import steps_of

steps_of(VALUE.method, unanswered=True)(partial(loss_steps, VALUE))

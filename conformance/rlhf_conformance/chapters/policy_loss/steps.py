"""How the policy loss is shown step by step."""

from __future__ import annotations

from functools import partial

from rlhf_conformance.chapters._losses.steps import loss_steps
from rlhf_conformance.chapters.policy_loss.checks import POLICY
from rlhf_conformance.diagnosis.steps import steps_of

steps_of(POLICY.method, unanswered=True)(partial(loss_steps, POLICY))

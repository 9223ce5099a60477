"""How the KL is shown step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import rlhf_spec.kl as spec
from rlhf_conformance.chapters._credit.steps import action_steps
from rlhf_conformance.chapters.kl.cases import KlCase, clamps
from rlhf_conformance.diagnosis.steps import steps_of


def _way(adapter: Any, case: KlCase, i: int, j: int) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    estimator = case.options.estimator
    spec.token_kl(case.log_probs[i][j], case.ref_log_probs[i][j], estimator, **clamps(adapter, estimator), steps=found)
    return found


steps_of("kl")(partial(action_steps, _way))

"""How advantages and returns are shown step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import rlhf_spec.advantages as spec
from rlhf_conformance.chapters._credit.steps import action_steps
from rlhf_conformance.chapters.advantages.cases import AdvantageCase
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_spec.aggregation import Steps


def _way(adapter: Any, case: AdvantageCase, i: int, j: int, *, critic: bool) -> list[tuple[str, float]]:
    found: dict[int, Steps] = {}
    options, mask = case.options, case.action_mask[i]
    values, lam = (case.values[i], options.lam) if critic else ([0.0] * len(mask), 1.0)
    rules = (adapter.observations, adapter.after_last_action)
    spec.row_advantages(case.token_rewards[i], values, mask, options.gamma, lam, *rules, steps=found)
    return found[j]


steps_of("advantages")(partial(action_steps, partial(_way, critic=True)))
steps_of("returns")(partial(action_steps, partial(_way, critic=False)))

"""How a weight is shown step by step."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import rlhf_spec.off_policy_correction as spec
from rlhf_conformance.chapters._credit.steps import action_steps
from rlhf_conformance.chapters.off_policy_correction.cases import OffPolicyCase, clamps
from rlhf_conformance.diagnosis.steps import steps_of


def _way(adapter: Any, case: OffPolicyCase, i: int, j: int) -> list[tuple[str, float]]:
    o, found = case.options, list[tuple[str, float]]()
    old, rollout = case.old_log_probs[i][j], case.rollout_log_probs[i][j]
    found.append((f"d = log-prob {old:.7g} - the engine's {rollout:.7g}", old - rollout))
    steps = found if o.level == "sequence" else None
    of_row = spec.exponents(case.log_ratios(i), o.level, o.sequence_weight, **clamps(adapter), steps=steps)
    exponent = of_row[sum(case.action_mask[i][:j])]
    if o.level == "token" and exponent != old - rollout and not math.isnan(rollout):
        found.append((f"d held within {adapter.correction_log_clamp:.7g} of 0", exponent))
    band = f"at most {o.upper:.7g}" if o.lower is None else f"{o.lower:.7g} to {o.upper:.7g}"
    weight = math.exp(exponent) if exponent < 700 else math.inf
    found.append((f"its exponential, {'to be held to' if o.mode == 'truncate' else 'to be kept if'} {band}", weight))
    return found


steps_of("off_policy_weights")(partial(action_steps, _way))

"""How the whole path is shown step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import rlhf_spec.advantages
import rlhf_spec.credit
import rlhf_spec.kl
from rlhf_conformance.chapters._credit.steps import action_steps
from rlhf_conformance.chapters.credit.cases import CreditCase
from rlhf_conformance.chapters.kl.cases import clamps
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_spec.aggregation import Steps


def _way(adapter: Any, case: CreditCase, i: int, j: int) -> list[tuple[str, float]]:
    o, mask = case.options, case.action_mask[i]
    held = clamps(adapter, o.estimator)
    found: list[tuple[str, float]] = []
    rlhf_spec.kl.token_kl(case.log_probs[i][j], case.ref_log_probs[i][j], o.estimator, **held, steps=found)
    (rewards,) = rlhf_spec.credit.path_rewards(
        case.scores[i : i + 1],
        case.log_probs[i : i + 1],
        case.ref_log_probs[i : i + 1],
        case.action_mask[i : i + 1],
        estimator=o.estimator,
        **held,
        kl_coef=o.kl_coef,
        score_clip=o.score_clip,
        score_position=adapter.score_position,
    )
    found.append((f"reward: the score {case.scores[i]:.7g} where it lands, less {o.kl_coef:.7g} * KL", rewards[j]))
    ways: dict[int, Steps] = {}
    rules = (adapter.observations, adapter.after_last_action)
    rlhf_spec.advantages.row_advantages(rewards, case.values[i], mask, o.gamma, o.lam, *rules, steps=ways)
    return [*found, *ways[j]]


steps_of("credit")(partial(action_steps, _way))

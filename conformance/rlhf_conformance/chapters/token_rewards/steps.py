"""How the token rewards are shown step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import rlhf_spec.token_rewards as spec
from rlhf_conformance.chapters._credit.steps import action_steps
from rlhf_conformance.chapters.token_rewards.cases import TokenRewardCase
from rlhf_conformance.diagnosis.steps import steps_of


def _way(adapter: Any, case: TokenRewardCase, i: int, j: int) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    score = case.final_scores(adapter)[i] if (i, j) in case.score_cells(adapter) else None
    spec.token_reward(case.kl[i][j], case.options.kl_coef, score, case.options.score_clip, steps=found)
    return found


steps_of("token_rewards")(partial(action_steps, _way))

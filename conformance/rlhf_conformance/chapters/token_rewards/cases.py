"""Scores of samples and the KL of their tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rlhf_spec.token_rewards as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.cases import MANY_ROWS, MASK_PICKS, ROWS, WIDTH, action_masks
from rlhf_conformance.chapters._masked import MaskedCase, Masks, Rows, exactly, widened
from rlhf_conformance.chapters.token_rewards.interface import TokenRewardOptions
from rlhf_conformance.judging.picks import Picked, Picks, outward
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject

Place = tuple[int, int]


@stored
@dataclass(frozen=True)
class TokenRewardCase(MaskedCase):
    """One call of the token rewards.

    stopped     1 on each sample that stopped, (B,); empty where nothing is said of it
    """

    TABLES = ("kl",)
    PER_ROW = ("scores",)

    scores: tuple[float, ...]
    kl: Rows
    action_mask: Masks
    options: TokenRewardOptions
    stopped: tuple[int, ...] = ()

    def final_scores(self, adapter: Adapter) -> list[float]:
        """The scores, of samples that did not stop with the penalty that is asked for."""
        rule = adapter.missing_stop or "constant"
        return spec.penalized_scores(self.scores, self.stopped or None, self.options.stop_penalty, rule)

    def score_cells(self, adapter: Adapter) -> set[Place]:
        """Row and column of the cells in which a score lands."""
        cells = (spec.score_cell(mask, adapter.score_position) for mask in self.action_mask)
        return {(i, cell) for i, cell in enumerate(cells) if cell is not None}


SCORES = tuple(0.13 * k + 0.527 for k in outward(20))
LARGE_SCORES = (48.9, -50.3, 12.7, -17.1, 300.7)
KL = tuple(0.07 * k + 0.151 for k in outward(12))
COEFFICIENTS = (0.1, 0.03, 0.7, 1.3)
CLIPS = (1.1, 0.3, 5.0)
NO_NUMBERS = (math.inf, math.nan, 0.081, -math.inf)


@dataclass(frozen=True)
class RewardShape:
    """What a strategy is asked for.

    scores, kl          the numbers that are drawn
    coefficients        of the KL
    clipped             whether the score is clipped; None: either, where the adapter can clip it
    """

    scores: Sequence[float] = SCORES
    kl: Sequence[float] = KL
    coefficients: Sequence[float] = COEFFICIENTS
    clipped: bool | None = None
    min_rows: int = 1
    columns: int = 1
    empty_row: bool = False
    holes: bool = False


def reward_cases(subject: Subject, **shape: Any) -> Picked[TokenRewardCase]:
    """Up to 4 rows, now and then more, of up to 6 cells: the masks have holes. Now and then all KL are 0, or all
    scores. Where the score lands behind the last action, each row has a cell there."""
    wanted, adapter, dtype = RewardShape(**shape), subject.adapter, subject.dtype

    def build(picks: Picks) -> TokenRewardCase:
        clip, either = picks.of(CLIPS), picks.chance(1, 2)
        is_clipped = adapter.score_clip and (either if wanted.clipped is None else wanted.clipped)
        options = TokenRewardOptions(picks.of(wanted.coefficients), clip if is_clipped else None)
        least = max(wanted.min_rows, 2 if wanted.empty_row else 1)
        rows, many = least + picks.below(ROWS + 1 - least), picks.of(MANY_ROWS)
        rows = many if picks.chance(1, 10) else rows
        width, nothing = max(wanted.columns, 1 + picks.below(WIDTH)), picks.below(16)
        masks = action_masks(
            picks.part(MASK_PICKS), rows=rows, width=width, empty_row=wanted.empty_row, holes=wanted.holes
        )
        scores = tuple(exactly(picks.of(wanted.scores), dtype) if nothing != 15 else 0.0 for _ in masks)

        def kl(is_action: int) -> float:
            x = picks.of(wanted.kl)
            return (exactly(x, dtype) if math.isfinite(x) else x) if is_action and nothing != 14 else 0.0

        case = TokenRewardCase(scores, tuple(tuple(kl(m) for m in row) for row in masks), masks, options)
        return widened(case, 1) if adapter.score_position == "after-last" else case

    return Picked(9 + MASK_PICKS + max(MANY_ROWS) * (1 + WIDTH), build)


PENALTIES = {"constant": (-1.37, 0.0, 2.3, -6.1), "factor": (0.37, 0.0, -1.37, 1.0)}
"""For a missing stop, by the rule that is declared."""


def unstopped(subject: Subject) -> Picked[TokenRewardCase]:
    """Cases with a penalty for a missing stop, and at least one sample that did not stop. Whether its row is full says
    nothing of it."""
    adapter = subject.adapter
    penalties = PENALTIES[adapter.missing_stop or "constant"]

    def change(case: TokenRewardCase, picks: Picks) -> TokenRewardCase:
        penalty, one = picks.of(penalties), picks.below(len(case.scores))
        stopped = tuple(0 if i == one else picks.below(2) for i in range(len(case.scores)))
        return case.with_options(stop_penalty=penalty).changed(stopped=stopped)

    scores = (*SCORES, *LARGE_SCORES[:2])
    return reward_cases(subject, scores=scores).with_more(2 + max(MANY_ROWS), change)

"""Scores, log-probs and values of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_conformance.chapters._credit.cases import MANY_ROWS, WIDTH
from rlhf_conformance.chapters._masked import MaskedCase, Masks, Rows, exactly, widened
from rlhf_conformance.chapters.advantages.cases import GAMMAS, LAMBDAS, VALUES, read_cells
from rlhf_conformance.chapters.credit.interface import CreditOptions
from rlhf_conformance.chapters.kl.cases import KlCase, kl_cases
from rlhf_conformance.chapters.token_rewards.cases import CLIPS, COEFFICIENTS, SCORES
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject


@stored
@dataclass(frozen=True)
class CreditCase(MaskedCase):
    """One call of the whole path."""

    TABLES = ("log_probs", "ref_log_probs", "values")
    PER_ROW = ("scores",)

    scores: tuple[float, ...]
    log_probs: Rows
    ref_log_probs: Rows
    values: Rows
    action_mask: Masks
    options: CreditOptions


def credit_cases(
    subject: Subject,
    *,
    scores: Sequence[float] = SCORES,
    values: Sequence[float] = VALUES,
    lambdas: Sequence[float] = LAMBDAS,
    clipped: bool = True,
    whitened: bool = False,
    **shape: Any,
) -> Picked[CreditCase]:
    """Log-probs under masks as for the KL, with a score for each row and a value for each cell that is read. Where the
    score lands behind the last action, each row has a cell there. Advantages are to be whitened where that is asked
    for, and always by an adapter that always does; then there are at least two actions."""
    adapter, dtype = subject.adapter, subject.dtype
    whiten = whitened or adapter.credit_whitening == "always"
    if whiten:
        shape["columns"] = max(2, shape.get("columns", 1))

    def complete(case: KlCase, picks: Picks) -> CreditCase:
        if whiten and len(case.actions) < 2:
            case = case.changed(action_mask=((1, 1, *case.action_mask[0][2:]), *case.action_mask[1:]))
        if adapter.score_position == "after-last":
            case = widened(case, 1)
        clip = picks.of(CLIPS) if picks.chance(1, 4) and adapter.score_clip and clipped else None
        discounts = (picks.of(GAMMAS), picks.of(lambdas))
        options = CreditOptions(case.options.estimator, picks.of(COEFFICIENTS), clip, *discounts, whiten)
        read = {*case.actions, *read_cells(adapter, case)["values"]}
        rows, columns = case.shape
        table = tuple(
            tuple(exactly(picks.of(values), dtype) if (i, j) in read else 0.0 for j in range(columns))
            for i in range(rows)
        )
        own = tuple(exactly(picks.of(scores), dtype) for _ in range(rows))
        return CreditCase(own, case.log_probs, case.ref_log_probs, table, case.action_mask, options)

    return kl_cases(subject, **shape).with_more(6 + max(MANY_ROWS) * (WIDTH + 2), complete)

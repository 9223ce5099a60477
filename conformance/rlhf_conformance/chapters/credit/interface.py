"""The whole path from scores to advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.chapters.advantages.interface import AdvantagesResult
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Record
from rlhf_conformance.judging.wiring import Tensor as Numbers
from rlhf_conformance.methods import OneOf, method

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_conformance.adapter import Adapter

SHAPED = Numbers(lambda given: tuple(given["values"].shape), "a number for each cell")


@stored
@dataclass(frozen=True)
class CreditOptions:
    """What the whole path is asked for: the options of its parts, as in `KlOptions`, `TokenRewardOptions` and
    `AdvantageOptions`; `whiten`, whether advantages come out whitened (True only if declared)."""

    estimator: str = "k1"
    kl_coef: float = 0.1
    score_clip: float | None = None
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = False

    def offered_by(self, adapter: Adapter) -> bool:
        """Whether an adapter declares what is asked for."""
        return self.estimator in adapter.kl_estimators


class Credit:
    """From scores to advantages in one method, of trainers that have none for the parts."""

    credit_whitening: Annotated[
        bool | str,
        OneOf((False, "asked", "always")),
        'whether the advantages of the whole path come out whitened: "asked", where `options.whiten` is True; '
        '"always"; False: never. Returns are not whitened; what whitening is by convention is declared as for `whiten`',
    ] = False

    @method(
        Record(AdvantagesResult, {"advantages": SHAPED, "returns": SHAPED}, ("advantages", "returns"), loose=True),
        leaf="values",
        formula="rlhf_spec.credit.path_advantages",
        returns="the advantages and the returns, two tensors shaped like the mask",
    )
    def credit(
        self,
        scores: Tensor,
        log_probs: Tensor,
        ref_log_probs: Tensor,
        values: Tensor,
        action_mask: Tensor,
        options: CreditOptions,
    ) -> AdvantagesResult:
        """Advantages and returns of a batch: `scores` (B,), the other tensors (B, T); `action_mask` 1 on actions. What
        the parts do by convention is declared as for them; advantages are whitened where `options.whiten` is True.
        -> an AdvantagesResult, or a pair of tensors (B, T), of which the actions are judged"""
        raise NotImplementedError

"""Advantages of groups of responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Either
from rlhf_conformance.judging.wiring import Tensor as Numbers
from rlhf_conformance.methods import AtLeast, OneOf, SomeOf, method

if TYPE_CHECKING:
    from torch import Tensor

BASELINES = ("mean", "leave-one-out")
SCALES = ("group-std", "batch-std", "none")
LAYOUTS = ("any", "consecutive", "equal")


@stored
@dataclass(frozen=True)
class GroupAdvantageOptions:
    """What is subtracted from a score and what the difference is divided by, of what is declared. With the baseline
    "leave-one-out" the scale is "none"."""

    baseline: str = "mean"
    scale: str = "group-std"

    def offered_by(self, adapter: GroupAdvantages) -> bool:
        """Whether an adapter declares what is asked for."""
        scales = adapter.group_scales if self.baseline == "mean" else ("none",)
        return self.baseline in adapter.group_baselines and self.scale in scales


class GroupAdvantages:
    """Scores of responses, measured by those of other responses to the same prompt."""

    group_baselines: Annotated[Sequence[str], SomeOf(BASELINES), 'of "mean", "leave-one-out"'] = ("mean",)
    group_scales: Annotated[
        Sequence[str],
        SomeOf(SCALES),
        'what a difference from the mean is divided by, of "group-std", "batch-std", "none"',
    ] = ("group-std",)
    group_layout: Annotated[
        str,
        OneOf(LAYOUTS),
        'where the rows of a group may stand: "any"where, in "consecutive" rows, or in consecutive rows of which all '
        'groups have an "equal" number',
    ] = "any"
    group_std_ddof: Annotated[int, OneOf((0, 1)), "a variance of scores divides by n less this"] = 1
    group_eps: Annotated[float, AtLeast(0.0), "what is added to the deviation"] = 1e-6
    group_of_one: Annotated[
        str | None,
        OneOf((None, "zero", "score")),
        'what a response without others gets: "zero", or its "score"; None if nothing is promised',
    ] = None

    @method(
        Either(
            (
                Numbers(lambda given: tuple(given["scores"].shape), "an advantage for each response"),
                Numbers(lambda given: tuple(given["action_mask"].shape), "an advantage for each cell"),
            ),
            "a tensor with an advantage for each response (B,), or for each cell (B, T)",
        ),
        leaf="scores",
        formula="rlhf_spec.group_advantages.group_advantages",
        returns="the advantages, a tensor (B,) or shaped like action_mask",
    )
    def group_advantages(
        self, scores: Tensor, group_ids: Tensor, action_mask: Tensor, options: GroupAdvantageOptions
    ) -> Tensor:
        """Scores of responses less the baseline of their group, over a deviation. scores (B,), group_ids (B,) int64,
        one for all responses to a prompt, action_mask (B, T), 1 on actions. -> (B,), or (B, T), of which the actions
        are judged"""
        raise NotImplementedError

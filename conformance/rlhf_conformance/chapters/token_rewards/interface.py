"""The rewards of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Tensor as Numbers
from rlhf_conformance.methods import OneOf, method

if TYPE_CHECKING:
    from torch import Tensor


@stored
@dataclass(frozen=True)
class TokenRewardOptions:
    """What token rewards are asked to be. `score_clip` is None, or how far from 0 the score is held; `stop_penalty` is
    None, or what becomes of the score of samples that did not stop (each only drawn if declared)."""

    kl_coef: float = 0.1
    score_clip: float | None = None
    stop_penalty: float | None = None


class TokenRewards:
    """From a score and a KL to a reward for each token."""

    score_position: Annotated[
        str,
        OneOf(("last-action", "after-last")),
        "where the score of a sample lands: at its last action, or in the cell behind it",
    ] = "last-action"
    score_clip: Annotated[bool, "True if the score can be clipped: `score_clip` is a number now and then"] = False
    missing_stop: Annotated[
        str | None,
        OneOf((None, "constant", "factor")),
        'what becomes of the score of a sample that did not stop, where a `stop_penalty` is asked for: "constant", the '
        'penalty in its place; "factor", the score times it, and a negative penalty in its place; None: nothing',
    ] = None
    token_rewards_masked: Annotated[
        str | None,
        OneOf((None, "zero")),
        '"zero" if cells outside of the mask are promised a reward of 0, but for the score; None: nothing is promised',
    ] = None

    @method(
        Numbers(lambda given: tuple(given["kl"].shape), "a reward for each cell"),
        leaf="kl",
        formula="rlhf_spec.token_rewards.token_rewards",
        returns="the reward of each cell, a tensor shaped like kl",
    )
    def token_rewards(
        self,
        scores: Tensor,
        kl: Tensor,
        action_mask: Tensor,
        options: TokenRewardOptions,
        stopped: Tensor | None = None,
    ) -> Tensor:
        """Rewards of tokens: `scores` (B,), one for each sample; `kl` (B, T), of each token; `action_mask` (B, T), 1 on
        actions. -> (B, T), of which the actions are judged, and the cell in which the score lands

        stopped (B,) bool, False on samples that were cut off, is given by its name, only where `options.stop_penalty`
        is, and only to adapters that declare `missing_stop` and whose method has a parameter of that name."""
        raise NotImplementedError

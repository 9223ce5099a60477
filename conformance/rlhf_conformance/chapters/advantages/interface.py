"""Advantages and returns from the rewards of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Record
from rlhf_conformance.judging.wiring import Tensor as Numbers
from rlhf_conformance.methods import OneOf, method

if TYPE_CHECKING:
    from torch import Tensor

SHAPED = Numbers(lambda given: tuple(given["token_rewards"].shape), "a number for each cell")


@stored
@dataclass(frozen=True)
class AdvantageOptions:
    """The discount of a step and the lambda of generalized advantages; returns without a critic have no lambda."""

    gamma: float = 1.0
    lam: float = 0.95


@dataclass(frozen=True)
class AdvantagesResult:
    """What the policy learns from, and what the critic does. Both (B, T)."""

    advantages: Tensor
    returns: Tensor


class Advantages:
    """Generalized advantages, and returns without a critic."""

    observations: Annotated[
        str,
        OneOf(("skipped", "zero-steps", "value-steps")),
        "what the cells between two actions of a sample are: not there, steps with reward and value 0, or steps with "
        "the critic's value",
    ] = "skipped"
    after_last_action: Annotated[
        str,
        OneOf(("nothing", "value", "step")),
        "what comes after the last action: nothing, the value of the cell behind it, or a step with the reward and the "
        "value of that cell",
    ] = "nothing"
    advantages_masked: Annotated[
        str | None,
        OneOf((None, "zero")),
        '"zero" if advantages and returns outside of the mask are promised to be 0, None if nothing is promised',
    ] = None

    @method(
        Record(AdvantagesResult, {"advantages": SHAPED, "returns": SHAPED}, ("advantages", "returns"), loose=True),
        leaf="values",
        formula="rlhf_spec.advantages.advantages",
        returns="the advantages and the returns, two tensors shaped like the mask",
    )
    def advantages(
        self, token_rewards: Tensor, values: Tensor, action_mask: Tensor, options: AdvantageOptions
    ) -> AdvantagesResult:
        """Generalized advantages, and the returns that the critic learns. All tensors (B, T); `action_mask` 1 on
        actions. -> an AdvantagesResult, or a pair of tensors (B, T), of which the actions are judged"""
        raise NotImplementedError

    @method(
        SHAPED,
        leaf="token_rewards",
        formula="rlhf_spec.advantages.discounted_returns",
        returns="the return of each cell, a tensor shaped like token_rewards",
    )
    def returns(self, token_rewards: Tensor, action_mask: Tensor, options: AdvantageOptions) -> Tensor:
        """The discounted rewards from each action on, of trainers without a critic. Tensors (B, T); `action_mask` 1 on
        actions. -> (B, T), of which the actions are judged"""
        raise NotImplementedError

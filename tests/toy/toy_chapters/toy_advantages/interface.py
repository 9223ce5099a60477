"""What an adapter may have and declare for this chapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Scalar
from rlhf_conformance.judging.wiring import Tensor as Kind
from rlhf_conformance.methods import method

if TYPE_CHECKING:
    from torch import Tensor


@stored
@dataclass(frozen=True)
class ToyAdvantageOptions:
    """What is asked for."""

    gamma: float = 1.0
    lam: float = 0.95


class ToyAdvantages:
    """Advantages from rewards and values."""

    bootstrap: Annotated[bool, "True if the last state's value stands for what comes after it"] = False

    @method(
        Kind(lambda given: tuple(given["rewards"].shape), "an advantage for each cell"),
        leaf="rewards",
        formula="toy_chapters.formulas.advantages",
        returns="the advantages, a tensor shaped like rewards",
    )
    def toy_advantages(
        self, rewards: Tensor, values: Tensor, action_mask: Tensor, options: ToyAdvantageOptions
    ) -> Tensor:
        """Generalized advantages: all tensors (B, T). -> (B, T), 0 outside the mask"""
        raise NotImplementedError

    @method(Scalar("the mean"), formula="toy_chapters.formulas.mean_advantage", returns="the mean, one number")
    def mean_toy_advantage(
        self, rewards: Tensor, values: Tensor, action_mask: Tensor, options: ToyAdvantageOptions
    ) -> Tensor:
        """The mean over the actions, for the log. -> a scalar"""
        raise NotImplementedError

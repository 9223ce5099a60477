"""The value loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.chapters._losses.interface import Losses
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Scalar
from rlhf_conformance.methods import method

if TYPE_CHECKING:
    from torch import Tensor


@stored
@dataclass(frozen=True)
class ValueLossOptions:
    """What the value loss is asked to do. `clip_eps` is None where the values are not clipped; the rest as in
    `PolicyLossOptions`."""

    clip_eps: float | None = 0.2
    aggregation: str = "token-mean"
    global_count: float | None = None


class ValueLoss(Losses):
    """The clipped value loss."""

    value_clip: Annotated[bool, "False if the value loss cannot be clipped"] = True
    unclipped_value: Annotated[bool, "False if the value loss cannot do without a clip"] = True

    @method(
        Scalar("the loss"),
        leaf="values",
        formula="rlhf_spec.value_loss.value_loss",
        returns="the loss, a tensor with one number",
    )
    def value_loss(
        self,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        action_mask: Tensor,
        options: ValueLossOptions,
    ) -> Tensor:
        """The clipped value loss, to be minimised. All tensors (B, T); `action_mask` 1 on actions. -> a scalar"""
        raise NotImplementedError

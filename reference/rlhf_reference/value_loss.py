"""PPO's clipped value loss, as OpenAI's baselines have it beside Schulman et al. 2017, and RLHF trainers since."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf_reference.aggregation import Aggregation, aggregate


class ValueLoss(nn.Module):
    """`0.5 max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2)` a token; `0.5 (V - R)^2` without a clip.

    clip_eps     eps, how far a value may move from the old one before its gradient stops; None: no clip
    aggregation  see `rlhf_reference.aggregation`, as for constant_length
    raises       ValueError if eps is negative

    The larger of the squares: the clip never makes the loss smaller, it only takes the gradient from values that have
    moved too far towards the return.
    """

    def __init__(
        self,
        clip_eps: float | None = None,
        aggregation: Aggregation = "token-mean",
        *,
        constant_length: float | None = None,
    ) -> None:
        super().__init__()
        if clip_eps is not None and clip_eps < 0:
            raise ValueError(f"clip_eps is {clip_eps}; it must not be negative")
        self.clip_eps = clip_eps
        self.aggregation: Aggregation = aggregation
        self.constant_length = constant_length

    def forward(
        self,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        action_mask: Tensor,
        *,
        global_count: float | Tensor | None = None,
    ) -> Tensor:
        """A scalar with a graph; all arguments (B, T), computed in fp32 or better.

        values        of the critic that is trained, with a graph
        old_values    of the critic when the batch was sampled; constants
        returns       constants
        action_mask   nonzero on actions (bool, integer or float); under it anything may lie, also NaN
        global_count  see `aggregate`
        raises        ValueError if the shapes differ: broadcasting (B, T, 1) against (B, T) would hide a wrong head
        """
        shapes = {tuple(x.shape) for x in (values, old_values, returns, action_mask)}
        if len(shapes) > 1:
            raise ValueError(f"values, old_values, returns and action_mask differ in shape: {sorted(shapes)}")
        mask = action_mask.bool()
        values, old_values, returns = (
            x.to(torch.promote_types(x.dtype, torch.float32)).where(mask, 0.0)
            for x in (values, old_values.detach(), returns.detach())
        )
        loss = (values - returns).square()
        if self.clip_eps is not None:
            clipped = old_values + (values - old_values).clamp(-self.clip_eps, self.clip_eps)
            loss = torch.maximum(loss, (clipped - returns).square())
        return 0.5 * aggregate(
            loss, mask, self.aggregation, global_count=global_count, constant_length=self.constant_length
        )

"""The critic: the value of the state before each action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rlhf_reference.inputs import ModelInputs, NumActions
from rlhf_reference.regression import RegressionModel


class CriticModel(RegressionModel):
    """Values of states; arguments as in `RegressionModel`.

    Normalized in both modes, unlike the reward: its targets are returns of normalized rewards, in training too.
    """

    def forward(
        self,
        input_ids: Tensor,
        num_actions: NumActions | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        sequence_lengths: Sequence[int] | None = None,
        return_output: bool = False,
    ) -> Any:
        """Values, in units of the reward, fp32 or better, with a graph. One number an action, no head axis.

        The state before action t of a sequence of L tokens is the tokens up to P - 1 + t, so its value is read where
        the action is predicted: V[P - 1 : L - 1]. V[P : L] would have seen the action.

        num_actions as for `Actor`: padded rows give (B, T), 0 on pads; a pack gives (1, sum of counts).
        num_actions None: values at every position, (B, L) with 0 on pads, or (1, N).
        return_output: a tuple, the values, then the backbone's output, with last_hidden_state (B, L, hidden).
        raises: ValueError as `ModelInputs` does.
        """
        inputs = ModelInputs.of(input_ids, attention_mask, position_ids, sequence_lengths)
        output = self.run(inputs)
        values = self.scores(output)
        if self.normalize:
            values = self.normalized(values)
        if num_actions is not None:
            values = inputs.at_actions(values, num_actions)
        elif inputs.attention_mask is not None:
            values = values.where(inputs.attention_mask > 0, 0.0)
        return (values, output) if return_output else values

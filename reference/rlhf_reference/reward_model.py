"""The reward model: one number for a whole sequence, read at its last token (Stiennon et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_reference.inputs import ModelInputs
from rlhf_reference.positions import last_attended
from rlhf_reference.regression import RegressionModel


class RewardModel(RegressionModel):
    """Rewards of sequences; arguments as in `RegressionModel`.

    Normalized in eval mode only: training compares pairs, to which mean and std do not matter, and they are measured
    afterwards on the raw rewards.
    """

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        sequence_lengths: Sequence[int] | None = None,
        return_output: bool = False,
    ) -> Any:
        """The head's score at each sequence's last attended position, with a graph.

        Padded rows (input_ids and attention_mask (B, L), padded anywhere): (B,)
        Pack (input_ids (1, N), no mask, and position_ids that restart or sequence_lengths): one for each sequence. If
        the pack ends in padding, sequence_lengths say which sequences are real; without them it gets a reward too.
        return_output: a tuple, the rewards, then the backbone's output, with last_hidden_state (B, L, hidden).
        raises: ValueError if a row has no attended token.
        """
        inputs = ModelInputs.of(input_ids, attention_mask, position_ids, sequence_lengths)
        output = self.run(inputs)
        scores = self.scores(output)
        if inputs.attention_mask is not None:
            rewards = scores.gather(1, last_attended(inputs.attention_mask).unsqueeze(1)).squeeze(1)
        else:
            ends = torch.tensor(inputs.sequence_lengths, device=scores.device).cumsum(0) - 1
            rewards = scores[0, ends]
        if self.normalize and not self.training:
            rewards = self.normalized(rewards)
        return (rewards, output) if return_output else rewards

"""What a model is given, and which of its positions predict the actions.

Two forms reach a model: padded rows (B, L) with an attention mask, and a pack (1, N) without one. In a pack
transformers itself builds the block-diagonal attention mask from the restarts of the position ids, and only if there
is no attention mask (an all-ones mask lets the sequences see each other) and no cache (`use_cache=False`; with its
default, True, they see each other as well, silently). All architectures do so from transformers 4.55 on, GPT-2 not
in 4.53.

The logits at position t predict token t + 1, and the value of a state is read where its action is predicted. So
log-probs, entropies and values are all taken from the same positions, and this module is the one place that knows
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_reference.packing import IGNORED_LABEL, action_state_positions
from rlhf_reference.positions import last_attended, packed_lengths, packed_position_ids, position_ids

NumActions = int | Sequence[int]


@dataclass(frozen=True)
class ModelInputs:
    """Padded rows, or a pack.

    input_ids         (B, L) int64; (1, N) in a pack
    attention_mask    (B, L) int64; None in a pack
    position_ids      as input_ids
    sequence_lengths  None for padded rows; in a pack the tokens of each sequence
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    sequence_lengths: tuple[int, ...] | None

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        sequence_lengths: Sequence[int] | None = None,
    ) -> ModelInputs:
        """Fill in what the caller left out.

        Without a mask, positions or lengths make it a pack, of which either follows from the other; with neither,
        every token of the rows is real. With padding at the end of a pack, lengths tell which sequences are real.
        raises  ValueError if a pack is not one row, or holds fewer tokens than its sequences
        """
        if attention_mask is not None or (positions is None and sequence_lengths is None):
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
            return cls(input_ids, mask, position_ids(mask) if positions is None else positions, None)

        rows, width = input_ids.shape
        if rows != 1:
            raise ValueError(
                f"{rows} rows without an attention mask: a pack is one row (1, N), padded rows need a mask"
            )
        if sequence_lengths is None:
            sequence_lengths = packed_lengths(torch.as_tensor(positions))
        tail = width - sum(sequence_lengths)
        if tail < 0:
            raise ValueError(f"sequences of {sum(sequence_lengths)} tokens in a pack of {width}")
        if positions is None:
            positions = packed_position_ids([*sequence_lengths, tail], device=input_ids.device)
        return cls(input_ids, None, positions, tuple(sequence_lengths))

    def for_model(self, model: Any) -> dict[str, Any]:
        """Keyword arguments of a transformers model."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.mask_for(model),
            "position_ids": self.position_ids,
            "use_cache": False,
        }

    def mask_for(self, model: Any) -> Tensor | None:
        """The attention mask, as a model takes it: (B, L), or (B, 1, L, L) for eager attention in float64.

        Llama's eager attention takes its softmax in float32 whatever the dtype. There the least float64, with which
        transformers masks, is -inf, and a pad on the left, which may attend nothing, becomes NaN, and with it the
        whole row.
        """
        mask = self.attention_mask
        if mask is None or model.dtype != torch.float64 or model.config._attn_implementation != "eager":
            return mask
        causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
        allowed = causal & (mask[:, None, None, :] > 0)
        return torch.zeros_like(allowed, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float32).min)

    def next_tokens(self) -> Tensor:
        """(B, L) labels: the token after each position, -100 after the last.

        In a pack the last position of a sequence is followed by another's first token; no action is read there.
        """
        return torch.nn.functional.pad(self.input_ids[:, 1:], (0, 1), value=IGNORED_LABEL)

    def at_actions(self, per_position: Tensor, num_actions: NumActions) -> Tensor:
        """What a model says at the positions that predict the actions: P - 1 .. L - 2 of each sequence.

        per_position  (B, L)
        num_actions   padded rows: T, the last T columns, or one count for each row, its last real tokens; pack: one
                      for each sequence
        returns       padded rows: (B, T), or (B, largest count) from the left, 0 where there is no action; pack: (1,
                      sum of counts)
        raises        ValueError if an action has no position before it, or the counts are not as many as the rows or
                      sequences
        """
        if self.attention_mask is not None and isinstance(num_actions, int):
            return self._last_columns(per_position, self.attention_mask, num_actions)
        if isinstance(num_actions, int):
            raise ValueError("a pack needs a number of actions for each sequence")
        if self.attention_mask is not None:
            return self._last_of_each_row(per_position, self.attention_mask, num_actions)
        positions = action_state_positions(self.sequence_lengths or (), num_actions, device=per_position.device)
        return per_position[:, positions]

    @staticmethod
    def _last_columns(per_position: Tensor, mask: Tensor, count: int) -> Tensor:
        width = mask.shape[1]
        if not 0 <= count < width:
            raise ValueError(f"{count} actions do not fit rows of {width} tokens: each needs a state before it")
        states = slice(width - 1 - count, width - 1)
        real = (mask[:, states] > 0) & (mask[:, width - count :] > 0)  # both the state and the action
        return per_position[:, states].where(real, 0.0)

    @staticmethod
    def _last_of_each_row(per_position: Tensor, mask: Tensor, num_actions: Sequence[int]) -> Tensor:
        counts = torch.tensor(list(num_actions), device=mask.device).unsqueeze(1)
        if len(counts) != len(mask) or (counts < 0).any() or (counts >= mask.sum(1, keepdim=True)).any():
            raise ValueError(f"action counts {list(num_actions)} do not fit rows of {mask.sum(1).tolist()} real tokens")
        steps = torch.arange(max(num_actions), device=mask.device)
        columns = last_attended(mask).unsqueeze(1) - counts + steps
        real = steps < counts
        return per_position.gather(1, columns.where(real, 0)).where(real, 0.0)

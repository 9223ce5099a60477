"""Ragged batches: prompts and responses of different lengths, before any layout.

Every layout is a presentation of the same ragged batch, so there is one way into each and one way back, and a
computation is right if its answers, taken back, are those of each sequence alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf_reference.packing import PackedBatch, pack_sequences
from rlhf_reference.positions import position_ids

Side = Literal["prompt-left-response-right", "left", "right"]


@dataclass(frozen=True)
class PaddedBatch:
    """A ragged batch as a rectangle, in the form that `Actor` and `CriticModel` take.

    input_ids         (B, L) int64
    attention_mask    (B, L) int64, 1 on real tokens
    position_ids      (B, L) int64, 0 on pads
    prompt_lengths    tokens of each prompt
    response_lengths  tokens of each response
    num_actions       T, the longest response: the actions are among the last T columns. With padding on the right,
                      where they are not, it is one count for each row
    action_mask       (B, T) bool, where the answers (B, T) of actor and critic belong to an action
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    prompt_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]
    num_actions: int | tuple[int, ...]
    action_mask: Tensor

    def unpad_actions(self, values: Tensor) -> list[Tensor]:
        """One number an action (B, T) back to one tensor (response_lengths[i],) for each row."""
        return [row[mask] for row, mask in zip(values, self.action_mask, strict=True)]

    def ragged(self) -> RaggedBatch:
        """The way back: the batch without its padding."""
        rows = [row[mask] for row, mask in zip(self.input_ids, self.attention_mask.bool(), strict=True)]
        return RaggedBatch.of_sequences(rows, self.prompt_lengths)


@dataclass(frozen=True)
class RaggedBatch:
    """Prompts and responses, one 1-D int64 tensor each, without padding.

    raises  ValueError if there is no sample, the numbers differ, or a prompt is empty (no state would predict its
            first action)
    """

    prompts: tuple[Tensor, ...]
    responses: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.responses):
            raise ValueError(f"{len(self.prompts)} prompts and {len(self.responses)} responses do not make a batch")
        if min(len(prompt) for prompt in self.prompts) == 0:
            raise ValueError("a prompt must have at least one token")

    @classmethod
    def of_sequences(cls, sequences: Sequence[Tensor], prompt_lengths: Sequence[int]) -> RaggedBatch:
        """Split whole sequences (1-D) after their prompts."""
        pairs = list(zip(sequences, prompt_lengths, strict=True))
        return cls(tuple(row[:length] for row, length in pairs), tuple(row[length:] for row, length in pairs))

    @classmethod
    def of_pack(cls, pack: PackedBatch) -> RaggedBatch:
        """The way back from `pack`."""
        lengths = [length - count for length, count in zip(pack.lengths, pack.num_actions, strict=True)]
        return cls.of_sequences(pack.unpack(pack.input_ids), lengths)

    def sequences(self) -> list[Tensor]:
        """Prompt and response of each sample as one 1-D tensor."""
        return [torch.cat(pair) for pair in zip(self.prompts, self.responses, strict=True)]

    def pad(self, pad_token_id: int, side: Side = "prompt-left-response-right") -> PaddedBatch:
        """The batch as a rectangle of width L.

        "prompt-left-response-right" pads prompts to the longest prompt and responses to the longest response, so
        that all responses begin in one column, as generation leaves them; "left" and "right" pad whole sequences.
        """
        prompt_lengths = tuple(len(prompt) for prompt in self.prompts)
        response_lengths = tuple(len(response) for response in self.responses)
        longest = max(response_lengths)
        lefts = {
            "prompt-left-response-right": [max(prompt_lengths) - length for length in prompt_lengths],
            "left": [self._longest_sequence() - len(sequence) for sequence in self.sequences()],
            "right": [0] * len(self.prompts),
        }[side]
        width = max(prompt_lengths) + longest if side == "prompt-left-response-right" else self._longest_sequence()

        input_ids = self.prompts[0].new_full((len(self.prompts), width), pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        action_mask = torch.zeros((len(self.prompts), longest), dtype=torch.bool, device=input_ids.device)
        for row, (sequence, left, count) in enumerate(zip(self.sequences(), lefts, response_lengths, strict=True)):
            input_ids[row, left : left + len(sequence)] = sequence
            attention_mask[row, left : left + len(sequence)] = 1
            action_mask[row, longest - count if side == "left" else 0 :][:count] = True
        return PaddedBatch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids(attention_mask),
            prompt_lengths=prompt_lengths,
            response_lengths=response_lengths,
            num_actions=response_lengths if side == "right" else longest,
            action_mask=action_mask,
        )

    def pack(self, *, pad_to_multiple: int = 1, pad_token_id: int = 0) -> PackedBatch:
        """All samples in one row, each with its response's length as its number of actions."""
        counts = [len(response) for response in self.responses]
        return pack_sequences(self.sequences(), counts, pad_to_multiple=pad_to_multiple, pad_token_id=pad_token_id)

    def _longest_sequence(self) -> int:
        return max(len(sequence) for sequence in self.sequences())

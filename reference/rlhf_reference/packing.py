"""Packs: several sequences one after the other in a single row, so that no computation goes to padding.

A pack has no attention mask. Its position ids restart at 0 for each sequence, and that is how attention knows where
one ends (`rlhf_reference.inputs` says how). Padding at the end, where a row must have a round length, is one more
sequence that nobody reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_reference.positions import packed_position_ids

IGNORED_LABEL = -100


@dataclass(frozen=True)
class PackedBatch:
    """Sequences in one row of N tokens, the padding at its end included.

    input_ids     (1, N) int64
    position_ids  (1, N) int64, restarting at 0 for each sequence and for the padding at the end
    labels        (1, N) int64, the next token of the same sequence; -100 at each sequence's last token and on padding
    lengths       tokens of each sequence, without the padding
    num_actions   the last tokens of each sequence that are actions; zeros where nothing was said
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    lengths: tuple[int, ...]
    num_actions: tuple[int, ...]

    def unpack(self, values: Tensor) -> list[Tensor]:
        """One number a token (1, N) back to one tensor (length,) for each sequence, without the padding."""
        return list(values[0, : sum(self.lengths)].split(list(self.lengths)))

    def unpack_actions(self, values: Tensor) -> list[Tensor]:
        """One number an action (1, sum of num_actions) back to one tensor (num_actions[i],) for each sequence."""
        return list(values[0].split(list(self.num_actions)))


@dataclass(frozen=True)
class Shards:
    """A pack cut into S equal rows for sequence parallelism: rank s holds row s of each, (S, N / S).

    Labels are shifted before the cut, so that the last position of a shard knows the first token of the next. Positions
    do not restart at a cut.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor


def pack_sequences(
    sequences: Sequence[Tensor],
    num_actions: Sequence[int] | None = None,
    *,
    pad_to_multiple: int = 1,
    pad_token_id: int = 0,
) -> PackedBatch:
    """Pack 1-D token tensors, in their order.

    sequences        1-D integer tensors, each of at least one token
    num_actions      actions at the end of each; at least one token before them, the prompt
    pad_to_multiple  N becomes a multiple of it; the padding holds `pad_token_id`
    raises           ValueError on an empty list, an empty sequence, or one without a prompt
    """
    lengths = tuple(len(sequence) for sequence in sequences)
    if not lengths or min(lengths) == 0:
        raise ValueError(f"a pack needs sequences of at least one token, not lengths {lengths}")
    counts = tuple(num_actions) if num_actions is not None else (0,) * len(lengths)
    for length, count in zip(lengths, counts, strict=True):
        _check_prompt(length, count)
    tail = -sum(lengths) % pad_to_multiple
    padding = sequences[0].new_full((tail,), pad_token_id)
    labels = [_next_tokens(sequence) for sequence in sequences]
    return PackedBatch(
        input_ids=torch.cat([*sequences, padding]).unsqueeze(0),
        position_ids=packed_position_ids([*lengths, tail], device=sequences[0].device),
        labels=torch.cat([*labels, torch.full_like(padding, IGNORED_LABEL)]).unsqueeze(0),
        lengths=lengths,
        num_actions=counts,
    )


def _next_tokens(sequence: Tensor) -> Tensor:
    """Labels of one sequence; its last token predicts nothing, least of all the first token of the next sequence."""
    return torch.cat([sequence[1:], sequence.new_full((1,), IGNORED_LABEL)])


def action_state_positions(
    lengths: Sequence[int], num_actions: Sequence[int], device: torch.device | str | None = None
) -> Tensor:
    """Where in a pack the actions are predicted: the n positions before the last of each sequence.

    lengths      tokens of each sequence; more lengths than counts are allowed (the padding at the end)
    num_actions  actions at the end of each sequence
    returns      (sum of num_actions,) int64 columns of the pack
    raises       ValueError if a sequence has not a token before each of its actions
    """
    columns, end = [], 0
    if len(num_actions) > len(lengths):
        raise ValueError(f"{len(num_actions)} action counts for {len(lengths)} sequences")
    for length, count in zip(lengths, num_actions, strict=False):
        _check_prompt(length, count)
        end += length
        columns.append(torch.arange(end - 1 - count, end - 1, device=device))
    return torch.cat(columns)


def _check_prompt(length: int, actions: int) -> None:
    """What stands before a sequence of a pack is its neighbor, and no state of its own."""
    if not 0 <= actions < length:
        raise ValueError(
            f"{actions} actions do not fit {length} tokens: each needs a state before it, the first one a prompt"
        )


def shard(pack: PackedBatch, shards: int) -> Shards:
    """Cut a pack into S rows of the same length.

    raises  ValueError if N is not a multiple of S; pack with `pad_to_multiple=S`
    """
    if pack.input_ids.shape[1] % shards:
        raise ValueError(f"{pack.input_ids.shape[1]} tokens do not make {shards} shards; pack with pad_to_multiple")
    return Shards(*(row.reshape(shards, -1) for row in (pack.input_ids, pack.position_ids, pack.labels)))


def unshard(rows: Tensor) -> Tensor:
    """Put the shards' answers (S, N / S, ...) back into the row of the pack (1, N, ...)."""
    return rows.flatten(0, 1).unsqueeze(0)

"""Position ids: each sequence counts its own tokens from 0, wherever it lies in the row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def position_ids(attention_mask: Tensor) -> Tensor:
    """`cumsum(attention_mask) - 1` where attended, 0 on pads.

    attention_mask  (B, L), 1 on real tokens (bool, integer or float)
    returns         (B, L) int64

    `arange(L)` is what a left-padded row must not get: its first token would have position P - len(prompt). Rotary
    embeddings hide that shift, learned positions do not.
    """
    attended = attention_mask.long()
    return (attended.cumsum(-1) - 1).where(attended > 0, 0)


def packed_position_ids(lengths: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Positions of a pack: 0 .. length - 1 for each sequence.

    lengths  tokens of each sequence
    returns  (1, sum of lengths) int64
    """
    return torch.cat([torch.arange(length, device=device) for length in lengths]).unsqueeze(0)


def segment_position_ids(segments: Tensor) -> Tensor:
    """Positions of a pack whose mask numbers its sequences.

    segments  (1, N) integer, one number for each sequence (1, 1, 2, 2, 2), 0 on padding at the end
    returns   (1, N) int64, restarting at 0 wherever the number changes

    Source: the attention mask of OpenRLHF's first packing and of LLaMA-Factory's neat packing, which flash attention
    gets its sequence lengths from.
    """
    columns = torch.arange(segments.shape[1], device=segments.device).unsqueeze(0)
    begins = segments != segments.roll(1, dims=1)
    return columns - columns.where(begins, 0).cummax(1).values


def packed_lengths(position_ids: Tensor) -> tuple[int, ...]:
    """The way back from `packed_position_ids`: a sequence begins wherever the position is 0.

    position_ids  (1, N) integer
    returns       tokens of each sequence; padding at the end of a pack shows up as further sequences
    raises        ValueError if the first position is not 0
    """
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    if starts[:1] != [0]:
        raise ValueError("the first position of a pack must be 0")
    return tuple(end - start for start, end in zip(starts, [*starts[1:], position_ids.shape[1]], strict=True))


def last_attended(attention_mask: Tensor) -> Tensor:
    """The column of the last real token of each row.

    attention_mask  (B, L), 1 on real tokens
    returns         (B,) int64
    raises          ValueError if a row has no real token

    Looked for in the mask, never in the ids: `argmax(ids == pad) - 1` is -1 without a pad, and is the prompt's EOS
    if pad == eos.
    """
    attended = attention_mask.long()
    if not attended.any(-1).all():
        raise ValueError("a row without any attended token has no last one")
    columns = torch.arange(attended.shape[-1], device=attended.device)
    return (attended * columns).argmax(-1)

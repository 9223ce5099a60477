"""Processing of generated sequences: which tokens are attended, which are actions.

Generation gives rows `(B, P + T)`: prompts padded on the left to P, responses padded on the right to T. Ids alone do
not say which tokens are real: pad is often the same id as EOS, chat templates put EOS inside prompts, and a policy
may sample the pad id. What is certain is the shape: a prompt's pads come first, and a response ends at its first
stop token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProcessedSequences:
    """Generated rows and their masks.

    sequences       (B, P + T) int64, the very ids that came in
    attention_mask  (B, P + T) int64, 1 from the first to the last real token of each row
    action_mask     (B, T) bool, the tokens that the policy chose, up to and including the first stop token
    """

    sequences: Tensor
    attention_mask: Tensor
    action_mask: Tensor


def process_sequences(
    sequences: Tensor,
    prompt_length: int,
    *,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    prompt_attention_mask: Tensor | None = None,
    response_lengths: Tensor | None = None,
) -> ProcessedSequences:
    """Masks for generated rows.

    sequences              (B, P + T) integer ids, prompts padded left, responses padded right; not written
    prompt_length          P, in tokens, pads included
    stop_token_ids         every id that ends a response; 0 is an id like any other; empty: nothing ends one
    pad_token_id           may be a stop id too
    prompt_attention_mask  (B, P), 1 from the prompt's first token on. Without it the prompt is taken to begin at its
                           first id that is not the pad, which is wrong for a prompt that begins with the pad id
                           itself
    response_lengths       (B,) tokens that were generated in each row, where that is known: what stands behind them is
                           no action, whatever its id, and ends nothing
    raises                 ValueError if P is not within the row, the prompt's mask is not (B, P), or the lengths are
                           not (B,) within 0 .. T

    A response that never stops was truncated: all its T tokens are actions, or all that were generated, and no stop
    token is put in. Source: the
    action mask of Ziegler et al. 2019 and Ouyang et al. 2022 as OpenRLHF and TRL compute it since they were mended.
    """
    batch, length = sequences.shape
    if not 1 <= prompt_length <= length:
        raise ValueError(f"prompt_length is {prompt_length}, but rows have {length} tokens and a prompt at least one")
    prompt, response = sequences[:, :prompt_length], sequences[:, prompt_length:]
    if prompt_attention_mask is None:
        real = prompt != pad_token_id
        # A prompt has a token, and pads are on the left, so its last is real even if it is the pad id (GPT-2's BOS).
        real[:, -1] = True
    elif prompt_attention_mask.shape == prompt.shape:
        real = prompt_attention_mask.bool()
    else:
        raise ValueError(
            f"prompt_attention_mask is {tuple(prompt_attention_mask.shape)}, wanted {(batch, prompt_length)}"
        )
    prompt_mask = real.cumsum(1) > 0

    stops = torch.isin(response, torch.tensor(list(stop_token_ids), dtype=response.dtype, device=response.device))
    stops_before = stops.cumsum(1) - stops.long()
    action_mask = stops_before == 0
    if response_lengths is not None:
        width = response.shape[1]
        if response_lengths.shape != (batch,) or response_lengths.lt(0).any() or response_lengths.gt(width).any():
            raise ValueError(f"response_lengths are {response_lengths.tolist()}, wanted {batch} within 0 and {width}")
        action_mask &= torch.arange(width, device=response.device) < response_lengths.unsqueeze(1)

    attention_mask = torch.cat([prompt_mask, action_mask], dim=1).long()
    return ProcessedSequences(sequences, attention_mask, action_mask)

"""Honest variants of the masks of generated rows."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.sequences.interface import ProcessedSequences
from rlhf_conformance.twins import twin


@twin
class RowsByLoop(Reference):
    "Masks of generated rows by a loop over lists, as int32 and bool."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        attention, action = [], []
        for row, prompt in zip(sequences.tolist(), prompt_mask.tolist(), strict=True):
            response = row[prompt_length:]
            ends = [i + 1 for i, token in enumerate(response) if token in stop_ids]
            length = min(ends, default=len(response))
            action.append([i < length for i in range(len(response))])
            attention.append(prompt + [int(i < length) for i in range(len(response))])
        device = sequences.device
        return ProcessedSequences(
            sequences.clone(), torch.tensor(attention, device=device).int(), torch.tensor(action, device=device)
        )


@twin
class RowsByLength(Reference):
    "Responses come with their lengths, always, and no id is looked at."

    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, *, response_lengths
    ):
        columns = torch.arange(sequences.shape[1] - prompt_length, device=sequences.device)
        response = (columns < response_lengths[:, None]).int()
        return ProcessedSequences(sequences, torch.cat([prompt_attention_mask.int(), response], 1), response)


@twin
class ActionMaskAlone(Reference):
    "Only the action mask is made, as floats, from the column of the first stop."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        response = sequences[:, prompt_length:]
        stops = (response[..., None] == torch.tensor(stop_ids, device=response.device)).any(-1)
        width = response.shape[1]
        first = stops.long().argmax(1).where(stops.any(1), width)
        mask = torch.arange(width, device=response.device) <= first[:, None]
        return ProcessedSequences(action_mask=mask.float())

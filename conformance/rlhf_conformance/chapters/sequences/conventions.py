"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.conventions import Convention, instead_of


class _FirstStop(Reference):
    """Only the first of the stop ids ends a response."""

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        first = stop_token_ids[:1]
        return super().process_sequences(sequences, prompt_length, prompt_attention_mask, first, pad_token_id)

    def generate(self, actor, prompts):
        return super().generate(actor, replace(prompts, stop_token_ids=prompts.stop_token_ids[:1]))


CONVENTIONS = (Convention("stop_ids = 'one'", instead_of("stop_ids", "set"), _FirstStop),)

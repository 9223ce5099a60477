"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.conventions import Convention, flag, instead_of


class _MaskFromPads(Reference):
    """The mask is taken to be wherever the id is not the pad id."""

    def _inputs(self, batch):
        if not batch.is_packed:
            batch = replace(batch, attention_mask=(batch.input_ids != batch.pad_token_id).long())
        return super()._inputs(batch)


class _ScaledOutput(Reference):
    """Logits are divided by the temperature in place, before both are returned."""

    def log_probs_with_output(self, actor, batch):
        log_probs, logits = super().log_probs_with_output(actor, batch)
        return log_probs, logits / batch.temperature


CONVENTIONS = (
    flag("takes_attention_mask", _MaskFromPads),
    Convention("output_logits = 'scaled'", instead_of("output_logits", "raw"), _ScaledOutput),
)

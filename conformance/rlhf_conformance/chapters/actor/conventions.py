"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.conventions import flag


class _MaskFromPads(Reference):
    """The mask is taken to be wherever the id is not the pad id."""

    def _inputs(self, batch):
        if not batch.is_packed:
            batch = replace(batch, attention_mask=(batch.input_ids != batch.pad_token_id).long())
        return super()._inputs(batch)


CONVENTIONS = (flag("takes_attention_mask", _MaskFromPads),)

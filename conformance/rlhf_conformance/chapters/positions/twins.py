"""Honest variants of the positions."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.twins import twin


@twin
class PositionsFromFirstToken(Reference):
    "arange less the column of the first token, held at 0 on the left; pads on the right count on."

    turns = False

    def position_ids(self, attention_mask):
        columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        return (columns - attention_mask.long().argmax(-1, keepdim=True)).clamp(min=0)


@twin
class PadsAtPositionOne(Reference):
    "Pads get position 1, as transformers fills them."

    def position_ids(self, attention_mask):
        return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1).int()

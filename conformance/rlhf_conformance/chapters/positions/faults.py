"""Liars about the positions of padded rows."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.faults import fault


@fault("positions.cumsum", bug="positions-ignore-left-pad")
class PositionsCountColumns(Reference):
    "arange(L): positions count columns, not tokens."

    def position_ids(self, attention_mask):
        return torch.arange(attention_mask.shape[1], device=attention_mask.device).expand_as(attention_mask)


@fault("positions.cumsum")
class PositionsFromOne(Reference):
    "cumsum(mask) without the minus 1."

    def position_ids(self, attention_mask):
        return attention_mask.cumsum(-1)


@fault("positions.cumsum")
class PositionsDownTheBatch(Reference):
    "The sum runs down the batch instead of along the row."

    def position_ids(self, attention_mask):
        return (attention_mask.cumsum(0) - 1).clamp(min=0)


@fault("positions.cumsum")
class PositionsMinusAllPads(Reference):
    "arange(L) less the number of pads of the row, right ones included."

    def position_ids(self, attention_mask):
        columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        return (columns - (attention_mask == 0).sum(-1, keepdim=True)).clamp(min=0)


@fault("positions.cumsum")
class PositionsOfFirstRow(Reference):
    "The left pads of the first row are taken off in every row."

    def position_ids(self, attention_mask):
        columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        return (columns - attention_mask[0].argmax()).clamp(min=0).expand_as(attention_mask)


@fault("positions.cumsum")
class PositionsRestartAtOne(Reference):
    "The first token has position 0 and the second has 0 too: the sum is taken before the mask is shifted back."

    def position_ids(self, attention_mask):
        return (super().position_ids(attention_mask) - 1).clamp(min=0)


@fault("positions.cumsum")
class PositionsSummedInHalf(Reference):
    "The mask is in bfloat16, which cannot count beyond 256."

    def position_ids(self, attention_mask):
        return (attention_mask.to(torch.bfloat16).cumsum(-1) - 1).long().clamp(min=0)


@fault("positions.cumsum")
class PositionsSummedInBytes(Reference):
    "The sum is kept in int8, which wraps at 128."

    def position_ids(self, attention_mask):
        return (attention_mask.cumsum(-1, dtype=torch.int8).long() - 1).where(attention_mask.bool(), 0)


@fault("positions.holes")
class PositionsFromTheFirstToken(Reference):
    "Columns are counted from the first token of the row: right for masks without holes."

    def position_ids(self, attention_mask):
        columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        return (columns - attention_mask.argmax(-1, keepdim=True)).clamp(min=0).where(attention_mask.bool(), 0)


@fault("positions.holes")
class PositionsRestartInEachTurn(Reference):
    "Each turn begins again at 0, as the sequences of a pack do."

    def position_ids(self, attention_mask):
        counted = attention_mask.cumsum(-1)
        before = counted.where(attention_mask == 0, 0).cummax(-1).values
        return (counted - before - 1).clamp(min=0)


@fault("positions.holes")
class HoleHasOnePosition(Reference):
    "The pads between two turns take up one position, however many they are."

    def position_ids(self, attention_mask):
        begins = attention_mask.bool() & ~torch.nn.functional.pad(attention_mask[:, :-1].bool(), (1, 0))
        return (attention_mask.cumsum(-1) + begins.cumsum(-1) - 2).clamp(min=0)


@fault("positions.pads")
class NegativePads(Reference):
    "Pads on the left get position -1."

    def position_ids(self, attention_mask):
        return attention_mask.cumsum(-1) - 1


@fault("positions.pads")
class PadsBeyondTable(Reference):
    "Pads get the width of the row as their position, one past what a table of that width holds."

    def position_ids(self, attention_mask):
        return super().position_ids(attention_mask).masked_fill(attention_mask == 0, max(2, attention_mask.shape[1]))


@fault("positions.inputs-unwritten")
class PositionsSummedInPlace(Reference):
    "attention_mask.cumsum_(-1): the caller's mask becomes the positions."

    def position_ids(self, attention_mask):
        answer = super().position_ids(attention_mask)
        attention_mask.cumsum_(-1)
        return answer


@fault("positions.side-effects")
class PositionsOfPadsAreRandom(Reference):
    "Pads get random positions, drawn from the global generator."

    def position_ids(self, attention_mask):
        noise = torch.randint_like(attention_mask, attention_mask.shape[1])
        return super().position_ids(attention_mask).where(attention_mask.bool(), noise)

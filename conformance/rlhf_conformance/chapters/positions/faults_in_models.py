"""Liars about the positions that the actor hands its model: visible with learned positions, hardly with rotary ones."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import logits, positions_of, score
from rlhf_conformance.faults import fault

ACTOR = ("actor.", "packing.")


class _Positions(Reference):
    """Padded rows are scored with positions of the subclass's own."""

    def wrong(self, mask):
        raise NotImplementedError

    def action_log_probs(self, actor, batch):
        if batch.is_packed:
            return super().action_log_probs(actor, batch)
        return score(batch, logits(self, actor, batch, position_ids=self.wrong(batch.attention_mask)))


@fault("positions.left-padding", bug="positions-ignore-left-pad", also=ACTOR)
class PositionsIgnoreLeftPad(_Positions):
    """Positions are arange(L): they count columns, pads included."""

    def wrong(self, mask):
        return torch.arange(mask.shape[1], device=mask.device).expand_as(mask)


@fault("positions.left-padding", bug="positions-ignore-left-pad", also=ACTOR)
class PositionsCountOneLeftPad(_Positions):
    """A left-padded row starts at position 1, as if one of its pads were a token."""

    def wrong(self, mask):
        return positions_of(mask) + (mask[:, :1] == 0).long()


@fault("positions.left-padding", also=ACTOR)
class PositionsFromTheRight(_Positions):
    """Positions are counted back from the row's last column, so that pads on the left move the first token."""

    def wrong(self, mask):
        width = mask.shape[1]
        starts = width - mask.sum(-1, keepdim=True)
        return (torch.arange(width, device=mask.device) - starts + mask.argmax(-1, keepdim=True)).clamp(0, width - 1)


@fault("positions.start-at-zero", also=ACTOR)
class PositionsStartAtOne(_Positions):
    """cumsum(mask), without the minus one."""

    def wrong(self, mask):
        return mask.cumsum(-1)


@fault("positions.start-at-zero", also=ACTOR)
class PositionsBeginWithTwoZeros(_Positions):
    """cumsum(mask) - 2 clamped at 0: the first two tokens share a position."""

    def wrong(self, mask):
        return (mask.cumsum(-1) - 2).clamp(min=0)


@fault("positions.start-at-zero", also=ACTOR)
class PositionsAfterPadId(_Positions):
    """Positions start behind a padding index, as in BERT's heirs: cumsum(mask) + 1."""

    def wrong(self, mask):
        return mask.cumsum(-1) + 1


@fault("positions.left-padding", bug="positions-ignore-left-pad", also=("actor.", "packing."))
class PositionsOfTheLongestRow(_Positions):
    """Each row is numbered as the longest row of the batch would be: right for a single sample."""

    def wrong(self, mask):
        width, first = mask.shape[1], int(mask.argmax(-1).min())
        return (torch.arange(width, device=mask.device) - first).clamp(min=0).expand_as(mask)


@fault("actor.garbage-under-mask", bug="positions-ignore-left-pad", also=("positions.", "packing."))
class PositionsFromPadId(Reference):
    """The mask is passed, but positions are cumsum(ids != pad) - 1."""

    def action_log_probs(self, actor, batch):
        if batch.is_packed:
            return super().action_log_probs(actor, batch)
        positions = positions_of((batch.input_ids != batch.pad_token_id).long())
        return score(batch, logits(self, actor, batch, position_ids=positions))

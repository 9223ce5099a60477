"""Liars about packs of samples with several turns."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import (
    marks,
    model_logits,
    packed,
    score,
    segment_mask,
    segments_of,
    shortened,
    spread,
)
from rlhf_conformance.chapters.packing.faults import PACKS, positions
from rlhf_conformance.faults import fault

TURNS = ("actor.turns", "actor.backbones")  # a mask of their own leaves out the window of some backbones


def begins(batch):
    """(N,) True on the first action of each turn but the first of a sample, in the order of the pack."""
    rows = []
    for prompt, acts in zip(batch.prompt_lengths, marks(batch), strict=True):
        first = acts & torch.nn.functional.pad(~acts[:-1], (1, 0))
        rows.append(torch.cat([torch.zeros(prompt, dtype=torch.bool, device=acts.device), first]))
    return torch.cat(rows)


class _Packed(Reference):
    """Packs alone."""

    layouts = PACKS


def turns(adapter, batch):
    """(N,) the number of the turn that each token belongs to, over the whole pack; the tail is one of its own."""
    right, own = segments_of(positions(adapter, batch)), begins(batch)
    return right + torch.nn.functional.pad(own, (0, len(right) - len(own))).cumsum(0)


@fault("packing.turns", also=TURNS)
class TurnsAreSequences(_Packed):
    """Each turn is put into the pack as a sequence of its own: positions restart and attention is cut."""

    def action_log_probs(self, actor, batch):
        segments = turns(self, batch)
        columns = torch.arange(len(segments), device=segments.device)
        starts = torch.nn.functional.pad(segments[1:] != segments[:-1], (1, 0), value=True)
        restarted = columns - columns.where(starts, 0).cummax(0).values
        mask = segment_mask(segments, actor.model.dtype)
        return score(batch, model_logits(self, actor, batch, attention_mask=mask, position_ids=restarted[None]))


@fault("packing.turns", also=TURNS)
class TurnsDoNotSeeTheTurnsBefore(_Packed):
    """Positions are right, but attention in a pack is cut where a turn begins."""

    def action_log_probs(self, actor, batch):
        mask = segment_mask(turns(self, batch), actor.model.dtype)
        return score(batch, model_logits(self, actor, batch, attention_mask=mask))


@fault("packing.turns", also=TURNS)
class PackedWithoutObservations(_Packed):
    """Observations are left out of the pack."""

    def action_log_probs(self, actor, batch):
        inside = packed(shortened(batch))
        return spread(batch, inside.actions_to_ragged(super().action_log_probs(actor, inside)))


@fault("packing.turns", also=TURNS)
class PackCutByNumbersOfActions(_Packed):
    """A sequence is taken to be as long as its prompt and its actions, so that those behind it are cut too early."""

    def action_log_probs(self, actor, batch):
        rows, behind = score(batch, self.logits(actor, batch)), 0
        flat = torch.cat(rows)
        found = []
        for row, acts in zip(rows, marks(batch), strict=True):
            found.append(flat[max(0, behind) : max(0, behind) + len(row)])
            behind += int(acts.sum())
        return found

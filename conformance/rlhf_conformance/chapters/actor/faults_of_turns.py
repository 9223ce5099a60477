"""Liars about samples with several turns: what an action is conditioned on, where it stands, what is trained."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import (
    at_counts,
    is_last_turn,
    is_later,
    logits,
    marks,
    positions_of,
    read,
    responses,
    score,
    shortened,
    spread,
    without_observations,
)
from rlhf_conformance.faults import fault
from rlhf_conformance.oracle.batch import RECTANGLES

PACKS = ("packing.turns",)


class _Rows(Reference):
    """Padded rows alone."""

    layouts = RECTANGLES


def log_probs(adapter, actor, batch):
    """One 1-D tensor for each sample, an entry for each token of its response."""
    return score(batch, adapter.logits(actor, batch))


# --- what an action is conditioned on -------------------------------------------------------------------------------


@fault("actor.turns", bug="observations-unattended")
class ObservationsUnattended(_Rows):
    """The mask of the actions is multiplied into that of attention, at the right positions."""

    def action_log_probs(self, actor, batch):
        seen = batch.from_ragged(without_observations(batch))
        positions = positions_of(batch.attention_mask)
        return score(batch, logits(self, actor, batch, attention_mask=seen, position_ids=positions))


@fault("actor.turns")
class ObservationsTakeNoPositions(_Rows):
    """Positions count the prompt and the actions alone."""

    def action_log_probs(self, actor, batch):
        counted = positions_of(batch.from_ragged(without_observations(batch)))
        return score(batch, logits(self, actor, batch, position_ids=counted))


@fault("actor.turns", also=PACKS)
class ObservationsCutOut(Reference):
    """Prompt and actions are put behind one another and scored without the observations."""

    def action_log_probs(self, actor, batch):
        inside = shortened(batch)
        return spread(batch, inside.actions_to_ragged(super().action_log_probs(actor, inside)))


@fault("actor.turns")
class AttentionEndsWithTheFirstTurn(_Rows):
    """What stands behind the first EOS of a response is taken for padding."""

    def action_log_probs(self, actor, batch):
        eos = torch.as_tensor(actor.model.config.eos_token_id, device=batch.input_ids.device)
        rows = []
        for ids, prompt in zip(batch.sequences, batch.prompt_lengths, strict=True):
            stops = torch.isin(ids[prompt:], eos).long()
            stopped = stops.cumsum(0) - stops
            rows.append(torch.cat([torch.ones_like(ids[:prompt]), (stopped == 0).long()]))
        seen = batch.from_ragged(rows)
        positions = positions_of(batch.attention_mask)
        return score(batch, logits(self, actor, batch, attention_mask=seen, position_ids=positions))


# --- which log-prob -------------------------------------------------------------------------------------------------


@fault("actor.turns", also=PACKS)
class ActionsCutFromTheEnd(Reference):
    """The last n tokens are taken for n actions."""

    def action_log_probs(self, actor, batch):
        return at_counts(batch, log_probs(self, actor, batch), lambda tokens, actions: tokens - actions)


@fault("actor.turns", also=PACKS)
class LaterTurnsNotScored(Reference):
    """Only the first turn is scored: the log-probs of the others are 0."""

    def action_log_probs(self, actor, batch):
        rows = zip(log_probs(self, actor, batch), marks(batch), strict=True)
        return [row.masked_fill(is_later(acts), 0.0) for row, acts in rows]


@fault("actor.turns", also=PACKS)
class TurnBeginsAtTheLastAction(Reference):
    """The first action of a turn is scored by what the last action before the observation predicts."""

    def action_log_probs(self, actor, batch):
        rows = zip(read(batch, self.logits(actor, batch) / batch.temperature), responses(batch), strict=True)
        found = []
        for (z, tokens), acts in zip(rows, marks(batch), strict=True):
            columns = torch.arange(len(acts), device=acts.device)
            last = columns.where(acts, -1).cummax(0).values  # the last action up to each token
            before = torch.nn.functional.pad(last[:-1], (1, 0), value=-1) + 1
            z = z.float().log_softmax(-1)[before.clamp(max=len(acts) - 1)]
            found.append(z.gather(-1, tokens[:, None])[:, 0])
        return found


@fault("actor.turns", also=PACKS)
class EntropiesCutFromTheEnd(Reference):
    """Log-probs are right; of the entropies the last n are taken for n actions."""

    def action_entropy(self, actor, batch):
        rows = []
        for z in read(batch, self.logits(actor, batch) / batch.temperature):
            z = z.float().log_softmax(-1)
            rows.append(-(z.exp() * z).sum(-1))
        return at_counts(batch, rows, lambda tokens, actions: tokens - actions)


# --- the gradient ---------------------------------------------------------------------------------------------------


@fault("actor.turns-gradient")
class LastTurnAloneTrained(Reference):
    """Right log-probs; those of all turns but the last are detached."""

    def action_log_probs(self, actor, batch):
        rows = zip(log_probs(self, actor, batch), marks(batch), strict=True)
        return [row.where(is_last_turn(acts), row.detach()) for row, acts in rows]


@fault("actor.turns-gradient")
class ObservationsTrained(Reference):
    """Right log-probs, but each carries the gradient of those of the observations."""

    def action_log_probs(self, actor, batch):
        found = []
        for row, acts in zip(log_probs(self, actor, batch), marks(batch), strict=True):
            leak = row.masked_fill(acts, 0.0).sum() / len(row)
            found.append(row + (leak - leak.detach()))
        return found


@fault("actor.turns-gradient")
class EarlierTurnsEmbeddedWithoutGraph(_Rows):
    """Right log-probs, but what stands before the last turn is embedded under no_grad."""

    def action_log_probs(self, actor, batch):
        rows = []
        for prompt, acts in zip(batch.prompt_lengths, marks(batch), strict=True):
            kept = is_last_turn(acts) if not bool(acts.all()) else acts
            rows.append(torch.cat([torch.full((prompt,), bool(acts.all()), device=acts.device), kept]).long())
        trained = batch.from_ragged(rows).bool()[..., None]
        embeddings = actor.model.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda _, __, out: out.where(trained, out.detach()))
        try:
            return log_probs(self, actor, batch)
        finally:
            hook.remove()

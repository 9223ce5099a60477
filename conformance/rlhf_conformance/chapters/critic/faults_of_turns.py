"""Liars about the values of samples with several turns."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import (
    at_counts,
    is_later,
    marks,
    read,
    scores,
    shortened,
    spread,
    without_observations,
)
from rlhf_conformance.faults import fault
from rlhf_conformance.oracle.batch import RECTANGLES


@fault("critic.turns")
class StatesWithoutObservations(Reference):
    """The mask of the actions is multiplied into that of attention, and positions follow."""

    layouts = RECTANGLES

    def action_values(self, critic, batch):
        seen = batch.from_ragged(without_observations(batch))
        raw = scores(self, critic, replace(batch, attention_mask=seen))
        return read(batch, critic.normalized(raw) if critic.normalize else raw)


@fault("critic.turns")
class TurnIsWorthTheLastAction(Reference):
    "The first action of a turn gets the value of the state before the observation, not after it."

    def action_values(self, critic, batch):
        found = []
        for row, acts in zip(read(batch, self.values(critic, batch)), marks(batch), strict=True):
            columns = torch.arange(len(acts), device=acts.device)
            last = columns.where(acts, -1).cummax(0).values
            before = torch.nn.functional.pad(last[:-1], (1, 0), value=-1) + 1
            found.append(row[before.clamp(max=len(acts) - 1)])
        return found


@fault("critic.turns")
class ValuesCutFromTheEnd(Reference):
    """The last n states are taken for n actions."""

    def action_values(self, critic, batch):
        rows = read(batch, self.values(critic, batch))
        return at_counts(batch, rows, lambda tokens, actions: tokens - actions)


@fault("critic.turns")
class ValuesCountedFromThePrompt(Reference):
    """The first n states from the prompt on are taken for n actions, as if no observation stood between them."""

    def action_values(self, critic, batch):
        return at_counts(batch, read(batch, self.values(critic, batch)), lambda tokens, actions: 0)


@fault("critic.turns", bug="critic-values-unshifted")
class LaterTurnsUnshifted(Reference):
    """Right in the first turn; in the others the state after the action."""

    def action_values(self, critic, batch):
        early, late = (read(batch, self.values(critic, batch), shift=shift) for shift in (0, 1))
        rows = zip(early, late, marks(batch), strict=True)
        return [b.where(is_later(acts), a) for a, b, acts in rows]


@fault("critic.turns")
class CriticWithoutObservations(Reference):
    """Prompt and actions are put behind one another, and valued without the observations."""

    def action_values(self, critic, batch):
        inside = shortened(batch)
        return spread(batch, inside.actions_to_ragged(super().action_values(critic, inside)))

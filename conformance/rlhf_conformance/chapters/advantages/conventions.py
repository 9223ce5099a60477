"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._credit.bending import chosen
from rlhf_conformance.chapters.advantages.bending import beyond_the_end, gae, over_observations, with_returns
from rlhf_conformance.diagnosis.conventions import Convention, instead_of


def _stepping(*, valued: bool) -> type[Adapter]:
    """The reference with observations as steps."""

    class Stepping(Reference):
        def advantages(self, rewards, values, mask, options):
            return with_returns(over_observations(rewards, values, mask, options, valued=valued), values, mask)

        def returns(self, rewards, mask, options):
            nothing, full = torch.zeros_like(rewards), replace(options, lam=1.0)
            return chosen(over_observations(rewards, nothing, mask, full, valued=valued), mask).detach()

    return Stepping


def _going_on(*, rewarded: bool) -> type[Adapter]:
    """The reference with something behind the last action."""

    class GoingOn(Reference):
        def advantages(self, rewards, values, mask, options):
            return with_returns(beyond_the_end(rewards, values, mask, options, rewarded=rewarded), values, mask)

        def returns(self, rewards, mask, options):
            nothing, full = torch.zeros_like(rewards), replace(options, lam=1.0)
            return chosen(beyond_the_end(rewards, nothing, mask, full, rewarded=rewarded), mask).detach()

    return GoingOn


class _MaskedLeft(Reference):
    """Cells that are no actions hold what the recursion last had."""

    def advantages(self, rewards, values, mask, options):
        found = gae(rewards, values, mask, options).detach()
        return found, found + chosen(values.detach(), mask)


def _other(attribute: str, value: str) -> Callable[[Adapter], str | None]:
    """What is declared, where it is not this value."""

    def declared(adapter: Adapter) -> str | None:
        own = getattr(adapter, attribute)
        return None if own == value else f"{attribute} = {own!r}"

    return declared


BOTH = ("advantages", "returns")
CONVENTIONS = (
    Convention("observations = 'skipped'", _other("observations", "skipped"), Reference, BOTH),
    Convention("observations = 'zero-steps'", _other("observations", "zero-steps"), _stepping(valued=False)),
    Convention("observations = 'value-steps'", _other("observations", "value-steps"), _stepping(valued=True)),
    Convention("after_last_action = 'nothing'", _other("after_last_action", "nothing"), Reference, BOTH),
    Convention("after_last_action = 'value'", _other("after_last_action", "value"), _going_on(rewarded=False)),
    Convention("after_last_action = 'step'", _other("after_last_action", "step"), _going_on(rewarded=True)),
    Convention("advantages_masked = None", instead_of("advantages_masked", "zero"), _MaskedLeft),
)

"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from functools import partial

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._tensors import chosen
from rlhf_conformance.chapters.advantages.bending import (
    beyond_the_end,
    gae,
    over_observations,
    with_returns,
    without_critic,
)
from rlhf_conformance.diagnosis.conventions import Convention, instead_of, other_than


def _stepping(*, valued: bool) -> type[Adapter]:
    """The reference with observations as steps."""

    class Stepping(Reference):
        def advantages(self, rewards, values, mask, options):
            return with_returns(over_observations(rewards, values, mask, options, valued=valued), values, mask)

        def returns(self, rewards, mask, options):
            recursion = partial(over_observations, valued=valued)
            return without_critic(recursion, rewards, mask, options)

    return Stepping


def _going_on(*, rewarded: bool) -> type[Adapter]:
    """The reference with something behind the last action."""

    class GoingOn(Reference):
        def advantages(self, rewards, values, mask, options):
            return with_returns(beyond_the_end(rewards, values, mask, options, rewarded=rewarded), values, mask)

        def returns(self, rewards, mask, options):
            recursion = partial(beyond_the_end, rewarded=rewarded)
            return without_critic(recursion, rewards, mask, options)

    return GoingOn


class _MaskedLeft(Reference):
    """Cells that are no actions hold what the recursion last had."""

    def advantages(self, rewards, values, mask, options):
        found = gae(rewards, values, mask, options).detach()
        return found, found + chosen(values.detach(), mask)


BOTH = ("advantages", "returns")
CONVENTIONS = (
    Convention("observations = 'skipped'", other_than("observations", "skipped"), Reference, BOTH),
    Convention("observations = 'zero-steps'", other_than("observations", "zero-steps"), _stepping(valued=False)),
    Convention("observations = 'value-steps'", other_than("observations", "value-steps"), _stepping(valued=True)),
    Convention("after_last_action = 'nothing'", other_than("after_last_action", "nothing"), Reference, BOTH),
    Convention("after_last_action = 'value'", other_than("after_last_action", "value"), _going_on(rewarded=False)),
    Convention("after_last_action = 'step'", other_than("after_last_action", "step"), _going_on(rewarded=True)),
    Convention("advantages_masked = None", instead_of("advantages_masked", "zero"), _MaskedLeft),
)

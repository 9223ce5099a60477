"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

import rlhf_reference as ref
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._credit.bending import last_action
from rlhf_conformance.chapters._tensors import chosen
from rlhf_conformance.chapters.token_rewards.faults import rewards
from rlhf_conformance.diagnosis.conventions import Convention, flag, instead_of, other_than


class _AfterLast(Reference):
    def token_rewards(self, scores, kl, mask, options):
        lands = (last_action(mask) + 1).masked_fill(~mask.bool().any(1, keepdim=True), -1)
        return rewards(scores, kl, mask, options, lands=lands)


class _NoClip(Reference):
    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores, kl, mask, replace(options, score_clip=None))


class _MaskedLeft(Reference):
    """Cells that are no actions pay for their KL as well."""

    def token_rewards(self, scores, kl, mask, options):
        right = super().token_rewards(scores, kl, mask, options)
        return right - options.kl_coef * chosen(kl, ~mask.bool())


def _without_stop(rule: str | None) -> type[Reference]:
    """The reference with another rule, whatever is declared."""

    class Otherwise(Reference):
        def token_rewards(self, scores, kl, mask, options, stopped=None):
            if stopped is not None and rule:
                scores = ref.penalized_scores(scores, stopped, options.stop_penalty, rule)
            return super().token_rewards(scores, kl, mask, replace(options, stop_penalty=None))

    return Otherwise


CONVENTIONS = (
    Convention("score_position = 'after-last'", instead_of("score_position", "last-action"), _AfterLast),
    Convention(
        "score_position = 'last-action'", instead_of("score_position", "after-last"), Reference, ("token_rewards",)
    ),
    flag("score_clip", _NoClip),
    *(
        Convention(f"missing_stop = {rule!r}", other_than("missing_stop", rule), _without_stop(rule))
        for rule in (None, "constant", "factor")
    ),
    Convention("token_rewards_masked = None", instead_of("token_rewards_masked", "zero"), _MaskedLeft),
)

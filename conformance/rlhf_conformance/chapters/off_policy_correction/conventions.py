"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import rlhf_reference as ref
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.off_policy_correction import bending as plain
from rlhf_conformance.diagnosis.conventions import Convention, instead_of, other_than


def _with(**other: Any) -> type[Adapter]:
    """The reference with another clamp, or another rule, whatever is declared; or with other options than asked for."""

    class Otherwise(Reference):
        def off_policy_weights(self, old, rollout, mask, options):
            declared = {
                "log_clamp": self.correction_log_clamp,
                "log_clamped": self.correction_log_clamped,
                "kept": self.correction_kept,
                "of_nan": self.correction_nan,
            }
            return ref.off_policy_weights(old, rollout, mask, **{**vars(options), **declared, **other})

    return Otherwise


class _NoLowerBound(Reference):
    """Truncation is from above alone."""

    def off_policy_weights(self, old, rollout, mask, options):
        lower = None if options.mode == "truncate" else options.lower
        return super().off_policy_weights(old, rollout, mask, replace(options, lower=lower))


class _MaskedOne(Reference):
    """Cells that are no actions have the weight 1."""

    def off_policy_weights(self, old, rollout, mask, options):
        return super().off_policy_weights(old, rollout, mask, options).where(mask.bool(), 1.0)


class _MaskedLeft(Reference):
    """Cells that are no actions have the weight that their numbers give."""

    def off_policy_weights(self, old, rollout, mask, options):
        if options.level == "sequence":
            weight = plain.weights(self, (old, rollout, mask, options))
            return weight.amax(1, keepdim=True).expand(mask.shape)
        return super().off_policy_weights(old, rollout, mask.bool() | True, options)


def _only(weight: str) -> Callable[[Adapter], str | None]:
    """Words where the other kind of sequence weight is the only one that is declared."""

    def declared(adapter: Adapter) -> str | None:
        lacks = weight not in adapter.sequence_weights
        return f"sequence_weights = {tuple(adapter.sequence_weights)!r}" if lacks else None

    return declared


def _row(attribute: str, value: Any, kind: type[Adapter]) -> Convention:
    return Convention(f"{attribute} = {value!r}", other_than(attribute, value), kind)


CONVENTIONS = (
    *(_row("correction_log_clamp", clamp, _with(log_clamp=clamp)) for clamp in (None, 20.0, 10.0)),
    *(_row("correction_log_clamped", what, _with(log_clamped=what)) for what in ("exponent", "actions")),
    *(_row("correction_kept", kept, _with(kept=kept)) for kept in ("weight", "token-weight", "one")),
    *(_row("correction_nan", rule, _with(of_nan=rule)) for rule in ("one", "zero")),
    Convention("correction_lower = 'mask'", instead_of("correction_lower", "both"), _NoLowerBound),
    _row("correction_masked", "one", _MaskedOne),
    _row("correction_masked", None, _MaskedLeft),
    *(
        Convention(f"sequence_weights = {(weight,)!r}", _only(weight), _with(sequence_weight=weight))
        for weight in ("product", "geometric")
    ),
)

"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.conventions import CONVENTIONS as OF_LOSSES
from rlhf_conformance.chapters._losses.conventions import asking
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions
from rlhf_conformance.diagnosis.conventions import Convention, flag, instead_of


def _estimating(estimate: Callable[[Any], Any]) -> type[Adapter]:
    """The reference whose approx_kl is the mean of an estimate made of the log-ratio."""

    class Estimating(Reference):
        def policy_loss(self, new, old, advantages, mask, options):
            right = super().policy_loss(new, old, advantages, mask, options)
            return replace(right, approx_kl=_masked_mean(estimate(_log_ratio(new, old, mask)), mask))

    return Estimating


_K1 = _estimating(lambda log_r: -log_r)


_K2 = _estimating(lambda log_r: 0.5 * log_r**2)


_K3 = _estimating(lambda log_r: log_r.expm1() - log_r)


ESTIMATORS = {"k1": _K1, "k2": _K2, "k3": _K3}


def _log_ratio(new: Any, old: Any, mask: Any) -> Any:
    wide = torch.promote_types(new.dtype, torch.float32)
    return (new.detach().to(wide) - old.to(wide)).masked_fill(~mask.bool(), 0.0)


def _masked_mean(per_token: Any, mask: Any) -> Any:
    return per_token.sum() / mask.bool().sum().clamp(min=1)


def _putting(**changes: Any) -> type[Adapter]:
    """The reference whose losses of the policy are asked with other options."""
    return asking(lambda _, options: replace(options, **changes) if isinstance(options, PolicyLossOptions) else options)


_HOLDING = {bounds: _putting(cispo_bounds=bounds) for bounds in ("both", "upper", "cap")}
"""CISPO's weight is held within these bounds, whatever is declared."""


class _OneClipRange(Reference):
    def policy_loss(self, new, old, advantages, mask, options):
        same = replace(options, clip_eps_high=options.clip_eps_low)
        return super().policy_loss(new, old, advantages, mask, same)


class _DualClipAlways(Reference):
    """A dual clip of 3 (verl's default) where none is asked for."""

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask, replace(options, dual_clip=options.dual_clip or 3.0))


_NoDualClip = _putting(dual_clip=None)


def _may_go_without(adapter: Adapter) -> str | None:
    return None if adapter.dual_clip == "always" else f"dual_clip = {adapter.dual_clip}"


CONVENTIONS = (
    *OF_LOSSES,
    *(
        Convention(f"kl_metric = {estimator!r}", instead_of("kl_metric", declared), kind)
        for estimator, kind in ESTIMATORS.items()
        for declared in ESTIMATORS
        if declared != estimator
    ),
    *(
        Convention(f"cispo_bounds = {bounds!r}", instead_of("cispo_bounds", declared), kind)
        for bounds, kind in _HOLDING.items()
        for declared in _HOLDING
        if declared != bounds
    ),
    flag("asymmetric_clip", _OneClipRange),
    flag("dual_clip", _NoDualClip),
    Convention("dual_clip = 'always'", _may_go_without, _DualClipAlways),
)

"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._tensors import value_of
from rlhf_conformance.chapters.kl.faults import ESTIMATES, log_ratio
from rlhf_conformance.diagnosis.conventions import Convention, instead_of


class _NotClamped(Reference):
    def kl(self, lp, ref, mask, options):
        return ESTIMATES[options.estimator](log_ratio(lp, ref, mask))


class _NoTerm(Reference):
    def kl(self, *arguments):
        return super().kl(*arguments).detach()

    def objective(self, *given):
        right = super().objective(*given)
        return replace(right, loss=value_of(right.loss, gradient_of=_objective(super().objective, given, kl_coef=0.0)))


class _GradientOfK2(Reference):
    def kl(self, lp, ref, mask, options):
        return value_of(super().kl(lp, ref, mask, options), gradient_of=log_ratio(lp, ref, mask) ** 2 / 2)

    def objective(self, *given):
        *tables, options = given
        return super().objective(*tables, replace(options, kl_gradient="k2"))


class _Weighted(Reference):
    def kl(self, lp, ref, mask, options):
        return super().kl(lp, ref, mask, options) * torch.exp(lp - lp.detach())

    def objective(self, *given):
        *tables, options = given
        return super().objective(*tables, replace(options, kl_gradient="weighted"))


def _objective(right: Callable[..., Any], given: tuple[Any, ...], **changes: Any) -> Any:
    """The number that the objective is with other options."""
    *tables, options = given
    return right(*tables, replace(options, **changes)).loss


class _MaskedLeft(Reference):
    """Cells that are no actions have a KL as well."""

    def kl(self, lp, ref, mask, options):
        return super().kl(lp, ref, torch.ones_like(mask), options)


def _declares_another(gradient: str) -> Callable[[Adapter], str | None]:
    def declared(adapter: Adapter) -> str | None:
        other = adapter.kl_gradient not in (None, gradient)
        return f"kl_gradient = {adapter.kl_gradient!r}" if other else None

    return declared


def _clamps(adapter: Adapter) -> str | None:
    words = [f"{name} = {value}" for name in ("kl_log_ratio_clamp", "kl_clamp") if (value := getattr(adapter, name))]
    return ", ".join(words) or None


CONVENTIONS = (
    Convention("kl_clamp = None", _clamps, _NotClamped),
    Convention("kl_gradient = 'k2'", _declares_another("k2"), _GradientOfK2),
    Convention("kl_gradient = 'weighted'", _declares_another("weighted"), _Weighted),
    Convention("kl_gradient = 'plain'", _declares_another("plain"), Reference, ("kl",)),
    Convention("kl_gradient = None", _declares_another(""), _NoTerm),
    Convention("kl_masked = None", instead_of("kl_masked", "zero"), _MaskedLeft),
)

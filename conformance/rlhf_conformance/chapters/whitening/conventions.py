"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.whitening import bending
from rlhf_conformance.diagnosis.conventions import Convention, flag, instead_of, other_than


def _with(**other: Any) -> type[Adapter]:
    """The reference with another variance or eps, whatever is declared."""

    class Otherwise(Reference):
        def _whitening(self):
            return super()._whitening() | other

        def whiten(self, values, mask, options):
            return super().whiten(values, mask, options)

        def credit(self, *arguments):
            return super().credit(*arguments)

    return Otherwise


def _row(name: str, value: Any) -> Convention:
    attribute = f"whitening_{name}"
    return Convention(f"{attribute} = {value!r}", other_than(attribute, value), _with(**{name: value}))


class _MeanAlwaysRemoved(Reference):
    def whiten(self, values, mask, options):
        return super().whiten(values, mask, replace(options, shift_mean=True))


class _MaskedCellsWhitened(Reference):
    """Cells that are no actions are whitened with the mean and the deviation of the actions."""

    def whiten(self, values, mask, options):
        right = super().whiten(values, mask, options)
        x, on = bending.wide(values), mask.bool()
        mean = bending.mean(x, on)
        divisor = bending.denominator(self, bending.variance(x - mean, on, self.whitening_ddof))
        return right.where(on, (x - mean) / divisor + (0.0 if options.shift_mean else mean))


CONVENTIONS = (
    *(_row("ddof", ddof) for ddof in (0, 1)),
    *(_row("eps_place", place) for place in ("variance", "std", "floor")),
    *(_row("eps", eps) for eps in (1e-8, 1e-5, 1e-4, 1e-6, 1e-9, 0.0)),
    flag("whitening_keeps_mean", _MeanAlwaysRemoved),
    Convention("whitening_masked = None", instead_of("whitening_masked", "zero"), _MaskedCellsWhitened),
)

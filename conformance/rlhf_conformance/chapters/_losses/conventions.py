"""What trainers may do otherwise in any loss, without their adapters declaring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.conventions import Convention, flag, instead_of


def _only_mean(aggregation: str) -> Callable[[Adapter], str | None]:
    """`aggregation`, where no other is declared: a trainer with two means that takes the wrong one has a fault."""
    return lambda adapter: aggregation if tuple(adapter.aggregations) == (aggregation,) else None


def asking(change: Callable[[Any, Any], Any]) -> type[Adapter]:
    """The reference, whose losses and whose objective are asked with the options that `change` makes of a mask and the
    options."""

    def changed(given: tuple[Any, ...]) -> tuple[Any, ...]:
        *tables, mask, options = given
        return (*tables, mask, change(mask, options))

    class Asking(Reference):
        def policy_loss(self, *given):
            return super().policy_loss(*changed(given))

        def value_loss(self, *given):
            return super().value_loss(*changed(given))

        def corrected_loss(self, *given):
            return super().corrected_loss(*changed(given))

        def objective(self, *given):
            return super().objective(*changed(given))

    return Asking


def _taking(aggregation: str) -> type[Adapter]:
    """The reference with this mean, whatever it is asked for."""
    return asking(lambda mask, options: replace(options, aggregation=aggregation))


def _counting_rows(mask: Any, options: Any) -> Any:
    counted = options.aggregation == "sequence-mean" and options.global_count is None
    return replace(options, global_count=len(mask)) if counted else options


_EmptyRowsCounted = asking(_counting_rows)
"""A row without actions counts in the sequence mean's denominator."""
_NoGlobalCount = asking(lambda mask, options: replace(options, global_count=None))


CONVENTIONS = (
    Convention("token-mean", _only_mean("sequence-mean"), _taking("token-mean")),
    Convention("sequence-mean", _only_mean("token-mean"), _taking("sequence-mean")),
    Convention("count_empty_rows = True", instead_of("count_empty_rows", False), _EmptyRowsCounted),
    Convention(
        "count_empty_rows = False", instead_of("count_empty_rows", True), Reference, ("policy_loss", "value_loss")
    ),
    flag("global_count", _NoGlobalCount),
)

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


def _taking(aggregation: str) -> type[Adapter]:
    """The reference with this mean, whatever it is asked for."""

    class Taking(Reference):
        def policy_loss(self, new, old, advantages, mask, options):
            return super().policy_loss(new, old, advantages, mask, replace(options, aggregation=aggregation))

        def value_loss(self, values, old, returns, mask, options):
            return super().value_loss(values, old, returns, mask, replace(options, aggregation=aggregation))

    return Taking


class _EmptyRowsCounted(Reference):
    """A row without actions counts in the sequence mean's denominator."""

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask, _counting_rows(mask, options))

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, _counting_rows(mask, options))


def _counting_rows(mask: Any, options: Any) -> Any:
    counted = options.aggregation == "sequence-mean" and options.global_count is None
    return replace(options, global_count=len(mask)) if counted else options


class _NoGlobalCount(Reference):
    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask, replace(options, global_count=None))

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, replace(options, global_count=None))


CONVENTIONS = (
    Convention("token-mean", _only_mean("sequence-mean"), _taking("token-mean")),
    Convention("sequence-mean", _only_mean("token-mean"), _taking("sequence-mean")),
    Convention("count_empty_rows = True", instead_of("count_empty_rows", False), _EmptyRowsCounted),
    Convention(
        "count_empty_rows = False", instead_of("count_empty_rows", True), Reference, ("policy_loss", "value_loss")
    ),
    flag("global_count", _NoGlobalCount),
)

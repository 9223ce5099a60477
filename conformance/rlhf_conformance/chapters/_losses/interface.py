"""What an adapter says of its losses, whichever they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from rlhf_conformance.methods import OneOf, SomeOf

AGGREGATIONS = ("token-mean", "sequence-mean")


class Losses:
    """How the losses of tokens become one number."""

    aggregations: Annotated[Sequence[str], SomeOf(AGGREGATIONS), 'of "token-mean", "sequence-mean"'] = ("token-mean",)
    global_count: Annotated[bool, "True if the losses take the global denominator, so that micro-batches add up"] = (
        False
    )
    count_empty_rows: Annotated[
        bool | None,
        OneOf((None, True, False)),
        "whether a row without actions counts in the denominator of sequence-mean and constant-length; None: not "
        "promised",
    ] = None

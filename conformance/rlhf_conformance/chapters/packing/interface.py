"""Several sequences in one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance.judging.wiring import Record
from rlhf_conformance.judging.wiring import Tensor as Kind
from rlhf_conformance.methods import OneOf, method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PackedSequences:
    """Several sequences in one row: `input_ids` and `position_ids` (1, N), and `labels` (1, N) where the trainer
    makes them: -100 where nothing is scored, or 0 there in a `label_mask` (1, N) beside them."""

    input_ids: Tensor
    position_ids: Tensor | None = None
    labels: Tensor | None = None
    label_mask: Tensor | None = None


def _like_ids(given: Any) -> tuple[int, ...]:
    return tuple(given["answer"]["input_ids"].shape)


class Packing:
    """Putting sequences behind one another."""

    packed_labels: Annotated[
        str,
        OneOf(("unshifted", "shifted", "unmarked")),
        '"unshifted" (labels[i] = ids[i], -100 on the first token of each sequence, as models of transformers want '
        'them), "shifted" (labels[i] = ids[i + 1], -100 on the last), or "unmarked" if the pack does not say which of '
        "its labels are scored: they are then not judged. A label_mask says it as well as -100",
    ] = "unshifted"

    @method(
        Record(
            PackedSequences,
            {
                "input_ids": Kind(lambda _: (1, None), "the tokens in one row", kind="number"),
                "position_ids": Kind(_like_ids, "position_ids shaped like input_ids", kind="number"),
                "labels": Kind(_like_ids, "labels shaped like input_ids", kind="number"),
                "label_mask": Kind(_like_ids, "label_mask shaped like input_ids", kind="number"),
            },
            required=("input_ids",),
        )
    )
    def pack_sequences(self, sequences: list[Tensor]) -> PackedSequences:
        """Several 1-D int64 token tensors put into one row. One of them may be empty: pack the others, or raise."""
        raise NotImplementedError

"""What a trainer makes of generated rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance.judging.wiring import Record
from rlhf_conformance.judging.wiring import Tensor as Kind
from rlhf_conformance.methods import OneOf, method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ProcessedSequences:
    """What a trainer makes of generated rows; a part that it does not make stays None."""

    sequences: Tensor | None = None
    attention_mask: Tensor | None = None
    action_mask: Tensor | None = None


def _rows(given: Any) -> tuple[int, ...]:
    return tuple(given["sequences"].shape)


def _responses(given: Any) -> tuple[int, ...]:
    rows, width = given["sequences"].shape
    return rows, width - given["prompt_length"]


class Sequences:
    """Masks of generated rows."""

    stop_ids: Annotated[str, OneOf(("set", "one")), '"set" if several stop ids are understood, "one" if only one'] = (
        "set"
    )

    @method(
        Record(
            ProcessedSequences,
            {
                "sequences": Kind(_rows, "sequences of that shape", kind="number"),
                "attention_mask": Kind(_rows, "attention_mask of that shape", kind="number"),
                "action_mask": Kind(_responses, "action_mask of that shape", kind="number"),
            },
            loose=True,
        )
    )
    def process_sequences(
        self,
        sequences: Tensor,
        prompt_length: int,
        prompt_attention_mask: Tensor,
        stop_token_ids: tuple[int, ...],
        pad_token_id: int,
        response_lengths: Tensor | None = None,
    ) -> ProcessedSequences:
        """Masks of generated rows: sequences (B, P + T) int64, prompts padded left to P = `prompt_length`, responses
        padded right, prompt_attention_mask (B, P). -> attention_mask (B, P + T) and action_mask (B, T), 0/1 or bool;
        action_mask[:, t] belongs to the generated token t.

        response_lengths (B,) int64, the number of generated tokens of each row, is given by its name, and only to
        adapters whose method has a parameter of that name: always if it has no default, else in the clauses that are
        about lengths."""
        raise NotImplementedError

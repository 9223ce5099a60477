"""Positions of padded rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_conformance.judging.wiring import Tensor as Kind
from rlhf_conformance.methods import method

if TYPE_CHECKING:
    from torch import Tensor


class Positions:
    """Numbering the tokens."""

    @method(Kind(lambda given: tuple(given["attention_mask"].shape), "a position for each cell", kind="integer"))
    def position_ids(self, attention_mask: Tensor) -> Tensor:
        """Positions of the tokens of padded rows: attention_mask (B, L) int64. -> (B, L) int64"""
        raise NotImplementedError

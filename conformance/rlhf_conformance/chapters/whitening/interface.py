"""Whitening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Tensor as Numbers
from rlhf_conformance.methods import AtLeast, OneOf, method

if TYPE_CHECKING:
    from torch import Tensor


@stored
@dataclass(frozen=True)
class WhiteningOptions:
    """What whitening is asked to do. `shift_mean` is False where the mean is to be kept (only drawn if declared)."""

    shift_mean: bool = True


class Whitening:
    """Numbers less their mean, over their standard deviation."""

    whitening_ddof: Annotated[int, OneOf((0, 1)), "the variance divides by n less this: 1 unbiased, 0 biased"] = 1
    whitening_eps: Annotated[float, AtLeast(0.0), "the small number that keeps the division finite"] = 1e-8
    whitening_eps_place: Annotated[
        str,
        OneOf(("variance", "std", "floor")),
        'where it stands: "variance" (`sqrt(var + eps)`), "std" (`sqrt(var) + eps`), "floor" (`sqrt(max(var, eps))`)',
    ] = "variance"
    whitening_keeps_mean: Annotated[bool, "True if the mean can be kept: `shift_mean` is then False now and then"] = (
        False
    )
    whitening_masked: Annotated[
        str | None,
        OneOf((None, "zero")),
        '"zero" if cells outside of the mask are promised to come out as 0, None if nothing is promised',
    ] = None
    whitening_of_few: Annotated[
        str | None,
        OneOf((None, "zero", "refused")),
        'what a batch of one action or none gives: "zero" (the number itself where the mean is kept), "refused" (an '
        "error), None if nothing is promised",
    ] = None

    @method(
        Numbers(lambda given: tuple(given["values"].shape), "a whitened number for each cell"),
        leaf="values",
        formula="rlhf_spec.whitening.whiten",
        returns="the whitened numbers, a tensor shaped like values",
    )
    def whiten(self, values: Tensor, action_mask: Tensor, options: WhiteningOptions) -> Tensor:
        """Numbers less their mean, over their standard deviation, both of all actions. All tensors (B, T);
        `action_mask` 1 on actions. -> (B, T), of which the actions are judged"""
        raise NotImplementedError

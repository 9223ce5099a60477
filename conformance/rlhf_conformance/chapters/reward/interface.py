"""The reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance.chapters._models.interface import Models
from rlhf_conformance.judging.wiring import Model, PerSample
from rlhf_conformance.methods import OneOf, Readout, as_it_is, method

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_conformance.oracle.batch import Batch
    from rlhf_conformance.oracle.probes import Checkpoint


class Reward(Models):
    """One score for each sequence."""

    reward_normalization: Annotated[bool, "True if rewards can be normalized by the mean and std of the checkpoint"] = (
        False
    )

    reward_new_head: Annotated[
        Any,
        OneOf((False, "asked", "always")),
        'whether a reward model can be given a new head, for a checkpoint without one: "asked", where '
        '`checkpoint.new_head` is True; "always", so that such a checkpoint is never refused',
    ] = False

    @method(Model(), loads=True, prepares=True)
    def load_reward_model(self, checkpoint: Checkpoint) -> Any:
        """A reward model (backbone and scalar head `checkpoint.head_name`), normalizing if `checkpoint.normalize`, with
        a new head if `checkpoint.new_head`."""
        raise NotImplementedError

    @method(
        PerSample("one reward for each sequence"),
        model="load_reward_model",
        readout=Readout("score", True, as_it_is, lambda prompt, length: range(length - 1, length), index=""),
    )
    def rewards(self, reward_model: Any, batch: Batch) -> Tensor:
        """One number for each sequence. -> (B,)"""
        raise NotImplementedError

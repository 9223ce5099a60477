"""The critic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance.chapters._models.interface import SCORES_OR_HIDDEN_STATES, Models
from rlhf_conformance.judging.wiring import Actions, Beside, Cells, Model
from rlhf_conformance.methods import OneOf, Readout, as_it_is, every_position, method, states

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_conformance.oracle.batch import Batch
    from rlhf_conformance.oracle.probes import Checkpoint


_VALUES = Readout("value", True, as_it_is, states, whole="values")


class Critic(Models):
    """Values of the states before the actions, and at every position."""

    critic_normalization: Annotated[bool, "True if values can be normalized by the mean and std of the checkpoint"] = (
        False
    )

    critic_new_head: Annotated[
        Any,
        OneOf((False, "asked", "always")),
        'whether a critic can be given a new head, for a checkpoint without one: "asked", where `checkpoint.new_head` '
        'is True; "always", so that such a checkpoint is never refused',
    ] = False

    @method(Model(), loads=True, prepares=True)
    def load_critic(self, checkpoint: Checkpoint) -> Any:
        """A critic (backbone and scalar head `checkpoint.head_name`), normalizing if `checkpoint.normalize`, with a
        new head if `checkpoint.new_head`."""
        raise NotImplementedError

    @method(Actions(), model="load_critic", readout=_VALUES)
    def action_values(self, critic: Any, batch: Batch) -> Tensor | Sequence[Tensor]:
        """Value of the state before each action, in the shapes of `action_log_probs`."""
        raise NotImplementedError

    @method(
        Cells(),
        model="load_critic",
        readout=Readout("value", True, as_it_is, every_position, index="position", whole="values"),
    )
    def values(self, critic: Any, batch: Batch) -> Tensor:
        """The raw output: a value for every position, (B, L), or (1, N) for a pack."""
        raise NotImplementedError

    @method(Beside(Actions(), SCORES_OR_HIDDEN_STATES), model="load_critic", readout=_VALUES)
    def action_values_with_output(self, critic: Any, batch: Batch) -> tuple[Tensor | Sequence[Tensor], Tensor]:
        """The values of the actions and the whole output, of one forward pass. -> a pair: what `action_values` returns,
        and for every position the head's score, (B, L) or (1, N), or the hidden state that the head reads,
        (B, L, hidden)."""
        raise NotImplementedError

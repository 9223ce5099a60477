"""The policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance.chapters._models.interface import Models
from rlhf_conformance.judging.wiring import Actions, Beside, Cells, Model, WiringError, describe
from rlhf_conformance.judging.wiring import Tensor as Kind
from rlhf_conformance.methods import OneOf, Readout, every_position, method, states
from rlhf_conformance.oracle.probes import VOCAB_SIZE

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_conformance.oracle.batch import Batch, Prompts
    from rlhf_conformance.oracle.probes import Checkpoint


ENTRY = 5
"""Of a position's logits one entry is looked at: outputs of a probe are all different."""


def _entropies(logits: Any, temperature: float) -> Any:
    log_probs = (logits / temperature).log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1, keepdim=True)


class GeneratedRows(Kind):
    """Token rows, each longer than its prompt."""

    def checked(self, method: str, value: Any, given: Any, device: str, label: str = "") -> Any:
        rows, width = given["prompts"].input_ids.shape
        answer = super().checked(method, value, given, device, label)
        if answer.shape[1] <= width:
            raise WiringError(method, describe(value), f"token rows ({rows}, more than {width})")
        if answer.is_floating_point() and not bool(answer.isfinite().all()):
            raise WiringError(method, f"{describe(answer)} with NaN or infinity in it", "token ids")
        if int(answer.min()) < 0 or int(answer.max()) >= VOCAB_SIZE:
            raise WiringError(method, f"ids up to {int(answer.max())}", f"token ids from 0 to {VOCAB_SIZE - 1}")
        return answer


_LOG_PROBS = Readout("log-prob", False, lambda z, t: (z / t).log_softmax(-1), states, labeled=True, whole="logits")


class Actor(Models):
    """Log-probs of the actions, entropy, raw output, generation."""

    output_logits: Annotated[
        str,
        OneOf(("raw", "scaled")),
        'of the logits that `log_probs_with_output` returns beside log-probs: "raw" if they are the model\'s own, '
        '"scaled" if they are divided by the temperature',
    ] = "raw"

    @method(Model(), loads=True, prepares=True)
    def load_actor(self, checkpoint: Checkpoint) -> Any:
        """An actor from the folder `checkpoint.path` (or from `checkpoint.module()`), in `checkpoint.dtype` on
        `checkpoint.device`, scoring at `checkpoint.temperature`. Whatever is returned is handed back below."""
        raise NotImplementedError

    @method(
        Actions(),
        model="load_actor",
        readout=_LOG_PROBS,
    )
    def action_log_probs(self, actor: Any, batch: Batch) -> Tensor | Sequence[Tensor]:
        """Log-probs of the actions as the trainer takes old log-probs (no dropout), with a graph to the parameters.
        -> (B, T) in the layouts "padded" and "left" (the last T = batch.num_actions columns of each row), (B, L - 1) in
        "right" (one for each label), (sum of counts,) or (1, sum) in packs, or in any layout a list of B 1-D
        tensors."""
        raise NotImplementedError

    @method(
        Actions(),
        model="load_actor",
        readout=Readout("entropy", False, _entropies, states, widen=4.0, whole="logits"),
    )
    def action_entropy(self, actor: Any, batch: Batch) -> Tensor | Sequence[Tensor]:
        """Entropy at each action, in the shapes of `action_log_probs`."""
        raise NotImplementedError

    @method(
        Cells((VOCAB_SIZE,)),
        model="load_actor",
        readout=Readout(
            f"logit of token {ENTRY}",
            False,
            lambda z, t: z[:, ENTRY : ENTRY + 1],
            every_position,
            index="position",
            entry=ENTRY,
            whole="logits",
        ),
    )
    def logits(self, actor: Any, batch: Batch) -> Tensor:
        """The whole output: logits (B, L, V), or (1, N, V) for a pack, not divided by the temperature."""
        raise NotImplementedError

    @method(Beside(Actions(), Cells((VOCAB_SIZE,))), model="load_actor", readout=_LOG_PROBS)
    def log_probs_with_output(self, actor: Any, batch: Batch) -> tuple[Tensor | Sequence[Tensor], Tensor]:
        """The log-probs and the whole output, of one forward pass. -> a pair: what `action_log_probs` returns, and the
        logits in the shape of `logits`, divided by the temperature only where `output_logits` is "scaled"."""
        raise NotImplementedError

    @method(Model(), loads=True, prepares=True)
    def wrap_actor(self, module: Any, checkpoint: Checkpoint) -> Any:
        """An actor of a causal LM of transformers that the caller has in memory, scoring at `checkpoint.temperature`.
        The module is in `checkpoint.dtype` on `checkpoint.device`, in train or in eval mode. Its weights are not those
        on disk."""
        raise NotImplementedError

    @method(
        GeneratedRows(lambda given: (given["prompts"].input_ids.shape[0], None), "token rows", kind="number"),
        model="load_actor",
    )
    def generate(self, actor: Any, prompts: Prompts) -> Tensor:
        """Greedy continuation of left-padded prompts. -> (B, P + T) int64, T <= prompts.max_new_tokens"""
        raise NotImplementedError

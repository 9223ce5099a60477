"""Token log-probs and entropies from logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.judging.wiring import Tensor as Kind
from rlhf_conformance.methods import OneOf, method

if TYPE_CHECKING:
    from torch import Tensor


class LogProbs:
    """Formulas over the vocabulary."""

    temperature: Annotated[bool, "False if `action_log_probs` knows no temperature"] = True
    ignored_label: Annotated[
        str | None,
        OneOf((None, "zero")),
        '"zero" if label -100 is promised the log-prob 0.0, None if nothing is promised',
    ] = None
    entropy_gradient: Annotated[
        bool | None,
        OneOf((None, True, False)),
        "True if entropies have a graph, for a bonus; False if they are only logged; None: what has a graph is judged",
    ] = None

    @method(
        Kind(lambda given: tuple(given["labels"].shape), "one log-prob for each label"),
        leaf="logits",
        formula="rlhf_spec.log_probs.token_log_probs",
        returns="the log-prob of each label, a tensor shaped like labels",
    )
    def token_log_probs(self, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Log-prob of each label, in nats: logits (B, T, V) in any float dtype, labels (B, T) int64. -> (B, T)"""
        raise NotImplementedError

    @method(
        Kind(lambda given: tuple(given["logits"].shape[:-1]), "one entropy for each position"),
        leaf="logits",
        formula="rlhf_spec.log_probs.token_entropies",
        returns="the entropy of each position",
    )
    def token_entropy(self, logits: Tensor, temperature: float) -> Tensor:
        """Entropy, in nats, of softmax(logits / temperature): logits (B, T, V). -> (B, T)"""
        raise NotImplementedError

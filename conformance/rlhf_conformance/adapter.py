"""The adapter: how a trainer is shown to the suite.

Subclass `Adapter`, override the methods for what your trainer has, and declare its conventions as class attributes.
A method that is not overridden is reported as "not provided"; nothing else has to be written.

    class MyTrainer(Adapter):
        aggregations = ("token-mean",)

        def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
            loss_fn = my_trainer.PolicyLoss(options.clip_eps_low, options.clip_eps_high)
            return loss_fn(log_probs, old_log_probs, advantages, action_mask)

Call your trainer, do not re-implement it: what the adapter computes itself is not judged in your trainer.
This module imports no torch, so that `rlhf-conformance list` is instant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from rlhf_conformance.batch import Batch, Prompts
    from rlhf_conformance.probes import Checkpoint

LAYOUTS = ("padded", "left", "right", "packed", "packed-tail", "sharded")
ARCHITECTURES = ("llama", "gpt2")
AGGREGATIONS = ("token-mean", "sequence-mean")


@dataclass(frozen=True)
class PolicyLossOptions:
    """What the policy loss is asked to do.

    `dual_clip` is None or the constant c > 1 (only drawn if declared). `global_count` is None, or the denominator over
    the whole step, of which this call sees one micro-batch: the number of action tokens for "token-mean", the number
    of sequences for "sequence-mean" (only drawn if declared).
    """

    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    dual_clip: float | None = None
    aggregation: str = "token-mean"
    global_count: float | None = None


@dataclass(frozen=True)
class ValueLossOptions:
    """What the value loss is asked to do. `clip_eps` is None where the values are not clipped; the rest as above."""

    clip_eps: float | None = 0.2
    aggregation: str = "token-mean"
    global_count: float | None = None


@dataclass(frozen=True)
class PolicyLossResult:
    """A policy loss with the metrics that the trainer logs; a metric left at None is not judged."""

    loss: Tensor
    clip_fraction: Tensor | float | None = None
    approx_kl: Tensor | float | None = None


@dataclass(frozen=True)
class ProcessedSequences:
    """What a trainer makes of generated rows; a part that it does not make stays None."""

    sequences: Tensor | None = None
    attention_mask: Tensor | None = None
    action_mask: Tensor | None = None


@dataclass(frozen=True)
class PackedSequences:
    """Several sequences in one row: `input_ids` and `position_ids` (1, N), and `labels` (1, N) where the trainer
    makes them, -100 where nothing is scored."""

    input_ids: Tensor
    position_ids: Tensor | None = None
    labels: Tensor | None = None


class Adapter:
    """One trainer, in one mode. Modes (packing, LoRA, attention implementation) are constructor keyword arguments.

    Class attributes declare what the trainer does by convention; strategies draw only what is declared:

    name                   shown in reports; the class name if empty
    layouts                how model batches may be presented: "padded" (prompts padded left, responses right), "left",
                           "right", "packed", "packed-tail" (a pack with padding at its end), "sharded"
    packs_internally       True if a padded batch is packed inside: the packing clauses then run on padded batches
    takes_attention_mask   False if the trainer infers the mask from the pad id: the pad id is then kept out of prompts
                           and responses, except in the clauses that are about just that
    architectures          probe backbones that it can load: "llama" (rotary), "gpt2" (learned positions)
    temperature            False if `action_log_probs` knows no temperature
    ignored_label          "zero" if label -100 is promised the log-prob 0.0, None if nothing is promised
    stop_ids               "set" if several stop ids are understood, "one" if only one
    head_names             names under which a checkpoint may hold the scalar head
    reward_normalization   True if rewards can be normalised by the mean and std of the checkpoint
    critic_normalization   the same for values
    aggregations           of "token-mean", "sequence-mean"
    asymmetric_clip        True if clip_eps_low and clip_eps_high may differ
    dual_clip              True if the policy loss has a dual clip
    value_clip             False if the value loss cannot be clipped
    unclipped_value        False if the value loss cannot do without a clip
    global_count           True if the losses take the global denominator, so that micro-batches add up
    count_empty_rows       whether a row without actions counts in the sequence-mean's denominator; None: not promised
    kl_metric              estimator of `approx_kl`: "k1" or "k3"
    packed_labels          "unshifted" (labels[i] = ids[i], -100 on the first token of each sequence, as models of
                           transformers want them) or "shifted" (labels[i] = ids[i + 1], -100 on the last)
    """

    name: str = ""
    layouts: Sequence[str] = ("padded",)
    packs_internally: bool = False
    takes_attention_mask: bool = True
    architectures: Sequence[str] = ARCHITECTURES
    temperature: bool = True
    ignored_label: str | None = None
    stop_ids: str = "set"
    head_names: Sequence[str] = ("score",)
    reward_normalization: bool = False
    critic_normalization: bool = False
    aggregations: Sequence[str] = ("token-mean",)
    asymmetric_clip: bool = True
    dual_clip: bool = False
    value_clip: bool = True
    unclipped_value: bool = True
    global_count: bool = False
    count_empty_rows: bool | None = None
    kl_metric: str = "k1"
    packed_labels: str = "unshifted"

    # --- token log-probs -----------------------------------------------------------------------------------------

    def token_log_probs(self, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Log-prob of each label, in nats: logits (B, T, V) in any float dtype, labels (B, T) int64. -> (B, T)"""
        raise NotImplementedError

    def token_entropy(self, logits: Tensor, temperature: float) -> Tensor:
        """Entropy, in nats, of softmax(logits / temperature): logits (B, T, V). -> (B, T)"""
        raise NotImplementedError

    # --- generated sequences, positions, packs -------------------------------------------------------------------

    def process_sequences(
        self,
        sequences: Tensor,
        prompt_length: int,
        prompt_attention_mask: Tensor,
        stop_token_ids: tuple[int, ...],
        pad_token_id: int,
    ) -> ProcessedSequences:
        """Masks of generated rows: sequences (B, P + T) int64, prompts padded left to P = `prompt_length`, responses
        padded right, prompt_attention_mask (B, P). -> attention_mask (B, P + T) and action_mask (B, T), 0/1 or bool;
        action_mask[:, t] belongs to the generated token t."""
        raise NotImplementedError

    def position_ids(self, attention_mask: Tensor) -> Tensor:
        """Positions of the tokens of padded rows: attention_mask (B, L) int64. -> (B, L) int64"""
        raise NotImplementedError

    def pack_sequences(self, sequences: list[Tensor]) -> PackedSequences:
        """Several 1-D int64 token tensors put into one row."""
        raise NotImplementedError

    # --- actor ---------------------------------------------------------------------------------------------------

    def load_actor(self, checkpoint: Checkpoint) -> Any:
        """An actor from the folder `checkpoint.path` (or from `checkpoint.module()`), in `checkpoint.dtype` on
        `checkpoint.device`, scoring at `checkpoint.temperature`. Whatever is returned is handed back below."""
        raise NotImplementedError

    def action_log_probs(self, actor: Any, batch: Batch) -> Tensor | Sequence[Tensor]:
        """Log-probs of the actions as the trainer takes old log-probs (no dropout), with a graph to the parameters.
        -> (B, T) in the layouts "padded" and "left" (the last T = batch.num_actions columns of each row), (B, L - 1) in
        "right" (one for each label), (sum of counts,) or (1, sum) in packs, or in any layout a list of B 1-D
        tensors."""
        raise NotImplementedError

    def action_entropy(self, actor: Any, batch: Batch) -> Tensor | Sequence[Tensor]:
        """Entropy at each action, in the shapes of `action_log_probs`."""
        raise NotImplementedError

    def logits(self, actor: Any, batch: Batch) -> Tensor:
        """The whole output: logits (B, L, V), or (1, N, V) for a pack, not divided by the temperature."""
        raise NotImplementedError

    def generate(self, actor: Any, prompts: Prompts) -> Tensor:
        """Greedy continuation of left-padded prompts. -> (B, P + T) int64, T <= prompts.max_new_tokens"""
        raise NotImplementedError

    # --- reward model and critic ---------------------------------------------------------------------------------

    def load_reward_model(self, checkpoint: Checkpoint) -> Any:
        """A reward model (backbone and scalar head `checkpoint.head_name`), normalising if `checkpoint.normalize`."""
        raise NotImplementedError

    def rewards(self, reward_model: Any, batch: Batch) -> Tensor:
        """One number for each sequence. -> (B,)"""
        raise NotImplementedError

    def load_critic(self, checkpoint: Checkpoint) -> Any:
        """A critic (backbone and scalar head `checkpoint.head_name`), normalising if `checkpoint.normalize`."""
        raise NotImplementedError

    def action_values(self, critic: Any, batch: Batch) -> Tensor | Sequence[Tensor]:
        """Value of the state before each action, in the shapes of `action_log_probs`."""
        raise NotImplementedError

    def values(self, critic: Any, batch: Batch) -> Tensor:
        """The raw output: a value for every position, (B, L), or (1, N) for a pack."""
        raise NotImplementedError

    # --- any model -----------------------------------------------------------------------------------------------

    def save(self, model: Any, folder: Path) -> None:
        """Write the checkpoint that the trainer would write of `model` into the existing, empty `folder`."""
        raise NotImplementedError

    def restore(self, kind: str, checkpoint: Checkpoint, folder: Path) -> Any:
        """Load again what `save` wrote. `kind` is "actor", "reward" or "critic"; `checkpoint` is what the model was
        first loaded from (a LoRA adapter needs its base)."""
        raise NotImplementedError

    def parameters(self, model: Any) -> Mapping[str, Parameter]:
        """Parameters by name. The default looks at the model, its `.model` or its `.module`."""
        for candidate in (model, getattr(model, "model", None), getattr(model, "module", None)):
            if candidate is not None and hasattr(candidate, "named_parameters"):
                return dict(candidate.named_parameters())
        raise TypeError(f"{type(model).__name__} has no named_parameters(): override Adapter.parameters")

    def set_training(self, model: Any, training: bool) -> None:
        """Switch between train and eval mode."""
        model.train(training)

    # --- losses --------------------------------------------------------------------------------------------------

    def policy_loss(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor,
        options: PolicyLossOptions,
    ) -> Tensor | PolicyLossResult:
        """The clipped PPO loss, to be minimised. All tensors (B, T); `action_mask` 1 on actions. -> a scalar"""
        raise NotImplementedError

    def value_loss(
        self,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        action_mask: Tensor,
        options: ValueLossOptions,
    ) -> Tensor:
        """The clipped value loss, to be minimised. All tensors (B, T); `action_mask` 1 on actions. -> a scalar"""
        raise NotImplementedError


METHODS = (
    "token_log_probs",
    "token_entropy",
    "process_sequences",
    "position_ids",
    "pack_sequences",
    "load_actor",
    "action_log_probs",
    "action_entropy",
    "logits",
    "generate",
    "load_reward_model",
    "rewards",
    "load_critic",
    "action_values",
    "values",
    "save",
    "restore",
    "policy_loss",
    "value_loss",
)
"""The methods that make up what an adapter provides (`parameters` and `set_training` have defaults that work)."""

PREPARING = ("load_actor", "load_reward_model", "load_critic", "set_training", "save", "restore")
"""The methods that answer nothing, but prepare what later calls are given."""


class DeclarationError(ValueError):
    """A class attribute of an adapter holds something that it may not."""


def provided(adapter: Adapter) -> tuple[str, ...]:
    """The methods that the adapter overrides, in the order of METHODS."""
    return tuple(name for name in METHODS if getattr(type(adapter), name, None) is not getattr(Adapter, name))


_CHOICES: Mapping[str, Sequence[Any]] = {
    "layouts": LAYOUTS,
    "architectures": ARCHITECTURES,
    "aggregations": AGGREGATIONS,
    "ignored_label": (None, "zero"),
    "stop_ids": ("set", "one"),
    "count_empty_rows": (None, True, False),
    "kl_metric": ("k1", "k3"),
    "packed_labels": ("unshifted", "shifted"),
}
_SEQUENCES = ("layouts", "architectures", "aggregations", "head_names")
_FLAGS = tuple(key for key, value in vars(Adapter).items() if isinstance(value, bool))

DECLARATIONS = (*_CHOICES, "head_names", *_FLAGS)
"""The names of the attributes that an adapter declares."""


def declarations(adapter: Adapter) -> dict[str, Any]:
    """What the adapter declares, checked. Raises DeclarationError with the attribute, its value and the choices."""
    found: dict[str, Any] = {}
    for key in DECLARATIONS:
        value = getattr(adapter, key)
        label = f"{type(adapter).__name__}.{key}"
        if key in _SEQUENCES:
            if not isinstance(value, list | tuple) or not value:
                raise DeclarationError(f"{label} = {value!r}: wanted a tuple with at least one entry, as ({value!r},)")
            value = tuple(value)
        if key in _FLAGS and not isinstance(value, bool):
            raise DeclarationError(f"{label} = {value!r}: wanted True or False")
        for entry in value if isinstance(value, tuple) else (value,):
            if key in _CHOICES and entry not in _CHOICES[key]:
                choices = ", ".join(repr(choice) for choice in _CHOICES[key])
                raise DeclarationError(f"{label} = {value!r}: {entry!r} is not one of {choices}")
        found[key] = value
    return found

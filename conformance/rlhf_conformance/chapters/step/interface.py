"""One optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._models.interface import ARCHITECTURES, Models
from rlhf_conformance.chapters.objective.interface import ObjectiveOptions
from rlhf_conformance.chapters.off_policy_correction.interface import OffPolicyOptions
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Metric, Model, Named, Record, WiringError, dense, describe
from rlhf_conformance.methods import AtLeast, OneOf, SomeOf, method

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_conformance.oracle.batch import StepSample
    from rlhf_conformance.oracle.probes import Checkpoint

LAYOUTS = ("padded", "packed")
CUTS = ("rows", "tokens")
DENOMINATORS = ("step", "micro-batch")
TERMS = ("policy", "kl", "entropy")
SCHEDULES = ("constant", "linear")


@stored
@dataclass(frozen=True)
class StepOptions(ObjectiveOptions):
    """What a trainer is asked to minimise, and how it is to cut its steps.

    The objective's own are those of `objective`; `global_count` is None, since the denominators are the trainer's
    affair. A micro-batch holds the next `micro_batch_size` samples, in the order in which they are given; where
    `max_tokens` is given in its place, samples of at most so many tokens, prompts included, in whatever way the trainer
    fills them (no sample is longer). `layout` is one of those that `step_layouts` declares. The gradient's norm is
    clipped at `max_norm`, if it is not None. The optimizer is SGD without weight decay, its `momentum` that of torch.
    The `schedule` is one of those that `step_schedules` declares: step k, the first of which is 0, has the rate
    `learning_rate`, or, where it is "linear", `learning_rate * (1 - k / total_steps)`. With a `correction` the policy
    loss of each action is multiplied by its weight, made of `old_log_probs` and `rollout_log_probs`. Of a critic the
    objective is the value loss alone, and its coefficient is 1.
    """

    micro_batch_size: int | None = None
    max_tokens: int | None = None
    layout: str = "padded"
    max_norm: float | None = None
    learning_rate: float = 1.0
    momentum: float = 0.0
    schedule: str = "constant"
    total_steps: int = 1
    correction: OffPolicyOptions | None = None


@dataclass(frozen=True)
class StepResult:
    """What came of a step before the optimizer moved the weights: the gradient of each parameter, and what the trainer
    logs of the whole step; a number that is left at None is not judged.

    gradients   by the names of `parameters(trainer)`; a parameter that is left out has none
    loss        what was minimised; `policy_loss`, `kl`, `entropy` before their coefficients
    grad_norm   of the whole gradient before it was clipped
    """

    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    loss: Tensor | float | None = None
    policy_loss: Tensor | float | None = None
    kl: Tensor | float | None = None
    entropy: Tensor | float | None = None
    grad_norm: Tensor | float | None = None


@dataclass(frozen=True)
class OfResponses:
    """A 1-D tensor for each sample, with a number for each token of its response."""

    wanted: str

    def checked(self, method: str, value: Any, given: Any, device: str) -> Any:
        samples = given["samples"]
        wanted = f"a list of {len(samples)} tensors, each with {self.wanted}"
        if not isinstance(value, list | tuple) or len(value) != len(samples):
            raise WiringError(method, describe(value), wanted)
        rows = [dense(method, row, wanted, device, "in a list ") for row in value]
        for row, sample in zip(rows, samples, strict=True):
            if tuple(row.shape) != tuple(sample.response.shape) or not row.is_floating_point():
                raise WiringError(method, f"in a list {describe(row)} for {len(sample.response)} tokens", wanted)
        return [row.to(torch.float64) if row.element_size() == 1 else row for row in rows]


class Step(Models):
    """A whole optimizer step: forward, loss, backward, accumulation, clipping, update."""

    step_terms: Annotated[
        Sequence[str], SomeOf(TERMS), 'of what its objective is made: "policy", and beside it "kl", "entropy"'
    ] = TERMS
    step_architectures: Annotated[
        Sequence[str],
        SomeOf(ARCHITECTURES),
        "with which backbones its steps are asked: fewer where a step takes seconds, and what is wrong with the others "
        "shows in the chapter on the actor",
    ] = ("llama", "gpt2")
    step_layouts: Annotated[
        Sequence[str],
        SomeOf(LAYOUTS),
        'how it asks its models in a step: "padded" (a rectangle), "packed" (all samples of a micro-batch in one row)',
    ] = ("padded",)
    step_cuts: Annotated[
        Sequence[str],
        SomeOf(CUTS),
        'how it cuts a step into micro-batches: "rows" (so many samples), "tokens" (as many as fit into so many '
        "tokens)",
    ] = ("rows",)
    step_remainder: Annotated[bool, "False if the samples of a step have to be a multiple of the micro-batch size"] = (
        False
    )
    step_samples: Annotated[float, AtLeast(1), "the samples of a step are a multiple of this number"] = 1
    step_denominators: Annotated[
        str,
        OneOf(DENOMINATORS),
        'what losses are divided by: the counts of the whole "step", or those of each "micro-batch", whose losses are '
        "then averaged",
    ] = "step"
    step_entropy_denominators: Annotated[
        str, OneOf(("as-policy", *DENOMINATORS)), 'the same of the entropy alone: "as-policy", or one of the two'
    ] = "as-policy"
    step_advantages: Annotated[
        str, OneOf(("token", "sample")), 'what has an advantage of its own: each "token", or each "sample"'
    ] = "token"
    step_empty: Annotated[bool, "False if it takes no sample without an action"] = True
    step_max_norm: Annotated[bool, "False if it does not clip the norm of the gradient"] = True
    step_corrections: Annotated[
        bool,
        "True if its step can weigh actions by the log-probs of the engine that sampled, as `correction_levels` says",
    ] = False
    step_momentum: Annotated[bool, "True if its optimizer can be SGD with momentum"] = False
    step_schedules: Annotated[
        Sequence[str], SomeOf(SCHEDULES), 'how its learning rate goes on: "constant", or "linear" to 0'
    ] = ("constant",)

    @method(Model(), loads=True, prepares=True)
    def load_trainer(self, checkpoint: Checkpoint, options: StepOptions) -> Any:
        """A trainer of the actor in `checkpoint`, with SGD as `options` says. Whatever is returned is handed back
        below, and to `parameters` and `checkpoint_weights`."""
        raise NotImplementedError

    @method(
        Record(
            StepResult,
            {
                "gradients": Named("gradients"),
                "loss": Metric(),
                "policy_loss": Metric(),
                "kl": Metric(),
                "entropy": Metric(),
                "grad_norm": Metric(),
            },
            required=("gradients",),
            bare="gradients",
        ),
        model="load_trainer",
        returns="the gradient of each parameter, by its name",
    )
    def step_gradients(self, trainer: Any, samples: Sequence[StepSample]) -> Mapping[str, Tensor] | StepResult:
        """The gradient that the optimizer would be given in a step on these samples, by the trainer's own code: cut,
        forward, loss, backward, accumulation and, where it is asked for, clipping. The weights stay as they are, and
        nothing is left for the next call. A trainer that cannot stop before its optimizer makes the step, reads the
        change of the weights, which under SGD is the gradient times the learning rate, and puts them back."""
        raise NotImplementedError

    @method(prepares=True, model="load_trainer")
    def step_update(self, trainer: Any, samples: Sequence[StepSample]) -> None:
        """Make the whole step: the weights move."""
        raise NotImplementedError

    @method(OfResponses("a log-prob for each token of its response"), model="load_trainer")
    def step_log_probs(self, trainer: Any, samples: Sequence[StepSample]) -> Sequence[Tensor]:
        """The log-probs of the responses under the actor as it is now, as the trainer takes them for old ones: without
        a graph. -> for each sample (T,), in nats; what stands under its action mask is not judged"""
        raise NotImplementedError

    @method(prepares=True, model="load_trainer")
    def save_trainer(self, trainer: Any, folder: str) -> None:
        """Write to an empty folder what is needed to go on from here."""
        raise NotImplementedError

    @method(Model(), loads=True, prepares=True)
    def resume_trainer(self, checkpoint: Checkpoint, options: StepOptions, folder: str) -> Any:
        """The trainer that was written to this folder, in a process that may be another: weights, what the optimizer
        keeps, and where its schedule stands. `checkpoint` and `options` are those that it was first loaded with."""
        raise NotImplementedError

    @method(Model(), loads=True, prepares=True)
    def load_critic_trainer(self, checkpoint: Checkpoint, options: StepOptions) -> Any:
        """A trainer of the critic in `checkpoint`, as `load_trainer` makes one of an actor."""
        raise NotImplementedError

    @method(
        Record(
            StepResult,
            {"gradients": Named("gradients"), "loss": Metric(), "grad_norm": Metric()},
            required=("gradients",),
            bare="gradients",
        ),
        model="load_critic_trainer",
        returns="the gradient of each parameter, by its name",
    )
    def critic_step_gradients(self, trainer: Any, samples: Sequence[StepSample]) -> Mapping[str, Tensor] | StepResult:
        """The gradient of the value loss that the critic's optimizer would be given in a step on these samples; the
        rest as `step_gradients` says."""
        raise NotImplementedError

    @method(prepares=True, model="load_critic_trainer")
    def critic_step_update(self, trainer: Any, samples: Sequence[StepSample]) -> None:
        """Make the whole step of the critic: its weights move."""
        raise NotImplementedError

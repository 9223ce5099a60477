"""A step of TRL's GRPOTrainer: `train()` with one step, on samples that were not generated.

What stands in: the rollout function, as TRL lets its users have one, which returns the tokens of the samples; the
log-probs that are known of them, where the trainer would run a model for them; their advantages, which are not made of
rewards; and the shuffling of a generated batch, which keeps its order, so that the cut is known. Memory is not
collected before each step, which takes longer than the step. The trainer pads, counts, cuts, runs, accumulates, clips
and steps. It begins each call at micro-step 0: it knows no run whose number of micro-batches changes.

A step takes its samples from one generation, or with `several_generations` from as many as they fill: then it would use
each of them once, and take no old log-probs, in whose place the samples' own stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback
from trl import GRPOTrainer

from rlhf_conformance import StepResult
from rlhf_conformance.adapters import trl_standins as standins

QUIET = {"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "max_steps": 1}
PLAIN = {"optim": "sgd", "lr_scheduler_type": "constant", "weight_decay": 0.0}
PROMPTS = 64
"""Enough for any batch: the sampler draws from them, and nobody reads them."""


class _Gradients(TrainerCallback):
    """Reads the gradients that the optimizer is about to be given; where the weights are to stay, takes them away."""

    def __init__(self) -> None:
        self.stay = False
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        if self.stay:
            model.zero_grad(set_to_none=True)


def trainer(adapter: Any, checkpoint: Any, options: Any) -> GRPOTrainer:
    """A GRPOTrainer of a checkpoint that minimises what the options say."""
    bounds = {"epsilon": options.clip_eps_low, "epsilon_high": options.clip_eps_high, "delta": options.dual_clip}
    norm = {"max_grad_norm": options.max_norm or 0.0, "learning_rate": options.learning_rate}
    level = "sequence" if options.surrogate == "gspo" else "token"
    own = {"importance_sampling_level": level, "entropy_coef": options.entropy_coef}
    own["num_iterations"] = 1 if adapter.several_generations else 2
    config = {**QUIET, **PLAIN, **bounds, **norm, **own, **adapter.config}
    made = standins.trainer("grpo", checkpoint, adapter.attention, adapter.loss_type, **config)
    made.train = type(made).train.__get__(made)
    made.train_dataset = Dataset.from_dict({"prompt": ["2"] * PROMPTS})
    made.beta, made.ref_model = options.kl_coef, "reference"  # whose log-probs are known
    made.max_completion_length = options.constant_length
    made.known, made.several = options, adapter.several_generations
    made.gradients = _Gradients()
    made.add_callback(made.gradients)
    return made


@contextmanager
def rolled_out(trainer: GRPOTrainer, samples: Any, known: bool = True) -> Iterator[None]:
    """With these samples in the place of what the trainer would generate, and what is `known` of them."""
    size = trainer.known.micro_batch_size or len(samples)
    args, number = trainer.args, len(samples) // size
    each = math.lcm(size, trainer.num_generations) // size if trainer.several and known else number
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, number
    args.steps_per_generation, args.generation_batch_size = each, each * size
    trainer._train_batch_size, trainer._step, trainer._buffered_inputs = size, 0, None
    ask, generate = trainer._get_per_token_logps_and_entropies, trainer._generate_and_score_completions
    parts = iter(range(0, len(samples), each * size))

    def generated(inputs: Any) -> Any:
        start = next(parts)
        mine = samples[start : start + each * size]
        old, ref = (
            pad_sequence([getattr(sample, name) for sample in mine], batch_first=True)
            for name in ("old_log_probs", "ref_log_probs")
        )
        rollout = {
            "prompt_ids": [sample.prompt.tolist() for sample in mine],
            "completion_ids": [sample.response.tolist() for sample in mine],
            "logprobs": None,
            "env_mask": [sample.action_mask.tolist() for sample in mine],
        }

        def told(model: Any, ids: Any, mask: Any, width: int, **how: Any) -> Any:
            row = ref if model == "reference" else old
            known_row = torch.nn.functional.pad(row, (0, width - row.shape[1]))  # `pad_to_multiple_of`
            return (known_row, None, None) if known else ask(model, ids, mask, width, **how)

        with (
            mock.patch.object(trainer, "rollout_func", mock.Mock(return_value=rollout)),
            mock.patch.object(trainer, "reward_funcs", [lambda **_: [0.0] * len(mine)]),
            mock.patch.object(trainer, "_get_per_token_logps_and_entropies", told),
        ):
            made = generate(inputs)
        taken = {"old_per_token_logps": old} if trainer.several and known else {}  # it takes none that it uses once
        return {**made, **taken, "advantages": torch.stack([sample.advantages[0] for sample in mine])}

    with (
        mock.patch.object(trainer, "_generate_and_score_completions", generated),
        mock.patch("trl.trainer.grpo_trainer.shuffle_sequence_dict", lambda batch: batch),
        mock.patch("accelerate.utils.memory.clear_device_cache"),
    ):
        yield


def gradients(trainer: GRPOTrainer, samples: Any) -> StepResult:
    trainer.gradients.stay = True
    with rolled_out(trainer, samples):
        done = trainer.train()
    trainer.gradients.stay = False
    logged = {name: x for row in trainer.state.log_history for name, x in row.items()}
    told = {name: logged[name] for name in ("kl", "entropy", "grad_norm") if name in logged}
    return StepResult(trainer.gradients.found, loss=done.training_loss, **told)


def update(trainer: GRPOTrainer, samples: Any) -> None:
    with rolled_out(trainer, samples):
        trainer.train()


def log_probs(trainer: GRPOTrainer, samples: Any) -> list[torch.Tensor]:
    """As the trainer takes old ones, after it has generated, where it is to use a generation twice."""
    twice = mock.patch.multiple(trainer, beta=0.0, num_iterations=2)
    with torch.no_grad(), rolled_out(trainer, samples, known=False), twice:
        made = trainer._generate_and_score_completions([{"prompt": "2"}] * len(samples))
    rows = made["old_per_token_logps"]
    return [row[: len(sample.response)] for row, sample in zip(rows, samples, strict=True)]

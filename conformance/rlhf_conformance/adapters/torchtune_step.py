"""A step of torchtune's PPO recipe: its `train`, for one batch, on samples that were not generated.

What stands in: the trajectory that the recipe would generate, whose masks and positions are made by the functions with
which it makes them; advantages, which are not made of rewards; the shuffling of the batch, which keeps its order, so
that the cut is known; the checkpoint at the end, which is not written; and a value model that answers zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchtune import generation, rlhf
from torchtune.rlhf import Trajectory
from torchtune.rlhf.loss import PPOLoss

from rlhf_conformance import StepResult
from rlhf_conformance.adapters import torchtune_standins as standins


def trainer(adapter: Any, checkpoint: Any, options: Any) -> Any:
    """A recipe that holds the checkpoint as its policy, with SGD and the clip that are asked for."""
    made = standins.trainer("actor", checkpoint, adapter.kv_cache)
    made.known, made._loss_fn = options, PPOLoss(epsilon=options.clip_eps_low)
    made._ppo_epochs = made._total_epochs = made._total_steps = made._log_every_n_steps = 1
    for group in made._optimizer.param_groups:
        group["lr"] = options.learning_rate
    return made


def rows_of(made: Any, samples: Any) -> tuple[Tensor, int]:
    """Prompts padded on the left and responses on the right, and where the responses begin."""
    pad = made._tokenizer.pad_id
    prompts = pad_sequence([s.prompt.flip(0) for s in samples], batch_first=True, padding_value=pad).flip(1)
    responses = pad_sequence([s.response for s in samples], batch_first=True, padding_value=pad)
    return torch.cat([prompts, responses], dim=1), prompts.shape[1]


def trajectory(made: Any, samples: Any) -> Trajectory:
    """As the recipe makes one of rows that it has generated. Under the mask log-probs are 1."""
    rows, _ = rows_of(made, samples)
    attended = rows != made._tokenizer.pad_id
    masked = ~pad_sequence([s.action_mask for s in samples], batch_first=True).bool()
    old = pad_sequence([s.old_log_probs for s in samples], batch_first=True).masked_fill(masked, 1.0)
    nothing, last = torch.zeros_like(old), (~masked).sum(-1) - 1
    return Trajectory(
        query_responses=rows,
        logprobs=old,
        ref_logprobs=old,
        values=nothing,
        masks=generation.get_causal_mask_from_padding_mask(attended),
        position_ids=generation.get_position_ids_from_padding_mask(attended),
        response_padding_masks=masked,
        value_padding_masks=masked,
        value_seq_idxs=last,
        scores=nothing[:, 0],
        seq_lens=last,
    )


def train(made: Any, samples: Any, step: Callable[[], Any]) -> Any:
    """One batch through the recipe's loop, with this in the place of the optimizer's step. -> what it would log"""
    size = made.known.micro_batch_size or len(samples)
    made.batch_size = made._ppo_batch_size = len(samples)
    made._ppo_backward_batch_size, made._gradient_accumulation_steps = size, len(samples) // size
    made._steps_run, made._epochs_run = 0, 0
    made._dataloader = [{"tokens": rows_of(made, samples)[0][:, : rows_of(made, samples)[1]]}]
    advantages = pad_sequence([s.advantages for s in samples], batch_first=True)
    nothing = torch.zeros_like(advantages)
    own = {
        "generate_trajectory_batched": mock.Mock(return_value=trajectory(made, samples)),
        "save_checkpoint": mock.Mock(),
        "log_metrics": mock.Mock(),
    }
    with (
        mock.patch.multiple(made, **own),
        mock.patch.object(rlhf, "get_rewards_ppo", return_value=(nothing, nothing, nothing)),
        mock.patch.object(rlhf, "estimate_advantages", return_value=(advantages, nothing)),
        mock.patch("torch.randperm", lambda count, device=None: torch.arange(count, device=device)),
        mock.patch.object(made._optimizer, "step", step),
    ):
        type(made).train(made)
        return made.log_metrics.call_args.args[1]


def gradients(made: Any, samples: Any) -> StepResult:
    found = {}

    def read() -> None:
        found.update({name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None})

    logged = train(made, samples, read)
    return StepResult(found, loss=logged.loss.mean(), policy_loss=logged.policy_loss.mean())


def update(made: Any, samples: Any) -> None:
    train(made, samples, made._optimizer.step)


def log_probs(made: Any, samples: Any) -> list[Tensor]:
    """As the recipe takes old ones, from the logits with which it samples."""
    rows, start = rows_of(made, samples)
    batch = SimpleNamespace(input_ids=rows, num_actions=rows.shape[1] - start)
    found = standins.made_of(made, batch, sampled=True).logprobs
    return [row[: len(sample.response)] for row, sample in zip(found, samples, strict=True)]

"""A step of verl: `train_batch` of the engine that its workers have, with their losses, and SGD.

What stands in: the batch of a rollout, whose rows are the samples. The engine counts, cuts (by rows, or by tokens with
`use_dynamic_bsz`), runs, accumulates, clips and steps.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.nn.utils.rnn import pad_sequence

from rlhf_conformance import StepResult
from rlhf_conformance.adapters import verl_standins as standins  # isort: split

from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.utils.model import compute_position_id_with_mask
from verl.workers.utils import losses
from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding


def trainer(adapter: Any, kind: str, checkpoint: Any, options: Any) -> Any:
    """An engine with an optimizer, and the loss that the options ask for."""
    made = standins.engine(kind, checkpoint, **adapter.mode)
    trained = [p for p in made.module.parameters() if p.requires_grad]
    made.optimizer = torch.optim.SGD(trained, lr=options.learning_rate, momentum=options.momentum)
    made.optimizer_config = SimpleNamespace(clip_grad=math.inf if options.max_norm is None else options.max_norm)
    made._qat_enabled, made.known = False, options
    made.settings = {"use_remove_padding": made.use_remove_padding, "temperature": checkpoint.temperature}
    made.settings |= {"pad_token_id": checkpoint.pad_token_id, "calculate_entropy": bool(options.entropy_coef)}
    if kind == "critic":
        scaled = {"loss_scale_factor": options.constant_length, "loss_agg_mode": adapter.aggregation_mode(options)}
        config: Any = SimpleNamespace(cliprange_value=options.value_clip_eps, **scaled)
        made.loss = partial(losses.value_loss, config)
    else:
        made.loss = partial(losses.ppo_loss, standins.objective_config(options, **adapter.modes_of(options)))
    return made


def batch(engine: Any, samples: Any) -> TensorDict:
    """The samples as a batch that was rolled out: prompts padded on the left, responses on the right."""
    prompts, responses = [s.prompt for s in samples], [s.response for s in samples]

    def left(rows: Any) -> torch.Tensor:
        return pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)

    def right(rows: Any) -> torch.Tensor:
        return pad_sequence(rows, batch_first=True)

    attended = [left(map(torch.ones_like, prompts)), right([*map(torch.ones_like, responses)])]
    names = {"old_log_probs": "old_log_probs", "advantages": "advantages", "ref_log_prob": "ref_log_probs"}
    names |= {"values": "old_values", "returns": "returns"}
    rows = {name: right([getattr(s, own) for s in samples]) for name, own in names.items()}
    rows |= {"prompts": left(prompts), "responses": right(responses), "attention_mask": torch.cat(attended, dim=1)}
    rows["input_ids"] = torch.cat([rows["prompts"], rows["responses"]], dim=1)
    rows["response_mask"] = right([s.action_mask for s in samples])
    rows["position_ids"] = compute_position_id_with_mask(rows["attention_mask"])
    data = left_right_2_no_padding(TensorDict(rows, batch_size=len(samples)))
    known = engine.known
    cut = {"use_dynamic_bsz": known.max_tokens is not None, "global_batch_size": len(samples)}
    cut |= {"micro_batch_size_per_gpu": known.micro_batch_size, "max_token_len_per_gpu": known.max_tokens}
    for name, value in {**engine.settings, **cut}.items():
        tensordict_utils.assign_non_tensor_data(data, name, value)
    return data


def gradients(engine: Any, samples: Any) -> StepResult:
    found = {}

    def read() -> None:
        found.update({name: p.grad.clone() for name, p in engine.module.named_parameters() if p.grad is not None})

    with mock.patch.object(engine.optimizer, "step", read):
        out = engine.train_batch(batch(engine, samples), engine.loss)
    engine.optimizer_zero_grad()
    return StepResult(found, loss=math.fsum(out["loss"]), grad_norm=out["metrics"]["grad_norm"])


def update(engine: Any, samples: Any) -> None:
    engine.train_batch(batch(engine, samples), engine.loss)
    engine.optimizer_zero_grad()


def log_probs(engine: Any, samples: Any) -> list[torch.Tensor]:
    """As the workers take old ones."""
    data = batch(engine, samples)
    rows = no_padding_2_padding(engine.infer_batch(data)["model_output"]["log_probs"], data)
    return [row[: len(sample.response)] for row, sample in zip(rows, samples, strict=True)]

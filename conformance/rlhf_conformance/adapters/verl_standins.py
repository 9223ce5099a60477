"""Stand-ins for what verl asks of its surroundings and no clause is about. All of them are here.

- the platform: verl knows CUDA, ROCm and NPU; this one says "cpu".
- the process group: one rank, by gloo.
- the engine's configuration, which a trainer makes of its YAML files; and no FSDP wrapper, since there is one rank.
- packages of servers and queues, which the trainer's modules import and nothing here calls.
- the batch of a rollout: a prompt of one token, responses that end with their last action, one output a session.
- one row more beside those whose weights are asked for: the metrics of the rollout correction divide by the sum of all
  weights, and raise where it is 0.
- no whitening where advantages are taken before it: GAE whitens what it returns. Whitening is asked on its own.

The module is built, its inputs prepared and its outputs read by verl's own engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers
from verl.plugin.platform import platform_manager

CPU = SimpleNamespace(
    device_name="cpu",
    vendor_name="cpu",
    current_device=lambda: "cpu",
    empty_cache=lambda: None,
    device_module=torch.cpu,
    is_available=lambda: True,
    communication_backend_name=lambda: "gloo",
    apply_model_patches=lambda kind: None,
)
platform_manager.set_platform(CPU)
SERVERS = ("aiohttp", "cachetools", "fastapi", "transfer_queue", "uvicorn")
absent = {name: mock.MagicMock(__path__=[]) for name in SERVERS if find_spec(name) is None}
sys.modules |= absent

import verl.experimental.reward_loop.reward_manager.base  # noqa: E402
import verl.trainer.ppo.v1.utils  # noqa: E402, F401
from verl.protocol import DataProto  # noqa: E402
from verl.trainer.config.algorithm import RolloutCorrectionConfig  # noqa: E402
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch  # noqa: E402
from verl.utils import tensordict_utils, torch_functional  # noqa: E402
from verl.utils.metric import Metric  # noqa: E402
from verl.workers.config import ActorConfig, PolicyLossConfig  # noqa: E402
from verl.workers.engine.fsdp import transformer_impl  # noqa: E402
from verl.workers.utils import losses  # noqa: E402

for name in absent:  # they are there for the imports alone: others look for packages, too
    del sys.modules[name]

CHUNK = 2
"""Rows whose entropies are taken at a time: few, so that small batches have several chunks."""

KINDS = {"actor": transformer_impl.FSDPEngineWithLMHead, "critic": transformer_impl.FSDPEngineWithValueHead}


@contextlib.contextmanager
def _attention(name: str) -> Iterator[None]:
    """In the body, a critic, which asks for flash attention, is loaded with this one."""
    kind = transformers.AutoModelForTokenClassification
    usual = kind.from_pretrained

    def load(*given: Any, **asked: Any) -> Any:
        return usual(*given, **asked | {"attn_implementation": name})

    kind.from_pretrained = load
    try:
        yield
    finally:
        kind.from_pretrained = usual


def engine(
    kind: str, checkpoint: Any, *, remove_padding: bool, chunked_entropy: bool, pad_to: int, attention: str
) -> Any:
    """An engine that holds the checkpoint in its dtype, without FSDP and without an optimizer."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    config = transformers.AutoConfig.from_pretrained(checkpoint.path, attn_implementation=attention)
    made = object.__new__(KINDS[kind])
    made.model_config = SimpleNamespace(
        local_path=checkpoint.path,
        hf_config=config,
        trust_remote_code=False,
        use_liger=False,
        use_fused_kernels=False,
        fused_kernel_options=None,
        enable_gradient_checkpointing=False,
        model_type="language_model" if kind == "actor" else "value_model",
    )
    name = str(checkpoint.dtype).removeprefix("torch.")
    made.engine_config = SimpleNamespace(
        model_dtype=name,
        forward_only=False,
        entropy_checkpointing=False,
        entropy_from_logits_with_chunking=chunked_entropy,
        entropy_from_logits_chunk_size=CHUNK,
    )
    made.use_remove_padding, made.device_mesh, made.ulysses_sequence_parallel_size = remove_padding, None, 1
    made.use_ulysses_sp, made.ulysses_device_mesh, made.rank = False, None, 0
    made._autocast_dtype = torch.bfloat16 if checkpoint.dtype == torch.bfloat16 else torch.float32
    made.pad_to_length, made.pad_to_length_bucket = bool(pad_to), pad_to
    chunking = torch_functional.entropy_from_logits_with_chunking
    made.compute_entropy_from_logits = chunking if chunked_entropy else torch_functional.entropy_from_logits
    with _attention(attention):
        made.module = made._build_module().to(checkpoint.device)
    made.train = made.module.train
    return made


def forward(engine: Any, data: Any, batch: Any) -> dict[str, Any]:
    """What the engine makes of a micro-batch, with its graph: the loss is given it, and is not asked for."""
    seen: dict[str, Any] = {}

    def loss(model_output: dict[str, Any], data: Any, dp_group: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
        seen.update(model_output)
        return torch.zeros(()), {}

    settings = {"use_remove_padding": engine.use_remove_padding, "pad_token_id": batch.pad_token_id}
    settings |= {"temperature": batch.temperature, "calculate_entropy": True}
    for name, value in settings.items():
        tensordict_utils.assign_non_tensor_data(data, name, value)
    engine.forward_step(data, loss, forward_only=False)
    return seen


def entropies(logits: torch.Tensor, *, chunked: bool) -> torch.Tensor:
    """By the function that the engine takes; the one that goes by chunks is handed rows of logits there, too."""
    if not chunked:
        return torch_functional.entropy_from_logits(logits)
    rows = torch_functional.entropy_from_logits_with_chunking(logits.flatten(0, -2), CHUNK)
    return rows.view(logits.shape[:-1])


def counts(options: Any) -> dict[str, Any]:
    """The counts of the whole step, as the workers hand them to the losses."""
    return {"batch_num_tokens": options.global_count, "global_batch_size": options.global_count}


class Config(SimpleNamespace):
    """What the advantages read of a config."""

    def get(self, name: str, default: Any) -> Any:
        return getattr(self, name, default)


def loss_config(options: Any) -> ActorConfig:
    """The trainer's own, with the clips, the counts and the length that are asked for."""
    info = {**counts(options), "loss_scale_factor": options.constant_length}
    clips = {"clip_ratio_low": options.clip_eps_low, "clip_ratio_high": options.clip_eps_high}
    clips |= {} if options.dual_clip is None else {"clip_ratio_c": options.dual_clip}
    return ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, global_batch_info=info, **clips)


def objective_config(options: Any, loss_mode: str, **asked: Any) -> ActorConfig:
    """The workers' own, with the terms that are asked for."""
    return dataclasses.replace(
        loss_config(options),
        entropy_coeff=options.entropy_coef,
        use_kl_loss=bool(options.kl_coef),
        kl_loss_coef=options.kl_coef,
        loss_scale_factor=options.constant_length,
        policy_loss=PolicyLossConfig(loss_mode=loss_mode),
        **asked,
    )


def objective(
    options: Any, answers: dict[str, Any], tables: dict[str, torch.Tensor], loss_mode: str, **asked: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of the workers, `ppo_loss`, of tables (B, T) that are padded already, and what it logs. As in its
    workers there are entropies and a KL only where they have a coefficient."""
    config = objective_config(options, loss_mode, **asked)
    data = Padded({"dp_size": 1, **counts(options), **tables})
    with mock.patch.object(losses, "no_padding_2_padding", lambda rows, _: rows):
        loss, log = losses.ppo_loss(config, answers, data)
    return loss, {name: metric.values[0] for name, metric in log.items() if isinstance(metric, Metric)}


def correction(old: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor, options: Any) -> dict[str, torch.Tensor]:
    """What the trainer's own correction makes of a batch (B, T), with its weights: `rollout_is_weights`."""
    band, inside = options.upper, 0.0
    if options.mode == "mask":
        lower = options.lower or min(1e-12, options.upper)
        band, inside = f"{lower}_{options.upper}", math.log((lower + options.upper) / 2)
    return _corrected(old, rollout, mask, inside, rollout_is=options.level, rollout_is_threshold=band)


def rejection(old: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor, options: Any) -> dict[str, torch.Tensor]:
    """What it makes of a batch where it rejects, and weighs nothing: `response_mask` is 1 on what it accepts. It holds
    the ratio of the engine to the trainer between its bounds, which are those of the weight turned round."""
    kind = {"product": "seq_sum_k1", "geometric": "seq_mean_k1"}[options.sequence_weight]
    kind = "token_k1" if options.level == "token" else kind
    band = f"{1 / options.upper}_{1 / options.lower if options.lower else math.inf}"
    return _corrected(old, rollout, mask, 0.0, rollout_rs=kind, rollout_rs_threshold=band)


def _corrected(
    old: torch.Tensor, rollout_log_probs: torch.Tensor, mask: torch.Tensor, inside: float, **config: Any
) -> dict[str, torch.Tensor]:
    """Of a batch with one row more, which has one action with the log-ratio `inside`."""
    more = {"old_log_probs": torch.full_like(old[:1], inside), "rollout_log_probs": torch.zeros_like(old[:1])}
    tables = {"old_log_probs": old, "rollout_log_probs": rollout_log_probs}
    rows = {name: torch.cat([table, more[name]]) for name, table in tables.items()}
    action = torch.zeros_like(mask[:1])
    action[:, 0] = 1
    batch = rollout(torch.cat([mask, action]), **rows)
    made = compute_rollout_correction_and_add_to_batch(batch, RolloutCorrectionConfig(**config))[0]
    return {name: table[:-1] for name, table in made.batch.items()}


class Padded(dict[str, Any]):
    """A batch of tables that are padded already."""

    def select(self, *names: str) -> Padded:
        return Padded({name: self[name] for name in names})

    def to_padded_tensor(self) -> Padded:
        return self


def rollout(action_mask: torch.Tensor, group_ids: torch.Tensor | None = None, **tables: torch.Tensor) -> DataProto:
    """A batch as the trainer has it after a rollout. Rows without group ids are a group each; observations between
    actions are attended, and what lies behind the last action is padding."""
    response_mask = action_mask.long()
    attended = response_mask.flip(1).cumsum(1).flip(1) > 0
    prompts = torch.ones_like(response_mask[:, :1])
    tables |= {"response_mask": response_mask, "responses": torch.zeros_like(response_mask), "prompts": prompts}
    tables["attention_mask"] = torch.cat([prompts, attended.long()], dim=1)
    ids = range(len(response_mask)) if group_ids is None else group_ids.tolist()
    return DataProto.from_dict(tables, non_tensors={"uid": [str(one) for one in ids]})


def sessions(batch: DataProto) -> list[str]:
    """The key of each output: of which prompt, in which session, and its number in that."""
    return [f"{uid}_{session}_0" for session, uid in enumerate(batch.non_tensor_batch["uid"])]


def no_whitening() -> Any:
    """In the body, advantages are left as they are before they are whitened."""
    return mock.patch.object(torch_functional, "masked_whiten", lambda values, mask: values)

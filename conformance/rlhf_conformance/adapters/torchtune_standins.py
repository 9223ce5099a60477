"""Stand-ins for what torchtune's recipes ask of their surroundings and no clause is about. All of them are here.

- the configuration, which a user writes in YAML: components, sizes and rotary base are read off the checkpoint.
- a tokenizer that is only its special ids, a data set of one prompt, a logger that logs nothing.
- for the models of PPO that are not asked, one that answers zeros, and its checkpoint.
- generation, where rows are given: `generate` returns them, or its sampler draws them token by token.
- a loss that keeps what the recipe hands it.

Models are built, loaded, run and saved by the recipes, which are files beside the package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchtune import datasets, generation, models, rlhf
from torchtune.data import padded_collate_packed
from torchtune.generation import _generation
from torchtune.models import convert_weights, qwen2
from torchtune.modules.loss import CEWithChunkedOutputLoss
from torchtune.rlhf import utils as rewards

HERE = __name__
SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "attn_dropout": "attention_dropout",
    "norm_eps": "rms_norm_eps",
}
TO_HF = {"REWARD": rewards.reward_tune_to_hf, "QWEN2": qwen2._convert_weights.qwen2_tune_to_hf}


@cache
def recipe(name: str) -> Any:
    """The module of a recipe. The folder of recipes refuses to be imported, since it is no package."""
    folder = importlib.util.find_spec("recipes")
    assert folder is not None and folder.submodule_search_locations
    file = Path(folder.submodule_search_locations[0], f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"recipes.{name}", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Tokenizer:
    def __init__(self, pad_id: int, eos_id: int) -> None:
        self.pad_id, self.eos_id, self.stop_tokens, self.max_seq_len = pad_id, eos_id, [eos_id], None

    def encode(self, text: list[int], add_bos: bool, add_eos: bool) -> list[int]:
        return text


class Nothing(nn.Module):
    """A model that answers zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output = nn.Linear(1, width, bias=False)

    def forward(self, tokens: Tensor, **_: Any) -> Tensor:
        self.seen = tokens
        return torch.zeros(*tokens.shape, self.output.out_features, device=tokens.device)


class CheckpointOfNothing:
    def __init__(self, width: int, **_: Any) -> None:
        self.width = width

    def load_checkpoint(self) -> dict[str, Any]:
        return {"model": Nothing(self.width).state_dict()}

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        pass


class Silence:
    def log_config(self, config: Any) -> None:
        pass


def prompts(tokenizer: Tokenizer) -> list[dict[str, list[int]]]:
    return [{"tokens": [tokenizer.pad_id], "labels": [tokenizer.pad_id]}]


def component(path: Any, **arguments: Any) -> dict[str, Any]:
    return {"_component_": path if isinstance(path, str) else f"{HERE}.{path.__name__}", **arguments}


def built(config: dict[str, Any], head: bool) -> tuple[dict[str, Any], str]:
    """The component that builds the model, and the type that its checkpointer knows it by."""
    kind = config["model_type"]
    family = {"llama": "llama3_2" if config["tie_word_embeddings"] else "llama2"}.get(kind, kind)
    sizes = {ours: config[theirs] for ours, theirs in SIZES.items()}
    if not (head and family == "llama2"):
        sizes["rope_base"] = config["rope_parameters"]["rope_theta"]
    sizes |= {"scale_factor": 1} if family == "llama3_2" else {}  # its rotary table without what it does for length
    builder = f"{family}_classifier" if head else family
    path = f"torchtune.models.{family}._component_builders.{builder}"
    return component(path, **sizes, **({"num_classes": 1} if head else {})), "REWARD" if head else family.upper()


def trainer(kind: str, checkpoint: Any, kv_cache: bool = False) -> Any:
    """A PPO recipe, set up by itself, that holds the checkpoint as its policy ("actor"), value or reward model."""
    config = json.loads(Path(checkpoint.path, "config.json").read_text())
    output = tempfile.mkdtemp()
    nothing = {"policy": config["vocab_size"], "scorer": 1}
    asked, model_type = built(config, kind != "actor")
    files = sorted(file.name for file in Path(checkpoint.path).glob("*.safetensors"))
    read = {"checkpoint_dir": checkpoint.path, "checkpoint_files": files, "model_type": model_type}
    hf = "torchtune.training.FullModelHFCheckpointer"
    policy, scorer = (component(Nothing, width=width) for width in nothing.values())
    no_policy, no_scorer = (
        component(CheckpointOfNothing, width=width, checkpoint_dir="", checkpoint_files=[])
        for width in nothing.values()
    )
    held = kind == "actor"
    taken = component(hf, **read, output_dir=output)
    yaml = {
        "device": str(checkpoint.device),
        "dtype": {"float32": "fp32", "bfloat16": "bf16", "float64": "fp64"}[str(checkpoint.dtype).split(".")[1]],
        "output_dir": output,
        "seed": 0,
        "resume_from_checkpoint": False,
        "gradient_accumulation_steps": 1,
        "metric_logger": component(Silence),
        "policy_model": asked if held else policy,
        "checkpointer": taken if held else no_policy,
        "ref_policy_checkpointer": taken if held else no_policy,
        "reward_and_value_model": scorer if held else asked,
        "value_checkpointer": no_scorer if held else taken,
        "reward_checkpointer": no_scorer if held else taken,
        "compile": False,
        "optimizer_in_bwd": False,
        "enable_activation_checkpointing": False,
        "enable_kv_cache": kv_cache and held,
        "tokenizer": component(Tokenizer, pad_id=checkpoint.pad_token_id, eos_id=checkpoint.eos_token_id),
        "optimizer": component("torch.optim.SGD", lr=0.0),
        "loss": component("torchtune.rlhf.loss.PPOLoss"),
        "dataset": component(prompts),
        "shuffle": False,
        **dict.fromkeys(("batch_size", "forward_batch_size", "ppo_epochs", "ppo_batch_size", "num_steps"), 1),
        **{"kl_coeff": 0.0, "gamma": 1.0, "lmbda": 1.0, "whiten_rewards": False},
        **{"temperature": checkpoint.temperature, "top_k": 1, "max_generated_tokens": 1},
        **{"min_response_length": None, "penalise_no_eos": False, "reward_penalty": 0},
    }
    made_of = OmegaConf.create(yaml)
    # The constructor seeds, the setup draws weights, and the checkpointers collect garbage for most of a second.
    with torch.random.fork_rng(), mock.patch("gc.collect"):
        made = recipe("ppo_full_finetune_single_device").PPOFullFinetuneRecipeSingleDevice(made_of)
        made.setup(made_of)
    made.model = {"actor": made._policy_model, "critic": made._value_model, "reward": made._reward_model}[kind]
    made.model.requires_grad_(True)  # the recipe freezes the reward model, of which a gradient is asked, too
    made.kind, made.config, made.to_hf = kind, config, TO_HF.get(model_type, convert_weights.tune_to_hf)
    made.train = made.model.train  # a switch of mode, as for a module, and not a training run
    return made


def weights(made: Any, tensors: Any) -> Any:
    """Weights in torchtune's order of rows as the checkpoint's, by the converter with which it saves."""
    heads, config = {"num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads"}, made.config
    return made.to_hf(dict(tensors), dim=config["hidden_size"], **{ours: config[theirs] for ours, theirs in heads.items()})


@contextlib.contextmanager
def generating(made: Any, rows: Tensor, start: int, sampled: bool) -> Iterator[None]:
    """In the body, generation gives these rows, whose responses begin at `start`: its sampler draws their tokens, or
    it returns them with logits of zeros."""
    made._max_generated_tokens, made._forward_batch_size = rows.shape[1] - start, len(rows)
    if sampled:
        tokens = iter(rows[:, start:].split(1, dim=1))
        with mock.patch.object(_generation, "sample", lambda logits, **_: next(tokens)):
            yield
    else:
        logits = torch.zeros(*rows[:, start:].shape, made.config["vocab_size"], device=rows.device)
        with mock.patch.object(generation, "generate", lambda **_: (rows.clone(), logits)):
            yield


def trajectory(made: Any, rows: Tensor, start: int, sampled: bool = False) -> rlhf.Trajectory:
    """What the recipe makes of generated rows."""
    with generating(made, rows, start, sampled):
        return made.generate_trajectory(rows[:, :start])


def stepped(made: Any, seen: rlhf.Trajectory, advantages: Tensor, returns: Tensor, start: int, loss_fn: Any = None) -> Any:
    """What a step of PPO hands to its loss, with its graph: `log_probs` and `values`; with `loss_fn` also the `loss`,
    and the `metrics` of the step. The step's own backward pass finds nothing to do."""
    kept = SimpleNamespace()

    def loss(*given: Tensor, **masks: Tensor) -> Any:
        kept.log_probs, kept.values = given[1], given[4]
        kept.loss, *rest = loss_fn(*given, **masks) if loss_fn else torch.zeros(5)
        return torch.zeros((), requires_grad=True).clone(), *rest

    made._loss_fn = loss
    kept.metrics = made.ppo_step(seen, advantages, returns, start)
    return kept


def step(made: Any, batch: Any) -> Any:
    """The step of PPO on a batch, without its loss."""
    start = batch.input_ids.shape[1] - batch.num_actions
    with torch.no_grad():
        seen = trajectory(made, batch.input_ids, start)
    return stepped(made, seen, torch.zeros_like(seen.logprobs), torch.zeros_like(seen.logprobs), start)


def losses(loss_fn: Any, mask: Tensor, **given: Tensor) -> Any:
    """The losses of a step of PPO, of tensors (B, T): its models are replaced by one that knows the log-probs and the
    values; what is not given is zero."""
    zeros = torch.zeros_like(next(iter(given.values())))
    log_probs, values = given.get("log_probs", zeros), given.get("values", zeros)
    made = object.__new__(recipe("ppo_full_finetune_single_device").PPOFullFinetuneRecipeSingleDevice)
    made._temperature, made._gradient_accumulation_steps = 1.0, 1
    made._policy_model = lambda *_, **__: zeros[..., None]
    made._value_model = lambda *_, **__: torch.cat([values, zeros[:, :1]], dim=1)[..., None]
    made_of = dict.fromkeys(rlhf.Trajectory._fields) | {
        "query_responses": torch.cat([mask[:, :1], mask], dim=1),  # a prompt of one token
        "logprobs": given.get("old_log_probs", zeros),
        "values": given.get("old_values", zeros),
        "response_padding_masks": ~mask.bool(),
        "value_padding_masks": ~mask.bool(),
    }
    rest = given.get("advantages", zeros), given.get("returns", zeros)
    with mock.patch.object(rlhf, "logits_to_logprobs", lambda *_: log_probs.clone()):
        return stepped(made, rlhf.Trajectory(**made_of), *rest, 1, loss_fn)


def pairs(made: Any, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What the DPO recipe makes of right-padded rows: a sum of log-probs for each, and all logits."""
    module = recipe("lora_dpo_single_device")
    dpo = object.__new__(module.LoRADPORecipeSingleDevice)
    dpo._device, dpo.activations_handling_ctx = ids.device, contextlib.nullcontext()
    chosen, rejected, *logits = dpo.concatenated_forward(made.model, (ids, labels))
    return torch.cat([chosen, rejected]), torch.cat(logits)


def texts(sequences: list[list[int]]) -> Any:
    """A data set of texts whose tokens these are; its labels are its own."""
    found = object.__new__(datasets.TextCompletionDataset)
    found._tokenizer, found._column, found.add_eos = Tokenizer(0, 0), "text", False
    found._data = [{"text": sequence} for sequence in sequences]
    return found


def pack(samples: Any, length: int) -> dict[str, Tensor]:
    """The one pack of so many tokens, as the data loader hands it to the recipe."""
    return padded_collate_packed([datasets.PackedDataset(samples, max_seq_len=length)[0]])


def finetune(made: Any, batch: dict[str, Tensor]) -> Tensor:
    """The log-prob of each label of a pack, by the recipe for finetuning and its loss, which is asked for one at a time."""
    module = recipe("full_finetune_single_device")
    sft = object.__new__(module.FullFinetuneRecipeSingleDevice)
    sft._model, sft.activations_handling_ctx = made.model, contextlib.nullcontext()
    sft.ignore_labels_cache = torch.full((1, 1), CHUNKED.ignore_index, device=batch["tokens"].device)
    made.model.set_num_output_chunks(CHUNKED.num_output_chunks)
    sft._loss_fn = each
    return sft._loss_step(dict(batch))


CHUNKED = CEWithChunkedOutputLoss()


def each(logits: list[Tensor], labels: Tensor) -> Tensor:
    """The log-prob of each label that is not ignored, from the loss of a batch that has this label alone."""
    alone = [labels.new_full(labels.shape, CHUNKED.ignore_index) for _ in range(int((labels != CHUNKED.ignore_index).sum()))]
    for row, (i, j) in zip(alone, (labels != CHUNKED.ignore_index).nonzero().tolist(), strict=True):
        row[i, j] = labels[i, j]
    return torch.stack([-CHUNKED(logits, row) for row in alone])


def generate(made: Any, prompts: Any) -> Tensor:
    """Generated rows, which the recipe cuts at their stop ids, as it hands them to the reward model."""
    made._max_generated_tokens, made._forward_batch_size = prompts.max_new_tokens, len(prompts.input_ids)
    made._stop_token_ids = torch.tensor(prompts.stop_token_ids, dtype=torch.long, device=prompts.input_ids.device)
    made._tokenizer.pad_id = prompts.pad_token_id
    with torch.no_grad():
        made.generate_trajectory(prompts.input_ids)
    return made._reward_model.seen


def save(made: Any, folder: Path) -> None:
    """What the recipe saves in the end, of the model that it holds; a reward model as its value model."""
    made._value_model = made._value_model if made.kind != "reward" else made._reward_model
    for checkpointer in (made._policy_checkpointer, made._value_checkpointer):
        checkpointer._output_dir = Path(folder)
    made.save_checkpoint(0)

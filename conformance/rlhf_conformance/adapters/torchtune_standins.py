"""Stand-ins for what torchtune's recipes ask of their surroundings and no clause is about. All of them are here.

- the configuration, which a user writes in YAML: builders and sizes are chosen by the checkpoint's config.
- a tokenizer that is only its special ids, a data set of one prompt, a logger that is silent, no garbage collection.
- for the models of PPO that are not asked, one that answers zeros, and its checkpoint.
- generation of given rows: it is left out, or draws their tokens one by one.
- a loss that keeps what it is handed.
- models that answer the scores, log-probs and values of a batch, whose actions are those of its mask; no step of PPO.

Models are built, loaded, run and saved by the recipes, which are files beside the package. What remains here puts a
batch into their hands: a row for each action where log-probs come as sums, rows one by one where ends are found by id.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchtune import datasets, generation, rlhf
from torchtune.data import padded_collate_packed
from torchtune.generation import _generation
from torchtune.models import convert_weights
from torchtune.models.qwen2._convert_weights import qwen2_tune_to_hf
from torchtune.modules.loss import CEWithChunkedOutputLoss
from torchtune.rlhf import Trajectory
from torchtune.rlhf.utils import reward_tune_to_hf

CHUNKED = CEWithChunkedOutputLoss()
IGNORED = CHUNKED.ignore_index


def recipe(name: str) -> Any:
    """The module of a recipe. Their folder refuses to be imported, since it is no package."""
    folder: Any = importlib.util.find_spec("recipes")
    file = Path(folder.submodule_search_locations[0], f"{name}.py")
    spec: Any = importlib.util.spec_from_file_location(f"recipes.{name}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PPO = recipe("ppo_full_finetune_single_device").PPOFullFinetuneRecipeSingleDevice
DPO = recipe("lora_dpo_single_device").LoRADPORecipeSingleDevice
SFT = recipe("full_finetune_single_device").FullFinetuneRecipeSingleDevice


# --- what a configuration names -----------------------------------------------------------------------------------


class Tokenizer:
    max_seq_len = None

    def __init__(self, pad_id: int = 0, eos_id: int = 1) -> None:
        self.pad_id, self.eos_id, self.stop_tokens = pad_id, eos_id, [eos_id]

    def encode(self, text: Tensor, add_bos: bool, add_eos: bool) -> list[int]:
        return text.tolist()


class Zeros(nn.Module):
    """A model that answers zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output = nn.Linear(1, width, bias=False)

    def forward(self, tokens: Tensor, **_: Any) -> Tensor:
        self.seen = tokens
        return torch.zeros(*tokens.shape, self.output.out_features, device=tokens.device)


class CheckpointOfZeros:
    def __init__(self, width: int, **_: Any) -> None:
        self.width = width

    def load_checkpoint(self) -> dict[str, Any]:
        return {"model": Zeros(self.width).state_dict()}

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        pass


class Silence:
    def log_config(self, config: Any) -> None:
        pass


def one_prompt(tokenizer: Tokenizer) -> list[dict[str, list[int]]]:
    return [{"tokens": [0], "labels": [0]}]


def component(what: Any, **arguments: Any) -> dict[str, Any]:
    return {"_component_": what if isinstance(what, str) else f"{__name__}.{what.__name__}", **arguments}


def builder(config: Mapping[str, Any], head: bool) -> tuple[dict[str, Any], str]:
    """What builds the checkpoint's model, and the type under which its weights are converted."""
    family = config["model_type"].replace("llama", "llama3_2" if config["tie_word_embeddings"] else "llama2")
    sizes = {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "embed_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "attn_dropout": config["attention_dropout"],
        "norm_eps": config["rms_norm_eps"],
        "max_seq_len": 4096,
    }
    if head:
        sizes["num_classes"] = 1
    else:
        sizes["rope_base"] = int(config["rope_parameters"]["rope_theta"])
    if family == "llama3_2":  # the Llama with tied embeddings, whose rotary table is scaled for length
        sizes["scale_factor"] = 1
    path = f"torchtune.models.{family}._component_builders.{family}"
    return (component(f"{path}_classifier", **sizes), "REWARD") if head else (component(path, **sizes), family.upper())


def trainer(kind: str, checkpoint: Any, kv_cache: bool) -> Any:
    """A PPO recipe, set up by itself, that holds the checkpoint as its policy ("actor"), value or reward model."""
    config = json.loads(Path(checkpoint.path, "config.json").read_text())
    is_actor, folder = kind == "actor", tempfile.mkdtemp()
    model, model_type = builder(config, not is_actor)
    files = sorted(file.name for file in Path(checkpoint.path).glob("*.safetensors"))
    read = {"checkpoint_dir": checkpoint.path, "checkpoint_files": files, "model_type": model_type}
    held = component("torchtune.training.FullModelHFCheckpointer", **read, output_dir=folder)
    width = {"width": 1 if is_actor else config["vocab_size"]}
    no_model = component(Zeros, **width)
    not_held = component(CheckpointOfZeros, **width, checkpoint_dir="", checkpoint_files=[])
    policy, scorer = ((model, held), (no_model, not_held))[:: 1 if is_actor else -1]
    yaml = {
        "device": str(checkpoint.device),
        "dtype": {"float32": "fp32", "bfloat16": "bf16"}[str(checkpoint.dtype).removeprefix("torch.")],
        "output_dir": folder,
        "policy_model": policy[0],
        "reward_and_value_model": scorer[0],
        **dict.fromkeys(("checkpointer", "ref_policy_checkpointer"), policy[1]),
        **dict.fromkeys(("value_checkpointer", "reward_checkpointer"), scorer[1]),
        "tokenizer": component(Tokenizer, pad_id=checkpoint.pad_token_id, eos_id=checkpoint.eos_token_id),
        "temperature": checkpoint.temperature,
        "enable_kv_cache": kv_cache and is_actor,
        "dataset": component(one_prompt),
        "metric_logger": component(Silence),
        "optimizer": component("torch.optim.SGD", lr=0.0),
        "loss": component("torchtune.rlhf.loss.PPOLoss"),
        **dict.fromkeys(("resume_from_checkpoint", "compile", "optimizer_in_bwd", "shuffle"), False),
        **dict.fromkeys(("enable_activation_checkpointing", "whiten_rewards", "penalise_no_eos"), False),
        **dict.fromkeys(("batch_size", "forward_batch_size", "ppo_epochs", "ppo_batch_size", "num_steps"), 1),
        **dict.fromkeys(("gradient_accumulation_steps", "max_generated_tokens", "top_k", "gamma", "lmbda"), 1),
        **dict.fromkeys(("seed", "kl_coeff", "reward_penalty", "min_response_length"), 0),
    }
    cfg = OmegaConf.create(yaml)
    with torch.random.fork_rng(), mock.patch("gc.collect"):  # it seeds, and collects after each file that it reads
        made = PPO(cfg)
        made.setup(cfg)
    made.model = {"actor": made._policy_model, "critic": made._value_model, "reward": made._reward_model}[kind]
    made.model.requires_grad_(True)  # a reward model is frozen: its gradient is asked for here, and only here
    made.kind, made.config, made.model_type = kind, config, model_type
    made.train = made.model.train  # a switch of mode, as for a module, and not a training run
    return made


def weights(made: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The checkpoint's weights, by the converter with which the recipe saves them: rows of rotary projections lie
    otherwise."""
    convert = {"REWARD": reward_tune_to_hf, "QWEN2": qwen2_tune_to_hf}.get(made.model_type, convert_weights.tune_to_hf)
    heads = made.config["num_attention_heads"], made.config["num_key_value_heads"]
    return convert(dict(tensors), *heads, made.config["hidden_size"])


def save(made: Any, folder: Path) -> None:
    """What the recipe writes at the end of training; a reward model is saved as a value model is."""
    if made.kind == "reward":
        made._value_model = made.model
    for checkpointer in (made._policy_checkpointer, made._value_checkpointer):
        checkpointer._output_dir = Path(folder)
    made.save_checkpoint(0)


# --- PPO ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def generating(made: Any, rows: Tensor, start: int, sampled: bool) -> Iterator[None]:
    """In the body generation gives these rows, whose responses begin at `start`, and logits: zeros, or with `sampled`
    those from which it draws one token after the other."""
    made._max_generated_tokens, made._forward_batch_size = rows.shape[1] - start, len(rows)
    tokens = iter(rows[:, start:].split(1, dim=1))
    logits = torch.zeros(*rows[:, start:].shape, made.config["vocab_size"], device=rows.device)
    draw = mock.patch.object(_generation, "sample", side_effect=tokens)
    skip = mock.patch.object(generation, "generate", return_value=(rows.clone(), logits))
    with draw if sampled else skip:
        yield


def made_of(made: Any, batch: Any, sampled: bool = False) -> Trajectory:
    """What the recipe makes of the rows of a batch, as if it had generated them."""
    start = batch.input_ids.shape[1] - batch.num_actions
    with generating(made, batch.input_ids, start, sampled):
        return made.generate_trajectory(batch.input_ids[:, :start])


def stepped(made: Any, given: Trajectory, advantages: Tensor, returns: Tensor, start: int, loss_fn: Any = None) -> Any:
    """What a step of PPO hands to its loss, `log_probs` and `values`, with their graphs; with `loss_fn` also its `loss`
    and the `metrics` of the step. The backward pass of the step itself has nothing to do."""
    kept = SimpleNamespace()

    def loss(*tensors: Tensor, **masks: Tensor) -> tuple[Tensor, ...]:
        kept.log_probs, kept.values = tensors[1], tensors[4]
        kept.loss, *rest = loss_fn(*tensors, **masks) if loss_fn else torch.zeros(5)
        return torch.zeros((), requires_grad=True).clone(), *rest

    made._loss_fn = loss
    kept.metrics = made.ppo_step(given, advantages, returns, start)
    return kept


def step(made: Any, batch: Any) -> Any:
    """A step of PPO on a batch, without its loss."""
    with torch.no_grad():
        given = made_of(made, batch)
    nothing = torch.zeros_like(given.logprobs)
    return stepped(made, given, nothing, nothing, batch.input_ids.shape[1] - batch.num_actions)


def losses(loss_fn: Any, mask: Tensor, **given: Tensor) -> Any:
    """The loss of a step of PPO on tensors (B, T): log-probs and values take the place of those of its models. What is
    not given is zero."""
    nothing = torch.zeros_like(mask, dtype=torch.float32)
    log_probs, old_log_probs, advantages, values, old_values, returns = (
        given.get(name, nothing)
        for name in ("log_probs", "old_log_probs", "advantages", "values", "old_values", "returns")
    )
    made = object.__new__(PPO)
    made._temperature, made._gradient_accumulation_steps = 1.0, 1
    made._policy_model = lambda *_, **__: nothing[..., None]
    made._value_model = lambda *_, **__: torch.cat([values, nothing[:, :1]], dim=1)[..., None]
    row = dict.fromkeys(Trajectory._fields)
    row |= {"query_responses": torch.cat([mask[:, :1], mask], dim=1), "logprobs": old_log_probs, "values": old_values}
    row |= dict.fromkeys(("response_padding_masks", "value_padding_masks"), ~mask.bool())
    with mock.patch.object(rlhf, "logits_to_logprobs", return_value=log_probs.clone()):
        return stepped(made, Trajectory(**row), advantages, returns, 1, loss_fn)


def generate(made: Any, prompts: Any) -> Tensor:
    """Generated rows, cut at their stop ids, as the recipe hands them to the reward model."""
    made._max_generated_tokens, made._forward_batch_size = prompts.max_new_tokens, len(prompts.input_ids)
    made._stop_token_ids = torch.tensor(prompts.stop_token_ids, dtype=torch.long, device=prompts.input_ids.device)
    made._tokenizer.pad_id = prompts.pad_token_id
    with torch.no_grad():
        made.generate_trajectory(prompts.input_ids)
    return made._reward_model.seen


def scores(made: Any, batch: Any) -> Tensor:
    """The rewards of a batch. The recipe finds the end of a response by its stop ids alone: rows that end otherwise
    come one by one, as if generated to just their length."""
    found = made_of(made, batch)
    if torch.equal(found.response_padding_masks, ~batch.action_mask.bool()):
        return found.scores
    start = batch.input_ids.shape[1] - batch.num_actions
    alone = [
        SimpleNamespace(input_ids=row[None, : start + count], num_actions=count)
        for row, count in zip(batch.input_ids, batch.response_lengths, strict=True)
    ]
    return torch.cat([made_of(made, row).scores for row in alone])


# --- PPO, from scores to advantages --------------------------------------------------------------------------------


class Experience(PPO):  # type: ignore[misc, valid-type]
    """The recipe, trained on one batch: it makes `kl`, `rewards`, `advantages` and `returns`, and takes no step."""

    def __init__(self, rows: Tensor, scores: Tensor, values: Tensor, kl_coef: float, gamma: float, lam: float) -> None:
        """`rows` (B, 1 + T) begin with a prompt of one token; `scores` (B,) and `values` (B, T) are the models'."""
        nothing = torch.zeros(*rows.shape, 1)
        self._ref_policy_model = lambda *_, **__: nothing
        self._value_model = lambda *_, **__: torch.cat([values, values[:, :1]], dim=1)[..., None]
        self._reward_model = lambda *_, **__: scores[:, None, None].expand(*rows.shape, 1)
        self._dataloader, self.batch_size, self._device = [{"tokens": rows[:, :1]}], len(rows), rows.device
        self._kl_coeff, self._gamma, self._lmbda = kl_coef, gamma, lam
        self._tokenizer, self._policy_model, self.config = Tokenizer(), None, {"vocab_size": 1}
        self._sampler = self._profiler = mock.Mock()
        self.cache_ctx_manager = lambda *_, **__: contextlib.nullcontext()
        self._temperature, self._optimizer_in_bwd = 1.0, True
        self._total_epochs = self._total_steps = 1
        self._log_every_n_steps = 2
        self._stop_token_ids = self._top_k = self._rng = None
        self.compile = self.profiler_profile_memory = self.enable_kv_cache = self._penalise_no_eos = False
        self._epochs_run = self._steps_run = self._ppo_epochs = self._min_response_length = 0

    def cleanup_after_step(self, trajectory: Any, stats: Any, *found: Tensor) -> None:
        self.advantages, self.returns, self.kl, _ = found

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        pass


def experience(mask: Tensor, *, log_probs: Tensor, whitened: bool = False, **given: Any) -> Experience:
    """What the recipe makes of log-probs (B, T) under a mask. What else it comes from is 0 where it is not given, and
    the coefficient and the discounts are 1. Advantages are whitened if that is asked for."""
    nothing = torch.zeros_like(log_probs)
    rows = torch.ones(len(mask), 1 + mask.shape[1], dtype=torch.long, device=mask.device)
    numbers = (given.get(name, 1.0) for name in ("kl_coef", "gamma", "lam"))
    made = Experience(rows, given.get("scores", nothing[:, 0]), given.get("values", nothing), *numbers)
    both = iter((log_probs, given.get("ref_log_probs", nothing)))
    instead = [
        (rlhf, "logits_to_logprobs", lambda *_: next(both).clone()),
        (rlhf, "truncate_sequence_at_first_stop_token", lambda *_: (~mask.bool(), rows[:, 1:])),
        (sys.modules[PPO.__module__], "tqdm", mock.Mock()),
    ]
    if not whitened:
        instead.append((rlhf.rewards, "whiten", lambda x, mask: x))
    with contextlib.ExitStack() as entered:
        for module, name, other in instead:
            entered.enter_context(mock.patch.object(module, name, other))
        entered.enter_context(generating(made, rows, 1, sampled=False))
        estimate = mock.patch.object(rlhf, "estimate_advantages", side_effect=rlhf.estimate_advantages)
        asked = entered.enter_context(estimate)
        made.train()
    made.rewards = asked.call_args.args[1]
    return made


def behind_a_token(mask: Tensor, **given: Any) -> Experience:
    """The same of responses with one more token in front, of which nothing is read: the recipe puts the score of a
    response of one token elsewhere, which the whole path shows, and which would hide all else in its parts."""
    led = {name: nn.functional.pad(x, (1, 0)) for name, x in given.items() if isinstance(x, Tensor) and x.ndim == 2}
    made = experience(nn.functional.pad(mask.bool(), (1, 0), value=True), **{**given, **led})
    for name in ("kl", "rewards", "advantages", "returns"):
        setattr(made, name, getattr(made, name)[:, 1:])
    return made


def of_rewards(token_rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Experience:
    """What the recipe makes of rewards (B, T): they come to it as penalties, and behind the last action as a score."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    behind = columns.where(mask.bool(), -1).amax(1, keepdim=True) + 1
    scores = nn.functional.pad(token_rewards, (0, 1)).gather(1, behind)[:, 0]
    given = {"log_probs": -token_rewards, "scores": scores, "values": values}
    return behind_a_token(mask, **given, gamma=gamma, lam=lam)


# --- DPO and finetuning -------------------------------------------------------------------------------------------


def pairs(made: Any, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What the DPO recipe makes of right-padded rows: for each the sum of its labels' log-probs, and all logits."""
    holder = SimpleNamespace(_device=ids.device, activations_handling_ctx=contextlib.nullcontext())
    chosen, rejected, *logits = DPO.concatenated_forward(holder, made.model, (ids, labels))
    return torch.cat([chosen, rejected]), torch.cat(logits)


def summed(made: Any, batch: Any) -> list[Tensor]:
    """Log-probs of the actions: a row for each action, of which this is the only label."""
    rows, columns = batch.action_mask.nonzero(as_tuple=True)
    ids = batch.input_ids[rows]
    others = torch.arange(ids.shape[1], device=ids.device) != columns[:, None] + 1
    sums, _ = pairs(made, ids, ids.masked_fill(others, IGNORED))
    return list(sums.split(batch.response_lengths))


def in_rows_of_two(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-prob of each label by the function of DPO, which drops the last logits of a row and the first label."""
    rows = (torch.stack([cells, cells], dim=1) for cells in (logits.flatten(0, 1), labels.flatten()))
    return rlhf.get_batch_log_probs(*rows).view(labels.shape)


def texts(sequences: Sequence[Tensor]) -> Any:
    """A data set of texts that have these tokens; the labels are its own."""
    found = object.__new__(datasets.TextCompletionDataset)
    found._tokenizer, found._column, found.add_eos = Tokenizer(), "text", False
    found._data = [{"text": sequence} for sequence in sequences]
    return found


def pack(samples: Any, length: int) -> dict[str, Tensor]:
    """The first pack of so many tokens, as the data loader hands it to a recipe."""
    return padded_collate_packed([datasets.PackedDataset(samples, max_seq_len=length)[0]])


def finetuned(made: Any, batch: Any) -> Tensor:
    """Log-probs of the actions, which are the labels of a packed data set, by the step of the recipe for finetuning."""
    rows = zip(batch.sequences, batch.prompt_lengths, strict=True)
    samples = [{"tokens": row.tolist(), "labels": [IGNORED] * n + row[n:].tolist()} for row, n in rows]
    made.model.set_num_output_chunks(CHUNKED.num_output_chunks)
    cache = torch.full((1, 1), IGNORED, device=batch.input_ids.device)
    holder = SimpleNamespace(_model=made.model, _loss_fn=each, ignore_labels_cache=cache)
    holder.activations_handling_ctx = contextlib.nullcontext()
    return SFT._loss_step(holder, pack(samples, batch.input_ids.numel()))


def in_chunks(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-prob of each label by the loss of finetuning."""
    return each(logits.chunk(CHUNKED.num_output_chunks, dim=1), labels).view(labels.shape)


def each(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The log-prob of each label: minus the loss, which is a mean over labels, where it is the only one."""
    places = (labels != IGNORED).nonzero()
    alone = [torch.full_like(labels, IGNORED).index_put(tuple(p), labels[tuple(p)]) for p in places]
    return torch.stack([-CHUNKED(logits, one) for one in alone])

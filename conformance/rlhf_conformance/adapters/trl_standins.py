"""Stand-ins for what TRL's GRPOTrainer and RLOOTrainer ask of their callers and no clause is about. All are here.

- the tokenizer: a word for each token id, so that prompts of ids are prompts of text.
- the dataset and the reward function: one prompt, and a reward that is never asked for, since nothing is trained.
- for the loss, which GRPO takes from a model and a batch: a forward that returns the log-probs that were handed in.
- for advantages, which both make as they generate: responses that were not generated, a forward as for the loss, and a
  reward function that returns the scores that were handed in.
- for the weights of vLLM's actions, which GRPO makes there as well: a rollout function, as TRL lets its users have one,
  that returns the log-probs of the engine and the mask that were handed in, beside a vLLM that is up to date.

The trainers are built by their own constructors, and everything that is judged is their own code.
"""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer import utils

KINDS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
TINY = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def trainer(kind: str, checkpoint: Any, attn_implementation: str, loss_type: str, **config: Any) -> Any:
    """A trainer of a checkpoint, in train mode, as `training_step` has it while old log-probs are taken.

    It generates greedily. `config` holds fields of its config; what is not named keeps TRL's default.
    """
    init = {"dtype": checkpoint.dtype, "attn_implementation": attn_implementation}
    greedy = {"generation_kwargs": {"do_sample": False}}
    config = {"temperature": checkpoint.temperature, "model_init_kwargs": init, **greedy, **config}
    made = _trainer(kind, checkpoint.path, checkpoint.device, checkpoint.pad_token_id, loss_type, config)
    made.train = made.model.train  # a switch of mode, as for a module, and not a training run
    return made


def responses(trainer: Any, prompts: Any) -> list[list[int]]:
    """What the trainer's own generation answers. GRPO's is told the size of a group, and has log-probs beside them."""
    trainer.eos_token_ids = list(prompts.stop_token_ids)
    trainer.generation_config.update(eos_token_id=trainer.eos_token_ids, max_new_tokens=prompts.max_new_tokens)
    rows = [row[mask.bool()].tolist() for row, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]
    if isinstance(trainer, RLOOTrainer):
        return trainer._generate_single_turn(rows, None, {})
    return trainer._generate_single_turn(rows, None, {}, 1)[0]


def reward_model(checkpoint: Any, attn_implementation: str) -> Any:
    """A reward model as RewardTrainer loads one."""
    init = {"dtype": checkpoint.dtype, "attn_implementation": attn_implementation, "num_labels": 1, "device_map": None}
    model = utils.create_model_from_path(checkpoint.path, AutoModelForSequenceClassification, **init)
    model.config.pad_token_id = checkpoint.pad_token_id
    return model.to(checkpoint.device)


@cache
def bare_trainer(kind: str, device: Any, loss_type: str = "dapo") -> Any:
    """A trainer of which only the loss and the advantages are of use: its model is never run."""
    with torch.random.fork_rng():
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY))
    return _trainer(kind, module, device, 0, loss_type, {})


def loss_trainer(device: Any, loss_type: str, options: Any) -> GRPOTrainer:
    """A GRPOTrainer of which only the loss is of use, with the clips, the ratio and the length that are asked for."""
    trainer = bare_trainer("grpo", device, loss_type)
    trainer.epsilon_low, trainer.epsilon_high = options.clip_eps_low, options.clip_eps_high
    trainer.args.delta = options.dual_clip
    trainer.importance_sampling_level = "sequence" if options.surrogate == "gspo" else "token"
    trainer.max_completion_length = options.constant_length
    return trainer


def policy_loss(
    trainer: GRPOTrainer,
    log_probs: Tensor,
    old_log_probs: Tensor | None,
    advantages: Tensor,
    action_mask: Tensor,
    count: int | None,
    ref_log_probs: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    beta: float = 1.0,
    entropies: Tensor | None = None,
    entropy_coef: float = 0.0,
) -> Tensor:
    """GRPO's own loss of tensors (B, T), a scalar. It reads the shape of the ids and, so, nothing of the model.

    `count` is that of the step's actions, None for those of the mask. Without old log-probs the trainer takes the new
    ones, detached; with those of a reference it adds the KL times `beta`; with weights, as `weights` gives them, it
    corrects; with a coefficient it subtracts the entropy.
    """
    nothing = action_mask[:, :0]
    trainer.use_vllm = weights is not None
    trainer.beta = 0.0 if ref_log_probs is None else beta
    trainer.entropy_coef, trainer._entropy_bonus_enabled = entropy_coef, entropy_coef != 0.0
    entropies = torch.zeros_like(log_probs) if entropies is None else entropies
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (log_probs, entropies, None)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": action_mask,
        "completion_mask": action_mask,
        "old_per_token_logps": old_log_probs,
        "ref_per_token_logps": ref_log_probs,
        "advantages": advantages,
        "importance_sampling_ratio": weights,
        "num_items_in_batch": action_mask.sum() if count is None else torch.tensor(count),
    }
    return trainer._compute_loss(trainer.model, inputs)


def weights(old_log_probs: Tensor, rollout_log_probs: Tensor, action_mask: Tensor, options: Any) -> Tensor:
    """GRPO's own weights of tensors (B, T), which are (B, T), or (B, 1) for sequences; options as of
    `OffPolicyOptions`. What vLLM has no log-prob for it hands over as None."""
    trainer, count = bare_trainer("grpo", old_log_probs.device), len(action_mask)
    rollout = {
        "prompt_ids": [[2]] * count,
        "completion_ids": [[trainer.eos_token_ids[0]] * action_mask.shape[1]] * count,
        "logprobs": [[None if x != x else x for x in row] for row in rollout_log_probs.tolist()],
        "env_mask": action_mask.long().tolist(),
    }
    around: dict[str, Any] = {
        "use_vllm": True,
        "vllm_importance_sampling_mode": f"{options.level}_{options.mode}",
        "vllm_importance_sampling_clip_min": options.lower,
        "vllm_importance_sampling_clip_max": options.upper,
        "rollout_func": lambda *_: rollout,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (old_log_probs, None, None),
        "reward_funcs": [lambda **_: [0.0] * count],
        "num_generations": count,
        "beta": 0.0,
    }
    trainer._last_loaded_step = trainer.state.global_step  # which only a trainer that made a vLLM has
    with mock.patch.multiple(trainer, **around):
        made = trainer._generate_and_score_completions([{"prompt": "2"}] * count)
    return made["importance_sampling_ratio"]


def advantages(
    kind: str,
    scores: Tensor,
    num_generations: int,
    scale: str = "none",
    log_probs: Tensor | None = None,
    ref_log_probs: Tensor | None = None,
) -> Tensor:
    """The trainer's own advantages (N,) of responses with these scores (N,), of which `num_generations` in turn are a
    group. RLOO takes the KL of log-probs (N, T) from those of a reference off the scores, if there are any."""
    trainer = bare_trainer(kind, scores.device)
    log_probs = scores[:, None] if log_probs is None else log_probs
    made = [[trainer.eos_token_ids[0]] * log_probs.shape[1]] * len(scores)
    trainer._generate_single_turn = lambda *_: made if isinstance(trainer, RLOOTrainer) else (made, None)
    trainer.beta, trainer.ref_model = (0.0, None) if ref_log_probs is None else (1.0, "reference")
    by_model = {id(trainer.model): log_probs, id(trainer.ref_model): ref_log_probs}
    trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (by_model[id(model)], None, None)
    trainer.reward_funcs, trainer.num_generations = [lambda **_: scores.tolist()], num_generations
    trainer.scale_rewards = scale
    return trainer._generate_and_score_completions([{"prompt": "2"}] * len(scores))["advantages"]


def kl(kind: str, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """The KL of each token (B, T), as GRPO adds it to its loss, with its graph, or as RLOO takes it off the scores."""
    return (_taken_off_scores if kind == "rloo" else _added_to_the_loss)(log_probs, ref_log_probs)


def _added_to_the_loss(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Where advantages are 0, `beta` and the count are 1, the loss is the sum of the KL over the mask: its derivative
    by the mask is the KL of each token. Of `dapo`, since the means of others have the mask in the denominator too."""
    trainer = bare_trainer("grpo", log_probs.device, "dapo")
    with torch.enable_grad():
        mask = torch.ones_like(log_probs, requires_grad=True)
        loss = policy_loss(trainer, log_probs, None, torch.zeros_like(log_probs), mask, 1, ref_log_probs)
        return torch.autograd.grad(loss, mask, create_graph=True)[0]


def _taken_off_scores(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """For each token two responses with score 0, of which one strays from the reference in this token alone, the other
    nowhere: the first one's advantage is less its KL."""
    width = log_probs.shape[1]
    strays = torch.eye(width, dtype=torch.bool, device=log_probs.device)
    one, ref = (x[:, None].where(strays, -1.0).reshape(-1, width) for x in (log_probs.detach(), ref_log_probs))
    rows, ref_rows = torch.stack([one, ref], dim=1).flatten(0, 1), ref.repeat_interleave(2, dim=0)
    found = advantages("rloo", rows.new_zeros(len(rows)), 2, log_probs=rows, ref_log_probs=ref_rows)
    return -found[::2].reshape_as(log_probs)


def _trainer(kind: str, model: Any, device: Any, pad_token_id: int, loss_type: str, config: dict[str, Any]) -> Any:
    words = Tokenizer(models.WordLevel({str(token): token for token in range(64)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=str(pad_token_id), eos_token="1")
    config = {"use_cpu": torch.device(device).type == "cpu", "bf16": False, "report_to": "none", **config}
    config |= {"loss_type": loss_type} if kind == "grpo" else {"beta": 0.0}  # RLOO would load a reference model
    trainer_class, config_class = KINDS[kind]
    args = config_class(tempfile.gettempdir(), num_generations=2, **config)
    with torch.random.fork_rng():  # the constructor seeds
        made = trainer_class(
            model, lambda **_: [0.0], args, Dataset.from_dict({"prompt": ["2"]}), processing_class=tokenizer
        )
    made.model.train()
    made.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # the training loop sets it
    return made

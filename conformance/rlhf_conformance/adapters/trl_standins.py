"""Stand-ins for what TRL's GRPOTrainer asks of its caller and no clause is about. All of them are here.

- the tokenizer: a word for each token id, so that prompts of ids are prompts of text.
- the dataset and the reward function: one prompt, and a reward that is never asked for, since nothing is trained.
- for the loss, which GRPO takes from a model and a batch: a forward that returns the log-probs that were handed in.

The trainer is built by its own constructor, and everything that is judged is its own code.
"""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

TINY = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def trainer(checkpoint: Any, attn_implementation: str, **config: Any) -> GRPOTrainer:
    """A GRPOTrainer of a checkpoint, in train mode, as `training_step` has it while old log-probs are taken.

    It generates greedily. `config` holds fields of GRPOConfig; what is not named keeps TRL's default.
    """
    init = {"dtype": checkpoint.dtype, "attn_implementation": attn_implementation}
    greedy = {"generation_kwargs": {"do_sample": False}}
    config = {"temperature": checkpoint.temperature, "model_init_kwargs": init, **greedy, **config}
    made = _trainer(checkpoint.path, checkpoint.device, checkpoint.pad_token_id, config)
    made.train = made.model.train  # a switch of mode, as for a module, and not a training run
    return made


@cache
def loss_trainer(device: Any, loss_type: str) -> GRPOTrainer:
    """A GRPOTrainer of which only the loss is of use: its model is never run."""
    with torch.random.fork_rng():
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY))
    return _trainer(module, device, 0, {"loss_type": loss_type})


def policy_loss(
    trainer: GRPOTrainer,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    num_items_in_batch: Tensor,
) -> Tensor:
    """GRPO's own loss of tensors (B, T), a scalar. It reads the shape of the ids and, so, nothing of the model."""
    nothing = action_mask[:, :0]
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": action_mask,
        "completion_mask": action_mask,
        "old_per_token_logps": old_log_probs,
        "advantages": advantages,
        "num_items_in_batch": num_items_in_batch,
    }
    return trainer._compute_loss(trainer.model, inputs)


def _trainer(model: Any, device: Any, pad_token_id: int, config: dict[str, Any]) -> GRPOTrainer:
    words = Tokenizer(models.WordLevel({str(token): token for token in range(64)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=str(pad_token_id), eos_token="1")
    config = {"use_cpu": torch.device(device).type == "cpu", "bf16": False, "report_to": "none", **config}
    args = GRPOConfig(tempfile.gettempdir(), num_generations=2, **config)
    with torch.random.fork_rng():  # the constructor seeds
        made = GRPOTrainer(
            model, lambda **_: [0.0], args, Dataset.from_dict({"prompt": ["2"]}), processing_class=tokenizer
        )
    made.model.train()
    made.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # the training loop sets it
    return made

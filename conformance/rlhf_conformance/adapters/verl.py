"""verl 0.9.1: its FSDP engine prepares, runs and reads the models, its core algorithms take the losses.

Modes: `remove_padding` (the default: rows are packed), `pad_to` (static lengths of packs), `chunked_entropy` and
`attn_implementation`.
"""

from __future__ import annotations

from functools import partialmethod
from types import SimpleNamespace

import torch

from rlhf_conformance import Adapter, PolicyLossResult, ProcessedSequences
from rlhf_conformance.adapters import verl_standins as standins  # isort: split

from tensordict import TensorDict
from verl.trainer.ppo import core_algos
from verl.utils import tensordict_utils as tu
from verl.utils import torch_functional
from verl.utils.model import compute_position_id_with_mask
from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding

MODES = {"token-mean": "token-mean", "sequence-mean": "seq-mean-token-mean"}


class Verl(Adapter):
    # Not GPT-2: verl reads config.num_key_value_heads of every model, which GPT-2 has not.
    architectures = ("llama", "qwen2", "mistral", "gemma3_text", "granite", "phi")
    aggregations = tuple(MODES)
    dual_clip = "always"
    global_count = True
    count_empty_rows = False
    position_ids = staticmethod(compute_position_id_with_mask)

    def __init__(self, remove_padding=True, pad_to=0, chunked_entropy=False, attn_implementation="sdpa"):
        self.packs_internally = remove_padding
        self.mode = {"remove_padding": remove_padding, "pad_to": pad_to, "chunked_entropy": chunked_entropy}
        self.mode["attention"] = attn_implementation

    def token_log_probs(self, logits, labels, temperature):
        return torch_functional.logprobs_from_logits(logits / temperature, labels)  # the caller scales

    def token_entropy(self, logits, temperature):
        return torch_functional.entropy_from_logits(logits / temperature)

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        mask = torch_functional.get_response_mask(sequences[:, prompt_length:], list(stop_token_ids))
        return ProcessedSequences(sequences, torch.cat([prompt_attention_mask, mask], dim=1), mask)

    def load(self, kind, checkpoint):
        return standins.engine(kind, checkpoint, **self.mode)

    load_actor = partialmethod(load, "actor")
    load_critic = partialmethod(load, "critic")

    def scored(self, engine, batch, what):
        count = batch.num_actions
        data = TensorDict(
            {
                "input_ids": batch.input_ids,
                "attention_mask": batch.attention_mask,
                "position_ids": compute_position_id_with_mask(batch.attention_mask),
                "response_mask": batch.action_mask,
                "prompts": batch.input_ids[:, :-count],
                "responses": batch.input_ids[:, -count:],
            },
            batch_size=len(batch.input_ids),
        )
        data = left_right_2_no_padding(data)
        settings = {"use_remove_padding": self.mode["remove_padding"], "temperature": batch.temperature}
        for name, value in {**settings, "pad_token_id": batch.pad_token_id, "calculate_entropy": True}.items():
            tu.assign_non_tensor_data(data, name, value)
        seen = {}

        def keep(model_output, data, dp_group=None):
            seen.update(model_output)
            return next(iter(model_output.values())).values().sum(), {}

        engine.forward_step(data, keep, forward_only=False)
        return no_padding_2_padding(seen[what], data)

    action_log_probs = partialmethod(scored, what="log_probs")
    action_entropy = partialmethod(scored, what="entropy")
    action_values = partialmethod(scored, what="values")

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        counts = {"batch_num_tokens": options.global_count, "global_batch_size": options.global_count}
        config = _Config(
            clip_ratio=0.2, clip_ratio_low=options.clip_eps_low, clip_ratio_high=options.clip_eps_high,
            clip_ratio_c=options.dual_clip, global_batch_info=counts,
        )
        loss, metrics = core_algos.compute_policy_loss_vanilla(
            old_log_probs, log_probs, advantages, action_mask.bool(), MODES[options.aggregation], config
        )
        return PolicyLossResult(loss, metrics["actor/pg_clipfrac"], metrics["actor/ppo_kl"])

    def value_loss(self, values, old_values, returns, action_mask, options):
        counts = {"batch_num_tokens": options.global_count, "global_batch_size": options.global_count}
        given = (values, returns, old_values, action_mask.bool(), options.clip_eps, MODES[options.aggregation])
        return core_algos.compute_value_loss(*given, **counts)[0]


class _Config(SimpleNamespace):
    """What the loss reads of an ActorConfig."""

    def get(self, name, default):
        return getattr(self, name, default)

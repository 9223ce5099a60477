"""verl 0.9: its engine prepares, runs and reads the models. What is made of their numbers is in `verl_losses.py`.

Modes: `remove_padding` (on: rows are packed inside), `pad_to` (packs of a multiple of so many tokens),
`chunked_entropy`, `attn_implementation`, `kl_plus` (the estimators with a "+", which have k2's gradient), `rejection`
(what weights would hold or mask is rejected, `rollout_rs`, by "token_k1", "seq_sum_k1" or "seq_mean_k1").

Not provided: rewards and generation (servers of their own), packs of the caller's, save and restore (of FSDP modules).
"""

from __future__ import annotations

from functools import partialmethod

import torch

from rlhf_conformance import ProcessedSequences
from rlhf_conformance.adapters import verl_standins as standins
from rlhf_conformance.adapters import verl_step as steps
from rlhf_conformance.adapters.verl_losses import Losses  # isort: split

from tensordict import TensorDict
from verl.utils import torch_functional
from verl.utils.model import compute_position_id_with_mask
from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding


class Verl(Losses):
    architectures = ("llama", "qwen2", "mistral", "gemma3_text", "granite", "phi")  # it wants num_key_value_heads
    position_ids = staticmethod(compute_position_id_with_mask)
    step_cuts, step_momentum = ("rows", "tokens"), True
    step_gradients = critic_step_gradients = staticmethod(steps.gradients)
    step_update = critic_step_update = staticmethod(steps.update)
    step_log_probs = staticmethod(steps.log_probs)

    def __init__(self, remove_padding=True, pad_to=0, chunked_entropy=False, attn_implementation="sdpa", **losses):
        super().__init__(**losses)
        self.packs_internally = remove_padding
        self.mode = {"remove_padding": remove_padding, "pad_to": pad_to, "chunked_entropy": chunked_entropy}
        self.mode["attention"] = attn_implementation

    def token_log_probs(self, logits, labels, temperature):
        return torch_functional.logprobs_from_logits(logits / temperature, labels)  # as the engine does

    def token_entropy(self, logits, temperature):
        return standins.entropies(logits / temperature, chunked=self.mode["chunked_entropy"])

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        mask = torch_functional.get_response_mask(sequences[:, prompt_length:], list(stop_token_ids))
        return ProcessedSequences(sequences, torch.cat([prompt_attention_mask, mask], dim=1), mask)

    def load(self, kind, checkpoint):
        return standins.engine(kind, checkpoint, **self.mode)

    def load_trainer(self, checkpoint, options, kind="actor"):
        return steps.trainer(self, kind, checkpoint, options)

    def load_critic_trainer(self, checkpoint, options):
        return self.load_trainer(checkpoint, options, kind="critic")

    load_actor = partialmethod(load, "actor")
    load_critic = partialmethod(load, "critic")

    def scored(self, engine, batch, what):
        mask, start = batch.attention_mask, batch.input_ids.shape[1] - batch.num_actions
        rows = {"input_ids": batch.input_ids, "attention_mask": mask, "response_mask": batch.action_mask}
        rows |= {"prompts": batch.input_ids[:, :start], "responses": batch.input_ids[:, start:]}
        rows["position_ids"] = compute_position_id_with_mask(mask)
        data = left_right_2_no_padding(TensorDict(rows, batch_size=len(mask)))
        return no_padding_2_padding(standins.forward(engine, data, batch)[what], data)

    action_log_probs = partialmethod(scored, what="log_probs")
    action_entropy = partialmethod(scored, what="entropy")
    action_values = partialmethod(scored, what="values")

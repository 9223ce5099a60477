"""OpenRLHF 0.11, 0.9.10 too. Modes: `packing` (its packing_samples: rows are packed inside), `policy_loss` (its
policy_loss_type: "gspo"), `attn_implementation`.

Not provided: generate, process_sequences (vLLM's part), position_ids (inline), values (its raw critic output has none).
What is made of the models' numbers is in `openrlhf_losses.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod

from rlhf_conformance import PackedSequences
from rlhf_conformance.adapters import openrlhf_standins as standins
from rlhf_conformance.adapters.openrlhf_losses import GSPO, Losses  # isort: split

from openrlhf.models import Actor, get_llm_for_sequence_regression, utils
from openrlhf.models.ring_attn_utils import unpad_and_slice_tensor
from openrlhf.utils.utils import zero_pad_sequences


class OpenRLHF(Losses):
    layouts = ("padded", "left", "right")
    # Not Gemma 3, whose scale of embeddings is a buffer: loading in bfloat16 rounds it, and upcasting does not mend it.
    architectures = ("llama", "gpt2", "qwen2", "mistral", "granite", "phi")
    head_names = ("score", "value_head")
    reward_normalization = critic_normalization = True
    token_log_probs = staticmethod(utils.log_probs_from_logits)
    save = staticmethod(standins.save_model)

    def __init__(self, packing=False, attn_implementation="sdpa", policy_loss="ppo"):
        self.__dict__.update(packs_internally=packing, **standins.LACKS | (GSPO if policy_loss == "gspo" else {}))
        self.mode = {"packing_samples": packing, "attn_implementation": attn_implementation}

    def token_entropy(self, logits, temperature):
        return utils.compute_entropy(logits / temperature)  # the caller scales, as Actor.forward does

    def pack_sequences(self, sequences):
        rows = zero_pad_sequences(sequences, "right", stack=True)
        mask = zero_pad_sequences([sequence.new_ones(len(sequence)) for sequence in sequences], "right", stack=True)
        return PackedSequences(*unpad_and_slice_tensor(rows, mask, None)[:2])

    def load(self, kind, checkpoint):
        if kind == "actor":
            model = Actor(checkpoint.path, temperature=checkpoint.temperature, **self.mode)
        else:
            head = {"value_head_prefix": checkpoint.head_name, "normalize_reward": checkpoint.normalize}
            model = get_llm_for_sequence_regression(checkpoint.path, kind, **head, **self.mode)
        return model.to(checkpoint.device, checkpoint.dtype).eval()  # it loads half precision, and scores in eval mode

    load_actor = partialmethod(load, "actor")
    load_reward_model = partialmethod(load, "reward")
    load_critic = partialmethod(load, "critic")

    def restore(self, kind, checkpoint, folder):
        return self.load(kind, replace(checkpoint, path=str(folder)))

    def action_log_probs(self, actor, batch):
        return actor(batch.input_ids, batch.action_mask, batch.attention_mask)

    def action_entropy(self, actor, batch):
        mask, scored = batch.action_mask, {"return_output": True, "return_entropy": True}
        return actor(batch.input_ids, mask, batch.attention_mask, **scored)[1].entropy[:, -mask.shape[1] :]

    def logits(self, actor, batch):
        return actor(batch.input_ids, None, batch.attention_mask, return_output=True, allgather_logits=True).logits

    def rewards(self, reward_model, batch):
        return reward_model(batch.input_ids, batch.attention_mask)

    def action_values(self, critic, batch):
        return critic(batch.input_ids, batch.action_mask, batch.attention_mask)

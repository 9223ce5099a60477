"""A plain Hugging Face trainer, from log-probs to losses, and its whole adapter.

Check it with `rlhf-conformance check examples/whole_trainer.py:PlainTrainer`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from losses_only import InHouse
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from rlhf_conformance import ProcessedSequences

# --- the trainer: in your repository this is an import ---------------------------------------------------------------


def log_probs_of(logits, labels, temperature):
    """logits (B, T, V), labels (B, T) -> log-probs (B, T), in float32 whatever the dtype of the logits."""
    scaled = logits.float() / temperature
    return scaled.log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def entropy_of(logits, temperature):
    """logits (B, T, V) -> entropy (B, T)."""
    log_p = (logits.float() / temperature).log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p.isinf(), 0.0)).sum(-1)


def positions_of(mask):
    """mask (B, L) -> positions (B, L), 0 at the first token of each row."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def masks_of(rows, prompt_length, prompt_mask, stop_ids):
    """Generated rows (B, P + T) -> attention mask (B, P + T), action mask (B, T)."""
    stops = torch.isin(rows[:, prompt_length:], torch.tensor(stop_ids, device=rows.device)).long()
    action_mask = ((stops.cumsum(-1) - stops) == 0).long()  # no stop before this token
    return torch.cat([prompt_mask, action_mask], dim=-1), action_mask


def load_scorer(path, **options):
    """A backbone with a scalar head; a checkpoint without one is refused."""
    model, info = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, output_loading_info=True, **options
    )
    if info["missing_keys"]:
        raise ValueError(f"{path} lacks {sorted(info['missing_keys'])}")
    return model.eval()


def scores_of(model, ids, mask):
    """The head's score at every position. -> (B, L)"""
    states = model.base_model(ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False)[0]
    return model.score(states)[..., 0]


def rewards_of(model, ids, mask):
    """The score at the last attended position. -> (B,)"""
    last = positions_of(mask).argmax(-1, keepdim=True)
    return scores_of(model, ids, mask).gather(1, last)[:, 0]


def action_values_of(model, ids, mask, action_mask):
    """The score of the state before each action. -> (B, T)"""
    states = scores_of(model, ids, mask)[:, :-1]
    return states[:, -action_mask.shape[1] :] * action_mask


def logits_of(model, ids, mask):
    """-> (B, L, V)"""
    return model(ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False).logits


def score_actions(model, ids, mask, num_actions, temperature):
    """Log-probs and entropies of the last tokens of each row. -> (B, T), (B, T)"""
    states = logits_of(model, ids, mask)[:, -num_actions - 1 : -1]
    return log_probs_of(states, ids[:, -num_actions:], temperature), entropy_of(states, temperature)


# --- the adapter -----------------------------------------------------------------------------------------------------


class PlainTrainer(InHouse):
    layouts = ("padded", "left")

    def __init__(self, attention="sdpa"):
        self.attention = attention

    def token_log_probs(self, logits, labels, temperature):
        return log_probs_of(logits, labels, temperature)

    def token_entropy(self, logits, temperature):
        return entropy_of(logits, temperature)

    def position_ids(self, attention_mask):
        return positions_of(attention_mask)

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        attention_mask, action_mask = masks_of(sequences, prompt_length, prompt_attention_mask, stop_token_ids)
        return ProcessedSequences(sequences, attention_mask, action_mask)

    def load_actor(self, checkpoint):
        options = {"dtype": checkpoint.dtype, "attn_implementation": self.attention}
        return AutoModelForCausalLM.from_pretrained(checkpoint.path, **options).to(checkpoint.device).eval()

    def logits(self, actor, batch):
        return logits_of(actor, batch.input_ids, batch.attention_mask)

    def action_log_probs(self, actor, batch):
        rows = batch.input_ids, batch.attention_mask
        return score_actions(actor, *rows, batch.num_actions, batch.temperature)[0]

    def action_entropy(self, actor, batch):
        rows = batch.input_ids, batch.attention_mask
        return score_actions(actor, *rows, batch.num_actions, batch.temperature)[1]

    def generate(self, actor, prompts):
        ends = {"eos_token_id": list(prompts.stop_token_ids) or None, "pad_token_id": prompts.pad_token_id}
        actor.generation_config = GenerationConfig(**ends, max_new_tokens=prompts.max_new_tokens, do_sample=False)
        return actor.generate(prompts.input_ids, attention_mask=prompts.attention_mask)

    def load_reward_model(self, checkpoint):
        options = {"dtype": checkpoint.dtype, "attn_implementation": self.attention}
        return load_scorer(checkpoint.path, **options).to(checkpoint.device)

    load_critic = load_reward_model

    def values(self, critic, batch):
        return scores_of(critic, batch.input_ids, batch.attention_mask)

    def rewards(self, reward_model, batch):
        return rewards_of(reward_model, batch.input_ids, batch.attention_mask)

    def action_values(self, critic, batch):
        return action_values_of(critic, batch.input_ids, batch.attention_mask, batch.action_mask)

    def save(self, model, folder):
        model.save_pretrained(folder)

    def restore(self, kind, checkpoint, folder):
        load = self.load_actor if kind == "actor" else self.load_reward_model
        return load(replace(checkpoint, path=str(folder)))

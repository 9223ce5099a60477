"""torchtune 0.6: its recipes make, score, generate and save; its losses and its packs are called as they call them.

Modes: `scoring`: "ppo", "dpo" (log-probs as sums over right-padded rows) or "sft" (as the loss of a packed data set);
`kv_cache`: whether PPO generates with a cache.

Not provided: entropy (it has none).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod

import torch
from torchtune import generation, rlhf
from torchtune.rlhf.loss import PPOLoss

from rlhf_conformance import Adapter, PackedSequences, PolicyLossResult, ProcessedSequences
from rlhf_conformance.adapters import torchtune_standins as standins


class Torchtune(Adapter):
    architectures = ("llama", "qwen2", "mistral")
    head_architectures = ("llama", "mistral")
    kl_metric = "k2"
    takes_attention_mask = asymmetric_clip = unclipped_value = False

    def __init__(self, scoring="ppo", kv_cache=True):
        self.scoring, self.kv_cache = scoring, kv_cache
        if scoring != "ppo":
            self.temperature = False
            self.layouts = {"dpo": ("right",), "sft": ("packed", "packed-tail")}[scoring]
            self.ignored_label = "zero" if scoring == "dpo" else None
            for part in ("generate", "load_reward_model", "load_critic", "save"):
                setattr(self, part, None)  # of PPO

    def token_log_probs(self, logits, labels, temperature):
        if self.scoring == "ppo":
            return rlhf.logits_to_logprobs(logits, labels, temperature)
        rows = torch.stack([logits.flatten(0, 1)] * 2, dim=1), torch.stack([labels.flatten()] * 2, dim=1)
        return rlhf.get_batch_log_probs(*rows).view(labels.shape)

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        stop = torch.tensor(stop_token_ids, dtype=torch.long, device=sequences.device)
        responses = sequences[:, prompt_length:].clone()  # as the recipe does
        pads, responses = rlhf.truncate_sequence_at_first_stop_token(responses, stop, pad_token_id)
        return ProcessedSequences(torch.cat([sequences[:, :prompt_length], responses], dim=1), action_mask=~pads)

    def position_ids(self, attention_mask):
        return generation.get_position_ids_from_padding_mask(attention_mask.bool())

    def pack_sequences(self, sequences):
        pack = standins.pack(standins.texts([sequence.tolist() for sequence in sequences]), sum(map(len, sequences)))
        return PackedSequences(pack["tokens"], pack["input_pos"], pack["labels"])

    def load(self, kind, checkpoint):
        return standins.trainer(kind, checkpoint, self.kv_cache)

    load_actor = partialmethod(load, "actor")
    load_reward_model = partialmethod(load, "reward")
    load_critic = partialmethod(load, "critic")
    checkpoint_weights = staticmethod(standins.weights)

    def action_log_probs(self, actor, batch):
        if self.scoring == "sft":
            rows = zip(batch.sequences, batch.prompt_lengths, strict=True)
            samples = [{"tokens": row.tolist(), "labels": [-100] * n + row[n:].tolist()} for row, n in rows]
            return standins.finetune(actor, standins.pack(samples, batch.input_ids.numel()))
        if self.scoring == "dpo":  # it adds up the log-probs of a row: one row for each action, with one label
            rows, columns = batch.action_mask.nonzero(as_tuple=True)
            ids = batch.input_ids[rows]
            alone = torch.arange(ids.shape[1], device=ids.device) == columns[:, None] + 1
            sums = standins.pairs(actor, ids, ids.masked_fill(~alone, -100))[0]
            return list(sums.split(batch.action_mask.sum(1).tolist()))
        if torch.is_grad_enabled():
            return standins.step(actor, batch).log_probs
        start = batch.input_ids.shape[1] - batch.num_actions
        return standins.trajectory(actor, batch.input_ids, start, sampled=True).logprobs  # old log-probs

    def generate(self, actor, prompts):
        return standins.generate(actor, prompts)

    def action_values(self, critic, batch):
        if torch.is_grad_enabled():
            return standins.step(critic, batch).values
        return standins.trajectory(critic, batch.input_ids, batch.input_ids.shape[1] - batch.num_actions).values

    def rewards(self, reward_model, batch):
        start, ends = batch.input_ids.shape[1] - batch.num_actions, batch.response_lengths
        made = standins.trajectory(reward_model, batch.input_ids, start)
        if torch.equal(made.response_padding_masks, ~batch.action_mask.bool()):
            return made.scores
        # It finds ends by stop ids alone: rows that end otherwise come as if generated to their length, one by one.
        rows = [row[None, : start + count] for row, count in zip(batch.input_ids, ends, strict=True)]
        return torch.cat([standins.trajectory(reward_model, row, start).scores for row in rows])

    def save(self, model, folder):
        standins.save(model, folder)

    def restore(self, kind, checkpoint, folder):
        return self.load(kind, replace(checkpoint, path=str(folder / "epoch_0")))

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        given = {"log_probs": log_probs, "old_log_probs": old_log_probs, "advantages": advantages}
        found = standins.losses(PPOLoss(epsilon=options.clip_eps_low), action_mask, **given)
        return PolicyLossResult(found.loss, found.metrics.clipfrac, found.metrics.approx_policy_kls)

    def value_loss(self, values, old_values, returns, action_mask, options):
        loss_fn = PPOLoss(value_clip_range=options.clip_eps, value_coeff=1.0)
        return standins.losses(loss_fn, action_mask, values=values, old_values=old_values, returns=returns).loss

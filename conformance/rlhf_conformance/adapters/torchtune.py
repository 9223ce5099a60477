"""torchtune 0.6: its recipes set up, generate, score, take the losses and save; its data sets make the packs.

Modes: `scoring`: "ppo", "dpo" (log-probs as sums over right-padded rows, without a temperature) or "sft" (the loss of a
packed data set); `kv_cache`: whether PPO generates with caches, as it does by default.

Not provided: entropy (it has none), returns without a critic, groups (GRPO is not in its wheel); in "dpo" and "sft"
what is of PPO alone, in the others the whole output.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod

import torch
from torchtune import generation, rlhf
from torchtune.rlhf.loss import PPOLoss

from rlhf_conformance import Adapter, ObjectiveResult, PackedSequences, PolicyLossResult, ProcessedSequences
from rlhf_conformance.adapters import torchtune_standins as standins
from rlhf_conformance.adapters import torchtune_step as steps

PATH = ("kl", "token_rewards", "advantages", "whiten", "credit")
OF_PPO = ("generate", "load_reward_model", "load_critic", "load_trainer", "restore", *PATH)


class Torchtune(Adapter):
    architectures, head_architectures = ("llama", "qwen2", "mistral"), ("llama", "mistral")
    takes_attention_mask = asymmetric_clip = unclipped_value = False
    kl_metric = "k2"
    kl_estimators, score_position, after_last_action, observations = ("k1",), "after-last", "step", "zero-steps"
    objective_terms = ("value",)
    kl_masked = token_rewards_masked = whitening_masked = "zero"
    whitening_keeps_mean = True
    rewards, checkpoint_weights = staticmethod(standins.scores), staticmethod(standins.weights)
    generate, save = staticmethod(standins.generate), staticmethod(standins.save)
    step_terms, step_max_norm, load_trainer = ("policy",), False, steps.trainer
    step_gradients, step_update = staticmethod(steps.gradients), staticmethod(steps.update)
    step_log_probs = staticmethod(steps.log_probs)

    def __init__(self, scoring="ppo", kv_cache=True):
        self.scoring, self.kv_cache, self.temperature = scoring, kv_cache, scoring == "ppo"
        self.ignored_label = "zero" if scoring == "dpo" else None
        self.layouts = {"ppo": ("padded",), "dpo": ("right",), "sft": ("packed", "packed-tail")}[scoring]
        for lacking in {"ppo": ("logits",), "dpo": OF_PPO, "sft": ("logits", *OF_PPO)}[scoring]:
            setattr(self, lacking, None)

    def token_log_probs(self, logits, labels, temperature):
        if self.scoring == "ppo":
            return rlhf.logits_to_logprobs(logits, labels, temperature)
        return {"dpo": standins.in_rows_of_two, "sft": standins.in_chunks}[self.scoring](logits, labels)

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        stop = torch.tensor(stop_token_ids, dtype=torch.long, device=sequences.device)
        responses = sequences[:, prompt_length:].clone()  # as the recipe does
        pads, responses = rlhf.truncate_sequence_at_first_stop_token(responses, stop, pad_token_id)
        return ProcessedSequences(torch.cat([sequences[:, :prompt_length], responses], dim=1), action_mask=~pads)

    def position_ids(self, attention_mask):
        return generation.get_position_ids_from_padding_mask(attention_mask.bool())

    def pack_sequences(self, sequences):
        pack = standins.pack(standins.texts(sequences), sum(map(len, sequences)))
        return PackedSequences(pack["tokens"], pack["input_pos"], pack["labels"])

    def load(self, kind, checkpoint):
        return standins.trainer(kind, checkpoint, self.kv_cache)

    load_actor = partialmethod(load, "actor")
    load_reward_model = partialmethod(load, "reward")
    load_critic = partialmethod(load, "critic")

    def action_log_probs(self, actor, batch):
        if self.scoring != "ppo":
            return {"dpo": standins.summed, "sft": standins.finetuned}[self.scoring](actor, batch)
        if torch.is_grad_enabled():
            return standins.step(actor, batch).log_probs
        return standins.made_of(actor, batch, sampled=True).logprobs  # old log-probs are those of generation

    def action_values(self, critic, batch):
        return (standins.step if torch.is_grad_enabled() else standins.made_of)(critic, batch).values

    def logits(self, actor, batch):
        return standins.pairs(actor, batch.input_ids, batch.input_ids)[1]

    def restore(self, kind, checkpoint, folder):
        return self.load(kind, replace(checkpoint, path=str(folder / "epoch_0")))

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        given = {"log_probs": log_probs, "old_log_probs": old_log_probs, "advantages": advantages}
        found = standins.losses(PPOLoss(epsilon=options.clip_eps_low), action_mask, **given)
        return PolicyLossResult(found.loss, found.metrics.clipfrac, found.metrics.approx_policy_kls)

    def value_loss(self, values, old_values, returns, action_mask, options):
        loss_fn = PPOLoss(value_clip_range=options.clip_eps, value_coeff=1.0)
        return standins.losses(loss_fn, action_mask, values=values, old_values=old_values, returns=returns).loss

    def objective(self, log_probs, old, advantages, entropies, ref, values, old_values, returns, mask, options):
        loss_fn = PPOLoss(options.clip_eps_low, options.value_clip_eps, options.value_coef)
        tables = {"log_probs": log_probs, "old_log_probs": old, "advantages": advantages}
        tables |= {"values": values, "old_values": old_values, "returns": returns}
        found = standins.losses(loss_fn, mask, **tables)
        return ObjectiveResult(found.loss, found.metrics.policy_loss, found.metrics.value_loss)

    def kl(self, log_probs, ref_log_probs, action_mask, options):
        return standins.behind_a_token(action_mask, log_probs=log_probs, ref_log_probs=ref_log_probs).kl

    def token_rewards(self, scores, kl, action_mask, options):
        return standins.behind_a_token(action_mask, log_probs=kl, scores=scores, kl_coef=options.kl_coef).rewards

    def advantages(self, token_rewards, values, action_mask, options):
        made = standins.of_rewards(token_rewards, values, action_mask, options.gamma, options.lam)
        return made.advantages, made.returns

    def whiten(self, values, action_mask, options):
        return standins.experience(action_mask, log_probs=-values, gamma=0.0, lam=0.0, whitened=True).advantages

    def credit(self, scores, log_probs, ref_log_probs, values, action_mask, options):
        given = {"scores": scores, "log_probs": log_probs, "ref_log_probs": ref_log_probs, "values": values}
        discounts = {"kl_coef": options.kl_coef, "gamma": options.gamma, "lam": options.lam}
        made = standins.experience(action_mask, **given, **discounts)
        return made.advantages, made.returns

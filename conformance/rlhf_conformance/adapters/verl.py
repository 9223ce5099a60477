"""verl 0.9: its engine prepares, runs and reads the models, its core algorithms take the losses, and its trainer goes
from scores to advantages.

Modes: `remove_padding` (on: rows are packed inside), `pad_to` (packs of a multiple of so many tokens),
`chunked_entropy`, `attn_implementation`, `kl_plus` (the estimators with a "+", which have k2's gradient).

Not provided: rewards and generation (servers of their own), packs of the caller's, save and restore (of FSDP modules).
"""

from __future__ import annotations

from functools import partialmethod

import torch

from rlhf_conformance import Adapter, AdvantagesResult, PolicyLossResult, ProcessedSequences
from rlhf_conformance.adapters import verl_standins as standins  # isort: split

from tensordict import TensorDict
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import apply_kl_penalty
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils import torch_functional
from verl.utils.model import compute_position_id_with_mask
from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding

MODES = {"token-mean": "token-mean", "sequence-mean": "seq-mean-token-mean"}
SUMS = {"constant-length": "seq-mean-token-sum-norm", "token-sum": "token-sum"}
SURROGATES = {"ppo": "vanilla", "gspo": "gspo", "cispo": "cispo", "reinforce": "gpg"}


class Verl(Adapter):
    architectures = ("llama", "qwen2", "mistral", "gemma3_text", "granite", "phi")  # it wants num_key_value_heads
    aggregations, surrogates, constant_length, token_sum = tuple(MODES), tuple(SURROGATES), True, True
    dual_clip, global_count, count_empty_rows, unclipped_value = "always", True, False, False
    position_ids = staticmethod(compute_position_id_with_mask)

    kl_estimators = ("k1", "k2", "k3", "abs")
    kl_log_ratio_clamp, kl_clamp, kl_clamped, kl_gradient = 20.0, 10.0, ("k3",), "plain"
    token_rewards_masked, whitening_keeps_mean, whitening_of_few = "zero", True, "refused"
    group_baselines, group_scales, group_of_one = ("mean", "leave-one-out"), ("group-std", "none"), "score"

    def __init__(self, remove_padding=True, pad_to=0, chunked_entropy=False, attn_implementation="sdpa", kl_plus=False):
        self.packs_internally = remove_padding
        self.kl_suffix, self.kl_gradient = ("+", "k2") if kl_plus else ("", "plain")
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

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        rows = (old_log_probs, log_probs, advantages, action_mask.bool())
        take, config = core_algos.get_policy_loss_fn(SURROGATES[options.surrogate]), standins.loss_config(options)
        loss, metrics = take(*rows, {**MODES, **SUMS}[options.aggregation], config)
        return PolicyLossResult(loss, metrics.get("actor/pg_clipfrac"), metrics.get("actor/ppo_kl"))

    def value_loss(self, values, old_values, returns, action_mask, options):
        rows = (values, returns, old_values, action_mask.bool(), options.clip_eps, MODES[options.aggregation])
        return core_algos.compute_value_loss(*rows, **standins.counts(options))[0]

    def kl(self, log_probs, ref_log_probs, action_mask, options):
        return core_algos.kl_penalty(log_probs, ref_log_probs, options.estimator + self.kl_suffix)

    def penalized(self, scores, log_probs, ref_log_probs, action_mask, kl_coef, estimator):
        data = standins.rollout(action_mask, old_log_probs=log_probs, ref_log_prob=ref_log_probs)
        data.batch["token_level_scores"] = RewardManagerBase.assemble_rm_scores(data, scores.tolist())
        return apply_kl_penalty(data, core_algos.FixedKLController(kl_coef), estimator)[0]

    def token_rewards(self, scores, kl, action_mask, options):  # it takes log-probs: k1 of the KL over a reference of 0
        data = self.penalized(scores, kl, torch.zeros_like(kl), action_mask, options.kl_coef, "k1")
        return data.batch["token_level_rewards"]

    def estimated(self, data, estimator, gamma=1.0, lam=1.0, scaled=True):
        options = {"norm_adv_by_std_in_grpo": scaled, "config": standins.Config(gamma=gamma)}
        with standins.no_whitening():
            compute_advantage_for_multi_trajectories(data, standins.sessions(data), estimator, gamma, lam, **options)
        return AdvantagesResult(data.batch["advantages"], data.batch["returns"])

    def advantages(self, token_rewards, values, action_mask, options):
        data = standins.rollout(action_mask, token_level_rewards=token_rewards, values=values)
        return self.estimated(data, "gae", options.gamma, options.lam)

    def returns(self, token_rewards, action_mask, options):
        data = standins.rollout(action_mask, token_level_rewards=token_rewards)
        return self.estimated(data, "reinforce_plus_plus", options.gamma).returns

    def credit(self, scores, log_probs, ref_log_probs, values, action_mask, options):
        data = self.penalized(scores, log_probs, ref_log_probs, action_mask, options.kl_coef, options.estimator)
        data.batch["values"] = values
        return self.estimated(data, "gae", options.gamma, options.lam)

    def whiten(self, values, action_mask, options):
        return torch_functional.masked_whiten(values, action_mask.long(), options.shift_mean)

    def group_advantages(self, scores, group_ids, action_mask, options):
        data = standins.rollout(action_mask, group_ids)
        data.batch["token_level_rewards"] = RewardManagerBase.assemble_rm_scores(data, scores.tolist())
        estimator = {"mean": "grpo", "leave-one-out": "rloo"}[options.baseline]
        return self.estimated(data, estimator, scaled=options.scale == "group-std").advantages

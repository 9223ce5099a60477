"""verl's losses and its credit: its core algorithms, its rollout correction, the loss of its workers, and its trainer,
which goes from scores to advantages.

`REJECTION` is what it declares where it rejects and weighs nothing (`rollout_rs`), by "k1", whose statistics are those
of weights. Rejection by k2 or k3 is not asked for, and neither is rejection beside weights.
"""

from __future__ import annotations

import torch

from rlhf_conformance import Adapter, AdvantagesResult, ObjectiveResult, PolicyLossResult
from rlhf_conformance.adapters import verl_standins as standins  # isort: split

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import apply_kl_penalty
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils import torch_functional

MODES = {"token-mean": "token-mean", "sequence-mean": "seq-mean-token-mean"}
SUMS = {"constant-length": "seq-mean-token-sum-norm", "token-sum": "token-sum"}
SURROGATES = {"ppo": "vanilla", "gspo": "gspo", "cispo": "cispo", "reinforce": "gpg"}
REJECTION = {"correction_modes": ("mask",), "sequence_weights": ("product", "geometric"), "correction_kept": "one"}
REJECTION |= {"correction_log_clamped": "actions", "rejected_tokens": "left-out"}


class Losses(Adapter):
    aggregations, surrogates, constant_length, token_sum = tuple(MODES), tuple(SURROGATES), True, True
    dual_clip, global_count, count_empty_rows, unclipped_value = "always", True, False, False
    kl_estimators = ("k1", "k2", "k3", "abs")
    kl_log_ratio_clamp, kl_clamp, kl_clamped, kl_gradient = 20.0, 10.0, ("k3",), "plain"
    token_rewards_masked, whitening_keeps_mean, whitening_of_few = "zero", True, "refused"
    group_baselines, group_scales, group_of_one = ("mean", "leave-one-out"), ("group-std", "none"), "score"
    correction_levels, correction_modes, correction_lower = ("token", "sequence"), ("truncate", "mask"), "mask"
    correction_log_clamp, correction_masked, correction_bypass = 20.0, "zero", True
    objective_terms = ("kl", "entropy")

    def __init__(self, kl_plus=False, rejection=False):
        self.kl_suffix, self.kl_gradient = ("+", "k2") if kl_plus else ("", "plain")
        self.rejects = rejection
        self.__dict__.update(REJECTION if rejection else {})

    def weighted(self, log_probs, old_log_probs, advantages, action_mask, options, weights=None):
        rows = (old_log_probs, log_probs, advantages, action_mask.bool())
        take, config = core_algos.get_policy_loss_fn(SURROGATES[options.surrogate]), standins.loss_config(options)
        return take(*rows, self.aggregation_mode(options), config, rollout_is_weights=weights)

    def aggregation_mode(self, options):
        return {**MODES, **SUMS}[options.aggregation]

    def modes_of(self, options):
        mode = {"loss_mode": SURROGATES[options.surrogate], "loss_agg_mode": self.aggregation_mode(options)}
        return {**mode, "kl_loss_type": options.estimator + self.kl_suffix}

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        loss, metrics = self.weighted(log_probs, old_log_probs, advantages, action_mask, options)
        return PolicyLossResult(loss, metrics.get("actor/pg_clipfrac"), metrics.get("actor/ppo_kl"))

    def off_policy_weights(self, old_log_probs, rollout_log_probs, action_mask, options):
        rows = (old_log_probs, rollout_log_probs, action_mask, options)
        if self.rejects:
            return standins.rejection(*rows)["response_mask"].to(old_log_probs.dtype)
        return standins.correction(*rows)["rollout_is_weights"]

    def corrected_loss(self, log_probs, old_log_probs, advantages, rollout_log_probs, action_mask, options):
        weights, old = None, rollout_log_probs if options.bypass else old_log_probs  # as apply_bypass_mode puts them
        if options.weights:
            weights = self.off_policy_weights(old_log_probs, rollout_log_probs, action_mask, options.weights)
            action_mask, weights = (weights, None) if self.rejects else (action_mask, weights)
        return self.weighted(log_probs, old, advantages, action_mask, options, weights)[0]

    def objective(self, log_probs, old, advantages, entropies, ref, values, old_values, returns, mask, options):
        tables = {"old_log_probs": old, "advantages": advantages, "ref_log_prob": ref, "response_mask": mask}
        answers = {"log_probs": log_probs, "entropy": entropies if options.entropy_coef else None}
        loss, log = standins.objective(options, answers, tables, **self.modes_of(options))
        return ObjectiveResult(loss, log["actor/pg_loss"], None, log.get("kl_loss"), log.get("actor/entropy_loss"))

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

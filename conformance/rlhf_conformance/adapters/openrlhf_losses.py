"""OpenRLHF's losses, its credit, and the step that puts them together.

Its experience maker is asked for whitening, group advantages and credit as a whole, in two micro-batches; its training
step for the objective, with an actor that has answered. The weights for the engine are made inside of the policy loss,
and read there.
"""

from __future__ import annotations

from rlhf_conformance import Adapter, CreditOptions, ObjectiveResult, PolicyLossResult
from rlhf_conformance.adapters import openrlhf_standins as standins  # isort: split

from openrlhf.models import PolicyLoss, ValueLoss, utils
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker as Maker

# It takes this mean, whatever it is asked for, and its ratio to the engine with any correction.
GSPO = {"surrogates": ("gspo",), "aggregations": ("sequence-mean",), "correction_bypass": True}
GSPO |= {"off_policy_weights": None}


class Losses(Adapter):
    aggregations = ("token-mean", "sequence-mean")
    dual_clip = True
    global_count, count_empty_rows = standins.TAKES_COUNTS, False
    kl_clamp, kl_gradient, score_clip = 10.0, "plain", True
    observations = "zero-steps"
    whitening_ddof, whitening_eps, whitening_eps_place, whitening_of_few = 0, 1e-8, "floor", "zero"
    group_baselines, group_scales, group_layout = ("mean", "leave-one-out"), ("group-std", "none"), "equal"
    group_eps = 1e-9
    correction_levels, correction_modes, correction_lower = ("token", "sequence"), ("truncate", "mask"), "both"
    sequence_correction_modes, sequence_weights, correction_kept = ("mask",), ("geometric",), "token-weight"
    objective_terms, kl_aggregation, entropy_aggregation = ("kl", "entropy"), "token-mean", "token-mean"

    def loss_fn(self, options, **correction):
        eps, token_mean = (options.clip_eps_low, options.clip_eps_high), options.aggregation == "token-mean"
        return PolicyLoss(*eps, options.dual_clip, token_mean, **standins.surrogate(options), **correction)

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        rows = (log_probs, old_log_probs, advantages, action_mask)
        return PolicyLossResult(*self.loss_fn(options)(*rows, **standins.counts(options))[:3])

    def off_policy_weights(self, old_log_probs, rollout_log_probs, action_mask, options):
        loss_fn = PolicyLoss(**standins.correction(options))
        return standins.weights(loss_fn, old_log_probs, rollout_log_probs, action_mask)

    def corrected_loss(self, log_probs, old_log_probs, advantages, rollout_log_probs, action_mask, options):
        rows = (log_probs, old_log_probs, advantages, action_mask, rollout_log_probs)
        return self.loss_fn(options, **standins.correction(options))(*rows, **standins.counts(options))[0]

    def objective(self, log_probs, old, advantages, entropies, ref, values, old_values, returns, mask, options):
        tables = {"log_probs": log_probs, "old_log_probs": old, "advantages": advantages}
        tables |= {"entropies": entropies, "ref_log_probs": ref}
        loss, log = standins.objective(self.loss_fn(options), options, mask, **tables)
        return ObjectiveResult(loss, log["policy_loss"], None, log.get("kl"), log["entropy_loss"])

    def value_loss(self, values, old_values, returns, action_mask, options):
        loss_fn = ValueLoss(options.clip_eps, options.aggregation == "token-mean")
        return loss_fn(values, old_values, returns, action_mask, **standins.counts(options))

    def kl(self, log_probs, ref_log_probs, action_mask, options):
        return utils.compute_approx_kl(log_probs, ref_log_probs, kl_estimator=options.estimator)

    def token_rewards(self, scores, kl, action_mask, options):
        clip = options.score_clip and (-options.score_clip, options.score_clip)
        return utils.compute_reward(scores, options.kl_coef, kl, action_mask, clip)

    def advantages(self, token_rewards, values, action_mask, options):
        rows = (values, token_rewards, action_mask)
        return Maker.get_advantages_and_returns(None, *rows, options.gamma, options.lam)

    def returns(self, token_rewards, action_mask, options):
        return Maker.get_cumulative_returns(None, token_rewards, action_mask, options.gamma)

    def whiten(self, values, action_mask, options):
        maker = standins.experience_maker("reinforce", CreditOptions(kl_coef=1.0))
        maker.get_cumulative_returns = lambda token_rewards, *_: token_rewards  # so that these are what is whitened
        rows = standins.dealt(rewards=values.new_zeros(len(values)), kl=-values, action_mask=action_mask)
        return standins.credited(maker, rows)[0]

    def group_advantages(self, scores, group_ids, action_mask, options):
        estimator = {"group-std": "group_norm", "none": "dr_grpo"}[options.scale]
        estimator = "rloo" if options.baseline == "leave-one-out" else estimator
        maker = standins.experience_maker(estimator, CreditOptions(), (), len(scores) // len(group_ids.unique()))
        rows = standins.dealt(rewards=scores, kl=scores.new_zeros(action_mask.shape), action_mask=action_mask)
        return standins.credited(maker, rows)[0]

    def credit(self, scores, log_probs, ref_log_probs, values, action_mask, options):
        maker = standins.experience_maker("", options, (log_probs, ref_log_probs, values))
        maker.advantage_estimator = "gae"  # named in the arguments as well, it would whiten its advantages
        rows = maker.make_experience(standins.dealt(rewards=scores, action_mask=action_mask))
        return standins.credited(maker, rows)

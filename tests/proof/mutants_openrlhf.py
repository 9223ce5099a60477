"""Slips in OpenRLHF 0.11.2, in the functions that its adapter comes to. See mutants.py."""

from __future__ import annotations

from .mutants import Edit, Mutant

ACTOR = "openrlhf.models.actor:Actor.forward"
REWARD = "openrlhf.models.model:_get_reward_model.RewardModel.forward"
CRITIC = "openrlhf.models.model:_get_critic_model.CriticModel.forward"
UTILS = "openrlhf.models.utils"
LOSS = "openrlhf.models.loss"
POLICY_LOSS = f"{LOSS}:PolicyLoss.forward"
GSPO = {"policy_loss": "gspo"}
VALUE_LOSS = f"{LOSS}:ValueLoss.forward"
AGGREGATE = f"{LOSS}:aggregate_loss"
UNPAD = "openrlhf.models.ring_attn_utils:unpad_and_slice_tensor"
GATHER = "openrlhf.models.ring_attn_utils:gather_and_pad_tensor"
KL = f"{UTILS}:compute_approx_kl"
REWARDS = f"{UTILS}:compute_reward"
MAKER = "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker"
EXPERIENCE = f"{MAKER}.make_experience"
GAE = f"{MAKER}.get_advantages_and_returns"
RETURNS = f"{MAKER}.get_cumulative_returns"
CREDIT = f"{MAKER}.compute_advantages_and_returns"
PACKING = {"packing": True}
STEP = "openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer.training_step"

LOG_PROBS = (
    Mutant(
        "log-prob-turned-round",
        f"{UTILS}:log_probs_from_logits",
        Edit("logits_labels - _a", "_a - logits_labels"),
        "log-probs.definition",
    ),
    Mutant(
        "log-prob-temperature-only-above-one",
        f"{UTILS}:log_probs_from_logits",
        Edit("temperature != 1.0", "temperature > 1.0"),
        "log-probs.temperature",
    ),
    Mutant(
        "log-prob-multiplied-by-temperature",
        f"{UTILS}:log_probs_from_logits",
        Edit("logits.div_", "logits.mul_"),
        "log-probs.temperature",
    ),
    Mutant(
        "chunk-one-row-short",
        f"{UTILS}:_logsumexp_by_chunk",
        Edit("s_idx + chunk_size", "s_idx + chunk_size - 1"),
        "log-probs.every-position",
    ),
    Mutant(
        "last-chunk-forgotten",
        f"{UTILS}:_logsumexp_by_chunk",
        Edit("range(0, seq_len, chunk_size)", "range(0, seq_len - 1, chunk_size)"),
        "log-probs.definition",
    ),
    Mutant(
        "entropy-added",
        f"{UTILS}:compute_entropy",
        Edit("_a - _b", "_a + _b"),
        "log-probs.entropy",
    ),
    Mutant(
        "entropy-softmax-over-positions",
        f"{UTILS}:compute_entropy",
        Edit("_a.softmax(_b, dim=-1)", "_a.softmax(_b, dim=-2)"),
        "log-probs.entropy",
    ),
)

ACTOR_FORWARD = (
    Mutant(
        "labels-rolled-the-other-way",
        ACTOR,
        Edit("torch.roll(_a, shifts=-1, dims=1)", "torch.roll(_a, shifts=1, dims=1)"),
        "actor.log-probs",
    ),
    Mutant(
        "positions-from-one",
        ACTOR,
        Edit("_a.cumsum(-1) - 1", "_a.cumsum(-1)"),
        "positions.start-at-zero",
    ),
    Mutant(
        "positions-across-rows",
        ACTOR,
        Edit("_a.cumsum(-1)", "_a.cumsum(0)"),
        "actor.log-probs",
    ),
    Mutant(
        "positions-of-pads-negative",
        ACTOR,
        Edit("position_ids.masked_fill_(_a, 1)", "position_ids.masked_fill_(_a, -1)"),
        "positions.left-padding",
    ),
    Mutant(
        "attention-mask-dropped",
        ACTOR,
        Edit("self.model(_a, attention_mask=_b, position_ids=_c, **mm_inputs)", "self.model(_a, position_ids=_c)"),
        "actor.garbage-under-mask",
        why="no legal input shows it: without a mask transformers 5 takes a position that does not follow on the one "
        "before for the start of another sequence, and pads have position 1, so that they stay apart",
    ),
    Mutant(
        "pads-attended",
        ACTOR,
        Edit("foward_attention_mask", "torch.ones_like(attention_mask)", nth=3, of=3),
        "actor.garbage-under-mask",
    ),
    Mutant(
        "log-probs-keep-the-last-column",
        ACTOR,
        Edit("log_probs[:, :-1]", "log_probs[:, 1:]"),
        "actor.log-probs",
    ),
    Mutant(
        "actions-from-the-front",
        ACTOR,
        Edit("log_probs[:, -action_mask.shape[1]:]", "log_probs[:, :action_mask.shape[1]]"),
        "actor.log-probs",
    ),
    Mutant(
        "action-mask-dropped",
        ACTOR,
        Edit("_a * action_mask.float()", "_a"),
        "actor.log-probs",
        why="no clause says what stands outside the action mask of log-probs (of values `critic.pads-zero` does): the "
        "losses may not read it",
    ),
    Mutant(
        "actor-multiplies-by-temperature",
        ACTOR,
        Edit("output['logits'].div_", "output['logits'].mul_"),
        "actor.temperature",
    ),
    Mutant(
        "logits-in-half-precision",
        ACTOR,
        Edit("torch.float32", "torch.bfloat16"),
        "actor.log-probs",
    ),
    Mutant(
        "entropy-one-column-late",
        ACTOR,
        Edit("entropy[:, :-1]", "entropy[:, 1:]"),
        "actor.entropy",
    ),
)

PACKS = (
    Mutant(
        "pack-labels-rolled-the-other-way",
        UNPAD,
        Edit("torch.roll(_a, shifts=-1, dims=1)", "torch.roll(_a, shifts=1, dims=1)"),
        "packing.equivalence",
        options=PACKING,
    ),
    Mutant(
        "pack-labels-rolled-across-rows",
        UNPAD,
        Edit("torch.roll(_a, shifts=-1, dims=1)", "torch.roll(_a, shifts=-1, dims=0)"),
        "packing.equivalence",
        options=PACKING,
    ),
    Mutant(
        "pack-positions-from-one",
        UNPAD,
        Edit("_a - 1", "_a"),
        "positions.restart",
    ),
    Mutant(
        "pack-positions-across-rows",
        UNPAD,
        Edit("torch.cumsum(attention_mask, dim=-1)", "torch.cumsum(attention_mask, dim=0)"),
        "positions.restart",
    ),
    Mutant(
        "pack-positions-do-not-restart",
        UNPAD,
        Edit("torch.cumsum(attention_mask, dim=-1)", "attention_mask.flatten().cumsum(0).view_as(attention_mask)"),
        "positions.restart",
    ),
    Mutant(
        "unpacked-into-wrong-shape",
        GATHER,
        Edit("pad_input(_a, indices, batch, seqlen)", "pad_input(_a, indices, seqlen, batch)"),
        "packing.equivalence",
        options=PACKING,
    ),
    Mutant(
        "unpacked-backwards",
        GATHER,
        Edit("pad_input(_a, indices, batch, seqlen)", "pad_input(_a, indices.flip(0), batch, seqlen)"),
        "packing.equivalence",
        options=PACKING,
    ),
    Mutant(
        "unpacked-as-if-right-padded",
        GATHER,
        Edit("pad_input(_a, indices, batch, seqlen)", "pad_input(_a, indices - indices[0], batch, seqlen)"),
        "packing.equivalence",
        options=PACKING,
    ),
)

REWARD_AND_CRITIC = (
    Mutant(
        "reward-one-before-the-end",
        REWARD,
        Edit("attention_mask.size(1) - 1", "attention_mask.size(1) - 2"),
        "reward.last-attended",
    ),
    Mutant(
        "reward-at-the-last-column",
        REWARD,
        Edit("attention_mask.long().fliplr()", "attention_mask.long()"),
        "reward.last-attended",
    ),
    Mutant(
        "reward-end-from-zeros",
        REWARD,
        Edit("_a.argmax(dim=1, keepdim=True)", "_a.argmin(dim=1, keepdim=True)"),
        "reward.last-attended",
    ),
    Mutant(
        "reward-positions-from-one",
        REWARD,
        Edit("_a.cumsum(-1) - 1", "_a.cumsum(-1)"),
        "reward.last-attended",
    ),
    Mutant(
        "reward-attends-to-pads",
        REWARD,
        Edit("forward_attention_mask", "torch.ones_like(attention_mask)", nth=3, of=3),
        "reward.garbage-under-mask",
    ),
    Mutant(
        "reward-of-a-pack-one-early",
        REWARD,
        Edit("values.gather(dim=1, index=eos_indices)", "values.gather(dim=1, index=eos_indices - 1)"),
        "packing.reward",
        options=PACKING,
    ),
    Mutant(
        "reward-normalised-in-training",
        REWARD,
        Edit("not self.training and self.normalize_reward", "self.normalize_reward"),
        "reward.normalization-train",
    ),
    Mutant(
        "reward-times-deviation",
        REWARD,
        Edit("_a / self.std", "_a * self.std"),
        "reward.normalization",
        why="only `reward.normalization` and `reward.round-trip` ask for normalised rewards, and both fail without it: "
        "mean and std are uninitialised memory",
    ),
    Mutant(
        "values-one-column-late",
        CRITIC,
        Edit("values[:, :-1]", "values[:, 1:]"),
        "critic.state-before",
    ),
    Mutant(
        "values-from-the-front",
        CRITIC,
        Edit("values[:, -action_mask.shape[1]:]", "values[:, :action_mask.shape[1]]"),
        "critic.state-before",
    ),
    Mutant(
        "values-not-masked",
        CRITIC,
        Edit("_a * action_mask.float()", "_a"),
        "critic.pads-zero",
    ),
    Mutant(
        "critic-positions-of-columns",
        CRITIC,
        Edit("attention_mask.long().cumsum(-1)", "torch.ones_like(attention_mask).cumsum(-1)"),
        "critic.padding-invariance",
    ),
    Mutant(
        "positions-of-a-pack-forgotten",
        CRITIC,
        Edit("_a(_b, attention_mask=_c, position_ids=_d)", "_a(_b, attention_mask=_c)"),
        "packing.critic",
        options=PACKING,
    ),
    Mutant(
        "head-name-fixed",
        "openrlhf.models.model:get_llm_for_sequence_regression",
        Edit(
            "getattr(config, 'value_head_prefix', value_head_prefix)", "getattr(config, 'value_head_prefix', 'score')"
        ),
        "reward.head-name",
    ),
)

LOSSES = (
    Mutant(
        "mean-without-mask",
        f"{UTILS}:masked_mean",
        Edit("tensor * mask", "tensor"),
        "policy-loss.mask",
    ),
    Mutant(
        "mean-over-all-cells",
        f"{UTILS}:masked_mean",
        Edit("_a / mask.sum(dim=dim)", "_a / mask.numel()"),
        "policy-loss.token-mean",
    ),
    Mutant(
        "mask-dropped-with-global-count",
        AGGREGATE,
        Edit("loss * loss_mask", "loss", nth=1, of=2),
        "policy-loss.mask",
    ),
    Mutant(
        "mask-dropped-in-sequence-mean",
        AGGREGATE,
        Edit("loss * loss_mask", "loss", nth=2, of=2),
        "policy-loss.mask",
    ),
    Mutant(
        "tokens-counted-by-column",
        AGGREGATE,
        Edit("loss_mask.sum(dim=-1)", "loss_mask.sum(dim=0)"),
        "policy-loss.sequence-mean",
    ),
    Mutant(
        "token-counts-plus-one",
        AGGREGATE,
        Edit("token_counts + 1e-8", "token_counts + 1"),
        "value-loss.sequence-mean",
    ),
    Mutant(
        "empty-rows-counted",
        AGGREGATE,
        Edit("token_counts > 0", "token_counts >= 0"),
        "policy-loss.empty-rows-counted",
    ),
    Mutant(
        "global-batch-size-forgotten",
        AGGREGATE,
        Edit("_a / global_batch_size", "_a"),
        "value-loss.micro-batches",
    ),
    Mutant(
        "ratio-turned-round",
        POLICY_LOSS,
        Edit("log_probs - old_log_probs", "old_log_probs - log_probs"),
        "policy-loss.ratio",
    ),
    Mutant(
        "log-ratio-clamped-at-one",
        POLICY_LOSS,
        Edit("20.0", "1.0", nth=2, of=2),
        "policy-loss.aggregation",
    ),
    Mutant(
        "ratio-detached",
        POLICY_LOSS,
        Edit("policy_log_ratio.exp()", "policy_log_ratio.exp().detach()"),
        "policy-loss.gradient",
    ),
    Mutant(
        "lower-bound-from-above",
        POLICY_LOSS,
        Edit("1 - self.clip_eps_low", "1 - self.clip_eps_high"),
        "policy-loss.asymmetric-clip",
    ),
    Mutant(
        "upper-bound-from-below",
        f"{LOSS}:PolicyLoss.__init__",
        Edit("clip_eps_high", "clip_eps_low"),
        "policy-loss.asymmetric-clip",
    ),
    Mutant(
        "larger-surrogate",
        POLICY_LOSS,
        Edit("torch.min", "torch.max", nth=1, of=2),
        "policy-loss.clip",
    ),
    Mutant(
        "larger-surrogate-under-dual-clip",
        POLICY_LOSS,
        Edit("torch.min", "torch.max", nth=2, of=2),
        "policy-loss.dual-clip",
    ),
    Mutant(
        "dual-clip-below",
        POLICY_LOSS,
        Edit("torch.max", "torch.min"),
        "policy-loss.dual-clip",
    ),
    Mutant(
        "dual-clip-for-good-actions",
        POLICY_LOSS,
        Edit("advantages < 0", "advantages > 0"),
        "policy-loss.dual-clip-sign",
    ),
    Mutant(
        "clip-fraction-counts-ties",
        POLICY_LOSS,
        Edit("torch.lt", "torch.le"),
        "policy-loss.clip-fraction",
    ),
    Mutant(
        "kl-turned-round",
        POLICY_LOSS,
        Edit("-raw_policy_log_ratio.detach()", "raw_policy_log_ratio.detach()"),
        "policy-loss.kl-metric",
    ),
    Mutant(
        "smaller-value-loss",
        VALUE_LOSS,
        Edit("torch.max", "torch.min"),
        "value-loss.clip",
    ),
    Mutant(
        "values-clipped-about-returns",
        VALUE_LOSS,
        Edit("old_values + _a", "returns + _a"),
        "value-loss.clip",
    ),
    Mutant(
        "values-clipped-from-above-only",
        VALUE_LOSS,
        Edit("_a.clamp(-self.clip_eps, self.clip_eps)", "_a.clamp(max=self.clip_eps)"),
        "value-loss.clip",
    ),
    Mutant(
        "unclipped-against-old-values",
        VALUE_LOSS,
        Edit("values - returns", "values - old_values", nth=2, of=2),
        "value-loss.unclipped",
    ),
    Mutant(
        "half-forgotten",
        VALUE_LOSS,
        Edit("0.5 * loss", "loss"),
        "value-loss.half",
    ),
)

KLS = (
    Mutant(
        "kl-estimate-turned-round",
        KL,
        Edit("log_probs.float() - log_probs_base.float()", "log_probs_base.float() - log_probs.float()"),
        "kl.k1",
    ),
    Mutant(
        "k2-without-half",
        KL,
        Edit("log_ratio ** 2 / 2.0", "log_ratio ** 2", nth=1, of=2),
        "kl.k2",
    ),
    Mutant(
        "k3-turned-round",
        KL,
        Edit("(-k3_log_ratio).exp()", "k3_log_ratio.exp()"),
        "kl.k3",
    ),
    Mutant(
        "k3-log-ratio-not-clamped",
        KL,
        Edit("log_ratio.clamp(min=-10)", "log_ratio"),
        "kl.clamped-gradient",
    ),
    Mutant(
        "kl-clamped-from-above-only",
        KL,
        Edit("value.clamp(min=-10, max=10)", "value.clamp(max=10)"),
        "kl.clamp",
    ),
    Mutant(
        "kl-gradient-always-of-k2",
        KL,
        Edit("not unbiased_gradient", "unbiased_gradient"),
        "kl.gradient",
    ),
)

TOKEN_REWARDS = (
    Mutant(
        "kl-rewarded",
        REWARDS,
        Edit("-kl_coef * kl", "kl_coef * kl"),
        "token-rewards.penalty",
    ),
    Mutant(
        "small-coefficient-taken-for-none",
        REWARDS,
        Edit("kl_coef <= 0.0", "kl_coef <= 0.05"),
        "token-rewards.penalty",
    ),
    Mutant(
        "score-clipped-from-above-only",
        REWARDS,
        Edit("r.clamp(min=_a, max=_b)", "r.clamp(max=_b)"),
        "token-rewards.score-clip",
    ),
    Mutant(
        "score-at-the-mirrored-cell",
        REWARDS,
        Edit("action_mask.long().fliplr()", "action_mask.long()"),
        "token-rewards.score-position",
    ),
    Mutant(
        "score-at-the-length",
        REWARDS,
        Edit("_a - 1 - _b", "action_mask.long().sum(1, keepdim=True).clamp(min=1) - 1"),
        "token-rewards.holes",
    ),
    Mutant(
        "score-in-place-of-the-penalty",
        REWARDS,
        Edit("last_reward + kl_reward", "torch.where(last_reward != 0, last_reward, kl_reward)"),
        "token-rewards.last-action",
    ),
    Mutant(
        "score-of-another-row",
        REWARDS,
        Edit("r.unsqueeze(1)", "r.flip(0).unsqueeze(1)"),
        "token-rewards.own-row",
    ),
)

ADVANTAGES = (
    Mutant(
        "next-value-not-discounted",
        GAE,
        Edit("gamma * nextvalues", "nextvalues"),
        "advantages.discounts-as-given",
    ),
    Mutant(
        "trace-without-lambda",
        GAE,
        Edit("gamma * lambd * lastgaelam", "gamma * lastgaelam"),
        "advantages.definition",
    ),
    Mutant(
        "trace-without-gamma",
        GAE,
        Edit("gamma * lambd * lastgaelam", "lambd * lastgaelam"),
        "advantages.discounts-as-given",
    ),
    Mutant(
        "values-of-observations-kept",
        GAE,
        Edit("action_mask * values", "values"),
        "advantages.observations",
    ),
    Mutant(
        "rewards-under-the-mask-kept",
        GAE,
        Edit("action_mask * rewards", "rewards"),
        "advantages.mask",
    ),
    Mutant(
        "last-value-never-next",
        GAE,
        Edit("response_length - 1", "response_length - 2"),
        "advantages.definition",
    ),
    Mutant(
        "advantages-turned-round",
        GAE,
        Edit("advantages_reversed[::-1]", "advantages_reversed"),
        "advantages.definition",
    ),
    Mutant(
        "returns-without-values",
        GAE,
        Edit("advantages + values", "advantages + rewards"),
        "advantages.returns",
    ),
    Mutant(
        "returns-not-discounted",
        RETURNS,
        Edit("gamma * cumulative_return", "cumulative_return"),
        "advantages.discounted-returns",
    ),
    Mutant(
        "returns-from-the-front",
        RETURNS,
        Edit("reversed(range(response_length))", "range(response_length)"),
        "advantages.discounted-returns",
    ),
    Mutant(
        "returns-of-masked-rewards",
        RETURNS,
        Edit("action_mask * rewards", "rewards"),
        "advantages.discounted-mask",
    ),
)

WHITENING = (
    Mutant(
        "mean-of-masked-advantages",
        CREDIT,
        Edit("(all_advantages * all_action_masks).sum()", "all_advantages.sum()"),
        "whitening.mask",
    ),
    Mutant(
        "masked-cells-counted",
        CREDIT,
        Edit("all_action_masks.sum()", "all_action_masks.numel()"),
        "whitening.holes",
    ),
    Mutant(
        "variance-of-masked-advantages",
        CREDIT,
        Edit("(all_advantages - mean).pow(2) * all_action_masks", "(all_advantages - mean).pow(2)"),
        "whitening.mask",
    ),
    Mutant(
        "variance-about-zero",
        CREDIT,
        Edit("(all_advantages - mean).pow(2)", "all_advantages.pow(2)"),
        "whitening.shift",
    ),
    Mutant(
        "eps-in-the-variance",
        CREDIT,
        Edit("var.clamp(min=1e-08)", "(var + 1e-08)"),
        "whitening.epsilon",
    ),
    Mutant(
        "variance-of-one-action-less",
        CREDIT,
        Edit("_a.sum() / num_actions", "_a.sum() / (num_actions - 1)", nth=2, of=2),
        "whitening.variance",
    ),
    Mutant(
        "mean-kept",
        CREDIT,
        Edit("(exp.advantages - mean) * rstd", "exp.advantages * rstd"),
        "whitening.definition",
    ),
)

GROUPS = (
    Mutant(
        "all-others-counted-with-oneself",
        CREDIT,
        Edit("args.rollout.n_samples_per_prompt - 1", "args.rollout.n_samples_per_prompt"),
        "group-advantages.leave-one-out",
    ),
    Mutant(
        "mean-of-all-groups",
        CREDIT,
        Edit("rewards.mean(-1, keepdim=True)", "rewards.mean()", nth=1, of=2),
        "group-advantages.mean",
    ),
    Mutant(
        "deviation-of-all-groups",
        CREDIT,
        Edit("rewards.std(-1, keepdim=True)", "rewards.std()", nth=2, of=2),
        "group-advantages.group-std",
    ),
    Mutant(
        "deviation-biased",
        CREDIT,
        Edit("rewards.std(-1, keepdim=True)", "rewards.std(-1, keepdim=True, correction=0)", nth=2, of=2),
        "group-advantages.ddof",
    ),
    Mutant(
        "eps-of-another-trainer",
        CREDIT,
        Edit("1e-09", "1e-06"),
        "group-advantages.epsilon",
    ),
    Mutant(
        "rewards-in-order-of-arrival",
        CREDIT,
        Edit("rewards[indices]", "rewards[:]"),
        "group-advantages.own-group",
    ),
    Mutant(
        "advantages-in-order-of-prompts",
        CREDIT,
        Edit("rewards.reshape(-1)[indices]", "rewards.reshape(-1)"),
        "group-advantages.batch-order",
    ),
)

WHOLE_PATH = (
    Mutant(
        "reference-and-policy-exchanged",
        EXPERIENCE,
        Edit("compute_approx_kl(_a, _b, kl_estimator=_c)", "compute_approx_kl(_b, _a, kl_estimator=_c)"),
        "credit.penalty",
    ),
    Mutant(
        "estimator-not-passed-on",
        EXPERIENCE,
        Edit("self.strategy.args.algo.kl.estimator", "'k1'"),
        "credit.definition",
    ),
    Mutant(
        "clip-range-not-passed-on",
        CREDIT,
        Edit("args.reward.clip_range", "None"),
        "credit.definition",
    ),
    Mutant(
        "gamma-passed-for-lambda",
        CREDIT,
        Edit("args.algo.advantage.lambd", "args.algo.advantage.gamma"),
        "credit.definition",
    ),
)

SURROGATES = (
    Mutant(
        "gspo-sum-of-log-ratios",
        POLICY_LOSS,
        Edit("_a / action_mask.sum(dim=-1).clamp(min=1)", "_a"),
        "policy-loss.sequence-ratio",
        options=GSPO,
    ),
    Mutant(
        "gspo-mean-over-the-width",
        POLICY_LOSS,
        Edit("_a / action_mask.sum(dim=-1).clamp(min=1)", "_a / action_mask.shape[-1]"),
        "policy-loss.sequence-ratio",
        options=GSPO,
    ),
    Mutant(
        "gspo-mean-without-mask",
        POLICY_LOSS,
        Edit("(log_ratio * action_mask).sum(dim=-1)", "log_ratio.sum(dim=-1)"),
        "policy-loss.sequence-ratio-mask",
        options=GSPO,
    ),
    Mutant(
        "gspo-detached",
        POLICY_LOSS,
        Edit("ratio.exp().unsqueeze(-1)", "ratio.exp().unsqueeze(-1).detach()"),
        "policy-loss.sequence-ratio-gradient",
        options=GSPO,
    ),
    Mutant(
        "gspo-without-exponential",
        POLICY_LOSS,
        Edit("ratio.exp().unsqueeze(-1)", "(1 + ratio).unsqueeze(-1)"),
        "policy-loss.sequence-ratio",
        options=GSPO,
    ),
    Mutant(
        "gspo-ratio-of-the-next-row",
        POLICY_LOSS,
        Edit("ratio.exp().unsqueeze(-1)", "ratio.exp().roll(1).unsqueeze(-1)"),
        "policy-loss.sequence-ratio",
        options=GSPO,
    ),
    Mutant(
        "gspo-one-ratio",
        POLICY_LOSS,
        Edit("ratio.exp().unsqueeze(-1)", "ratio.mean().exp()"),
        "policy-loss.sequence-ratio",
        options=GSPO,
    ),
    Mutant(
        "gspo-by-token-loss",
        f"{LOSS}:PolicyLoss.__init__",
        Edit("policy_loss_type == 'gspo'", "policy_loss_type is None"),
        "policy-loss.sequence-ratio",
        options=GSPO,
        why="the adapter asks for the mean of each sequence by itself",
    ),
)

CORRECTION = (
    Mutant(
        "weights-turned-round",
        POLICY_LOSS,
        Edit("(old_log_probs - rollout_log_probs).detach()", "(rollout_log_probs - old_log_probs).detach()"),
        "off-policy-correction.token",
    ),
    Mutant(
        "weights-of-the-new-policy",
        POLICY_LOSS,
        Edit("(old_log_probs - rollout_log_probs).detach()", "(log_probs - rollout_log_probs).detach()"),
        "corrected-loss.token-weights",
    ),
    Mutant(
        "weights-with-a-graph",
        POLICY_LOSS,
        Edit("(old_log_probs - rollout_log_probs).detach()", "old_log_probs - rollout_log_probs"),
        "off-policy-correction.no-graph",
    ),
    Mutant(
        "weights-by-the-log-ratio",
        POLICY_LOSS,
        Edit("is_log_ratio.exp()", "1 + is_log_ratio"),
        "off-policy-correction.token",
    ),
    Mutant(
        "weights-held-from-above-alone",
        POLICY_LOSS,
        Edit("stat.clamp(min=low, max=high)", "stat.clamp(max=high)"),
        "off-policy-correction.truncation-below",
    ),
    Mutant(
        "weights-held-from-below-alone",
        POLICY_LOSS,
        Edit("stat.clamp(min=low, max=high)", "stat.clamp(min=low)"),
        "off-policy-correction.truncation",
    ),
    Mutant(
        "band-keeps-everything",
        POLICY_LOSS,
        Edit("(stat >= low) & (stat <= high)", "(stat >= low) | (stat <= high)"),
        "off-policy-correction.band",
    ),
    Mutant(
        "band-without-its-lower-bound", POLICY_LOSS, Edit("stat >= low", "stat > low"), "off-policy-correction.bounds"
    ),
    Mutant(
        "band-without-its-upper-bound", POLICY_LOSS, Edit("stat <= high", "stat < high"), "off-policy-correction.bounds"
    ),
    Mutant(
        "band-keeps-with-one",
        POLICY_LOSS,
        Edit("torch.where(keep, token_is, 0.0)", "torch.where(keep, 1.0, 0.0)"),
        "off-policy-correction.kept",
    ),
    Mutant(
        "band-keeps-what-it-looked-at",
        POLICY_LOSS,
        Edit("torch.where(keep, token_is, 0.0)", "torch.where(keep, stat, 0.0)"),
        "off-policy-correction.kept",
    ),
    Mutant(
        "band-turned-inside-out",
        POLICY_LOSS,
        Edit("torch.where(keep, token_is, 0.0)", "torch.where(keep, 0.0, token_is)"),
        "off-policy-correction.band",
    ),
    Mutant(
        "sequences-by-their-sum",
        POLICY_LOSS,
        Edit(
            "masked_mean(is_log_ratio, action_mask, dim=-1).unsqueeze(-1)",
            "(is_log_ratio * action_mask).sum(-1, keepdim=True)",
        ),
        "off-policy-correction.band",
    ),
    Mutant(
        "sequences-by-the-width",
        POLICY_LOSS,
        Edit("masked_mean(is_log_ratio, action_mask, dim=-1).unsqueeze(-1)", "is_log_ratio.mean(-1, keepdim=True)"),
        "off-policy-correction.mask",
    ),
    Mutant(
        "sequences-along-columns",
        POLICY_LOSS,
        Edit(
            "masked_mean(is_log_ratio, action_mask, dim=-1).unsqueeze(-1)",
            "masked_mean(is_log_ratio, action_mask, dim=-1)",
        ),
        "off-policy-correction.square",
    ),
    Mutant("weights-not-multiplied", POLICY_LOSS, Edit("coef * loss", "loss"), "corrected-loss.token-weights"),
    Mutant("weights-squared", POLICY_LOSS, Edit("coef * loss", "coef * coef * loss"), "corrected-loss.token-weights"),
)

STEPS = (
    Mutant(
        "step-kl-subtracted",
        STEP,
        Edit("actor_loss + kl_loss * kl_ctl", "actor_loss - kl_loss * kl_ctl"),
        "objective.kl-term",
    ),
    Mutant(
        "step-kl-without-coefficient",
        STEP,
        Edit("kl_loss * kl_ctl", "kl_loss"),
        "objective.coefficients",
    ),
    Mutant(
        "step-kl-detached",
        STEP,
        Edit("actor_loss + kl_loss * kl_ctl", "actor_loss + kl_loss.detach() * kl_ctl"),
        "objective.kl-gradient",
    ),
    Mutant(
        "step-kl-from-the-old-policy",
        STEP,
        Edit("experience.base_action_log_probs", "experience.action_log_probs"),
        "objective.kl-term",
    ),
    Mutant(
        "step-kl-over-every-cell",
        STEP,
        Edit(
            "aggregate_loss(kl, experience.action_mask, **loss_batch_info)",
            "aggregate_loss(kl, torch.ones_like(experience.action_mask), **loss_batch_info)",
        ),
        "objective.mask",
    ),
    Mutant(
        "step-entropy-added",
        STEP,
        Edit("entropy_loss * self.args.actor.entropy_coef", "-entropy_loss * self.args.actor.entropy_coef"),
        "objective.entropy-term",
    ),
    Mutant(
        "step-entropy-detached",
        STEP,
        Edit("entropy_loss * self.args.actor.entropy_coef", "entropy_loss.detach() * self.args.actor.entropy_coef"),
        "objective.entropy-gradient",
    ),
    Mutant(
        "step-policy-loss-detached",
        STEP,
        Edit("actor_loss + kl_loss * kl_ctl", "actor_loss.detach() + kl_loss * kl_ctl"),
        "objective.gradient",
    ),
    Mutant(
        "gspo-bypass-to-the-old-policy",
        POLICY_LOSS,
        Edit("log_probs - rollout_log_probs", "log_probs - old_log_probs"),
        "corrected-loss.bypass",
        options=GSPO,
    ),
)

MUTANTS = (
    *(LOG_PROBS + ACTOR_FORWARD + PACKS + REWARD_AND_CRITIC + LOSSES + SURROGATES),
    *(KLS + TOKEN_REWARDS + ADVANTAGES + WHITENING + GROUPS + WHOLE_PATH + CORRECTION + STEPS),
)

"""Slips in OpenRLHF 0.11.2, in the functions that its adapter comes to. See mutants.py."""

from __future__ import annotations

from .mutants import Edit, Mutant

ACTOR = "openrlhf.models.actor:Actor.forward"
REWARD = "openrlhf.models.model:_get_reward_model.RewardModel.forward"
CRITIC = "openrlhf.models.model:_get_critic_model.CriticModel.forward"
UTILS = "openrlhf.models.utils"
LOSS = "openrlhf.models.loss"
POLICY_LOSS = f"{LOSS}:PolicyLoss.forward"
VALUE_LOSS = f"{LOSS}:ValueLoss.forward"
AGGREGATE = f"{LOSS}:aggregate_loss"
UNPAD = "openrlhf.models.ring_attn_utils:unpad_and_slice_tensor"
GATHER = "openrlhf.models.ring_attn_utils:gather_and_pad_tensor"
PACKING = {"packing": True}

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

MUTANTS = LOG_PROBS + ACTOR_FORWARD + PACKS + REWARD_AND_CRITIC + LOSSES

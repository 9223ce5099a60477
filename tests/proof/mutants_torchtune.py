"""Slips in torchtune 0.6.1, in the functions and recipes that its adapter comes to. See mutants.py."""

from __future__ import annotations

from .mutants import Edit, Mutant

SEQUENCES = "torchtune.rlhf.sequence_processing"
REWARDS = "torchtune.rlhf.rewards"
PPO_LOSS = "torchtune.rlhf.loss.ppo:PPOLoss.forward"
GENERATION = "torchtune.generation._generation"
ATTENTION = "torchtune.modules.attention_utils"
PACKED = "torchtune.datasets._packed:PackedDataset"
RECIPE = "recipes.ppo_full_finetune_single_device:PPOFullFinetuneRecipeSingleDevice"
DPO, SFT = {"scoring": "dpo"}, {"scoring": "sft"}


LOG_PROBS = (
    Mutant(
        "log-prob-multiplied-by-temperature",
        f"{SEQUENCES}:logits_to_logprobs",
        Edit("logits / temperature", "logits * temperature"),
        "log-probs.temperature",
    ),
    Mutant(
        "log-softmax-over-positions",
        f"{SEQUENCES}:logits_to_logprobs",
        Edit("F.log_softmax(_a, dim=-1)", "F.log_softmax(_a, dim=1)"),
        "log-probs.definition",
    ),
    Mutant(
        "softmax-without-logarithm",
        f"{SEQUENCES}:logits_to_logprobs",
        Edit("F.log_softmax(_a, dim=-1)", "F.softmax(_a, dim=-1)"),
        "log-probs.definition",
    ),
    Mutant(
        "dpo-labels-not-shifted",
        f"{SEQUENCES}:get_batch_log_probs",
        Edit("labels[:, 1:]", "labels[:, :-1]"),
        "actor.log-probs",
        options=DPO,
    ),
    Mutant(
        "dpo-logits-shifted-too",
        f"{SEQUENCES}:get_batch_log_probs",
        Edit("logits[:, :-1, :]", "logits[:, 1:, :]"),
        "actor.log-probs",
        options=DPO,
    ),
    Mutant(
        "dpo-mask-dropped",
        f"{SEQUENCES}:get_batch_log_probs",
        Edit("per_token_log_probs * loss_mask", "per_token_log_probs"),
        "actor.log-probs",
        options=DPO,
    ),
    Mutant(
        "dpo-mean-for-sum",
        f"{SEQUENCES}:get_batch_log_probs",
        Edit("_a.sum(-1)", "_a.mean(-1)"),
        "actor.log-probs",
        options=DPO,
    ),
    Mutant(
        "dpo-temperature",
        f"{SEQUENCES}:get_batch_log_probs",
        Edit("1.0", "0.5"),
        "log-probs.definition",
        options=DPO,
    ),
    Mutant(
        "chunks-of-rows",
        "torchtune.modules.loss.ce_chunked_output_loss:CEWithChunkedOutputLoss.forward",
        Edit("labels.chunk(self.num_output_chunks, dim=1)", "labels.chunk(self.num_output_chunks, dim=0)"),
        "log-probs.every-position",
        options=SFT,
    ),
    Mutant(
        "chunk-not-upcast",
        "torchtune.modules.loss.ce_chunked_output_loss:CEWithChunkedOutputLoss.compute_cross_entropy",
        Edit("logits.float()", "logits"),
        "log-probs.float32",
        options=SFT,
    ),
)


ROWS = (
    Mutant(
        "actions-one-column-late",
        f"{SEQUENCES}:truncate_sequence_for_logprobs",
        Edit("query_response_logits[:, context_length - 1:-1]", "query_response_logits[:, context_length:]"),
        "actor.log-probs",
    ),
    Mutant(
        "ends-at-the-second-stop",
        f"{SEQUENCES}:truncate_sequence_at_first_stop_token",
        Edit("seq_lens == 1", "seq_lens == 2"),
        "sequences.truncation",
    ),
    Mutant(
        "stop-id-cut-off",
        f"{SEQUENCES}:truncate_sequence_at_first_stop_token",
        Edit("_a & ~eos_mask", "_a"),
        "sequences.action-mask",
    ),
    Mutant(
        "stops-counted-across-rows",
        f"{SEQUENCES}:truncate_sequence_at_first_stop_token",
        Edit("torch.cumsum(eos_mask, dim=1)", "torch.cumsum(eos_mask, dim=0)"),
        "sequences.rows-independent",
    ),
    Mutant(
        "only-the-first-stop-id",
        f"{SEQUENCES}:truncate_sequence_at_first_stop_token",
        Edit("torch.isin(sequences, stop_tokens)", "torch.isin(sequences, stop_tokens[:1])"),
        "sequences.stop-set",
    ),
    Mutant(
        "cut-rows-filled-with-zero",
        f"{SEQUENCES}:truncate_sequence_at_first_stop_token",
        Edit("fill_value", "0"),
        "sequences.tokens-unchanged",
    ),
    Mutant(
        "positions-from-one",
        f"{GENERATION}:get_position_ids_from_padding_mask",
        Edit("_a - 1", "_a"),
        "positions.cumsum",
    ),
    Mutant(
        "positions-across-rows",
        f"{GENERATION}:get_position_ids_from_padding_mask",
        Edit("padding_mask.cumsum(-1)", "padding_mask.cumsum(0)"),
        "positions.cumsum",
    ),
    Mutant(
        "positions-of-pads-negative",
        f"{GENERATION}:get_position_ids_from_padding_mask",
        Edit("_a * padding_mask", "_a"),
        "positions.pads",
    ),
    Mutant(
        "a-token-ahead-attended",
        f"{GENERATION}:get_causal_mask_from_padding_mask",
        Edit("0", "1", nth=1, of=2),
        "actor.log-probs",
    ),
    Mutant(
        "pads-attended",
        f"{GENERATION}:get_causal_mask_from_padding_mask",
        Edit("mask.narrow(2, 0, seq_len).mul_(_a)", "mask.narrow(2, 0, seq_len)"),
        "actor.padding-invariance",
    ),
)


GENERATING = (
    Mutant(
        "cached-position-one-early",
        f"{GENERATION}:generate",
        Edit("input_pos[:, curr_pos]", "input_pos[:, curr_pos - 1]"),
        "actor.generate",
    ),
    Mutant(
        "next-token-from-the-first-logits",
        f"{GENERATION}:generate_next_token",
        Edit("_a[:, -1]", "_a[:, 0]"),
        "actor.generate",
    ),
    Mutant(
        "least-likely-token",
        f"{GENERATION}:multinomial_sample_one",
        Edit("torch.argmax", "torch.argmin"),
        "actor.generate",
    ),
)


PPO = (
    Mutant(
        "old-log-probs-without-temperature",
        f"{RECIPE}.generate_trajectory",
        Edit(
            "rlhf.logits_to_logprobs(logits, responses, self._temperature)",
            "rlhf.logits_to_logprobs(logits, responses)",
        ),
        "actor.temperature",
    ),
    Mutant(
        "reward-one-before-the-end",
        f"{RECIPE}.generate_trajectory",
        Edit("seq_lens + context_length", "seq_lens + context_length - 1"),
        "reward.last-attended",
    ),
    Mutant(
        "reward-model-without-mask",
        f"{RECIPE}.generate_trajectory",
        Edit("self._reward_model(_a, input_pos=_b, mask=_c)", "self._reward_model(_a, input_pos=_b)"),
        "reward.padding-invariance",
    ),
    Mutant(
        "reward-model-without-positions",
        f"{RECIPE}.generate_trajectory",
        Edit("self._reward_model(_a, input_pos=_b, mask=_c)", "self._reward_model(_a, mask=_c)"),
        "reward.padding-invariance",
        why="no backbone of torchtune shows it: all have rotary positions, which see distances only",
    ),
    Mutant(
        "end-at-the-first-token",
        "torchtune.training.pooling:get_unmasked_sequence_lengths",
        Edit("_a.argmax(dim=-1)", "_a.argmin(dim=-1)"),
        "reward.last-attended",
    ),
    Mutant(
        "labels-of-the-states",
        f"{RECIPE}.ppo_step",
        Edit("trajectory.query_responses[:, context_length:]", "trajectory.query_responses[:, context_length - 1:-1]"),
        "actor.log-probs",
    ),
    Mutant(
        "step-without-temperature",
        f"{RECIPE}.ppo_step",
        Edit("self._temperature", "1.0"),
        "actor.temperature",
    ),
    Mutant(
        "policy-without-mask",
        f"{RECIPE}.ppo_step",
        Edit("self._policy_model(_a, input_pos=_b, mask=_c)", "self._policy_model(_a, input_pos=_b)"),
        "actor.padding-invariance",
    ),
    Mutant(
        "value-model-without-mask",
        f"{RECIPE}.ppo_step",
        Edit("self._value_model(_a, input_pos=_b, mask=_c)", "self._value_model(_a, input_pos=_b)"),
        "critic.padding-invariance",
    ),
    Mutant(
        "values-of-the-states-after",
        f"{RECIPE}.ppo_step",
        Edit("rlhf.truncate_sequence_for_logprobs(phi_values, context_length)", "phi_values[:, context_length:]"),
        "critic.state-before",
    ),
    Mutant(
        "pads-for-actions",
        f"{RECIPE}.ppo_step",
        Edit("~trajectory.response_padding_masks", "trajectory.response_padding_masks"),
        "policy-loss.token-mean",
    ),
    Mutant(
        "pads-for-values",
        f"{RECIPE}.ppo_step",
        Edit("~trajectory.value_padding_masks", "trajectory.value_padding_masks"),
        "value-loss.token-mean",
    ),
)


WEIGHTS = (
    Mutant(
        "rows-of-rotary-projections-as-they-are",
        "torchtune.models.convert_weights:hf_to_tune._permute",
        Edit("t.view(n_heads, 2, head_dim // 2, dim)", "t.view(n_heads, head_dim // 2, 2, dim)"),
        "actor.log-probs",
    ),
    Mutant(
        "saved-in-its-own-order",
        "torchtune.models.convert_weights:tune_to_hf._permute",
        Edit("t.view(n_heads, head_dim // 2, 2, dim)", "t.view(n_heads, 2, head_dim // 2, dim)"),
        "actor.round-trip",
    ),
    Mutant(
        "rotation-turned-round",
        "torchtune.modules.position_embeddings:RotaryPositionalEmbeddings.forward",
        Edit(
            "xshaped[..., 0] * rope_cache[..., 0] - xshaped[..., 1] * rope_cache[..., 1]",
            "xshaped[..., 0] * rope_cache[..., 0] + xshaped[..., 1] * rope_cache[..., 1]",
        ),
        "actor.log-probs",
    ),
    Mutant(
        "logits-in-the-dtype-of-the-model",
        "torchtune.modules.transformer:TransformerDecoder.unembed",
        Edit("self.output(h).float()", "self.output(h)"),
        "actor.float32",
    ),
)


PACKS = (
    Mutant(
        "positions-of-a-pack-run-on",
        f"{PACKED}._pack",
        Edit("x % self.max_seq_len", "(x + self.previous_sample_boundary) % self.max_seq_len"),
        "positions.restart",
    ),
    Mutant(
        "labels-beside-their-tokens",
        f"{PACKED}._convert_to_tensors",
        Edit("pack['labels']", "pack['labels'][1:] + pack['labels'][:1]"),
        "packing.tokens",
        options=SFT,
    ),
    Mutant(
        "tail-in-the-last-sequence",
        f"{PACKED}._pad_pack",
        Edit(
            "torch.cat([pack['seq_lens'], torch.tensor([num_padding_tokens])])",
            "torch.cat([pack['seq_lens'][:-1], pack['seq_lens'][-1:] + num_padding_tokens])",
        ),
        "packing.tail",
        options=SFT,
        why="no legal input shows it: attention is causal, and the tail is behind everything",
    ),
    Mutant(
        "a-pack-attends-ahead",
        f"{ATTENTION}:create_block_causal_mask",
        Edit("torch.tril(_a)", "_a"),
        "packing.equivalence",
        options=SFT,
    ),
    Mutant(
        "a-pack-is-one-sequence",
        f"{ATTENTION}:create_block_causal_mask",
        Edit("torch.block_diag(*block_attn_masks)", "torch.ones_like(torch.block_diag(*block_attn_masks)).tril()"),
        "packing.isolation",
        options=SFT,
    ),
    Mutant(
        "shift-the-other-way",
        "recipes.full_finetune_single_device:FullFinetuneRecipeSingleDevice._loss_step",
        Edit("torch.hstack((labels[..., 1:], _a))", "torch.hstack((_a, labels[..., :-1]))"),
        "packing.equivalence",
        options=SFT,
    ),
)


LOSSES = (
    Mutant(
        "mean-without-mask",
        f"{REWARDS}:masked_mean",
        Edit("x * mask", "x"),
        "policy-loss.mask",
    ),
    Mutant(
        "mean-over-all-cells",
        f"{REWARDS}:masked_mean",
        Edit("mask.sum(dim=dim) + 1e-08", "mask.numel()"),
        "policy-loss.token-mean",
    ),
    Mutant(
        "mean-over-no-action",
        f"{REWARDS}:masked_mean",
        Edit("mask.sum(dim=dim) + 1e-08", "mask.sum(dim=dim)"),
        "policy-loss.empty-batch",
    ),
    Mutant(
        "ratio-turned-round",
        PPO_LOSS,
        Edit("pi_logprobs - pi_old_logprobs", "pi_old_logprobs - pi_logprobs"),
        "policy-loss.ratio",
    ),
    Mutant(
        "ratio-detached",
        PPO_LOSS,
        Edit("torch.exp(_a)", "torch.exp(_a).detach()"),
        "policy-loss.gradient",
    ),
    Mutant(
        "lower-bound-at-one",
        PPO_LOSS,
        Edit("1.0 - self.epsilon", "1.0"),
        "policy-loss.clip",
    ),
    Mutant(
        "upper-bound-forgotten",
        PPO_LOSS,
        Edit("1.0 + self.epsilon", "float('inf')"),
        "policy-loss.clip",
    ),
    Mutant(
        "smaller-loss",
        PPO_LOSS,
        Edit(
            "torch.maximum(policy_losses_clipped, policy_losses_unclipped)",
            "torch.minimum(policy_losses_clipped, policy_losses_unclipped)",
        ),
        "policy-loss.clip",
    ),
    Mutant(
        "sign-of-the-advantage",
        PPO_LOSS,
        Edit("-advantages * ratios", "advantages * ratios"),
        "policy-loss.ratio",
    ),
    Mutant(
        "clip-fraction-counts-ties",
        PPO_LOSS,
        Edit("policy_losses_clipped > policy_losses_unclipped", "policy_losses_clipped >= policy_losses_unclipped"),
        "policy-loss.clip-fraction",
    ),
    Mutant(
        "clip-fraction-over-all-cells",
        PPO_LOSS,
        Edit("rlhf.masked_mean(clipfrac, padding_masks)", "clipfrac.mean()"),
        "policy-loss.clip-fraction",
    ),
    Mutant(
        "values-clipped-about-returns",
        PPO_LOSS,
        Edit(
            "torch.clamp(phi_values, _a, _b)",
            "torch.clamp(phi_values, *(x - phi_old_values + returns for x in (_a, _b)))",
        ),
        "value-loss.clip",
    ),
    Mutant(
        "values-clipped-from-above-only",
        PPO_LOSS,
        Edit("torch.clamp(phi_values, _a, _b)", "torch.clamp(phi_values, max=_b)"),
        "value-loss.clip",
    ),
    Mutant(
        "smaller-value-loss",
        PPO_LOSS,
        Edit("torch.maximum(_a ** 2, _b ** 2)", "torch.minimum(_a ** 2, _b ** 2)"),
        "value-loss.clip",
    ),
    Mutant(
        "half-forgotten",
        PPO_LOSS,
        Edit("0.5 * rlhf.masked_mean(_a, _b)", "rlhf.masked_mean(_a, _b)"),
        "value-loss.half",
    ),
)

CREDIT = (
    Mutant(
        "kl-of-the-reference",
        f"{REWARDS}:get_rewards_ppo",
        Edit("logprobs - ref_logprobs", "ref_logprobs - logprobs"),
        "kl.k1",
    ),
    Mutant(
        "reference-compared-with-itself",
        f"{RECIPE}.train",
        Edit("trajectory.logprobs", "trajectory.ref_logprobs"),
        "kl.k1",
    ),
    Mutant(
        "reference-of-pads-left",
        f"{RECIPE}.generate_trajectory",
        Edit("ref_logprobs[response_padding_masks]", "ref_logprobs[response_padding_masks & False]"),
        "kl.masked-cells",
    ),
    Mutant(
        "another-constant-on-pads",
        f"{RECIPE}.generate_trajectory",
        Edit("1.0", "0.0", nth=2, of=2),
        "kl.masked-cells",
    ),
    Mutant(
        "penalty-is-a-prize",
        f"{REWARDS}:get_rewards_ppo",
        Edit("-kl_coeff * kl", "kl_coeff * kl"),
        "token-rewards.penalty",
    ),
    Mutant(
        "penalty-of-the-row",
        f"{REWARDS}:get_rewards_ppo",
        Edit("-kl_coeff * kl", "-kl_coeff * kl.mean(1, keepdim=True).expand_as(kl)"),
        "token-rewards.penalty",
    ),
    Mutant(
        "score-one-cell-early",
        f"{REWARDS}:get_rewards_ppo",
        Edit("valid_score_idxs.unsqueeze(-1)", "valid_score_idxs.unsqueeze(-1) - 1"),
        "token-rewards.score-position",
    ),
    Mutant(
        "score-of-the-batch",
        f"{REWARDS}:get_rewards_ppo",
        Edit("scores.unsqueeze(-1)", "scores.mean().expand_as(scores).unsqueeze(-1)"),
        "token-rewards.score-position",
    ),
    Mutant(
        "score-in-the-last-column",
        f"{RECIPE}.train",
        Edit("trajectory.value_seq_idxs", "None"),
        "token-rewards.padding-invariance",
    ),
    Mutant(
        "score-at-the-last-action",
        f"{RECIPE}.generate_trajectory",
        Edit("seq_lens + 1", "seq_lens"),
        "token-rewards.score-position",
    ),
    Mutant(
        "values-of-pads-left",
        f"{RECIPE}.generate_trajectory",
        Edit("values[value_padding_masks]", "values[value_padding_masks & False]"),
        "advantages.mask",
    ),
    Mutant(
        "value-behind-the-last-action-dropped",
        f"{RECIPE}.generate_trajectory",
        Edit("values[value_padding_masks]", "values[response_padding_masks]"),
        "advantages.last-action",
    ),
    Mutant(
        "own-value-for-the-next",
        f"{REWARDS}:estimate_advantages",
        Edit("values[:, t + 1]", "values[:, t]"),
        "advantages.definition",
    ),
    Mutant(
        "last-value-goes-on",
        f"{REWARDS}:estimate_advantages",
        Edit("values[:, t + 1] if t < response_length - 1 else 0.0", "values[:, min(t + 1, response_length - 1)]"),
        "advantages.definition",
    ),
    Mutant(
        "next-value-at-the-end-dropped",
        f"{REWARDS}:estimate_advantages",
        Edit("t < response_length - 1", "t < response_length - 2"),
        "advantages.definition",
    ),
    Mutant(
        "next-value-undiscounted",
        f"{REWARDS}:estimate_advantages",
        Edit("gamma * next_values", "next_values"),
        "advantages.discounts-as-given",
    ),
    Mutant(
        "gamma-once",
        f"{REWARDS}:estimate_advantages",
        Edit("gamma * lmbda * last_gae_lam", "lmbda * last_gae_lam"),
        "advantages.discounts-as-given",
    ),
    Mutant(
        "lambda-forgotten",
        f"{REWARDS}:estimate_advantages",
        Edit("gamma * lmbda * last_gae_lam", "gamma * last_gae_lam"),
        "advantages.lambda-zero",
    ),
    Mutant(
        "gamma-for-lambda",
        f"{RECIPE}.train",
        Edit("self._lmbda", "self._gamma"),
        "advantages.definition",
    ),
    Mutant(
        "returns-without-values",
        f"{REWARDS}:estimate_advantages",
        Edit("advantages + values", "advantages"),
        "advantages.returns",
    ),
    Mutant(
        "advantages-in-reverse",
        f"{REWARDS}:estimate_advantages",
        Edit("advantages_reversed[::-1]", "advantages_reversed"),
        "advantages.definition",
    ),
    Mutant(
        "whitened-over-pads",
        f"{REWARDS}:estimate_advantages",
        Edit("whiten(advantages, mask=masks)", "whiten(advantages)"),
        "whitening.keep-mean",
    ),
    Mutant(
        "whitened-with-the-cell-behind",
        f"{RECIPE}.train",
        Edit("~trajectory.response_padding_masks", "~trajectory.value_padding_masks"),
        "whitening.keep-mean",
    ),
    Mutant(
        "pads-of-advantages-left",
        f"{REWARDS}:estimate_advantages",
        Edit("advantages[~masks]", "advantages[~masks & False]"),
        "whitening.masked-cells",
    ),
    Mutant(
        "mean-of-all-cells",
        f"{REWARDS}:whiten",
        Edit("masked_mean(x, mask)", "x.mean()"),
        "whitening.keep-mean",
    ),
    Mutant(
        "variance-about-zero",
        f"{REWARDS}:whiten",
        Edit("masked_var(x - mean, mask)", "masked_var(x, mask)"),
        "whitening.keep-mean",
    ),
    Mutant(
        "divided-by-the-variance",
        f"{REWARDS}:whiten",
        Edit("torch.rsqrt(_a)", "torch.reciprocal(_a)"),
        "whitening.keep-mean",
    ),
    Mutant(
        "no-epsilon",
        f"{REWARDS}:whiten",
        Edit("var + 1e-08", "var"),
        "whitening.equal-numbers",
        why="the clauses about the epsilon fail without this slip as well, for the mean that comes back",
    ),
    Mutant(
        "variance-biased",
        f"{REWARDS}:masked_var",
        Edit("mask_sum / (mask_sum - 1)", "1.0"),
        "whitening.keep-mean",
    ),
    Mutant(
        "squares-of-all-cells",
        f"{REWARDS}:masked_var",
        Edit("masked_mean(centered_values.pow(2), mask)", "masked_mean(centered_values.pow(2), mask >= 0)"),
        "whitening.keep-mean",
    ),
)

OBJECTIVE = (
    Mutant(
        "objective-value-subtracted",
        PPO_LOSS,
        Edit("policy_loss + value_loss * self.value_coeff", "policy_loss - value_loss * self.value_coeff"),
        "objective.value-term",
    ),
    Mutant(
        "objective-value-without-coefficient",
        PPO_LOSS,
        Edit("policy_loss + value_loss * self.value_coeff", "policy_loss + value_loss"),
        "objective.coefficients",
    ),
    Mutant(
        "objective-value-detached",
        PPO_LOSS,
        Edit("policy_loss + value_loss * self.value_coeff", "policy_loss + value_loss.detach() * self.value_coeff"),
        "objective.value-gradient",
    ),
    Mutant(
        "objective-policy-detached",
        PPO_LOSS,
        Edit("policy_loss + value_loss * self.value_coeff", "policy_loss.detach() + value_loss * self.value_coeff"),
        "objective.gradient",
    ),
    Mutant(
        "objective-coefficient-on-the-policy",
        PPO_LOSS,
        Edit("policy_loss + value_loss * self.value_coeff", "policy_loss * self.value_coeff + value_loss"),
        "objective.value-term",
    ),
    Mutant(
        "objective-averaged",
        PPO_LOSS,
        Edit("policy_loss + value_loss * self.value_coeff", "(policy_loss + value_loss * self.value_coeff) / 2"),
        "objective.policy-alone",
    ),
    Mutant(
        "objective-value-coefficient-squared",
        PPO_LOSS,
        Edit("value_loss * self.value_coeff", "value_loss * self.value_coeff**2"),
        "objective.coefficients",
    ),
    Mutant(
        "objective-policy-twice",
        PPO_LOSS,
        Edit("policy_loss + value_loss * self.value_coeff", "2 * policy_loss + value_loss * self.value_coeff"),
        "objective.policy-alone",
    ),
    Mutant(
        "objective-whole-logged-as-policy",
        PPO_LOSS,
        Edit("policy_loss.detach()", "loss.detach()"),
        "objective.parts",
    ),
    Mutant(
        "objective-value-logged-with-its-coefficient",
        PPO_LOSS,
        Edit("value_loss.detach()", "(value_loss * self.value_coeff).detach()"),
        "objective.parts",
    ),
)

BY_THE_MICRO_BATCH = {"step_denominators": "micro-batch"}
"""As it is, so that a slip is seen beside the mean of means."""

STEPS = (
    Mutant(
        "step-of-the-first-slice",
        f"{RECIPE}.train",
        Edit("mini_batch_idxs[j:_a]", "mini_batch_idxs[:self._ppo_backward_batch_size]"),
        "step.micro-batches",
        declares=BY_THE_MICRO_BATCH,
    ),
    Mutant(
        "step-advantages-of-the-first-slice",
        f"{RECIPE}.train",
        Edit("advantages[backward_batch_idxs]", "advantages[:len(backward_batch_idxs)]"),
        "step.micro-batches",
        declares=BY_THE_MICRO_BATCH,
    ),
    Mutant(
        "step-advantages-turned-round",
        f"{RECIPE}.train",
        Edit("advantages[backward_batch_idxs]", "advantages[backward_batch_idxs.flip(0)]"),
        "step.gradient",
    ),
    Mutant(
        "step-without-its-last-slice",
        f"{RECIPE}.train",
        Edit("range(0, self._ppo_batch_size, _a)", "range(0, self._ppo_batch_size - _a, _a)"),
        "step.micro-batches",
        declares=BY_THE_MICRO_BATCH,
    ),
    Mutant(
        "step-gradient-kept",
        f"{RECIPE}.train",
        Edit("self._optimizer.zero_grad(set_to_none=True)", "None"),
        "step.again",
        declares=BY_THE_MICRO_BATCH,
        why="`train` sets gradients to zero as it begins, and each call of the adapter is one of `train`",
    ),
    Mutant(
        "step-made-twice",
        f"{RECIPE}.train",
        Edit("self._optimizer.step()", "[self._optimizer.step() for _ in (0, 1)]"),
        "step.update",
        declares=BY_THE_MICRO_BATCH,
    ),
    Mutant(
        "step-never-made",
        f"{RECIPE}.train",
        Edit("self._optimizer.step()", "None"),
        "step.gradient",
    ),
    Mutant(
        "step-logs-the-last-slice",
        f"{RECIPE}.train",
        Edit("map(sum, zip(*batch_ppo_stats))", "batch_ppo_stats[-1]"),
        "step.metrics",
        declares=BY_THE_MICRO_BATCH,
    ),
    Mutant(
        "step-loss-not-divided",
        f"{RECIPE}.ppo_step",
        Edit("self._gradient_accumulation_steps", "1", nth=1, of=6),
        "step.micro-batches",
        declares=BY_THE_MICRO_BATCH,
    ),
    Mutant(
        "step-logs-undivided",
        f"{RECIPE}.ppo_step",
        Edit("policy_loss / self._gradient_accumulation_steps", "policy_loss"),
        "step.metrics",
        declares=BY_THE_MICRO_BATCH,
    ),
    Mutant(
        "step-without-backward",
        f"{RECIPE}.ppo_step",
        Edit("loss.backward()", "None"),
        "step.gradient",
    ),
)

MUTANTS = LOG_PROBS + ROWS + GENERATING + PPO + WEIGHTS + PACKS + LOSSES + CREDIT + OBJECTIVE + STEPS

"""Slips in TRL 1.16.0, in the functions that its adapter comes to. See mutants.py.

GPT-2 fails most clauses of the actor already, for want of position ids. What only those clauses see is tried with an
adapter that declares Llama alone, which passes them.
"""

from __future__ import annotations

from .mutants import Edit, Mutant

UTILS = "trl.trainer.utils"
GRPO = "trl.trainer.grpo_trainer:GRPOTrainer"
SCORE = f"{GRPO}._get_per_token_logps_and_entropies"
GENERATE = f"{GRPO}._generate_single_turn"
LOSS = f"{GRPO}._compute_loss"
PREPARE = f"{GRPO}._prepare_inputs"
CISPO = {"loss_type": "cispo"}
DR_GRPO = {"loss_type": "dr_grpo"}
GROUPS = f"{GRPO}._generate_and_score_completions"
RLOO_GROUPS = "trl.trainer.rloo_trainer:RLOOTrainer._generate_and_score_completions"
NANSTD = f"{UTILS}:nanstd"
FUSED = f"{UTILS}:add_fused_lm_head._fused_forward"
KERNELS = "trl.kernels.chunked_logprob"
COLLATOR = "trl.trainer.sft_trainer:DataCollatorForLanguageModeling.torch_call"
EXPERIMENTAL = "trl.experimental.utils"
LLAMA = {"architectures": ["llama"]}
GPT2 = {"architectures": ["gpt2"]}
SEQUENCE_MEAN = {"loss_type": "grpo"}
BATCH_MEAN = {"loss_type": "bnpo"}
GET_REWARD = {"get_reward": True}
RLOO = {"trainer": "rloo"}

LOG_PROBS = (
    Mutant(
        "log-prob-multiplied-by-temperature",
        f"{UTILS}:selective_log_softmax",
        Edit("logits / temperature", "logits * temperature"),
        "log-probs.temperature",
    ),
    Mutant(
        "log-prob-turned-round",
        f"{UTILS}:selective_log_softmax",
        Edit("selected_logits - _a", "_a - selected_logits"),
        "log-probs.definition",
    ),
    Mutant(
        "logsumexp-over-positions",
        f"{UTILS}:selective_log_softmax",
        Edit("torch.logsumexp(_a, dim=-1)", "torch.logsumexp(_a, dim=0)"),
        "log-probs.definition",
    ),
    Mutant(
        "entropy-negative",
        f"{UTILS}:entropy_from_logits",
        Edit("-_a.sum(-1)", "_a.sum(-1)"),
        "log-probs.entropy",
    ),
    Mutant(
        "entropy-of-logits",
        f"{UTILS}:entropy_from_logits",
        Edit("torch.exp(logps) * logps", "torch.exp(logps) * chunk"),
        "log-probs.entropy",
    ),
    Mutant(
        "entropy-without-temperature",
        f"{UTILS}:selective_log_softmax_and_entropy",
        Edit("logits / temperature", "logits"),
        "log-probs.entropy",
    ),
)

FUSED_HEAD = (
    Mutant(
        "hidden-states-one-column-late",
        FUSED,
        Edit("_a.last_hidden_state[:, :-1]", "_a.last_hidden_state[:, 1:]"),
        "positions.start-at-zero",
    ),
    Mutant(
        "labels-not-shifted",
        FUSED,
        Edit("labels[:, 1:]", "labels[:, :-1]"),
        "positions.start-at-zero",
    ),
    Mutant(
        "scored-positions-emptied",
        FUSED,
        Edit("_a.masked_fill(~mask, 0)", "_a.masked_fill(mask, 0)"),
        "positions.start-at-zero",
    ),
    Mutant(
        "fused-head-forgets-temperature",
        FUSED,
        Edit("temperature", "1.0"),
        "actor.temperature",
        declares=LLAMA,
    ),
    Mutant(
        "tile-divided-by-inverse-temperature",
        f"{KERNELS}:_torch_transform",
        Edit("z * inv_t", "z / inv_t"),
        "actor.temperature",
        declares=LLAMA,
    ),
    Mutant(
        "tile-without-its-maximum",
        f"{KERNELS}:_forward_tile",
        Edit("z - new_m.unsqueeze(-1)", "z"),
        "positions.start-at-zero",
    ),
    Mutant(
        "fused-entropy-added",
        f"{KERNELS}:ChunkedLogProbFunction.forward",
        Edit("log_z - _a", "log_z + _a"),
        "actor.entropy",
        declares=LLAMA,
    ),
    Mutant(
        "softmax-added-in-backward",
        f"{KERNELS}:_backward_tile",
        Edit("is_target.float() - p", "is_target.float() + p"),
        "actor.gradient",
        declares=LLAMA,
    ),
    Mutant(
        "temperature-forgotten-in-backward",
        f"{KERNELS}:_backward_tile",
        Edit("grad * inv_t", "grad"),
        "actor.gradient",
        declares=LLAMA,
    ),
    Mutant(
        "entropy-subtracted-in-backward",
        f"{KERNELS}:_backward_tile",
        Edit("log_p + _a", "log_p - _a"),
        "actor.entropy-gradient",
        declares=LLAMA,
    ),
)

SCORING = (
    Mutant(
        "padding-scored-and-tokens-not",
        SCORE,
        Edit("attention_mask_batch == 0", "attention_mask_batch != 0"),
        "positions.start-at-zero",
    ),
    Mutant(
        "first-action-not-scored",
        SCORE,
        Edit("labels[:, :-logits_to_keep]", "labels[:, :-logits_to_keep + 1]"),
        "positions.start-at-zero",
    ),
    Mutant(
        "log-probs-from-the-front",
        SCORE,
        Edit("outputs.log_probs[:, -logits_to_keep:]", "outputs.log_probs[:, :logits_to_keep]"),
        "positions.start-at-zero",
    ),
    Mutant(
        "entropy-from-the-front",
        SCORE,
        Edit("outputs.entropy[:, -logits_to_keep:]", "outputs.entropy[:, :logits_to_keep]"),
        "actor.entropy",
        declares=LLAMA,
    ),
    Mutant(
        "attention-mask-all-ones",
        SCORE,
        Edit("attention_mask_batch", "torch.ones_like(input_ids_batch)", nth=2, of=3),
        "actor.garbage-under-mask",
    ),
    Mutant(
        "wrong-dropout-removed",
        f"{UTILS}:disable_dropout_in_model",
        Edit("torch.nn.Dropout", "torch.nn.Dropout1d"),
        "actor.dropout-off",
        options={"disable_dropout": True},
        declares=GPT2,
    ),
)

SEQUENCES = (
    Mutant(
        "prompts-padded-right",
        GENERATE,
        Edit("'left'", "'right'", nth=1, of=3),
        "actor.generate",
    ),
    Mutant(
        "prompt-pads-attended",
        GENERATE,
        Edit("torch.ones_like(t)", "torch.zeros_like(t)"),
        "actor.generate",
    ),
    Mutant(
        "completion-one-column-early",
        GENERATE,
        Edit("prompt_completion_ids[:, prompt_length:]", "prompt_completion_ids[:, prompt_length - 1:]"),
        "actor.generate",
    ),
    Mutant(
        "eos-cut-off",
        GENERATE,
        Edit("sequence_indices <= _a", "sequence_indices < _a"),
        "actor.generate",
    ),
    Mutant(
        "last-eos-instead-of-first",
        GENERATE,
        Edit("is_eos.int().argmax(dim=1)", "is_eos.size(1) - 1 - is_eos.int().fliplr().argmax(dim=1)"),
        "actor.generate",
        why="it shows only where the pad id is a stop id, as a longer completion that ends in pads, and the adapter's "
        "`generate` fills every row with pads: the mask that GRPO makes of its completions is not asked for",
    ),
    Mutant(
        "truncated-before-the-stop",
        f"{EXPERIMENTAL}:truncate_right",
        Edit("idxs > trunc_idxs", "idxs >= trunc_idxs", nth=1, of=2),
        "sequences.tokens-unchanged",
    ),
    Mutant(
        "stop-not-in-the-mask",
        f"{EXPERIMENTAL}:truncate_right",
        Edit("idxs > trunc_idxs", "idxs >= trunc_idxs", nth=2, of=2),
        "sequences.action-mask",
    ),
    Mutant(
        "one-token-after-the-stop",
        f"{EXPERIMENTAL}:truncate_right",
        Edit("idxs > trunc_idxs", "idxs > trunc_idxs + 1", nth=2, of=2),
        "sequences.action-mask",
    ),
    Mutant(
        "last-stop-instead-of-first",
        f"{EXPERIMENTAL}:first_true_indices",
        Edit("row_len * (~bools).type(dtype) + _a", "row_len * (~bools).type(dtype) - _a"),
        "sequences.truncation",
    ),
)

REWARDS_AND_PACKS = (
    Mutant(
        "padded-with-zeros",
        f"{UTILS}:pad",
        Edit("padding_value", "0"),
        "reward.batch-independence",
    ),
    Mutant(
        "rows-one-column-late",
        f"{UTILS}:pad",
        Edit("output_shape[0] - t.shape[0]", "0"),
        "actor.generate",
    ),
    Mutant(
        "reward-at-the-first-pad",
        f"{EXPERIMENTAL}:get_reward",
        Edit("_a - 1 + context_length", "_a + context_length"),
        "reward.last-attended",
        options=GET_REWARD,
    ),
    Mutant(
        "reward-index-without-the-prompt",
        f"{EXPERIMENTAL}:get_reward",
        Edit("_a - 1 + context_length", "_a - 1"),
        "reward.last-attended",
        options=GET_REWARD,
    ),
    Mutant(
        "reward-positions-inclusive",
        f"{EXPERIMENTAL}:get_reward",
        Edit("_a.cumsum(1) - _b", "_a.cumsum(1)"),
        "reward.last-attended",
        options=GET_REWARD,
    ),
    Mutant(
        "pack-positions-from-one",
        COLLATOR,
        Edit("torch.arange(len(ids))", "torch.arange(len(ids)) + 1"),
        "positions.restart",
    ),
    Mutant(
        "pack-boundary-scored",
        COLLATOR,
        Edit("output['position_ids'] == 0", "output['position_ids'] < 0"),
        "packing.boundary",
    ),
    Mutant(
        "pack-second-tokens-not-scored",
        COLLATOR,
        Edit("output['position_ids'] == 0", "output['position_ids'] == 1"),
        "packing.boundary",
    ),
    Mutant(
        "pack-in-reverse",
        COLLATOR,
        Edit("torch.cat(input_ids, dim=0)", "torch.cat(input_ids[::-1], dim=0)"),
        "packing.tokens",
    ),
)

LOSSES = (
    Mutant(
        "ratio-turned-round",
        LOSS,
        Edit("_a - old_per_token_logps", "old_per_token_logps - _a"),
        "policy-loss.ratio",
    ),
    Mutant(
        "ratio-detached",
        LOSS,
        Edit("torch.exp(log_importance_weights)", "torch.exp(log_importance_weights.detach())"),
        "policy-loss.gradient",
    ),
    Mutant(
        "lower-bound-from-above",
        LOSS,
        Edit("1 - self.epsilon_low", "1 - self.epsilon_high", nth=1, of=2),
        "policy-loss.asymmetric-clip",
    ),
    Mutant(
        "upper-bound-from-below",
        LOSS,
        Edit("1 + self.epsilon_high", "1 + self.epsilon_low", nth=1, of=2),
        "policy-loss.asymmetric-clip",
    ),
    Mutant(
        "clip-without-lower-bound",
        LOSS,
        Edit("torch.clamp(coef_1, 1 - _a, 1 + _b)", "torch.clamp(coef_1, max=1 + _b)"),
        "policy-loss.clip",
    ),
    Mutant(
        "larger-surrogate",
        LOSS,
        Edit("torch.min", "torch.max"),
        "policy-loss.clip",
    ),
    Mutant(
        "sign-forgotten",
        LOSS,
        Edit("-torch.min(_a, _b)", "torch.min(_a, _b)"),
        "policy-loss.first-step",
    ),
    Mutant(
        "dual-clip-from-below",
        LOSS,
        Edit("torch.clamp(coef_1, max=self.args.delta)", "torch.clamp(coef_1, min=self.args.delta)"),
        "policy-loss.dual-clip",
    ),
    Mutant(
        "dual-clip-of-the-clipped-ratio",
        LOSS,
        Edit("torch.clamp(coef_1, max=self.args.delta)", "torch.clamp(coef_2, max=self.args.delta)"),
        "policy-loss.dual-clip",
    ),
    Mutant(
        "mask-dropped-in-token-mean",
        LOSS,
        Edit("(_a * mask).sum() / normalizer", "_a.sum() / normalizer"),
        "policy-loss.mask",
    ),
    Mutant(
        "normalizer-counts-cells",
        LOSS,
        Edit("inputs['num_items_in_batch'].clamp(min=1.0)", "mask.numel()"),
        "policy-loss.token-mean",
    ),
    Mutant(
        "normalizer-counts-this-batch",
        LOSS,
        Edit("inputs['num_items_in_batch'].clamp(min=1.0)", "mask.sum().clamp(min=1.0)"),
        "policy-loss.micro-batches",
    ),
    Mutant(
        "normalizer-not-clamped",
        LOSS,
        Edit("inputs['num_items_in_batch'].clamp(min=1.0)", "inputs['num_items_in_batch']"),
        "policy-loss.empty-batch",
    ),
    Mutant(
        "sequence-mean-over-columns",
        LOSS,
        Edit("(_a.sum(-1) / _b.sum(-1).clamp(min=1.0)).mean()", "(_a.sum(0) / _b.sum(0).clamp(min=1.0)).mean()"),
        "policy-loss.sequence-mean",
        options=SEQUENCE_MEAN,
    ),
    Mutant(
        "sequence-sum",
        LOSS,
        Edit("(_a / mask.sum(-1).clamp(min=1.0)).mean()", "_a.mean()"),
        "policy-loss.sequence-mean",
        options=SEQUENCE_MEAN,
    ),
    Mutant(
        "batch-mean-over-cells",
        LOSS,
        Edit("_a.sum() / mask.sum().clamp(min=1.0)", "_a.mean()"),
        "policy-loss.token-mean",
        options=BATCH_MEAN,
    ),
    Mutant(
        "low-clip-counted-for-good-actions",
        LOSS,
        Edit("advantages < 0", "advantages > 0"),
        "policy-loss.clip-fraction",
    ),
    Mutant(
        "clip-fraction-over-cells",
        f"{LOSS}.global_masked_mean",
        Edit("mask.sum().float()", "torch.tensor(float(mask.numel()))"),
        "policy-loss.clip-fraction",
    ),
)

CREDIT = (
    Mutant(
        "kl-arguments-exchanged",
        LOSS,
        Edit("torch.exp(ref_per_token_logps - per_token_logps)", "torch.exp(per_token_logps - ref_per_token_logps)"),
        "kl.k3",
    ),
    Mutant(
        "kl-linear-term-added",
        LOSS,
        Edit("_a - (ref_per_token_logps - per_token_logps)", "_a + (ref_per_token_logps - per_token_logps)"),
        "kl.k3",
    ),
    Mutant(
        "kl-one-forgotten",
        LOSS,
        Edit("_a - (ref_per_token_logps - per_token_logps) - 1", "_a - (ref_per_token_logps - per_token_logps)"),
        "kl.k3",
    ),
    Mutant(
        "kl-not-weighted",
        LOSS,
        Edit("per_token_kl * coef_1", "per_token_kl"),
        "kl.gradient",
    ),
    Mutant(
        "kl-weighted-by-a-constant",
        LOSS,
        Edit("per_token_kl * coef_1", "per_token_kl * coef_1.detach()"),
        "kl.gradient",
    ),
    Mutant(
        "kl-taken-off-the-loss",
        LOSS,
        Edit("per_token_loss + self.beta * per_token_kl", "per_token_loss - self.beta * per_token_kl"),
        "kl.k3",
    ),
    Mutant(
        "kl-detached",
        LOSS,
        Edit("self.beta * per_token_kl", "self.beta * per_token_kl.detach()"),
        "kl.gradient",
    ),
    Mutant(
        "kl-of-the-row",
        LOSS,
        Edit("self.beta * per_token_kl", "self.beta * per_token_kl.mean(-1, keepdim=True)"),
        "kl.own-token",
    ),
    Mutant(
        "groups-interleaved",
        GROUPS,
        Edit(
            "torch.nanmean(rewards.view(-1, num_generations), dim=1)",
            "torch.nanmean(rewards.view(num_generations, -1), dim=0)",
        ),
        "group-advantages.mean",
    ),
    Mutant(
        "mean-laid-on-the-rows-in-turn",
        GROUPS,
        Edit(
            "mean_grouped_rewards.repeat_interleave(num_generations, dim=0)",
            "mean_grouped_rewards.repeat(num_generations)",
        ),
        "group-advantages.mean",
    ),
    Mutant(
        "deviation-laid-on-the-rows-in-turn",
        GROUPS,
        Edit("std_rewards.repeat_interleave(num_generations, dim=0)", "std_rewards.repeat(num_generations)"),
        "group-advantages.group-std",
    ),
    Mutant(
        "mean-of-the-batch",
        GROUPS,
        Edit(
            "torch.nanmean(rewards.view(-1, num_generations), dim=1)",
            "torch.nanmean(rewards).expand(len(rewards) // num_generations)",
        ),
        "group-advantages.mean",
    ),
    Mutant(
        "mean-added",
        GROUPS,
        Edit("rewards - mean_grouped_rewards", "rewards + mean_grouped_rewards"),
        "group-advantages.mean",
    ),
    Mutant(
        "group-deviation-of-the-batch",
        GROUPS,
        Edit(
            "nanstd(rewards.view(-1, num_generations), dim=1)",
            "nanstd(rewards).expand(len(rewards) // num_generations)",
        ),
        "group-advantages.group-std",
    ),
    Mutant(
        "batch-deviation-of-centered-scores",
        GROUPS,
        Edit("nanstd(rewards).expand_as(rewards)", "nanstd(rewards - mean_grouped_rewards).expand_as(rewards)", of=2),
        "group-advantages.batch-std",
    ),
    Mutant(
        "divided-where-not-asked",
        GROUPS,
        Edit("self.scale_rewards != 'none'", "self.scale_rewards != 'batch'"),
        "group-advantages.mean",
    ),
    Mutant(
        "deviation-alone",
        GROUPS,
        Edit("std_rewards + 0.0001", "std_rewards", of=2),
        "group-advantages.epsilon",
    ),
    Mutant(
        "smaller-epsilon",
        GROUPS,
        Edit("std_rewards + 0.0001", "std_rewards + 1e-08", of=2),
        "group-advantages.epsilon",
    ),
    Mutant(
        "mean-over-deviation",
        GROUPS,
        Edit("advantages / (std_rewards + 0.0001)", "rewards / (std_rewards + 0.0001)"),
        "group-advantages.shift",
    ),
    Mutant(
        "first-row-left-out",
        GROUPS,
        Edit("self.accelerator.process_index * len(prompts)", "self.accelerator.process_index * len(prompts) + 1"),
        "group-advantages.mean",
    ),
    Mutant(
        "biased-variance",
        NANSTD,
        Edit("count / (count - 1)", "count / count"),
        "group-advantages.ddof",
    ),
    Mutant(
        "variance-for-deviation",
        NANSTD,
        Edit("torch.sqrt(variance)", "variance"),
        "group-advantages.group-std",
    ),
    Mutant(
        "deviation-not-centered",
        NANSTD,
        Edit("(tensor - mean) ** 2", "tensor ** 2"),
        "group-advantages.group-std",
    ),
    Mutant(
        "deviation-of-two-unknown",
        NANSTD,
        Edit("count > 1", "count > 2"),
        "group-advantages.group-std",
    ),
    Mutant(
        "rewards-of-whole-numbers",
        f"{GRPO}._calculate_rewards",
        Edit(
            "torch.tensor(output_reward_func, dtype=torch.float32, device=device)",
            "torch.tensor(output_reward_func, device=device).long()",
            of=2,
        ),
        "group-advantages.mean",
    ),
    Mutant(
        "unscorable-advantage-kept",
        GROUPS,
        Edit("torch.nan_to_num(advantages, nan=0.0)", "advantages"),
        "group-advantages.nan-in-another-group",
        why="only a row whose score is NaN has a NaN there, and of its group nothing is asked: no clause says what a "
        "response gets that could not be scored",
    ),
    Mutant(
        "penalty-turned-round",
        RLOO_GROUPS,
        Edit("old_per_token_logps - ref_per_token_logps", "ref_per_token_logps - old_per_token_logps"),
        "kl.k1",
        options=RLOO,
    ),
    Mutant(
        "penalty-averaged",
        RLOO_GROUPS,
        Edit("(per_token_kl * completion_mask).sum(-1)", "(per_token_kl * completion_mask).mean(-1)"),
        "kl.k1",
        options=RLOO,
    ),
    Mutant(
        "penalty-added",
        RLOO_GROUPS,
        Edit("rewards - self.beta * kl", "rewards + self.beta * kl"),
        "kl.k1",
        options=RLOO,
    ),
    Mutant(
        "penalty-of-a-token-left-out",
        RLOO_GROUPS,
        Edit("(per_token_kl * completion_mask).sum(-1)", "(per_token_kl * completion_mask)[:, 1:].sum(-1)"),
        "kl.k1",
        options=RLOO,
    ),
    Mutant(
        "own-score-in-the-baseline",
        RLOO_GROUPS,
        Edit(
            "(grouped_sum - grouped_rewards) / (scorable_counts - 1)",
            "grouped_sum / scorable_counts + 0 * grouped_rewards",
        ),
        "group-advantages.leave-one-out",
        options=RLOO,
    ),
    Mutant(
        "baseline-over-all",
        RLOO_GROUPS,
        Edit(
            "(grouped_sum - grouped_rewards) / (scorable_counts - 1)",
            "(grouped_sum - grouped_rewards) / scorable_counts",
        ),
        "group-advantages.leave-one-out",
        options=RLOO,
    ),
    Mutant(
        "baseline-added",
        RLOO_GROUPS,
        Edit("rewards - baselines", "rewards + baselines"),
        "group-advantages.leave-one-out",
        options=RLOO,
    ),
    Mutant(
        "rloo-groups-interleaved",
        RLOO_GROUPS,
        Edit("rewards.view(-1, num_generations)", "rewards.view(num_generations, -1).T"),
        "group-advantages.leave-one-out",
        options=RLOO,
    ),
    Mutant(
        "rloo-sum-over-prompts",
        RLOO_GROUPS,
        Edit(
            "torch.nansum(grouped_rewards, dim=1, keepdim=True)", "torch.nansum(grouped_rewards, dim=0, keepdim=True)"
        ),
        "group-advantages.leave-one-out",
        options=RLOO,
    ),
    Mutant(
        "rloo-always-normalized",
        RLOO_GROUPS,
        Edit("self.normalize_advantages", "not self.normalize_advantages"),
        "group-advantages.leave-one-out",
        options=RLOO,
    ),
)

SURROGATES = (
    Mutant(
        "sequence-sum-of-log-ratios",
        LOSS,
        Edit("(log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)", "(log_ratio * mask).sum(-1)"),
        "policy-loss.sequence-ratio",
    ),
    Mutant(
        "sequence-mean-over-the-width",
        LOSS,
        Edit("(log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)", "(log_ratio * mask).mean(-1)"),
        "policy-loss.sequence-ratio",
    ),
    Mutant(
        "sequence-ratio-without-mask",
        LOSS,
        Edit("log_ratio * mask", "log_ratio"),
        "policy-loss.sequence-ratio-mask",
    ),
    Mutant(
        "sequence-level-ignored",
        LOSS,
        Edit("self.importance_sampling_level == 'sequence'", "log_ratio is None"),
        "policy-loss.sequence-ratio",
    ),
    Mutant(
        "sequence-ratio-of-one-row",
        LOSS,
        Edit("log_importance_weights.unsqueeze(-1)", "log_importance_weights.mean().reshape(1, 1)"),
        "policy-loss.sequence-ratio",
    ),
    Mutant(
        "cispo-weight-with-graph",
        LOSS,
        Edit("torch.clamp(coef_1, max=self.epsilon_high).detach()", "torch.clamp(coef_1, max=self.epsilon_high)"),
        "policy-loss.cispo-gradient",
        options=CISPO,
    ),
    Mutant(
        "cispo-cap-of-one-more",
        LOSS,
        Edit(
            "torch.clamp(coef_1, max=self.epsilon_high).detach()",
            "torch.clamp(coef_1, max=1 + self.epsilon_high).detach()",
        ),
        "policy-loss.cispo-bounds",
        options=CISPO,
    ),
    Mutant(
        "cispo-cap-from-below",
        LOSS,
        Edit(
            "torch.clamp(coef_1, max=self.epsilon_high).detach()", "torch.clamp(coef_1, min=self.epsilon_high).detach()"
        ),
        "policy-loss.cispo",
        options=CISPO,
    ),
    Mutant(
        "cispo-without-log-prob",
        LOSS,
        Edit("-clamped_ratios * advantages * per_token_logps", "-clamped_ratios * advantages * log_ratio"),
        "policy-loss.cispo",
        options=CISPO,
    ),
    Mutant(
        "cispo-ascends",
        LOSS,
        Edit("-clamped_ratios * advantages", "clamped_ratios * advantages"),
        "policy-loss.cispo",
        options=CISPO,
    ),
    Mutant(
        "length-of-the-batch",
        LOSS,
        Edit("self.max_completion_length", "per_token_loss.size(1)"),
        "policy-loss.constant-length",
        options=DR_GRPO,
    ),
    Mutant(
        "rows-forgotten",
        LOSS,
        Edit("per_token_loss.size(0) * self.max_completion_length", "self.max_completion_length"),
        "policy-loss.constant-length",
        options=DR_GRPO,
    ),
    Mutant(
        "length-of-the-actions",
        LOSS,
        Edit("per_token_loss.size(0) * self.max_completion_length", "mask.sum().clamp(min=1.0)"),
        "policy-loss.constant-length",
        options=DR_GRPO,
    ),
)

CORRECTION = (
    Mutant(
        "weights-turned-round",
        GROUPS,
        Edit(
            "old_per_token_logps - sampling_per_token_logps",
            "sampling_per_token_logps - old_per_token_logps",
            nth=1,
            of=2,
        ),
        "off-policy-correction.token",
    ),
    Mutant(
        "weights-without-mask",
        GROUPS,
        Edit(
            "(old_per_token_logps - sampling_per_token_logps) * mask", "old_per_token_logps - sampling_per_token_logps"
        ),
        "off-policy-correction.mask",
    ),
    Mutant(
        "weights-without-the-mask-of-tools",
        GROUPS,
        Edit("completion_mask if tool_mask is None else completion_mask * tool_mask", "completion_mask", nth=2, of=2),
        "off-policy-correction.holes",
    ),
    Mutant(
        "weights-of-none-are-nan",
        GROUPS,
        Edit("torch.nan_to_num(per_token_logps_diff, nan=0.0)", "per_token_logps_diff"),
        "off-policy-correction.nan-of-the-engine",
    ),
    Mutant(
        "weights-of-none-are-zero",
        GROUPS,
        Edit("torch.nan_to_num(per_token_logps_diff, nan=0.0)", "torch.nan_to_num(per_token_logps_diff, nan=-1e4)"),
        "off-policy-correction.nan-of-the-engine",
    ),
    Mutant(
        "weights-of-sequences-by-the-mean",
        GROUPS,
        Edit("per_token_logps_diff.sum(dim=-1, keepdim=True)", "per_token_logps_diff.mean(dim=-1, keepdim=True)"),
        "off-policy-correction.sequence-product",
    ),
    Mutant(
        "weights-along-columns",
        GROUPS,
        Edit("per_token_logps_diff.sum(dim=-1, keepdim=True)", "per_token_logps_diff.sum(dim=-1)"),
        "corrected-loss.square",
    ),
    Mutant(
        "weights-of-sequences-masked-alone",
        GROUPS,
        Edit("['sequence_mask', 'sequence_truncate']", "['sequence_mask']"),
        "off-policy-correction.sequence-product",
    ),
    Mutant(
        "weights-by-the-log-ratio",
        GROUPS,
        Edit("torch.exp(logps_diff)", "1 + logps_diff"),
        "off-policy-correction.token",
    ),
    Mutant(
        "weights-clamped-at-ten",
        GROUPS,
        Edit("torch.exp(logps_diff)", "torch.exp(logps_diff.clamp(max=10.0))"),
        "off-policy-correction.log-clamp",
    ),
    Mutant(
        "weights-held-from-above-alone",
        GROUPS,
        Edit(
            "torch.clamp(vllm_importance_sampling_ratio, min=_a, max=_b)",
            "torch.clamp(vllm_importance_sampling_ratio, max=_b)",
        ),
        "off-policy-correction.truncation-below",
    ),
    Mutant(
        "weights-held-at-one-more",
        GROUPS,
        Edit(
            "torch.clamp(vllm_importance_sampling_ratio, min=_a, max=_b)",
            "torch.clamp(vllm_importance_sampling_ratio, min=_a, max=1 + _b)",
        ),
        "off-policy-correction.truncation",
    ),
    Mutant(
        "band-of-both-sides",
        GROUPS,
        Edit("(vllm_importance_sampling_ratio < _a) | _b", "(vllm_importance_sampling_ratio < _a) & _b"),
        "off-policy-correction.band",
    ),
    Mutant(
        "band-without-its-upper-bound",
        GROUPS,
        Edit("vllm_importance_sampling_ratio > max_val", "vllm_importance_sampling_ratio >= max_val"),
        "off-policy-correction.bounds",
    ),
    Mutant(
        "band-without-its-lower-bound",
        GROUPS,
        Edit("vllm_importance_sampling_ratio < min_val", "vllm_importance_sampling_ratio <= min_val"),
        "off-policy-correction.bounds",
    ),
    Mutant(
        "band-fills-in-one",
        GROUPS,
        Edit(
            "vllm_importance_sampling_ratio.masked_fill(_a, value=0.0)",
            "vllm_importance_sampling_ratio.masked_fill(_a, value=1.0)",
        ),
        "off-policy-correction.band",
    ),
    Mutant(
        "weights-not-multiplied",
        LOSS,
        Edit("per_token_loss * inputs['importance_sampling_ratio']", "per_token_loss"),
        "corrected-loss.token-weights",
    ),
    Mutant(
        "weights-squared",
        LOSS,
        Edit(
            "per_token_loss * inputs['importance_sampling_ratio']",
            "per_token_loss * inputs['importance_sampling_ratio'] ** 2",
        ),
        "corrected-loss.token-weights",
    ),
)

STEPS = (
    Mutant(
        "step-kl-without-beta",
        LOSS,
        Edit("per_token_loss + self.beta * per_token_kl", "per_token_loss + per_token_kl"),
        "objective.coefficients",
    ),
    Mutant(
        "step-kl-correction-clipped",
        LOSS,
        Edit("per_token_kl * coef_1", "per_token_kl * coef_1.clamp(0.8, 1.2)"),
        "objective.kl-correction",
    ),
    Mutant(
        "step-entropy-added",
        LOSS,
        Edit("loss - apply_coef * entropy_loss", "loss + apply_coef * entropy_loss"),
        "objective.entropy-term",
    ),
    Mutant(
        "step-entropy-detached",
        LOSS,
        Edit("loss - apply_coef * entropy_loss", "loss - apply_coef * entropy_loss.detach()"),
        "objective.entropy-gradient",
    ),
    Mutant(
        "step-entropy-over-every-cell",
        LOSS,
        Edit("entropies * effective_mask", "entropies", nth=1, of=2),
        "objective.mask",
    ),
    Mutant(
        "step-entropy-summed",
        LOSS,
        Edit(
            "(entropies * effective_mask).sum() / effective_mask.sum().clamp(min=1.0)",
            "(entropies * effective_mask).sum()",
        ),
        "objective.entropy-term",
    ),
)

WHOLE_STEPS = (
    Mutant(
        "whole-step-accumulation-forgotten",
        LOSS,
        Edit(
            "_a * self.current_gradient_accumulation_steps / self.args.steps_per_generation",
            "_a / self.args.steps_per_generation",
        ),
        "step.micro-batches",
    ),
    Mutant(
        "whole-step-generation-not-cut",
        LOSS,
        Edit("_a * _b / self.args.steps_per_generation", "_a * _b"),
        "step.micro-batches",
    ),
    Mutant(
        "whole-step-of-the-first-slice",
        PREPARE,
        Edit("self._step % self.args.steps_per_generation", "0"),
        "step.micro-batches",
    ),
    Mutant(
        "whole-step-of-the-last-slice",
        PREPARE,
        Edit("self._step % self.args.steps_per_generation", "-1"),
        "step.micro-batches",
    ),
    Mutant(
        "whole-step-counts-every-token",
        GROUPS,
        Edit("loss_mask.sum()", "completion_mask.sum()"),
        "step.empty-row",
    ),
    Mutant(
        "whole-step-trains-tools",
        LOSS,
        Edit("completion_mask * inputs['tool_mask']", "completion_mask"),
        "step.empty-row",
    ),
    Mutant(
        "whole-step-old-log-probs-lost",
        LOSS,
        Edit("inputs.get('old_per_token_logps')", "None"),
        "step.clip",
    ),
    Mutant(
        "whole-step-old-log-probs-never-taken",
        GROUPS,
        Edit("self.args.gradient_accumulation_steps % generate_every != 0", "False"),
        "step.clip",
    ),
    Mutant(
        "whole-step-entropy-not-averaged",
        LOSS,
        Edit("_a / accumulation_factor", "_a"),
        "step.entropy-term",
    ),
    Mutant(
        "whole-step-sequence-means-added-up",
        LOSS,
        Edit("loss / normalizer", "loss", nth=1, of=4),
        "step.micro-batches",
        SEQUENCE_MEAN,
    ),
    Mutant(
        "whole-step-batch-means-added-up",
        LOSS,
        Edit("loss / normalizer", "loss", nth=2, of=4),
        "step.micro-batches",
        BATCH_MEAN,
    ),
    Mutant(
        "whole-step-constant-lengths-added-up",
        LOSS,
        Edit("loss / normalizer", "loss", nth=3, of=4),
        "step.micro-batches",
        DR_GRPO,
    ),
)

MUTANTS = (
    *(LOG_PROBS + FUSED_HEAD + SCORING + SEQUENCES + REWARDS_AND_PACKS),
    *(LOSSES + SURROGATES + CREDIT + CORRECTION + STEPS + WHOLE_STEPS),
)

"""Slips in verl 0.9.1, in the functions that its adapter comes to. See mutants.py.

What only some mode comes to is tried in that mode.
"""

from __future__ import annotations

from .mutants import Edit, Mutant

FUNCTIONAL = "verl.utils.torch_functional"
LOG_PROB = f"{FUNCTIONAL}:logprobs_from_logits_v2"
ENTROPY = f"{FUNCTIONAL}:entropy_from_logits"
CHUNKED_ENTROPY = f"{FUNCTIONAL}:entropy_from_logits_with_chunking"
RESPONSE_MASK = f"{FUNCTIONAL}:get_response_mask"
POSITIONS = "verl.utils.model:compute_position_id_with_mask"
PADDING = "verl.workers.utils.padding"
TO_NESTED = f"{PADDING}:left_right_2_no_padding"
TO_PADDED = f"{PADDING}:no_padding_2_padding"
UNPAD = "verl.utils.attention_utils:_fallback_unpad_input"
ENGINE = "verl.workers.engine.fsdp.transformer_impl"
STATIC_PAD = "verl.workers.engine.utils:pad_packed_inputs"
BUILD = f"{ENGINE}:FSDPEngine._build_module"
INPUTS = f"{ENGINE}:FSDPEngineWithLMHead.prepare_model_inputs"
OUTPUTS = f"{ENGINE}:FSDPEngineWithLMHead.prepare_model_outputs"
STEP = f"{ENGINE}:FSDPEngineWithLMHead.forward_step"
VALUES = f"{ENGINE}:FSDPEngineWithValueHead.prepare_model_outputs"
ALGORITHMS = "verl.trainer.ppo.core_algos"
AGGREGATE = f"{ALGORITHMS}:agg_loss"
POLICY_LOSS = f"{ALGORITHMS}:compute_policy_loss_vanilla"
GSPO = f"{ALGORITHMS}:compute_policy_loss_gspo"
CISPO = f"{ALGORITHMS}:compute_policy_loss_cispo"
GPG = f"{ALGORITHMS}:compute_policy_loss_gpg"
VALUE_LOSS = f"{ALGORITHMS}:compute_value_loss"
KL = f"{ALGORITHMS}:kl_penalty_forward"
KL_PLUS = f"{ALGORITHMS}:kl_penalty"
PLACE_SCORES = "verl.experimental.reward_loop.reward_manager.base:RewardManagerBase.assemble_rm_scores"
RAY_TRAINER = "verl.trainer.ppo.ray_trainer"
PENALTY = f"{RAY_TRAINER}:apply_kl_penalty"
PPO_LOSS = "verl.workers.utils.losses:ppo_loss"
HELPER = "verl.trainer.ppo.rollout_corr_helper"
TO_BATCH = f"{HELPER}:compute_rollout_correction_and_add_to_batch"
CORRECTED = f"{HELPER}:compute_rollout_correction_and_rejection_mask"
WEIGHTS = f"{HELPER}:compute_rollout_correction_weights"
REJECTION = f"{HELPER}:compute_rollout_rejection_mask"
ESTIMATE = f"{RAY_TRAINER}:compute_advantage"
SESSIONS = "verl.trainer.ppo.v1.utils:compute_advantage_for_multi_trajectories"
GAE = f"{ALGORITHMS}:compute_gae_advantage_return"
REINFORCE_PLUS_PLUS = f"{ALGORITHMS}:compute_reinforce_plus_plus_outcome_advantage"
GRPO = f"{ALGORITHMS}:compute_grpo_outcome_advantage"
RLOO = f"{ALGORITHMS}:compute_rloo_outcome_advantage"
WHITEN = f"{FUNCTIONAL}:masked_whiten"
VARIANCE = f"{FUNCTIONAL}:masked_var"
MASKED_MEAN = f"{FUNCTIONAL}:masked_mean"
MASKED_SUM = f"{FUNCTIONAL}:masked_sum"
PADDED = {"remove_padding": False}
STATIC = {"pad_to": 8}
CHUNKS = {"chunked_entropy": True}
PLUS = {"kl_plus": True}
REJECTS = {"rejection": True}

LOG_PROBS = (
    Mutant(
        "log-prob-turned-round",
        LOG_PROB,
        Edit("logits_labels - logsumexp_values", "logsumexp_values - logits_labels"),
        "log-probs.definition",
    ),
    Mutant(
        "logsumexp-over-positions",
        LOG_PROB,
        Edit("torch.logsumexp(logit, dim=-1)", "torch.logsumexp(logit, dim=0)"),
        "log-probs.definition",
    ),
    Mutant(
        "labels-of-the-first-row",
        LOG_PROB,
        Edit("labels.unsqueeze(-1)", "labels[:1].expand_as(labels).unsqueeze(-1)"),
        "log-probs.definition",
    ),
    Mutant(
        "half-precision-softmax-over-positions",
        LOG_PROB,
        Edit("F.log_softmax(row_logits, dim=-1)", "F.log_softmax(row_logits, dim=0)"),
        "log-probs.float32",
        why="rows of half-precision logits are handed to it by `log-probs.float32` and `log-probs.gradient` alone, "
        "and both fail without it, in the same quantities: it takes such a softmax in half precision",
    ),
    Mutant(
        "entropy-added",
        ENTROPY,
        Edit("_a - torch.sum(pd * logits, dim=-1)", "_a + torch.sum(pd * logits, dim=-1)"),
        "log-probs.entropy",
    ),
    Mutant(
        "entropy-of-probabilities",
        ENTROPY,
        Edit("pd * logits", "pd * pd"),
        "log-probs.entropy",
    ),
    Mutant(
        "entropy-softmax-over-positions",
        ENTROPY,
        Edit("torch.nn.functional.softmax(logits, dim=-1)", "torch.nn.functional.softmax(logits, dim=0)"),
        "log-probs.entropy",
    ),
    Mutant(
        "last-chunk-forgotten",
        CHUNKED_ENTROPY,
        Edit("range(0, logits.shape[0], chunk_size)", "range(0, logits.shape[0] - 1, chunk_size)"),
        "log-probs.entropy",
        options=CHUNKS,
    ),
    Mutant(
        "chunk-one-row-short",
        CHUNKED_ENTROPY,
        Edit("logits[i:i + chunk_size]", "logits[i:i + chunk_size - 1]"),
        "log-probs.entropy",
        options=CHUNKS,
    ),
    Mutant(
        "chunks-in-half-precision",
        CHUNKED_ENTROPY,
        Edit("_a.float()", "_a"),
        "log-probs.entropy-float32",
        options=CHUNKS,
    ),
    Mutant(
        "chunk-without-its-normalizer",
        CHUNKED_ENTROPY,
        Edit("torch.logsumexp(logits_chunk, dim=-1)", "torch.amax(logits_chunk, dim=-1)"),
        "log-probs.entropy",
        options=CHUNKS,
    ),
)

MASKS_AND_POSITIONS = (
    Mutant(
        "stop-token-not-an-action",
        RESPONSE_MASK,
        Edit("_a - eos_mask", "_a"),
        "sequences.action-mask",
    ),
    Mutant(
        "stops-counted-across-rows",
        RESPONSE_MASK,
        Edit("eos_mask.cumsum(dim=1)", "eos_mask.cumsum(dim=0)"),
        "sequences.rows-independent",
    ),
    Mutant(
        "second-stop-ends",
        RESPONSE_MASK,
        Edit("_a.eq(0)", "_a.le(1)"),
        "sequences.action-mask",
    ),
    Mutant(
        "only-the-first-stop-id",
        RESPONSE_MASK,
        Edit(
            "torch.tensor(eos_token, device=response_id.device)",
            "torch.tensor(eos_token[:1], device=response_id.device)",
        ),
        "sequences.stop-set",
    ),
    Mutant(
        "positions-from-one",
        POSITIONS,
        Edit("_a - 1", "_a"),
        "positions.cumsum",
    ),
    Mutant(
        "positions-across-rows",
        POSITIONS,
        Edit("torch.cumsum(mask, dim=-1)", "torch.cumsum(mask, dim=0)"),
        "positions.cumsum",
    ),
    Mutant(
        "positions-of-columns",
        POSITIONS,
        Edit("torch.cumsum(mask, dim=-1)", "torch.cumsum(torch.ones_like(mask), dim=-1)"),
        "positions.cumsum",
    ),
    Mutant(
        "positions-of-pads-negative",
        POSITIONS,
        Edit("torch.clip(_a, min=0, max=None)", "_a"),
        "positions.pads",
    ),
)

PADDING_HELPERS = (
    Mutant(
        "positions-from-the-first-columns",
        TO_NESTED,
        Edit("curr_pos_ids[curr_mask]", "curr_pos_ids[:curr_mask.sum()]"),
        "actor.padding-invariance",
    ),
    Mutant(
        "positions-of-the-first-row",
        TO_NESTED,
        Edit("position_ids[i]", "position_ids[0]"),
        "packing.equivalence",
    ),
    Mutant(
        "columns-instead-of-rows-unpadded",
        UNPAD,
        Edit("all_masks.flatten()", "all_masks.T.flatten()"),
        "actor.log-probs",
    ),
    Mutant(
        "lengths-of-columns",
        UNPAD,
        Edit("all_masks.sum(dim=-1, dtype=torch.int32)", "all_masks.sum(dim=0, dtype=torch.int32)"),
        "actor.log-probs",
    ),
    Mutant(
        "pads-kept",
        UNPAD,
        Edit("all_masks.flatten()", "torch.ones_like(all_masks).flatten()"),
        "actor.garbage-under-mask",
    ),
    Mutant(
        "outputs-one-column-late",
        TO_PADDED,
        Edit("values[seq_offset - resp_len - 1:seq_offset - 1]", "values[seq_offset - resp_len:seq_offset]"),
        "actor.log-probs",
    ),
    Mutant(
        "outputs-from-the-front",
        TO_PADDED,
        Edit("values[seq_offset - resp_len - 1:seq_offset - 1]", "values[:resp_len]"),
        "actor.log-probs",
    ),
    Mutant(
        "responses-pushed-right",
        TO_PADDED,
        Edit("(*skip_padding, 0, pad_size)", "(*skip_padding, pad_size, 0)"),
        "actor.log-probs",
    ),
    Mutant(
        "rows-that-end-in-reverse",
        TO_PADDED,
        Edit("sequence_lens.cumsum(dim=0)", "sequence_lens.flip(0).cumsum(dim=0)"),
        "actor.log-probs",
    ),
    Mutant(
        "attended-as-the-shortest-row",
        f"{PADDING}:build_attention_mask_from_nested",
        Edit("positions < seq_lens.unsqueeze(1)", "positions < seq_lens.min()"),
        "actor.log-probs",
        options=PADDED,
    ),
)

ENGINE_INPUTS = (
    Mutant(
        "labels-rolled-the-other-way",
        INPUTS,
        Edit("torch.roll(input_ids_rmpad, shifts=-1, dims=1)", "torch.roll(input_ids_rmpad, shifts=1, dims=1)"),
        "actor.log-probs",
    ),
    Mutant(
        "labels-rolled-across-rows",
        INPUTS,
        Edit("torch.roll(input_ids_rmpad, shifts=-1, dims=1)", "torch.roll(input_ids_rmpad, shifts=-1, dims=0)"),
        "actor.log-probs",
    ),
    Mutant(
        "padded-labels-rolled-the-other-way",
        INPUTS,
        Edit("torch.roll(input_ids.values(), shifts=-1, dims=0)", "torch.roll(input_ids.values(), shifts=1, dims=0)"),
        "actor.log-probs",
        options=PADDED,
    ),
    Mutant(
        "positions-run-on-through-a-pack",
        INPUTS,
        Edit("position_ids.values().unsqueeze(0)", "torch.arange(len(position_ids.values())).unsqueeze(0)"),
        "packing.isolation",
    ),
    Mutant(
        "positions-of-a-pack-forgotten",
        INPUTS,
        Edit(
            "{'input_ids': _a, 'attention_mask': None, 'position_ids': _b}", "{'input_ids': _a, 'attention_mask': None}"
        ),
        "packing.isolation",
    ),
    Mutant(
        "pack-attended-as-one-row",
        INPUTS,
        Edit(
            "{'input_ids': _a, 'attention_mask': None, 'position_ids': _b}",
            "{'input_ids': _a, 'attention_mask': torch.ones_like(_a), 'position_ids': _b}",
        ),
        "packing.isolation",
    ),
    Mutant(
        "pack-with-a-cache",
        STEP,
        Edit("self.module(**model_inputs, use_cache=False)", "self.module(**model_inputs, use_cache=True)"),
        "packing.isolation",
    ),
    Mutant(
        "padded-rows-without-a-mask",
        INPUTS,
        Edit(
            "{'input_ids': _a, 'attention_mask': attention_mask, 'position_ids': _b}",
            "{'input_ids': _a, 'position_ids': _b}",
        ),
        "actor.garbage-under-mask",
        options=PADDED,
        why="no legal input shows it: the engine pads on the right, where causal attention does not look",
    ),
    Mutant(
        "padded-positions-doubled",
        INPUTS,
        Edit(
            "torch.nested.to_padded_tensor(position_ids, padding=0, output_size=_a)",
            "torch.nested.to_padded_tensor(position_ids, padding=0, output_size=_a) * 2",
            nth=2,
            of=2,
        ),
        "actor.log-probs",
        options=PADDED,
    ),
    Mutant(
        "static-pads-in-front",
        STATIC_PAD,
        Edit("(0, pad_size)", "(pad_size, 0)"),
        "actor.log-probs",
        options=STATIC,
    ),
    Mutant(
        "positions-of-static-pads-in-front",
        STATIC_PAD,
        Edit("(position_ids_rmpad, pad_position_ids)", "(pad_position_ids, position_ids_rmpad)"),
        "actor.log-probs",
        options=STATIC,
    ),
    Mutant(
        "static-pad-of-a-whole-bucket-short",
        f"{ENGINE}:FSDPEngine._get_packed_pad_size",
        Edit("ceildiv(packed_length, bucket)", "(packed_length // bucket)"),
        "actor.log-probs",
        options=STATIC,
    ),
)

ENGINE_OUTPUTS = (
    Mutant(
        "logits-multiplied-by-temperature",
        f"{ENGINE}:_scale_logits_by_temperature",
        Edit("logits / _a", "logits * _a"),
        "actor.temperature",
    ),
    Mutant(
        "temperature-only-below-one",
        f"{ENGINE}:_is_scalar_unit_temperature",
        Edit("float(temperature) == 1.0", "float(temperature) >= 1.0"),
        "actor.temperature",
    ),
    Mutant(
        "entropy-without-temperature",
        OUTPUTS,
        Edit(
            "self.compute_entropy_from_logits(logits_rmpad)",
            "self.compute_entropy_from_logits(output.logits.squeeze(0))",
        ),
        "actor.entropy",
    ),
    Mutant(
        "padded-entropy-without-temperature",
        OUTPUTS,
        Edit("verl_F.entropy_from_logits(logits)", "verl_F.entropy_from_logits(output.logits)"),
        "actor.entropy",
        options=PADDED,
    ),
    Mutant(
        "log-probs-of-a-pack-reversed",
        OUTPUTS,
        Edit(
            "torch.nested.nested_tensor_from_jagged(log_probs, cu_seqlens)",
            "torch.nested.nested_tensor_from_jagged(log_probs.flip(0), cu_seqlens)",
            nth=1,
            of=3,
        ),
        "actor.log-probs",
    ),
    Mutant(
        "entropy-of-a-pack-one-late",
        OUTPUTS,
        Edit(
            "torch.nested.nested_tensor_from_jagged(entropy_rmpad, cu_seqlens)",
            "torch.nested.nested_tensor_from_jagged(entropy_rmpad.roll(1), cu_seqlens)",
            nth=1,
            of=2,
        ),
        "actor.entropy",
    ),
    Mutant(
        "padded-labels-not-shifted",
        OUTPUTS,
        Edit("input_ids_rmpad_rolled", "input_ids.values()", nth=4, of=4),
        "actor.log-probs",
        options=PADDED,
    ),
    Mutant(
        "padded-entropy-of-the-wrong-rows",
        OUTPUTS,
        Edit("torch.cat([t for t in entropy.unbind()])", "torch.cat([t for t in entropy.unbind()][::-1])"),
        "actor.entropy",
        options=PADDED,
    ),
    Mutant(
        "static-pads-stripped-from-the-front",
        f"{ENGINE}:FSDPEngine._gather_and_unpad_packed",
        Edit("tensor[:-pad_size]", "tensor[pad_size:]"),
        "actor.log-probs",
        options=STATIC,
    ),
    Mutant(
        "values-of-a-pack-one-late",
        VALUES,
        Edit(
            "torch.nested.nested_tensor_from_jagged(values_rmpad, cu_seqlens)",
            "torch.nested.nested_tensor_from_jagged(values_rmpad.roll(1), cu_seqlens)",
            nth=1,
            of=2,
        ),
        "critic.state-before",
    ),
    Mutant(
        "padded-values-one-late",
        VALUES,
        Edit(
            "torch.nested.narrow(values, 1, _a, _b, layout=_c)",
            "torch.nested.narrow(values.roll(1, 1), 1, _a, _b, layout=_c)",
        ),
        "critic.state-before",
        options=PADDED,
    ),
    Mutant(
        "head-with-dropout",
        BUILD,
        Edit("0.0", "0.5", nth=1, of=2),
        "critic.train-mode",
        why="`critic.train-mode` says nothing of a train mode that draws at random, as adapters with dropout of their "
        "own do, and values are scored in eval mode",
    ),
    Mutant(
        "two-values-a-token",
        BUILD,
        Edit("1", "2"),
        "critic.shape",
    ),
)

LOSSES = (
    Mutant(
        "sum-keeps-what-is-masked",
        f"{FUNCTIONAL}:masked_sum",
        Edit("torch.where(mask.bool(), values, 0.0)", "values"),
        "policy-loss.metrics-nan-under-mask",
    ),
    Mutant(
        "sum-without-mask",
        f"{FUNCTIONAL}:masked_sum",
        Edit("valid_values * mask", "values"),
        "policy-loss.mask",
    ),
    Mutant(
        "mean-over-all-cells",
        f"{FUNCTIONAL}:masked_mean",
        Edit("_a / (mask.sum(axis=axis) + 1e-08)", "_a / mask.numel()"),
        "policy-loss.clip-fraction",
    ),
    Mutant(
        "one-more-in-the-mean",
        f"{FUNCTIONAL}:masked_mean",
        Edit("1e-08", "1.0"),
        "policy-loss.clip-fraction",
    ),
    Mutant(
        "token-mean-over-all-cells",
        AGGREGATE,
        Edit("loss_mask.sum()", "loss_mask.numel()"),
        "policy-loss.token-mean",
    ),
    Mutant(
        "count-of-the-step-forgotten",
        AGGREGATE,
        Edit("_a / batch_num_tokens", "_a / loss_mask.sum()"),
        "policy-loss.micro-batches",
    ),
    Mutant(
        "mask-dropped-in-sequence-mean",
        AGGREGATE,
        Edit("loss_mat * loss_mask", "loss_mat", nth=2, of=2),
        "policy-loss.sequence-mean",
    ),
    Mutant(
        "rows-divided-by-their-width",
        AGGREGATE,
        Edit("seq_mask + 1e-08", "loss_mask.shape[-1]"),
        "policy-loss.sequence-mean",
    ),
    Mutant(
        "empty-rows-counted",
        AGGREGATE,
        Edit("seq_mask > 0", "seq_mask >= 0"),
        "policy-loss.empty-rows-counted",
    ),
    Mutant(
        "rows-of-the-step-forgotten",
        AGGREGATE,
        Edit("_a / global_batch_size", "_a / seq_mask.sum()", nth=2, of=2),
        "policy-loss.micro-batches",
    ),
    Mutant(
        "ratio-turned-round",
        POLICY_LOSS,
        Edit("log_prob - old_log_prob", "old_log_prob - log_prob"),
        "policy-loss.ratio",
    ),
    Mutant(
        "log-ratio-clamped-at-one",
        POLICY_LOSS,
        Edit(
            "torch.clamp(negative_approx_kl, min=-20.0, max=20.0)",
            "torch.clamp(negative_approx_kl, min=-20.0, max=1.0)",
        ),
        "policy-loss.clip",
    ),
    Mutant(
        "ratio-detached",
        POLICY_LOSS,
        Edit("torch.exp(negative_approx_kl)", "torch.exp(negative_approx_kl).detach()"),
        "policy-loss.gradient",
    ),
    Mutant(
        "sign-of-advantages",
        POLICY_LOSS,
        Edit("-advantages * ratio", "advantages * ratio"),
        "policy-loss.ratio",
    ),
    Mutant(
        "lower-bound-from-above",
        POLICY_LOSS,
        Edit("1 - cliprange_low", "1 - cliprange_high"),
        "policy-loss.asymmetric-clip",
    ),
    Mutant(
        "upper-bound-from-below",
        POLICY_LOSS,
        Edit("1 + cliprange_high", "1 + cliprange_low"),
        "policy-loss.asymmetric-clip",
    ),
    Mutant(
        "larger-surrogate",
        POLICY_LOSS,
        Edit("torch.maximum", "torch.minimum"),
        "policy-loss.clip",
    ),
    Mutant(
        "dual-clip-below",
        POLICY_LOSS,
        Edit("torch.min", "torch.max"),
        "policy-loss.dual-clip",
    ),
    Mutant(
        "dual-clip-for-good-actions",
        POLICY_LOSS,
        Edit("advantages < 0", "advantages > 0", nth=2, of=2),
        "policy-loss.dual-clip-sign",
    ),
    Mutant(
        "clip-fraction-counts-ties",
        POLICY_LOSS,
        Edit("torch.gt(pg_losses2, pg_losses1)", "torch.ge(pg_losses2, pg_losses1)"),
        "policy-loss.clip-fraction",
    ),
    Mutant(
        "kl-turned-round",
        POLICY_LOSS,
        Edit("-negative_approx_kl", "negative_approx_kl"),
        "policy-loss.kl-metric",
    ),
    Mutant(
        "policy-loss-without-mask",
        POLICY_LOSS,
        Edit(
            "agg_loss(loss_mat=_a, loss_mask=_b, loss_agg_mode=_c, **_d)",
            "agg_loss(loss_mat=_a, loss_mask=_b | True, loss_agg_mode=_c, **_d)",
        ),
        "policy-loss.mask",
    ),
    Mutant(
        "policy-loss-without-counts",
        POLICY_LOSS,
        Edit(
            "agg_loss(loss_mat=_a, loss_mask=_b, loss_agg_mode=_c, **_d)",
            "agg_loss(loss_mat=_a, loss_mask=_b, loss_agg_mode=_c)",
        ),
        "policy-loss.micro-batches",
    ),
    Mutant(
        "values-clipped-about-returns",
        VALUE_LOSS,
        Edit("values - cliprange_value", "returns - cliprange_value"),
        "value-loss.clip",
    ),
    Mutant(
        "values-clipped-from-above-only",
        f"{FUNCTIONAL}:clip_by_value",
        Edit("torch.max(torch.min(x, tensor_max), tensor_min)", "torch.min(x, tensor_max)"),
        "value-loss.clip",
    ),
    Mutant(
        "smaller-value-loss",
        VALUE_LOSS,
        Edit("torch.max", "torch.min"),
        "value-loss.clip",
    ),
    Mutant(
        "unclipped-against-old-values",
        VALUE_LOSS,
        Edit("vpreds - returns", "vpreds - values"),
        "value-loss.clip",
    ),
    Mutant(
        "half-forgotten",
        VALUE_LOSS,
        Edit("0.5 * _a", "_a"),
        "value-loss.half",
    ),
    Mutant(
        "value-loss-without-count",
        VALUE_LOSS,
        Edit("batch_num_tokens", "None"),
        "value-loss.micro-batches",
    ),
    Mutant(
        "value-loss-of-unmasked-cells",
        VALUE_LOSS,
        Edit("response_mask", "~response_mask", nth=1, of=2),
        "value-loss.mask",
    ),
)

KLS = (
    Mutant(
        "k1-turned-round",
        KL,
        Edit("logprob - ref_logprob", "ref_logprob - logprob", nth=1, of=3),
        "kl.k1",
    ),
    Mutant(
        "abs-forgotten",
        KL,
        Edit("_a.abs()", "_a"),
        "kl.abs",
    ),
    Mutant(
        "k2-without-its-half",
        KL,
        Edit("0.5 * _a", "_a"),
        "kl.k2",
    ),
    Mutant(
        "k3-of-the-other-direction",
        KL,
        Edit("ref_logprob - logprob", "logprob - ref_logprob"),
        "kl.k3",
    ),
    Mutant(
        "k3-without-one",
        KL,
        Edit("ratio - kl - 1", "ratio - kl"),
        "kl.k3",
    ),
    Mutant(
        "k3-held-too-near",
        KL,
        Edit("torch.clamp(kl, min=-20, max=20)", "torch.clamp(kl, min=-2, max=2)"),
        "kl.k3",
    ),
    Mutant(
        "k3-held-after-the-exponential",
        KL,
        Edit("torch.exp(kl)", "torch.exp(ref_logprob - logprob)"),
        "kl.clamped-gradient",
    ),
    Mutant(
        "k3-not-held",
        KL,
        Edit("torch.clamp(kld, min=-10, max=10)", "kld"),
        "kl.clamp",
    ),
    Mutant(
        "k3-detached",
        KL,
        Edit("torch.exp(kl)", "torch.exp(kl).detach()"),
        "kl.gradient",
    ),
    Mutant(
        "two-gradients-at-once",
        KL_PLUS,
        Edit("_a + forward_score.detach()", "_a + forward_score"),
        "kl.gradient",
        options=PLUS,
    ),
    Mutant(
        "gradient-of-twice-k2",
        KL_PLUS,
        Edit("0.5 * _a", "_a"),
        "kl.gradient",
        options=PLUS,
    ),
)

TOKEN_REWARDS = (
    Mutant(
        "score-one-token-early",
        PLACE_SCORES,
        Edit("valid_response_length - 1", "valid_response_length - 2"),
        "token-rewards.score-position",
    ),
    Mutant(
        "score-one-token-late",
        PLACE_SCORES,
        Edit("valid_response_length - 1", "valid_response_length.clamp(max=rm_scores.size(1) - 1)"),
        "token-rewards.score-position",
    ),
    Mutant(
        "score-in-the-last-column",
        PLACE_SCORES,
        Edit("valid_response_length - 1", "valid_response_length * 0 - 1"),
        "token-rewards.score-position",
    ),
    Mutant(
        "score-of-the-first-sample",
        PLACE_SCORES,
        Edit("rm_scores.new_tensor(scores)", "rm_scores.new_tensor(scores)[:1]"),
        "token-rewards.score-position",
    ),
    Mutant(
        "length-with-the-prompt",
        PLACE_SCORES,
        Edit('data.batch["attention_mask"][:, prompt_length:]', 'data.batch["attention_mask"][:, :-prompt_length]'),
        "token-rewards.score-position",
    ),
    Mutant(
        "penalty-added",
        PENALTY,
        Edit("token_level_scores - beta * kld", "token_level_scores + beta * kld"),
        "token-rewards.penalty",
    ),
    Mutant(
        "penalty-without-coefficient",
        PENALTY,
        Edit("beta * kld", "kld"),
        "token-rewards.penalty",
    ),
    Mutant(
        "penalty-of-observations",
        PENALTY,
        Edit("kld * response_mask", "kld"),
        "token-rewards.masked-cells",
    ),
    Mutant(
        "penalty-of-sums",
        PENALTY,
        Edit("beta * kld", "beta * kld.cumsum(1)"),
        "token-rewards.penalty",
    ),
    Mutant(
        "score-lost",
        PENALTY,
        Edit("token_level_scores - beta * kld", "-beta * kld"),
        "token-rewards.score-position",
    ),
    Mutant(
        "policy-and-reference-exchanged",
        PENALTY,
        Edit("core_algos.kl_penalty(_a, _b, kl_penalty=_c)", "core_algos.kl_penalty(_b, _a, kl_penalty=_c)"),
        "token-rewards.penalty",
    ),
    Mutant(
        "always-k1",
        PENALTY,
        Edit("core_algos.kl_penalty(_a, _b, kl_penalty=_c)", "core_algos.kl_penalty(_a, _b, kl_penalty='k1')"),
        "credit.definition",
    ),
)

ADVANTAGES = (
    Mutant(
        "reward-of-the-step-before",
        GAE,
        Edit("token_level_rewards[:, t]", "token_level_rewards[:, t - 1]"),
        "advantages.definition",
    ),
    Mutant(
        "value-of-the-state-forgotten",
        GAE,
        Edit("_a - values[:, t]", "_a"),
        "advantages.definition",
    ),
    Mutant(
        "next-value-not-discounted",
        GAE,
        Edit("gamma * nextvalues", "nextvalues"),
        "advantages.discounts-as-given",
    ),
    Mutant(
        "gamma-lost-in-the-trace",
        GAE,
        Edit("gamma * lam * lastgaelam", "lam * lastgaelam"),
        "advantages.discounts-as-given",
    ),
    Mutant(
        "lambda-lost",
        GAE,
        Edit("gamma * lam * lastgaelam", "gamma * lastgaelam"),
        "advantages.definition",
    ),
    Mutant(
        "next-value-of-an-observation",
        GAE,
        Edit("values[:, t] * response_mask[:, t] + (1 - response_mask[:, t]) * nextvalues", "values[:, t]"),
        "advantages.observations",
    ),
    Mutant(
        "next-value-cut-by-an-observation",
        GAE,
        Edit(
            "values[:, t] * response_mask[:, t] + (1 - response_mask[:, t]) * nextvalues",
            "values[:, t] * response_mask[:, t]",
        ),
        "advantages.observations",
    ),
    Mutant(
        "trace-cut-by-an-observation",
        GAE,
        Edit(
            "lastgaelam_ * response_mask[:, t] + (1 - response_mask[:, t]) * lastgaelam",
            "lastgaelam_ * response_mask[:, t]",
        ),
        "advantages.observations",
    ),
    Mutant(
        "observations-are-steps",
        GAE,
        Edit("lastgaelam_ * response_mask[:, t] + (1 - response_mask[:, t]) * lastgaelam", "lastgaelam_"),
        "advantages.observations",
    ),
    Mutant(
        "first-step-left-out",
        GAE,
        Edit("range(gen_len)", "range(1, gen_len)"),
        "advantages.definition",
    ),
    Mutant(
        "advantages-not-turned-back",
        GAE,
        Edit("advantages_reversed[::-1]", "advantages_reversed"),
        "advantages.definition",
    ),
    Mutant(
        "returns-are-advantages",
        GAE,
        Edit("advantages + values", "advantages"),
        "advantages.returns",
    ),
    Mutant(
        "lambda-is-gamma",
        ESTIMATE,
        Edit("lam", "gamma"),
        "advantages.definition",
    ),
    Mutant(
        "whitened-over-padding",
        GAE,
        Edit(
            "verl_F.masked_whiten(advantages, response_mask)",
            "verl_F.masked_whiten(advantages, torch.ones_like(response_mask))",
        ),
        "advantages.definition",
        why="an adapter cannot say that its advantages come out whitened: they are asked before that, and whitening on "
        "its own, and nothing asks whether the two are put together with the right mask",
    ),
    Mutant(
        "returns-not-discounted",
        REINFORCE_PLUS_PLUS,
        Edit("gamma * running_return", "running_return"),
        "advantages.discounted-returns",
    ),
    Mutant(
        "returns-cut-by-an-observation",
        REINFORCE_PLUS_PLUS,
        Edit("_a + running_return * (1 - response_mask[:, t])", "_a"),
        "advantages.discounted-observations",
    ),
    Mutant(
        "returns-discounted-by-observations",
        REINFORCE_PLUS_PLUS,
        Edit("_a * _b + running_return * (1 - _b)", "_a"),
        "advantages.discounted-observations",
    ),
)

WHITENING = (
    Mutant(
        "biased-variance",
        VARIANCE,
        Edit("mask_sum / (mask_sum - 1)", "mask_sum / mask_sum"),
        "whitening.variance",
    ),
    Mutant(
        "variance-not-of-deviations",
        VARIANCE,
        Edit("centered_values ** 2", "values ** 2"),
        "whitening.definition",
    ),
    Mutant(
        "single-action-whitened",
        VARIANCE,
        Edit("mask_sum == 1", "mask_sum == -1"),
        "whitening.few-declared",
    ),
    Mutant(
        "root-forgotten",
        WHITEN,
        Edit("torch.rsqrt(_a)", "1 / _a"),
        "whitening.definition",
    ),
    Mutant(
        "larger-epsilon",
        WHITEN,
        Edit("var + 1e-8", "var + 1e-6"),
        "whitening.epsilon",
    ),
    Mutant(
        "mean-left-in",
        WHITEN,
        Edit("values - mean", "values"),
        "whitening.definition",
    ),
    Mutant(
        "mean-added-where-it-is-removed",
        WHITEN,
        Edit("not shift_mean", "shift_mean"),
        "whitening.keep-mean",
    ),
    Mutant(
        "mean-of-masked-cells-too",
        MASKED_MEAN,
        Edit("mask.sum(axis=axis)", "torch.ones_like(mask).sum(axis=axis)"),
        "whitening.holes",
    ),
    Mutant(
        "sum-of-masked-cells",
        MASKED_SUM,
        Edit("(valid_values * mask).sum(axis=axis)", "values.sum(axis=axis)"),
        "whitening.mask",
    ),
)

GROUPS = (
    Mutant(
        "mean-of-all-scores",
        GRPO,
        Edit("torch.mean(scores_tensor)", "torch.mean(scores)"),
        "group-advantages.mean",
    ),
    Mutant(
        "biased-deviation",
        GRPO,
        Edit("torch.std(scores_tensor)", "torch.std(scores_tensor, unbiased=False)"),
        "group-advantages.ddof",
    ),
    Mutant(
        "variance-for-deviation",
        GRPO,
        Edit("torch.std(scores_tensor)", "torch.var(scores_tensor)"),
        "group-advantages.group-std",
    ),
    Mutant(
        "epsilon-forgotten",
        GRPO,
        Edit("id2std[index[i]] + epsilon", "id2std[index[i]]"),
        "group-advantages.equal-scores",
    ),
    Mutant(
        "group-of-one-without-score",
        GRPO,
        Edit("torch.tensor(0.0)", "id2score[idx][0].clone()"),
        "group-advantages.group-of-one",
    ),
    Mutant(
        "never-scaled",
        GRPO,
        Edit("(scores[i] - id2mean[index[i]]) / (id2std[index[i]] + epsilon)", "scores[i] - id2mean[index[i]]"),
        "group-advantages.group-std",
    ),
    Mutant(
        "deviation-always",
        ESTIMATE,
        Edit("norm_adv_by_std_in_grpo", "True"),
        "group-advantages.mean",
    ),
    Mutant(
        "groups-of-the-last-character",
        GRPO,
        Edit("id2score[index[i]]", "id2score[index[i][-1:]]"),
        "group-advantages.group-names",
    ),
    Mutant(
        "own-score-counted",
        RLOO,
        Edit("response_num - 1", "response_num", nth=2, of=2),
        "group-advantages.leave-one-out",
    ),
    Mutant(
        "group-of-one-centered",
        RLOO,
        Edit("response_num > 1", "response_num > 0"),
        "group-advantages.group-of-one",
    ),
    Mutant(
        "advantage-of-a-masked-cell",
        SESSIONS,
        Edit('final_data.batch["response_mask"].argmax(dim=1)', 'final_data.batch["response_mask"].argmin(dim=1)'),
        "group-advantages.mean",
    ),
    Mutant(
        "advantage-of-the-first-column",
        SESSIONS,
        Edit('final_data.batch["response_mask"].argmax(dim=1)', "0"),
        "group-advantages.mean",
    ),
)

SURROGATES = (
    Mutant(
        "gspo-ratio-turned-round",
        GSPO,
        Edit("log_prob - old_log_prob", "old_log_prob - log_prob"),
        "policy-loss.sequence-ratio",
    ),
    Mutant(
        "gspo-sum-of-log-ratios",
        GSPO,
        Edit("_a / seq_lengths", "_a / 1.0"),
        "policy-loss.sequence-ratio",
    ),
    Mutant(
        "gspo-mean-over-the-width",
        GSPO,
        Edit("torch.sum(response_mask, dim=-1)", "torch.sum(torch.ones_like(response_mask), dim=-1)"),
        "policy-loss.sequence-ratio",
    ),
    Mutant(
        "gspo-mean-without-mask",
        GSPO,
        Edit("negative_approx_kl * response_mask", "negative_approx_kl"),
        "policy-loss.sequence-ratio-mask",
    ),
    Mutant(
        "gspo-without-graph",
        GSPO,
        Edit("log_prob - log_prob.detach()", "log_prob.detach() - log_prob.detach()"),
        "policy-loss.sequence-ratio-gradient",
    ),
    Mutant(
        "gspo-of-its-columns",
        GSPO,
        Edit(
            "torch.sum(negative_approx_kl * response_mask, dim=-1)",
            "torch.sum(negative_approx_kl * response_mask, dim=-1).roll(1)",
        ),
        "policy-loss.sequence-ratio",
    ),
    Mutant(
        "gspo-smaller-loss",
        GSPO,
        Edit("torch.maximum", "torch.minimum"),
        "policy-loss.sequence-ratio-clip",
    ),
    Mutant(
        "gspo-one-bound",
        GSPO,
        Edit("1 + clip_ratio_high", "1 + clip_ratio_low"),
        "policy-loss.sequence-ratio-clip",
    ),
    Mutant(
        "gspo-without-counts",
        GSPO,
        Edit(
            "agg_loss(loss_mat=_a, loss_mask=_b, loss_agg_mode=_c, **_d)",
            "agg_loss(loss_mat=_a, loss_mask=_b, loss_agg_mode=_c)",
        ),
        "policy-loss.sequence-ratio-mask",
    ),
    Mutant(
        "cispo-with-graph",
        CISPO,
        Edit("clipped_ratio.detach()", "clipped_ratio"),
        "policy-loss.cispo-gradient",
    ),
    Mutant(
        "cispo-without-log-prob",
        CISPO,
        Edit("_a * log_prob", "_a"),
        "policy-loss.cispo",
    ),
    Mutant(
        "cispo-unclipped",
        CISPO,
        Edit("torch.clamp(ratio, 1 - clip_ratio_low, 1 + clip_ratio_high)", "ratio"),
        "policy-loss.cispo-bounds",
    ),
    Mutant(
        "cispo-upper-bound-alone",
        CISPO,
        Edit(
            "torch.clamp(ratio, 1 - clip_ratio_low, 1 + clip_ratio_high)", "torch.clamp(ratio, max=1 + clip_ratio_high)"
        ),
        "policy-loss.cispo-bounds",
    ),
    Mutant(
        "cispo-cap-itself",
        CISPO,
        Edit("1 + clip_ratio_high", "clip_ratio_high"),
        "policy-loss.cispo-bounds",
    ),
    Mutant(
        "gpg-ascends",
        GPG,
        Edit("-log_prob * advantages", "log_prob * advantages"),
        "policy-loss.reinforce",
    ),
    Mutant(
        "gpg-of-probability",
        GPG,
        Edit("-log_prob * advantages", "-log_prob.exp() * advantages"),
        "policy-loss.reinforce",
    ),
    Mutant(
        "gpg-with-a-ratio",
        GPG,
        Edit("-log_prob * advantages", "-log_prob * advantages * (log_prob - old_log_prob).detach().exp()"),
        "policy-loss.reinforce-old",
    ),
    Mutant(
        "sum-of-the-rows-means",
        AGGREGATE,
        Edit("verl_F.masked_sum(loss_mat, loss_mask) * dp_size", "verl_F.masked_mean(loss_mat, loss_mask) * dp_size"),
        "policy-loss.token-sum",
    ),
    Mutant(
        "rows-of-the-step-forgotten-in-sums",
        AGGREGATE,
        Edit("_a / global_batch_size", "_a / seq_mask.sum()", nth=1, of=2),
        "policy-loss.constant-length-micro-batches",
    ),
    Mutant(
        "length-is-the-width",
        AGGREGATE,
        Edit("loss_scale_factor is None", "loss_mat is not None"),
        "policy-loss.constant-length",
    ),
)

CORRECTION = (
    Mutant(
        "weights-turned-round",
        CORRECTED,
        Edit("old_log_prob - rollout_log_prob", "rollout_log_prob - old_log_prob"),
        "off-policy-correction.token",
    ),
    Mutant(
        "weights-with-a-default-bound",
        TO_BATCH,
        Edit("rollout_corr_config.get('rollout_is_threshold', 2.0)", "2.0"),
        "off-policy-correction.truncation",
    ),
    Mutant(
        "weights-by-the-log-ratio",
        WEIGHTS,
        Edit("torch.exp(log_ratio_safe)", "1 + log_ratio_safe"),
        "off-policy-correction.token",
    ),
    Mutant(
        "weights-of-sequences-by-the-width",
        WEIGHTS,
        Edit("torch.exp(log_ratio_sum_safe)", "torch.exp(log_ratio_sum_safe / log_ratio.shape[-1])"),
        "off-policy-correction.sequence-product",
    ),
    Mutant(
        "weights-of-sequences-by-the-mean",
        WEIGHTS,
        Edit(
            "verl_F.masked_sum(log_ratio, response_mask, axis=-1)",
            "verl_F.masked_mean(log_ratio, response_mask, axis=-1)",
        ),
        "off-policy-correction.sequence-product",
    ),
    Mutant(
        "weights-of-sequences-without-mask",
        WEIGHTS,
        Edit("verl_F.masked_sum(log_ratio, response_mask, axis=-1)", "log_ratio.sum(-1)"),
        "off-policy-correction.mask",
    ),
    Mutant(
        "weights-of-pads-kept",
        WEIGHTS,
        Edit("raw_rollout_is_weights * response_mask", "raw_rollout_is_weights"),
        "off-policy-correction.masked-cells",
    ),
    Mutant(
        "weights-untruncated",
        WEIGHTS,
        Edit("raw_rollout_is_weights.clamp(max=rollout_is_threshold_upper)", "raw_rollout_is_weights"),
        "off-policy-correction.truncation",
    ),
    Mutant(
        "weights-held-from-below",
        WEIGHTS,
        Edit(
            "raw_rollout_is_weights.clamp(max=rollout_is_threshold_upper)",
            "raw_rollout_is_weights.clamp(0.8, rollout_is_threshold_upper)",
        ),
        "off-policy-correction.truncation",
    ),
    Mutant(
        "weights-of-a-band-are-one",
        WEIGHTS,
        Edit(
            "torch.where(token_kept_mask, raw_rollout_is_weights, _a)",
            "torch.where(token_kept_mask, torch.ones_like(raw_rollout_is_weights), _a)",
        ),
        "off-policy-correction.kept",
    ),
    Mutant(
        "weights-of-a-band-all-kept",
        WEIGHTS,
        Edit(
            "(raw_rollout_is_weights >= _a) & (raw_rollout_is_weights <= _b)",
            "(raw_rollout_is_weights >= _a) | (raw_rollout_is_weights <= _b)",
        ),
        "off-policy-correction.band",
    ),
    Mutant(
        "band-without-its-lower-bound",
        WEIGHTS,
        Edit(
            "raw_rollout_is_weights >= rollout_is_threshold_lower",
            "raw_rollout_is_weights > rollout_is_threshold_lower",
        ),
        "off-policy-correction.bounds",
    ),
    Mutant(
        "band-without-its-upper-bound",
        WEIGHTS,
        Edit(
            "raw_rollout_is_weights <= rollout_is_threshold_upper",
            "raw_rollout_is_weights < rollout_is_threshold_upper",
        ),
        "off-policy-correction.bounds",
    ),
    Mutant(
        "weights-clamped-at-ten",
        WEIGHTS,
        Edit(
            "torch.clamp(log_ratio, min=-SAFETY_BOUND, max=SAFETY_BOUND)",
            "torch.clamp(log_ratio, min=-SAFETY_BOUND, max=10.0)",
        ),
        "off-policy-correction.log-clamp",
    ),
    Mutant(
        "weights-with-a-graph",
        WEIGHTS,
        Edit("rollout_is_weights.detach()", "rollout_is_weights"),
        "off-policy-correction.no-graph",
    ),
    Mutant(
        "weights-not-multiplied",
        POLICY_LOSS,
        Edit("pg_losses * rollout_is_weights", "pg_losses"),
        "corrected-loss.token-weights",
    ),
    Mutant(
        "weights-squared",
        POLICY_LOSS,
        Edit("pg_losses * rollout_is_weights", "pg_losses * rollout_is_weights**2"),
        "corrected-loss.token-weights",
    ),
    Mutant(
        "gspo-without-weights",
        GSPO,
        Edit("pg_losses * rollout_is_weights", "pg_losses"),
        "corrected-loss.other-surrogates",
    ),
    Mutant(
        "cispo-without-weights",
        CISPO,
        Edit("pg_losses * rollout_is_weights", "pg_losses"),
        "corrected-loss.other-surrogates",
    ),
    Mutant(
        "rejection-turned-round",
        REJECTION,
        Edit("-log_ratio_safe", "log_ratio_safe"),
        "off-policy-correction.band",
        options=REJECTS,
    ),
    Mutant(
        "rejection-from-above-alone",
        REJECTION,
        Edit("(per_token_stat >= lower_log) & (per_token_stat <= upper_log)", "per_token_stat <= upper_log"),
        "off-policy-correction.band",
        options=REJECTS,
    ),
    Mutant(
        "rejection-by-either-bound",
        REJECTION,
        Edit(
            "(per_token_stat >= lower_log) & (per_token_stat <= upper_log)",
            "(per_token_stat >= lower_log) | (per_token_stat <= upper_log)",
        ),
        "off-policy-correction.band",
        options=REJECTS,
    ),
    Mutant(
        "rejection-by-the-mean-for-the-sum",
        f"{REJECTION}._sequence_sum",
        Edit("verl_F.masked_sum(values, response_mask, axis=-1)", "verl_F.masked_mean(values, response_mask, axis=-1)"),
        "off-policy-correction.band",
        options=REJECTS,
    ),
    Mutant(
        "rejection-by-the-width",
        f"{REJECTION}._sequence_mean",
        Edit("verl_F.masked_mean(values, response_mask, axis=-1)", "values.mean(-1)"),
        "off-policy-correction.band",
        options=REJECTS,
    ),
    Mutant(
        "rejection-forgets-the-mask",
        REJECTION,
        Edit("(response_mask * final_mask).to(dtype=_a)", "final_mask.to(dtype=_a)"),
        "off-policy-correction.masked-cells",
        options=REJECTS,
    ),
    Mutant(
        "rejection-not-applied",
        TO_BATCH,
        Edit("modified_response_mask", "batch.batch['response_mask']", nth=2, of=2),
        "off-policy-correction.band",
        options=REJECTS,
    ),
)

STEPS = (
    Mutant(
        "step-entropy-added",
        PPO_LOSS,
        Edit("entropy_coeff * entropy_loss", "-entropy_coeff * entropy_loss"),
        "objective.entropy-term",
    ),
    Mutant(
        "step-entropy-detached",
        PPO_LOSS,
        Edit("entropy_coeff * entropy_loss", "entropy_coeff * entropy_loss.detach()"),
        "objective.entropy-gradient",
    ),
    Mutant(
        "step-kl-subtracted",
        PPO_LOSS,
        Edit("kl_loss * config.kl_loss_coef", "-kl_loss * config.kl_loss_coef"),
        "objective.kl-term",
    ),
    Mutant(
        "step-kl-detached",
        PPO_LOSS,
        Edit("kl_loss * config.kl_loss_coef", "kl_loss.detach() * config.kl_loss_coef"),
        "objective.kl-gradient",
    ),
    Mutant(
        "step-kl-from-the-old-policy",
        PPO_LOSS,
        Edit(
            "kl_penalty(logprob=log_prob, ref_logprob=_a, kl_penalty=_b)",
            "kl_penalty(logprob=log_prob, ref_logprob=old_log_prob, kl_penalty=_b)",
        ),
        "objective.kl-term",
    ),
    Mutant(
        "step-kl-by-token",
        PPO_LOSS,
        Edit("config.loss_agg_mode", "'token-mean'", nth=2, of=2),
        "objective.aggregation",
    ),
    Mutant(
        "step-entropy-by-token",
        PPO_LOSS,
        Edit("loss_agg_mode", "'token-mean'", nth=3, of=3),
        "objective.aggregation",
    ),
)

WHOLE_STEPS = (
    Mutant(
        "whole-step-counts-cells",
        f"{ENGINE}:FSDPEngine.forward_backward_batch",
        Edit("data['loss_mask'].sum()", "(data['loss_mask'] >= 0).sum()"),
        "step.micro-batches",
    ),
    Mutant(
        "whole-step-loss-doubled",
        f"{ENGINE}:FSDPEngine.forward_backward_batch",
        Edit("loss.backward()", "(2 * loss).backward()"),
        "step.gradient",
    ),
    Mutant(
        "whole-step-without-its-last-micro-batch",
        f"{ENGINE}:FSDPEngine.forward_backward_batch",
        Edit("enumerate(micro_batches)", "enumerate(micro_batches[:-1])"),
        "step.micro-batches",
    ),
    Mutant(
        "whole-step-of-one-micro-batch",
        f"{ENGINE}:FSDPEngine.forward_backward_batch",
        Edit("enumerate(micro_batches)", "enumerate(micro_batches[:1])"),
        "step.dynamic-batches",
    ),
    Mutant(
        "whole-step-gradient-kept",
        "verl.workers.engine.base:BaseEngine.train_batch",
        Edit("self.optimizer_zero_grad()", "None"),
        "step.again",
    ),
    Mutant(
        "whole-step-never-made",
        f"{ENGINE}:FSDPEngine.optimizer_step",
        Edit("torch.isfinite(grad_norm)", "grad_norm.isnan()"),
        "step.gradient",
    ),
    Mutant(
        "whole-step-bound-doubled",
        f"{ENGINE}:FSDPEngine.optimizer_step",
        Edit(
            "torch.nn.utils.clip_grad_norm_(_b, max_norm=_a)",
            "torch.nn.utils.clip_grad_norm_(_b, max_norm=2 * _a)",
        ),
        "step.max-norm",
    ),
    Mutant(
        "whole-step-clips-the-first-weight",
        f"{ENGINE}:FSDPEngine.optimizer_step",
        Edit(
            "torch.nn.utils.clip_grad_norm_(_b, max_norm=_a)",
            "torch.nn.utils.clip_grad_norm_([*_b][:1], max_norm=_a)",
        ),
        "step.max-norm",
    ),
    Mutant(
        "whole-step-local-tokens",
        PPO_LOSS,
        Edit("data['batch_num_tokens']", "None", nth=1, of=2),
        "step.micro-batches",
    ),
    Mutant(
        "whole-step-local-rows",
        PPO_LOSS,
        Edit("data['global_batch_size']", "len(data)", nth=1, of=2),
        "step.aggregations",
    ),
    Mutant(
        "whole-step-critic-local-tokens",
        "verl.workers.utils.losses:value_loss",
        Edit("data['batch_num_tokens']", "None"),
        "step.critic-micro-batches",
    ),
    Mutant(
        "whole-step-critic-old-values-anew",
        "verl.workers.utils.losses:value_loss",
        Edit("data['values']", "vpreds.detach()"),
        "step.critic-clip",
    ),
)

MODELS = LOG_PROBS + MASKS_AND_POSITIONS + PADDING_HELPERS + ENGINE_INPUTS + ENGINE_OUTPUTS
MUTANTS = (
    MODELS
    + LOSSES
    + SURROGATES
    + KLS
    + TOKEN_REWARDS
    + ADVANTAGES
    + WHITENING
    + GROUPS
    + CORRECTION
    + STEPS
    + WHOLE_STEPS
)

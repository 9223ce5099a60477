"""TRL 1.16: a real GRPOTrainer or RLOOTrainer scores, generates, makes advantages and takes the loss; a reward model is
called as RewardTrainer does.

Modes: `trainer`; `attn_implementation`; the fields of the trainer's config, as `loss_type` ("dapo", "bnpo": token mean,
"grpo": sequence mean, "dr_grpo": constant length, "cispo": CISPO with a token mean) and `disable_dropout`;
`get_reward`: rewards as trl.experimental reads them; `several_generations`: a step's samples come from more than one,
by a `steps_per_generation` smaller than the accumulation. No critic: PPO left TRL after 1.12, so that nothing has token
rewards, returns or whitening. RLOO's loss clips the ratio of whole responses, and corrects for no engine.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod

import torch
from trl.experimental.utils import get_reward, truncate_right
from trl.trainer import sft_trainer, utils

from rlhf_conformance import Adapter, PackedSequences, PolicyLossResult, ProcessedSequences
from rlhf_conformance.adapters import trl_standins as standins
from rlhf_conformance.adapters import trl_step as steps

GRPO = {"kl_estimators": ("k3",), "kl_gradient": "weighted", "group_scales": ("group-std", "batch-std", "none")}
RLOO = {"kl_estimators": ("k1",), "group_baselines": ("leave-one-out",), "policy_loss": None}
RLOO |= {"off_policy_weights": None, "corrected_loss": None, "objective": None, "load_trainer": None}


class TRL(Adapter):
    dual_clip = count_empty_rows = True  # the dual clip is GRPOConfig.delta
    group_layout, group_eps, group_of_one = "equal", 1e-4, "zero"
    correction_levels, correction_modes, correction_lower = ("token", "sequence"), ("truncate", "mask"), "both"
    correction_nan, off_policy_weights = "one", staticmethod(standins.weights)
    objective_terms, entropy_aggregation, kl_correction = ("kl", "entropy"), "token-mean", "ratio"
    objective_global_count = False
    step_advantages, step_samples, step_entropy_denominators = "sample", 2, "micro-batch"
    step_architectures = ("llama",)
    load_trainer, step_gradients = steps.trainer, staticmethod(steps.gradients)
    step_update, step_log_probs = staticmethod(steps.update), staticmethod(steps.log_probs)
    token_log_probs = staticmethod(utils.selective_log_softmax)

    def __init__(self, trainer="grpo", loss_type="dapo", attn_implementation="sdpa", get_reward=False, **config):
        self.trainer, self.loss_type, self.attention, self.config = trainer, loss_type, attn_implementation, config
        self.aggregations = ("sequence-mean" if loss_type == "grpo" else "token-mean",)
        self.constant_length = "always" if loss_type == "dr_grpo" else False
        self.surrogates, self.cispo_bounds = ("cispo",) if loss_type == "cispo" else ("ppo", "gspo"), "cap"
        self.step_denominators = "micro-batch" if loss_type == "bnpo" else "step"
        self.several_generations = config.pop("several_generations", False)
        self.global_count, self.takes_attention_mask = loss_type in ("dapo", "cispo"), not get_reward
        self.__dict__.update(RLOO if trainer == "rloo" else GRPO)

    def token_entropy(self, logits, temperature):
        return utils.selective_log_softmax_and_entropy(logits, logits.argmax(-1), temperature=temperature)[1]

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        responses, mask = truncate_right(sequences[:, prompt_length:], list(stop_token_ids), pad_token_id)
        rows = torch.cat([sequences[:, :prompt_length], responses], dim=1)
        return ProcessedSequences(rows, torch.cat([prompt_attention_mask, mask], dim=1), mask)

    def pack_sequences(self, sequences):
        collator = sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
        pack = collator([{"input_ids": sequence.tolist()} for sequence in sequences])
        return PackedSequences(pack["input_ids"], pack["position_ids"], pack["labels"])

    def load_actor(self, checkpoint):
        return standins.trainer(self.trainer, checkpoint, self.attention, self.loss_type, **self.config)

    def action_log_probs(self, actor, batch, part=0):
        rows = (batch.input_ids, batch.attention_mask, batch.num_actions)
        return actor._get_per_token_logps_and_entropies(actor.model, *rows, compute_entropy=True)[part]

    action_entropy = partialmethod(action_log_probs, part=1)

    def generate(self, actor, prompts):
        responses = [torch.tensor(ids) for ids in standins.responses(actor, prompts)]
        return torch.cat([prompts.input_ids.cpu(), utils.pad(responses, prompts.pad_token_id)], dim=1)

    def load_reward_model(self, checkpoint):
        return standins.reward_model(checkpoint, self.attention)

    def rewards(self, rm, batch):
        if not self.takes_attention_mask:
            return get_reward(rm, batch.input_ids, batch.pad_token_id, batch.input_ids.shape[1] - batch.num_actions)[1]
        rows = utils.pad(batch.sequences, batch.pad_token_id)  # on the right, as its collators do
        mask = utils.pad([torch.ones_like(row) for row in batch.sequences])
        return rm(rows, attention_mask=mask, use_cache=False).logits.squeeze(-1)

    def save(self, model, folder):
        (model.save_model if hasattr(model, "save_model") else model.save_pretrained)(folder)

    def restore(self, kind, checkpoint, folder):
        return (self.load_actor if kind == "actor" else self.load_reward_model)(replace(checkpoint, path=str(folder)))

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        trainer = standins.loss_trainer(action_mask.device, self.loss_type, options)
        loss = standins.policy_loss(trainer, log_probs, old_log_probs, advantages, action_mask, options.global_count)
        return PolicyLossResult(loss, trainer._metrics["train"].get("clip_ratio/region_mean", [None])[-1])

    def corrected_loss(self, log_probs, old_log_probs, advantages, rollout_log_probs, action_mask, options):
        trainer, weights = standins.loss_trainer(action_mask.device, self.loss_type, options), None
        if options.weights:
            weights = self.off_policy_weights(old_log_probs, rollout_log_probs, action_mask, options.weights)
        rows, count = (log_probs, old_log_probs, advantages, action_mask), options.global_count
        return standins.policy_loss(trainer, *rows, count, weights=weights)

    def objective(
        self, log_probs, old_log_probs, advantages, entropies, ref_log_probs, _, __, ___, action_mask, options
    ):
        trainer = standins.loss_trainer(action_mask.device, self.loss_type, options)
        rows, count = (log_probs, old_log_probs, advantages, action_mask), options.global_count
        terms = {"beta": options.kl_coef, "entropies": entropies, "entropy_coef": options.entropy_coef}
        return standins.policy_loss(trainer, *rows, count, ref_log_probs, **terms)

    def kl(self, log_probs, ref_log_probs, action_mask, options):
        return standins.kl(self.trainer, log_probs, ref_log_probs)

    def group_advantages(self, scores, group_ids, action_mask, options):
        size, scale = len(scores) // len(group_ids.unique()), options.scale.removesuffix("-std")
        return standins.advantages(self.trainer, scores, size, scale)

"""The adapter of the reference implementation. Its modes are keyword arguments: `-o lora=true -o attention=eager`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import rlhf_reference as ref
from rlhf_conformance import (
    Adapter,
    AdvantagesResult,
    ObjectiveResult,
    PackedSequences,
    PolicyLossResult,
    ProcessedSequences,
    StepResult,
)
from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._models.interface import ARCHITECTURES, LAYOUTS


class Reference(Adapter):
    name = "reference"
    turns = True
    layouts, architectures = LAYOUTS, ARCHITECTURES
    ignored_label = "zero"
    entropy_gradient = True
    head_names = ("score", "value_head", "v_head")
    head_bias = True
    reward_normalization = critic_normalization = True
    reward_new_head = critic_new_head = "asked"
    aggregations = ("token-mean", "sequence-mean")
    dual_clip = global_count = constant_length = token_sum = True
    surrogates = ("ppo", "gspo", "cispo", "reinforce")
    count_empty_rows = False
    packed_labels = "shifted"
    kl_estimators = ("k1", "k2", "k3", "abs")
    kl_log_ratio_clamp, kl_clamp, kl_clamped = 20.0, 10.0, ("k3",)
    kl_gradient = "plain"
    score_clip = True
    missing_stop = "constant"
    kl_masked = token_rewards_masked = advantages_masked = "zero"

    credit_whitening = "asked"
    whitening_keeps_mean = True
    whitening_masked = whitening_of_few = group_of_one = "zero"
    group_baselines = ("mean", "leave-one-out")
    group_scales = ("group-std", "batch-std", "none")
    correction_levels, correction_modes = ("token", "sequence"), ("truncate", "mask")
    sequence_weights = ("product", "geometric")
    correction_lower = "both"
    correction_log_clamp = 20.0
    correction_nan, correction_masked = "one", "zero"
    correction_bypass = True
    step_layouts, step_cuts = ("padded", "packed"), ("rows", "tokens")
    step_remainder = step_momentum = step_corrections = True
    step_schedules = ("constant", "linear")

    def __init__(
        self, attention: str | None = None, lora: bool = False, checkpointing: bool = False, dora: bool = False
    ) -> None:
        self.attention, self.lora, self.checkpointing, self.dora = attention, lora or dora, checkpointing, dora

    def _options(self, checkpoint: Any, *, lora: bool = True) -> dict[str, Any]:
        options = {
            "dtype": checkpoint.dtype,
            "device": checkpoint.device,
            "attn_implementation": self.attention,
            "gradient_checkpointing": self.checkpointing,
        }
        return {**options, "lora": self._lora()} if lora else options

    def _lora(self) -> ref.LoraOptions | None:
        return ref.LoraOptions(dora=self.dora) if self.lora else None

    def _ready(self, model: Any) -> Any:
        """Layers are only recomputed in train mode."""
        return model.train(self.checkpointing)

    def token_log_probs(self, logits, labels, temperature):
        return ref.token_log_probs(logits, labels, temperature=temperature)

    def token_entropy(self, logits, temperature):
        return ref.token_entropy(logits, temperature=temperature)

    def process_sequences(
        self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id, response_lengths=None
    ):
        out = ref.process_sequences(
            sequences,
            prompt_length,
            stop_token_ids=stop_token_ids,
            pad_token_id=pad_token_id,
            prompt_attention_mask=prompt_attention_mask,
            response_lengths=response_lengths,
        )
        return ProcessedSequences(out.sequences, out.attention_mask, out.action_mask)

    def position_ids(self, attention_mask):
        return ref.position_ids(attention_mask)

    def pack_sequences(self, sequences):
        pack = ref.pack_sequences(sequences)
        return PackedSequences(pack.input_ids, pack.position_ids, pack.labels)

    def load_actor(self, checkpoint):
        return self._ready(ref.Actor(checkpoint.path, temperature=checkpoint.temperature, **self._options(checkpoint)))

    def _inputs(self, batch: Any) -> tuple[Any, dict[str, Any]]:
        """Token ids and keyword arguments for any layout; shards are gathered into their pack first."""
        if batch.layout == "sharded":
            ids, positions = ref.unshard(batch.input_ids), ref.unshard(batch.position_ids)
            return ids, {"position_ids": positions, "sequence_lengths": batch.sequence_lengths}
        if batch.layout == "segments":
            positions = ref.segment_position_ids(batch.attention_mask)
            return batch.input_ids, {"position_ids": positions, "sequence_lengths": batch.sequence_lengths}
        if batch.is_packed:
            return batch.input_ids, {
                "position_ids": batch.position_ids,
                "sequence_lengths": batch.sequence_lengths,
            }
        return batch.input_ids, {"attention_mask": batch.attention_mask}

    def _rows(self, batch: Any, answer: Any) -> Any:
        """Right-padded rows come back aligned on the left, one column for each action of the longest response."""
        if batch.layout != "right":
            return answer
        return [row[:count] for row, count in zip(answer, batch.num_actions, strict=True)]

    def action_log_probs(self, actor, batch):
        ids, options = self._inputs(batch)
        return self._rows(batch, actor(ids, batch.num_actions, **options))

    def action_entropy(self, actor, batch):
        ids, options = self._inputs(batch)
        return self._rows(batch, actor(ids, batch.num_actions, return_entropy=True, **options)[1])

    def logits(self, actor, batch):
        ids, options = self._inputs(batch)
        return actor(ids, **options).logits.reshape(*batch.input_ids.shape, -1)

    def log_probs_with_output(self, actor, batch):
        ids, options = self._inputs(batch)
        log_probs, output = actor(ids, batch.num_actions, return_output=True, **options)
        return self._rows(batch, log_probs), output.logits.reshape(*batch.input_ids.shape, -1)

    def wrap_actor(self, module, checkpoint):
        more = {"temperature": checkpoint.temperature, "gradient_checkpointing": self.checkpointing}
        return self._ready(ref.Actor(module, lora=self._lora(), **more))

    def generate(self, actor, prompts):
        return actor.generate(
            prompts.input_ids,
            prompts.attention_mask,
            max_new_tokens=prompts.max_new_tokens,
            stop_token_ids=prompts.stop_token_ids,
            pad_token_id=prompts.pad_token_id,
        )

    def _regression(self, checkpoint: Any) -> dict[str, Any]:
        asked = {"normalize": checkpoint.normalize, "init_head": checkpoint.new_head}
        return {**asked, **self._options(checkpoint)}

    def load_reward_model(self, checkpoint):
        return self._ready(ref.RewardModel(checkpoint.path, **self._regression(checkpoint)))

    def rewards(self, reward_model, batch):
        ids, options = self._inputs(batch)
        return reward_model(ids, **options)

    def rewards_with_output(self, reward_model, batch):
        ids, options = self._inputs(batch)
        rewards, output = reward_model(ids, return_output=True, **options)
        return rewards, output.last_hidden_state.reshape(*batch.input_ids.shape, -1)

    def load_critic(self, checkpoint):
        return self._ready(ref.CriticModel(checkpoint.path, **self._regression(checkpoint)))

    def action_values(self, critic, batch):
        ids, options = self._inputs(batch)
        return self._rows(batch, critic(ids, batch.num_actions, **options))

    def values(self, critic, batch):
        ids, options = self._inputs(batch)
        return critic(ids, **options).reshape(batch.input_ids.shape)

    def action_values_with_output(self, critic, batch):
        ids, options = self._inputs(batch)
        values, output = critic(ids, batch.num_actions, return_output=True, **options)
        return self._rows(batch, values), output.last_hidden_state.reshape(*batch.input_ids.shape, -1)

    def save(self, model, folder):
        model.save(folder)

    def restore(self, kind, checkpoint, folder):
        made: Any = {"actor": ref.Actor, "reward": ref.RewardModel, "critic": ref.CriticModel}[kind]
        more = {"temperature": checkpoint.temperature} if kind == "actor" else {}
        return self._ready(made.load(folder, **self._options(checkpoint, lora=False), **more))

    def parameters(self, model):
        model = getattr(model, "actor", model)
        regression = hasattr(model, "named_checkpoint_parameters")
        return model.named_checkpoint_parameters() if regression else super().parameters(model)

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        loss = self._policy_loss(options)
        out = loss(log_probs, old_log_probs, advantages, action_mask, global_count=options.global_count)
        return PolicyLossResult(out.loss, out.clip_fraction, out.approx_kl)

    def _policy_loss(self, options) -> Any:
        return ref.PolicyLoss(
            options.clip_eps_low,
            options.clip_eps_high,
            options.dual_clip,
            options.aggregation,
            surrogate=options.surrogate,
            cispo_bounds=options.cispo_bounds,
            constant_length=options.constant_length,
        )

    def corrected_loss(self, log_probs, old_log_probs, advantages, rollout_log_probs, action_mask, options):
        weights = None
        if options.level is not None:
            names = ("level", "mode", "upper", "lower", "sequence_weight", "log_clamp", "log_clamped", "kept", "of_nan")
            asked = {name: getattr(options, name) for name in names}
            weights = ref.off_policy_weights(old_log_probs, rollout_log_probs, action_mask, **asked)
            if (options.mode, options.rejected) == ("mask", "left-out"):
                action_mask = action_mask.bool() & (weights != 0)
        old = rollout_log_probs if options.bypass else old_log_probs
        loss, count = self._policy_loss(options), options.global_count
        return loss(log_probs, old, advantages, action_mask, loss_weights=weights, global_count=count).loss

    def objective(
        self,
        log_probs,
        old_log_probs,
        advantages,
        entropies,
        ref_log_probs,
        values,
        old_values,
        returns,
        action_mask,
        options,
    ):
        out = self._objective(options)(
            log_probs,
            old_log_probs,
            advantages,
            action_mask,
            entropies=entropies,
            ref_log_probs=ref_log_probs,
            values=values,
            old_values=old_values,
            returns=returns,
            global_count=options.global_count,
        )
        return ObjectiveResult(*out)

    def _objective(self, options) -> Any:
        def own(aggregation):
            return None if aggregation == "as-policy" else aggregation

        return ref.Objective(
            self._policy_loss(options),
            value_coef=options.value_coef,
            value_clip_eps=options.value_clip_eps,
            value_aggregation=own(options.value_aggregation),
            kl_coef=options.kl_coef,
            kl_estimator=options.estimator,
            kl_log_ratio_clamp=options.log_ratio_clamp,
            kl_clamp=options.clamp,
            kl_gradient=options.kl_gradient,
            kl_correction=options.kl_correction,
            kl_aggregation=own(options.kl_aggregation),
            entropy_coef=options.entropy_coef,
            entropy_aggregation=own(options.entropy_aggregation),
        )

    def value_loss(self, values, old_values, returns, action_mask, options):
        loss = ref.ValueLoss(options.clip_eps, options.aggregation)
        return loss(values, old_values, returns, action_mask, global_count=options.global_count)

    def _clamps(self, estimator: str) -> dict[str, Any]:
        """As they are declared."""
        held = estimator in self.kl_clamped
        return {"log_ratio_clamp": self.kl_log_ratio_clamp, "clamp": self.kl_clamp} if held else {}

    def kl(self, log_probs, ref_log_probs, action_mask, options):
        clamps = self._clamps(options.estimator)
        return ref.token_kl(log_probs, ref_log_probs, action_mask, options.estimator, **clamps)

    def token_rewards(self, scores, kl, action_mask, options, stopped=None):
        penalty = {"stopped": stopped, "stop_penalty": options.stop_penalty}
        if self.missing_stop:
            penalty["missing_stop"] = self.missing_stop
        asked = {"kl_coef": options.kl_coef, "score_clip": options.score_clip}
        return ref.token_level_rewards(scores, kl, action_mask, **asked, **penalty)

    def advantages(self, token_rewards, values, action_mask, options):
        discounts = {"gamma": options.gamma, "lam": options.lam}
        return AdvantagesResult(*ref.advantages_and_returns(token_rewards, values, action_mask, **discounts))

    def returns(self, token_rewards, action_mask, options):
        return ref.discounted_returns(token_rewards, action_mask, gamma=options.gamma)

    def credit(self, scores, log_probs, ref_log_probs, values, action_mask, options):
        tables = (scores, log_probs, ref_log_probs, values, action_mask)
        asked = vars(options) | self._clamps(options.estimator)
        whitening = self._whitening() if asked.pop("whiten") else None
        return AdvantagesResult(*ref.credited(*tables, **asked, whitening=whitening))

    def _whitening(self) -> dict[str, Any]:
        """As it is declared."""
        eps = {"eps": self.whitening_eps, "eps_place": self.whitening_eps_place}
        return {"ddof": self.whitening_ddof, **eps}

    def whiten(self, values, action_mask, options):
        return ref.whiten(values, action_mask, shift_mean=options.shift_mean, **self._whitening())

    def group_advantages(self, scores, group_ids, action_mask, options):
        asked = {"baseline": options.baseline, "scale": options.scale, "of_one": self.group_of_one or "zero"}
        rows = ref.group_relative_advantages(scores, group_ids, ddof=self.group_std_ddof, eps=self.group_eps, **asked)
        return rows[:, None] * action_mask.bool()

    def off_policy_weights(self, old_log_probs, rollout_log_probs, action_mask, options):
        declared = {
            "log_clamp": self.correction_log_clamp,
            "log_clamped": self.correction_log_clamped,
            "kept": self.correction_kept,
            "of_nan": self.correction_nan,
        }
        asked = {"level": options.level, "mode": options.mode, "upper": options.upper, "lower": options.lower}
        asked["sequence_weight"] = options.sequence_weight
        return ref.off_policy_weights(old_log_probs, rollout_log_probs, action_mask, **asked, **declared)

    # --- a step ------------------------------------------------------------------------------------------------------

    def load_trainer(self, checkpoint, options):
        return self._stepping(checkpoint, options, actor=self.load_actor(checkpoint))

    def load_critic_trainer(self, checkpoint, options):
        return self._stepping(checkpoint, options, critic=self.load_critic(checkpoint))

    def _stepping(self, checkpoint, options, actor=None, critic=None) -> Stepping:
        trained = [p for p in self.parameters(critic if actor is None else actor).values() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=options.learning_rate, momentum=options.momentum)
        rates = {"constant": lambda step: 1.0, "linear": lambda step: max(0.0, 1.0 - step / options.total_steps)}
        trainer = ref.Trainer(
            actor,
            self._objective(options),
            optimizer,
            critic=critic,
            max_norm=options.max_norm,
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, rates[options.schedule]),
            layout=options.layout,
            pad_token_id=checkpoint.pad_token_id,
        )
        return Stepping(trainer, options, self.step_denominators)

    def _samples(self, samples):
        names = [field.name for field in fields(ref.Sample) if field.name != "loss_weights"]
        return [ref.Sample(*(getattr(sample, name) for name in names)) for sample in samples]

    def _weighed(self, samples, options):
        """The samples, with weights for the engine that sampled where they are asked for."""
        found = []
        for sample, known in zip(samples, self._samples(samples), strict=True):
            if options.correction is not None:
                old, rollout, mask = sample.old_log_probs, sample.rollout_log_probs, sample.action_mask
                of_engine = old[None], rollout[None], mask[None]
                weights = Reference.off_policy_weights(self, *of_engine, options.correction)[0]
                is_left = (options.correction.mode, self.rejected_tokens) == ("mask", "left-out")
                mask = mask * (weights != 0) if is_left else mask
                known = replace(known, loss_weights=weights, action_mask=mask)
            found.append(known)
        return found

    def step_gradients(self, stepping, samples):
        trainer, samples = stepping.trainer, self._weighed(samples, stepping.options)
        trainer.optimizer.zero_grad()
        metrics = stepping.accumulate(samples)
        norm = trainer.clip()
        found = {n: p.grad.clone() for n, p in self.parameters(stepping).items() if p.grad is not None}
        trainer.optimizer.zero_grad()
        return StepResult(found, metrics.loss, metrics.policy_loss, metrics.kl, metrics.entropy, norm)

    def step_update(self, stepping, samples):
        stepping.trainer.optimizer.zero_grad()
        stepping.accumulate(self._weighed(samples, stepping.options))
        stepping.trainer.update()

    def step_log_probs(self, stepping, samples):
        return stepping.trainer.log_probs(self._samples(samples))

    critic_step_gradients, critic_step_update = step_gradients, step_update

    def save_trainer(self, stepping, folder):
        torch.save(stepping.trainer.state_dict(), Path(folder) / "trainer.pt")

    def resume_trainer(self, checkpoint, options, folder):
        stepping = self.load_trainer(checkpoint, options)
        stepping.trainer.load_state_dict(torch.load(Path(folder) / "trainer.pt"))
        return stepping


@dataclass(frozen=True)
class Stepping:
    """A trainer, and what it was asked to do."""

    trainer: ref.Trainer
    options: Any
    denominators: str = "step"

    @property
    def actor(self) -> Any:
        """The model that is trained, an actor or a critic."""
        return self.trainer.critic if self.trainer.actor is None else self.trainer.actor

    def cut(self, samples: Any) -> Any:
        """The micro-batches of a step."""
        if self.options.max_tokens is not None:
            return ref.by_tokens(samples, self.options.max_tokens)
        return ref.by_rows(samples, self.options.micro_batch_size)

    def accumulate(self, samples: Any) -> ref.StepMetrics:
        """The gradient of the step, or the mean of those of its micro-batches."""
        parts = self.cut(samples)
        if self.denominators == "step":
            return self.trainer.accumulate(samples, parts)
        total = ref.StepMetrics()
        for part in parts:
            own = self.trainer.accumulate([samples[i] for i in part])
            for name in vars(total):
                setattr(total, name, getattr(total, name) + getattr(own, name) / len(parts))
        for parameter in self.actor.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(parts)
        return total

"""OpenRLHF 0.11, 0.9.10 too. Modes: `packing` (its packing_samples: rows are packed inside), `policy_loss` (its
policy_loss_type: "gspo"), `attn_implementation`.

Not provided: generate, process_sequences (vLLM's part), position_ids (inline), values (its raw critic output has none).
Its experience maker is asked for whitening, group advantages and credit as a whole, in two micro-batches.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod

from rlhf_conformance import Adapter, CreditOptions, PackedSequences, PolicyLossResult
from rlhf_conformance.adapters import openrlhf_standins as standins  # isort: split

from openrlhf.models import Actor, PolicyLoss, ValueLoss, get_llm_for_sequence_regression, utils
from openrlhf.models.ring_attn_utils import unpad_and_slice_tensor
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker as Maker
from openrlhf.utils.utils import zero_pad_sequences

GSPO = {"surrogates": ("gspo",), "aggregations": ("sequence-mean",)}  # it takes this mean, whatever it is asked for


class OpenRLHF(Adapter):
    layouts = ("padded", "left", "right")
    # Not Gemma 3, whose scale of embeddings is a buffer: loading in bfloat16 rounds it, and upcasting does not mend it.
    architectures = ("llama", "gpt2", "qwen2", "mistral", "granite", "phi")
    head_names = ("score", "value_head")
    aggregations = ("token-mean", "sequence-mean")
    reward_normalization = critic_normalization = dual_clip = True
    global_count, count_empty_rows = standins.TAKES_COUNTS, False
    kl_clamp, kl_gradient, score_clip = 10.0, "plain", True
    observations = "zero-steps"
    whitening_ddof, whitening_eps, whitening_eps_place, whitening_of_few = 0, 1e-8, "floor", "zero"
    group_baselines, group_scales, group_layout = ("mean", "leave-one-out"), ("group-std", "none"), "equal"
    group_eps = 1e-9
    token_log_probs = staticmethod(utils.log_probs_from_logits)
    save = staticmethod(standins.save_model)

    def __init__(self, packing=False, attn_implementation="sdpa", policy_loss="ppo"):
        self.__dict__.update(packs_internally=packing, **(GSPO if policy_loss == "gspo" else {}))
        self.mode = {"packing_samples": packing, "attn_implementation": attn_implementation}

    def token_entropy(self, logits, temperature):
        return utils.compute_entropy(logits / temperature)  # the caller scales, as Actor.forward does

    def pack_sequences(self, sequences):
        rows = zero_pad_sequences(sequences, "right", stack=True)
        mask = zero_pad_sequences([sequence.new_ones(len(sequence)) for sequence in sequences], "right", stack=True)
        return PackedSequences(*unpad_and_slice_tensor(rows, mask, None)[:2])

    def load(self, kind, checkpoint):
        if kind == "actor":
            model = Actor(checkpoint.path, temperature=checkpoint.temperature, **self.mode)
        else:
            head = {"value_head_prefix": checkpoint.head_name, "normalize_reward": checkpoint.normalize}
            model = get_llm_for_sequence_regression(checkpoint.path, kind, **head, **self.mode)
        return model.to(checkpoint.device, checkpoint.dtype).eval()  # it loads half precision, and scores in eval mode

    load_actor = partialmethod(load, "actor")
    load_reward_model = partialmethod(load, "reward")
    load_critic = partialmethod(load, "critic")

    def restore(self, kind, checkpoint, folder):
        return self.load(kind, replace(checkpoint, path=str(folder)))

    def action_log_probs(self, actor, batch):
        return actor(batch.input_ids, batch.action_mask, batch.attention_mask)

    def action_entropy(self, actor, batch):
        mask, scored = batch.action_mask, {"return_output": True, "return_entropy": True}
        return actor(batch.input_ids, mask, batch.attention_mask, **scored)[1].entropy[:, -mask.shape[1] :]

    def logits(self, actor, batch):
        return actor(batch.input_ids, None, batch.attention_mask, return_output=True, allgather_logits=True).logits

    def rewards(self, reward_model, batch):
        return reward_model(batch.input_ids, batch.attention_mask)

    def action_values(self, critic, batch):
        return critic(batch.input_ids, batch.action_mask, batch.attention_mask)

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        eps, token_mean = (options.clip_eps_low, options.clip_eps_high), options.aggregation == "token-mean"
        loss_fn = PolicyLoss(*eps, options.dual_clip, token_mean, **standins.surrogate(options))
        rows = (log_probs, old_log_probs, advantages, action_mask)
        return PolicyLossResult(*loss_fn(*rows, **standins.counts(options))[:3])

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

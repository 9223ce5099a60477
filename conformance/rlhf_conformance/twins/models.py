"""Honest trainers that run their models otherwise: another layout, another precision, another library call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from rlhf_conformance._lazy import torch, transformers
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.oracle.layouts import Presentation, Sample, present
from rlhf_conformance.oracle.probes import in_dtype
from rlhf_conformance.twins import twin

Parts = Sequence[tuple[Sequence[int], Presentation]]


class _Models(Reference):
    """The reference without its formulas, which other twins are about."""

    token_log_probs, token_entropy = Adapter.token_log_probs, Adapter.token_entropy
    process_sequences, position_ids = Adapter.process_sequences, Adapter.position_ids
    pack_sequences = Adapter.pack_sequences
    policy_loss, value_loss = Adapter.policy_loss, Adapter.value_loss


# --- presented otherwise -------------------------------------------------------------------------------------------


class _Presented(_Models):
    """Samples are laid out anew, in the parts that `parts` names, and the answers are put back in order."""

    def parts(self, batch) -> Parts:
        raise NotImplementedError

    def _each(self, ask, batch):
        samples = [
            Sample(tuple(ids[:prompt].tolist()), tuple(ids[prompt:].tolist()))
            for ids, prompt in zip(batch.sequences, batch.prompt_lengths, strict=True)
        ]
        answers = [None] * len(samples)
        more = {"pad_token_id": batch.pad_token_id, "temperature": batch.temperature, "device": batch.input_ids.device}
        for indices, how in self.parts(batch):
            inside = present([samples[i] for i in indices], how, **more)
            for index, row in zip(indices, ask(inside), strict=True):
                answers[index] = row
        return answers

    def action_log_probs(self, actor, batch):
        ask = super().action_log_probs
        return self._each(lambda inside: inside.actions_to_ragged(ask(actor, inside)), batch)

    def action_entropy(self, actor, batch):
        ask = super().action_entropy
        return self._each(lambda inside: inside.actions_to_ragged(ask(actor, inside)), batch)

    def logits(self, actor, batch):
        ask = super().logits
        rows = self._each(lambda inside: inside.to_ragged(ask(actor, inside)), batch)
        return batch.from_ragged([row.detach() for row in rows])

    def rewards(self, reward_model, batch):
        ask = super().rewards
        return torch.stack(self._each(lambda inside: ask(reward_model, inside), batch))

    def action_values(self, critic, batch):
        ask = super().action_values
        return self._each(lambda inside: inside.actions_to_ragged(ask(critic, inside)), batch)

    def values(self, critic, batch):
        ask = super().values
        rows = self._each(lambda inside: inside.to_ragged(ask(critic, inside)), batch)
        return batch.from_ragged([row.detach() for row in rows])


def everyone(batch):
    return range(len(batch.prompt_lengths))


@twin
class OneSequenceAtATime(_Presented):
    """Each sample is a batch of its own, without padding; prompts are continued one by one."""

    def parts(self, batch):
        return [([index], Presentation("padded")) for index in everyone(batch)]

    def generate(self, actor, prompts):
        ask, rows = super().generate, []
        for ids, mask in zip(prompts.input_ids, prompts.attention_mask.bool(), strict=True):
            alone = replace(prompts, input_ids=ids[mask][None], attention_mask=mask[mask][None].long())
            rows.append(ask(actor, alone)[0, int(mask.sum()) :])
        responses = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=prompts.pad_token_id)
        return torch.cat([prompts.input_ids, responses], 1)


@twin
class MicroBatchesOfOneRow(_Presented):
    """Each row goes through the model alone, but as wide as the whole batch."""

    def parts(self, batch):
        prompt, response = max(batch.prompt_lengths), max(batch.response_lengths)
        lengths = zip(everyone(batch), batch.prompt_lengths, batch.response_lengths, strict=True)
        return [([i], Presentation("padded", extra_left=prompt - p, extra_right=response - t)) for i, p, t in lengths]


@twin
class RepadsOnTheLeft(_Presented):
    """Whatever comes is padded on the left."""

    def parts(self, batch):
        return [(everyone(batch), Presentation("left", extra_left=2))]


@twin
class UnpadsToTheRight(_Presented):
    """Pads are taken out by the mask and put at the end of each row."""

    def parts(self, batch):
        return [(everyone(batch), Presentation("right"))]


@twin
class ReversedBatch(_Presented):
    """Samples go through the model from the last to the first."""

    def parts(self, batch):
        return [(everyone(batch)[::-1], Presentation("padded"))]


@twin
class AnotherFill(_Presented):
    """Masked cells hold ordinary ids."""

    def parts(self, batch):
        return [(everyone(batch), Presentation("padded", extra_left=1, extra_right=2, garbage=(7, 3, 40)))]


@twin
class PacksInside(_Presented):
    """Padded rows are unpadded into one pack with a tail, and the answers padded again."""

    layouts = ("padded",)
    packs_internally = True

    def parts(self, batch):
        return [(everyone(batch), Presentation("packed-tail", tail=-sum(batch.sequence_lengths) % 8))]


@twin
class PacksOfTwoSortedByLength(_Presented):
    """Samples are sorted by length and packed in pairs."""

    layouts = ("padded", "right")
    packs_internally = True

    def parts(self, batch):
        order = sorted(everyone(batch), key=lambda i: batch.sequence_lengths[i])
        return [(order[i : i + 2], Presentation("packed")) for i in range(0, len(order), 2)]


# --- run otherwise -------------------------------------------------------------------------------------------------


@twin
class EagerAttention(_Models):
    """transformers' attention in plain torch."""

    def __init__(self):
        super().__init__(attention="eager")


@twin
class LoraModels(_Models):
    """Frozen models with adapters of LoRA."""

    def __init__(self):
        super().__init__(lora=True)


@twin
class ComputesInFloat64(_Models):
    """Everything is loaded and computed in float64, whatever is asked for."""

    def _options(self, checkpoint, *, lora=True):
        return super()._options(replace(checkpoint, dtype=torch.float64), lora=lora)


@twin
class GradientCheckpointing(_Models):
    """Activations are recomputed in the backward pass, in train mode, without dropout."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.model.gradient_checkpointing_enable({"use_reentrant": False})
        return actor.train()

    def generate(self, actor, prompts):
        actor.eval()  # transformers drops the cache under checkpointing
        rows = super().generate(actor, prompts)
        actor.train()
        return rows

    def load_critic(self, checkpoint):
        critic = super().load_critic(checkpoint)
        critic.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        return critic.train()


def autocast(name):
    """The reference's method under autocast, where bfloat16 was asked for."""

    def ask(self, model, batch):
        half = self.dtype is torch.bfloat16
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16) if half else nullcontext():
            return getattr(Reference, name)(self, model, batch)

    return ask


@twin
class MasterWeights(_Models):
    """bfloat16 as it is trained with: float32 weights under autocast."""

    def _options(self, checkpoint, *, lora=True):
        self.dtype = checkpoint.dtype
        wide = torch.float32 if self.dtype is torch.bfloat16 else self.dtype
        return super()._options(replace(checkpoint, dtype=wide), lora=lora)

    action_log_probs, action_entropy, logits = map(autocast, ("action_log_probs", "action_entropy", "logits"))
    rewards, action_values, values = map(autocast, ("rewards", "action_values", "values"))


@twin
class AdditiveMask(_Models):
    """Packs go to transformers with a block-diagonal mask (1, 1, N, N), and with the cache left on."""

    layouts = ("packed", "packed-tail", "sharded")
    architectures = ("llama", "gpt2", "qwen2", "granite", "phi")  # a mask of its own takes the place of any window

    def _whole(self, backbone, batch):
        ids, options = self._inputs(batch)
        positions = options["position_ids"]
        segments = (positions[0] == 0).cumsum(0)
        allowed = (segments[:, None] == segments[None, :]).tril()
        mask = torch.zeros_like(allowed, dtype=backbone.dtype).masked_fill(~allowed, torch.finfo(backbone.dtype).min)
        return backbone(ids, attention_mask=mask[None, None], position_ids=positions)

    def logits(self, actor, batch):
        return self._whole(actor.model, batch).logits.reshape(*batch.input_ids.shape, -1)

    def _scaled(self, actor, batch):
        rows = zip(batch.to_ragged(self.logits(actor, batch)), batch.prompt_lengths, strict=True)
        return [row[prompt - 1 : -1].float() / batch.temperature for row, prompt in rows]

    def action_log_probs(self, actor, batch):
        rows = zip(self._scaled(actor, batch), batch.sequences, batch.prompt_lengths, strict=True)
        return [z.gather(1, ids[prompt:, None])[:, 0] - z.logsumexp(1) for z, ids, prompt in rows]

    def action_entropy(self, actor, batch):
        return torch.cat([z.logsumexp(1) - (z.softmax(1) * z).sum(1) for z in self._scaled(actor, batch)])

    def values(self, critic, batch):
        hidden = self._whole(critic.backbone, batch).last_hidden_state
        raw = critic.head(hidden).reshape(batch.input_ids.shape)
        return critic.normalized(raw) if critic.normalize else raw

    def rewards(self, reward_model, batch):
        hidden = self._whole(reward_model.backbone, batch).last_hidden_state
        raw = torch.cat([row[-1] for row in batch.to_ragged(reward_model.head(hidden).view(*batch.input_ids.shape, 1))])
        return reward_model.normalized(raw) if reward_model.normalize and not reward_model.training else raw

    def action_values(self, critic, batch):
        rows = zip(batch.to_ragged(self.values(critic, batch)), batch.prompt_lengths, strict=True)
        return torch.cat([row[prompt - 1 : -1] for row, prompt in rows])


@twin
class FilledOutsideActions(_Models):
    """Answers are rectangles with anything outside the actions, and flat for packs."""

    def _filled(self, batch, answer):
        actions = torch.cat(batch.actions_to_ragged(answer))
        if batch.is_packed:
            return actions
        return actions.new_full(batch.action_mask.shape, 7.0).masked_scatter(batch.action_mask.bool(), actions)

    def action_log_probs(self, actor, batch):
        return self._filled(batch, super().action_log_probs(actor, batch))

    def action_entropy(self, actor, batch):
        return self._filled(batch, super().action_entropy(actor, batch))


# --- written against transformers alone ----------------------------------------------------------------------------


@twin
class Textbook(Adapter):
    """A causal LM of transformers, log_softmax and gather, as in any tutorial."""

    layouts = ("padded", "left", "right")

    def load_actor(self, checkpoint):
        return checkpoint.module()

    def logits(self, actor, batch):
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
        return actor(batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions).logits

    def _states(self, actor, batch):
        scaled = self.logits(actor, batch)[:, :-1].float() / batch.temperature
        count = batch.action_mask.shape[1]
        return scaled[:, -count:].log_softmax(-1), batch.input_ids[:, -count:]

    def action_log_probs(self, actor, batch):
        log_probs, labels = self._states(actor, batch)
        return log_probs.gather(-1, labels[..., None]).squeeze(-1)

    def action_entropy(self, actor, batch):
        log_probs, _ = self._states(actor, batch)
        return -(log_probs.exp() * log_probs).sum(-1)

    def generate(self, actor, prompts):
        actor.generation_config = transformers.GenerationConfig()  # else the checkpoint's options are obeyed
        ends = {"eos_token_id": list(prompts.stop_token_ids) or None, "pad_token_id": prompts.pad_token_id}
        more = {"max_new_tokens": prompts.max_new_tokens, "do_sample": False}
        return actor.generate(prompts.input_ids, attention_mask=prompts.attention_mask, **ends, **more)

    def save(self, model, folder):
        model.save_pretrained(folder)

    def restore(self, kind, checkpoint, folder):
        return replace(checkpoint, path=str(folder)).module()


@twin
class LeastLength(Textbook):
    """No response is shorter than two tokens: until then no token that ends one is taken."""

    def generate(self, actor, prompts):
        actor.generation_config = transformers.GenerationConfig(
            eos_token_id=list(prompts.stop_token_ids) or None,
            pad_token_id=prompts.pad_token_id,
            max_new_tokens=prompts.max_new_tokens,
            min_new_tokens=min(2, prompts.max_new_tokens),
            do_sample=False,
        )
        return actor.generate(prompts.input_ids, attention_mask=prompts.attention_mask)


@twin
class SequenceClassifier(Adapter):
    """Reward model and critic as a sequence classifier of transformers, read by the mask, the head in its own dtype."""

    layouts = ("padded", "left", "right")
    head_names = ("score", "value_head")

    def _load(self, checkpoint):
        names = {rf"^{checkpoint.head_name}\.": "score."}
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            checkpoint.path, num_labels=1, key_mapping=names, output_loading_info=True, **in_dtype(checkpoint.dtype)
        )
        if report["missing_keys"]:
            raise ValueError(f"not in the checkpoint: {report['missing_keys']}")
        return model.to(checkpoint.device).eval()

    load_reward_model = load_critic = _load

    def values(self, critic, batch):
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
        hidden = critic.base_model(batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions)[0]
        return critic.score(hidden).squeeze(-1)

    def rewards(self, reward_model, batch):
        return torch.stack([row[-1] for row in batch.to_ragged(self.values(reward_model, batch))])

    def action_values(self, critic, batch):
        count = batch.action_mask.shape[1]
        return self.values(critic, batch)[:, -count - 1 : -1] * batch.action_mask

    def save(self, model, folder):
        model.save_pretrained(folder)

    def restore(self, kind, checkpoint, folder):
        return self._load(replace(checkpoint, path=str(folder), head_name="score"))


@twin
class MaskFromPadId(Textbook):
    """Knows no mask: real tokens are those from the first to the last id that is not the pad's."""

    takes_attention_mask = False

    def logits(self, actor, batch):
        real = batch.input_ids != batch.pad_token_id
        mask = (real.cumsum(-1) > 0) & (real.flip(-1).cumsum(-1).flip(-1) > 0)
        return super().logits(actor, replace(batch, attention_mask=mask.long()))


@twin
class PooledClassifier(SequenceClassifier):
    """The reward is the classifier's own logit, which transformers reads at the last id that is not the pad's."""

    takes_attention_mask = False
    load_critic, values, action_values = Adapter.load_critic, Adapter.values, Adapter.action_values

    def rewards(self, reward_model, batch):
        real = batch.input_ids != batch.pad_token_id
        mask = ((real.cumsum(-1) > 0) & (real.flip(-1).cumsum(-1).flip(-1) > 0)).long()
        reward_model.config.pad_token_id = batch.pad_token_id
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return reward_model(batch.input_ids, attention_mask=mask, position_ids=positions).logits[:, 0]

"""Honest trainers that run their models otherwise: another layout, another precision, another library call."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise

from rlhf_conformance._lazy import torch, transformers
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import marks
from rlhf_conformance.oracle.batch import PACKS
from rlhf_conformance.oracle.layouts import Presentation, Sample, present
from rlhf_conformance.oracle.probes import in_dtype, read_weights
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
class PacksBySegmentNumbers(_Presented):
    """Padded rows are unpadded into one pack, which a mask of segment numbers describes."""

    layouts = ("padded", "segments")
    packs_internally = True

    def parts(self, batch):
        return [(everyone(batch), Presentation("segments", tail=1 + -sum(batch.sequence_lengths) % 8))]


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

    # With a window it makes NaN of the rows of pads in float64, since its softmax is in float32, and they spread.
    architectures = ("llama", "gpt2", "qwen2", "granite", "phi", "gemma2")

    def __init__(self):
        super().__init__(attention="eager")


@twin
class LoraModels(_Models):
    """Frozen models with adapters of LoRA."""

    def __init__(self):
        super().__init__(lora=True)


@twin
class DoraModels(_Models):
    """Frozen models with adapters of DoRA: the norm of each output's weights is trained by itself."""

    def __init__(self):
        super().__init__(dora=True)


@twin
class DoraWithGradientOfTheNorm(DoraModels):
    """Adapters of DoRA whose backward pass goes through the norm, too, as the adapter says of its weights."""

    architectures = ("llama", "qwen2")

    def _with_gradient(self, model):
        for module in model.modules():
            for dora in getattr(module, "lora_magnitude_vector", {}).values():
                dora.forward = partial(self._added, dora)
        return model

    @staticmethod
    def _added(dora, x, *, lora_A, lora_B, scaling, base_layer, **_):
        adapted = base_layer.weight + scaling * lora_B.weight @ lora_A.weight
        return x @ (through_the_norm(adapted, dora.weight) - base_layer.weight).T

    def load_actor(self, checkpoint):
        return self._with_gradient(super().load_actor(checkpoint))

    def load_reward_model(self, checkpoint):
        return self._with_gradient(super().load_reward_model(checkpoint))

    def load_critic(self, checkpoint):
        return self._with_gradient(super().load_critic(checkpoint))

    def checkpoint_weights(self, model, tensors):
        magnitudes = {name: tensor for name, tensor in tensors.items() if ".lora_magnitude_vector." in name}
        found = super().checkpoint_weights(model, {n: t for n, t in tensors.items() if n not in magnitudes})
        for name, magnitude in magnitudes.items():
            weight = name.split(".lora_magnitude_vector.")[0] + ".weight"
            found[weight] = through_the_norm(found[weight], magnitude)
        return found


def through_the_norm(weight, magnitude):
    """m V / ||V||, the norm of each row a part of the graph; V (out, in), m (out,)."""
    return (magnitude / weight.norm(dim=1))[:, None] * weight


@twin
class ComputesInFloat64(_Models):
    """Everything is loaded and computed in float64, whatever is asked for."""

    def _options(self, checkpoint, *, lora=True):
        return super()._options(replace(checkpoint, dtype=torch.float64), lora=lora)


@twin
class GradientCheckpointing(_Models):
    """Activations are recomputed in the backward pass, in train mode, without dropout."""

    def __init__(self):
        super().__init__(checkpointing=True)


@twin
class LoraCheckpointed(LoraModels):
    """Adapters of LoRA under reentrant checkpointing, over embeddings whose output is made to need a gradient."""

    def _checkpointed(self, owner, model):
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
        return owner

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        return self._checkpointed(actor, actor.model)

    def load_reward_model(self, checkpoint):
        model = super().load_reward_model(checkpoint)
        return self._checkpointed(model, model.backbone)

    def load_critic(self, checkpoint):
        critic = super().load_critic(checkpoint)
        return self._checkpointed(critic, critic.backbone)


@twin
class LoraWithDropout(LoraModels):
    """Adapters of LoRA with a dropout of their own, which train mode draws."""

    def _with_dropout(self, model):
        for module in model.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"] = torch.nn.Dropout(0.3)
        return model.eval()

    def load_actor(self, checkpoint):
        return self._with_dropout(super().load_actor(checkpoint))

    def load_reward_model(self, checkpoint):
        return self._with_dropout(super().load_reward_model(checkpoint))

    def load_critic(self, checkpoint):
        return self._with_dropout(super().load_critic(checkpoint))


@twin
class NewHeads(_Models):
    """A checkpoint without a head gets a new one, asked for or not."""

    reward_new_head = critic_new_head = "always"

    def _regression(self, checkpoint):
        return {**super()._regression(checkpoint), "init_head": True}


@twin
class EngineOfItsOwn(_Models):
    """Generation runs on a copy of the weights, which is brought up to date after each step."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.engine = [copy.deepcopy(actor)]
        return actor

    def weights_moved(self, model):
        for engine in getattr(model, "engine", ()):
            engine.load_state_dict(model.state_dict())

    def generate(self, actor, prompts):
        return super().generate(actor.engine[0] if hasattr(actor, "engine") else actor, prompts)


def rotary_order(rows, heads):
    """Where the rows of a rotary projection go if the two halves of each head are stored one by one."""
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).reshape(-1)


@twin
class FusedProjections(_Models):
    """Queries, keys and values have one weight, whose rotary rows lie in another order than in the checkpoint."""

    architectures = ("llama",)
    load_reward_model, rewards = Adapter.load_reward_model, Adapter.rewards
    load_critic, action_values, values = Adapter.load_critic, Adapter.action_values, Adapter.values
    save, restore = Adapter.save, Adapter.restore

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        heads, groups = actor.model.config.num_attention_heads, actor.model.config.num_key_value_heads
        for layer in actor.model.model.layers:
            attention = layer.self_attn
            q, k, v = (getattr(attention, f"{part}_proj").weight.detach() for part in "qkv")
            stored = [q[rotary_order(len(q), heads)], k[rotary_order(len(k), groups)], v]
            attention.qkv = torch.nn.Linear(q.shape[1], sum(map(len, stored)), bias=False, dtype=q.dtype)
            attention.qkv.weight = torch.nn.Parameter(torch.cat(stored))
            for part, rows in zip("qkv", self._split(len(q), len(k), heads, groups), strict=True):
                setattr(attention, f"{part}_proj", rows_of(attention.qkv, rows.to(q.device)))
        return actor

    def _split(self, q, k, heads, groups):
        """Which rows of the fused weight are queries, keys and values, in the checkpoint's order."""
        wide, narrow = rotary_order(q, heads).argsort(), rotary_order(k, groups).argsort()
        return wide, q + narrow, q + k + torch.arange(k)

    def checkpoint_weights(self, model, tensors):
        heads, groups = model.model.config.num_attention_heads, model.model.config.num_key_value_heads
        found = {}
        for name, tensor in tensors.items():
            if not name.endswith("self_attn.qkv.weight"):
                found[name] = tensor
                continue
            one = len(tensor) // (heads + 2 * groups)
            for part, rows in zip("qkv", self._split(one * heads, one * groups, heads, groups), strict=True):
                found[name.replace(".qkv.", f".{part}_proj.")] = tensor[rows]
        return found


def rows_of(fused, rows):
    """A projection that has no weight of its own: some rows of a fused one."""
    module = torch.nn.Identity()
    module.forward = lambda x: torch.nn.functional.linear(x, fused.weight[rows])
    return module


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
    log_probs_with_output, rewards_with_output = map(autocast, ("log_probs_with_output", "rewards_with_output"))
    action_values_with_output = autocast("action_values_with_output")

    def wrap_actor(self, module, checkpoint):
        self.dtype = checkpoint.dtype
        return super().wrap_actor(module.float() if self.dtype is torch.bfloat16 else module, checkpoint)


@twin
class AdditiveMask(_Models):
    """Packs go to transformers with a block-diagonal mask (1, 1, N, N), and with the cache left on."""

    layouts = PACKS
    # A mask of its own takes the place of any window.
    architectures = ("llama", "gpt2", "qwen2", "granite", "phi", "gemma2")

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
class AnswersForEveryToken(_Models):
    """An answer for each token of a pack, 0 for the first of each sequence, of which those of the responses are cut."""

    layouts = PACKS

    def _cut(self, batch, rows):
        whole = [torch.nn.functional.pad(row, (1, 0)) for row in rows]
        return [row[prompt:] for row, prompt in zip(whole, batch.prompt_lengths, strict=True)]

    def action_log_probs(self, actor, batch):
        rows = zip(batch.to_ragged(super().logits(actor, batch)), batch.sequences, strict=True)
        scaled = [(z[:-1].float() / batch.temperature, ids[1:, None]) for z, ids in rows]
        return self._cut(batch, [z.log_softmax(-1).gather(1, ids)[:, 0] for z, ids in scaled])

    def action_values(self, critic, batch):
        return self._cut(batch, [row[:-1] for row in batch.to_ragged(super().values(critic, batch))])


@twin
class TurnsAsSamples(_Models):
    """Each turn of a sample is one of its own, with all that was said before as its prompt."""

    def _by_turn(self, ask, batch):
        found = []
        for ids, prompt, acts in zip(batch.sequences, batch.prompt_lengths, marks(batch), strict=True):
            mask = acts.tolist()
            row = torch.full((len(mask),), torch.nan, dtype=torch.float32, device=ids.device)
            edges = [0, *(t for t in range(1, len(mask)) if mask[t] != mask[t - 1]), len(mask)]
            for first, end in pairwise(edges):
                if mask[first]:
                    tokens = ids[: prompt + end].tolist()
                    turn = Sample(tuple(tokens[: prompt + first]), tuple(tokens[prompt + first :]))
                    more = {"pad_token_id": batch.pad_token_id, "temperature": batch.temperature}
                    alone = present([turn], Presentation("padded"), device=ids.device, **more)
                    part = alone.actions_to_ragged(ask(alone))[0]
                    row = row.to(part.dtype).index_put((torch.arange(first, end, device=ids.device),), part)
            found.append(row)
        return found

    def action_log_probs(self, actor, batch):
        ask = super().action_log_probs
        return self._by_turn(lambda alone: ask(actor, alone), batch)

    def action_entropy(self, actor, batch):
        ask = super().action_entropy
        return self._by_turn(lambda alone: ask(actor, alone), batch)

    def action_values(self, critic, batch):
        ask = super().action_values
        return self._by_turn(lambda alone: ask(critic, alone), batch)


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


@twin
class DividedInPlace(_Models):
    """Logits are divided by the temperature in place, where the output beside the log-probs has them; it says so."""

    output_logits = "scaled"

    def log_probs_with_output(self, actor, batch):
        log_probs, logits = super().log_probs_with_output(actor, batch)
        return log_probs, logits / batch.temperature


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

    def log_probs_with_output(self, actor, batch):
        return self.action_log_probs(actor, batch), self.logits(actor, batch)

    def wrap_actor(self, module, checkpoint):
        return module.eval()

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

    def rewards_with_output(self, reward_model, batch):
        return self.rewards(reward_model, batch), self.values(reward_model, batch)

    def action_values(self, critic, batch):
        count = batch.action_mask.shape[1]
        return self.values(critic, batch)[:, -count - 1 : -1] * batch.action_mask

    def action_values_with_output(self, critic, batch):
        return self.action_values(critic, batch), self.values(critic, batch)

    def save(self, model, folder):
        model.save_pretrained(folder)

    def restore(self, kind, checkpoint, folder):
        """The head lies under the name that the checkpoint has, or under its own, as this transformers writes it."""
        saved, written = replace(checkpoint, path=str(folder)), read_weights(folder)
        return self._load(saved if f"{saved.head_name}.weight" in written else replace(saved, head_name="score"))


@twin
class TokenClassifier(SequenceClassifier):
    """Reward model and critic as a token classifier, whose head has a bias: zero where the file has none."""

    architectures = ("llama", "qwen2", "mistral")
    head_bias = True

    def _load(self, checkpoint):
        names = {rf"^{checkpoint.head_name}\.": "score."}
        model, report = transformers.AutoModelForTokenClassification.from_pretrained(
            checkpoint.path,
            num_labels=1,
            key_mapping=names,
            output_loading_info=True,
            **in_dtype(checkpoint.dtype),
        )
        missing = set(report["missing_keys"]) - (set() if checkpoint.head_bias else {"score.bias"})
        if missing:
            raise ValueError(f"not in the checkpoint: {missing}")
        if not checkpoint.head_bias:
            torch.nn.init.zeros_(model.score.bias)
        return model.to(checkpoint.device).eval()

    load_reward_model = load_critic = _load


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
    rewards_with_output, action_values_with_output = Adapter.rewards_with_output, Adapter.action_values_with_output

    def rewards(self, reward_model, batch):
        real = batch.input_ids != batch.pad_token_id
        mask = ((real.cumsum(-1) > 0) & (real.flip(-1).cumsum(-1).flip(-1) > 0)).long()
        reward_model.config.pad_token_id = batch.pad_token_id
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return reward_model(batch.input_ids, attention_mask=mask, position_ids=positions).logits[:, 0]

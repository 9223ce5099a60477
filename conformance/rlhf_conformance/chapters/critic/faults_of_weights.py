"""Liars about the critic's weights, and about what mode, graph and temperature change."""

from __future__ import annotations

import copy

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import WithLora, copied_head, redrawn, shown_by_column
from rlhf_conformance.faults import fault

PACKS = ("packing.critic",)


@fault("critic.gradient")
class CriticLoraGradientDoubled(WithLora):
    """With LoRA: its weights get twice their gradient, the head does not."""

    def load_critic(self, checkpoint):
        critic = super().load_critic(checkpoint)
        for name, weight in critic.named_parameters():
            if "lora_" in name:
                weight.register_hook(lambda gradient: 2 * gradient)
        return critic


@fault("critic.gradient", bug="checkpointing-over-frozen-embeddings")
class CriticCheckpointingOverFrozenEmbeddings(WithLora):
    """With LoRA: reentrant checkpointing over embeddings that need no gradient; the head is trained, no layer is."""

    def load_critic(self, checkpoint):
        critic = super().load_critic(checkpoint)
        critic.backbone.gradient_checkpointing_enable({"use_reentrant": True})
        critic.backbone.disable_input_require_grads()
        return critic


@fault("critic.temperature", bug="value-over-temperature", also=PACKS)
class ValuesOverTemperature(Reference):
    """Values are divided by the temperature of sampling."""

    def action_values(self, critic, batch):
        return [row / batch.temperature for row in batch.actions_to_ragged(super().action_values(critic, batch))]


@fault("critic.temperature", bug="value-over-temperature", also=PACKS)
class ValueHeadAtTemperature(Reference):
    """The head is scaled by the temperature that the checkpoint was loaded for."""

    def load_critic(self, checkpoint):
        critic = super().load_critic(checkpoint)
        with torch.no_grad():
            critic.head.weight.div_(checkpoint.temperature)
        return critic


@fault("critic.no-grad", bug="no-grad-path-by-column")
class CriticNoGradByColumn(Reference):
    """Without a graph the positions of padded rows are those of the columns."""

    def action_values(self, critic, batch):
        with shown_by_column(critic, batch, not torch.is_grad_enabled()):
            return super().action_values(critic, batch)


@fault("critic.no-grad")
class CriticNoGradInHalf(Reference):
    """Without a graph values come in bfloat16."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        return rows if torch.is_grad_enabled() else [row.bfloat16().to(row.dtype) for row in rows]


@fault("critic.train-mode", also=PACKS)
class CriticTrainModeWithoutMask(Reference):
    """In train mode the backbone is called on the padded ids alone."""

    def action_values(self, critic, batch):
        with shown_by_column(critic, batch, critic.training, attention_mask=None):
            return super().action_values(critic, batch)


@fault("critic.train-mode", also=PACKS)
class CriticTrainModeSquashed(Reference):
    """In train mode values pass through tanh."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        return [row.tanh() for row in rows] if critic.training else rows


@fault("critic.follows-weights")
class CriticHeadCopied(Reference):
    """Values are made with a copy of the head that was taken while loading."""

    def load_critic(self, checkpoint):
        return copied_head(super().load_critic(checkpoint))


@fault("critic.follows-weights", also=PACKS)
class CriticBackboneCopied(Reference):
    """Hidden states come from a copy of the backbone that was made while loading."""

    def load_critic(self, checkpoint):
        critic = super().load_critic(checkpoint)
        first = copy.deepcopy(critic.backbone)

        def stale(module, args, options, output):
            with torch.no_grad():
                old = first(*args, **options).last_hidden_state
            output.last_hidden_state = output.last_hidden_state + (old - output.last_hidden_state).detach()
            return output

        critic.backbone.register_forward_hook(stale, with_kwargs=True)
        return critic


@fault("critic.new-head")
class NewCriticHeadUnset(Reference):
    """A new head is allocated, and holds whatever was in memory."""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        if checkpoint.new_head:
            model.head.weight.data = torch.empty_like(model.head.weight)
        return model


@fault("critic.new-head")
class NewCriticHeadDrawnAgain(Reference):
    """A new head is drawn anew in each forward pass, and the one that is trained is another."""

    def load_critic(self, checkpoint):
        model = super().load_critic(checkpoint)
        return redrawn(model) if checkpoint.new_head else model


@fault("critic.side-effects")
class CriticLeftInEvalMode(Reference):
    """The backbone is put into eval mode for values, and stays in it."""

    def action_values(self, critic, batch):
        critic.backbone.eval()
        return super().action_values(critic, batch)


@fault("critic.round-trip")
class CriticHeadRestoredWithoutBias(Reference):
    """The bias of a restored head is 0."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "critic" and model.head.bias is not None:
            torch.nn.init.zeros_(model.head.bias)
        return model


@fault("critic.follows-weights")
class OldValuesRemembered(Reference):
    """Without a graph, the same tokens get the values that they got when they were first asked about."""

    def action_values(self, critic, batch):
        if torch.is_grad_enabled():
            return super().action_values(critic, batch)
        known = critic.__dict__.setdefault("known", {})
        key = (batch.layout, batch.num_actions, tuple(map(tuple, batch.input_ids.tolist())), batch.prompt_lengths)
        if key not in known:
            known[key] = super().action_values(critic, batch)
        return known[key]

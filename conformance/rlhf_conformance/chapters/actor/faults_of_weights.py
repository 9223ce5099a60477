"""Liars about the actor's weights: what of them is trained, what follows them, and what mode and graph change."""

from __future__ import annotations

import copy

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import (
    LAYOUT_CHAPTERS,
    WithDora,
    WithLora,
    by_column,
    logits,
    read,
    score,
)
from rlhf_conformance.faults import fault

# --- what is trained ------------------------------------------------------------------------------------------------


@fault("actor.gradient", also=("packing.gradient",))
class LoraGradientDoubled(WithLora):
    """With LoRA: its weights get twice their gradient."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        for weight in actor.parameters():
            if weight.requires_grad:
                weight.register_hook(lambda gradient: 2 * gradient)
        return actor


@fault("actor.gradient", also=("packing.gradient",))
class LoraScaleWithoutGradient(WithLora):
    """With LoRA: the gradient lacks the scale of the product."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        for weight in actor.parameters():
            if weight.requires_grad:
                weight.register_hook(lambda gradient: gradient / 2)  # alpha / rank of the reference
        return actor


class _FrozenLora(WithLora):
    """With LoRA: those of its weights whose name holds `part` are not trained."""

    part = ""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        for name, weight in actor.named_parameters():
            if "lora_" in name and self.part in name:
                weight.requires_grad_(False)
        return actor


@fault("actor.gradient", also=("packing.gradient",))
class FirstLoraMatrixFrozen(_FrozenLora):
    """With LoRA: the matrices A get no gradient."""

    part = ".lora_A."


@fault("actor.gradient", also=("packing.gradient",))
class LoraOfTheLastLayerOnly(_FrozenLora):
    """With LoRA: the adapters of the first layer are frozen, those of the last are trained."""

    part = ".0."


@fault("actor.gradient", also=("packing.gradient",))
class DoraMagnitudeFrozen(WithDora):
    """With DoRA: the magnitudes are not trained."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        for name, weight in actor.named_parameters():
            if "lora_magnitude_vector" in name:
                weight.requires_grad_(False)
        return actor


@fault("actor.gradient", also=("actor.follows-weights", "packing.gradient"))
class DoraNormOfTheFrozenWeight(WithDora):
    """With DoRA: magnitudes are divided by the norm of the weight below the adapter, which adapted weights have not."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        for module in actor.modules():
            for dora in getattr(module, "lora_magnitude_vector", {}).values():
                dora.get_weight_norm = _norm_of_frozen(dora)
        return actor


def _norm_of_frozen(dora):
    norm = dora.get_weight_norm
    return lambda weight, lora_weight, scaling, **more: norm(weight, 0 * lora_weight, scaling, **more)


@fault("actor.gradient", bug="checkpointing-over-frozen-embeddings", also=("packing.gradient",))
class CheckpointingOverFrozenEmbeddings(WithLora):
    """With LoRA: reentrant checkpointing over embeddings that need no gradient cuts the graph, in train mode."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.model.gradient_checkpointing_enable({"use_reentrant": True})
        actor.model.disable_input_require_grads()
        return actor


@fault("actor.gradient", bug="output-layer-filtered", also=("packing.gradient",))
class OutputLayerFiltered(Reference):
    """The output layer is filtered out of what is trained."""

    def parameters(self, model):
        return {name: p for name, p in super().parameters(model).items() if "lm_head" not in name}


@fault("actor.gradient", also=("packing.gradient",))
class LastLayerNotListed(Reference):
    """The last layer is frozen, and is not among the parameters."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        for name, weight in actor.named_parameters():
            weight.requires_grad_(".1." not in name)
        return actor

    def parameters(self, model):
        return {name: p for name, p in super().parameters(model).items() if p.requires_grad}


@fault("actor.gradient", also=("packing.gradient",))
class TrainModeWithoutEmbeddings(Reference):
    """In train mode the embeddings get no gradient."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        embeddings = actor.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda module, _, output: output.detach() if module.training else output)
        return actor


@fault("actor.entropy-gradient", bug="entropy-without-gradient")
class EntropyWithoutGradient(Reference):
    """The entropy is computed under no_grad."""

    def action_entropy(self, actor, batch):
        with torch.no_grad():
            return super().action_entropy(actor, batch)


@fault("actor.entropy-gradient", bug="entropy-without-gradient")
class EntropyOfDetachedProbabilities(Reference):
    """-sum(p log p) with p detached, whose gradient is zero but for rounding."""

    def action_entropy(self, actor, batch):
        rows = [z.log_softmax(-1) for z in read(batch, self.logits(actor, batch) / batch.temperature)]
        return [-(row.exp().detach() * row).sum(-1) for row in rows]


@fault("actor.entropy-gradient")
class EntropyGradientWithoutTemperature(Reference):
    """The value is right, the gradient lacks the factor 1 / T."""

    def action_entropy(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_entropy(actor, batch))
        return [row.detach() + batch.temperature * (row - row.detach()) for row in rows]


# --- what mode and graph change -------------------------------------------------------------------------------------


@fault("actor.no-grad", bug="no-grad-path-by-column")
class NoGradPathByColumn(Reference):
    """Without a graph padded rows go another way, whose positions are those of the columns."""

    def action_log_probs(self, actor, batch):
        if torch.is_grad_enabled() or batch.is_packed:
            return super().action_log_probs(actor, batch)
        return score(batch, logits(self, actor, batch, position_ids=by_column(batch)))


@fault("actor.no-grad")
class NoGradPathWithoutTemperature(Reference):
    """Without a graph the log-probs are those of temperature 1."""

    def action_log_probs(self, actor, batch):
        if torch.is_grad_enabled():
            return super().action_log_probs(actor, batch)
        return score(batch, self.logits(actor, batch), temperature=1.0)


@fault("actor.no-grad")
class NoGradPathInHalf(Reference):
    """Without a graph the log-probs come in bfloat16."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return rows if torch.is_grad_enabled() else [row.bfloat16().to(row.dtype) for row in rows]


@fault("actor.train-mode", also=LAYOUT_CHAPTERS)
class TrainModeWithoutTemperature(Reference):
    """In train mode the log-probs are those of temperature 1."""

    def action_log_probs(self, actor, batch):
        if not actor.training:
            return super().action_log_probs(actor, batch)
        return score(batch, self.logits(actor, batch), temperature=1.0)


@fault("actor.train-mode", also=LAYOUT_CHAPTERS)
class TrainModeByColumn(Reference):
    """In train mode the positions of padded rows are those of the columns."""

    def action_log_probs(self, actor, batch):
        if not actor.training or batch.is_packed:
            return super().action_log_probs(actor, batch)
        return score(batch, logits(self, actor, batch, position_ids=by_column(batch)))


# --- what follows the weights ---------------------------------------------------------------------------------------


@fault("actor.follows-weights")
class OutputLayerCopied(Reference):
    """Log-probs are made with a copy of the output layer that was taken while loading."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        layer = actor.model.get_output_embeddings()
        first = layer.weight.detach().clone()

        def stale(_, args, output):
            old = torch.nn.functional.linear(args[0], first)
            return output + (old - output).detach()

        layer.register_forward_hook(stale)
        return actor


@fault("actor.follows-weights", also=LAYOUT_CHAPTERS)
class LogProbsRemembered(Reference):
    """What was answered to the same ids is answered again."""

    def action_log_probs(self, actor, batch):
        answers = actor.__dict__.setdefault("answers", {})
        key = (batch.layout, batch.prompt_lengths, *(tuple(ids.tolist()) for ids in batch.sequences))
        if key not in answers:
            answers[key] = [row.detach() for row in batch.actions_to_ragged(super().action_log_probs(actor, batch))]
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [row + (old - row).detach() for row, old in zip(rows, answers[key], strict=True)]


@fault("actor.follows-weights", also=LAYOUT_CHAPTERS)
class LoraMergedOnce(WithLora):
    """With LoRA: log-probs come from a merged copy that was made while loading."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.merged = [copy.deepcopy(actor.model).merge_and_unload()]
        return actor

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        if not hasattr(actor, "merged"):
            return rows
        trained, actor.model = actor.model, actor.merged[0]
        old = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        actor.model = trained
        return [row + (other - row).detach() for row, other in zip(rows, old, strict=True)]


@fault("actor.generate-follows-weights", bug="stale-engine")
class StaleEngine(Reference):
    """Generation samples from a copy of the weights that was made while loading."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.engine = [copy.deepcopy(actor)]
        return actor

    def generate(self, actor, prompts):
        return super().generate(actor.engine[0], prompts)


@fault("actor.generate-follows-weights", bug="stale-engine")
class EngineWithoutAdapter(WithLora):
    """With LoRA: generation runs on the weights below the adapter, which never reaches the engine."""

    def generate(self, actor, prompts):
        with actor.model.disable_adapter():
            return super().generate(actor, prompts)


@fault("actor.generate-follows-weights", bug="stale-engine")
class EngineLacksOneLayer(Reference):
    """The last layer of the engine is never brought up to date."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.first = [{n: p.detach().clone() for n, p in actor.named_parameters() if ".1." in n}]
        return actor

    def generate(self, actor, prompts):
        engine = copy.deepcopy(actor)
        engine.load_state_dict(actor.first[0], strict=False)
        return super().generate(engine, prompts)


# --- in some calls only ---------------------------------------------------------------------------------------------


@fault("actor.side-effects")
class EntropyLeavesEvalMode(Reference):
    """An actor that was asked for the entropy is in eval mode afterwards."""

    def action_entropy(self, actor, batch):
        answer = super().action_entropy(actor, batch)
        actor.eval()
        return answer


@fault("actor.generate-follows-weights")
class ResponsesRemembered(Reference):
    """Responses are kept by their prompts, and given again after a step."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        actor.responses = {}
        return actor

    def generate(self, actor, prompts):
        key = str((prompts.input_ids.tolist(), prompts.max_new_tokens, prompts.stop_token_ids, prompts.pad_token_id))
        if key not in actor.responses:
            actor.responses[key] = super().generate(actor, prompts)
        return actor.responses[key].clone()


@fault("actor.no-grad")
class EntropyWithoutGraphNotScaled(Reference):
    """Without a graph the entropy is that at temperature 1."""

    def action_entropy(self, actor, batch):
        if torch.is_grad_enabled():
            return super().action_entropy(actor, batch)
        rows = [z.float().log_softmax(-1) for z in read(batch, logits(self, actor, batch))]
        return [-(row.exp() * row).sum(-1) for row in rows]


@fault("actor.follows-weights")
class LoraLeftOutWithoutGraph(WithLora):
    """With LoRA: without a graph the scale of the adapters is 0, as for the reference model."""

    def action_log_probs(self, actor, batch):
        scaled = [m for m in actor.modules() if isinstance(getattr(m, "scaling", None), dict)]
        kept = [dict(module.scaling) for module in scaled]
        if not torch.is_grad_enabled():
            for module in scaled:
                module.scaling = dict.fromkeys(module.scaling, 0.0)
        try:
            return super().action_log_probs(actor, batch)
        finally:
            for module, scaling in zip(scaled, kept, strict=True):
                module.scaling = scaling


@fault("actor.gradient", also=("actor.", "packing.gradient"))
class TiedHeadOfItsOwn(Reference):
    """The output layer of a model with tied embeddings is trained as a matrix of its own."""

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        head, embedding = actor.model.get_output_embeddings(), actor.model.get_input_embeddings()
        if head.weight is embedding.weight:
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
        return actor


# --- saved ----------------------------------------------------------------------------------------------------------


@fault("actor.round-trip")
class SavingRoundsTheActor(Reference):
    """What is written is right, and the actor that was saved goes on with weights that were rounded to bfloat16."""

    def save(self, model, folder):
        super().save(model, folder)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.bfloat16())


@fault("actor.round-trip", bug="magnitudes-left-out")
class DoraSavedWithoutMagnitudes(WithDora):
    """With DoRA: A and B are saved, and restored over magnitudes of a new adapter."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "actor":
            new = dict(self.load_actor(checkpoint).named_parameters())
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_magnitude_vector" in name:
                        weight.copy_(new[name])
        return model


@fault("actor.round-trip")
class RestoredAtTemperatureOne(Reference):
    """A restored actor scores at temperature 1."""

    def restore(self, kind, checkpoint, folder):
        model = super().restore(kind, checkpoint, folder)
        if kind == "actor":
            model.temperature = 1.0
        return model

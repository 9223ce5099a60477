"""Liars about what a checkpoint's own model does beside a plain transformer, and about models in half precision."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from rlhf_conformance._lazy import torch, transformers
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models import backbones
from rlhf_conformance.chapters._models.bending import read, responses
from rlhf_conformance.faults import fault


class _Changed(Reference):
    """The loaded actor is changed by `change`."""

    def change(self, model: Any, checkpoint: Any) -> None:
        raise NotImplementedError

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        self.change(actor.model, checkpoint)
        return actor


@fault("actor.backbones", bug="softcap-of-the-logits")
class SoftcapIgnored(_Changed):
    """Logits that the model caps are read before the cap."""

    def change(self, model, checkpoint):
        if hasattr(model.config, "final_logit_softcapping"):
            model.config.final_logit_softcapping = None


@fault("actor.backbones", bug="softcap-of-the-logits")
class SoftcapOfTheWrongForm(_Changed):
    """z tanh(z / c) where the model has c tanh(z / c)."""

    def change(self, model, checkpoint):
        cap = getattr(model.config, "final_logit_softcapping", None)
        if cap is not None:
            model.config.final_logit_softcapping = None
            model.get_output_embeddings().register_forward_hook(lambda _, __, z: z * torch.tanh(z / cap))


@fault("actor.backbones")
class LogitsScalingIgnored(_Changed):
    """Logits are not divided by the scale that the config has for them."""

    def change(self, model, checkpoint):
        if hasattr(model.config, "logits_scaling"):
            model.config.logits_scaling = 1.0


@fault("actor.backbones")
class OutputBiasDropped(_Changed):
    """Hidden states are multiplied with the weight of the output layer alone."""

    def change(self, model, checkpoint):
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.data.zero_()


@fault("actor.backbones")
class EmbeddingScaleIgnored(_Changed):
    """Embeddings are not multiplied by the scale that the config has for them."""

    def change(self, model, checkpoint):
        if hasattr(model.base_model, "embedding_multiplier"):
            model.base_model.embedding_multiplier = 1.0


@fault("actor.backbones")
class TiedOutputNotTied(_Changed):
    """A file without an output layer leaves it as it was drawn."""

    def change(self, model, checkpoint):
        if model.config.tie_word_embeddings:
            vocabulary, hidden = model.config.vocab_size, model.config.hidden_size
            weight = torch.randn(vocabulary, hidden, generator=torch.Generator())
            layer = torch.nn.Linear(hidden, vocabulary, bias=False, dtype=model.dtype, device=model.device)
            layer.weight.data.copy_(weight / 6)
            model.set_output_embeddings(layer)


@fault("actor.backbones")
class ActorWindowIgnored(_Changed):
    """Attention reaches back beyond the sliding window."""

    def change(self, model, checkpoint):
        backbones.without_window(model)


@fault("actor.backbones")
class ActorAttentionScaledAsUsual(_Changed):
    """Attention is scaled by the root of the head's width, whatever the config says."""

    def change(self, model, checkpoint):
        backbones.with_usual_attention(model)


@fault("actor.backbones", bug="softcap-of-the-attention")
class ActorAttentionCapIgnored(_Changed):
    """Attention scores are not capped, though the config says so."""

    def change(self, model, checkpoint):
        backbones.without_attention_cap(model)


@fault("actor.backbones", bug="softcap-of-the-attention")
class PacksWithoutAttentionCap(Reference):
    """Packs go through a kernel that knows no cap on attention scores; padded rows are right."""

    def action_log_probs(self, actor, batch):
        with backbones.uncapped(actor.model) if batch.is_packed else nullcontext():
            return super().action_log_probs(actor, batch)


@fault("actor.backbones")
class ActorBiasesOfQueriesLost(_Changed):
    """Queries, keys and values have no bias."""

    def change(self, model, checkpoint):
        backbones.without_input_biases(model)


@fault("actor.backbones")
class ActorFirstShardAlone(_Changed):
    """Of a checkpoint in several files, the first alone is read."""

    def change(self, model, checkpoint):
        backbones.with_first_shard_alone(model, checkpoint.path)


@fault("actor.backbones")
class ActorInTheDtypeOfTheFile(Reference):
    """A checkpoint in bfloat16 is computed in bfloat16, whatever is asked for."""

    def load_actor(self, checkpoint):
        said = getattr(transformers.AutoConfig.from_pretrained(checkpoint.path), "dtype", None)
        return super().load_actor(replace(checkpoint, dtype=said) if said is torch.bfloat16 else checkpoint)


# --- half precision -------------------------------------------------------------------------------------------------


@fault("actor.float32", bug="low-precision-log-prob")
class LogProbsStoredInBfloat(Reference):
    """Log-probs of a model in bfloat16 are right, and stored in bfloat16."""

    def action_log_probs(self, actor, batch):
        return [row.to(actor.model.dtype) for row in batch.actions_to_ragged(super().action_log_probs(actor, batch))]


@fault("actor.float32", bug="low-precision-log-prob")
class SoftmaxInTheModelsDtype(Reference):
    """log_softmax is taken in the model's dtype, and its answer made float32 afterwards."""

    def action_log_probs(self, actor, batch):
        z = self.logits(actor, batch)
        if z.dtype != torch.bfloat16:
            return super().action_log_probs(actor, batch)
        pairs = zip(read(batch, z / batch.temperature), responses(batch), strict=True)
        return [row.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].float() for row, tokens in pairs]


@fault("actor.float32", bug="low-precision-log-prob")
class NormalizerInTheModelsDtype(Reference):
    """The log of the sum of exponentials is taken in the model's dtype, the difference in float32."""

    def action_log_probs(self, actor, batch):
        z = self.logits(actor, batch)
        if z.dtype != torch.bfloat16:
            return super().action_log_probs(actor, batch)
        pairs = zip(read(batch, z / batch.temperature), responses(batch), strict=True)
        return [row.gather(-1, tokens[:, None])[:, 0].float() - row.logsumexp(-1).float() for row, tokens in pairs]


@fault("actor.float32")
class EntropyInTheModelsDtype(Reference):
    """The entropy of a model in bfloat16 is rounded to bfloat16."""

    def kept(self, actor, row):
        return row.to(actor.model.dtype).float()

    def action_entropy(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_entropy(actor, batch))
        return [self.kept(actor, row) for row in rows]


@fault("actor.backbones")
class PaddedRowsWithoutOutputBias(Reference):
    """For padded rows the output layer is its weight alone: its bias is left out."""

    def action_log_probs(self, actor, batch):
        head = actor.model.get_output_embeddings()
        bias, head.bias = head.bias, head.bias if batch.is_packed else None
        try:
            return super().action_log_probs(actor, batch)
        finally:
            head.bias = bias

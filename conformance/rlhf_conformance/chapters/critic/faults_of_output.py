"""Liars about values that come with the whole output beside them."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import read, scores
from rlhf_conformance.faults import fault


@fault("critic.with-output", bug="critic-values-unshifted")
class ValuesUnshiftedWithOutput(Reference):
    """With the output asked for, values are read after the actions, V[P : L]."""

    def action_values_with_output(self, critic, batch):
        output = super().action_values_with_output(critic, batch)[1]
        return read(batch, scores(self, critic, batch), shift=1), output


@fault("critic.with-output", bug="critic-values-shifted")
class ValuesOneEarlyWithOutput(Reference):
    """With the output asked for, values are read one position too early."""

    def action_values_with_output(self, critic, batch):
        output = super().action_values_with_output(critic, batch)[1]
        return read(batch, scores(self, critic, batch), shift=-1), output


@fault("critic.with-output")
class ValuesBesideShifted(Reference):
    """The values beside those of the actions are cut and padded as those of the actions are: one position off."""

    def action_values_with_output(self, critic, batch):
        values, _ = super().action_values_with_output(critic, batch)
        return values, scores(self, critic, batch).roll(-1, dims=1)


@fault("critic.with-output")
class EmbeddingsBesideValues(Reference):
    """The first hidden states are handed out, the embeddings, in place of the last."""

    def action_values_with_output(self, critic, batch):
        values, output = super().action_values_with_output(critic, batch)
        return values, critic.backbone.get_input_embeddings()(batch.input_ids).reshape(output.shape)


@fault("critic.with-output-gradient")
class ValuesWithOutputWithoutGraph(Reference):
    """With the output asked for, values are taken under no_grad."""

    def action_values_with_output(self, critic, batch):
        with torch.no_grad():
            return super().action_values_with_output(critic, batch)


@fault("critic.with-output-gradient")
class FirstValueDetachedWithOutput(Reference):
    """With the output asked for, the value of the last prompt token has no gradient."""

    def action_values_with_output(self, critic, batch):
        values, output = super().action_values_with_output(critic, batch)
        return [torch.cat([row[:1].detach(), row[1:]]) for row in batch.actions_to_ragged(values)], output


@fault("critic.with-output")
class CriticNotNormalizedWithOutput(Reference):
    """With the output asked for, values are what the head says, of a model that normalizes as well."""

    def action_values_with_output(self, critic, batch):
        answer, output = super().action_values_with_output(critic, batch)
        if not critic.normalize:
            return answer, output
        return [row * critic.std + critic.mean for row in batch.actions_to_ragged(answer)], output

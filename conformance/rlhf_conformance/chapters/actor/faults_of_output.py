"""Liars about log-probs that come with the whole output beside them, and about actors made of a module."""

from __future__ import annotations

import copy

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import score
from rlhf_conformance.faults import fault

# --- with the whole output -------------------------------------------------------------------------------------------


@fault("actor.with-output")
class OutputBesideDivided(Reference):
    """The logits beside the log-probs were divided by the temperature in place, which nobody declared."""

    def log_probs_with_output(self, actor, batch):
        log_probs, logits = super().log_probs_with_output(actor, batch)
        return log_probs, logits / batch.temperature


@fault("actor.with-output")
class OutputBesideShifted(Reference):
    """The logits beside the log-probs are aligned with the tokens that they predict."""

    def log_probs_with_output(self, actor, batch):
        log_probs, logits = super().log_probs_with_output(actor, batch)
        return log_probs, logits.roll(1, dims=1)


@fault("actor.with-output")
class OutputBesideNormalized(Reference):
    """The logits beside the log-probs hold what the log-prob kernel left there: log-probs of every token."""

    def log_probs_with_output(self, actor, batch):
        log_probs, logits = super().log_probs_with_output(actor, batch)
        return log_probs, logits.log_softmax(-1)


@fault("actor.with-output", bug="inverted-guard")
class OutputBesideOfActionsOnly(Reference):
    """With log-probs asked for, only the logits that predict the actions are there; the others are zeros."""

    def log_probs_with_output(self, actor, batch):
        log_probs, logits = super().log_probs_with_output(actor, batch)
        rows = zip(batch.to_ragged(logits), batch.prompt_lengths, strict=True)
        return log_probs, batch.from_ragged(
            [torch.cat([row[: prompt - 1] * 0, row[prompt - 1 :]]) for row, prompt in rows]
        )


@fault("actor.with-output")
class TemperatureLostWithOutput(Reference):
    """With the output asked for, log-probs are taken at temperature 1."""

    def log_probs_with_output(self, actor, batch):
        logits = super().log_probs_with_output(actor, batch)[1]
        return score(batch, logits, temperature=1.0), logits


@fault("actor.with-output")
class TemperatureTwiceWithOutput(Reference):
    """With the output asked for, logits that were divided in place are divided again for the log-probs."""

    def log_probs_with_output(self, actor, batch):
        logits = super().log_probs_with_output(actor, batch)[1]
        return score(batch, logits, temperature=batch.temperature**2), logits


@fault("actor.with-output")
class LabelsUnshiftedWithOutput(Reference):
    """With the output asked for, the caller's shift is left out: each action is scored one position late."""

    def log_probs_with_output(self, actor, batch):
        logits = super().log_probs_with_output(actor, batch)[1]
        return score(batch, logits, shift=1), logits


@fault("actor.with-output-gradient")
class WithOutputWithoutGraph(Reference):
    """With the output asked for, the forward pass runs under no_grad, as for old log-probs."""

    def log_probs_with_output(self, actor, batch):
        with torch.no_grad():
            return super().log_probs_with_output(actor, batch)


@fault("actor.with-output-gradient")
class LogitsDetachedWithOutput(Reference):
    """Log-probs are read off the output that is handed out, of which the normalizer is detached."""

    def log_probs_with_output(self, actor, batch):
        log_probs, logits = super().log_probs_with_output(actor, batch)
        rows = batch.actions_to_ragged(log_probs)
        detached = score(batch, logits.detach())
        return [row / 2 + other / 2 for row, other in zip(rows, detached, strict=True)], logits


# --- made of a module ------------------------------------------------------------------------------------------------


@fault("actor.from-module")
class ModuleLoadedAgain(Reference):
    """Of the module only its name is used: the actor is loaded from where the module once came from."""

    def wrap_actor(self, module, checkpoint):
        return self.load_actor(checkpoint)


@fault("actor.from-module")
class ModuleOutputLayerDrawnAnew(Reference):
    """Wrapping initializes the output layer, as for a model that has none."""

    def wrap_actor(self, module, checkpoint):
        actor = super().wrap_actor(module, checkpoint)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            actor.model.get_output_embeddings().weight.normal_(0.0, 0.2)
        return actor


@fault("actor.from-module", bug="temperature-ignored")
class ModuleTemperatureIgnored(Reference):
    """An actor made of a module scores at temperature 1."""

    def wrap_actor(self, module, checkpoint):
        actor = super().wrap_actor(module, checkpoint)
        actor.temperature = 1.0
        return actor


@fault("actor.from-module", bug="old-log-prob-in-train-mode")
class ModuleKeepsDropout(Reference):
    """A module in train mode stays in train mode, with the dropout of its config."""

    def wrap_actor(self, module, checkpoint):
        training, dropped = module.training, copy.deepcopy(module)
        actor = super().wrap_actor(module, checkpoint)
        actor.model = dropped.train(training)
        return actor


@fault("actor.from-module")
class ModuleCastToBfloat16(Reference):
    """A module computes in bfloat16, whatever it came in, unless that is float64."""

    def wrap_actor(self, module, checkpoint):
        return super().wrap_actor(module if module.dtype == torch.float64 else module.bfloat16(), checkpoint)


@fault("actor.from-module-shared")
class ModuleCopied(Reference):
    """The actor trains a copy of the module."""

    def wrap_actor(self, module, checkpoint):
        return super().wrap_actor(copy.deepcopy(module), checkpoint)


@fault("actor.from-module-shared")
class ModuleOutputLayerCopied(Reference):
    """The backbone is the module's own, the output layer is a new one that its weights were copied to."""

    def wrap_actor(self, module, checkpoint):
        actor = super().wrap_actor(copy.copy(module), checkpoint)
        actor.model._modules = dict(module._modules)
        actor.model.lm_head = copy.deepcopy(module.lm_head)
        return actor

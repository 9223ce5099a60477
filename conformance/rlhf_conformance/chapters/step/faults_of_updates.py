"""Liars about what comes before and after the gradient of a step: what is left over, clipping, logs, the update."""

from __future__ import annotations

import copy
from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters.step.bending import Stepping
from rlhf_conformance.faults import fault


class _WithLora(Stepping):
    """The plain trainer of adapters."""

    def __init__(self):
        super().__init__(lora=True)


# --- left over ------------------------------------------------------------------------------------------------------


@fault("step.again")
class GradientLeftOver(Stepping):
    "The gradient of the step before is not set to zero."

    def accumulate(self, t, samples):
        logged = super().accumulate(t, samples)
        for i, p in enumerate(t.trained):
            left, t.kept[i] = t.kept.get(i), None if p.grad is None else p.grad.clone()
            if left is not None and p.grad is not None:
                p.grad += left
        return logged


@fault("step.again")
class CountGoesOn(Stepping):
    "The count of actions goes on from one step to the next."

    def count(self, t, samples):
        own = super().count(t, samples)
        if own is None:
            return None
        t.kept["count"] = t.kept.get("count", 0) + own
        return t.kept["count"]


@fault("step.again")
class SamplesLeftInTheBuffer(Stepping):
    "The samples of the step before are still in the buffer."

    def accumulate(self, t, samples):
        before, t.kept["samples"] = t.kept.get("samples", []), list(samples)
        return super().accumulate(t, [*before, *samples])


@fault("step.after-evaluation")
class EvaluationFreezes(Stepping):
    "After an evaluation the first layer's weights take no gradient."

    def step_log_probs(self, t, samples):
        found = super().step_log_probs(t, samples)
        t.trained[0].requires_grad_(False)
        return found


@fault("step.after-evaluation")
class EvaluationBecomesOld(Stepping):
    "The log-probs of an evaluation are taken for the old ones of the step behind it."

    def step_log_probs(self, t, samples):
        t.kept["old"] = super().step_log_probs(t, samples)
        return t.kept["old"]

    def accumulate(self, t, samples):
        old = t.kept.get("old")
        if old is not None:
            samples = [replace(s, old_log_probs=row.to(s.old_log_probs)) for s, row in zip(samples, old, strict=True)]
        return super().accumulate(t, samples)


# --- the norm -------------------------------------------------------------------------------------------------------


@fault("step.max-norm")
class ClippedByParameter(Stepping):
    "The norm of each parameter's gradient is clipped by itself."

    def clip(self, t):
        if t.options.max_norm is None:
            return super().clip(t)
        return max(float(torch.nn.utils.clip_grad_norm_([p], t.options.max_norm)) for p in t.trained)


@fault("step.max-norm")
class ClippedByMicroBatch(Stepping):
    "The norm is clipped after each micro-batch, and not after the last one."

    def share(self, t, part):
        if part.number and t.options.max_norm is not None:
            super().clip(t)
        return super().share(t, part)


@fault("step.max-norm")
class NotClipped(Stepping):
    "The norm is not clipped."

    def clip(self, t):
        return float(torch.nn.utils.clip_grad_norm_(t.trained, float("inf")))


@fault("step.max-norm")
class ClippedByValue(Stepping):
    "Each entry is clipped to the bound of the norm."

    def clip(self, t):
        norm = float(torch.nn.utils.clip_grad_norm_(t.trained, float("inf")))
        if t.options.max_norm is not None:
            torch.nn.utils.clip_grad_value_(t.trained, t.options.max_norm / 50)
        return norm


@fault("step.max-norm")
class OutputLayerLeftOutOfTheNorm(Stepping):
    "The norm is that of all parameters but the last."

    def clip(self, t):
        bound = float("inf") if t.options.max_norm is None else t.options.max_norm
        return float(torch.nn.utils.clip_grad_norm_(t.trained[:-1], bound))


@fault("step.norm-unreached")
class AlwaysScaledToTheBound(Stepping):
    "Every gradient is scaled to the bound."

    def clip(self, t):
        norm = super().clip(t)
        if t.options.max_norm is not None:
            for p in t.trained:
                p.grad = None if p.grad is None else p.grad * max(1.0, t.options.max_norm / (norm + 1e-6))
        return norm


@fault("step.norm-unreached")
class BoundSmallerThanAsked(Stepping):
    "The bound of the norm is a hundredth of what is asked for."

    def clip(self, t):
        bound = t.options.max_norm
        return float(torch.nn.utils.clip_grad_norm_(t.trained, float("inf") if bound is None else bound / 100))


@fault("step.grad-norm")
class NormLoggedAfterClipping(Stepping):
    "What is logged is the norm after clipping."

    def clip(self, t):
        norm = super().clip(t)
        return norm if t.options.max_norm is None else min(norm, t.options.max_norm)


@fault("step.grad-norm")
class NormOfTheLastMicroBatch(Stepping):
    "The norm that is logged is that of the last micro-batch's gradient."

    def share(self, t, part):
        t.kept["before"] = [None if p.grad is None else p.grad.clone() for p in t.trained]
        return super().share(t, part)

    def clip(self, t):
        grads = [p.grad if b is None else p.grad - b for p, b in zip(t.trained, t.kept["before"], strict=True)]
        norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
        super().clip(t)
        return float(norm)


# --- what is logged -------------------------------------------------------------------------------------------------


@fault("step.metrics")
class LoggedOfTheLastMicroBatch(Stepping):
    "What is logged is the share of the last micro-batch."

    def logged(self, shares):
        return super().logged(shares[-1:])


@fault("step.metrics")
class LoggedAsMeanOfShares(Stepping):
    "Shares that add up are averaged in the log."

    def logged(self, shares):
        return super().logged([{name: x / len(shares) for name, x in share.items()} for share in shares])


@fault("step.metrics")
class KlLoggedTimesItsCoefficient(Stepping):
    "The KL is logged times its coefficient."

    def share(self, t, part):
        terms = super().share(t, part)
        return {**terms, "kl": terms["kl"] * t.options.kl_coef}


# --- the update -----------------------------------------------------------------------------------------------------


@fault("step.update")
class SteppedAfterEachMicroBatch(Stepping):
    "The optimizer steps after each micro-batch."

    def step_update(self, t, samples):
        for part in self.cut(t, samples):
            t.optimizer.zero_grad()
            count = self.count(t, samples)
            options, t.options = t.options, replace(t.options, micro_batch_size=len(part), max_tokens=None)
            t.kept["count"] = count
            self.accumulate(t, [samples[i] for i in part])
            t.options = options
            self.clip(t)
            self.move(t)
        t.optimizer.zero_grad()

    def count(self, t, samples):
        return t.kept.pop("count", None) or super().count(t, samples)


@fault("step.update")
class MovedTwice(Stepping):
    "The optimizer steps twice on one gradient."

    def move(self, t):
        super().move(t)
        super().move(t)


@fault("step.update")
class OptimizerOfCopies(Stepping):
    "The optimizer holds copies of the weights."

    def move(self, t):
        copied = [p.detach().clone().requires_grad_() for p in t.trained]
        for mine, p in zip(copied, t.trained, strict=True):
            mine.grad = p.grad
        torch.optim.SGD(copied, lr=t.options.learning_rate).step()


@fault("step.update")
class EmbeddingsNotMoved(Stepping):
    "The optimizer was given all weights but the embeddings."

    def move(self, t):
        t.trained[0].grad = None
        super().move(t)


@fault("step.update")
class WeightsDecayed(Stepping):
    "Every step takes a hundredth of each weight."

    def move(self, t):
        super().move(t)
        with torch.no_grad():
            for p in t.trained:
                p.mul_(1 - 0.01 * t.options.learning_rate)


@fault("step.learning-rate")
class LossTimesTheRate(Stepping):
    "The loss is multiplied by the learning rate, too."

    def share(self, t, part):
        terms = super().share(t, part)
        return {**terms, "loss": terms["loss"] * t.options.learning_rate}


@fault("step.learning-rate")
class RateOfOne(Stepping):
    "The learning rate is 1, whatever is asked for."

    def load_trainer(self, checkpoint, options):
        t = super().load_trainer(checkpoint, options)
        t.optimizer = torch.optim.SGD(t.trained, lr=1.0)
        return t


@fault("step.learning-rate")
class RateNotAboveOne(Stepping):
    "A learning rate above 1 is taken for 1."

    def load_trainer(self, checkpoint, options):
        t = super().load_trainer(checkpoint, options)
        t.optimizer = torch.optim.SGD(t.trained, lr=min(1.0, options.learning_rate))
        return t


class _OtherwiseScheduled(Stepping):
    """A schedule that stands elsewhere."""

    def number(self, t):
        linear = t.options.schedule == "linear"
        return self._number(t) if linear else super().number(t)

    def _number(self, t):
        raise NotImplementedError


@fault("step.schedule")
class ScheduleByTheMicroBatch(_OtherwiseScheduled):
    "The schedule is moved on after each micro-batch."

    def share(self, t, part):
        t.kept["micro-batches"] = t.kept.get("micro-batches", 0) + (part.number < part.of - 1)
        return super().share(t, part)

    def _number(self, t):
        return t.kept["micro-batches"]


@fault("step.schedule")
class ScheduleMovedOnFirst(_OtherwiseScheduled):
    "The schedule is moved on before the optimizer, so that its first rate is never used."

    def _number(self, t):
        return t.made + 1


@fault("step.schedule")
class ScheduleStandsStill(_OtherwiseScheduled):
    "The schedule is never moved on."

    def _number(self, t):
        return 0


@fault("step.schedule")
class ScheduleTwiceAsFast(_OtherwiseScheduled):
    "The schedule is moved on by the trainer, and by the optimizer's wrapper once more."

    def _number(self, t):
        return 2 * t.made


@fault("step.resumed")
class ResumedWithoutMomentum(Stepping):
    "What the optimizer keeps is not resumed."

    def take_up(self, t, state):
        super().take_up(t, {**state, "optimizer": t.optimizer.state_dict()})


@fault("step.resumed")
class ResumedAtTheFirstRate(Stepping):
    "The schedule starts anew in a trainer that is resumed."

    def take_up(self, t, state):
        super().take_up(t, {**state, "made": 0})


@fault("step.resumed")
class ResumedFromTheCheckpoint(Stepping):
    "A trainer that is resumed has the weights that it was first loaded with."

    def take_up(self, t, state):
        super().take_up(t, {**state, "actor": t.actor.state_dict()})


@fault("step.resumed")
class ResumedInBfloat16(Stepping):
    "Weights are saved in bfloat16."

    def saved(self, t):
        state = super().saved(t)
        return {**state, "actor": {name: x.bfloat16() for name, x in state["actor"].items()}}


@fault("step.resumed")
class SavedBeforeTheStep(Stepping):
    "What is saved is the trainer before its last step."

    def make(self, t, samples):
        t.kept["state"] = copy.deepcopy(super().saved(t))
        super().make(t, samples)

    def saved(self, t):
        return t.kept["state"]


@fault("step.frozen")
class BaseDecayed(_WithLora):
    "The weights below the adapters are decayed."

    def move(self, t):
        super().move(t)
        with torch.no_grad():
            for p in t.actor.parameters():
                if not p.requires_grad:
                    p.mul_(1 - 1e-3)


@fault("step.frozen", bug="lora-merged-view")
class MergedAndUnmerged(_WithLora):
    "Adapters are merged into the base and taken out again, and what is left of it is rounded."

    def move(self, t):
        super().move(t)
        with torch.no_grad():
            for p in t.actor.parameters():
                if not p.requires_grad:
                    p.copy_((p + 1 / 3) - 1 / 3)


@fault("step.tied")
class TiedMovedTwice(Stepping):
    "A weight with two names is moved once for each of them."

    def move(self, t):
        tied = [p for p in t.trained if _is_tied(t, p)]
        super().move(t)
        with torch.no_grad():
            for p in tied:
                p.sub_(t.options.learning_rate * p.grad)


@fault("step.tied")
class TiedCameApart(Stepping):
    "The embedding of a tied model is not moved."

    def move(self, t):
        for p in t.trained:
            if _is_tied(t, p):
                p.grad = None
        super().move(t)


def _is_tied(t, p):
    module = t.actor.model
    return p is module.get_input_embeddings().weight and p is module.get_output_embeddings().weight


# --- log-probs ------------------------------------------------------------------------------------------------------


@fault("step.log-probs")
class OldLogProbsAtTemperatureOne(Stepping):
    "The log-probs that are taken for old ones are scored at the temperature 1."

    def step_log_probs(self, t, samples):
        held, t.actor.temperature = t.actor.temperature, 1.0
        try:
            return super().step_log_probs(t, samples)
        finally:
            t.actor.temperature = held


@fault("step.log-probs")
class OldLogProbsInBfloat16(Stepping):
    "The log-probs that are taken for old ones are stored in bfloat16."

    def step_log_probs(self, t, samples):
        return [row.bfloat16().to(row) for row in super().step_log_probs(t, samples)]


@fault("step.first-ratio")
class OldLogProbsOneTokenBehind(Stepping):
    "The log-probs that are taken for old ones lie one token behind."

    def step_log_probs(self, t, samples):
        return [row.roll(1) for row in super().step_log_probs(t, samples)]


@fault("step.first-ratio")
class OldLogProbsOfOtherPrompts(Stepping):
    "The log-probs that are taken for old ones are those behind the last token of the prompt alone."

    def step_log_probs(self, t, samples):
        return super().step_log_probs(t, [replace(sample, prompt=sample.prompt[-1:]) for sample in samples])


class _Copied(Stepping):
    """Log-probs from a copy of the actor."""

    def step_log_probs(self, t, samples):
        held, t.actor = t.actor, self._copy(t)
        try:
            return super().step_log_probs(t, samples)
        finally:
            t.actor = held


@fault("step.follows-update")
class LogProbsOfTheFirstWeights(_Copied):
    "Log-probs come from a copy that was made when they were first asked for."

    def _copy(self, t):
        if "actor" not in t.kept:
            t.kept["actor"] = copy.deepcopy(t.actor)
        return t.kept["actor"]


@fault("step.follows-update")
class OldLogProbsRemembered(Stepping):
    "The log-probs of a response are remembered."

    def step_log_probs(self, t, samples):
        found = super().step_log_probs(t, samples)
        known = t.kept.setdefault("log_probs", {})
        keys = [(*sample.prompt.tolist(), -1, *sample.response.tolist()) for sample in samples]
        return [known.setdefault(key, row).clone() for key, row in zip(keys, found, strict=True)]


@fault("step.follows-update")
class HeadOfTheFirstWeights(_Copied):
    "The engine's copy of the weights is brought up to date, but for the embeddings."

    def _copy(self, t):
        t.kept.setdefault("embeddings", t.trained[0].detach().clone())
        copied = copy.deepcopy(t.actor)
        with torch.no_grad():
            next(p for p in copied.parameters() if p.requires_grad).copy_(t.kept["embeddings"])
        return copied


@fault("step.second-epoch")
class OldLogProbsTakenAnew(Stepping):
    "Each step takes the old log-probs anew, under the weights that it begins with."

    def accumulate(self, t, samples):
        rows = super().step_log_probs(t, samples)
        return super().accumulate(
            t, [replace(s, old_log_probs=row.to(s.old_log_probs)) for s, row in zip(samples, rows, strict=True)]
        )


@fault("step.second-epoch")
class ReferenceMovesAlong(Stepping):
    "The log-probs of the reference are moved along with those of the policy from the second step on."

    def accumulate(self, t, samples):
        rows = super().step_log_probs(t, samples)
        first = t.kept.setdefault("first", rows)
        moved = [
            replace(s, ref_log_probs=s.ref_log_probs + (row - then)) if row.shape == then.shape else s
            for s, row, then in zip(samples, rows, first, strict=False)
        ]
        return super().accumulate(t, [*moved, *samples[len(moved) :]])


# --- what changes nothing -------------------------------------------------------------------------------------------


@fault("step.inputs-unwritten")
class AdvantagesWritten(Stepping):
    "Advantages are set to zero after use."

    def accumulate(self, t, samples):
        logged = super().accumulate(t, samples)
        for sample in samples:
            sample.advantages.zero_()
        return logged


@fault("step.inputs-unwritten")
class OldLogProbsWritten(Stepping):
    "The new log-probs are written over the old ones."

    def accumulate(self, t, samples):
        logged = super().accumulate(t, samples)
        for sample, row in zip(samples, super().step_log_probs(t, samples), strict=True):
            sample.old_log_probs.copy_(row)
        return logged


@fault("step.side-effects")
class StepLeavesGradientsOff(Stepping):
    "After a step gradients are off."

    def accumulate(self, t, samples):
        logged = super().accumulate(t, samples)
        torch.set_grad_enabled(False)
        return logged


@fault("step.side-effects")
class StepSeeds(Stepping):
    "Each step seeds the random numbers, for the sake of reproducible dropout."

    def accumulate(self, t, samples):
        torch.manual_seed(7)
        return super().accumulate(t, samples)

"""Liars about the step of a critic."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.chapters.objective import bending as bent
from rlhf_conformance.chapters.step.bending import CriticStepping, all_where_any, all_where_none, in_one_row, rectangle
from rlhf_conformance.faults import fault


class _Terming(CriticStepping):
    """Another value loss."""

    def value_term(self, t, part, g):
        return self._term(t, part, g)

    def _term(self, t, part, g):
        raise NotImplementedError


class _Dividing(CriticStepping):
    """Micro-batches with denominators of their own."""

    def share(self, t, part):
        return super().share(t, replace(part, count=None if part.count is None else self._count(t, part)))

    def _count(self, t, part):
        raise NotImplementedError


@fault("step.critic-gradient")
class CriticHeadWithoutGradient(CriticStepping):
    "The head of the critic has no gradient."

    def found(self, t):
        return {name: x for name, x in super().found(t).items() if "score" not in name and "head" not in name}


@fault("step.critic-gradient")
class CriticBackboneFrozen(CriticStepping):
    "The head of the critic alone is trained."

    def found(self, t):
        return {name: x for name, x in super().found(t).items() if "score" in name or "head" in name}


@fault("step.critic-gradient")
class CriticValuesOneTokenBehind(CriticStepping):
    "The value of an action is read at the action, and not before it."

    def answers(self, t, sample):
        return super().answers(t, sample).roll(-1)


@fault("step.critic-gradient")
class CriticLossNotHalved(_Terming):
    "The squares are not halved."

    def _term(self, t, part, g):
        return 2 * bent.value(g)


@fault("step.critic-gradient")
class CriticReturnsFollow(_Terming):
    "The return is made of the value that is trained, with its graph."

    def _term(self, t, part, g):
        return bent.value(g._replace(returns=g.returns + 0.5 * (g.values - g.values.detach())))


@fault("step.critic-micro-batches", bug="value-loss-per-micro-batch")
class CriticMeanOfMeans(_Dividing):
    "The gradients of the micro-batches' own means are averaged."

    def _count(self, t, part):
        return part.of * self.count(t, part.samples)


@fault("step.critic-micro-batches")
class CriticMeansAddedUp(_Dividing):
    "The gradients of the micro-batches' own means are added up."

    def _count(self, t, part):
        return self.count(t, part.samples)


@fault("step.critic-micro-batches")
class CriticDividedOnceMore(_Terming):
    "Shares that are divided by the counts of the step are divided by the number of micro-batches once more."

    def _term(self, t, part, g):
        return bent.value(g) / part.of


@fault("step.critic-micro-batches")
class CriticLastMicroBatchAlone(CriticStepping):
    "The gradient is set to zero before each micro-batch."

    def cut(self, t, samples):
        return super().cut(t, samples)[-1:]


@fault("step.critic-clip")
class CriticOldValuesTakenAnew(_Terming):
    "The old values are the new ones without a graph."

    def _term(self, t, part, g):
        return bent.value(g._replace(old_values=g.values.detach()))


@fault("step.critic-clip")
class CriticClipIgnored(_Terming):
    "The value loss is not clipped."

    def _term(self, t, part, g):
        return bent.value(g.with_options(value_clip_eps=None))


@fault("step.critic-clip")
class CriticClippedAlone(_Terming):
    "The clipped loss is taken, and not the larger one."

    def _term(self, t, part, g):
        eps = g.options.value_clip_eps
        if eps is None:
            return bent.value(g)
        held = g.values.clamp(g.old_values - eps, g.old_values + eps)
        return bent.value(g._replace(values=held).with_options(value_clip_eps=None))


@fault("step.critic-empty-row")
class CriticEmptyRowsTrained(CriticStepping):
    "An action mask without a one is taken for no mask."

    def mask(self, t, sample):
        return all_where_none(sample.action_mask)


@fault("step.critic-empty-row", bug="masked-row-nan")
class CriticEmptyRowsDivided(_Terming):
    "The mean of each row is taken first: that of a row without actions is 0 / 0."

    def _term(self, t, part, g):
        rows = g.mask.sum(-1)
        return bent.value(g) + (g.values.sum(-1) * (rows / rows - 1)).sum()


@fault("step.critic-turns")
class CriticTrainsObservations(CriticStepping):
    "Values of observations are trained, too."

    def mask(self, t, sample):
        return all_where_any(sample.action_mask)


@fault("step.critic-turns")
class CriticOfTheFirstTurn(CriticStepping):
    "What comes behind the first observation is not trained."

    def mask(self, t, sample):
        first = sample.action_mask.cumsum(0)[:1] > 0
        return sample.action_mask * ((sample.action_mask == 0).cumsum(0) == 0) if first.any() else sample.action_mask


@fault("step.critic-packed")
class CriticPackedReturnsShifted(CriticStepping):
    "In packs the returns lie one token behind."

    def given(self, t, part):
        g = super().given(t, part)
        return g._replace(returns=g.returns.roll(1, -1)) if t.options.layout == "packed" else g


@fault("step.critic-packed")
class CriticPackedAsOneSequence(CriticStepping):
    "A pack is run as one sequence: samples attend to those before them."

    def given(self, t, part):
        g = super().given(t, part)
        if t.options.layout != "packed":
            return g
        rows = [self.answers(t, sample) for sample in in_one_row(part.samples)]
        return g._replace(values=rectangle(rows))


@fault("step.critic-update")
class CriticStepsTwice(CriticStepping):
    "The optimizer steps twice."

    def move(self, t):
        super().move(t)
        super().move(t)


@fault("step.critic-update")
class CriticHeadNotMoved(CriticStepping):
    "The optimizer was not given the head."

    def move(self, t):
        for name, p in self.parameters(t).items():
            if "score" in name or "head" in name:
                p.grad = None
        super().move(t)


@fault("step.critic-update")
class CriticAscends(_Terming):
    "The value loss is maximised."

    def _term(self, t, part, g):
        return -bent.value(g)

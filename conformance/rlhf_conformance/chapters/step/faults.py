"""Liars about the gradient of a step: how it is cut, laid out, and what it is made of."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._losses import bending as plain
from rlhf_conformance.chapters._tensors import chosen
from rlhf_conformance.chapters.objective import bending as bent
from rlhf_conformance.chapters.step.bending import Stepping, all_where_any, all_where_none, in_one_row, rectangle
from rlhf_conformance.faults import fault


class _Counting(Stepping):
    """Micro-batches with denominators of their own."""

    def share(self, t, part):
        return super().share(t, replace(part, count=self._count(t, part)))

    def _count(self, t, part):
        raise NotImplementedError


class _Scaling(Stepping):
    """The loss of a micro-batch times a number."""

    def share(self, t, part):
        terms = super().share(t, part)
        return {**terms, "loss": terms["loss"] * self._scale(t, part)}

    def _scale(self, t, part):
        raise NotImplementedError


class _Picking(Stepping):
    """Only some of the micro-batches, or samples, are used."""

    def cut(self, t, samples):
        return self._kept(t, super().cut(t, samples), samples)

    def _kept(self, t, parts, samples):
        raise NotImplementedError


class _Lacking(Stepping):
    """Some parameters have no gradient."""

    def found(self, t):
        return {name: x for name, x in super().found(t).items() if not self._lacks(name)}

    def _lacks(self, name):
        raise NotImplementedError


class _Told(Stepping):
    """The right objective of other tables."""

    def given(self, t, part):
        return self._told(t, part, super().given(t, part))

    def _told(self, t, part, g):
        raise NotImplementedError


def _rolled(table):
    return table.roll(1, -1)


# --- the whole ------------------------------------------------------------------------------------------------------


@fault("step.gradient")
class OutputLayerWithoutGradient(_Lacking):
    "The output layer has no gradient."

    def _lacks(self, name):
        return "lm_head" in name


@fault("step.gradient", bug="checkpointing-over-frozen-embeddings")
class LayersCutOff(_Lacking):
    "The graph is cut below the output layer: no other weight has a gradient."

    def _lacks(self, name):
        return "lm_head" not in name


@fault("step.gradient")
class NormsWithoutGradient(_Lacking):
    "The weights of the norms are left out, as they are from weight decay."

    def _lacks(self, name):
        return "norm" in name or ".ln_" in name


@fault("step.gradient")
class LossHalved(_Scaling):
    "The loss is halved, as that of a critic is."

    def _scale(self, t, part):
        return 0.5


@fault("step.gradient")
class GradientAscended(_Scaling):
    "The loss is what should be maximised."

    def _scale(self, t, part):
        return -1.0


# --- cut ------------------------------------------------------------------------------------------------------------


def _of_part(t, part):
    actions = [int(sample.action_mask.sum()) for sample in part.samples]
    return max(1, sum(actions) if t.options.aggregation == "token-mean" else sum(n > 0 for n in actions))


class _MeanOfMeans(_Counting):
    def _count(self, t, part):
        return None if part.count is None else part.of * _of_part(t, part)


@fault("step.micro-batches", bug="mean-of-means")
class MeanOfMicroBatchMeans(_MeanOfMeans):
    "The gradients of the micro-batches' own means are averaged."


@fault("step.micro-batches")
class MicroBatchMeansAddedUp(_Counting):
    "The gradients of the micro-batches' own means are added up."

    def _count(self, t, part):
        return None if part.count is None else _of_part(t, part)


@fault("step.micro-batches")
class DividedOnceMore(_Scaling):
    "Shares that are divided by the counts of the step are divided by the number of micro-batches once more."

    def _scale(self, t, part):
        return 1.0 / part.of


@fault("step.micro-batches")
class NotDividedByAccumulation(_Scaling):
    "Each share is multiplied by the number of micro-batches, against a division that does not come."

    def _scale(self, t, part):
        return float(part.of)


@fault("step.micro-batches")
class LastMicroBatchAlone(_Picking):
    "The gradient is set to zero before each micro-batch."

    def _kept(self, t, parts, samples):
        return parts[-1:]


@fault("step.micro-batches")
class FirstMicroBatchAlone(_Picking):
    "Only the first micro-batch is gone through with a graph."

    def _kept(self, t, parts, samples):
        return parts[:1]


@fault("step.micro-batches")
class LastMicroBatchLost(_Picking):
    "The last micro-batch comes after the optimizer has stepped, and its gradient is thrown away."

    def _kept(self, t, parts, samples):
        return parts[:-1]


@fault("step.micro-batches")
class CountOfTheFirstMicroBatch(_Counting):
    "All losses are divided by the count of the first micro-batch."

    def _count(self, t, part):
        if part.number == 0:
            t.kept["count"] = _of_part(t, part)
        return None if part.count is None else part.of * t.kept["count"]


@fault("step.micro-batches")
class CountOfCells(_Counting):
    "Losses are divided by the cells of the micro-batches, pads included."

    def _count(self, t, part):
        if t.options.aggregation != "token-mean":
            return part.count
        return part.of * len(part.samples) * max(len(sample.response) for sample in part.samples)


@fault("step.remainder")
class RemainderDropped(_Picking):
    "A last micro-batch with fewer samples is dropped."

    def _kept(self, t, parts, samples):
        return [part for part in parts if t.options.max_tokens or len(part) == t.options.micro_batch_size]


@fault("step.remainder")
class DividedByFullMicroBatches(_Scaling):
    "Losses are averaged over the number of full micro-batches."

    def _scale(self, t, part):
        full, size = part.of, t.options.micro_batch_size or 0
        t.kept.setdefault("sizes", {})[part.number] = len(part.samples)
        return 1.0 if len(part.samples) == size or not size else full / max(1, full - 1)


@fault("step.dynamic-batches", bug="mean-of-means")
class DynamicBatchesAveraged(_MeanOfMeans):
    "The means of dynamic batches are averaged; batches of equally many samples are right."

    def _count(self, t, part):
        return super()._count(t, part) if t.options.max_tokens else part.count


@fault("step.dynamic-batches")
class LastDynamicBatchLost(_Picking):
    "The last of the dynamic batches, which is not full, is kept for a step that never comes."

    def _kept(self, t, parts, samples):
        return parts[: max(1, len(parts) - 1)] if t.options.max_tokens else parts


@fault("step.dynamic-batches")
class DynamicBatchesBySize(_Scaling):
    "A dynamic batch weighs by its share of the samples."

    def _scale(self, t, part):
        return part.of * len(part.samples) / 4 if t.options.max_tokens else 1.0


# --- without actions ------------------------------------------------------------------------------------------------


@fault("step.empty-row")
class EmptyRowsTrained(Stepping):
    "An action mask without a one is taken for no mask."

    def mask(self, t, sample):
        return all_where_none(sample.action_mask)


@fault("step.empty-row", bug="masked-row-nan")
class EmptyRowsDivided(Stepping):
    "The mean of each row is taken first: that of a row without actions is 0 / 0."

    def policy_term(self, t, part, g):
        rows = g.mask.sum(-1)
        return bent.policy(g) + (g.new.sum(-1) * (rows / rows - 1)).sum()


@fault("step.empty-row")
class EmptyRowsFilteredWithTheNext(_Told):
    "Rows without actions are filtered out of the advantages alone, so that those behind get the next one's."

    def _told(self, t, part, g):
        kept = g.mask.bool().any(-1)
        order = torch.cat([kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]])
        return g._replace(advantages=g.advantages[order])


@fault("step.empty-micro-batch", bug="masked-row-nan")
class EmptyMicroBatchDivided(Stepping):
    "The loss of a micro-batch without actions is 0 / 0."

    def policy_term(self, t, part, g):
        return bent.policy(g) if g.mask.any() else g.new.sum() / g.mask.sum()


@fault("step.empty-micro-batch")
class EmptyMicroBatchEndsTheStep(_Picking):
    "The loop ends at the first micro-batch without actions."

    def _kept(self, t, parts, samples):
        has = [any(samples[i].action_mask.any() for i in part) for part in parts]
        return parts[: has.index(False)] or parts[:1] if False in has else parts


@fault("step.empty-micro-batch")
class EmptyMicroBatchSkippedFromTheMean(_Scaling):
    "A micro-batch without actions is skipped, and the others are scaled up to make up for it."

    def accumulate(self, t, samples):
        parts = self.cut(t, samples)
        t.kept["full"] = sum(any(samples[i].action_mask.any() for i in part) for part in parts)
        return super().accumulate(t, samples)

    def _scale(self, t, part):
        return part.of / max(1, t.kept["full"])


# --- order and layout -----------------------------------------------------------------------------------------------


class _Reordered(Stepping):
    """Samples whose advantages stay where they were."""

    def accumulate(self, t, samples):
        rows = [samples[i].advantages for i in self._order(t, samples)]
        moved = [
            replace(sample, advantages=torch.cat([row] * 12)[: len(sample.response)])
            for sample, row in zip(samples, rows, strict=True)
        ]
        return super().accumulate(t, moved)


@fault("step.order")
class SortedWithoutAdvantages(_Reordered):
    "Samples are sorted by length, and the advantages are not."

    def _order(self, t, samples):
        return sorted(range(len(samples)), key=lambda i: len(samples[i].response))


@fault("step.order")
class AdvantagesOfTheFirstOrder(Stepping):
    "Advantages are kept by their places from one call to the next."

    def accumulate(self, t, samples):
        rows = t.kept.setdefault("advantages", [sample.advantages.clone() for sample in samples])
        moved = [
            replace(sample, advantages=torch.cat([row] * 12)[: len(sample.response)])
            for sample, row in zip(samples, rows, strict=False)
        ]
        return super().accumulate(t, moved)


class _Packing(_Told):
    """Other tables in packs alone."""

    def given(self, t, part):
        if t.options.layout == "packed":
            return super().given(t, part)
        return Stepping.given(self, t, part)


@fault("step.packed")
class PackedAdvantagesShifted(_Packing):
    "In packs the advantages lie one token behind."

    def _told(self, t, part, g):
        return g._replace(advantages=_rolled(g.advantages))


@fault("step.packed")
class PackedFirstActionLost(_Packing):
    "In packs the first action of each sample has no loss, since its label is cut off."

    def _told(self, t, part, g):
        first = torch.zeros_like(g.mask)
        first[:, 0] = 1
        return g._replace(mask=g.mask * (1 - first))


@fault("step.packed")
class PackedAsOneSequence(Stepping):
    "A pack is run as one sequence: samples attend to those before them."

    def given(self, t, part):
        g = super().given(t, part)
        if t.options.layout != "packed":
            return g
        rows = [self.answers(t, sample)[0] for sample in in_one_row(part.samples)]
        return g._replace(new=rectangle(rows))


# --- turns and temperature ------------------------------------------------------------------------------------------


@fault("step.turns")
class StepTrainsObservations(Stepping):
    "Every token of a response is trained, whoever wrote it."

    def mask(self, t, sample):
        return all_where_any(sample.action_mask)


@fault("step.turns", bug="kl-of-observations")
class ObservationsInTheKl(Stepping):
    "The KL is that of all tokens of a response."

    def kl_term(self, t, part, g):
        rows = [torch.ones_like(sample.action_mask) * sample.action_mask.any() for sample in part.samples]
        return bent.kl(g._replace(mask=rectangle(rows)))


@fault("step.turns")
class StepOfTheFirstTurn(Stepping):
    "What comes behind the first observation is not trained."

    def mask(self, t, sample):
        return (
            sample.action_mask * (sample.action_mask == 0).cumsum(0).eq(0)
            if sample.action_mask[0]
            else (sample.action_mask)
        )


@fault("step.temperature")
class StepAtTemperatureOne(Stepping):
    "In the step logits are not divided by the temperature."

    def answers(self, t, sample, in_step=False):
        held = t.actor.temperature
        try:
            t.actor.temperature = 1.0 if in_step else held
            return super().answers(t, sample, in_step)
        finally:
            t.actor.temperature = held


@fault("step.temperature")
class TemperatureTwiceInTheStep(Stepping):
    "In the step logits are divided by the temperature twice."

    def answers(self, t, sample, in_step=False):
        held = t.actor.temperature
        try:
            t.actor.temperature = held * held if in_step else held
            return super().answers(t, sample, in_step)
        finally:
            t.actor.temperature = held


# --- what is minimised ----------------------------------------------------------------------------------------------


@fault("step.clip")
class RatioAlwaysOneInTheStep(_Told):
    "The old log-probs are the new ones without a graph, so that no ratio leaves the band."

    def _told(self, t, part, g):
        return g._replace(old=g.new.detach())


@fault("step.clip")
class StepWithoutClip(_Told):
    "The step clips nothing."

    def _told(self, t, part, g):
        return g.with_options(clip_eps_low=0.999, clip_eps_high=1e6)


@fault("step.clip")
class ClippedWhicheverSign(Stepping):
    "An action outside the band has no gradient, whatever the sign of its advantage."

    def policy_term(self, t, part, g):
        o = g.options
        ratio = (chosen(g.new, g.mask) - chosen(g.old, g.mask)).exp().clamp(1 - o.clip_eps_low, 1 + o.clip_eps_high)
        if o.surrogate != "ppo":
            return bent.policy(g)
        return plain.mean(-ratio * chosen(g.advantages, g.mask), g.mask, o)


@fault("step.kl-term")
class StepKlWithoutGraph(Stepping):
    "The KL is added without a graph."

    def kl_term(self, t, part, g):
        return bent.kl(g).detach()


@fault("step.kl-term", bug="kl-sign")
class StepKlSubtracted(Stepping):
    "The KL is subtracted."

    def kl_term(self, t, part, g):
        return -bent.kl(g)


@fault("step.kl-term")
class StepKlOfTheOldPolicy(Stepping):
    "The KL is that from the policy that sampled."

    def kl_term(self, t, part, g):
        return bent.kl(g._replace(ref=g.old))


@fault("step.entropy-term", bug="entropy-without-gradient")
class StepEntropyWithoutGraph(Stepping):
    "The entropy is subtracted without a graph."

    def entropy_term(self, t, part, g):
        return bent.entropy(g).detach()


@fault("step.entropy-term")
class StepEntropyAdded(Stepping):
    "The entropy is added."

    def entropy_term(self, t, part, g):
        return -bent.entropy(g)


@fault("step.entropy-term")
class StepEntropyOfTheLastMicroBatch(Stepping):
    "The entropy is that of the last micro-batch."

    def entropy_term(self, t, part, g):
        return bent.entropy(g) * float(part.number == part.of - 1)


def _locally(t, part, g):
    return g.with_options(global_count=None if part.count is None else part.of * _of_part(t, part))


@fault("step.terms", bug="value-loss-per-micro-batch")
class StepKlByTheMicroBatch(Stepping):
    "The KL is averaged within each micro-batch, the policy loss over the step."

    def kl_term(self, t, part, g):
        return bent.kl(_locally(t, part, g))


@fault("step.terms")
class StepEntropyByTheMicroBatch(Stepping):
    "The entropy is averaged within each micro-batch, the policy loss over the step."

    def entropy_term(self, t, part, g):
        return bent.entropy(_locally(t, part, g))


@fault("step.terms")
class StepTermsInsideTheRatio(Stepping):
    "The KL of an action is multiplied by the ratio, though no correction is declared."

    def kl_term(self, t, part, g):
        ratio = (chosen(g.new, g.mask) - chosen(g.old, g.mask)).exp()
        return bent.mean(ratio * bent.kls(g), g, g.options.kl_aggregation)


@fault("step.aggregations", bug="mean-of-means")
class StepConstantLengthByTheMicroBatch(_Counting):
    "Under a constant length the sum of a micro-batch is divided by its own rows."

    def _count(self, t, part):
        return _of_part(t, part) if t.options.aggregation == "constant-length" else part.count


@fault("step.aggregations")
class StepSumsAveraged(_Scaling):
    "Sums over the actions of micro-batches are averaged over these."

    def _scale(self, t, part):
        return 1.0 / part.of if t.options.aggregation == "token-sum" else 1.0


@fault("step.aggregations", bug="mean-of-means")
class StepSequenceMeansByTokens(_Counting):
    "Means over the sequences of micro-batches are averaged by their numbers of actions."

    def accumulate(self, t, samples):
        t.kept["actions"] = sum(int(sample.action_mask.sum()) for sample in samples)
        return super().accumulate(t, samples)

    def _count(self, t, part):
        if t.options.aggregation != "sequence-mean":
            return part.count
        actions = sum(int(sample.action_mask.sum()) for sample in part.samples)
        return _of_part(t, part) * t.kept["actions"] / max(1, actions)


@fault("step.surrogates")
class StepKnowsPpoAlone(_Told):
    "Whichever surrogate is asked for, the step is that of PPO."

    def _told(self, t, part, g):
        return g.with_options(surrogate="ppo")


@fault("step.surrogates")
class StepRatioOfTheMicroBatch(Stepping):
    "With GSPO the ratio is that of the whole micro-batch."

    def policy_term(self, t, part, g):
        if g.options.surrogate != "gspo":
            return bent.policy(g)
        d = chosen(g.new, g.mask) - chosen(g.old, g.mask)
        ratio = (d.sum() / g.mask.bool().sum().clamp(min=1)).exp().expand_as(d)
        return plain.mean(plain.surrogate_loss(ratio, chosen(g.advantages, g.mask), g.options), g.mask, g.options)


# --- for the engine that sampled -----------------------------------------------------------------------------------


@fault("step.correction")
class StepCorrectionIgnored(Stepping):
    "The engine's log-probs never reach the loss: every weight is 1."

    def weights(self, t, part, g):
        return torch.ones_like(g.new.detach())


@fault("step.correction")
class StepCorrectionTurnedRound(Stepping):
    "A weight is the engine's probability over the trainer's."

    def weights_of(self, g, old, engine):
        return super().weights_of(g, engine, old)


@fault("step.correction")
class StepCorrectionOfTheNewPolicy(Stepping):
    "The weights are those of the policy that is trained, and not of the old one."

    def weights_of(self, g, old, engine):
        return super().weights_of(g, g.new.detach(), engine)


@fault("step.correction")
class StepCorrectionOfTheNeighbor(Stepping):
    "The engine's log-probs lie one token behind."

    def weights_of(self, g, old, engine):
        return super().weights_of(g, old, engine.roll(1, -1))


@fault("step.correction")
class StepCorrectionByTheMicroBatch(Stepping):
    "Weights are divided by their mean over the micro-batch."

    def weights_of(self, g, old, engine):
        found = super().weights_of(g, old, engine)
        acts = g.mask.bool()
        return found / found[acts].mean() if acts.any() else found

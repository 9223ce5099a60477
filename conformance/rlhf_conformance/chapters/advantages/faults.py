"""Liars about advantages and returns. Most of them bend the recursion in `bending`."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._credit.bending import last_action, row_mean, spans
from rlhf_conformance.chapters._tensors import chosen, wide
from rlhf_conformance.chapters.advantages.bending import beyond_the_end, gae, over_observations, with_returns
from rlhf_conformance.faults import fault

# --- the recursion ------------------------------------------------------------------------------------------------


@fault("advantages.definition")
class DeltaWithoutItsOwnValue(Reference):
    "The value of the state is not taken off: r + gamma V'."

    def advantages(self, rewards, values, mask, options):
        return with_returns(gae(rewards, values, mask, options, own_value=0.0), values, mask)


@fault("advantages.definition")
class GammaLeftOutOfTheDecay(Reference):
    "The advantage behind is weighted with lambda, without gamma: right at gamma 1."

    def advantages(self, rewards, values, mask, options):
        return with_returns(gae(rewards, values, mask, options, decay=options.lam), values, mask)


@fault("advantages.definition")
class LambdaIgnored(Reference):
    "lambda is taken to be 1, whatever is asked for: right at lambda 1."

    def advantages(self, rewards, values, mask, options):
        return super().advantages(rewards, values, mask, replace(options, lam=1.0))


@fault("advantages.definition")
class AdvantagesOneLate(Reference):
    "Each action has the advantage of the one behind it, the last one its own."

    def advantages(self, rewards, values, mask, options):
        right = gae(rewards, values, mask, options)
        later = torch.cat([right[:, 1:], right[:, -1:]], dim=1)
        return with_returns(later, values, mask)


@fault("advantages.lambda-zero")
class ZeroLambdaIsTheDefault(Reference):
    "lam or 0.95: a lambda of 0 is taken for one that is not given."

    def advantages(self, rewards, values, mask, options):
        return super().advantages(rewards, values, mask, replace(options, lam=options.lam or 0.95))


@fault("advantages.lambda-zero")
class LambdaAtLeastTenth(Reference):
    "lambda is held at 0.1 from below."

    def advantages(self, rewards, values, mask, options):
        return super().advantages(rewards, values, mask, replace(options, lam=max(options.lam, 0.1)))


@fault("advantages.lambda-zero")
class ZeroLambdaWithoutNextValue(Reference):
    "With lambda 0 the delta is r - V: the step behind is forgotten with its advantage."

    def advantages(self, rewards, values, mask, options):
        next_value = 1.0 if options.lam else 0.0
        return with_returns(gae(rewards, values, mask, options, next_value=next_value), values, mask)


@fault("advantages.lambda-one")
class LambdaBelowOne(Reference):
    "lambda is held at 0.99 from above."

    def advantages(self, rewards, values, mask, options):
        return super().advantages(rewards, values, mask, replace(options, lam=min(options.lam, 0.99)))


@fault("advantages.lambda-one")
class ThreeStepsOnly(Reference):
    "Deltas are added up over three steps and no further: right for short responses."

    def advantages(self, rewards, values, mask, options):
        deltas = gae(rewards, values, mask, options, decay=0.0)
        found = torch.zeros_like(deltas)
        for i, marks in enumerate(mask.bool().tolist()):
            columns = [j for j, m in enumerate(marks) if m]
            for k, j in enumerate(columns):
                for n, later in enumerate(columns[k : k + 3]):
                    found[i, j] += (options.gamma * options.lam) ** n * deltas[i, later]
        return with_returns(found, values, mask)


@fault("advantages.lambda-one")
class EpisodesEndAtRewards(Reference):
    "A reward other than 0 ends the episode: nothing behind it counts."

    def advantages(self, rewards, values, mask, options):
        marks = mask.bool()
        r, v = chosen(rewards, mask), chosen(values, mask)
        advantage = following = torch.zeros_like(v[:, 0])
        found = torch.zeros_like(v)
        for t in reversed(range(v.shape[1])):
            goes_on = (r[:, t] == 0).to(v.dtype)
            delta = r[:, t] + options.gamma * following * goes_on - v[:, t]
            advantage = torch.where(marks[:, t], delta + options.gamma * options.lam * goes_on * advantage, advantage)
            following = torch.where(marks[:, t], v[:, t], following)
            found[:, t] = advantage
        return with_returns(found, values, mask)


@fault("advantages.discounts-as-given")
class NextValueUndiscounted(Reference):
    "The next value is not discounted: r + V' - V."

    def advantages(self, rewards, values, mask, options):
        next_value = 1 / options.gamma if options.gamma else 1.0
        return with_returns(gae(rewards, values, mask, options, next_value=next_value), values, mask)


@fault("advantages.discounts-as-given")
class ZeroGammaIsOne(Reference):
    "gamma or 1.0: a discount of 0 is taken for none."

    def advantages(self, rewards, values, mask, options):
        return super().advantages(rewards, values, mask, replace(options, gamma=options.gamma or 1.0))


@fault("advantages.discounts-as-given")
class GammaTwice(Reference):
    "The next value is discounted twice."

    def advantages(self, rewards, values, mask, options):
        return with_returns(gae(rewards, values, mask, options, next_value=options.gamma), values, mask)


@fault("advantages.last-action")
class LastValueIsTheNext(Reference):
    "After the last action its own value is taken to come: a bootstrap in every row, finished or not."

    def advantages(self, rewards, values, mask, options):
        columns = torch.arange(mask.shape[1], device=mask.device)
        extra = options.gamma * chosen(values, mask).where(columns == last_action(mask), 0.0)
        return with_returns(gae(wide(rewards) + extra, values, mask, options), values, mask)


@fault("advantages.last-action")
class LastValueWrapsRound(Reference):
    "The next values are rolled: behind the last column comes the first."

    def advantages(self, rewards, values, mask, options):
        columns = torch.arange(mask.shape[1], device=mask.device)
        at_the_edge = (columns == last_action(mask)) & (columns == mask.shape[1] - 1)
        extra = options.gamma * chosen(values, mask)[:, :1].where(at_the_edge, 0.0)
        return with_returns(gae(wide(rewards) + extra, values, mask, options), values, mask)


@fault("advantages.single-action")
class SingleActionForgotten(Reference):
    "A response of one token has no step behind it, and its advantage stays 0."

    def advantages(self, rewards, values, mask, options):
        several = mask.bool().sum(1, keepdim=True) > 1
        return with_returns(gae(rewards, values, mask, options) * several, values, mask)


@fault("advantages.single-action")
class SingleActionWithoutValue(Reference):
    "A response of one token is a bandit: its advantage is its reward."

    def advantages(self, rewards, values, mask, options):
        single = mask.bool().sum(1, keepdim=True) == 1
        right = gae(rewards, values, mask, options)
        return with_returns(torch.where(single, chosen(rewards, mask), right), values, mask)


@fault("advantages.single-action")
class SingleActionSquashed(Reference):
    "A row's advantages are averaged over its actions less one, and at least one: of a single one twice."

    def advantages(self, rewards, values, mask, options):
        single = mask.bool().sum(1, keepdim=True) == 1
        right = gae(rewards, values, mask, options)
        return with_returns(torch.where(single, 2 * right, right), values, mask)


@fault("advantages.returns")
class ReturnsOfWhitened(Reference):
    "Advantages are right, returns are made of whitened ones."

    def advantages(self, rewards, values, mask, options):
        advantages, _ = with_returns(gae(rewards, values, mask, options), values, mask)
        picked = advantages[mask.bool()]
        spread = picked.std() + 1e-8 if picked.numel() > 1 else 1.0
        mean = picked.mean() if picked.numel() else 0.0
        return advantages, chosen((advantages - mean) / spread + values, mask)


@fault("advantages.returns")
class ReturnsAreRewardsToGo(Reference):
    "Returns are the discounted rewards, whatever lambda is: right at lambda 1."

    def advantages(self, rewards, values, mask, options):
        advantages, _ = with_returns(gae(rewards, values, mask, options), values, mask)
        return advantages, chosen(gae(rewards, values * 0, mask, replace(options, lam=1.0)), mask)


@fault("advantages.returns")
class ReturnsWithTheNextValue(Reference):
    "The value of the next action is added in place of its own."

    def advantages(self, rewards, values, mask, options):
        advantages, _ = with_returns(gae(rewards, values, mask, options), values, mask)
        later = torch.nn.functional.pad(chosen(values, mask), (0, 1))[:, 1:]
        return advantages, chosen(advantages + later, mask)


@fault("advantages.returns")
class ReturnsLessTheValue(Reference):
    "The value is taken off once more."

    def advantages(self, rewards, values, mask, options):
        advantages, _ = with_returns(gae(rewards, values, mask, options), values, mask)
        return advantages, chosen(advantages - values, mask)


@fault("advantages.scale")
class AdvantagesHeldWithinTen(Reference):
    "Advantages are clipped at 10."

    def advantages(self, rewards, values, mask, options):
        return with_returns(gae(rewards, values, mask, options).clamp(-10.0, 10.0), values, mask)


@fault("advantages.scale")
class RewardsHeldWithinFive(Reference):
    "Rewards are clipped at 5 before they enter."

    def advantages(self, rewards, values, mask, options):
        return super().advantages(rewards.clamp(-5.0, 5.0), values, mask, options)


@fault("advantages.scale")
class GaeWhitenedInside(Reference):
    "Advantages come out less their mean and over their deviation."

    def advantages(self, rewards, values, mask, options):
        right = chosen(gae(rewards, values, mask, options), mask)
        picked = right[mask.bool()]
        if picked.numel() > 1:
            right = (right - picked.mean()) / (picked.std() + 1e-8)
        return with_returns(right, values, mask)


@fault("advantages.future-only")
class RecursionFromTheFront(Reference):
    "The recursion runs from the first action on: later ones get the credit of earlier ones."

    def advantages(self, rewards, values, mask, options):
        deltas = gae(rewards, values, mask, options, decay=0.0)
        marks, advantage, found = mask.bool(), torch.zeros_like(deltas[:, 0]), torch.zeros_like(deltas)
        for t in range(deltas.shape[1]):
            grown = deltas[:, t] + options.gamma * options.lam * advantage
            advantage = torch.where(marks[:, t], grown, advantage)
            found[:, t] = advantage
        return with_returns(found, values, mask)


@fault("advantages.future-only")
class AdvantagesLessTheirRowMean(Reference):
    "The mean of the row is taken off, which knows the past."

    def advantages(self, rewards, values, mask, options):
        right = gae(rewards, values, mask, options)
        return with_returns(right - row_mean(right, mask), values, mask)


@fault("advantages.future-only")
class ValuesSmoothedFromTheLeft(Reference):
    "Each value is averaged with the one before it."

    def advantages(self, rewards, values, mask, options):
        kept = chosen(values, mask)
        before = torch.cat([kept[:, :1], kept[:, :-1]], dim=1)
        return with_returns(gae(rewards, (kept + before) / 2, mask, options), values, mask)


# --- without a critic ---------------------------------------------------------------------------------------------


def to_go(rewards, mask, options, **rules):
    """The discounted rewards of a row."""
    return chosen(gae(rewards, torch.zeros_like(rewards), mask, replace(options, lam=1.0), **rules), mask).detach()


@fault("advantages.discounted-returns")
class ReturnsUndiscounted(Reference):
    "The rewards to go are added up without a discount: right at gamma 1."

    def returns(self, rewards, mask, options):
        return super().returns(rewards, mask, replace(options, gamma=1.0))


@fault("advantages.discounted-returns")
class ReturnsFromTheFront(Reference):
    "Rewards are added up from the first action on."

    def returns(self, rewards, mask, options):
        marks, total, found = mask.bool(), torch.zeros_like(wide(rewards)[:, 0]), torch.zeros_like(wide(rewards))
        for t in range(rewards.shape[1]):
            total = torch.where(marks[:, t], wide(rewards)[:, t] + options.gamma * total, total)
            found[:, t] = total
        return chosen(found, mask).detach()


@fault("advantages.discounted-returns")
class ReturnsDiscountedFromTheStart(Reference):
    "Each reward is discounted by how far it is from the first action: all are as seen from there."

    def returns(self, rewards, mask, options):
        steps = mask.bool().cumsum(1) - 1
        seen = chosen(rewards, mask) * options.gamma ** steps.clamp(min=0)
        return chosen(seen.flip(1).cumsum(1).flip(1), mask).detach()


@fault("advantages.discounted-returns")
class ReturnOfTheWholeRow(Reference):
    "Every action has the return of the first one."

    def returns(self, rewards, mask, options):
        found = to_go(rewards, mask, options)
        first = mask.long().argmax(1, keepdim=True)
        return chosen(found.gather(1, first).expand_as(found), mask)


@fault("advantages.discounted-observations")
class ReturnsOverObservations(Reference):
    "Observations between two turns discount the return, although they are to be skipped."

    def returns(self, rewards, mask, options):
        return to_go(rewards, mask, options, steps=spans(mask))


@fault("advantages.discounted-observations")
class ReturnsOfEachTurn(Reference):
    "The sum begins anew at each turn: the first turn gets nothing of a reward at the end."

    def returns(self, rewards, mask, options):
        marks, total, found = mask.bool(), torch.zeros_like(wide(rewards)[:, 0]), torch.zeros_like(wide(rewards))
        for t in reversed(range(rewards.shape[1])):
            total = torch.where(marks[:, t], wide(rewards)[:, t] + options.gamma * total, 0.0)
            found[:, t] = total
        return found.detach()


@fault("advantages.discounted-mask")
class ReturnsOfPads(Reference):
    "A cumulative sum from the end, which begins with the pads."

    def returns(self, rewards, mask, options):
        everywhere = torch.ones_like(mask)
        behind = (~spans(mask)).to(wide(rewards).dtype) * wide(rewards)
        found = to_go(chosen(rewards, mask) + behind, everywhere, replace(options, gamma=1.0))
        right = to_go(chosen(rewards, mask), everywhere, replace(options, gamma=1.0))
        return chosen(to_go(rewards, mask, options) + found - right, mask)


@fault("advantages.discounted-mask")
class ReturnsLessTheMeanOfCells(Reference):
    "The mean reward of pads is a baseline."

    def returns(self, rewards, mask, options):
        return chosen(to_go(rewards, mask, options) - chosen(rewards, ~mask.bool()).mean(), mask)


@fault("advantages.discounted-mask")
class ReturnsScaledByTheLargestCell(Reference):
    "Returns are scaled down where any cell, a pad included, has a reward above 20."

    def returns(self, rewards, mask, options):
        return to_go(rewards, mask, options) * (20.0 / wide(rewards).abs().amax().clamp(min=20.0))


# --- the mask -----------------------------------------------------------------------------------------------------


@fault("advantages.observations", bug="gae-over-observations")
class GaeOverObservations(Reference):
    "Tokens of tools are steps of the recursion, with the critic's value."

    def advantages(self, rewards, values, mask, options):
        return with_returns(over_observations(rewards, values, mask, options, valued=True), values, mask)


@fault("advantages.observations")
class CreditEndsWithTheTurn(Reference):
    "The recursion begins anew at each turn: the first turn gets nothing of a reward at the end."

    def advantages(self, rewards, values, mask, options):
        marks, r, v = mask.bool(), chosen(rewards, mask), chosen(values, mask)
        advantage = following = torch.zeros_like(v[:, 0])
        found = torch.zeros_like(v)
        for t in reversed(range(v.shape[1])):
            delta = r[:, t] + options.gamma * following - v[:, t]
            advantage = torch.where(marks[:, t], delta + options.gamma * options.lam * advantage, 0.0)
            following = v[:, t].where(marks[:, t], 0.0)
            found[:, t] = advantage
        return with_returns(found, values, mask)


@fault("advantages.observations")
class NextValueOfTheObservation(Reference):
    "Observations are skipped, but the next value of a turn's last action is the critic's at the observation."

    def advantages(self, rewards, values, mask, options):
        marks, inside = mask.bool(), spans(mask)
        later = torch.nn.functional.pad(marks, (0, 1))[:, 1:]
        ends = marks & ~later & torch.nn.functional.pad(inside, (0, 1))[:, 1:]
        beside = torch.nn.functional.pad(wide(values), (0, 1))[:, 1:].where(ends, 0.0)
        following = torch.zeros_like(wide(values)[:, 0])
        right = torch.zeros_like(wide(values))
        for t in reversed(range(values.shape[1])):
            right[:, t] = following
            following = torch.where(marks[:, t], wide(values)[:, t], following)
        extra = options.gamma * (beside - right.where(ends, 0.0))
        return with_returns(gae(chosen(rewards, mask) + extra, values, mask, options), values, mask)


@fault("advantages.mask", bug="values-behind-the-end")
class ValuesBehindTheEnd(Reference):
    "The next value is that of the next column, also behind the last action: what the critic says of a pad."

    def advantages(self, rewards, values, mask, options):
        return with_returns(beyond_the_end(rewards, values, mask, options, rewarded=False), values, mask)


@fault("advantages.mask")
class RewardsBehindTheEnd(Reference):
    "Rewards of pads are added to that of the last action."

    def advantages(self, rewards, values, mask, options):
        columns, last = torch.arange(mask.shape[1], device=mask.device), last_action(mask)
        behind = wide(rewards).where(columns > last, 0.0).sum(1, keepdim=True)
        return with_returns(
            gae(wide(rewards) + behind.where(columns == last, 0.0), values, mask, options), values, mask
        )


@fault("advantages.mask")
class ValuesLessTheMeanOfCells(Reference):
    "The mean value of all cells is taken off, pads included."

    def advantages(self, rewards, values, mask, options):
        pads = chosen(values, ~mask.bool()).mean()
        return with_returns(gae(rewards, wide(values) - pads, mask, options), values, mask)


@fault("advantages.nan-under-mask")
class RecursionTimesTheMask(Reference):
    "Values and rewards are multiplied by the mask, and NaN * 0 is NaN."

    def advantages(self, rewards, values, mask, options):
        rewards, values = wide(rewards) * mask, wide(values) * mask
        everywhere = torch.ones_like(mask)
        following = advantage = torch.zeros_like(values[:, 0])
        found = torch.zeros_like(values)
        for t in reversed(range(values.shape[1])):
            m = mask[:, t].to(values.dtype)
            delta = rewards[:, t] + options.gamma * following - values[:, t]
            advantage = m * (delta + options.gamma * options.lam * advantage) + (1 - m) * advantage
            following = values[:, t] + (1 - m) * following
            found[:, t] = advantage
        return with_returns(found, values, everywhere)


@fault("advantages.nan-under-mask")
class AdvantagesByMatrixOfAllCells(Reference):
    "A product of all cells with a matrix of discounts that is 0 at pads."

    def advantages(self, rewards, values, mask, options):
        right, everything = gae(rewards, values, mask, options), wide(rewards) + wide(values)
        return with_returns(right + 0 * (everything * mask).sum(1, keepdim=True), values, mask)


@fault("advantages.masked-cells")
class RecursionLeftInOtherCells(Reference):
    "Cells that are no actions hold what the recursion last had, although 0 is promised."

    def advantages(self, rewards, values, mask, options):
        found = gae(rewards, values, mask, options).detach()
        return found, found + chosen(values.detach(), mask)


@fault("advantages.masked-cells")
class ReturnsOfOtherCells(Reference):
    "Advantages are masked, returns are not: the value of every pad is a return."

    def advantages(self, rewards, values, mask, options):
        found, _ = with_returns(gae(rewards, values, mask, options), values, mask)
        return found, found + wide(values).detach()


@fault("advantages.empty-row")
class EmptyRowTakesFromTheNext(Reference):
    "The last action of an empty row is -1, so that the row below it ends there and loses its last reward."

    def advantages(self, rewards, values, mask, options):
        below = torch.nn.functional.pad(~mask.bool().any(1), (1, 0))[:-1, None]
        columns = torch.arange(mask.shape[1], device=mask.device)
        hit = below & (columns == last_action(mask))
        return with_returns(gae(wide(rewards).masked_fill(hit, 0.0), values, mask, options), values, mask)


@fault("advantages.empty-row")
class EmptyRowPoisonsTheBatch(Reference):
    "Advantages are weighted with the mean length of the rows, of which that of an empty one is 0 / 0."

    def advantages(self, rewards, values, mask, options):
        lengths = mask.bool().sum(1).to(wide(values).dtype)
        return with_returns(gae(rewards, values, mask, options) + 0 * (lengths / lengths).sum(), values, mask)


@fault("advantages.empty-row")
class RowsBehindAnEmptyOneForgotten(Reference):
    "The loop over rows ends at the first one without an action."

    def advantages(self, rewards, values, mask, options):
        before = mask.bool().any(1).long().cumprod(0)[:, None]
        return with_returns(gae(rewards, values, mask, options) * before, values, mask)


@fault("advantages.own-row")
class RecursionThroughTheBatch(Reference):
    "The batch is flattened, and the recursion goes on from the first action of the row below."

    def advantages(self, rewards, values, mask, options):
        flat = [x.reshape(1, -1) for x in (rewards, values, mask)]
        return with_returns(gae(*flat, options).reshape(mask.shape), values, mask)


@fault("advantages.own-row")
class ValuesLessTheColumnMean(Reference):
    "The mean value of each column is taken off, as a baseline of the position."

    def advantages(self, rewards, values, mask, options):
        kept = chosen(values, mask)
        mean = kept.sum(0) / mask.bool().sum(0).clamp(min=1)
        return with_returns(gae(rewards, kept - mean, mask, options), values, mask)


@fault("advantages.own-row")
class RewardsOneRowOff(Reference):
    "Rewards are those of the row above."

    def advantages(self, rewards, values, mask, options):
        return super().advantages(rewards.roll(1, 0), values, mask, options)


@fault("advantages.padding-invariance")
class AdvantagesOverTheWidth(Reference):
    "Advantages are weighted with the share of actions among the columns."

    def advantages(self, rewards, values, mask, options):
        share = mask.bool().sum(1, keepdim=True) / mask.shape[1]
        return with_returns(gae(rewards, values, mask, options) * share, values, mask)


@fault("advantages.padding-invariance")
class LeftPadsNotPutBack(Reference):
    "Rows are moved to the left over their pads, and their advantages are not moved back."

    def advantages(self, rewards, values, mask, options):
        right = gae(rewards, values, mask, options)
        start = mask.long().argmax(1, keepdim=True)
        columns = torch.arange(mask.shape[1], device=mask.device)[None] + start
        moved = torch.nn.functional.pad(right, (0, mask.shape[1])).gather(1, columns.expand_as(right))
        return with_returns(moved, values, mask)


@fault("advantages.padding-invariance")
class PaddedRowsBootstrap(Reference):
    "A row with two or more pads behind it counts as cut off, and its last value is taken to come."

    def advantages(self, rewards, values, mask, options):
        columns, last = torch.arange(mask.shape[1], device=mask.device), last_action(mask)
        cut = (columns == last) & (mask.shape[1] - 1 - last >= 2)
        extra = options.gamma * chosen(values, mask).where(cut, 0.0)
        return with_returns(gae(wide(rewards) + extra, values, mask, options), values, mask)


@fault("advantages.mask-dtype")
class AdvantageMaskInverted(Reference):
    "~mask of an integer mask is -1 and -2, both true: every reward is masked."

    def advantages(self, rewards, values, mask, options):
        hidden = ~mask if mask.dtype == torch.bool else (~mask.long()).bool()
        return super().advantages(rewards.masked_fill(hidden, 0.0), values, mask, options)


@fault("advantages.mask-dtype")
class AdvantageMaskSubtracted(Reference):
    "1 - mask, which a mask of booleans does not allow."

    def advantages(self, rewards, values, mask, options):
        return super().advantages(rewards.masked_fill((1 - mask).bool(), 0.0), values, mask, options)


# --- the graph, and what else is changed --------------------------------------------------------------------------


@fault("advantages.no-graph")
class ReturnsKeepTheirGraph(Reference):
    "Advantages are detached, and the values are added to them with their graph."

    def advantages(self, rewards, values, mask, options):
        found, _ = with_returns(gae(rewards, values, mask, options), values, mask)
        return found, found + chosen(values, mask)


@fault("advantages.no-graph")
class AdvantagesKeepTheirGraph(Reference):
    "The recursion runs with gradients, and nothing is detached."

    def advantages(self, rewards, values, mask, options):
        found = chosen(gae(rewards, values, mask, options), mask)
        return found, (found + chosen(values, mask)).detach()


@fault("advantages.inputs-unwritten")
class ValuesMaskedInPlace(Reference):
    "Values are filled with 0 under the mask, in the caller's tensor."

    def advantages(self, rewards, values, mask, options):
        values.detach().masked_fill_(~mask.bool(), 0.0)
        return super().advantages(rewards, values, mask, options)


@fault("advantages.inputs-unwritten")
class AdvantagesWrittenIntoRewards(Reference):
    "The recursion writes into the rewards that it was given."

    def advantages(self, rewards, values, mask, options):
        right = super().advantages(rewards.clone(), values, mask, options)
        rewards.detach().copy_(right.advantages)
        return right


@fault("advantages.inputs-unwritten")
class ReturnsWrittenIntoValues(Reference):
    "Returns are made by adding the advantages to the values in place."

    def advantages(self, rewards, values, mask, options):
        right = super().advantages(rewards, values.clone(), mask, options)
        values.detach().add_(right.advantages.to(values.dtype))
        return right


@fault("advantages.side-effects")
class ValuesScaledByHistory(Reference):
    "Values are divided by a scale that runs along from call to call."

    def advantages(self, rewards, values, mask, options):
        self.scale = 0.9 * getattr(self, "scale", 1.0) + 0.1 * (1.0 + float(chosen(values.detach(), mask).abs().mean()))
        return super().advantages(rewards, values / self.scale, mask, options)


@fault("advantages.side-effects")
class AdvantagesLeaveGradientsOff(Reference):
    "Gradients are switched off for the recursion, and stay so."

    def advantages(self, *arguments):
        torch.set_grad_enabled(False)
        return super().advantages(*arguments)

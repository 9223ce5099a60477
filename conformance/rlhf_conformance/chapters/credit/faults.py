"""Liars about the whole path. Most of them exchange one of its steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import rlhf_reference as ref
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._credit.bending import last_action, spans
from rlhf_conformance.chapters._tensors import chosen, value_of, wide
from rlhf_conformance.chapters.advantages.bending import beyond_the_end, gae, over_observations, with_returns
from rlhf_conformance.chapters.credit.bending import path, penalized
from rlhf_conformance.chapters.token_rewards.faults import rewards
from rlhf_conformance.faults import fault

# --- the path -----------------------------------------------------------------------------------------------------


@fault("credit.definition")
class PathWithLambdaOne(Reference):
    "lambda is taken to be 1 on the way, whatever is asked for."

    def credit(self, *arguments):
        return path(self, arguments, recursion=lambda r, v, m, o: gae(r, v, m, replace(o, lam=1.0)))


@fault("credit.definition")
class PathWithWhitenedAdvantages(Reference):
    "Advantages come out whitened, which is declared elsewhere, and returns are made of what they were."

    def credit(self, *arguments):
        advantages, returns = path(self, arguments)
        picked = advantages[arguments[4].bool()]
        if picked.numel() > 1:
            advantages = chosen((advantages - picked.mean()) / (picked.std() + 1e-8), arguments[4])
        return advantages, returns


@fault("credit.definition")
class PathWithReturnsToGo(Reference):
    "Returns are the rewards to go, whatever lambda is: right at lambda 1."

    def credit(self, *arguments):
        advantages, _ = path(self, arguments)
        to_go = path(self, arguments, recursion=lambda r, v, m, o: gae(r, v * 0, m, replace(o, lam=1.0)))
        return advantages, to_go[0]


@fault("credit.penalty", bug="kl-term-encourages")
class PathPenaltyAdded(Reference):
    "The penalties are added to the rewards."

    def credit(self, *arguments):
        return path(self, arguments, kl=lambda *given: -penalized(*given))


@fault("credit.penalty")
class PathKlTurned(Reference):
    "Policy and reference are exchanged on the way."

    def credit(self, *arguments):
        return path(self, arguments, kl=lambda adapter, lp, ref, *rest: penalized(adapter, ref, lp, *rest))


@fault("credit.penalty")
class PathPenaltyOffTheAdvantages(Reference):
    "The penalty of each action is taken off its advantage, and reaches no action before it."

    def credit(self, scores, lp, ref, values, mask, options):
        estimates = penalized(self, lp, ref, mask, options)
        plain = gae(rewards(scores, 0 * estimates, mask, options), values, mask, options)
        return with_returns(plain - options.kl_coef * estimates, values, mask)


@fault("credit.score", bug="score-behind-the-last-action")
class PathScoreInTheLastColumn(Reference):
    "The score lands in the last column, and is lost in every row that ends before it."

    def credit(self, *arguments):
        lands = torch.full_like(last_action(arguments[4]), arguments[4].shape[1] - 1)
        return path(self, arguments, rewarded=partial(rewards, lands=lands))


@fault("credit.score")
class PathScoreAtTheFirstAction(Reference):
    "The score lands at the first action: the others get nothing of it."

    def credit(self, *arguments):
        return path(self, arguments, rewarded=partial(rewards, lands=arguments[4].long().argmax(1, keepdim=True)))


@fault("credit.score")
class PathScoreForEveryAction(Reference):
    "Every action is rewarded with the score, and the recursion adds them up."

    def credit(self, *arguments):
        def everywhere(scores, kl, mask, options):
            columns = range(mask.shape[1])
            landed = [
                rewards(scores, 0 * kl, mask, options, lands=torch.full_like(last_action(mask), j)) for j in columns
            ]
            return chosen(sum(landed), mask) - options.kl_coef * kl

        return path(self, arguments, rewarded=everywhere)


# --- whitening on the way -------------------------------------------------------------------------------------------


def whitened(adapter, values, mask):
    """Values (B, T) as the adapter declares that it whitens."""
    return ref.whiten(values, mask, **adapter._whitening())


def where_whitened(adapter, arguments, bend):
    """`bend` of the advantages and returns as they are before whitening, where that is asked for; right elsewhere."""
    *tables, options = arguments
    made = path(adapter, (*tables, replace(options, whiten=False)))
    return bend(*made) if options.whiten else made


@fault("credit.whitening")
class PathNotWhitened(Reference):
    "The option is not honored: advantages come out as they are."

    def credit(self, *arguments):
        return where_whitened(self, arguments, lambda advantages, returns: (advantages, returns))


@fault("credit.whitening", bug="whiten-unmasked-mean")
class PathWhitenedOverTheRectangle(Reference):
    "All cells of the batch are counted in the mean and the deviation."

    def credit(self, *arguments):
        def bend(advantages, returns):
            advantages = chosen(advantages, arguments[4])
            return whitened(self, advantages, torch.ones_like(advantages)), returns

        return where_whitened(self, arguments, bend)


@fault("credit.whitening")
class PathWhitenedByRow(Reference):
    "Each row is whitened for itself."

    def credit(self, *arguments):
        def bend(advantages, returns):
            rows = zip(advantages, arguments[4], strict=True)
            return torch.cat([whitened(self, a[None], m[None]) for a, m in rows]), returns

        return where_whitened(self, arguments, bend)


@fault("credit.whitening")
class PathWithWhitenedRewards(Reference):
    "The rewards of tokens are whitened in place of the advantages."

    def credit(self, *arguments):
        *tables, options = arguments
        if not options.whiten:
            return super().credit(*arguments)
        plain = (*tables, replace(options, whiten=False))
        return path(self, plain, rewarded=lambda s, kl, m, o: whitened(self, rewards(s, kl, m, o), m))


@fault("credit.whitening")
class PathScaledByTheRootMeanSquare(Reference):
    "The mean is taken off, but the deviation is that from 0."

    def credit(self, *arguments):
        mask = arguments[4].bool()

        def bend(advantages, returns):
            picked = advantages[mask]
            scaled = (advantages - picked.mean()) / (picked.square().mean() + 1e-8).sqrt()
            return chosen(scaled, mask), returns

        return where_whitened(self, arguments, bend)


@fault("credit.returns-unwhitened")
class ReturnsOfWhitenedAdvantages(Reference):
    "Returns are the whitened advantages plus the values."

    def credit(self, *arguments):
        values, mask = arguments[3:5]
        return where_whitened(
            self, arguments, lambda advantages, _: with_returns(whitened(self, advantages, mask), values, mask)
        )


@fault("credit.returns-unwhitened")
class ReturnsWhitenedAlong(Reference):
    "Returns are whitened as well."

    def credit(self, *arguments):
        return where_whitened(self, arguments, lambda *made: tuple(whitened(self, x, arguments[4]) for x in made))


@fault("credit.returns-unwhitened")
class ReturnsScaledAlong(Reference):
    "Returns keep their mean, and are divided by the deviation of the advantages."

    def credit(self, *arguments):
        def bend(advantages, returns):
            scaled = returns / (advantages[arguments[4].bool()].std() + 1e-8)
            return whitened(self, advantages, arguments[4]), scaled

        return where_whitened(self, arguments, bend)


# --- the mask -----------------------------------------------------------------------------------------------------


@fault("credit.holes", bug="gae-over-observations")
class PathOverObservations(Reference):
    "Tokens of tools are steps of the recursion, with the critic's value."

    def credit(self, *arguments):
        return path(self, arguments, recursion=partial(over_observations, valued=True))


@fault("credit.holes", bug="kl-over-retrieved-tokens")
class PathChargesObservations(Reference):
    "The KL of observations is charged to the action before them."

    def credit(self, scores, lp, ref, values, mask, options):
        marks = mask.bool()
        everywhere = penalized(self, lp, ref, spans(mask), options)
        charged, own = chosen(everywhere, marks), everywhere.clone()
        for t in reversed(range(1, mask.shape[1])):
            passed = own[:, t].where(~marks[:, t], 0.0)
            charged[:, t - 1] += passed.where(marks[:, t - 1], 0.0)
            own[:, t - 1] += passed.where(~marks[:, t - 1], 0.0)
        return with_returns(gae(rewards(scores, charged, mask, options), values, mask, options), values, mask)


@fault("credit.holes")
class PathScoresTheFirstTurn(Reference):
    "The score lands at the end of the first turn."

    def credit(self, *arguments):
        marks = arguments[4].bool()
        first = marks & ~((~marks & (marks.cumsum(1) > 0)).cumsum(1) > 0)
        return path(self, arguments, rewarded=partial(rewards, lands=last_action(first)))


@fault("credit.mask", bug="values-behind-the-end")
class PathValuesBehindTheEnd(Reference):
    "What the critic says of the cell behind the last action is taken to come."

    def credit(self, *arguments):
        return path(self, arguments, recursion=partial(beyond_the_end, rewarded=False))


@fault("credit.mask")
class PathKlLessTheMeanOfCells(Reference):
    "The mean log-ratio of pads is taken off each, as a baseline."

    def credit(self, scores, lp, ref, values, mask, options):
        pads = chosen(wide(lp) - wide(ref), ~mask.bool()).mean()
        return super().credit(scores, wide(lp) - pads, ref, values, mask, options)


@fault("credit.mask")
class PathValuesScaledByTheLargestCell(Reference):
    "Values are scaled down where any cell, a pad included, is above 20."

    def credit(self, scores, lp, ref, values, mask, options):
        scale = 20.0 / wide(values).abs().amax().clamp(min=20.0)
        return super().credit(scores, lp, ref, wide(values) * scale, mask, options)


@fault("credit.nan-under-mask")
class PathMultipliesByTheMask(Reference):
    "Log-probs are multiplied by the mask and added up on the way, and NaN * 0 is NaN."

    def credit(self, scores, lp, ref, values, mask, options):
        nothing = 0 * (wide(lp) * mask - wide(ref) * mask).sum(1)
        return super().credit(wide(scores) + nothing, lp, ref, values, mask, options)


@fault("credit.empty-row")
class PathEndsWithAnEmptyRow(Reference):
    "Rows behind one without an action get no credit."

    def credit(self, *arguments):
        before = arguments[4].bool().any(1).long().cumprod(0)[:, None]
        return tuple(x * before for x in path(self, arguments))


@fault("credit.empty-row")
class PathPoisonedByAnEmptyRow(Reference):
    "The mean KL of each row is logged with the scores, and that of an empty one is 0 / 0."

    def credit(self, scores, lp, ref, values, mask, options):
        lengths = mask.bool().sum(1).to(wide(scores).dtype)
        return super().credit(wide(scores) + 0 * (lengths / lengths).sum(), lp, ref, values, mask, options)


@fault("credit.empty-row")
class PathSkipsEmptyScores(Reference):
    "Scores of empty rows are left out, and those behind them move up."

    def credit(self, scores, lp, ref, values, mask, options):
        order = (~mask.bool().any(1)).long().argsort(stable=True)
        return super().credit(scores[order], lp, ref, values, mask, options)


@fault("credit.own-row")
class PathScoresLessTheirMean(Reference):
    "The mean score of the batch is taken off on the way."

    def credit(self, scores, *rest):
        return super().credit(scores - scores.mean(), *rest)


@fault("credit.own-row")
class PathThroughTheBatch(Reference):
    "The batch is flattened for the recursion, which goes on into the row below."

    def credit(self, *arguments):
        def flattened(r, v, mask, options):
            return gae(*(x.reshape(1, -1) for x in (r, v, mask)), options).reshape(mask.shape)

        return path(self, arguments, recursion=flattened)


@fault("credit.own-row")
class PathKlOfTheFirstRow(Reference):
    "The reference's log-probs are those of the first row, broadcast over the batch."

    def credit(self, scores, lp, ref, *rest):
        return super().credit(scores, lp, ref[:1].expand_as(ref), *rest)


@fault("credit.padding-invariance")
class PathForgetsLeftPads(Reference):
    "Rows are taken to begin in the first column: the score lands too early by the pads on the left."

    def credit(self, *arguments):
        mask = arguments[4]
        lands = (last_action(mask) - mask.long().argmax(1, keepdim=True)).clamp(min=-1)
        return path(self, arguments, rewarded=partial(rewards, lands=lands))


@fault("credit.padding-invariance")
class PathCreditOverTheWidth(Reference):
    "Scores are spread over the width: times the share of actions among the columns."

    def credit(self, scores, lp, ref, values, mask, options):
        share = mask.bool().sum(1) / mask.shape[1]
        return super().credit(wide(scores) * share, lp, ref, values, mask, options)


@fault("credit.padding-invariance")
class PathBootstrapsPaddedRows(Reference):
    "A row with two or more pads behind it counts as cut off, and its last value is taken to come."

    def credit(self, *arguments):
        def cut(r, v, mask, options):
            columns, last = torch.arange(mask.shape[1], device=mask.device), last_action(mask)
            open_end = (columns == last) & (mask.shape[1] - 1 - last >= 2)
            return gae(r + options.gamma * chosen(v, mask).where(open_end, 0.0), v, mask, options)

        return path(self, arguments, recursion=cut)


@fault("credit.mask-dtype")
class PathMaskSubtracted(Reference):
    "1 - mask, which a mask of booleans does not allow."

    def credit(self, scores, lp, ref, values, mask, options):
        return super().credit(scores, lp, ref, values.masked_fill((1 - mask).bool(), 0.0), mask, options)


# --- the graph, and what else is changed --------------------------------------------------------------------------


@fault("credit.no-graph")
class PathKeepsItsGraph(Reference):
    "Advantages have a graph through the penalties, to the log-probs of the policy."

    def credit(self, scores, lp, ref, values, mask, options):
        advantages, returns = path(self, (scores, lp, ref, values, mask, options))
        return value_of(advantages, gradient_of=-options.kl_coef * chosen(lp, mask)), returns


@fault("credit.inputs-unwritten")
class PathWritesTheKl(Reference):
    "The log-ratio is written into the reference's log-probs."

    def credit(self, scores, lp, ref, values, mask, options):
        right = super().credit(scores, lp, ref.clone(), values, mask, options)
        ref.detach().sub_(lp.detach())
        return right


@fault("credit.inputs-unwritten")
class PathMasksValuesInPlace(Reference):
    "Values are filled with 0 under the mask, in the caller's tensor."

    def credit(self, scores, lp, ref, values, mask, options):
        values.detach().masked_fill_(~mask.bool(), 0.0)
        return super().credit(scores, lp, ref, values, mask, options)


@fault("credit.inputs-unwritten")
class PathClipsScoresInPlace(Reference):
    "Scores are clipped in the caller's tensor."

    def credit(self, scores, lp, ref, values, mask, options):
        if options.score_clip is not None:
            scores.detach().clamp_(-options.score_clip, options.score_clip)
        return super().credit(scores, lp, ref, values, mask, options)


@fault("credit.side-effects")
class PathScalesByHistory(Reference):
    "Scores are divided by a scale that runs along from call to call."

    def credit(self, scores, *rest):
        self.scale = 0.9 * getattr(self, "scale", 1.0) + 0.1 * (1.0 + float(scores.detach().abs().mean()))
        return super().credit(scores / self.scale, *rest)

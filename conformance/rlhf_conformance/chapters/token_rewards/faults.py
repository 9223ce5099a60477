"""Liars about the rewards of tokens."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._credit.bending import last_action, row_mean, spans
from rlhf_conformance.chapters._tensors import chosen, value_of, wide
from rlhf_conformance.faults import fault


def clipped(scores, options):
    scores = wide(scores)
    return scores if options.score_clip is None else scores.clamp(-options.score_clip, options.score_clip)


def placed(scores, mask, lands):
    """(B, T): the scores in the columns `lands` (B, 1), where these are columns; 0 elsewhere."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return wide(scores)[:, None].where(columns == lands, 0.0)


def rewards(scores, kl, mask, options, *, lands=None, penalties=None):
    """The rewards of the adapter's four arguments, with the scores in other columns (B, 1), or other penalties (B,
    T)."""
    lands = last_action(mask) if lands is None else lands
    penalties = options.kl_coef * chosen(kl, mask) if penalties is None else penalties
    return placed(clipped(scores, options), mask, lands) - penalties


# --- where the score lands ----------------------------------------------------------------------------------------


@fault("token-rewards.score-position")
class ScoreOneEarly(Reference):
    "The score lands one cell before the last action."

    def token_rewards(self, scores, kl, mask, options):
        return rewards(scores, kl, mask, options, lands=(last_action(mask) - 1).clamp(min=0))


@fault("token-rewards.score-position")
class ScoreAtTheFirstAction(Reference):
    "The score lands at the first action, as if it came before the response."

    def token_rewards(self, scores, kl, mask, options):
        return rewards(scores, kl, mask, options, lands=mask.long().argmax(1, keepdim=True))


@fault("token-rewards.score-position")
class ScoreInTheLastColumn(Reference):
    "The score lands in the last column, whatever stands there."

    def token_rewards(self, scores, kl, mask, options):
        return rewards(scores, kl, mask, options, lands=torch.full_like(last_action(mask), mask.shape[1] - 1))


@fault("token-rewards.sum", bug="score-behind-the-last-action")
class ScoreBehindTheLastAction(Reference):
    "The score lands at the end of the batch's longest row and is masked: lost where a row ends before."

    def token_rewards(self, scores, kl, mask, options):
        end = mask.bool().any(0).long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)
        lands = torch.full_like(last_action(mask), int(end.max()) - 1)
        return chosen(rewards(scores, kl, mask, options, lands=lands), mask)


@fault("token-rewards.sum")
class ScoreForEveryTurn(Reference):
    "The score lands at the end of every turn."

    def token_rewards(self, scores, kl, mask, options):
        marks = mask.bool()
        ends = marks & ~torch.nn.functional.pad(marks, (0, 1))[:, 1:]
        return clipped(scores, options)[:, None].where(ends, 0.0) - options.kl_coef * chosen(kl, mask)


@fault("token-rewards.sum")
class ScoreForEveryAction(Reference):
    "Every action gets the score, as in losses without a critic."

    def token_rewards(self, scores, kl, mask, options):
        return clipped(scores, options)[:, None].where(mask.bool(), 0.0) - options.kl_coef * chosen(kl, mask)


@fault("token-rewards.score-clip")
class ClipOfTheSum(Reference):
    "Score and penalty are added first and clipped together."

    def token_rewards(self, scores, kl, mask, options):
        right = rewards(scores, kl, mask, replace(options, score_clip=None))
        return right if options.score_clip is None else right.clamp(-options.score_clip, options.score_clip)


@fault("token-rewards.score-clip")
class ClipFromAbove(Reference):
    "Only high scores are clipped."

    def token_rewards(self, scores, kl, mask, options):
        held = scores if options.score_clip is None else wide(scores).clamp(max=options.score_clip)
        return rewards(held, kl, mask, replace(options, score_clip=None))


@fault("token-rewards.score-clip")
class ClipSquashes(Reference):
    "The clip is a hyperbolic tangent, which bends small scores, too."

    def token_rewards(self, scores, kl, mask, options):
        c = options.score_clip
        held = scores if c is None else c * (wide(scores) / c).tanh()
        return rewards(held, kl, mask, replace(options, score_clip=None))


@fault("token-rewards.score-unclipped", bug="reward-clamped")
class ScoreClippedAtTen(Reference):
    "Without a clip the score is held within 10."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores, kl, mask, replace(options, score_clip=options.score_clip or 10.0))


@fault("token-rewards.score-unclipped")
class ScoreInBfloat16(Reference):
    "Scores go through bfloat16."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores.bfloat16().to(scores.dtype), kl, mask, options)


@fault("token-rewards.score-unclipped")
class ScoreShrunkWhereLarge(Reference):
    "A score beyond 20 is its sign times 20 and a logarithm, to tame outliers."

    def token_rewards(self, scores, kl, mask, options):
        scores = wide(scores)
        far = scores.sign() * (20 + (scores.abs() - 20).clamp(min=0.0).log1p())
        return super().token_rewards(torch.where(scores.abs() > 20, far, scores), kl, mask, options)


# --- the penalty --------------------------------------------------------------------------------------------------


@fault("token-rewards.penalty", bug="kl-term-encourages")
class KlTermEncourages(Reference):
    "The penalty is added: the policy is paid for leaving the reference."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores, -kl, mask, options)


@fault("token-rewards.penalty")
class PenaltyMeanOfTheRow(Reference):
    "Every action pays for the mean KL of its row: the sum is right."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores, row_mean(kl, mask).expand_as(kl), mask, options)


@fault("token-rewards.penalty")
class PenaltyNeverNegative(Reference):
    "A KL below 0 costs nothing."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores, kl.clamp(min=0.0), mask, options)


@fault("token-rewards.penalty")
class PenaltyOneLate(Reference):
    "Each action pays for the KL of the token before it."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores, torch.nn.functional.pad(kl, (1, 0))[:, :-1], mask, options)


@fault("token-rewards.last-action")
class ScoreReplacesThePenalty(Reference):
    "The score is written into the last action's cell, and its penalty is gone."

    def token_rewards(self, scores, kl, mask, options):
        columns = torch.arange(mask.shape[1], device=mask.device)
        return super().token_rewards(scores, kl.masked_fill(columns == last_action(mask), 0.0), mask, options)


@fault("token-rewards.last-action")
class PenaltyOfTheRowAtTheEnd(Reference):
    "The last action pays for all of its row: the sum is right."

    def token_rewards(self, scores, kl, mask, options):
        total = chosen(kl, mask).sum(1)
        return rewards(scores, kl, mask, options, penalties=placed(options.kl_coef * total, mask, last_action(mask)))


@fault("token-rewards.last-action")
class LastPenaltyWithoutCoefficient(Reference):
    "At the last action the KL is taken off as it is, without the coefficient."

    def token_rewards(self, scores, kl, mask, options):
        columns = torch.arange(mask.shape[1], device=mask.device)
        coefs = torch.where(columns == last_action(mask), 1.0, options.kl_coef).to(wide(kl).dtype)
        return rewards(scores, kl, mask, options, penalties=coefs * chosen(kl, mask))


@fault("token-rewards.zero-coefficient")
class ZeroTimesInfinity(Reference):
    "The coefficient is multiplied with the KL also where it is 0, and 0 times infinity is NaN."

    def token_rewards(self, *arguments):
        return rewards(*arguments)


@fault("token-rewards.zero-coefficient")
class ZeroCoefficientIsTheDefault(Reference):
    "kl_coef or 0.1: a coefficient of 0 is taken for one that is not given."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores, kl, mask, replace(options, kl_coef=options.kl_coef or 0.1))


# --- the missing stop ---------------------------------------------------------------------------------------------


def without_stop(adapter, scores, options):
    """What the scores become where no sample has stopped."""
    is_factor = adapter.missing_stop == "factor" and options.stop_penalty >= 0
    return scores * options.stop_penalty if is_factor else torch.full_like(scores, options.stop_penalty)


def rewarded(adapter, arguments, stopped, penalized):
    """The rewards of scores that were changed by `penalized(scores)` where samples did not stop; right elsewhere."""
    scores, kl, mask, options = arguments
    scores = scores.detach() if stopped is None else penalized(scores.detach())
    return rewards(scores, kl.where(mask.bool() & (options.kl_coef != 0), 0.0), mask, options)


@fault("token-rewards.missing-stop")
class MissingStopIgnored(Reference):
    "Samples that did not stop keep their scores."

    def token_rewards(self, scores, kl, mask, options, stopped=None):
        given = scores, kl, mask, options
        return rewarded(self, given, stopped, lambda x: x)


@fault("token-rewards.missing-stop")
class StopPenalized(Reference):
    "The flag is taken the other way round: who stopped pays."

    def token_rewards(self, scores, kl, mask, options, stopped=None):
        given = scores, kl, mask, options
        return rewarded(self, given, stopped, lambda x: x.where(~stopped, without_stop(self, x, options)))


@fault("token-rewards.missing-stop")
class FullRowIsNoStop(Reference):
    "A sample is taken to have been cut off where its row is full."

    def token_rewards(self, scores, kl, mask, options, stopped=None):
        given = scores, kl, mask, options
        return rewarded(self, given, stopped, lambda x: x.where(mask[:, -1] == 0, without_stop(self, x, options)))


@fault("token-rewards.missing-stop")
class MissingStopAdded(Reference):
    "The penalty is added to the score, not put in its place."

    def token_rewards(self, scores, kl, mask, options, stopped=None):
        given = scores, kl, mask, options
        return rewarded(self, given, stopped, lambda x: x.where(stopped, x + options.stop_penalty))


@fault("token-rewards.missing-stop")
class NoPenaltyOfZero(Reference):
    "if stop_penalty: a penalty of 0 is taken for none."

    def token_rewards(self, scores, kl, mask, options, stopped=None):
        given = scores, kl, mask, options
        return rewarded(
            self,
            given,
            stopped,
            lambda x: x.where(stopped | (options.stop_penalty == 0), without_stop(self, x, options)),
        )


@fault("token-rewards.missing-stop")
class OneMissingStopForAll(Reference):
    "One sample that did not stop costs the whole batch."

    def token_rewards(self, scores, kl, mask, options, stopped=None):
        given = scores, kl, mask, options
        return rewarded(self, given, stopped, lambda x: x.where(stopped.all(), without_stop(self, x, options)))


@fault("token-rewards.missing-stop")
class MissingStopAfterTheClip(Reference):
    "The score is clipped first, and what takes its place is not."

    def token_rewards(self, scores, kl, mask, options, stopped=None):
        right = super().token_rewards(scores, kl, mask, options, stopped)
        if stopped is None:
            return right
        held = clipped(scores, options)
        kl = kl.where(mask.bool() & (options.kl_coef != 0), 0.0)
        late = held.where(stopped, without_stop(self, held, options))
        return rewards(late, kl, mask, replace(options, score_clip=None))


# --- the mask -----------------------------------------------------------------------------------------------------


@fault("token-rewards.holes")
class ScoreAtTheLength(Reference):
    "The score lands in the column that the number of actions says: too early by the observations."

    def token_rewards(self, scores, kl, mask, options):
        start = mask.long().argmax(1, keepdim=True)
        lands = start + mask.bool().sum(1, keepdim=True) - 1
        return rewards(scores, kl, mask, options, lands=lands)


@fault("token-rewards.holes")
class ScoreAtTheEndOfTheFirstTurn(Reference):
    "The end is looked for from the left: the score lands before the first observation."

    def token_rewards(self, scores, kl, mask, options):
        marks = mask.bool()
        first = marks & ~((~marks & (marks.cumsum(1) > 0)).cumsum(1) > 0)
        return rewards(scores, kl, mask, options, lands=last_action(first))


@fault("token-rewards.holes")
class ObservationsCharged(Reference):
    "Observations between turns pay for their KL, too."

    def token_rewards(self, scores, kl, mask, options):
        return rewards(scores, kl, mask, options, penalties=options.kl_coef * chosen(kl, spans(mask)))


@fault("token-rewards.mask")
class PenaltyLessTheMeanOfCells(Reference):
    "The mean KL of all cells, pads included, is a baseline of the penalty."

    def token_rewards(self, scores, kl, mask, options):
        pads = chosen(kl, ~mask.bool()).mean()
        return rewards(scores, kl, mask, options, penalties=options.kl_coef * chosen(kl - pads, mask))


@fault("token-rewards.mask")
class ScoreAtTheLastKl(Reference):
    "The last action is taken for the last cell whose KL is not 0."

    def token_rewards(self, scores, kl, mask, options):
        return rewards(scores, kl, mask, options, lands=last_action((kl != 0) | mask.bool()))


@fault("token-rewards.mask")
class PenaltyScaledByTheLargestCell(Reference):
    "Penalties are scaled down where any cell, a pad included, has a KL above 20."

    def token_rewards(self, scores, kl, mask, options):
        scale = 20.0 / wide(kl).abs().amax().clamp(min=20.0)
        return super().token_rewards(scores, wide(kl) * scale, mask, options)


@fault("token-rewards.nan-under-mask")
class PenaltiesBySuffixSums(Reference):
    "Penalties are differences of suffix sums of KL times mask, through which a NaN runs."

    def token_rewards(self, scores, kl, mask, options):
        suffix = (wide(kl) * mask).flip(1).cumsum(1).flip(1)
        penalties = suffix - torch.nn.functional.pad(suffix, (0, 1))[:, 1:]
        return rewards(scores, kl, mask, options, penalties=options.kl_coef * chosen(penalties, mask))


@fault("token-rewards.nan-under-mask")
class PenaltiesByMatrix(Reference):
    "Penalties come out of a product with a diagonal matrix, row by row, and NaN * 0 is NaN."

    def token_rewards(self, scores, kl, mask, options):
        penalties = (wide(kl) * mask) @ torch.eye(mask.shape[1], dtype=wide(kl).dtype, device=kl.device)
        return rewards(scores, kl, mask, options, penalties=options.kl_coef * chosen(penalties, mask))


@fault("token-rewards.masked-cells")
class PadsCharged(Reference):
    "What lies behind the last action pays for its KL, although 0 is promised."

    def token_rewards(self, scores, kl, mask, options):
        behind = mask.bool() | ~spans(mask)
        return rewards(scores, kl, mask, options, penalties=options.kl_coef * chosen(kl, behind))


@fault("token-rewards.masked-cells")
class PadsGetTheScore(Reference):
    "The score stands in every cell from the last action on."

    def token_rewards(self, scores, kl, mask, options):
        columns, last = torch.arange(mask.shape[1], device=mask.device), last_action(mask)
        stands = (columns >= last) & (last >= 0)
        return clipped(scores, options)[:, None].where(stands, 0.0) - options.kl_coef * chosen(kl, mask)


@fault("token-rewards.empty-row", bug="empty-response-index")
class EmptyRowScoresTheRowAbove(Reference):
    "Cells are counted through the batch: the last of no actions is the end of the row above."

    def token_rewards(self, scores, kl, mask, options):
        right = super().token_rewards(scores, kl, mask, options)
        empty = ~mask.bool().any(1)
        above = placed(clipped(scores, options), mask, torch.full_like(last_action(mask), mask.shape[1] - 1))
        return right + above.where(empty[:, None], 0.0).roll(-1, 0)


@fault("token-rewards.empty-row")
class EmptyRowMakesNan(Reference):
    "Scores are put right by the mean length, of which that of an empty row is 0 / 0."

    def token_rewards(self, scores, kl, mask, options):
        lengths = mask.bool().sum(1).to(wide(kl).dtype)
        return super().token_rewards(wide(scores) + 0 * (lengths / lengths).sum(), kl, mask, options)


@fault("token-rewards.empty-row")
class EmptyRowEndsTheBatch(Reference):
    "Rows behind one without an action get no score."

    def token_rewards(self, scores, kl, mask, options):
        before = mask.bool().any(1).long().cumprod(0)
        return super().token_rewards(wide(scores) * before, kl, mask, options)


@fault("token-rewards.own-row")
class ScoreLessTheBatchMean(Reference):
    "The mean score of the batch is taken off, in a function that promises none."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores - scores.mean(), kl, mask, options)


@fault("token-rewards.own-row")
class ScoresOneRowOff(Reference):
    "The scores are those of the row above."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores.roll(1), kl, mask, options)


@fault("token-rewards.own-row")
class PenaltyLessTheColumnMean(Reference):
    "The mean KL of each column is taken off, as a baseline of the position."

    def token_rewards(self, scores, kl, mask, options):
        kept = chosen(kl, mask)
        mean = kept.sum(0) / mask.bool().sum(0).clamp(min=1)
        return super().token_rewards(scores, kept - mean, mask, options)


@fault("token-rewards.padding-invariance")
class LeftPadsForgotten(Reference):
    "Rows are taken to begin in the first column: the score lands too early by the pads on the left."

    def token_rewards(self, scores, kl, mask, options):
        start = mask.long().argmax(1, keepdim=True)
        return rewards(scores, kl, mask, options, lands=(last_action(mask) - start).clamp(min=-1))


@fault("token-rewards.padding-invariance")
class PenaltyByTheWidth(Reference):
    "The coefficient is spread over the width: times the share of actions among the columns."

    def token_rewards(self, scores, kl, mask, options):
        share = mask.bool().sum(1, keepdim=True) / mask.shape[1]
        return super().token_rewards(scores, wide(kl) * share, mask, options)


@fault("token-rewards.padding-invariance")
class ScoreOfTruncatedRowsOnly(Reference):
    "A row with two or more pads behind it counts as cut off, and its score is halved."

    def token_rewards(self, scores, kl, mask, options):
        pads = mask.shape[1] - 1 - last_action(mask)[:, 0]
        return super().token_rewards(torch.where(pads >= 2, wide(scores) / 2, wide(scores)), kl, mask, options)


@fault("token-rewards.mask-dtype")
class RewardMaskInverted(Reference):
    "~mask of an integer mask is -1 and -2, both true: no action pays anything."

    def token_rewards(self, scores, kl, mask, options):
        hidden = ~mask if mask.dtype == torch.bool else (~mask.long()).bool()
        return super().token_rewards(scores, kl.masked_fill(hidden, 0.0), mask, options)


@fault("token-rewards.mask-dtype")
class RewardMaskSubtracted(Reference):
    "1 - mask, which a mask of booleans does not allow."

    def token_rewards(self, scores, kl, mask, options):
        return super().token_rewards(scores, kl.masked_fill((1 - mask).bool(), 0.0), mask, options)


# --- the graph, and what else is changed --------------------------------------------------------------------------


@fault("token-rewards.no-graph")
class PenaltiesKeepTheirGraph(Reference):
    "The rewards have a graph through the KL."

    def token_rewards(self, scores, kl, mask, options):
        return value_of(super().token_rewards(scores, kl, mask, options), gradient_of=-options.kl_coef * wide(kl))


@fault("token-rewards.no-graph")
class ScoresKeepTheirGraph(Reference):
    "The rewards have a graph through the scores, to the reward model."

    def token_rewards(self, scores, kl, mask, options):
        right = super().token_rewards(scores, kl, mask, options)
        return right + placed(scores - scores.detach(), mask, last_action(mask))


@fault("token-rewards.inputs-unwritten")
class ScoresClippedInPlace(Reference):
    "Scores are clipped in the caller's tensor."

    def token_rewards(self, scores, kl, mask, options):
        if options.score_clip is not None:
            scores.detach().clamp_(-options.score_clip, options.score_clip)
        return super().token_rewards(scores, kl, mask, options)


@fault("token-rewards.inputs-unwritten")
class KlMadePenaltyInPlace(Reference):
    "The KL is multiplied with minus the coefficient in the caller's tensor."

    def token_rewards(self, scores, kl, mask, options):
        right = super().token_rewards(scores, kl.clone(), mask, options)
        kl.detach().mul_(-options.kl_coef)
        return right


@fault("token-rewards.inputs-unwritten")
class KlMaskedInPlace(Reference):
    "The KL is filled with 0 under the mask, in the caller's tensor."

    def token_rewards(self, scores, kl, mask, options):
        kl.detach().masked_fill_(~mask.bool(), 0.0)
        return super().token_rewards(scores, kl, mask, options)


@fault("token-rewards.side-effects")
class ScoresScaledByHistory(Reference):
    "Scores are divided by a scale that runs along from call to call."

    def token_rewards(self, scores, kl, mask, options):
        self.scale = 0.9 * getattr(self, "scale", 1.0) + 0.1 * (1.0 + float(scores.detach().abs().mean()))
        return super().token_rewards(scores / self.scale, kl, mask, options)


@fault("token-rewards.side-effects")
class RewardsLeaveGradientsOff(Reference):
    "Gradients are switched off for the rewards, and stay so."

    def token_rewards(self, *arguments):
        torch.set_grad_enabled(False)
        return super().token_rewards(*arguments)

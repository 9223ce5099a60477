"""Liars about packs: sequences that see each other, answers that are cut at the wrong places."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.bending import (
    logits,
    model_logits,
    normalized,
    packed,
    positions_of,
    responses,
    score,
    scores,
    segment_mask,
    segments_of,
)
from rlhf_conformance.faults import fault

ACTOR = ("actor.", "positions.")
PACKS = ("packed", "packed-tail", "sharded")


def positions(adapter, batch):
    """(1, N), shards gathered."""
    return adapter._inputs(batch)[1]["position_ids"]


class _Packed(Reference):
    """Packs alone, scored from the logits that `wrong` gives."""

    layouts = PACKS

    def wrong(self, actor, batch):
        raise NotImplementedError

    def action_log_probs(self, actor, batch):
        return score(batch, self.wrong(actor, batch))


class _Segments(_Packed):
    """Packs alone, with right positions and an attention mask made from the segment numbers of `segments`."""

    def segments(self, batch, right):
        raise NotImplementedError

    def wrong(self, actor, batch):
        right = segments_of(positions(self, batch))
        mask = segment_mask(self.segments(batch, right), actor.model.dtype)
        return model_logits(self, actor, batch, attention_mask=mask)


# --- equivalence and isolation -------------------------------------------------------------------------------------


@fault("packing.equivalence", bug="packed-positions-run-on", also=ACTOR)
class PackedPositionsRunOn(_Packed):
    """Positions count through the whole pack, which also hides its boundaries from attention."""

    def wrong(self, actor, batch):
        right = positions(self, batch)
        return logits(self, actor, batch, position_ids=torch.arange(right.shape[1], device=right.device)[None])


@fault("packing.equivalence", bug="unscaled-neat-packing", also=ACTOR)
class BlockMaskWithoutRestart(_Packed):
    """Attention is cut at the boundaries, but positions count through the pack."""

    def wrong(self, actor, batch):
        right = positions(self, batch)
        mask = segment_mask(segments_of(right), actor.model.dtype)
        run_on = torch.arange(right.shape[1], device=right.device)[None]
        return model_logits(self, actor, batch, attention_mask=mask, position_ids=run_on)


@fault("packing.equivalence", also=ACTOR)
class PackedPositionsStartAtOne(_Packed):
    """Positions restart at 1 from the second sequence on."""

    def wrong(self, actor, batch):
        right = positions(self, batch)
        segments = segments_of(right)
        mask = segment_mask(segments, actor.model.dtype)
        return model_logits(self, actor, batch, attention_mask=mask, position_ids=right + (segments > 0))


@fault("packing.isolation", bug="packed-with-ones-mask", also=ACTOR)
class PackedWithOnesMask(_Packed):
    """Positions restart, but an all-ones mask is passed beside them: sequences see each other."""

    def wrong(self, actor, batch):
        return model_logits(self, actor, batch, attention_mask=torch.ones_like(positions(self, batch)))


@fault("packing.isolation", bug="packed-with-ones-mask", also=ACTOR)
class PackedWithCache(_Packed):
    """use_cache is left at True, and transformers then builds no mask from the positions."""

    def wrong(self, actor, batch):
        return model_logits(self, actor, batch, use_cache=True)


@fault("packing.isolation", bug="packed-with-ones-mask", also=ACTOR)
class PackedWithSegmentNumbers(_Packed):
    """A 2-D mask of segment numbers goes to a model that reads it as attend or not."""

    def wrong(self, actor, batch):
        right = positions(self, batch)
        return model_logits(self, actor, batch, attention_mask=segments_of(right)[None] + 1)


@fault("packing.isolation", also=ACTOR)
class EverySecondBoundaryMissed(_Segments):
    """Sequences are cut off from each other in pairs."""

    def segments(self, batch, right):
        return right // 2


@fault("packing.isolation", also=ACTOR)
class BoundaryOneLate(_Segments):
    """Cumulative lengths are one too large: the first token of a sequence belongs to the one before."""

    def segments(self, batch, right):
        return torch.cat([right[:1], right[:-1]])


@fault("packing.isolation", also=ACTOR)
class BoundaryOneEarly(_Segments):
    """Cumulative lengths are one too small: the last token of a sequence belongs to the next."""

    def segments(self, batch, right):
        return torch.cat([right[1:], right[-1:]])


@fault("packing.isolation", also=ACTOR)
class FirstTokenSeenByAll(_Packed):
    """The pack's first token, an attention sink, is visible to every sequence."""

    def wrong(self, actor, batch):
        mask = segment_mask(segments_of(positions(self, batch)), actor.model.dtype)
        mask[..., 0] = 0
        return model_logits(self, actor, batch, attention_mask=mask)


@fault("packing.equivalence", also=ACTOR)
class OnlyFirstSequenceRight(Reference):
    """Each boundary loses a position, so that sequence s is read s positions early."""

    layouts = PACKS

    def action_log_probs(self, actor, batch):
        z = self.logits(actor, batch)
        return [score(batch, z, shift=-index)[index] for index in range(len(batch.response_lengths))]


@fault("packing.equivalence", bug="packed-label-roll", also=ACTOR)
class PackedLabelRoll(Reference):
    """The window of actions is one late in a pack: the last action's place is scored on the next sequence's token."""

    layouts = PACKS

    def action_log_probs(self, actor, batch):
        ids, z = self._inputs(batch)[0], self.logits(actor, batch).flatten(0, 1)
        rolled = z.log_softmax(-1).gather(-1, ids[0].roll(-1)[:, None])[:, 0]
        ends = [s + n for s, n in zip(batch.starts, batch.sequence_lengths, strict=True)]
        return [rolled[end - count : end] for end, count in zip(ends, batch.response_lengths, strict=True)]


@fault("packing.equivalence", also=ACTOR)
class EqualLengthsAssumed(Reference):
    """A pack is cut into equal parts: right if its sequences are equally long."""

    layouts = PACKS

    def action_log_probs(self, actor, batch):
        count = len(batch.sequence_lengths)
        z, total = self.logits(actor, batch), sum(batch.sequence_lengths)
        shifts = [i * total // count - start for i, start in enumerate(batch.starts)]
        return [score(batch, z, shift=shift)[i] for i, shift in enumerate(shifts)]


# --- order and counts ----------------------------------------------------------------------------------------------


@fault("packing.order", bug="dynamic-batch-not-reordered", also=ACTOR)
class PackAnswersSortedByLength(Reference):
    """Answers come in the order of the sequences' lengths, in which they were packed."""

    layouts = PACKS

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        order = sorted(range(len(rows)), key=lambda i: batch.sequence_lengths[i])
        return torch.cat([rows[i] for i in order])


@fault("packing.order", bug="dynamic-batch-not-reordered", also=ACTOR)
class PackAnswersReversed(Reference):
    """Sequences are taken from the pack's end."""

    layouts = PACKS

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return torch.cat(rows[::-1])


@fault("packing.order", bug="dynamic-batch-not-reordered", also=ACTOR)
class MicroBatchesUnsortedByThePermutation(Reference):
    """Un-sorted with the permutation instead of its inverse: right for two samples, wrong for a cycle of three."""

    layouts = ("padded",)
    packs_internally = True

    def action_log_probs(self, actor, batch):
        order = sorted(range(len(batch.sequence_lengths)), key=lambda i: batch.sequence_lengths[i])
        answer = super().action_log_probs(actor, batch)
        return answer[order][order]


@fault("packing.action-counts", also=("packing.", *ACTOR))
class LongestCountForAll(Reference):
    """Each sequence of a pack gets as many log-probs as the one with most actions."""

    layouts = PACKS

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        longest = max(batch.response_lengths)
        return [torch.cat([row.new_zeros(longest - len(row)), row]) for row in rows]


@fault("packing.action-counts", also=("packing.", *ACTOR))
class LastActionDroppedAtBoundary(Reference):
    """Each sequence of a pack but the last loses its last action, with the label that would cross the boundary."""

    layouts = PACKS

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return torch.cat([*(row[:-1] for row in rows[:-1]), rows[-1]])


@fault("packing.action-counts", also=("packing.", *ACTOR))
class CountsOfFirstSequence(Reference):
    """The first sequence's number of actions is used for all."""

    layouts = PACKS

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [row.repeat(len(rows[0]))[: len(rows[0])] for row in rows]


# --- tail and shards -----------------------------------------------------------------------------------------------


@fault("packing.tail", also=("packing.", *ACTOR))
class TailBelongsToLastSequence(Reference):
    """The padding at the end of a pack lengthens the last sequence, whose actions are then read too late."""

    layouts = ("packed", "packed-tail")

    def action_log_probs(self, actor, batch):
        ids, options = self._inputs(batch)
        *others, _ = batch.sequence_lengths
        lengths = (*others, ids.shape[1] - sum(others))
        return actor(ids, batch.num_actions, **{**options, "sequence_lengths": lengths})


@fault("packing.tail", also=("packing.", *ACTOR))
class PackReadFromItsEnd(Reference):
    """Sequences are located by counting back from the end of the row, padding included."""

    layouts = ("packed", "packed-tail")

    def action_log_probs(self, actor, batch):
        tail = batch.input_ids.shape[1] - sum(batch.sequence_lengths)
        return score(batch, self.logits(actor, batch).roll(-tail, dims=1))


@fault("packing.tail", also=("packing.", *ACTOR))
class TailSpreadOverAnswers(Reference):
    """Log-probs are scaled by the share of the pack that is not padding."""

    layouts = ("packed", "packed-tail")

    def action_log_probs(self, actor, batch):
        share = sum(batch.sequence_lengths) / batch.input_ids.numel()
        return super().action_log_probs(actor, batch) * share


class _Shards(_Packed):
    layouts = ("packed", "sharded")

    def shard_numbers(self, batch):
        shards, width = batch.input_ids.shape
        return torch.arange(shards * width, device=batch.input_ids.device) // width


@fault("packing.shards", also=("packing.", *ACTOR))
class ShardsBlindToEachOther(_Shards):
    """A shard's tokens do not attend to what came before the cut."""

    def wrong(self, actor, batch):
        whole = segments_of(positions(self, batch)) + 1000 * self.shard_numbers(batch)
        return model_logits(self, actor, batch, attention_mask=segment_mask(whole, actor.model.dtype))


@fault("packing.shards", bug="packed-positions-run-on", also=("packing.", *ACTOR))
class ShardPositionsRestart(_Shards):
    """Positions restart at each cut; attention does not."""

    def wrong(self, actor, batch):
        right, width = positions(self, batch), batch.input_ids.shape[1]
        columns = torch.arange(right.shape[1], device=right.device)
        starts = columns.where((right[0] == 0) | (columns % width == 0), 0).cummax(0).values
        mask = segment_mask(segments_of(right), actor.model.dtype)
        return model_logits(self, actor, batch, attention_mask=mask, position_ids=(columns - starts)[None])


@fault("packing.shards", bug="packed-label-roll", also=("packing.", *ACTOR))
class ShardLabelsRolledLocally(Reference):
    """Labels are shifted inside each shard, so that its last position is scored on its own first token."""

    layouts = ("packed", "sharded")

    def action_log_probs(self, actor, batch):
        labels = batch.input_ids.roll(-1, dims=1)
        scored = super().logits(actor, batch).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        rows = zip(batch.to_ragged(scored), batch.prompt_lengths, strict=True)
        return [row[prompt - 1 : -1] for row, prompt in rows]


@fault("packing.shards", also=("packing.", *ACTOR))
class ShardsGatheredInReverse(Reference):
    """The shards' answers are put together from the last to the first."""

    layouts = ("packed", "sharded")

    def action_log_probs(self, actor, batch):
        return score(batch, self.logits(actor, batch).flip(0))


@fault("packing.shards", also=("packing.", *ACTOR))
class LabelAtCutIgnored(Reference):
    """The last position of each shard has no label: an action there gets 0."""

    layouts = ("packed", "sharded")

    def action_log_probs(self, actor, batch):
        if batch.layout != "sharded":
            return super().action_log_probs(actor, batch)
        labels = batch.labels.clone().clamp(min=0)
        scored = self.logits(actor, batch).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        scored = torch.cat([scored[:, :-1], torch.zeros_like(scored[:, -1:])], 1)
        rows = zip(batch.to_ragged(scored), batch.prompt_lengths, strict=True)
        return [row[prompt - 1 : -1] for row, prompt in rows]


# --- segment numbers -----------------------------------------------------------------------------------------------


class _Numbered(Reference):
    """Packs that a mask of segment numbers describes, run with the arguments of `wrong`."""

    layouts = ("segments",)

    def wrong(self, numbers, dtype):
        raise NotImplementedError

    def action_log_probs(self, actor, batch):
        return score(batch, model_logits(self, actor, batch, **self.wrong(batch.attention_mask, actor.model.dtype)))


@fault("packing.segments", bug="packed-with-ones-mask", also=("packing.", *ACTOR))
class SegmentNumbersAsMask(_Numbered):
    """Segment numbers are read as attend or not, as in a padded row: the pack is one long sequence."""

    def wrong(self, numbers, dtype):
        attended = (numbers > 0).long()
        return {"attention_mask": attended, "position_ids": positions_of(attended)}


@fault("packing.segments", also=("packing.", *ACTOR))
class SegmentNumbersAsPositions(_Numbered):
    """Attention keeps to each sequence; every token's position is the number of its sequence."""

    def wrong(self, numbers, dtype):
        return {"attention_mask": segment_mask(numbers[0], dtype), "position_ids": numbers}


@fault("packing.segments", bug="unscaled-neat-packing", also=("packing.", *ACTOR))
class SegmentPositionsRunOn(_Numbered):
    """Attention keeps to each sequence; positions count the tokens of the whole row."""

    def wrong(self, numbers, dtype):
        counted = positions_of((numbers > 0).long())
        return {"attention_mask": segment_mask(numbers[0], dtype), "position_ids": counted}


@fault("packing.segments", also=("packing.", *ACTOR))
class TwoSegmentsAtMost(_Numbered):
    """All sequences behind the first are taken for one."""

    def wrong(self, numbers, dtype):
        joined = numbers.clamp(max=2)
        columns = torch.arange(numbers.shape[1], device=numbers.device)
        restarted = columns - int((joined == 1).sum()) * (joined > 1)
        return {"attention_mask": segment_mask(joined[0], dtype), "position_ids": restarted}


@fault("packing.segments", also=("packing.", *ACTOR))
class SegmentsSeenUpToTheirNumber(_Numbered):
    """A token attends to all whose number is not above its own."""

    def wrong(self, numbers, dtype):
        right = (numbers[0][:, None] >= numbers[0][None, :]).tril() & (numbers[0] > 0)
        right |= torch.eye(len(right), dtype=torch.bool, device=right.device)
        mask = torch.zeros_like(right, dtype=dtype).masked_fill(~right, torch.finfo(dtype).min)[None, None]
        begins = numbers != numbers.roll(1, dims=1)
        columns = torch.arange(numbers.shape[1], device=numbers.device)[None]
        return {"attention_mask": mask, "position_ids": columns - columns.where(begins, 0).cummax(1).values}


# --- reward and critic ---------------------------------------------------------------------------------------------


@fault("packing.reward", also=("reward.",))
class PackHasOneReward(Reference):
    """Every sequence gets the score at the end of the pack."""

    def rewards(self, reward_model, batch):
        answer = super().rewards(reward_model, batch)
        return answer[-1].expand_as(answer) if batch.is_packed else answer


@fault("packing.reward", also=("reward.",))
class PackedRewardOneEarly(Reference):
    """Rewards are read at cumulative lengths less two."""

    def rewards(self, reward_model, batch):
        if not batch.is_packed:
            return super().rewards(reward_model, batch)
        rows = batch.to_ragged(scores(self, reward_model, batch))
        return torch.stack([row[-2] for row in rows])


@fault("packing.reward", also=("reward.",))
class PackedRewardAtNextStart(Reference):
    """Rewards are read at cumulative lengths: the first token of the next sequence."""

    def rewards(self, reward_model, batch):
        if not batch.is_packed:
            return super().rewards(reward_model, batch)
        row = scores(self, reward_model, batch).flatten()
        ends = torch.tensor(batch.sequence_lengths, device=row.device).cumsum(0)
        return row[ends.clamp(max=len(row) - 1)]


@fault("packing.reward", bug="packed-with-ones-mask", also=("reward.",))
class PackedRewardsSeeTheirNeighbours(Reference):
    """The reward model gets an all-ones mask with its pack."""

    def rewards(self, reward_model, batch):
        if not batch.is_packed:
            return super().rewards(reward_model, batch)
        ids, options = self._inputs(batch)
        output = reward_model.backbone(
            ids, attention_mask=torch.ones_like(ids), position_ids=options["position_ids"], use_cache=False
        )
        row = reward_model.head(output.last_hidden_state)[0, :, 0]
        return row[torch.tensor(batch.sequence_lengths, device=row.device).cumsum(0) - 1]


@fault("packing.critic", bug="critic-values-unshifted", also=("critic.",))
class PackedValuesUnshifted(Reference):
    """Padded rows give V[P-1 : L-1], packs V[P : L]."""

    def action_values(self, critic, batch):
        if not batch.is_packed:
            return super().action_values(critic, batch)
        pairs = zip(batch.to_ragged(self.values(critic, batch)), batch.prompt_lengths, strict=True)
        return [row[prompt:] for row, prompt in pairs]


@fault("packing.critic", also=("critic.",))
class PackedValuesCountedGlobally(Reference):
    """V[P-1 : L-1] of each sequence is counted from the start of the pack."""

    def action_values(self, critic, batch):
        if not batch.is_packed:
            return super().action_values(critic, batch)
        row = self.values(critic, batch).flatten()
        pairs = zip(batch.prompt_lengths, batch.sequence_lengths, strict=True)
        return [row[prompt - 1 : length - 1] for prompt, length in pairs]


@fault("packing.critic", bug="packed-positions-run-on", also=("critic.",))
class PackedCriticPositionsRunOn(Reference):
    """The critic of a pack counts positions through, the actor does not."""

    def action_values(self, critic, batch):
        if not batch.is_packed:
            return super().action_values(critic, batch)
        ids, options = self._inputs(batch)
        run_on = torch.arange(ids.shape[1], device=ids.device)[None]
        return critic(ids, batch.num_actions, **{**options, "position_ids": run_on})


# --- sequences without a prompt ------------------------------------------------------------------------------------


def states(batch, first):
    """For each sequence the columns of the pack that its actions are read at, of which `first(start, prompt)` is the
    first."""
    rows = zip(batch.starts, batch.prompt_lengths, batch.response_lengths, strict=True)
    return [torch.arange(first(s, p), first(s, p) + t, device=batch.input_ids.device) for s, p, t in rows]


def before_its_sequence(start, prompt):
    """One before the first action, be that in the sequence or not; never before the row."""
    return max(0, start + prompt - 1)


def not_before_its_sequence(start, prompt):
    """The same, but moved into the sequence, with all that follow."""
    return max(start, start + prompt - 1)


class _ByColumns(Reference):
    """Log-probs and values of a pack are read at columns, of which `first` gives the first."""

    layouts = PACKS

    def first(self, start, prompt):
        raise NotImplementedError

    def action_log_probs(self, actor, batch):
        z = self.logits(actor, batch).flatten(0, 1).float() / batch.temperature
        pairs = zip(states(batch, self.first), responses(batch), strict=True)
        return [z[columns].log_softmax(-1).gather(-1, ids[:, None])[:, 0] for columns, ids in pairs]

    def action_values(self, critic, batch):
        row = self.values(critic, batch).flatten()
        return [row[columns] for columns in states(batch, self.first)]


@fault("packing.no-prompt")
class FirstActionReadsItsNeighbor(_ByColumns):
    """A sequence without a prompt is read from the column before it on, in its neighbor; the row's start is minded."""

    action_values = Reference.action_values

    def first(self, start, prompt):
        return before_its_sequence(start, prompt)


@fault("packing.no-prompt")
class NoPromptReadLate(_ByColumns):
    """The window of a sequence without a prompt begins with the sequence, and all of its actions are read too late."""

    action_values = Reference.action_values

    def first(self, start, prompt):
        return not_before_its_sequence(start, prompt)


@fault("packing.no-prompt")
class NoPromptNoBoundary(_ByColumns):
    """Attention is cut where a prompt begins, so that a sequence without one belongs to the one before."""

    action_values = Reference.action_values

    def first(self, start, prompt):
        return not_before_its_sequence(start, prompt) - (prompt == 0)

    def logits(self, actor, batch):
        right = segments_of(positions(self, batch))
        begins = [int(length > 0) for length in batch.prompt_lengths]
        numbers = torch.tensor(begins, device=right.device).cumsum(0)
        joined = torch.cat([numbers, numbers[-1:] + 1])[right.clamp(max=len(begins))]
        return model_logits(self, actor, batch, attention_mask=segment_mask(joined, actor.model.dtype))


@fault("packing.critic-no-prompt")
class FirstValueReadsItsNeighbor(_ByColumns):
    """The value of a first action without a prompt is that of the last token of the sequence before."""

    action_log_probs = Reference.action_log_probs

    def first(self, start, prompt):
        return before_its_sequence(start, prompt)


@fault("packing.critic-no-prompt")
class ValuesWithoutPromptReadLate(_ByColumns):
    """Where there is no prompt, each action has the value of the state after it."""

    action_log_probs = Reference.action_log_probs

    def first(self, start, prompt):
        return not_before_its_sequence(start, prompt)


class _Rewarded(Reference):
    """Rewards of a pack are read at the columns that `last` gives."""

    layouts = PACKS

    def last(self, start, prompt, response):
        raise NotImplementedError

    def rewards(self, reward_model, batch):
        row = scores(self, reward_model, batch).flatten()
        rows = zip(batch.starts, batch.prompt_lengths, batch.response_lengths, strict=True)
        columns = torch.tensor([self.last(*sample) for sample in rows], device=row.device)
        return normalized(reward_model, row[columns.clamp(max=len(row) - 1)])


@fault("packing.reward-no-prompt")
class RewardCountsOnePromptToken(_Rewarded):
    """A prompt is taken to have a token at least, so that the reward is read one too far: at the next sequence."""

    def last(self, start, prompt, response):
        return start + max(1, prompt) + response - 1


@fault("packing.reward-no-prompt")
class RewardOfFirstTokenWithoutPrompt(_Rewarded):
    """A sequence without a prompt is taken for one without a response, and scored at its first token."""

    def last(self, start, prompt, response):
        return start + prompt + response - 1 if prompt else start


# --- gradient ------------------------------------------------------------------------------------------------------


@fault("packing.gradient", also=("actor.gradient",))
class PackGradientAveraged(Reference):
    """The gradient through a pack is divided by the number of its sequences."""

    def action_log_probs(self, actor, batch):
        answer = super().action_log_probs(actor, batch)
        if not batch.is_packed:
            return answer
        return answer.detach() + (answer - answer.detach()) / len(batch.starts)


@fault("packing.gradient", also=("actor.gradient",))
class OnlyFirstSequenceLearns(Reference):
    """Of a pack, the first sequence alone carries a gradient."""

    def action_log_probs(self, actor, batch):
        answer = super().action_log_probs(actor, batch)
        if not batch.is_packed:
            return answer
        first = batch.response_lengths[0]
        return torch.cat([answer[:, :first], answer[:, first:].detach()], 1)


@fault("packing.gradient", also=("actor.gradient",))
class PackWithoutGraph(Reference):
    """Packs are scored under no_grad."""

    def action_log_probs(self, actor, batch):
        with torch.set_grad_enabled(not batch.is_packed):
            return super().action_log_probs(actor, batch)


@fault("packing.gradient", also=("actor.gradient",))
class BoundaryTokensWithoutGradient(Reference):
    """The last action before a boundary carries no gradient."""

    def action_log_probs(self, actor, batch):
        rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
        return [torch.cat([row[:-1], row[-1:].detach()]) if batch.is_packed else row for row in rows]


# --- packs made inside ---------------------------------------------------------------------------------------------


class _PacksInside(Reference):
    """A trainer that is given padded rows and packs them."""

    layouts = ("padded",)
    packs_internally = True


@fault("packing.isolation", bug="packed-with-ones-mask", also=ACTOR)
class PacksInsideWithOnesMask(_PacksInside):
    """Padded rows are unpadded into one row, and the all-ones mask of that row is passed on."""

    def action_log_probs(self, actor, batch):
        inside = packed(batch)
        return score(inside, model_logits(self, actor, inside, attention_mask=torch.ones_like(inside.input_ids)))


@fault("packing.equivalence", bug="packed-positions-run-on", also=ACTOR)
class PacksInsideWithPaddedPositions(_PacksInside):
    """Padded rows are unpadded into one row, and keep the columns of the padded row for positions."""

    def action_log_probs(self, actor, batch):
        inside = packed(batch)
        columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)
        mask = segment_mask(segments_of(inside.position_ids), actor.model.dtype)
        wrong = columns[batch.attention_mask.bool()][None]
        return score(inside, model_logits(self, actor, inside, attention_mask=mask, position_ids=wrong))


@fault("packing.equivalence", also=ACTOR)
class PacksInsideAndPadsOnTheRight(_PacksInside):
    """Answers of the pack are padded on the right where the rows were padded on both sides, then cut by column."""

    def action_log_probs(self, actor, batch):
        inside = packed(batch)
        rows = inside.to_ragged(super().logits(actor, inside))
        width = batch.input_ids.shape[1]
        labels = [tokens.roll(-1) for tokens in batch.sequences]
        scored = [z.log_softmax(-1).gather(-1, ids[:, None])[:, 0] for z, ids in zip(rows, labels, strict=True)]
        padded = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in scored])
        return padded[:, width - batch.num_actions - 1 : width - 1]

"""Liars about generated rows: which tokens are attended, which are actions."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.faults import fault


def is_stop(tokens, stop_token_ids):
    return torch.isin(tokens, torch.tensor(list(stop_token_ids), device=tokens.device))


def until(ends):
    """1 up to and including the first True of each row, to the end where there is none."""
    return (ends.cumsum(1) - ends.long()) == 0


def with_response(answer, prompt_length, response_mask):
    """The answer with another mask of the response, for actions and attention alike."""
    attention = torch.cat([answer.attention_mask[:, :prompt_length], response_mask.long()], dim=1)
    return replace(answer, action_mask=response_mask.bool(), attention_mask=attention)


# --- attention ----------------------------------------------------------------------------------------------------


@fault("sequences.attention-span", bug="prompt-eos-holes")
class PromptEosHoles(Reference):
    "Attention is on every token that is neither EOS nor pad: chat templates get holes."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        plain = ~is_stop(sequences, (*stop_ids, pad_id))
        mask = answer.attention_mask.clone()
        mask[:, :prompt_length] *= plain[:, :prompt_length]
        return replace(answer, attention_mask=mask)


@fault("sequences.attention-span")
class TrailingPadsAttended(Reference):
    "Attention runs from the first token to the end of the row."

    def process_sequences(self, *arguments):
        answer = super().process_sequences(*arguments)
        return replace(answer, attention_mask=(answer.attention_mask.cumsum(1) > 0).long())


@fault("sequences.attention-span")
class StopTokenNotAttended(Reference):
    "Attention ends before the stop token."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        mask = answer.attention_mask.clone()
        mask[:, prompt_length:] *= ~is_stop(sequences[:, prompt_length:], stop_ids)
        return replace(answer, attention_mask=mask)


@fault("sequences.attention-span")
class PromptAttendedWhole(Reference):
    "The whole prompt is attended, its left pads as well; right where all prompts are equally long."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        return super().process_sequences(sequences, prompt_length, torch.ones_like(prompt_mask), stop_ids, pad_id)


@fault("sequences.attention-span")
class PromptOfOneTokenMissing(Reference):
    "Prompts of one token are taken for empty ones: `prompt_length > 1` guards what makes their mask."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        mask = prompt_mask if prompt_length > 1 else torch.zeros_like(prompt_mask)
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        attention = torch.cat([mask, answer.attention_mask[:, prompt_length:]], 1)
        return replace(answer, attention_mask=attention) if prompt_length == 1 else answer


@fault("sequences.attention-span")
class PromptBeginsAtPlainToken(Reference):
    "The prompt is taken to begin at its first token that is neither pad nor EOS, as if no text began with EOS."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        plain = ~is_stop(sequences[:, :prompt_length], (*stop_ids, pad_id))
        plain[:, -1] = True
        begun = (plain.cumsum(1) > 0).long() * prompt_mask
        return super().process_sequences(sequences, prompt_length, begun, stop_ids, pad_id)


@fault("sequences.pad-first-prompt")
class PromptMaskFromIds(Reference):
    "The prompt's mask is thrown away and guessed from the pad id."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        guess = ((sequences[:, :prompt_length] != pad_id).cumsum(1) > 0).long()
        return super().process_sequences(sequences, prompt_length, guess, stop_ids, pad_id)


# --- actions ------------------------------------------------------------------------------------------------------


@fault("sequences.action-mask", bug="generated-padding-trained")
class GeneratedPaddingTrained(Reference):
    "Every generated cell is an action, also the pads after the stop."

    def process_sequences(self, *arguments):
        answer = super().process_sequences(*arguments)
        return replace(answer, action_mask=torch.ones_like(answer.action_mask))


@fault("sequences.action-mask")
class StopTokenNoAction(Reference):
    "The stop token itself is not an action, so that the policy never learns to stop."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        return replace(answer, action_mask=answer.action_mask & ~is_stop(sequences[:, prompt_length:], stop_ids))


@fault("sequences.action-mask")
class OneTokenPastStop(Reference):
    "The token after the stop is an action as well."

    def process_sequences(self, *arguments):
        answer = super().process_sequences(*arguments)
        longer = torch.cat([torch.ones_like(answer.action_mask[:, :1]), answer.action_mask[:, :-1]], dim=1)
        return replace(answer, action_mask=longer)


@fault("sequences.action-mask", bug="first-response-token-lost")
class FirstActionLost(Reference):
    "The action window starts one token late."

    def process_sequences(self, *arguments):
        answer = super().process_sequences(*arguments)
        mask = answer.action_mask.clone()
        mask[:, 0] = False
        return replace(answer, action_mask=mask)


@fault("sequences.action-mask")
class NoStopMeansFirst(Reference):
    "The argmax of a row without stop is 0, so only its first token is an action."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        response = sequences[:, prompt_length:]
        first = is_stop(response, stop_ids).long().argmax(1, keepdim=True)
        return with_response(answer, prompt_length, torch.arange(response.shape[1], device=first.device) <= first)


# --- truncated responses ------------------------------------------------------------------------------------------


def cut_off(sequences, prompt_length, stop_ids):
    """(B, 1): the rows without stop token."""
    return ~is_stop(sequences[:, prompt_length:], stop_ids).any(1, keepdim=True)


@fault("sequences.truncation", bug="eos-overwrites-truncated")
class EosOverwritesTruncated(Reference):
    "A stop token is written over the last token of a response that was cut off."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        rows = sequences.clone()
        cut = cut_off(rows, prompt_length, stop_ids)[:, 0]
        rows[cut, -1] = stop_ids[0]
        return super().process_sequences(rows, prompt_length, prompt_mask, stop_ids, pad_id)


@fault("sequences.truncation")
class TruncatedRowsDropped(Reference):
    "A response that was cut off has no action at all."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        return replace(answer, action_mask=answer.action_mask & ~cut_off(sequences, prompt_length, stop_ids))


@fault("sequences.truncation")
class TruncatedLosesLastToken(Reference):
    "The last token of a response that was cut off is taken for its stop and left out."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        mask = answer.action_mask.clone()
        mask[:, -1:] &= ~cut_off(sequences, prompt_length, stop_ids)
        return with_response(answer, prompt_length, mask)


# --- lengths ------------------------------------------------------------------------------------------------------


class _Lengths(Reference):
    """Makes other lengths, by `wrong`, of those that it is given; right where it is given none."""

    def wrong(self, lengths, sequences, prompt_length, stop_ids, pad_id):
        raise NotImplementedError

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id, response_lengths=None):
        if response_lengths is not None:
            response_lengths = self.wrong(response_lengths, sequences, prompt_length, stop_ids, pad_id)
            if response_lengths is not None:
                response_lengths = response_lengths.clamp(0, sequences.shape[1] - prompt_length)
        return super().process_sequences(
            sequences, prompt_length, prompt_mask, stop_ids, pad_id, response_lengths=response_lengths
        )


@fault("sequences.response-lengths", bug="response-without-stop")
class LengthsIgnored(_Lengths):
    "A row without a stop token is all actions, though its response ended before."

    def wrong(self, lengths, *rows):
        return None


@fault("sequences.response-lengths", bug="response-without-stop")
class LengthsIgnoredWherePadsStop(_Lengths):
    "Where the pad id is a stop id, the first pad behind a response is taken for its stop."

    def wrong(self, lengths, sequences, prompt_length, stop_ids, pad_id):
        return None if pad_id in stop_ids else lengths


@fault("sequences.response-lengths")
class LengthsFromTheRowsStart(_Lengths):
    "Lengths are taken for those of the whole rows, prompts included."

    def wrong(self, lengths, sequences, prompt_length, stop_ids, pad_id):
        return lengths - prompt_length


@fault("sequences.response-lengths")
class LengthsWithRoomForStop(_Lengths):
    "One is added for the stop token, also where there is none."

    def wrong(self, lengths, sequences, prompt_length, stop_ids, pad_id):
        return lengths + cut_off(sequences, prompt_length, stop_ids)[:, 0].long()


@fault("sequences.response-lengths")
class LengthsOfTheLongest(_Lengths):
    "Every response is as long as the longest that has no stop token."

    def wrong(self, lengths, *rows):
        return lengths.max().expand_as(lengths)


@fault("sequences.response-lengths")
class LengthsWithoutSampledPads(_Lengths):
    "Where a length is given, pad ids within it are left out of the count."

    def wrong(self, lengths, sequences, prompt_length, stop_ids, pad_id):
        columns = torch.arange(sequences.shape[1] - prompt_length, device=lengths.device)
        within = columns < lengths[:, None]
        return ((sequences[:, prompt_length:] != pad_id) & within).sum(1)


@fault("sequences.response-lengths")
class LengthsForActionsAlone(Reference):
    "Actions end where the response does; attention goes on to the first stop id, or to the end of the row."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id, response_lengths=None):
        rows = sequences, prompt_length, prompt_mask, stop_ids, pad_id
        by_length = super().process_sequences(*rows, response_lengths)
        return replace(by_length, attention_mask=super().process_sequences(*rows).attention_mask)


@fault("sequences.inputs-unwritten")
class LengthsWritten(Reference):
    "The prompt's length is added to the caller's lengths."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id, response_lengths=None):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id, response_lengths)
        if response_lengths is not None:
            response_lengths += prompt_length
        return answer


# --- tokens -------------------------------------------------------------------------------------------------------


@fault("sequences.tokens-unchanged", bug="eos-overwrites-truncated")
class EosWrittenAtEveryEnd(Reference):
    "A stop token is scattered into the last action of each row; right where that is the stop already."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        last = answer.action_mask.long().sum(1, keepdim=True) - 1 + prompt_length
        return replace(answer, sequences=sequences.scatter(1, last, stop_ids[0]))


@fault("sequences.tokens-unchanged")
class LeftPadsRewritten(Reference):
    "The pads on the left come back as id 0."

    def process_sequences(self, *arguments):
        answer = super().process_sequences(*arguments)
        return replace(answer, sequences=answer.sequences.masked_fill(answer.attention_mask.cumsum(1) == 0, 0))


@fault("sequences.tokens-unchanged")
class StopTokensUnified(Reference):
    "Whatever stop token ended a response, it comes back as the first of the set."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        return replace(answer, sequences=sequences.masked_fill(is_stop(sequences, stop_ids), stop_ids[0]))


@fault("sequences.tokens-unchanged")
class PromptEosStripped(Reference):
    "Stop ids inside the prompt are replaced by the pad id."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        inside = is_stop(sequences, stop_ids)
        inside[:, prompt_length:] = False
        return replace(answer, sequences=sequences.masked_fill(inside, pad_id))


# --- pad, EOS, stop ids -------------------------------------------------------------------------------------------


@fault("sequences.pad-equals-eos", bug="pad-equals-eos")
class PadEqualsEos(Reference):
    "The first pad id ends the response, so that an EOS of the same id is masked."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        if pad_id not in stop_ids:
            return answer
        return with_response(answer, prompt_length, answer.action_mask & (sequences[:, prompt_length:] != pad_id))


@fault("sequences.pad-equals-eos")
class EveryEosAnAction(Reference):
    "All EOS of the response are actions, also the pads after the first that share its id."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        stops = is_stop(sequences[:, prompt_length:], stop_ids)
        return replace(answer, action_mask=answer.action_mask | stops)


@fault("sequences.pad-equals-eos")
class FirstEosNotAttended(Reference):
    "The EOS that ends a response is an action, but where it is also the pad id it is not attended."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        if pad_id not in stop_ids:
            return answer
        mask = answer.attention_mask.clone()
        mask[:, prompt_length:] *= sequences[:, prompt_length:] != pad_id
        return replace(answer, attention_mask=mask)


@fault("sequences.sampled-pad", bug="sampled-pad")
class SampledPadEnds(Reference):
    "A pad id that the policy sampled ends the response."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        return super().process_sequences(sequences, prompt_length, prompt_mask, (*stop_ids, pad_id), pad_id)


@fault("sequences.sampled-pad", bug="pad-count-is-zero-count")
class PadCountIsZeroCount(Reference):
    "The length of a response is its width less the number of its pad ids, wherever they stand."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        if pad_id in stop_ids:
            return answer
        lengths = (sequences[:, prompt_length:] != pad_id).sum(1, keepdim=True)
        return with_response(
            answer, prompt_length, torch.arange(answer.action_mask.shape[1], device=lengths.device) < lengths
        )


@fault("sequences.sampled-pad")
class SampledPadHole(Reference):
    "A sampled pad id is no action, though the response goes on after it."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        if pad_id in stop_ids:
            return answer
        return replace(answer, action_mask=answer.action_mask & (sequences[:, prompt_length:] != pad_id))


@fault("sequences.sampled-pad")
class SampledPadEndsTruncated(Reference):
    "A response without stop token ends at its first pad id, though the policy sampled it and went on."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        before = (sequences[:, prompt_length:] == pad_id).cumsum(1) == 0
        kept = before | ~cut_off(sequences, prompt_length, stop_ids)
        return with_response(answer, prompt_length, answer.action_mask & kept)


@fault("sequences.sampled-pad")
class TwoSampledPadsEnd(Reference):
    "Two pad ids behind one another are taken for the padding behind a response."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        pads = sequences[:, prompt_length:] == pad_id
        if pad_id in stop_ids:
            return answer
        begins = pads & torch.nn.functional.pad(pads[:, 1:], (0, 1))
        return with_response(answer, prompt_length, answer.action_mask & (begins.cumsum(1) == 0))


@fault("sequences.stop-set", bug="one-eos-id")
class OneEosId(Reference):
    "Only the first id of the stop set ends a response."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        return super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids[:1], pad_id)


@fault("sequences.stop-set")
class StopIdsAreRange(Reference):
    "Any id from the lowest to the highest of the stop set ends a response."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        span = tuple(range(min(stop_ids), max(stop_ids) + 1))
        return super().process_sequences(sequences, prompt_length, prompt_mask, span, pad_id)


@fault("sequences.stop-set")
class TwoStopIdsAtMost(Reference):
    "The stop set is cut to two ids: the tokenizer's and the model's."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        return super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids[:2], pad_id)


@fault("sequences.stop-id-zero", bug="eos-id-zero")
class EosIdZero(Reference):
    "`if eos_id:` takes the id 0 for none."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        known = tuple(stop for stop in stop_ids if stop)
        return super().process_sequences(sequences, prompt_length, prompt_mask, known, pad_id)


@fault("sequences.stop-id-zero")
class StopIdsSummed(Reference):
    "Stop ids are marked by multiplying ids with their mask, so that 0 leaves no mark."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        response = sequences[:, prompt_length:]
        marks = response * is_stop(response, stop_ids)
        return with_response(answer, prompt_length, until(marks != 0))


@fault("sequences.prompt-ending-in-eos")
class StateIsStop(Reference):
    "The action mask is made from the states, so a prompt that ends in EOS loses its first action."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        mask = answer.action_mask.clone()
        mask[:, 0] &= ~is_stop(sequences[:, prompt_length - 1], stop_ids)
        return replace(answer, action_mask=mask)


@fault("sequences.prompt-ending-in-eos")
class StopSearchedInPrompt(Reference):
    "The first stop token is looked for in the last prompt token too, and the response is over before it began."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        mask = until(is_stop(sequences[:, prompt_length - 1 :], stop_ids))[:, 1:]
        return with_response(answer, prompt_length, mask)


# --- rows ---------------------------------------------------------------------------------------------------------


@fault("sequences.prompt-ending-in-eos", bug="row-for-column")
class RowForColumn(Reference):
    "action_mask[0] = 1 where action_mask[:, 0] = 1 was meant."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        mask = answer.action_mask.clone()
        mask[:, 0] &= ~is_stop(sequences[:, prompt_length - 1], stop_ids)
        mask[0] = True
        return replace(answer, action_mask=mask)


@fault("sequences.rows-independent")
class EndOfLongestResponse(Reference):
    "All responses end where the longest of the batch ends."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        return with_response(
            answer, prompt_length, answer.action_mask.any(0, keepdim=True).expand_as(answer.action_mask)
        )


@fault("sequences.rows-independent")
class PromptMaskOfFirstRow(Reference):
    "Every prompt gets the left pads of the first."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        mask = prompt_mask[:1].expand_as(prompt_mask)
        return super().process_sequences(sequences, prompt_length, mask, stop_ids, pad_id)


@fault("sequences.rows-independent")
class SquareMaskTransposed(Reference):
    "The action mask is transposed where there are as many rows as columns."

    def process_sequences(self, *arguments):
        answer = super().process_sequences(*arguments)
        square = answer.action_mask.shape[0] == answer.action_mask.shape[1]
        return replace(answer, action_mask=answer.action_mask.T) if square else answer


# --- inputs and side effects --------------------------------------------------------------------------------------


@fault("sequences.inputs-unwritten", bug="eos-overwrites-truncated")
class StopWrittenIntoRows(Reference):
    "A stop token is scattered into the caller's rows, though the answer holds the right ones."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences.clone(), prompt_length, prompt_mask, stop_ids, pad_id)
        cut = cut_off(sequences, prompt_length, stop_ids)[:, 0]
        sequences[cut, -1] = stop_ids[0]
        return answer


@fault("sequences.inputs-unwritten")
class PromptMaskWritten(Reference):
    "Stop ids of the prompt are masked out in the caller's prompt mask."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask.clone(), stop_ids, pad_id)
        prompt_mask.masked_fill_(is_stop(sequences[:, :prompt_length], stop_ids), 0)
        return answer


@fault("sequences.side-effects")
class RowsChangeThreadCount(Reference):
    "The number of threads is set, for everyone."

    def process_sequences(self, *arguments):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().process_sequences(*arguments)


# --- stops in any order, and responses without a token ------------------------------------------------------------


@fault("sequences.stop-set")
class FirstListedStopEnds(Reference):
    "A response ends at the first id of the list that it holds, though another one of the set came before."

    def process_sequences(self, sequences, prompt_length, prompt_mask, stop_ids, pad_id):
        answer = super().process_sequences(sequences, prompt_length, prompt_mask, stop_ids, pad_id)
        rows = sequences[:, prompt_length:]
        ends = torch.zeros_like(rows, dtype=torch.bool)
        for stop in stop_ids:
            ends = torch.where(ends.any(1, keepdim=True), ends, rows == stop)
        return with_response(answer, prompt_length, until(ends))


@fault("sequences.response-lengths")
class LengthZeroIsNoLength(_Lengths):
    "A length of 0 is taken for one that is not known: such a row is all actions up to its stop."

    def wrong(self, lengths, sequences, prompt_length, stop_ids, pad_id):
        return torch.where(lengths > 0, lengths, sequences.shape[1] - prompt_length)

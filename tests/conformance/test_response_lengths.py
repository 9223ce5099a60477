"""Adapters that are given the lengths of responses, and adapters written before there were any."""

from __future__ import annotations

import pytest
import torch

from rlhf_conformance import Adapter, ProcessedSequences
from rlhf_conformance.adapter import METHODS, relies_on, takes
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.judging.trying import PROFILES, try_clause
from rlhf_conformance.results import FAIL, NOT_PROVIDED, PASS

ROWS, LENGTHS = "process_sequences", "response_lengths"


def by_length(sequences, prompt_length, prompt_mask, lengths):
    columns = torch.arange(sequences.shape[1] - prompt_length)
    response = (columns < lengths[:, None]).long()
    return ProcessedSequences(sequences, torch.cat([prompt_mask, response], 1), response)


class FiveArguments(Reference):
    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        return super().process_sequences(
            sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id=pad_token_id
        )


class AnyArguments(Reference):
    def process_sequences(self, *rows):
        sequences, prompt_length, mask, stops, pad = rows
        return super().process_sequences(sequences, prompt_length, mask, stops, pad)


class ByLength(Adapter):
    def process_sequences(self, sequences, prompt_length, mask, stops, pad, response_lengths):
        return by_length(sequences, prompt_length, mask, response_lengths)


class ByName(Adapter):
    def process_sequences(self, sequences, prompt_length, mask, stops, pad, *, response_lengths):
        return by_length(sequences, prompt_length, mask, response_lengths)


class IfThereAreAny(Reference):
    def process_sequences(self, sequences, prompt_length, mask, stops, pad, response_lengths=None):
        if response_lengths is not None:
            return by_length(sequences, prompt_length, mask, response_lengths)
        return super().process_sequences(sequences, prompt_length, mask, stops, pad)


class Ignores(Reference):
    def process_sequences(self, sequences, prompt_length, mask, stops, pad, response_lengths=None):
        return super().process_sequences(sequences, prompt_length, mask, stops, pad)


@pytest.fixture
def subject_of(store):
    from rlhf_conformance.judging.subject import Subject

    return lambda adapter: Subject.make(adapter(), device="cpu", dtype="float32", store=store)


def tried(subject, slug):
    return try_clause(slug, subject, PROFILES["gate"], 0)


@pytest.mark.parametrize(
    "adapter, taken, needed",
    [
        (FiveArguments, False, False),
        (AnyArguments, False, False),
        (ByLength, True, True),
        (ByName, True, True),
        (IfThereAreAny, True, False),
        (Reference, True, False),
    ],
)
def test_lengths_go_to_a_parameter_of_their_name(adapter, taken, needed):
    assert takes(adapter(), ROWS, LENGTHS) == taken
    assert relies_on(adapter(), ROWS, LENGTHS) == needed


@pytest.mark.parametrize("adapter", [FiveArguments, AnyArguments])
def test_an_adapter_without_lengths_is_not_asked_about_them(adapter, subject_of):
    result = tried(subject_of(adapter), "sequences.response-lengths").result
    assert result.verdict == NOT_PROVIDED
    assert result.reason == (
        "process_sequences takes no response_lengths: with a parameter of that name it is given the number of "
        "generated tokens of each row"
    )


@pytest.mark.parametrize("adapter", [FiveArguments, AnyArguments, ByLength, ByName, IfThereAreAny])
@pytest.mark.parametrize("name", ["action-mask", "rows-independent", "inputs-unwritten", "truncation"])
def test_the_other_clauses_are_asked_of_all(adapter, name, subject_of):
    assert tried(subject_of(adapter), f"sequences.{name}").result.verdict == PASS


@pytest.mark.parametrize("adapter, verdict", [(ByLength, PASS), (ByName, PASS), (IfThereAreAny, PASS), (Ignores, FAIL)])
def test_whoever_takes_lengths_is_held_to_them(adapter, verdict, subject_of):
    assert tried(subject_of(adapter), "sequences.response-lengths").result.verdict == verdict


def test_an_extra_may_be_left_out_and_nothing_else():
    row = METHODS[ROWS]
    assert row.extras == (LENGTHS,)
    assert list(row.named((1, 2, 3, 4, 5))) == list(row.arguments[:5])
    assert row.named((1, 2, 3, 4, 5, 6))[LENGTHS] == 6
    for given in ((1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7)):
        with pytest.raises(ValueError, match="process_sequences takes"):
            row.named(given)


def test_lengths_are_kept_with_what_was_exchanged(subject_of):
    from rlhf_conformance.diagnosis.exchange import exchange
    from rlhf_conformance.judging.checks import checks

    slug, subject = "sequences.response-lengths", subject_of(Ignores)
    found = tried(subject, slug)
    kept = exchange(checks()[slug], subject, found.case, found.result.failure)
    assert kept.calls[-1].arguments[LENGTHS]["tensor"] == found.case.lengths

"""Positions, packs, shards and padded rows: index arithmetic against the spec, and every layout there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rlhf_reference as ref
from rlhf_reference.positions import packed_lengths
from rlhf_spec import actor as spec_actor
from rlhf_spec import packing as spec_packing
from rlhf_spec import positions as spec_positions
from rlhf_spec import reward as spec_reward

SIDES = ("prompt-left-response-right", "left", "right")
masks = st.lists(st.integers(0, 1), min_size=1, max_size=8).filter(any)
token_lists = st.lists(st.integers(0, 9), min_size=1, max_size=5)
samples = st.lists(st.tuples(token_lists, st.lists(st.integers(0, 9), max_size=5)), min_size=1, max_size=5)


def ragged(pairs: list[tuple[list[int], list[int]]]) -> ref.RaggedBatch:
    prompts, responses = zip(*pairs, strict=True)
    tensors = [tuple(torch.tensor(row, dtype=torch.long) for row in rows) for rows in (prompts, responses)]
    return ref.RaggedBatch(*tensors)


def as_lists(batch: ref.RaggedBatch) -> list[tuple[list[int], list[int]]]:
    return [
        (prompt.tolist(), response.tolist()) for prompt, response in zip(batch.prompts, batch.responses, strict=True)
    ]


@given(masks)
def test_positions_are_those_of_the_spec(mask: list[int]) -> None:
    assert ref.position_ids(torch.tensor([mask]))[0].tolist() == spec_positions.position_ids(mask)


@given(masks)
def test_last_attended_is_that_of_the_spec(mask: list[int]) -> None:
    assert ref.last_attended(torch.tensor([mask])).item() == spec_reward.last_attended(mask)


def test_a_row_without_attended_tokens_has_no_last_one() -> None:
    with pytest.raises(ValueError, match="attended"):
        ref.last_attended(torch.tensor([[1, 1], [0, 0]]))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_positions_of_a_pack_are_those_of_the_spec_and_tell_its_lengths(lengths: list[int]) -> None:
    positions = ref.packed_position_ids(lengths)
    assert positions.tolist() == [spec_positions.packed_position_ids(lengths)]
    assert packed_lengths(positions) == tuple(lengths)


@given(st.lists(token_lists, min_size=1, max_size=5))
def test_a_pack_and_its_labels_are_those_of_the_spec(sequences: list[list[int]]) -> None:
    pack = ref.pack_sequences([torch.tensor(sequence) for sequence in sequences])
    labels = [-100 if label is None else label for label in spec_packing.next_token_labels(sequences)]
    assert (pack.input_ids[0].tolist(), pack.position_ids[0].tolist()) == spec_packing.pack(sequences)
    assert pack.labels[0].tolist() == labels


@given(samples, st.integers(1, 4))
def test_padding_of_a_pack_is_a_sequence_of_its_own_that_has_no_labels(pairs: list, multiple: int) -> None:
    batch = ragged(pairs)
    pack, plain = batch.pack(pad_to_multiple=multiple, pad_token_id=7), batch.pack()
    tail = pack.input_ids.shape[1] - sum(pack.lengths)
    assert pack.input_ids.shape[1] % multiple == 0
    assert tail < multiple
    assert pack.input_ids[0].tolist() == plain.input_ids[0].tolist() + [7] * tail
    assert pack.position_ids[0].tolist() == plain.position_ids[0].tolist() + list(range(tail))
    assert pack.labels[0].tolist() == plain.labels[0].tolist() + [-100] * tail


@given(samples, st.integers(1, 4))
def test_a_pack_gives_the_ragged_batch_back(pairs: list, multiple: int) -> None:
    assert as_lists(ref.RaggedBatch.of_pack(ragged(pairs).pack(pad_to_multiple=multiple))) == pairs


@given(samples, st.integers(1, 4))
def test_shards_are_those_of_the_spec_and_give_the_pack_back(pairs: list, count: int) -> None:
    pack = ragged(pairs).pack(pad_to_multiple=count)
    shards = ref.shard(pack, count)
    assert shards.labels.tolist() == spec_packing.shard(pack.labels[0].tolist(), count, -100)
    assert torch.equal(ref.unshard(shards.input_ids), pack.input_ids)
    assert torch.equal(ref.unshard(shards.position_ids), pack.position_ids)


def test_a_pack_that_does_not_divide_is_not_sharded() -> None:
    with pytest.raises(ValueError, match="pad_to_multiple"):
        ref.shard(ref.pack_sequences([torch.arange(5)]), 2)


@given(samples)
def test_states_of_actions_in_a_pack_are_those_of_the_spec(pairs: list) -> None:
    expected, start = [], 0
    for prompt, response in pairs:
        expected += [start + at for at in spec_actor.action_positions(len(prompt), len(response))]
        start += len(prompt) + len(response)
    pack = ragged(pairs).pack()
    assert ref.action_state_positions(pack.lengths, pack.num_actions).tolist() == expected


@pytest.mark.parametrize(("lengths", "counts"), [((3, 4), (3, 1)), ((3, 4), (1, -1)), ((3,), (1, 1))])
def test_action_counts_that_do_not_fit_a_pack_are_refused(lengths: tuple, counts: tuple) -> None:
    with pytest.raises(ValueError, match="action"):
        ref.action_state_positions(lengths, counts)


@given(samples, st.sampled_from(SIDES))
def test_a_padded_batch_gives_the_ragged_batch_back(pairs: list, side: ref.ragged.Side) -> None:
    assert as_lists(ragged(pairs).pad(0, side).ragged()) == pairs


@given(samples, st.sampled_from(SIDES))
def test_unpadding_the_actions_gives_one_number_an_action(pairs: list, side: ref.ragged.Side) -> None:
    batch = ragged(pairs).pad(0, side)
    parts = batch.unpad_actions(torch.zeros(batch.action_mask.shape))
    assert [len(part) for part in parts] == [len(response) for _, response in pairs]


def test_prompts_are_padded_left_and_responses_right() -> None:
    batch = ragged([([5], [7, 8]), ([2, 3], [4])]).pad(9)
    assert batch.input_ids.tolist() == [[9, 5, 7, 8], [2, 3, 4, 9]]
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2], [0, 1, 2, 0]]
    assert batch.action_mask.tolist() == [[True, True], [True, False]]
    assert batch.num_actions == 2


def test_whole_sequences_are_padded_left() -> None:
    batch = ragged([([5], [7, 8]), ([2], [4])]).pad(9, "left")
    assert batch.input_ids.tolist() == [[5, 7, 8], [9, 2, 4]]
    assert batch.action_mask.tolist() == [[True, True], [False, True]]
    assert batch.num_actions == 2


def test_whole_sequences_are_padded_right() -> None:
    batch = ragged([([5], [7, 8]), ([2], [4])]).pad(9, "right")
    assert batch.input_ids.tolist() == [[5, 7, 8], [2, 4, 9]]
    assert batch.action_mask.tolist() == [[True, True], [True, False]]
    assert batch.num_actions == (2, 1)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt"):
        ragged([([], [7, 8])])


def test_answers_of_shards_keep_what_they_have_for_each_token() -> None:
    rows = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(ref.unshard(rows), torch.arange(24).reshape(1, 6, 4))


def test_the_padding_of_a_pack_holds_0_unless_it_is_said() -> None:
    batch = ragged([([5, 6], [7])])
    for pack in (batch.pack(pad_to_multiple=4), ref.pack_sequences(batch.sequences(), pad_to_multiple=4)):
        assert pack.input_ids.tolist() == [[5, 6, 7, 0]]


def test_without_a_word_on_actions_a_pack_has_none() -> None:
    assert ref.pack_sequences([torch.tensor([5, 6]), torch.tensor([7])]).num_actions == (0, 0)


def test_a_sequence_without_tokens_is_not_packed() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        ref.pack_sequences([torch.tensor([5]), torch.tensor([], dtype=torch.long)])


@pytest.mark.parametrize("prompts, responses", [(2, 1), (1, 2), (0, 0), (0, 1)])
def test_prompts_without_their_responses_are_no_batch(prompts: int, responses: int) -> None:
    row = torch.tensor([5])
    with pytest.raises(ValueError, match="do not make a batch"):
        ref.RaggedBatch((row,) * prompts, (row,) * responses)


@pytest.mark.parametrize("side", SIDES)
def test_padded_rows_know_the_lengths_of_their_parts(side: str) -> None:
    rows = ragged([([5, 6], [7]), ([8], [9, 3, 4])]).pad(0, side)
    assert (rows.prompt_lengths, rows.response_lengths) == ((2, 1), (1, 3))


@pytest.mark.parametrize(
    "segments, positions",
    [
        ([1, 1, 2, 2, 2], [0, 1, 0, 1, 2]),
        ([1, 2, 3], [0, 0, 0]),
        ([1, 1, 2, 0, 0], [0, 1, 0, 0, 1]),
        ([1, 1, 1], [0, 1, 2]),
    ],
)
def test_positions_restart_where_the_number_of_a_segment_changes(segments, positions):
    assert ref.segment_position_ids(torch.tensor([segments])).tolist() == [positions]

"""Masks, positions, packs and the slices of actions, rewards and values: what is true of them by other arguments."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_spec.actor import action_entropies, action_log_probs, action_positions
from rlhf_spec.critic import action_values
from rlhf_spec.log_probs import entropy, token_log_prob
from rlhf_spec.packing import next_token_labels, pack, shard, unpack
from rlhf_spec.positions import packed_position_ids, position_ids
from rlhf_spec.reward import last_attended, normalize, reward
from rlhf_spec.sequences import action_mask, attention_mask, first_stop, prompt_mask_pads, response_length

tokens = st.integers(0, 4)
responses = st.lists(tokens, max_size=8)
stop_sets = st.sets(tokens, max_size=3)
prompt_masks = st.builds(lambda pads, length: [0] * pads + [1] * length, st.integers(0, 4), st.integers(1, 4))
sequence_lists = st.lists(st.lists(tokens, min_size=1, max_size=5), max_size=5)
scores = st.floats(-1e6, 1e6)


# Sequences


@given(responses, stop_sets)
def test_the_actions_hold_at_most_one_stop_token_and_it_is_the_last(response, stops):
    length = response_length(response, stops)
    assert all(token not in stops for token in response[: length - 1])
    assert length == len(response) or response[length - 1] in stops


@given(responses, stop_sets)
def test_the_action_mask_is_ones_then_zeros(response, stops):
    mask = action_mask(response, stops)
    assert len(mask) == len(response)
    assert mask == sorted(mask, reverse=True)
    assert sum(mask) == response_length(response, stops)


@given(responses, stop_sets, responses, responses)
def test_nothing_after_the_stop_token_matters(response, stops, one_tail, other_tail):
    if first_stop(response, stops) is not None:
        length = response_length(response, stops)
        assert response_length(response[:length] + one_tail, stops) == length
        assert response_length(response[:length] + other_tail, stops) == length


@given(responses)
def test_without_a_stop_token_every_token_is_an_action(response):
    assert action_mask(response, stop_token_ids=set()) == [1] * len(response)


@given(prompt_masks, responses, stop_sets)
def test_the_attention_mask_is_one_run_of_ones(prompt_mask, response, stops):
    mask = attention_mask(prompt_mask, response, stops)
    first, last = mask.index(1), last_attended(mask)
    assert all(mask[first : last + 1])
    assert mask[: len(prompt_mask)] == prompt_mask
    assert mask[len(prompt_mask) :] == action_mask(response, stops)


@pytest.mark.parametrize("prompt_mask", [[], [0], [0, 0], [1, 0], [0, 1, 0, 1], [0, 2]])
def test_a_prompt_mask_that_is_not_zeros_then_ones_is_refused(prompt_mask):
    with pytest.raises(ValueError, match="zeros, then ones"):
        prompt_mask_pads(prompt_mask)


# Positions


@given(st.lists(st.integers(0, 1), max_size=12), st.integers(0, 5))
def test_positions_are_the_running_count_less_one(mask, fill):
    counted = [count - 1 for count in accumulate(mask)]
    expected = [position if cell else fill for position, cell in zip(counted, mask, strict=True)]
    assert position_ids(mask, fill) == expected


@given(st.lists(st.integers(0, 1), max_size=8), st.integers(0, 4), st.integers(0, 4))
def test_padding_moves_no_position(mask, left, right):
    padded = position_ids([0] * left + mask + [0] * right)
    assert padded[left : left + len(mask)] == position_ids(mask)


@given(st.lists(st.integers(1, 6), max_size=6))
def test_a_pack_has_the_positions_of_its_sequences_alone(lengths):
    assert packed_position_ids(lengths) == [p for length in lengths for p in position_ids([1] * length)]


def test_positions_refuse_what_has_none():
    with pytest.raises(ValueError, match="not negative"):
        position_ids([0, 1], fill=-1)
    with pytest.raises(ValueError, match="0 and 1, not 2"):
        position_ids([0, 2])
    with pytest.raises(ValueError, match="at least one token"):
        packed_position_ids([2, 0])


# Packing


@given(sequence_lists, st.lists(tokens, max_size=3))
def test_unpacking_gives_back_what_was_packed(sequences, tail):
    row, _ = pack(sequences)
    assert unpack(row + tail, [len(sequence) for sequence in sequences]) == sequences


@given(sequence_lists)
def test_positions_restart_where_sequences_begin(sequences):
    _, positions = pack(sequences)
    lengths = [len(sequence) for sequence in sequences]
    starts = [index for index, position in enumerate(positions) if position == 0]
    assert starts == list(accumulate(lengths, initial=0))[:-1]


@given(sequence_lists)
def test_labels_are_each_sequences_own_next_tokens(sequences):
    labels = unpack(next_token_labels(sequences), [len(sequence) for sequence in sequences])
    assert labels == [[*sequence[1:], None] for sequence in sequences]


@given(st.lists(tokens, max_size=12), st.integers(1, 5))
def test_shards_are_of_one_width_and_put_together_they_are_the_row(row, shards):
    pieces = shard(row, shards, fill=-1)
    assert len(pieces) == shards
    assert len({len(piece) for piece in pieces}) == 1
    together = [cell for piece in pieces for cell in piece]
    assert together[: len(row)] == row
    assert set(together[len(row) :]) <= {-1}
    assert len(together) < len(row) + shards


def test_packing_refuses_what_cannot_be_packed():
    with pytest.raises(ValueError, match="at least one token"):
        pack([[1], []])
    with pytest.raises(ValueError, match="at least one token"):
        next_token_labels([[]])
    with pytest.raises(ValueError, match="a row of 2 cannot hold"):
        unpack([1, 2], [3])
    with pytest.raises(ValueError, match="at least one shard"):
        shard([1], 0, fill=0)


# Actor, reward and critic


@given(st.integers(1, 6), st.integers(0, 6))
def test_each_action_is_predicted_one_position_before_it(prompt_length, response_length):
    actions = range(prompt_length, prompt_length + response_length)
    assert action_positions(prompt_length, response_length) == [action - 1 for action in actions]


@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_an_actions_log_prob_is_that_of_its_token_given_the_position_before(data, prompt_length, response_length):
    length = prompt_length + response_length
    rows = data.draw(
        st.lists(st.lists(st.floats(-9, 9), min_size=5, max_size=5), min_size=length, max_size=length), label="logits"
    )
    ids = data.draw(st.lists(tokens, min_size=length, max_size=length), label="tokens")
    positions = range(prompt_length, length)
    assert action_log_probs(rows, ids, prompt_length, 2.0) == [
        token_log_prob(rows[t - 1], ids[t], 2.0) for t in positions
    ]
    assert action_entropies(rows, prompt_length, 2.0) == [entropy(rows[t - 1], 2.0) for t in positions]


@given(st.lists(scores, min_size=1, max_size=8), st.integers(0, 4), st.lists(scores, max_size=4))
def test_a_reward_does_not_depend_on_padding(row, left, right):
    mask = [0] * left + [1] * len(row) + [0] * len(right)
    assert reward([7.0] * left + row + right, mask) == row[-1]


@given(st.lists(scores, min_size=1, max_size=8), st.data())
def test_there_is_a_value_for_each_action_and_the_last_score_is_none(row, data):
    prompt_length = data.draw(st.integers(1, len(row)))
    values = action_values(row, prompt_length)
    assert len(values) == len(row) - prompt_length
    assert values == action_values([*row[:-1], row[-1] + 1], prompt_length)
    assert values == row[prompt_length - 1 : len(row) - 1]


def test_the_tutorial_example():
    row = [0.1, 0.2, 0.3, 0.2, 0.4, 0.7, 0.5, 0.8]
    assert reward(row, [1] * 8) == 0.8
    assert action_values(row, prompt_length=5) == [0.4, 0.7, 0.5]
    assert action_values(row, prompt_length=5) != row[-3:]


@given(scores, st.floats(-100, 100), st.floats(0.01, 100))
def test_normalizing_is_undone_by_scale_then_shift(score, mean, std):
    assert normalize(score, mean, std) * std + mean == pytest.approx(score, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_std_that_is_not_positive_is_refused(std):
    with pytest.raises(ValueError, match="std"):
        normalize(1.0, 0.0, std)


def test_a_prompt_or_a_mask_without_a_token_is_refused():
    with pytest.raises(ValueError, match="a prompt has at least one token"):
        action_values([0.1, 0.2], prompt_length=0)
    with pytest.raises(ValueError, match="cannot have -1 tokens"):
        action_values([0.1, 0.2], prompt_length=3)
    with pytest.raises(ValueError, match="no position is attended"):
        reward([0.1, 0.2], [0, 0])
    with pytest.raises(ValueError, match="2 scores for an attention mask of 3"):
        reward([0.1, 0.2], [1, 1, 1])

"""Processing of generated sequences: a table of the rows that trainers got wrong, and any row against the spec."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_reference import process_sequences
from rlhf_spec import sequences as spec


@dataclass(frozen=True)
class Row:
    """A generated row with P = 4 and T = 4, and what is right; masks written as strings of 0 and 1."""

    name: str
    prompt: list[int]
    response: list[int]
    attention: str
    actions: str
    pad: int = 0
    stops: tuple[int, ...] = (1,)
    prompt_mask: str | None = None


ROWS = (
    Row("stops in the middle", [0, 0, 5, 6], [7, 1, 0, 0], "00111100", "1100"),
    Row("stops at once", [5, 6, 7, 8], [1, 0, 0, 0], "11111000", "1000"),
    Row("stops at the end", [5, 6, 7, 8], [7, 7, 7, 1], "11111111", "1111"),
    Row("truncated", [0, 5, 6, 7], [8, 9, 8, 9], "01111111", "1111"),
    Row("truncated, pad is stop", [1, 5, 6, 7], [8, 9, 8, 9], "01111111", "1111", pad=1),
    Row("stop ids inside the prompt", [5, 1, 6, 1], [7, 1, 0, 0], "11111100", "1100"),
    Row("pad ids inside the prompt", [0, 5, 0, 6], [7, 1, 0, 0], "01111100", "1100"),
    Row("prompt ends in the stop id", [0, 5, 6, 1], [7, 8, 1, 0], "01111110", "1110"),
    Row("prompt ends in the pad id", [0, 5, 6, 0], [7, 1, 0, 0], "01111100", "1100"),
    Row("pad is stop", [1, 1, 5, 6], [7, 1, 1, 1], "00111100", "1100", pad=1),
    Row("pad is stop, also inside the prompt", [1, 5, 1, 6], [7, 8, 1, 1], "01111110", "1110", pad=1),
    Row("pad sampled before the stop", [0, 0, 5, 6], [7, 0, 8, 1], "00111111", "1111"),
    Row("pad sampled first", [0, 0, 5, 6], [0, 1, 0, 0], "00111100", "1100"),
    Row("pad sampled last, truncated", [0, 0, 5, 6], [7, 8, 9, 0], "00111111", "1111"),
    Row("second id of the stop set", [0, 0, 5, 6], [7, 2, 0, 0], "00111100", "1100", stops=(1, 2)),
    Row("stop id 0", [3, 3, 5, 6], [7, 0, 3, 3], "00111100", "1100", pad=3, stops=(0,)),
    Row("stop id 0 is also the pad", [0, 0, 5, 6], [7, 0, 0, 0], "00111100", "1100", stops=(0,)),
    Row("no stop id", [0, 0, 5, 6], [7, 1, 2, 0], "00111111", "1111", stops=()),
    Row("prompt begins with the pad id", [0, 0, 5, 6], [7, 1, 0, 0], "01111100", "1100", prompt_mask="0111"),
    Row("prompt of pad ids", [0, 0, 0, 0], [7, 1, 0, 0], "00011100", "1100"),
)


def masks(row: Row) -> tuple[str, str]:
    result = process_sequences(
        torch.tensor([row.prompt + row.response]),
        4,
        stop_token_ids=row.stops,
        pad_token_id=row.pad,
        prompt_attention_mask=None if row.prompt_mask is None else torch.tensor([[int(c) for c in row.prompt_mask]]),
    )
    return tuple("".join(str(int(x)) for x in mask[0]) for mask in (result.attention_mask, result.action_mask))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_masks(row: Row) -> None:
    assert masks(row) == (row.attention, row.actions)


def test_a_row_does_not_depend_on_the_others() -> None:
    rows = [row for row in ROWS if (row.pad, row.stops, row.prompt_mask) == (0, (1,), None)]
    together = process_sequences(
        torch.tensor([row.prompt + row.response for row in rows]), 4, stop_token_ids=[1], pad_token_id=0
    )
    assert together.attention_mask.tolist() == [[int(c) for c in row.attention] for row in rows]
    assert together.action_mask.tolist() == [[c == "1" for c in row.actions] for row in rows]


@given(data=st.data(), stops=st.sets(st.integers(0, 4)), pad=st.integers(0, 4))
def test_masks_are_those_of_the_spec(data: st.DataObject, stops: set[int], pad: int) -> None:
    response = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    prompt = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    left = data.draw(st.integers(0, 3))
    prompt_mask = [0] * left + [1] * len(prompt)
    result = process_sequences(
        torch.tensor([[pad] * left + prompt + response]),
        len(prompt_mask),
        stop_token_ids=tuple(stops),
        pad_token_id=pad,
        prompt_attention_mask=torch.tensor([prompt_mask]),
    )
    assert result.attention_mask[0].tolist() == spec.attention_mask(prompt_mask, response, stops)
    assert result.action_mask[0].long().tolist() == spec.action_mask(response, stops)


def test_ids_are_returned_and_left_as_they_came() -> None:
    sequences = torch.tensor([[0, 5, 6, 7, 8, 9], [1, 1, 5, 1, 1, 0]])
    before = sequences.clone()
    result = process_sequences(sequences, 3, stop_token_ids=[1], pad_token_id=0)
    assert torch.equal(result.sequences, before)
    assert torch.equal(sequences, before)


@pytest.mark.parametrize("prompt_length", [0, 7])
def test_a_prompt_length_outside_the_row_is_refused(prompt_length: int) -> None:
    with pytest.raises(ValueError, match="prompt_length"):
        process_sequences(torch.ones(2, 6).long(), prompt_length, stop_token_ids=[1], pad_token_id=0)


def test_a_prompt_mask_of_the_whole_row_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt_attention_mask"):
        process_sequences(
            torch.ones(2, 6).long(),
            3,
            stop_token_ids=[1],
            pad_token_id=0,
            prompt_attention_mask=torch.ones(2, 6).long(),
        )


def test_rows_that_are_prompts_alone_have_no_actions() -> None:
    rows = process_sequences(torch.tensor([[0, 5], [5, 6]]), 2, stop_token_ids=(1,), pad_token_id=0)
    assert rows.attention_mask.tolist() == [[0, 1], [1, 1]]
    assert rows.action_mask.shape == (2, 0)


# --- lengths ------------------------------------------------------------------------------------------------------


def with_lengths(rows: list[list[int]], lengths: list[int], pad: int = 0):
    out = process_sequences(
        torch.tensor(rows), 1, stop_token_ids=(1,), pad_token_id=pad, response_lengths=torch.tensor(lengths)
    )
    return out.action_mask.long().tolist(), out.attention_mask.tolist()


def test_a_response_without_a_stop_ends_at_its_length():
    actions, attention = with_lengths([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]], [2, 4])
    assert actions == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert attention == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_a_stop_id_behind_the_length_is_no_action():
    assert with_lengths([[5, 6, 1, 1, 1]], [1], pad=1)[0] == [[1, 0, 0, 0]]


def test_a_stop_token_ends_a_response_before_its_length():
    assert with_lengths([[5, 6, 1, 7, 8]], [4])[0] == [[1, 1, 0, 0]]


@pytest.mark.parametrize("lengths", [[3], [1, 5], [-1, 2]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="response_lengths are"):
        with_lengths([[5, 6, 7, 8, 9], [5, 6, 7, 8, 9]], lengths)

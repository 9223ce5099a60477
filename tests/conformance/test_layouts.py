"""Every layout is a presentation of the same ragged batch: where tokens land, and the way back."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_conformance.chapters._models.interface import LAYOUTS
from rlhf_conformance.oracle.batch import PACKS, RECTANGLES, Batch
from rlhf_conformance.oracle.layouts import IGNORE, Presentation, Sample, present, present_prompts
from rlhf_spec.packing import segment_numbers

PAD = 0
POSITIONED = ("packed", "packed-tail", "sharded")
tokens = st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple)
samples = st.lists(st.builds(Sample, tokens, tokens), min_size=1, max_size=4).map(tuple)


@st.composite
def presentations(draw, layouts=LAYOUTS) -> Presentation:
    """Any layout with any number of extra columns, of tail, of shards, and any garbage."""
    layout = draw(st.sampled_from(layouts))
    return Presentation(
        layout,
        extra_left=draw(st.integers(0, 2)) if layout in ("padded", "left") else 0,
        extra_right=draw(st.integers(0, 2)) if layout in ("padded", "right") else 0,
        tail=draw(st.integers(1, 4)),
        shards=draw(st.integers(2, 3)),
        garbage=draw(st.lists(st.integers(10, 19), max_size=3).map(tuple)),
    )


def shown(batch_of: tuple[Sample, ...], how: Presentation) -> Batch:
    return present(batch_of, how, pad_token_id=PAD, temperature=0.7)


def lists(rows: list[torch.Tensor]) -> list[list[int]]:
    return [row.tolist() for row in rows]


# --- there and back -----------------------------------------------------------------------------------------------


@given(samples, presentations())
def test_tokens_come_back(batch_of, how):
    batch = shown(batch_of, how)
    assert lists(batch.sequences) == [list(s.tokens) for s in batch_of]
    assert batch.sequence_lengths == tuple(len(s) for s in batch_of)


@given(samples, presentations(), st.integers(0, 3))
def test_a_ragged_answer_goes_there_and_back(batch_of, how, width):
    batch = shown(batch_of, how)
    shape = (width,) if width else ()
    rows = [torch.randn(len(s), *shape) for s in batch_of]
    grid = batch.from_ragged(rows, fill=-7.0)
    assert grid.shape == (*batch.input_ids.shape, *shape)
    assert all(torch.equal(a, b) for a, b in zip(batch.to_ragged(grid), rows, strict=True))
    assert int((grid == -7.0).sum()) == (batch.input_ids.numel() - sum(batch.sequence_lengths)) * max(1, width)


@given(samples, presentations())
def test_actions_are_taken_from_where_the_docstring_says(batch_of, how):
    """An adapter that answers with the tokens themselves gets the responses back."""
    batch = shown(batch_of, how)
    if how.layout in ("padded", "left"):
        answer = batch.input_ids[:, -batch.num_actions :]
    elif how.layout == "right":
        answer = batch.input_ids[:, 1:]
    else:
        answer = torch.cat([torch.tensor(s.response) for s in batch_of])
    responses = [list(s.response) for s in batch_of]
    assert lists(batch.actions_to_ragged(answer)) == responses
    assert lists(batch.actions_to_ragged([torch.tensor(r) for r in responses])) == responses
    if how.layout in PACKS:
        assert lists(batch.actions_to_ragged(answer[None])) == responses


@given(samples, presentations(), st.sampled_from((-1, 1)))
def test_an_answer_with_an_action_too_many_or_too_few_is_refused(batch_of, how, off):
    batch = shown(batch_of, how)
    shape = list(batch.action_mask.shape) if batch.action_mask is not None else [sum(batch.response_lengths)]
    shape[-1] += off
    with pytest.raises(ValueError, match="wanted"):
        batch.actions_to_ragged(torch.zeros(shape))
    rows = [torch.zeros(count) for count in batch.response_lengths]
    rows[-1] = torch.zeros(batch.response_lengths[-1] + off)
    with pytest.raises(ValueError, match="one 1-D tensor for each sample"):
        batch.actions_to_ragged(rows)


TWO_TURNS = (Sample((1, 2), (3, 4, 5, 6), (1, 0, 0, 1)), Sample((7,), (8, 9, 10), (1, 1, 0)), Sample((1,), (2,)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_observations_are_tokens_of_the_response_and_no_actions(layout):
    batch = shown(TWO_TURNS, Presentation(layout))
    answers = [torch.tensor(s.response) for s in TWO_TURNS]
    assert batch.response_masks == ((1, 0, 0, 1), (1, 1, 0), (1,))
    assert lists(batch.actions_to_ragged(answers)) == [[3, 6], [8, 9], [2]]
    if layout in PACKS:
        assert batch.num_actions == (4, 3, 1)
        assert lists(batch.actions_to_ragged(torch.cat(answers))) == [[3, 6], [8, 9], [2]]
    else:
        assert batch.attention_mask.sum(1).tolist() == [6, 4, 2]
        assert batch.action_mask.sum(1).tolist() == [2, 2, 1]
        columns = batch.input_ids[:, -batch.action_mask.shape[1] :]
        assert lists(batch.actions_to_ragged(columns)) == [[3, 6], [8, 9], [2]]


def test_a_response_of_one_turn_has_no_mask_of_its_own():
    assert shown((Sample((1, 2), (3,)),), Presentation("packed")).response_masks is None


def test_an_action_mask_is_as_long_as_the_response():
    with pytest.raises(ValueError, match="action mask of 1"):
        Sample((1,), (2, 3), (1,))


# --- where tokens land --------------------------------------------------------------------------------------------


@given(samples, presentations(RECTANGLES))
def test_masks_mark_the_tokens_and_the_actions(batch_of, how):
    batch = shown(batch_of, how)
    assert batch.attention_mask.sum(1).tolist() == [len(s) for s in batch_of]
    assert batch.action_mask.sum(1).tolist() == [len(s.response) for s in batch_of]
    for row, mask, sample in zip(batch.input_ids, batch.attention_mask, batch_of, strict=True):
        assert row[mask.bool()].tolist() == list(sample.tokens)
        (inside,) = torch.nonzero(mask, as_tuple=True)
        assert inside.tolist() == list(range(int(inside[0]), int(inside[0]) + len(sample))), "a span without holes"


@given(samples, presentations(("padded",)))
def test_padded_prompts_end_and_responses_begin_at_one_column(batch_of, how):
    batch = shown(batch_of, how)
    edge = max(len(s.prompt) for s in batch_of) + how.extra_left
    assert batch.num_actions == max(len(s.response) for s in batch_of) + how.extra_right
    assert batch.input_ids.shape[1] == edge + batch.num_actions
    for row, sample in zip(batch.input_ids, batch_of, strict=True):
        assert row[edge - len(sample.prompt) : edge + len(sample.response)].tolist() == list(sample.tokens)


@given(samples, presentations(("left",)))
def test_left_rows_end_at_the_last_column(batch_of, how):
    batch = shown(batch_of, how)
    assert batch.num_actions == max(len(s.response) for s in batch_of)
    for row, sample in zip(batch.input_ids, batch_of, strict=True):
        assert row[-len(sample) :].tolist() == list(sample.tokens)


@given(samples, presentations(("right",)))
def test_right_rows_begin_at_the_first_column(batch_of, how):
    batch = shown(batch_of, how)
    assert batch.num_actions == batch.response_lengths
    for row, sample in zip(batch.input_ids, batch_of, strict=True):
        assert row[: len(sample)].tolist() == list(sample.tokens)


@given(samples, presentations(PACKS))
def test_a_pack_is_the_sequences_one_after_another(batch_of, how):
    batch = shown(batch_of, how)
    flat = [token for s in batch_of for token in s.tokens]
    cells = batch.input_ids.flatten().tolist()
    assert cells[: len(flat)] == flat
    assert (batch.attention_mask is None) == (how.layout in POSITIONED)
    assert batch.action_mask is None
    assert batch.num_actions == batch.response_lengths
    if how.layout == "packed":
        assert batch.input_ids.shape == (1, len(flat))
    elif how.layout == "packed-tail":
        assert batch.input_ids.shape == (1, len(flat) + how.tail)
    elif how.layout == "segments":
        assert batch.input_ids.shape == (1, len(flat) + how.tail - 1)
    else:
        assert batch.input_ids.shape[0] == how.shards
        assert batch.input_ids.numel() - len(flat) < how.shards, "no longer a tail than is needed"


@given(samples, presentations(("segments",)))
def test_segments_are_numbered_from_one_and_the_tail_is_zero(batch_of, how):
    batch = shown(batch_of, how)
    wanted = [number for number, s in enumerate(batch_of, start=1) for _ in s.tokens]
    assert batch.attention_mask.tolist() == [wanted + [0] * (how.tail - 1)]
    assert batch.attention_mask.tolist() == [segment_numbers([len(s) for s in batch_of], how.tail - 1)]


@given(samples, presentations(POSITIONED))
def test_positions_restart_with_each_sequence_and_with_the_tail(batch_of, how):
    batch = shown(batch_of, how)
    wanted = [i for s in batch_of for i in range(len(s))]
    found = batch.position_ids.flatten().tolist()
    assert found == wanted + list(range(len(found) - len(wanted)))


@given(samples, presentations(("sharded",)))
def test_labels_of_shards_are_the_next_token_of_the_same_sequence(batch_of, how):
    batch = shown(batch_of, how)
    wanted = [label for s in batch_of for label in (*s.tokens[1:], IGNORE)]
    found = batch.labels.flatten().tolist()
    assert found == wanted + [IGNORE] * (len(found) - len(wanted))


@given(samples, presentations())
def test_cells_without_a_token_hold_the_garbage_or_the_pad(batch_of, how):
    batch = shown(batch_of, how)
    ones = [torch.ones(len(s), dtype=torch.int64) for s in batch_of]
    outside = batch.input_ids[batch.from_ragged(ones) == 0]
    assert set(outside.tolist()) <= set(how.garbage or (PAD,))


@pytest.mark.parametrize(
    "layout, cells", [("padded", 7), ("left", 3), ("right", 3), ("packed-tail", 3), ("sharded", 1), ("segments", 2)]
)
def test_garbage_is_put_in_one_after_another(layout, cells):
    batch_of = (Sample((1, 2, 3), (4,)), Sample((5,), (6, 7)))
    batch = shown(batch_of, Presentation(layout, extra_left=1, extra_right=1, garbage=(11, 12, 13)))
    ones = [torch.ones(len(s), dtype=torch.int64) for s in batch_of]
    outside = batch.input_ids[batch.from_ragged(ones) == 0].tolist()
    assert outside == ([11, 12, 13] * 3)[:cells]


def test_plain_is_the_same_layout_with_nothing_added():
    how = Presentation("sharded", extra_left=1, extra_right=2, tail=4, shards=3, garbage=(9,))
    assert how.plain() == Presentation("sharded", tail=4, shards=3)


@given(samples, presentations())
def test_a_batch_says_what_it_was_made_with(batch_of, how):
    batch = present(batch_of, how, pad_token_id=7, temperature=0.7, device="cpu")
    assert (batch.layout, batch.temperature, batch.pad_token_id) == (how.layout, 0.7, 7)
    assert batch.prompt_lengths == tuple(len(s.prompt) for s in batch_of)
    assert batch.response_lengths == tuple(len(s.response) for s in batch_of)
    assert (batch.labels is not None) == (how.layout == "sharded")
    assert (batch.position_ids is not None) == (how.layout in POSITIONED)
    assert batch.is_packed == (how.layout in PACKS) == (how.layout not in RECTANGLES)
    for other in (batch.attention_mask, batch.position_ids, batch.labels):
        assert other is None or other.shape == batch.input_ids.shape
    assert present(batch_of, how, pad_token_id=7).temperature == 1.0


@given(samples, presentations())
def test_garbage_changes_nothing_else(batch_of, how):
    with_garbage, plain = shown(batch_of, how), shown(batch_of, replace(how, garbage=()))
    for field in fields(Batch):
        if field.name != "input_ids":
            a, b = getattr(with_garbage, field.name), getattr(plain, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@given(samples)
def test_plain_rows_of_one_sample_have_no_pads(batch_of):
    for layout in RECTANGLES:
        batch = shown(batch_of[:1], Presentation(layout))
        assert batch.attention_mask.all()


def test_every_declared_layout_can_be_presented():
    for layout in LAYOUTS:
        assert shown((Sample((1, 2), (3,)),), Presentation(layout)).layout == layout


def test_an_unknown_layout_is_an_error():
    with pytest.raises(ValueError, match="diagonal"):
        shown((Sample((1,), (2,)),), Presentation("diagonal"))


# --- what an adapter is handed ------------------------------------------------------------------------------------


def test_a_batch_has_no_room_for_an_answer():
    assert {field.name for field in fields(Batch)} == {
        "layout",
        "input_ids",
        "attention_mask",
        "position_ids",
        "action_mask",
        "num_actions",
        "prompt_lengths",
        "response_lengths",
        "temperature",
        "pad_token_id",
        "starts",
        "labels",
        "response_masks",
    }


@settings(max_examples=20)
@given(samples, presentations())
def test_a_batch_is_made_without_asking_the_oracle(batch_of, how):
    from rlhf_conformance.adapter import Adapter
    from rlhf_conformance.chapters._models.cases import ModelCase
    from rlhf_conformance.chapters._models.roles import presented
    from rlhf_conformance.judging.subject import Subject
    from rlhf_conformance.oracle.probes import Probe

    class Silent:
        def __getattr__(self, name):
            raise AssertionError(f"the oracle was asked for {name}")

    subject = Subject(Adapter(), "cpu", torch.float32, Silent(), Silent())
    assert presented(subject, ModelCase(Probe(), batch_of, how)).layout == how.layout


@given(st.lists(tokens, min_size=1, max_size=4), st.integers(1, 5))
def test_prompts_are_padded_left(prompts, count):
    batch = present_prompts(prompts, max_new_tokens=count, stop_token_ids=(1,), pad_token_id=PAD)
    assert (batch.max_new_tokens, batch.stop_token_ids, batch.pad_token_id) == (count, (1,), PAD)
    width = max(map(len, prompts))
    for row, mask, prompt in zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), prompts, strict=True):
        assert row == [PAD] * (width - len(prompt)) + list(prompt)
        assert mask == [0] * (width - len(prompt)) + [1] * len(prompt)

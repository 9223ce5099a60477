"""The actor: every layout against each sequence alone, gradients through packs, generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import rlhf_reference as ref
from rlhf_spec import actor as spec

LAYOUTS = ("prompt-left-response-right", "left", "right", "packed", "packed-tail")
Logits = Callable[[str], list[list[list[float]]]]


def answers(actor: ref.Actor, batch: ref.RaggedBatch, layout: str, **options: Any) -> list[torch.Tensor]:
    """The actor's log-probs, presented in a layout and taken back: one tensor for each sequence."""
    if layout.startswith("packed"):
        pack = batch.pack(pad_to_multiple=7 if layout == "packed-tail" else 1, pad_token_id=0)
        return pack.unpack_actions(actor(pack.input_ids, pack.num_actions, position_ids=pack.position_ids, **options))
    rows = batch.pad(0, layout)
    return rows.unpad_actions(actor(rows.input_ids, rows.num_actions, rows.attention_mask, **options))


def expected(batch: ref.RaggedBatch, logits: list[list[list[float]]], temperature: float = 1.0) -> list[torch.Tensor]:
    rows = zip(logits, batch.sequences(), batch.prompts, strict=True)
    return [
        torch.tensor(spec.action_log_probs(z, tokens.tolist(), len(prompt), temperature), dtype=torch.float64)
        for z, tokens, prompt in rows
    ]


@pytest.fixture(scope="module")
def actor(checkpoints: dict[str, Path], architecture: str, attention: str) -> ref.Actor:
    return ref.Actor(checkpoints[architecture], dtype=torch.float64, attn_implementation=attention)


@pytest.fixture(scope="module")
def gpt2(checkpoints: dict[str, Path]) -> ref.Actor:
    return ref.Actor(checkpoints["gpt2"], dtype=torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probs_are_those_of_each_sequence_alone(
    actor: ref.Actor, batch: ref.RaggedBatch, architecture: str, logits_alone: Logits, layout: str, atol: float
) -> None:
    torch.testing.assert_close(
        answers(actor, batch, layout), expected(batch, logits_alone(architecture)), atol=atol, rtol=0
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_temperature_divides_the_logits(
    gpt2: ref.Actor, batch: ref.RaggedBatch, logits_alone: Logits, checkpoints: dict[str, Path], layout: str
) -> None:
    warm = ref.Actor(gpt2.model, temperature=0.6)
    torch.testing.assert_close(answers(warm, batch, layout), expected(batch, logits_alone("gpt2"), 0.6))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entropy_on_request_is_that_of_the_actions(
    gpt2: ref.Actor, batch: ref.RaggedBatch, logits_alone: Logits, layout: str
) -> None:
    class EntropyOnly:
        def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return warm(*args, **kwargs, return_entropy=True)[1]

    warm = ref.Actor(gpt2.model, temperature=0.6)
    entropies = [
        torch.tensor(spec.action_entropies(z, len(prompt), 0.6), dtype=torch.float64)
        for z, prompt in zip(logits_alone("gpt2"), batch.prompts, strict=True)
    ]
    torch.testing.assert_close(answers(EntropyOnly(), batch, layout), entropies)  # type: ignore[arg-type]


def test_without_actions_the_output_has_the_logits_of_every_position(
    gpt2: ref.Actor, batch: ref.RaggedBatch, logits_alone: Logits
) -> None:
    pack = batch.pack()
    output = gpt2(pack.input_ids, position_ids=pack.position_ids)
    alone = [torch.tensor(rows, dtype=torch.float64) for rows in logits_alone("gpt2")]
    torch.testing.assert_close(pack.unpack(output.logits), alone)


def test_the_output_comes_with_the_log_probs_on_request(gpt2: ref.Actor, batch: ref.RaggedBatch) -> None:
    rows = batch.pad(0)
    log_probs, output = gpt2(rows.input_ids, rows.num_actions, rows.attention_mask, return_output=True)
    torch.testing.assert_close(log_probs, gpt2(rows.input_ids, rows.num_actions, rows.attention_mask))
    assert output.logits.shape == (*rows.input_ids.shape, 48)


def test_the_logits_beside_log_probs_are_not_divided_by_the_temperature(
    gpt2: ref.Actor, batch: ref.RaggedBatch
) -> None:
    rows = batch.pad(0)
    arguments = rows.input_ids, rows.num_actions, rows.attention_mask
    outputs = [ref.Actor(gpt2.model, temperature=t)(*arguments, return_output=True)[1].logits for t in (1.0, 0.5)]
    assert torch.equal(*outputs)


def test_a_module_is_used_as_it_is_and_not_copied(checkpoints: dict[str, Path]) -> None:
    module = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"]).bfloat16().train()
    actor = ref.Actor(module)
    assert {x.data_ptr() for x in actor.parameters()} == {x.data_ptr() for x in module.parameters()}
    assert {x.dtype for x in actor.parameters()} == {torch.bfloat16}
    assert not module.training
    assert all(part.p == 0 for part in module.modules() if isinstance(part, torch.nn.Dropout))


def test_shards_of_a_pack_give_the_log_probs_of_the_pack(gpt2: ref.Actor, batch: ref.RaggedBatch) -> None:
    pack = batch.pack(pad_to_multiple=4)
    shards = ref.shard(pack, 4)
    logits = gpt2(pack.input_ids, position_ids=pack.position_ids).logits[0].unflatten(0, (4, -1))
    per_rank = [ref.token_log_probs(z, labels) for z, labels in zip(logits, shards.labels, strict=True)]
    at_actions = ref.unshard(torch.stack(per_rank))[:, ref.action_state_positions(pack.lengths, pack.num_actions)]
    torch.testing.assert_close(pack.unpack_actions(at_actions), answers(gpt2, batch, "packed"))


def test_lengths_alone_make_a_pack(gpt2: ref.Actor, batch: ref.RaggedBatch) -> None:
    pack = batch.pack(pad_to_multiple=7)
    log_probs = gpt2(pack.input_ids, pack.num_actions, sequence_lengths=pack.lengths)
    torch.testing.assert_close(pack.unpack_actions(log_probs), answers(gpt2, batch, "packed"))


def test_ids_under_the_mask_do_not_matter(actor: ref.Actor, batch: ref.RaggedBatch) -> None:
    rows = batch.pad(0)
    garbage = torch.where(rows.attention_mask == 1, rows.input_ids, 37)
    before = actor(rows.input_ids, rows.num_actions, rows.attention_mask)
    torch.testing.assert_close(actor(garbage, rows.num_actions, rows.attention_mask), before, atol=0, rtol=0)


def test_attention_is_computed_as_asked(with_head: Callable[..., Path], attention: str) -> None:
    """Both ways give the same numbers, so only the configuration tells."""
    for model in (
        ref.Actor(with_head("llama"), attn_implementation=attention).model,
        ref.CriticModel(with_head("llama"), attn_implementation=attention).backbone,
    ):
        assert model.config._attn_implementation == attention


def test_pads_have_log_prob_0(gpt2: ref.Actor, batch: ref.RaggedBatch) -> None:
    rows = batch.pad(0)
    log_probs = gpt2(rows.input_ids, rows.num_actions, rows.attention_mask)
    assert log_probs[~rows.action_mask].eq(0).all()
    assert log_probs[rows.action_mask].lt(0).all()


def test_log_probs_of_a_bfloat16_model_are_float32_of_its_logits(
    checkpoints: dict[str, Path], batch: ref.RaggedBatch
) -> None:
    actor = ref.Actor(checkpoints["llama"], dtype=torch.bfloat16)
    row = batch.sequences()[1].unsqueeze(0)
    log_probs, output = actor(row, 5, return_output=True)
    assert output.logits.dtype == torch.bfloat16
    exact = output.logits.double()[:, :-1].log_softmax(-1).gather(-1, row[:, 1:].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_probs, exact.float(), atol=3e-6, rtol=0)


def gradients(actor: ref.Actor, log_probs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a weighted sum in which every action counts differently."""
    actor.zero_grad()
    sum((x * torch.arange(1, len(x) + 1)).sum() for x in log_probs).backward()  # type: ignore[union-attr]
    return {name: parameter.grad.clone() for name, parameter in actor.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameter_gradients_are_the_sum_of_those_of_each_sequence_alone(
    actor: ref.Actor, batch: ref.RaggedBatch, layout: str, architecture: str
) -> None:
    together = gradients(actor, answers(actor, batch, layout))
    alone = [
        actor(sequence.unsqueeze(0), len(response))[0]
        for sequence, response in zip(batch.sequences(), batch.responses, strict=True)
    ]
    tolerance = {"gpt2": 1e-11, "llama": 1e-3}[architecture]
    torch.testing.assert_close(together, gradients(actor, alone), atol=tolerance, rtol=tolerance)


def test_editing_one_sequence_of_a_pack_changes_no_other(actor: ref.Actor, batch: ref.RaggedBatch) -> None:
    edited = ref.RaggedBatch((torch.tensor([6, 6, 6, 6]), *batch.prompts[1:]), batch.responses)
    before, after = answers(actor, batch, "packed"), answers(actor, edited, "packed")
    torch.testing.assert_close(after[1:], before[1:], atol=0, rtol=0)
    assert not torch.allclose(after[0], before[0])


def test_a_module_answers_as_its_path_does(
    checkpoints: dict[str, Path], batch: ref.RaggedBatch, architecture: str
) -> None:
    module = transformers.AutoModelForCausalLM.from_pretrained(checkpoints[architecture]).float()
    of_module, of_path = ref.Actor(module), ref.Actor(checkpoints[architecture])
    torch.testing.assert_close(answers(of_module, batch, "packed"), answers(of_path, batch, "packed"), atol=0, rtol=0)


def test_there_is_no_dropout_in_training_mode(actor: ref.Actor, batch: ref.RaggedBatch) -> None:
    sampled = answers(actor, batch, "left")
    actor.train()
    trained = answers(actor, batch, "left")
    actor.eval()
    torch.testing.assert_close(trained, sampled, atol=0, rtol=0)


def test_a_forward_pass_leaves_inputs_mode_and_random_state(gpt2: ref.Actor, batch: ref.RaggedBatch) -> None:
    rows = batch.pad(0)
    before = [x.clone() for x in (rows.input_ids, rows.attention_mask, torch.get_rng_state())]
    gpt2(rows.input_ids, rows.num_actions, rows.attention_mask, return_entropy=True)
    after = [rows.input_ids, rows.attention_mask, torch.get_rng_state()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert not gpt2.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_actions": 4, "attention_mask": torch.ones(2, 4)}, "state before"),
        ({"num_actions": -1, "attention_mask": torch.ones(2, 4)}, "state before"),
        ({"num_actions": (1, 4), "attention_mask": torch.ones(2, 4)}, "do not fit"),
        ({"num_actions": (1,), "attention_mask": torch.ones(2, 4)}, "do not fit"),
        ({"num_actions": (1, 1), "position_ids": torch.arange(4).expand(2, -1)}, "one row"),
    ],
)
def test_arguments_that_do_not_fit_two_rows_of_four_are_refused(
    gpt2: ref.Actor, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gpt2(torch.ones(2, 4).long(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_actions": 2, "sequence_lengths": (4,)}, "for each sequence"),
        ({"num_actions": (1, 1), "sequence_lengths": (3, 2)}, "in a pack of 4"),
        ({"num_actions": (1,), "position_ids": torch.tensor([[1, 2, 3, 4]])}, "first position"),
    ],
)
def test_arguments_that_do_not_fit_a_pack_of_four_are_refused(
    gpt2: ref.Actor, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gpt2(torch.ones(1, 4).long(), **arguments)


def greedy_alone(actor: ref.Actor, prompt: torch.Tensor, steps: int, stops: set[int]) -> list[int]:
    """The slow way: one prompt, no padding, no cache."""
    tokens = prompt.tolist()
    for _ in range(steps):
        tokens.append(int(actor(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def stop_at_different_times(actor: ref.Actor, batch: ref.RaggedBatch) -> int:
    """A token that the greedy responses do not all sample at the same step."""
    responses = [greedy_alone(actor, prompt, 6, set()) for prompt in batch.prompts]
    steps = {token: {[*response, token].index(token) for response in responses} for token in sum(responses, [])}
    return next(token for token, at in steps.items() if len(at) > 1)


def test_greedy_generation_continues_each_prompt_as_it_would_alone(actor: ref.Actor, batch: ref.RaggedBatch) -> None:
    stop = stop_at_different_times(actor, batch)
    rows = ref.RaggedBatch(batch.prompts, tuple(prompt[:0] for prompt in batch.prompts)).pad(0)
    generated = actor.generate(
        rows.input_ids, rows.attention_mask, max_new_tokens=6, stop_token_ids=[stop, 47], pad_token_id=46
    )
    alone = [greedy_alone(actor, prompt, 6, {stop, 47}) for prompt in batch.prompts]
    longest = max(len(response) for response in alone)
    assert torch.equal(generated[:, : rows.input_ids.shape[1]], rows.input_ids)
    assert generated[:, rows.input_ids.shape[1] :].tolist() == [x + [46] * (longest - len(x)) for x in alone]


def test_generation_of_a_row_that_stops_at_once_is_one_token_long(gpt2: ref.Actor) -> None:
    prompt = torch.tensor([[5, 9]])
    first = greedy_alone(gpt2, prompt[0], 1, set())[0]
    options = {"max_new_tokens": 4, "pad_token_id": 0}
    assert gpt2.generate(prompt, torch.ones(1, 2), stop_token_ids=[first], **options).shape == (1, 3)
    assert gpt2.generate(prompt, torch.ones(1, 2), stop_token_ids=[], **options).shape == (1, 6)


def test_sampling_takes_the_temperature_of_the_log_probs(gpt2: ref.Actor, checkpoints: dict[str, Path]) -> None:
    torch.manual_seed(0)
    prompts = torch.tensor([[5, 9]]).expand(4000, -1)
    actor = ref.Actor(checkpoints["gpt2"], temperature=4.0)
    options = {"max_new_tokens": 1, "stop_token_ids": [], "pad_token_id": 0}
    sampled = actor.generate(prompts, torch.ones_like(prompts), do_sample=True, **options)[:, -1]
    rows = torch.cat([prompts[:48], torch.arange(48).unsqueeze(1)], dim=1)
    probabilities = actor(rows, 1).exp().squeeze(1)
    frequencies = sampled.bincount(minlength=48) / 4000
    deviations = (probabilities * (1 - probabilities) / 4000).sqrt()
    assert ((frequencies - probabilities).abs() < 5 * deviations).all()


@pytest.mark.cuda
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_gives_what_the_cpu_gives(
    checkpoints: dict[str, Path], batch: ref.RaggedBatch, layout: str, architecture: str, attention: str
) -> None:
    on_gpu = ref.RaggedBatch(*(tuple(x.cuda() for x in rows) for rows in (batch.prompts, batch.responses)))
    options = {"dtype": torch.float64, "attn_implementation": attention}
    gpu = ref.Actor(checkpoints[architecture], device="cuda", **options)
    cpu = ref.Actor(checkpoints[architecture], **options)
    answers_on_gpu = [x.cpu() for x in answers(gpu, on_gpu, layout)]
    torch.testing.assert_close(answers_on_gpu, answers(cpu, batch, layout), atol=5e-5, rtol=0)

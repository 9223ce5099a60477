"""Reward model and critic: finding the head, where a score is read, normalization."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import rlhf_reference as ref
from rlhf_reference.checkpoint import new_head
from rlhf_spec import critic as spec_critic
from rlhf_spec import reward as spec_reward

LAYOUTS = ("prompt-left-response-right", "left", "right", "packed", "packed-tail")
INPUT = torch.tensor([[5, 1, 9, 7, 30, 2]])
KINDS = pytest.mark.parametrize("kind", [ref.RewardModel, ref.CriticModel])


def scores_alone(folder: Path, batch: ref.RaggedBatch) -> list[list[float]]:
    """What the head says at each position of each sequence, alone and unpadded, by transformers in float64."""
    backbone = transformers.AutoModel.from_pretrained(folder).double()
    head = load_file(folder / "model.safetensors")["score.weight"][0].double()
    with torch.no_grad():
        return [(backbone(x.unsqueeze(0)).last_hidden_state[0] @ head).tolist() for x in batch.sequences()]


def rewards(model: ref.RewardModel, batch: ref.RaggedBatch, layout: str) -> torch.Tensor:
    if layout.startswith("packed"):
        pack = batch.pack(pad_to_multiple=7 if layout == "packed-tail" else 1)
        return model(pack.input_ids, position_ids=pack.position_ids, sequence_lengths=pack.lengths)
    rows = batch.pad(0, layout)
    return model(rows.input_ids, rows.attention_mask)


def action_values(model: ref.CriticModel, batch: ref.RaggedBatch, layout: str) -> list[torch.Tensor]:
    if layout.startswith("packed"):
        pack = batch.pack(pad_to_multiple=7 if layout == "packed-tail" else 1)
        return pack.unpack_actions(model(pack.input_ids, pack.num_actions, position_ids=pack.position_ids))
    rows = batch.pad(0, layout)
    return rows.unpad_actions(model(rows.input_ids, rows.num_actions, rows.attention_mask))


@pytest.fixture(scope="module")
def reward_model(with_head: Callable[..., Path], architecture: str, attention: str) -> ref.RewardModel:
    return ref.RewardModel(with_head(architecture), dtype=torch.float64, attn_implementation=attention)


@pytest.fixture(scope="module")
def critic(with_head: Callable[..., Path], architecture: str, attention: str) -> ref.CriticModel:
    return ref.CriticModel(with_head(architecture), dtype=torch.float64, attn_implementation=attention)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rewards_are_those_of_each_sequence_alone(
    reward_model: ref.RewardModel,
    with_head: Callable[..., Path],
    architecture: str,
    batch: ref.RaggedBatch,
    layout: str,
    atol: float,
) -> None:
    alone = [spec_reward.reward(scores, [1] * len(scores)) for scores in scores_alone(with_head(architecture), batch)]
    expected = torch.tensor(alone, dtype=torch.float64)
    torch.testing.assert_close(rewards(reward_model, batch, layout), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_action_values_are_those_of_each_sequence_alone(
    critic: ref.CriticModel,
    with_head: Callable[..., Path],
    architecture: str,
    batch: ref.RaggedBatch,
    layout: str,
    atol: float,
) -> None:
    alone = zip(scores_alone(with_head(architecture), batch), batch.prompts, strict=True)
    expected = [
        torch.tensor(spec_critic.action_values(scores, len(prompt)), dtype=torch.float64) for scores, prompt in alone
    ]
    torch.testing.assert_close(action_values(critic, batch, layout), expected, atol=atol, rtol=0)


def gradients(model: Any, total: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total.backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_rewards_are_those_of_each_sequence_alone(
    with_head: Callable[..., Path], batch: ref.RaggedBatch, layout: str
) -> None:
    model = ref.RewardModel(with_head("gpt2"), dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 3.0])
    together = gradients(model, (weights * rewards(model, batch, layout)).sum())
    alone = torch.cat([model(sequence.unsqueeze(0)) for sequence in batch.sequences()])
    assert together.keys() == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(together, gradients(model, (weights * alone).sum()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_values_are_those_of_each_sequence_alone(
    with_head: Callable[..., Path], batch: ref.RaggedBatch, layout: str
) -> None:
    model = ref.CriticModel(with_head("gpt2"), dtype=torch.float64)
    weights = torch.arange(1, 10)
    together = gradients(model, (weights * torch.cat(action_values(model, batch, layout))).sum())
    pairs = zip(batch.sequences(), batch.responses, strict=True)
    alone = torch.cat([model(sequence.unsqueeze(0), len(response))[0] for sequence, response in pairs])
    torch.testing.assert_close(together, gradients(model, (weights * alone).sum()))


def test_the_value_of_an_action_is_that_of_the_state_before_it(
    with_head: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt "a b c", response "d e": d is chosen in state "a b c" (position 2), e in "a b c d" (position 3)."""
    critic = ref.CriticModel(with_head("llama"))
    monkeypatch.setattr(critic, "scores", lambda inputs: torch.tensor([[0.0, 10.0, 20.0, 30.0, 40.0]]))
    assert critic(torch.tensor([[5, 6, 7, 8, 9]]), 2).tolist() == [[20.0, 30.0]]


def test_values_of_pads_are_0(with_head: Callable[..., Path], batch: ref.RaggedBatch) -> None:
    critic = ref.CriticModel(with_head("llama"), normalize=True, mean=3.0, std=2.0)
    rows = batch.pad(0)
    values = critic(rows.input_ids, rows.num_actions, rows.attention_mask)
    raw = critic(rows.input_ids, None, rows.attention_mask)
    assert values[~rows.action_mask].eq(0).all()
    assert raw[rows.attention_mask == 0].eq(0).all()


def test_rows_without_an_action_have_no_values(with_head: Callable[..., Path], batch: ref.RaggedBatch) -> None:
    rows = batch.pad(0)
    assert ref.CriticModel(with_head("gpt2"))(rows.input_ids, 0, rows.attention_mask).shape == (3, 0)


def test_after_the_actions_of_a_row_padded_on_the_right_there_is_0(
    with_head: Callable[..., Path], batch: ref.RaggedBatch
) -> None:
    rows = batch.pad(0, "right")
    counts = (0, *rows.num_actions[1:])
    values = ref.CriticModel(with_head("gpt2"))(rows.input_ids, counts, rows.attention_mask)
    outside = torch.arange(max(counts)) >= torch.tensor(counts).unsqueeze(1)
    assert (values == 0).tolist() == outside.tolist()


def test_lengths_alone_make_a_pack_and_positions_are_taken_as_they_are_given(
    with_head: Callable[..., Path], batch: ref.RaggedBatch
) -> None:
    pack, rows = batch.pack(), batch.pad(0)
    for model, counts in (
        (ref.CriticModel(with_head("gpt2")), (pack.num_actions,)),
        (ref.RewardModel(with_head("gpt2")), ()),
    ):
        by_lengths = model(pack.input_ids, *counts, sequence_lengths=pack.lengths)
        torch.testing.assert_close(by_lengths, model(pack.input_ids, *counts, position_ids=pack.position_ids))
        later = model(rows.input_ids, attention_mask=rows.attention_mask, position_ids=rows.position_ids + 1)
        assert not torch.allclose(later, model(rows.input_ids, attention_mask=rows.attention_mask))


def test_without_actions_a_critic_gives_every_position(
    critic: ref.CriticModel,
    with_head: Callable[..., Path],
    architecture: str,
    batch: ref.RaggedBatch,
    atol: float,
) -> None:
    alone = [torch.tensor(x, dtype=torch.float64) for x in scores_alone(with_head(architecture), batch)]
    rows, pack = batch.pad(0), batch.pack()
    values = critic(rows.input_ids, None, rows.attention_mask)
    unpadded = [row[mask] for row, mask in zip(values, rows.attention_mask.bool(), strict=True)]
    torch.testing.assert_close(unpadded, alone, atol=atol, rtol=0)
    packed = critic(pack.input_ids, position_ids=pack.position_ids)
    torch.testing.assert_close(pack.unpack(packed), alone, atol=atol, rtol=0)


def test_a_reward_is_read_in_the_mask_and_not_in_the_ids(reward_model: ref.RewardModel) -> None:
    """Pad id 1 is the EOS id, the prompt holds one, and the second row has no pad at all."""
    rows = torch.tensor([[5, 1, 9, 7, 1, 1], [5, 1, 9, 7, 30, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    alone = torch.cat([reward_model(rows[:1, :5]), reward_model(rows[1:])])
    torch.testing.assert_close(reward_model(rows, mask), alone, atol=5e-5, rtol=0)


def test_large_rewards_are_not_clamped(with_head: Callable[..., Path]) -> None:
    model = ref.RewardModel(with_head("llama"))
    small = model(INPUT).item()
    with torch.no_grad():
        model.head.weight *= 1000
    assert model(INPUT).item() == pytest.approx(1000 * small, rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_rewards_are_normalized_in_eval_mode_only(with_head: Callable[..., Path], training: bool) -> None:
    raw = ref.RewardModel(with_head("llama"))(INPUT).item()
    model = ref.RewardModel(with_head("llama"), normalize=True, mean=0.5, std=4.0).train(training)
    assert model(INPUT).item() == pytest.approx(raw if training else spec_reward.normalize(raw, 0.5, 4.0))


@pytest.mark.parametrize("training", [False, True])
def test_values_are_normalized_in_both_modes(with_head: Callable[..., Path], training: bool) -> None:
    raw = ref.CriticModel(with_head("llama"))(INPUT, 1).item()
    model = ref.CriticModel(with_head("llama"), normalize=True, mean=0.5, std=4.0).train(training)
    assert model(INPUT, 1).item() == pytest.approx(spec_reward.normalize(raw, 0.5, 4.0))


def test_a_config_that_asks_for_normalization_gets_it(with_head: Callable[..., Path], tmp_path: Path) -> None:
    folder = with_head("llama")
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"normalize_reward": True, "mean": 0.5, "std": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    raw = ref.RewardModel(folder)(INPUT).item()
    assert ref.RewardModel(tmp_path)(INPUT).item() == pytest.approx((raw - 0.5) / 4.0)


def test_a_config_that_says_nothing_of_normalization_asks_for_none(with_head: Callable[..., Path]) -> None:
    model = ref.RewardModel(with_head("llama"))
    assert (model.normalize, model.mean, model.std) == (False, 0.0, 1.0)


def test_a_std_of_0_is_refused(with_head: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="std"):
        ref.RewardModel(with_head("llama"), normalize=True, std=0.0)


@KINDS
@pytest.mark.parametrize("name", ["score", "value_head", "v_head.summary"])
def test_the_head_is_found_under_any_name(
    with_head: Callable[..., Path], architecture: str, kind: Any, name: str
) -> None:
    folder = with_head(architecture, name)
    model = kind(folder)
    assert model.head_name == name
    assert torch.equal(model.head.weight, load_file(folder / "model.safetensors")[f"{name}.weight"])


@KINDS
def test_a_checkpoint_without_a_head_is_an_error(checkpoints: dict[str, Path], architecture: str, kind: Any) -> None:
    with pytest.raises(ref.MissingHeadError, match="init_head"):
        kind(checkpoints[architecture])


def test_a_head_of_another_name_than_declared_is_an_error_that_names_it(with_head: Callable[..., Path]) -> None:
    with pytest.raises(ref.MissingHeadError, match="found: value_head"):
        ref.RewardModel(with_head("llama", "value_head"), head_name="score")


def test_a_weight_of_the_backbone_is_no_head(tmp_path: Path) -> None:
    """GPT-2 for sequences of one token: its position embeddings have the shape of a head."""
    config = transformers.GPT2Config(vocab_size=8, n_positions=1, n_embd=32, n_layer=1, n_head=2, num_labels=1)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["transformer.wpe.weight"].shape == (1, 32)
    assert ref.RewardModel(tmp_path).head_name == "score"


def test_of_two_heads_the_declared_one_is_taken(with_head: Callable[..., Path]) -> None:
    folder = with_head("llama", "score", "value_head")
    with pytest.raises(ref.MissingHeadError, match="found: score, value_head"):
        ref.RewardModel(folder)
    expected = load_file(folder / "model.safetensors")["value_head.weight"]
    assert torch.equal(ref.RewardModel(folder, head_name="value_head").head.weight, expected)


def test_a_head_that_is_there_is_not_drawn_anew(with_head: Callable[..., Path]) -> None:
    folder = with_head("llama", "value_head")
    expected = load_file(folder / "model.safetensors")["value_head.weight"]
    assert torch.equal(ref.CriticModel(folder, init_head=True).head.weight, expected)


def test_a_head_of_another_name_is_not_replaced_by_a_random_one(with_head: Callable[..., Path]) -> None:
    with pytest.raises(ref.MissingHeadError, match="found: value_head"):
        ref.CriticModel(with_head("llama", "value_head"), head_name="score", init_head=True)


def test_a_head_is_drawn_where_there_is_none_and_asked_for(checkpoints: dict[str, Path]) -> None:
    torch.manual_seed(0)
    weight = ref.CriticModel(checkpoints["llama"], init_head=True).head.weight
    assert weight.std().item() == pytest.approx(33**-0.5, rel=0.5)


@pytest.mark.parametrize("asked, name", [(None, "score"), ("v_head", "v_head")])
def test_a_drawn_head_has_the_name_that_is_asked_for_and_is_drawn_in_float32(
    checkpoints: dict[str, Path], asked: str | None, name: str
) -> None:
    torch.manual_seed(0)
    drawn = new_head(32, torch.float32)
    torch.manual_seed(0)
    critic = ref.CriticModel(checkpoints["llama"], head_name=asked, init_head=True, dtype=torch.float64)
    assert critic.head_name == name
    assert torch.equal(critic.head.weight, drawn.double())


def test_the_variance_of_a_new_head_is_that_of_its_source() -> None:
    torch.manual_seed(0)
    drawn = torch.randn(1, 8, dtype=torch.float64)
    torch.manual_seed(0)
    assert torch.equal(new_head(8, torch.float64), drawn / 3)


@pytest.fixture
def with_bias(with_head: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`with_bias(shape)`: a folder whose head has a bias of ones beside its weight."""

    def make(*shape: int) -> Path:
        folder = with_head("llama")
        tensors = load_file(folder / "model.safetensors") | {"score.bias": torch.ones(shape)}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        return tmp_path

    return make


def test_the_bias_of_a_head_is_added_to_every_score(
    with_head: Callable[..., Path], with_bias: Callable[..., Path], batch: ref.RaggedBatch
) -> None:
    plain, more = (rewards(ref.RewardModel(path), batch, "left") for path in (with_head("llama"), with_bias(1)))
    torch.testing.assert_close(more, plain + 1.0)


@pytest.mark.parametrize("lora", [None, ref.LoraOptions()])
def test_the_bias_of_a_head_is_trained_and_saved(
    with_bias: Callable[..., Path], lora: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = ref.RewardModel(with_bias(1), lora=lora)
    assert model.named_checkpoint_parameters()["score.bias"].requires_grad
    with torch.no_grad():
        model.head.bias.fill_(3.0)
    model.save(folder := tmp_path_factory.mktemp("saved"))
    assert float(ref.RewardModel.load(folder).head.bias) == 3.0


def test_a_bias_of_another_shape_is_refused(with_bias: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"score.bias .*\[2\]"):
        ref.RewardModel(with_bias(2))


def test_the_head_is_found_in_a_sharded_checkpoint(with_head: Callable[..., Path], tmp_path: Path) -> None:
    folder = with_head("llama", "value_head")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, tmp_path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.testing.assert_close(ref.RewardModel(tmp_path)(INPUT), ref.RewardModel(folder)(INPUT), atol=0, rtol=0)


def test_scores_of_a_bfloat16_model_are_float32(with_head: Callable[..., Path]) -> None:
    assert ref.CriticModel(with_head("llama"), dtype=torch.bfloat16)(INPUT, 2).dtype == torch.float32


@pytest.mark.cuda
@KINDS
def test_cuda_gives_what_the_cpu_gives(with_head: Callable[..., Path], architecture: str, kind: Any) -> None:
    options = {"dtype": torch.float64, "lora": ref.LoraOptions()}
    on_gpu = kind(with_head(architecture), device="cuda", **options)(INPUT.cuda())
    torch.testing.assert_close(on_gpu.cpu(), kind(with_head(architecture), **options)(INPUT), atol=5e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@KINDS
def test_the_output_comes_with_the_answers_on_request(
    kind: Any, layout: str, with_head: Callable[..., Path], batch: ref.RaggedBatch
) -> None:
    """The head says on its hidden states what the model answers."""
    model = kind(with_head("gpt2"), dtype=torch.float64)
    if layout.startswith("packed"):
        pack = batch.pack(pad_to_multiple=7 if layout == "packed-tail" else 1)
        rows, asked = pack, {"position_ids": pack.position_ids, "sequence_lengths": pack.lengths}
    else:
        rows = batch.pad(0, layout)
        asked = {"attention_mask": rows.attention_mask}
    if kind is ref.CriticModel:
        asked["num_actions"] = rows.num_actions
    answers, output = model(rows.input_ids, **asked, return_output=True)
    assert torch.equal(answers, model(rows.input_ids, **asked))
    assert output.last_hidden_state.shape == (*rows.input_ids.shape, 32)
    scores = output.last_hidden_state @ model.head.weight[0]
    distances = (scores.reshape(-1, 1) - answers.reshape(1, -1)).abs().amin(0)
    assert (distances[answers.reshape(-1) != 0] < 1e-12).all()

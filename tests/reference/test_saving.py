"""What is saved comes back: whole models, LoRA adapters, 4-bit weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

import rlhf_reference as ref

INPUT = torch.tensor([[5, 1, 9, 7, 30, 2]])
LORA = ref.LoraOptions(rank=4)
DORA = ref.LoraOptions(rank=4, dora=True)


def shake(model: torch.nn.Module) -> None:
    """Change every trainable weight, so that a weight that is not saved shows."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def ask(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT) if isinstance(model, ref.RewardModel) else model(INPUT, 4)


@pytest.mark.parametrize("lora", [None, LORA, DORA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_actor_comes_back(
    checkpoints: dict[str, Path], architecture: str, lora: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    actor = ref.Actor(checkpoints[architecture], dtype=dtype, lora=lora)
    fresh = ask(actor)
    shake(actor)
    actor.save(tmp_path)
    assert not torch.allclose(ask(actor), fresh)
    torch.testing.assert_close(ask(ref.Actor.load(tmp_path, dtype=dtype)), ask(actor), atol=0, rtol=0)


@pytest.mark.parametrize("lora", [None, LORA, DORA])
@pytest.mark.parametrize("kind", [ref.RewardModel, ref.CriticModel])
@pytest.mark.parametrize("head_name", ["score", "v_head.summary"])
def test_a_reward_model_and_a_critic_come_back_with_their_head(
    with_head: Callable[..., Path], architecture: str, kind: Any, lora: Any, head_name: str, tmp_path: Path
) -> None:
    model = kind(with_head(architecture, head_name), lora=lora)
    fresh = ask(model)
    shake(model)
    model.save(tmp_path)
    restored = kind.load(tmp_path)
    assert not torch.allclose(ask(model), fresh)
    assert restored.head_name == head_name
    torch.testing.assert_close(ask(restored), ask(model), atol=0, rtol=0)


def test_a_head_drawn_for_a_causal_lm_comes_back_with_its_adapter(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    critic = ref.CriticModel(checkpoints["llama"], init_head=True, lora=LORA)
    critic.save(tmp_path)
    torch.testing.assert_close(ask(ref.CriticModel.load(tmp_path)), ask(critic), atol=0, rtol=0)


def test_a_regression_model_is_restored_with_the_options_and_on_the_base_that_are_asked_for(
    with_head: Callable[..., Path], tmp_path: Path
) -> None:
    model = ref.CriticModel(with_head("llama"), lora=LORA, dtype=torch.float64)
    shake(model)
    model.save(tmp_path / "adapter")
    other = tmp_path / "other"
    changed = ref.CriticModel(with_head("llama"))
    shake(changed)
    changed.save(other)
    restored = ref.CriticModel.load(tmp_path / "adapter", dtype=torch.float64)
    assert restored.head.weight.dtype == torch.float64
    assert torch.equal(ask(restored), ask(model))
    assert not torch.allclose(ask(ref.CriticModel.load(tmp_path / "adapter", base=other)).double(), ask(model))


def test_normalization_comes_back(with_head: Callable[..., Path], tmp_path: Path) -> None:
    ref.RewardModel(with_head("llama"), normalize=True, mean=0.5, std=2.0).save(tmp_path)
    restored = ref.RewardModel.load(tmp_path)
    assert (restored.normalize, restored.mean, restored.std) == (True, 0.5, 2.0)


def test_a_saved_reward_model_is_read_by_transformers(with_head: Callable[..., Path], tmp_path: Path) -> None:
    reward_model = ref.RewardModel(with_head("llama"))
    reward_model.save(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).float()
    torch.testing.assert_close(theirs(INPUT).logits[0], ask(reward_model))


def test_a_saved_reward_model_says_that_its_tensors_are_of_torch(
    with_head: Callable[..., Path], tmp_path: Path
) -> None:
    """Some versions of transformers refuse a file that does not."""
    ref.RewardModel(with_head("llama")).save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as tensors:
        assert tensors.metadata() == {"format": "pt"}


def test_the_parameters_have_the_names_on_disk(with_head: Callable[..., Path], architecture: str) -> None:
    from safetensors.torch import load_file

    folder = with_head(architecture, "v_head.summary")
    names = ref.CriticModel(folder).named_checkpoint_parameters().keys()
    assert names == {name for name in load_file(folder / "model.safetensors") if not name.startswith("lm_head.")}


def test_only_adapter_and_head_are_trained_with_lora(with_head: Callable[..., Path]) -> None:
    critic = ref.CriticModel(with_head("llama"), lora=LORA)
    trained = [name for name, parameter in critic.named_parameters() if parameter.requires_grad]
    assert "head.weight" in trained
    assert all("lora_" in name for name in trained if name != "head.weight")
    assert len(trained) == 1 + 2 * 2 * 7  # the head; A and B of 7 linear layers in each of 2 blocks


def test_an_adapter_has_the_rank_and_the_scale_that_are_asked_for(checkpoints: dict[str, Path]) -> None:
    actor = ref.Actor(checkpoints["llama"], lora=ref.LoraOptions(rank=3, alpha=5))
    config = actor.model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (3, 5)


def test_a_restored_adapter_can_be_trained_on(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    actor = ref.Actor(checkpoints["llama"], lora=LORA)
    actor.save(tmp_path)
    trained = [
        {n for n, x in model.named_parameters() if x.requires_grad} for model in (actor, ref.Actor.load(tmp_path))
    ]
    assert trained[0] == trained[1] != set()


def test_an_adapter_of_a_module_needs_its_base(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def module() -> Any:
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(checkpoints["llama"])
        config._name_or_path = ""
        return transformers.AutoModelForCausalLM.from_config(config)

    actor = ref.Actor(module(), lora=LORA)
    shake(actor)
    actor.save(tmp_path)
    with pytest.raises(ValueError, match="base="):
        ref.Actor.load(tmp_path)
    torch.testing.assert_close(ask(ref.Actor.load(tmp_path, base=module())), ask(actor), atol=0, rtol=0)


def test_an_empty_folder_is_not_a_saved_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config"):
        ref.Actor.load(tmp_path)


def test_a_checkpoint_that_lacks_a_weight_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoints["llama"] / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    transformers.AutoConfig.from_pretrained(checkpoints["llama"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="up_proj"):
        ref.Actor(tmp_path)


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@needs_bitsandbytes
def test_a_4_bit_actor_computes_with_the_weights_that_nf4_stands_for(checkpoints: dict[str, Path]) -> None:
    import bitsandbytes

    quantised = ref.Actor(checkpoints["llama"], load_in_4bit=True)
    plain = ref.Actor(checkpoints["llama"])
    unquantised = ask(plain)
    rounded = 0
    for name, module in quantised.model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.model.get_submodule(name).weight.data = weight
            assert module.weight.quant_state.quant_type == "nf4"
            rounded += 1
    assert rounded == 2 * 7
    torch.testing.assert_close(ask(quantised), ask(plain), atol=1e-4, rtol=0)
    assert not torch.allclose(ask(quantised), unquantised, atol=1e-2)


@needs_bitsandbytes
def test_a_4_bit_actor_computes_in_the_dtype_and_with_the_attention_that_are_asked_for(
    checkpoints: dict[str, Path],
) -> None:
    import bitsandbytes

    model = ref.Actor(checkpoints["llama"], dtype=torch.bfloat16, attn_implementation="eager", load_in_4bit=True).model
    assert model.config._attn_implementation == "eager"
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}


@needs_bitsandbytes
def test_a_4_bit_actor_trains_and_restores_its_adapter(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    actor = ref.Actor(checkpoints["llama"], load_in_4bit=True, lora=LORA)
    shake(actor)
    actor(INPUT, 4).sum().backward()
    gradients = [parameter.grad for parameter in actor.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.ne(0).any() for gradient in gradients)
    actor.save(tmp_path)
    torch.testing.assert_close(ask(ref.Actor.load(tmp_path, load_in_4bit=True)), ask(actor), atol=0, rtol=0)


@needs_bitsandbytes
@pytest.mark.parametrize("packs", [True, False], ids=["a processor that packs", "one that does not"])
def test_a_4_bit_actor_computes_the_same_in_eval_and_train_mode(
    packs: bool, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old log-probs are taken in eval mode without gradients; before any step the ratio to them is 1."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: packs)
    actor = ref.Actor(checkpoints["llama"], load_in_4bit=True)
    answers = []
    for training in (False, True, False):
        actor.train(training)
        with torch.set_grad_enabled(training):
            answers.append(actor(INPUT, 4).detach())
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_4_bit_without_bitsandbytes_says_what_is_missing(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "bitsandbytes" else find_spec(name)
    )
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        ref.Actor(checkpoints["llama"], load_in_4bit=True)


def test_a_module_cannot_be_loaded_in_4_bit(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="path"):
        ref.Actor(torch.nn.Linear(2, 2), load_in_4bit=True)

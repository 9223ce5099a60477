"""How weights get into a model: dtypes, devices, code beside the weights, LoRA's layers and its dropout, 4 bit."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import rlhf_reference as ref

INPUT = torch.tensor([[5, 1, 9, 7, 30, 2]])
KINDS = pytest.mark.parametrize("kind", ["Actor", "RewardModel", "CriticModel"])
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def folder(checkpoints: dict[str, Path], with_head: Callable[..., Path]) -> Callable[[str], Path]:
    """`folder("Actor")`: a checkpoint for that kind of model."""
    return lambda kind: checkpoints["llama"] if kind == "Actor" else with_head("llama")


def ask(model: Any) -> torch.Tensor:
    return model(INPUT) if isinstance(model, ref.RewardModel) else model(INPUT, 4)


def shake(model: torch.nn.Module) -> None:
    """Change every trainable weight, as a step does."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def in_bfloat16(folder: Path, to: Path) -> Path:
    """A copy of a checkpoint whose weights, and whose config, say bfloat16."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    return to


# --- dtype and device -----------------------------------------------------------------------------------------------


@KINDS
def test_auto_is_the_dtype_of_the_checkpoint(kind: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    half = in_bfloat16(folder(kind), tmp_path)
    assert {x.dtype for x in getattr(ref, kind)(half, dtype="auto").parameters()} == {torch.bfloat16}
    assert {x.dtype for x in getattr(ref, kind)(half).parameters()} == {torch.float32}


@KINDS
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_device_map_changes_no_answer(kind: str, device_map: Any, folder: Callable[[str], Path]) -> None:
    mapped = getattr(ref, kind)(folder(kind), device_map=device_map)
    assert torch.equal(ask(mapped), ask(getattr(ref, kind)(folder(kind))))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "cpu", "device_map": "auto"}, "one of them"), ({"double_quantization": True}, "load_in_4bit")],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, Any], message: str, checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        ref.Actor(checkpoints["llama"], **options)


@pytest.mark.parametrize(
    "options", [{"dtype": torch.float32}, {"attn_implementation": "eager"}, {"device_map": "auto"}]
)
def test_what_a_module_cannot_follow_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only device"):
        ref.Actor(torch.nn.Linear(2, 2), **options)


# --- code beside the weights ------------------------------------------------------------------------------------------

THEIR_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaModel):
    config_class = OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`with_code("Actor")`: its checkpoint, of an architecture that only the Python beside the weights knows."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))

    def made(kind: str) -> Path:
        to = shutil.copytree(folder(kind), tmp_path / "own")
        names = {"AutoConfig": "OwnConfig", "AutoModel": "OwnModel", "AutoModelForCausalLM": "OwnForCausalLM"}
        theirs = {"model_type": "own", "auto_map": {auto: f"own.{name}" for auto, name in names.items()}}
        config = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps({**config, **theirs}))
        (to / "own.py").write_text(THEIR_CODE)
        return to

    return made


@KINDS
def test_code_beside_the_weights_runs_where_it_is_trusted(
    kind: str, with_code: Callable[[str], Path], folder: Callable[[str], Path]
) -> None:
    own = getattr(ref, kind)(with_code(kind), trust_remote_code=True)
    inner = own.model if kind == "Actor" else own.backbone
    assert type(inner).__name__.startswith("Own")
    assert torch.equal(ask(own), ask(getattr(ref, kind)(folder(kind))))


@KINDS
def test_code_beside_the_weights_does_not_run_unasked(kind: str, with_code: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        getattr(ref, kind)(with_code(kind))


# --- LoRA ----------------------------------------------------------------------------------------------------------


@KINDS
def test_only_the_target_modules_get_an_adapter(kind: str, folder: Callable[[str], Path]) -> None:
    lora = ref.LoraOptions(target_modules=("q_proj", "v_proj"))
    model = getattr(ref, kind)(folder(kind), lora=lora)
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}


@KINDS
def test_an_adapter_of_dora_is_the_model_itself_at_first(kind: str, folder: Callable[[str], Path]) -> None:
    made = getattr(ref, kind)
    torch.testing.assert_close(ask(made(folder(kind), lora=ref.LoraOptions(dora=True))), ask(made(folder(kind))))


@KINDS
def test_dora_trains_the_norm_of_each_outputs_weights(kind: str, folder: Callable[[str], Path]) -> None:
    model = getattr(ref, kind)(folder(kind), lora=ref.LoraOptions(dora=True))
    shake(model)
    backbone = model.model if kind == "Actor" else model.backbone
    (layer,) = [module for name, module in backbone.named_modules() if name.endswith("layers.1.self_attn.k_proj")]
    magnitude = layer.lora_magnitude_vector["default"].weight
    assert magnitude.requires_grad
    weight = layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ expected.T)


DROPPED = ref.LoraOptions(dropout=0.5)


@KINDS
def test_dropout_of_an_adapter_is_on_in_train_mode_alone(kind: str, folder: Callable[[str], Path]) -> None:
    model = getattr(ref, kind)(folder(kind), lora=DROPPED)
    shake(model)
    sampled = ask(model)
    assert torch.equal(ask(model), sampled)
    model.train()
    assert not torch.allclose(ask(model), sampled)
    assert not torch.equal(ask(model), ask(model))
    assert torch.equal(ask(model.eval()), sampled)


@KINDS
def test_an_adapter_has_no_dropout_unless_asked(kind: str, folder: Callable[[str], Path]) -> None:
    model = getattr(ref, kind)(folder(kind), lora=ref.LoraOptions())
    shake(model)
    assert torch.equal(ask(model.train()), ask(model.eval()))


@KINDS
def test_dropout_and_target_modules_come_back_with_the_adapter(
    kind: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = getattr(ref, kind)(folder(kind), lora=ref.LoraOptions(dropout=0.5, target_modules=("q_proj",)))
    shake(model)
    model.save(tmp_path)
    restored = getattr(ref, kind).load(tmp_path)
    assert torch.equal(ask(restored), ask(model))
    assert not torch.allclose(ask(restored.train()), ask(model))


def test_checkpointing_draws_the_same_dropout_again(folder: Callable[[str], Path]) -> None:
    """Recomputed under another mask, the gradient would be that of another network."""
    gradients = []
    for wanted in (False, True):
        actor = ref.Actor(folder("Actor"), lora=DROPPED, gradient_checkpointing=wanted)
        torch.manual_seed(1)
        shake(actor)
        for name, parameter in actor.named_parameters():
            if "lora_A" in name:  # drawn anew for each actor
                torch.nn.init.ones_(parameter)
        torch.manual_seed(2)
        ask(actor.train()).sum().backward()
        gradients.append([x.grad for x in actor.parameters() if x.requires_grad])
    torch.testing.assert_close(*gradients, atol=0, rtol=0)


def test_generation_has_no_dropout_in_train_mode_either(folder: Callable[[str], Path]) -> None:
    actor = ref.Actor(folder("Actor"), lora=DROPPED)
    shake(actor)
    options = {"max_new_tokens": 6, "stop_token_ids": [], "pad_token_id": 0}
    rows = [actor.train(mode).generate(INPUT, torch.ones_like(INPUT), **options) for mode in (False, True, True)]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


# --- 4 bit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_transformers_is_told_how_to_quantize(
    double: bool, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bitsandbytes then does is its own; here it need not even be installed."""
    told: dict[str, Any] = {}

    def refuse(path: Any, **options: Any) -> Any:
        told.update(options)
        raise InterruptedError

    monkeypatch.setattr("rlhf_reference.loading.importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(InterruptedError):
        ref.Actor(checkpoints["llama"], load_in_4bit=True, double_quantization=double, dtype="auto")
    config = told["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_use_double_quant == double
    assert config.bnb_4bit_compute_dtype == torch.float32  # that of the checkpoint
    assert told["device_map"] == {"": "cpu"}


def quantized_layers(model: torch.nn.Module) -> list[Any]:
    import bitsandbytes

    return [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]


@needs_bitsandbytes
@KINDS
@pytest.mark.parametrize("double", [False, True])
def test_every_linear_layer_but_the_last_is_in_4_bit(kind: str, double: bool, folder: Callable[[str], Path]) -> None:
    model = getattr(ref, kind)(folder(kind), load_in_4bit=True, double_quantization=double)
    layers = quantized_layers(model)
    assert len(layers) == 2 * 7
    ask(model)
    assert {layer.weight.quant_state.nested for layer in layers} == {double}
    assert not torch.equal(ask(model), ask(getattr(ref, kind)(folder(kind))))


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["RewardModel", "CriticModel"])
def test_a_head_is_as_exact_over_4_bit_weights_as_it_was(kind: str, folder: Callable[[str], Path]) -> None:
    head = getattr(ref, kind)(folder(kind), load_in_4bit=True).head.weight
    assert torch.equal(head, load_file(folder(kind) / "model.safetensors")["score.weight"])


@needs_bitsandbytes
@KINDS
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_4_bit_model_trains_its_adapter_and_head_and_comes_back(
    kind: str, checkpointing: bool, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"load_in_4bit": True, "double_quantization": True, "gradient_checkpointing": checkpointing}
    model = getattr(ref, kind)(folder(kind), lora=ref.LoraOptions(rank=4), **options).train()
    shake(model)
    ask(model).sum().backward()
    gradients = {name: x.grad for name, x in model.named_parameters() if x.requires_grad}
    assert all(gradient is not None and gradient.ne(0).any() for gradient in gradients.values())
    assert ("head.weight" in gradients) == (kind != "Actor")
    model.eval().save(tmp_path)
    assert torch.equal(ask(getattr(ref, kind).load(tmp_path, **options)), ask(model))


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["RewardModel", "CriticModel"])
def test_a_4_bit_model_without_an_adapter_comes_back_with_its_trained_head(
    kind: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = getattr(ref, kind)(folder(kind), load_in_4bit=True)
    before = ask(model)
    shake(model)
    model.save(tmp_path)
    assert not torch.allclose(before, ask(model))
    assert torch.equal(ask(getattr(ref, kind).load(tmp_path, load_in_4bit=True)), ask(model))


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Gemma 2, whose attention scores are capped."""
    folder = tmp_path_factory.mktemp("capped")
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    config = transformers.Gemma2Config(num_attention_heads=4, num_key_value_heads=2, **sizes)
    transformers.Gemma2ForCausalLM(config).save_pretrained(folder)
    return folder


def test_capped_attention_is_computed_by_what_knows_a_cap(capped: Path, folder: Callable[[str], Path]) -> None:
    assert ref.Actor(capped).model.config._attn_implementation == "eager"
    assert ref.Actor(folder("Actor")).model.config._attn_implementation == "sdpa"


def test_a_kernel_without_a_cap_is_refused_for_capped_attention(capped: Path) -> None:
    with pytest.raises(ValueError, match=r"caps attention scores at 50\.0, which sdpa leaves out"):
        ref.Actor(capped, attn_implementation="sdpa")

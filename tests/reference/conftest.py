"""Tiny seeded random models on disk, and the ragged batch that the model tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import rlhf_reference as ref

ARCHITECTURES = ("llama", "gpt2")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def config(architecture: str) -> transformers.PretrainedConfig:
    """Two layers of 32, 48 words; dropout as GPT-2 has it by default, so that a test can see it off."""
    if architecture == "gpt2":
        return transformers.GPT2Config(
            vocab_size=48, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1
        )
    return transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.1,
        bos_token_id=1,
        eos_token_id=1,
    )


def causal_lm(architecture: str) -> transformers.PreTrainedModel:
    """Weights large enough that every position and every word says something different."""
    torch.manual_seed(20)
    model = transformers.AutoModelForCausalLM.from_config(config(architecture))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_norm else 0.0, 0.3)
    return model


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=("sdpa", "eager"))
def attention(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architecture -> folder of a causal LM."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ARCHITECTURES}
    for name, folder in folders.items():
        causal_lm(name).save_pretrained(folder)
    return folders


@pytest.fixture(scope="session")
def with_head(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`with_head("gpt2", "v_head")`: the folder of that causal LM with a head of that name beside its weights."""
    made: dict[tuple[str, ...], Path] = {}

    def make(architecture: str, *names: str) -> Path:
        names = names or ("score",)
        key = (architecture, *names)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("-".join(key).replace(".", "-"))
            tensors = load_file(checkpoints[architecture] / "model.safetensors")
            generator = torch.Generator().manual_seed(4)
            for name in names:
                tensors[f"{name}.weight"] = torch.randn(1, 32, generator=generator)
            save_file(tensors, made[key] / "model.safetensors", metadata={"format": "pt"})
            config(architecture).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def batch() -> ref.RaggedBatch:
    """Unequal prompts and responses; a prompt of one token, a response of one; pad and EOS ids inside."""
    prompts = ([5, 1, 9, 7], [11], [0, 3, 21, 40, 2])
    responses = ([8, 30, 1], [17, 17, 0, 44, 6], [33])
    return ref.RaggedBatch(*(tuple(torch.tensor(row) for row in rows) for rows in (prompts, responses)))


@pytest.fixture(scope="session")
def logits_alone(checkpoints: dict[str, Path], batch: ref.RaggedBatch) -> Callable[[str], list[list[list[float]]]]:
    """`logits_alone("gpt2")`: for each sequence its logits (L, V) as lists, run alone and unpadded in float64."""

    def run(architecture: str) -> list[list[list[float]]]:
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints[architecture]).double()
        with torch.no_grad():
            return [model(sequence.unsqueeze(0)).logits[0].tolist() for sequence in batch.sequences()]

    return run


@pytest.fixture(scope="session")
def atol(architecture: str) -> float:
    """GPT-2 is float64 throughout; Llama computes its norms and rotary tables in float32 whatever the dtype."""
    return {"gpt2": 1e-12, "llama": 5e-5}[architecture]

"""Gradient checkpointing: layers run again in the backward pass, and nothing else is different."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf_reference as ref
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.oracle.probes import Probe, ProbeStore

INPUT = torch.tensor([[5, 1, 9, 7, 30, 2], [8, 8, 3, 1, 4, 6]])
KINDS = ("Actor", "RewardModel", "CriticModel")
WAYS = {"all weights": {}, "LoRA": {"lora": ref.LoraOptions(rank=4)}}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    return WAYS[request.param]


@pytest.fixture
def make(with_head: Callable[..., Path], checkpoints: dict[str, Path], architecture: str) -> Callable[..., Any]:
    """`make("Actor", **options)`: a model, with LoRA weights that say something."""

    def made(kind: str, **options: Any) -> Any:
        torch.manual_seed(3)
        folder = checkpoints[architecture] if kind == "Actor" else with_head(architecture)
        model = getattr(ref, kind)(folder, **options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0.0, 0.1)
        return model

    return made


def ask(model: Any) -> torch.Tensor:
    return model(INPUT) if isinstance(model, ref.RewardModel) else model(INPUT, 4)


def layers_run(model: Any) -> list[str]:
    """A list that gets an entry for each beginning of the first layer's MLP; a second run need not end."""
    runs: list[str] = []
    mlp = next(module for name, module in model.named_modules() if name.endswith("mlp"))
    mlp.register_forward_pre_hook(lambda *_: runs.append("mlp"))
    return runs


def gradients(model: Any, answer: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (answer * torch.arange(1.0, answer.numel() + 1).reshape(answer.shape)).sum().backward()
    return {name: x.grad for name, x in model.named_parameters() if x.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_run_again_in_the_backward_pass(make: Callable[..., Any], kind: str, way: dict[str, Any]) -> None:
    model = make(kind, gradient_checkpointing=True, **way).train()
    runs = layers_run(model)
    answer = ask(model)
    assert len(runs) == 1
    answer.sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_layers_run_once_unless_asked(make: Callable[..., Any], kind: str) -> None:
    model = make(kind).train()
    runs = layers_run(model)
    ask(model).sum().backward()
    assert len(runs) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_gradients_are_the_same_with_and_without(
    make: Callable[..., Any], kind: str, way: dict[str, Any]
) -> None:
    plain, checkpointed = (make(kind, gradient_checkpointing=wanted, **way).train() for wanted in (False, True))
    answers = [ask(model) for model in (plain, checkpointed)]
    assert torch.equal(*answers)
    right, found = (gradients(model, answer) for model, answer in zip((plain, checkpointed), answers, strict=True))
    assert all(gradient is not None and gradient.ne(0).any() for gradient in right.values())
    torch.testing.assert_close(found, right, atol=0, rtol=0)


def test_train_and_eval_mode_have_the_same_log_probs(make: Callable[..., Any], way: dict[str, Any]) -> None:
    actor = make("Actor", gradient_checkpointing=True, **way)
    with torch.no_grad():
        assert torch.equal(ask(actor.eval()), ask(actor.train()))


def test_generation_in_train_mode_is_that_of_eval_mode(make: Callable[..., Any]) -> None:
    """Checkpointed layers keep no cache, without which each new token would be predicted from itself alone."""
    options = {"max_new_tokens": 5, "stop_token_ids": [], "pad_token_id": 0}
    actor = make("Actor", gradient_checkpointing=True)
    rows = actor.generate(INPUT, torch.ones_like(INPUT), **options)
    actor.train()
    assert torch.equal(actor.generate(INPUT, torch.ones_like(INPUT), **options), rows)


def test_generation_leaves_every_module_in_its_mode(make: Callable[..., Any]) -> None:
    actor = make("Actor").train()
    actor.model.eval()
    actor.generate(INPUT, torch.ones_like(INPUT), max_new_tokens=1, stop_token_ids=[], pad_token_id=0)
    assert actor.training
    assert not any(module.training for module in actor.model.modules())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_adapter_recomputes_where_its_mode_says_so(checkpointing: bool, tmp_path: Path) -> None:
    """Layers are recomputed in train mode alone, in which it has to be by then."""
    adapter = Reference(checkpointing=checkpointing)
    checkpoint = ProbeStore(tmp_path).checkpoint(Probe(), dtype=torch.float32, device="cpu")
    for actor in (adapter.load_actor(checkpoint), adapter.wrap_actor(checkpoint.module(), checkpoint)):
        runs = layers_run(actor)
        ask(actor).sum().backward()
        assert len(runs) == 1 + checkpointing

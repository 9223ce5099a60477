"""What faults forget of a backbone. Each takes a causal LM or a backbone of transformers and changes it in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rlhf_conformance._lazy import torch


def without_window(model: Any) -> None:
    """Every token sees all before it."""
    if getattr(model.config, "sliding_window", None) is not None:
        model.config.sliding_window = 4096


def without_input_biases(model: Any) -> None:
    """Queries, keys and values have no bias."""
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            parameter.data.zero_()


def with_usual_attention(model: Any) -> None:
    """Attention is scaled by the root of the head's width, whatever the config says."""
    for module in model.modules():
        if hasattr(module, "scaling") and hasattr(module, "head_dim"):
            module.scaling = module.head_dim**-0.5


def without_attention_cap(model: Any) -> None:
    """Attention scores are not capped."""
    for module in _capped(model):
        module.attn_logit_softcapping = None


@contextlib.contextmanager
def uncapped(model: Any) -> Iterator[None]:
    """For a while attention scores are not capped."""
    caps = [(module, module.attn_logit_softcapping) for module in _capped(model)]
    without_attention_cap(model)
    try:
        yield
    finally:
        for module, cap in caps:
            module.attn_logit_softcapping = cap


def _capped(model: Any) -> list[Any]:
    return [m for m in model.modules() if getattr(m, "attn_logit_softcapping", None) is not None]


def with_first_shard_alone(model: Any, folder: Any) -> None:
    """What stands in other files than the first is zero."""
    import json
    from pathlib import Path

    index = Path(folder) / "model.safetensors.index.json"
    if index.exists():
        where = json.loads(index.read_text())["weight_map"]
        lost = [name for name, file in where.items() if not file.startswith("model-00001")]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(key.endswith(name) for key in lost):
                    parameter.zero_()

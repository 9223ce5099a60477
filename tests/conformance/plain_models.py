"""The two probe backbones once more, written out in float64 from their checkpoints, with no help of transformers.

Nothing here is shared with the oracle: it is what the oracle is checked against. One sequence, no mask, no cache.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


def hidden_states(folder: Path, tokens: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The last hidden states (L, H) of a sequence, and the checkpoint's weights in float64."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    return {"llama": _llama, "gpt2": _gpt2}[config["model_type"]](config, weights, tokens), weights


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of heads (N, L, D)."""
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -math.inf).softmax(-1) @ v


def heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """(L, N * D) -> (N, L, D)"""
    return x.reshape(len(x), count, -1).transpose(0, 1)


def merged(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1).flatten(1)


def _llama(config: dict, w: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    n, m = config["num_attention_heads"], config["num_key_value_heads"]
    theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return w[f"{name}.weight"] * x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()

    def rotate(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        frequency = theta ** -(torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)

    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        y = norm(x, f"{name}.input_layernorm")
        q, k, v = (y @ w[f"{name}.self_attn.{p}_proj.weight"].T for p in "qkv")
        k, v = (heads(part, m).repeat_interleave(n // m, dim=0) for part in (k, v))
        x = x + merged(attend(rotate(heads(q, n)), rotate(k), v)) @ w[f"{name}.self_attn.o_proj.weight"].T
        y = norm(x, f"{name}.post_attention_layernorm")
        gate, up = (y @ w[f"{name}.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ w[f"{name}.mlp.down_proj.weight"].T
    return norm(x, "model.norm")


def _gpt2(config: dict, w: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], config["layer_norm_epsilon"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: len(tokens)]
    for layer in range(config["n_layer"]):
        name = f"transformer.h.{layer}"
        q, k, v = (
            heads(p, config["n_head"]) for p in linear(norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn").chunk(3, -1)
        )
        x = x + linear(merged(attend(q, k, v)), f"{name}.attn.c_proj")
        y = F.gelu(linear(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"), approximate="tanh")
        x = x + linear(y, f"{name}.mlp.c_proj")
    return norm(x, "transformer.ln_f")

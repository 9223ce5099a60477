"""The probe checkpoint of a failure, written with torch alone. The names in capitals stand above it in the script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CONFIG: dict[str, Any] = {}
GENERATION_CONFIG: dict[str, Any] = {}
SHAPES: dict[str, tuple[int, ...]] = {}
HEAD_NAME: str | None = None
HEAD_SCALE = 1.0
HEAD_BIAS: float | None = None
HIDDEN_SIZE = 0
SEED = 0


def write_checkpoint(folder: Path) -> None:
    """Write config.json and pytorch_model.bin of the tiny random model that the trainer was given into a folder."""
    weights = {name: draw(name, shape) for name, shape in SHAPES.items()}
    if HEAD_NAME is not None:
        weights[f"{HEAD_NAME}.weight"] = (draw("score", (1, HIDDEN_SIZE)) * HEAD_SCALE).bfloat16().float()
    if HEAD_NAME is not None and HEAD_BIAS is not None:
        weights[f"{HEAD_NAME}.bias"] = torch.tensor([HEAD_BIAS])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    if GENERATION_CONFIG:
        (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG) + "\n")
    torch.save(weights, folder / "pytorch_model.bin")


def draw(name: str, shape: tuple[int, ...]) -> Any:
    """The weight called `name`: normal numbers of its own seed, rounded to bfloat16."""
    seed = SEED + sum(ord(letter) * 31**i % 1_000_003 for i, letter in enumerate(name))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if len(shape) == 1:
        weight = 1.0 + 0.2 * noise if name.endswith("weight") else 0.2 * noise
    elif "embed" in name or "wte" in name or "wpe" in name:
        weight = noise
    else:
        weight = 1.25 / HIDDEN_SIZE**0.5 * noise
    return weight.bfloat16().float()

"""The linear head of a reward model or critic on disk: `<head_name>.weight` (1, hidden) beside the backbone, and often
`<head_name>.bias` (1,).

Trainers name it differently: score, value_head, v_head.summary. Loading with the wrong name would leave a
random head, and nothing would look wrong but the curves. So the name is read from the checkpoint, and no head is an
error.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class Head:
    """A linear head of one output: its name in the checkpoint, weight (1, hidden_size), and bias (1,) if it has one."""

    name: str
    weight: Tensor
    bias: Tensor | None = None


class MissingHeadError(ValueError):
    """A checkpoint has no head, not the one that was asked for, or more than one; `found` names those it has."""

    def __init__(self, message: str, found: list[str]) -> None:
        super().__init__(message)
        self.found = found


def find_head(
    folder: str | Path, hidden_size: int, *, backbone_keys: Collection[str] = (), head_name: str | None = None
) -> Head:
    """The head of a checkpoint.

    folder         holds model.safetensors, its sharded form with an index, or head.safetensors beside a LoRA adapter
    backbone_keys  weights that are not a head whatever their shape
    head_name      None: the only weight of shape (1, hidden_size) outside the backbone
    raises         MissingHeadError if there is not exactly one such weight, or none of that name; ValueError if the
                   bias is not of shape (1,); FileNotFoundError if the folder has no safetensors
    """
    files = _files_of_keys(Path(folder))
    others = [key for key in files if key.endswith(".weight") and key not in backbone_keys]
    heads = [key.removesuffix(".weight") for key in others if _shape(files[key], key) == [1, hidden_size]]
    wanted = heads if head_name is None else [name for name in heads if name == head_name]
    if len(wanted) != 1:
        asked = f"the head {head_name!r}" if head_name is not None else "exactly one head"
        found = ", ".join(sorted(heads)) or "none"
        raise MissingHeadError(
            f"{folder} does not hold {asked}, a weight of shape (1, {hidden_size}) outside the backbone; "
            f"found: {found}. Where there is none, init_head=True draws one.",
            heads,
        )
    (name,) = wanted
    bias = f"{name}.bias"
    if bias in files and _shape(files[bias], bias) != [1]:
        raise ValueError(f"{bias} of {folder} has the shape {_shape(files[bias], bias)}; that of a head is [1]")
    weight = _read(files[f"{name}.weight"], f"{name}.weight")
    return Head(name, weight, _read(files[bias], bias) if bias in files else None)


def new_head(hidden_size: int, dtype: torch.dtype) -> Tensor:
    """A random head (1, hidden_size), normal with variance 1 / (hidden_size + 1) (Stiennon et al. 2020)."""
    return torch.randn(1, hidden_size, dtype=dtype) / (hidden_size + 1) ** 0.5


def _files_of_keys(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return {key: folder / name for key, name in json.loads(index.read_text())["weight_map"].items()}
    for file in (folder / "model.safetensors", folder / HEAD_FILE):
        if file.exists():
            with safe_open(file, framework="pt") as tensors:
                return dict.fromkeys(tensors.keys(), file)
    raise FileNotFoundError(f"{folder} holds neither model.safetensors, nor its index, nor {HEAD_FILE}")


def _shape(file: Path, key: str) -> list[int]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.get_slice(key).get_shape())


def _read(file: Path, key: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(key)
        return tensor

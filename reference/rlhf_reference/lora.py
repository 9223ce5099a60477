"""LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024) through peft: attach a new adapter, or a saved one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class LoraOptions:
    """A new adapter: `W x + s B A dropout(x)`, s = alpha / rank, with B = 0 at first.

    target_modules  the layers that get one, by the ends of their names; "all-linear": every linear layer but the output
                    layer
    dropout         probability, in train mode only; a saved adapter keeps it. 0 by default: old and new log-probs
                    must come from the same network
    dora            the weights are `m (W + s B A) / ||W + s B A||`, where the norm is that of each output's weights,
                    and its magnitude m, ||W|| at first, is trained as well; gradients take the norm as a constant
    """

    rank: int = 8
    alpha: int = 16
    target_modules: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    dora: bool = False


def with_lora(model: nn.Module, lora: LoraOptions | str | Path | None) -> nn.Module:
    """The model with a new adapter (LoraOptions), with a saved one (its folder), or as it is (None).

    Only the adapter's weights require a gradient; a saved adapter can be trained on.
    """
    if lora is None:
        return model
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(lora, LoraOptions):
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=targets,
            lora_dropout=lora.dropout,
            use_dora=lora.dora,
        )
        return get_peft_model(model, config)  # type: ignore[no-any-return]
    return PeftModel.from_pretrained(model, lora, is_trainable=True)  # type: ignore[no-any-return]


def save_weights(model: Any, folder: str | Path) -> None:
    """Write a transformers model in its own form, or of a model with LoRA the adapter alone, in peft's form."""
    # The embeddings are never trained here; without the option peft looks for the base model to compare vocabularies.
    # A PeftModel is known by `peft_config`: importing peft takes seconds, for a model that may never have met it.
    options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    model.save_pretrained(str(folder), **options)


def find_saved(folder: str | Path, base: Any = None) -> tuple[Any, str | Path | None]:
    """What `save` left in a folder: (model to load, adapter to put on it or None).

    base    the model under a saved adapter; without it, the path that the adapter was trained on
    raises  FileNotFoundError if the folder holds no model; ValueError if the base of an adapter is not known, as
            when it was trained on a module that came from no path
    """
    folder = Path(folder)
    if not (folder / "config.json").exists() and not (folder / ADAPTER_CONFIG).exists():
        raise FileNotFoundError(f"{folder} holds no saved model: neither config.json nor {ADAPTER_CONFIG}")
    if not (folder / ADAPTER_CONFIG).exists():
        return folder, None
    base = base if base is not None else json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    if not base:
        raise ValueError(f"{folder} holds an adapter and does not say of which model; pass base=")
    return base, folder

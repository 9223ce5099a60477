"""Loading a transformers model, the same way for policy, reward model and critic."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

# transformers renamed the argument in 4.56 and warns about the old name.
DTYPE = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"


def load(
    auto_class: Any,
    path: str | Path,
    *,
    dtype: torch.dtype,
    attn_implementation: str,
    device: torch.device | str | None,
    load_in_4bit: bool = False,
) -> nn.Module:
    """`auto_class.from_pretrained(path)` on `device` (None: the CPU).

    dtype         of the weights, whatever the checkpoint's; with 4-bit weights the dtype that they are computed in
    load_in_4bit  linear layers as NF4 (Dettmers et al. 2023), by bitsandbytes. On the CPU eval and train mode compute
                  the same, so that the ratio is 1 before any step; on CUDA this has not been tried
    raises        ImportError if bitsandbytes is wanted and missing; ValueError if the checkpoint lacks weights that
                  the model has: transformers would draw them at random
    """
    options: dict[str, Any] = {DTYPE: dtype, "attn_implementation": attn_implementation}
    if load_in_4bit:
        options |= {"quantization_config": _nf4(dtype), "device_map": {"": device or "cpu"}}
    model, report = auto_class.from_pretrained(path, output_loading_info=True, **options)
    if report["missing_keys"]:
        raise ValueError(f"the checkpoint {path} lacks weights: {sorted(report['missing_keys'])}")
    if load_in_4bit:
        _without_packing(model)
    return model if load_in_4bit or device is None else model.to(device)  # type: ignore[no-any-return]


def _nf4(dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("load_in_4bit=True needs bitsandbytes, which is not installed: pip install bitsandbytes")
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _without_packing(model: nn.Module) -> None:
    """Keep every layer on the one way to compute that takes part in training, in place.

    On a processor with avx512_bf16 bitsandbytes packs the weights of a layer anew at the first forward in
    eval mode, and takes another kernel from then on. Train mode then has other log-probs, so that the ratio is not 1
    before any step; and a layer whose input has fewer than 64 features cannot be computed at all. The layer asks the
    attribute `support_avx512bf16_for_cpu` first.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def with_checkpointing(model: Any, wanted: bool) -> Any:
    """Gradient checkpointing (Chen et al. 2016), in place: in train mode the layers keep no activations, and the
    backward pass computes them again. Answers and gradients are the same; in eval mode nothing changes.

    Not the reentrant kind: that one drops the gradients of LoRA's weights where the embeddings are frozen, silently.
    """
    if wanted:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def without_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout to 0, in place.

    The loss compares two passes of one network, the ratio of new and old log-probs, the distance of new and old
    values, and dropout would make them differ before any step. Modules keep it as nn.Dropout or as a number of their
    attention.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model

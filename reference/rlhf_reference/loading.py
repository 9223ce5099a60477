"""Loading a transformers model, the same way for policy, reward model and critic."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

# transformers renamed the argument in 4.56 and warns about the old name.
DTYPE = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"


@dataclass(frozen=True)
class LoadOptions:
    """How the weights of a checkpoint are loaded: keyword arguments of `Actor`, `RewardModel` and `CriticModel`.

    dtype                of the weights; "auto": that of the checkpoint. With 4-bit weights, what is computed in
    attn_implementation  "sdpa", "eager" or what else transformers has; None: "eager" where attention scores are capped
                         (Gemma 2), else what transformers takes for the architecture, mostly "sdpa"
    device               None: the CPU
    device_map           instead of `device`: layers to devices, as accelerate takes it ("auto", {"": 0}, ...)
    load_in_4bit         linear layers as NF4 (Dettmers et al. 2023), by bitsandbytes. On the CPU eval and train mode
                         compute the same, so that the ratio is 1 before any step; on CUDA this has not been tried
    double_quantization  of 4-bit weights: their scales are quantized as well
    trust_remote_code    run the Python that lies beside the weights, where transformers does not know the architecture
    raises               ValueError for both a device and a device map, and for double quantization of weights that are
                         not quantized
    """

    dtype: torch.dtype | Literal["auto"] = torch.float32
    attn_implementation: str | None = None
    device: torch.device | str | None = None
    device_map: str | dict[str, Any] | None = None
    load_in_4bit: bool = False
    double_quantization: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.device is not None and self.device_map is not None:
            raise ValueError("device and device_map both say where the weights go; pass one of them")
        if self.double_quantization and not self.load_in_4bit:
            raise ValueError("double_quantization quantizes the scales of 4-bit weights; it needs load_in_4bit=True")


def load(auto_class: Any, path: str | Path, options: LoadOptions) -> Any:
    """`auto_class.from_pretrained(path)`, as the options say.

    raises  ImportError if bitsandbytes is wanted and missing; ValueError if the checkpoint lacks weights that the
            model has (transformers would draw them at random), needs code of its own that is not trusted, or caps
            attention scores where "sdpa" is asked for, which has no cap
    """
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=options.trust_remote_code)
    device_map = options.device_map
    if options.load_in_4bit and device_map is None:
        device_map = {"": options.device or "cpu"}
    keywords: dict[str, Any] = {
        "config": config,
        DTYPE: options.dtype,
        "attn_implementation": _attention(config, options),
        "trust_remote_code": options.trust_remote_code,
        "device_map": device_map,
    }
    if options.load_in_4bit:
        keywords["quantization_config"] = _nf4(config, options)
    model, report = auto_class.from_pretrained(path, output_loading_info=True, **keywords)
    if report["missing_keys"]:
        raise ValueError(f"the checkpoint {path} lacks weights: {sorted(report['missing_keys'])}")
    if options.load_in_4bit:
        _without_packing(model)
    return model if device_map is not None or options.device is None else model.to(options.device)


def _attention(config: Any, options: LoadOptions) -> str | None:
    """Not left to transformers where attention scores are capped: several of its versions drop the cap silently."""
    cap = getattr(config, "attn_logit_softcapping", None)
    if cap is None or options.attn_implementation not in (None, "sdpa"):
        return options.attn_implementation
    if options.attn_implementation == "sdpa":
        raise ValueError(f"the model caps attention scores at {cap}, which sdpa leaves out; ask for eager attention")
    return "eager"


def _nf4(config: Any, options: LoadOptions) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("load_in_4bit=True needs bitsandbytes, which is not installed: pip install bitsandbytes")
    dtype = options.dtype if options.dtype != "auto" else getattr(config, DTYPE) or torch.float32
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=options.double_quantization,
    )


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

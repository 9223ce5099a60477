"""What adapters of LoRA and DoRA make of the weights below them: names, scale, the sum W + s B A, its magnitude."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlhf_conformance._lazy import torch

_LORA = re.compile(
    r"^(?P<layer>.*)\.lora_(?P<kind>embedding_)?(?P<part>[AB]|magnitude_vector)(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?$",
    re.IGNORECASE,
)
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:base_layer|_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|modules_to_save\.[^.]+)\."
)


def is_adapters(name: str) -> bool:
    """Whether a parameter belongs to an adapter that is trained in place of the weights below it."""
    return "lora" in name.lower()


def merged(model: Any, parameters: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors that lie like `parameters(model)`, under names without what peft and wrappers add to them, with LoRA's
    products added to the weights below: W + s B A, or with the magnitudes m of DoRA m (W + s B A) / ||W + s B A||.

    raises  TypeError where the scale s is not found on the model's modules, or the adapter is neither LoRA nor DoRA
    """
    plain: dict[str, Any] = {}
    adapters: dict[tuple[str, str], dict[str, Any]] = {}
    saved = {name.split(".modules_to_save.")[0] for name in tensors if ".modules_to_save." in name}
    for name, tensor in tensors.items():
        part = _LORA.match(name)
        if part is not None:
            key = part["layer"], part["adapter"] or ""
            adapters.setdefault(key, {})[part["part"].upper()] = (name, tensor, bool(part["kind"]))
        elif is_adapters(name):
            raise TypeError(
                f"{name} is no matrix A or B of LoRA and no magnitude of DoRA: say what it does to the weights of the "
                "checkpoint in Adapter.checkpoint_weights"
            )
        elif ".original_module." not in name or name.split(".original_module.")[0] not in saved:
            plain[_WRAPPERS.sub("", name)] = tensor
    if adapters:
        layers = _layers(model)
        for (layer, adapter), parts in adapters.items():
            magnitude = parts.pop("MAGNITUDE_VECTOR", None)
            target = _WRAPPERS.sub("", f"{layer}.weight")
            if set(parts) != {"A", "B"} or target not in plain:
                raise TypeError(
                    f"{layer}: parameters() names no weight below LoRA's A and B, or only one of them; give "
                    "all of them, or say what they do in Adapter.checkpoint_weights"
                )
            (name, a, embeds), (_, b, _) = parts["A"], parts["B"]
            owner = layers.get(id(parameters[name]))
            scale = _scale(owner, adapter, layer)
            if not _in_use(owner, adapter):
                continue
            transposed = embeds or bool(getattr(owner, "fan_in_fan_out", False))  # stored (in, out)
            weight = (plain[target].T if transposed else plain[target]) + scale * (b @ a)
            if magnitude is not None:
                weight = decomposed(weight, magnitude[1])
            plain[target] = weight.T if transposed else weight
    return plain


def decomposed(weight: Any, magnitude: Any) -> Any:
    """DoRA: m V / ||V||, the norm of each row of V a constant to the gradient; V (out, in), m (out,)."""
    return (magnitude / weight.detach().norm(dim=1))[:, None] * weight


def _layers(model: Any) -> dict[int, Any]:
    """The module that scales LoRA's product, by the identity of each parameter in it."""
    modules = [m for root in _roots(model, DEEPEST) for m in root.modules()]
    scaling = [m for m in modules if hasattr(m, "scaling") or (hasattr(m, "alpha") and hasattr(m, "rank"))]
    return {id(p): m for m in scaling for n, p in m.named_parameters() if is_adapters(n)}


DEEPEST = 3
"""A trainer holds a model, which may hold a module."""


def _roots(holder: Any, depth: int) -> list[Any]:
    """The modules that an object is, or holds, or that what it holds does."""
    if isinstance(holder, torch.nn.Module):
        return [holder]
    held = list(getattr(holder, "__dict__", {}).values()) if depth else []
    return [root for one in held for root in _roots(one, depth - 1)]


def _scale(layer: Any, adapter: str, name: str) -> float:
    """The scale s of a layer's product."""
    scaling = getattr(layer, "scaling", None)
    if isinstance(scaling, Mapping):
        scaling = scaling.get(adapter)
    elif scaling is None and layer is not None:
        scaling = layer.alpha / layer.rank
    if scaling is None:
        raise TypeError(
            f"no scale of LoRA is found for {name}: say in Adapter.checkpoint_weights what its weight becomes"
        )
    return float(scaling)


def _in_use(layer: Any, adapter: str) -> bool:
    active = getattr(layer, "active_adapters", None)
    return not isinstance(active, list | tuple) or not adapter or adapter in active

"""What adapters of LoRA make of the weights below them: names, scale, and the sum W + s B A."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlhf_conformance._lazy import torch

_LORA = re.compile(
    r"^(?P<layer>.*)\.lora_(?P<kind>embedding_)?(?P<half>[AB])(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?$",
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
    products added to the weights below: W + s B A.

    raises  TypeError where the scale s is not found on the model's modules, or the adapter is no plain LoRA
    """
    plain: dict[str, Any] = {}
    halves: dict[tuple[str, str], dict[str, Any]] = {}
    saved = {name.split(".modules_to_save.")[0] for name in tensors if ".modules_to_save." in name}
    for name, tensor in tensors.items():
        half = _LORA.match(name)
        if half is not None:
            adapter = half["adapter"] or ""
            halves.setdefault((half["layer"], adapter), {})[half["half"].upper()] = (name, tensor, bool(half["kind"]))
        elif is_adapters(name):
            raise TypeError(
                f"{name} is no matrix A or B of LoRA: say what it does to the weights of the checkpoint in "
                "Adapter.checkpoint_weights"
            )
        elif ".original_module." not in name or name.split(".original_module.")[0] not in saved:
            plain[_WRAPPERS.sub("", name)] = tensor
    if halves:
        layers = _layers(model)
        for (layer, adapter), pair in halves.items():
            target = _WRAPPERS.sub("", f"{layer}.weight")
            if set(pair) != {"A", "B"} or target not in plain:
                raise TypeError(
                    f"{layer}: parameters() names no weight below LoRA's A and B, or only one of them; give "
                    "all of them, or say what they do in Adapter.checkpoint_weights"
                )
            (name, a, embeds), (_, b, _) = pair["A"], pair["B"]
            scale, transposed = _scale(layers.get(id(parameters[name])), adapter, layer)
            change = scale * (b @ a)
            plain[target] = plain[target] + (change.T if transposed or embeds else change)
    return plain


def _layers(model: Any) -> dict[int, Any]:
    """The module that scales LoRA's product, by the identity of each parameter in it."""
    roots = [model] if isinstance(model, torch.nn.Module) else list(getattr(model, "__dict__", {}).values())
    modules = [m for root in roots if isinstance(root, torch.nn.Module) for m in root.modules()]
    scaling = [m for m in modules if hasattr(m, "scaling") or (hasattr(m, "alpha") and hasattr(m, "rank"))]
    return {id(p): m for m in scaling for n, p in m.named_parameters() if is_adapters(n)}


def _scale(layer: Any, adapter: str, name: str) -> tuple[float, bool]:
    """The scale s of a layer's product, 0 while the adapter is not in use; and whether its weight is (in, out)."""
    scaling = getattr(layer, "scaling", None)
    if isinstance(scaling, Mapping):
        scaling = scaling.get(adapter)
    elif scaling is None and layer is not None:
        scaling = layer.alpha / layer.rank
    if scaling is None:
        raise TypeError(
            f"no scale of LoRA is found for {name}: say in Adapter.checkpoint_weights what its weight becomes"
        )
    active = getattr(layer, "active_adapters", None)
    used = not isinstance(active, list | tuple) or not adapter or adapter in active
    return (float(scaling) if used else 0.0), bool(getattr(layer, "fan_in_fan_out", False))

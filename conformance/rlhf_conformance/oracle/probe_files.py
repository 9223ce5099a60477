"""What the file of a probe holds, without transformers: its config, and the names and shapes of its weights."""

from __future__ import annotations

from typing import Any

from rlhf_conformance.oracle.probes import CONFIGS, HIDDEN_SIZE, VOCAB_SIZE, Probe, class_of, options_of

Shapes = dict[str, tuple[int, ...]]


def config(probe: Probe) -> dict[str, Any]:
    """The probe's `config.json`, without what transformers adds of its own version."""
    found: dict[str, Any] = {"model_type": probe.architecture, "architectures": [class_of(probe)]}
    found |= options_of(probe)
    if probe.on_disk == "bfloat16":
        found["torch_dtype"] = "bfloat16"
    if probe.head_name is not None:
        found |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "mean": probe.mean, "std": probe.std}
    return found


def shapes(probe: Probe) -> Shapes:
    """The names and the shapes of the probe's weights, its scalar head left out."""
    sizes = CONFIGS[probe.architecture]
    found = {"gpt2": _gpt2_shapes, "phi": _phi_shapes}.get(probe.architecture, _llama_shapes)(sizes)
    if probe.architecture == "qwen2":
        keys = found["model.layers.0.self_attn.k_proj.weight"][0]
        for layer in range(sizes["num_hidden_layers"]):
            for part, wide in (("q", HIDDEN_SIZE), ("k", keys), ("v", keys)):
                found[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = (wide,)
    if probe.architecture in ("gemma2", "gemma3_text"):
        for layer in range(sizes["num_hidden_layers"]):
            for part in ("pre", "post"):
                found[f"model.layers.{layer}.{part}_feedforward_layernorm.weight"] = (HIDDEN_SIZE,)
            for part in ("q", "k") if probe.architecture == "gemma3_text" else ():
                found[f"model.layers.{layer}.self_attn.{part}_norm.weight"] = (sizes["head_dim"],)
    if probe.head_name is None and not probe.is_tied:
        found["lm_head.weight"] = (VOCAB_SIZE, HIDDEN_SIZE)
    if probe.head_name is None and probe.architecture == "phi":
        found["lm_head.bias"] = (VOCAB_SIZE,)
    return found


def _llama_shapes(sizes: dict[str, Any]) -> Shapes:
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = hidden * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
    found: Shapes = {"model.embed_tokens.weight": (sizes["vocab_size"], hidden)}
    for layer in range(sizes["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        found |= {
            f"{name}.input_layernorm.weight": (hidden,),
            f"{name}.self_attn.q_proj.weight": (hidden, hidden),
            f"{name}.self_attn.k_proj.weight": (keys, hidden),
            f"{name}.self_attn.v_proj.weight": (keys, hidden),
            f"{name}.self_attn.o_proj.weight": (hidden, hidden),
            f"{name}.post_attention_layernorm.weight": (hidden,),
            f"{name}.mlp.gate_proj.weight": (inner, hidden),
            f"{name}.mlp.up_proj.weight": (inner, hidden),
            f"{name}.mlp.down_proj.weight": (hidden, inner),
        }
    return {**found, "model.norm.weight": (hidden,)}


def _phi_shapes(sizes: dict[str, Any]) -> Shapes:
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    found: Shapes = {"model.embed_tokens.weight": (sizes["vocab_size"], hidden)}
    linear = [(f"self_attn.{part}", hidden, hidden) for part in ("q_proj", "k_proj", "v_proj", "dense")]
    linear += [("mlp.fc1", inner, hidden), ("mlp.fc2", hidden, inner)]
    for layer in range(sizes["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        found |= {f"{name}.input_layernorm.weight": (hidden,), f"{name}.input_layernorm.bias": (hidden,)}
        for part, tall, wide in linear:
            found |= {f"{name}.{part}.weight": (tall, wide), f"{name}.{part}.bias": (tall,)}
    return {**found, "model.final_layernorm.weight": (hidden,), "model.final_layernorm.bias": (hidden,)}


def _gpt2_shapes(sizes: dict[str, Any]) -> Shapes:
    hidden = sizes["n_embd"]
    found: Shapes = {
        "transformer.wte.weight": (sizes["vocab_size"], hidden),
        "transformer.wpe.weight": (sizes["n_positions"], hidden),
    }
    for layer in range(sizes["n_layer"]):
        name = f"transformer.h.{layer}"
        for part in ("ln_1", "ln_2"):
            found |= {f"{name}.{part}.weight": (hidden,), f"{name}.{part}.bias": (hidden,)}
        for part, wide, tall in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden),
            ("mlp.c_proj", 4 * hidden, hidden),
        ):
            found |= {f"{name}.{part}.weight": (wide, tall), f"{name}.{part}.bias": (tall,)}
    return {**found, "transformer.ln_f.weight": (hidden,), "transformer.ln_f.bias": (hidden,)}

"""Probe checkpoints: tiny, random, seeded models on disk, which every adapter loads as it would load a real one.

Two backbones, because they hide different bugs: Llama (rotary positions, grouped keys) sees only relative positions,
GPT-2 (learned positions) sees absolute ones. Weights are drawn once from a seed, large enough that every output
differs, and rounded to bfloat16, so that half-precision loading is exact. Nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_conformance._lazy import torch, transformers

VOCAB_SIZE = 48
HEAD_BIAS = 0.75
MAX_POSITIONS = 96
HIDDEN_SIZE = 32
SEED = 20240607

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 2,
    },
    "gpt2": {
        "vocab_size": VOCAB_SIZE,
        "n_embd": HIDDEN_SIZE,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": MAX_POSITIONS,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 2,
    },
}
_LLAMA = CONFIGS["llama"]
CONFIGS |= {
    "qwen2": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 3},
    "gemma3_text": {
        **_LLAMA,
        "head_dim": 8,
        "query_pre_attn_scalar": 40,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": None,
        "tie_word_embeddings": True,
    },
    "granite": {
        **_LLAMA,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.5,
    },
    "phi": {
        **{key: value for key, value in _LLAMA.items() if key not in ("rms_norm_eps", "num_key_value_heads")},
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.5,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
    "gemma2": {
        **_LLAMA,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["full_attention", "full_attention"],
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 2.0,
        "tie_word_embeddings": True,
    },
}
DROPOUT = {"llama": {"attention_dropout": 0.5}, "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}}
ON_DISK = ("float32", "bfloat16", "shards")
GENERATION_CONFIGS: dict[str, dict[str, Any]] = {
    "neutral": {"do_sample": False},
    "penalties": {"do_sample": False, "repetition_penalty": 8.0, "no_repeat_ngram_size": 1},
    "sampling": {"do_sample": True, "temperature": 20.0, "top_k": 0, "top_p": 0.99},
    "cuts": {"do_sample": True, "temperature": 50.0, "top_k": 20, "typical_p": 0.9},
    "lengths": {"do_sample": False, "min_new_tokens": 4, "max_new_tokens": 1},
    "words": {
        "do_sample": False,
        "suppress_tokens": list(range(2, VOCAB_SIZE, 2)),
        "bad_words_ids": [[token] for token in range(3, VOCAB_SIZE, 4)],
    },
    "beams": {"do_sample": False, "num_beams": 4, "length_penalty": -2.0},
}
"""What generation_config.json says beside the ids, by name."""
_CLASS_PREFIX = {"gpt2": "GPT2", "gemma3_text": "Gemma3"}


@dataclass(frozen=True)
class Probe:
    """Which probe checkpoint: everything that is written on disk follows from this and the seed.

    head_name     None for a causal language model; the name of the scalar head otherwise
    pad_is_eos    pad and EOS share an id, as in many checkpoints; weights do not depend on it
    dropout       the config asks for dropout (which is off in eval mode)
    head_scale    the head's weights are multiplied by this: large rewards
    head_bias     the head has a bias, `HEAD_BIAS`
    mean, std     written to the config for normalizing trainers
    headless      the scalar head is left out of the file: a checkpoint that must be refused
    generation    which of `GENERATION_CONFIGS` stands in generation_config.json
    eos_is_zero   EOS and BOS are id 0, the config lists a second EOS, and the pad id is the last of the vocabulary
    new_head      the trainer is asked to draw a head, which the file lacks
    tied          the output layer is the input embedding, and is not in the file
    on_disk       "float32", "bfloat16" (of weights and config), or "shards" (float32 in several files)
    """

    architecture: str = "llama"
    head_name: str | None = None
    pad_is_eos: bool = False
    dropout: bool = False
    head_scale: float = 1.0
    head_bias: bool = False
    mean: float = 0.0
    std: float = 1.0
    headless: bool = False
    generation: str = "neutral"
    eos_is_zero: bool = False
    new_head: bool = False
    tied: bool = False
    on_disk: str = "float32"

    @property
    def is_tied(self) -> bool:
        return self.tied or bool(CONFIGS[self.architecture]["tie_word_embeddings"])

    @property
    def eos_token_id(self) -> int:
        return 0 if self.eos_is_zero else 1

    @property
    def pad_token_id(self) -> int:
        if self.pad_is_eos:
            return self.eos_token_id
        return VOCAB_SIZE - 1 if self.eos_is_zero else 0

    @property
    def ordinary(self) -> range:
        """The token ids that are neither pad nor EOS, whichever of its kind the probe is."""
        return range(2, VOCAB_SIZE - 1 if self.eos_is_zero else VOCAB_SIZE)

    @property
    def folder(self) -> str:
        """A name for its folder that says what is in it."""
        default = asdict(Probe())
        changed = {key: value for key, value in asdict(self).items() if value != default[key] or key == "architecture"}
        return "-".join(str(value) if key == "architecture" else f"{key}={value}" for key, value in changed.items())


@dataclass(frozen=True)
class Checkpoint:
    """What an adapter is asked to load.

    path            folder with config.json and model.safetensors in float32 (values exact in bfloat16); a causal LM,
                    or a backbone with a head `<head_name>.weight` of shape (1, hidden)
    head_name       None for a causal LM
    head_bias       whether the head has a bias, `<head_name>.bias` of shape (1,)
    dtype, device   what to load it in and on
    temperature     for scoring actions
    normalize       whether rewards or values are to be normalized by `mean` and `std` (also in the config, under
                    these names)
    new_head        the file has no head, and a new one is asked for
    """

    path: str
    architecture: str
    head_name: str | None
    dtype: torch.dtype
    device: str
    pad_token_id: int
    eos_token_id: int
    temperature: float = 1.0
    normalize: bool = False
    mean: float = 0.0
    std: float = 1.0
    new_head: bool = False
    head_bias: bool = False

    def module(self) -> Any:
        """The checkpoint as a fresh module of transformers, for trainers that are handed one.

        A causal LM, or a sequence classifier with one label whose `score` holds the head, in eval mode. Raises
        ValueError where the checkpoint lacks the head.
        """
        options = {**in_dtype(self.dtype), **attention_of(self.architecture)}
        if self.head_name is None:
            model = transformers.AutoModelForCausalLM.from_pretrained(self.path, **options)
        else:
            model, found = transformers.AutoModelForSequenceClassification.from_pretrained(
                self.path,
                num_labels=1,
                key_mapping={rf"^{self.head_name}\.": "score."},
                output_loading_info=True,
                **options,
            )
            if found["missing_keys"]:
                raise ValueError(f"{self.path} lacks {', '.join(sorted(found['missing_keys']))}")
            if self.head_bias:  # the layer of a sequence classifier has none
                model.score.bias = torch.nn.Parameter(self._read(f"{self.head_name}.bias").to(model.score.weight))
        return model.to(self.device).eval()

    def _read(self, name: str) -> torch.Tensor:
        return read_weights(Path(self.path))[name]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What the files of a checkpoint hold, by name."""
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The option of `from_pretrained` for the dtype of the weights, which transformers renamed in 4.56."""
    major, minor = transformers.__version__.split(".")[:2]
    return {"dtype" if (int(major), int(minor)) >= (4, 56) else "torch_dtype": dtype}


def attention_of(architecture: str) -> dict[str, str]:
    """The option of `from_pretrained` for the attention of a backbone: the eager one where scores are capped. There
    transformers 5.15 takes the kernel of torch by itself, which drops the cap without a word."""
    return {"attn_implementation": "eager"} if CONFIGS[architecture].get("attn_logit_softcapping") else {}


def class_of(probe: Probe) -> str:
    """The class of transformers that a probe is saved as."""
    kind = "ForCausalLM" if probe.head_name is None else "ForSequenceClassification"
    prefix = _CLASS_PREFIX.get(probe.architecture, probe.architecture.capitalize())
    return prefix + ("LMHeadModel" if (kind, prefix) == ("ForCausalLM", "GPT2") else kind)


def generation_config_of(probe: Probe) -> dict[str, Any]:
    """What `generation_config.json` of a causal LM holds."""
    ids = {"eos_token_id": _eos_of(probe), "pad_token_id": probe.pad_token_id}
    return {**ids, **GENERATION_CONFIGS[probe.generation]}


def options_of(probe: Probe) -> dict[str, Any]:
    """What the config of a probe says of its sizes, its dropout and its special tokens."""
    options = {**CONFIGS[probe.architecture], **(DROPOUT[probe.architecture] if probe.dropout else {})}
    options["tie_word_embeddings"] = probe.is_tied
    options |= {"pad_token_id": probe.pad_token_id, "eos_token_id": _eos_of(probe)}
    return options | ({"bos_token_id": 0} if probe.eos_is_zero else {})


def _eos_of(probe: Probe) -> int | list[int]:
    """What a config says of EOS: one id, or a list of them."""
    return [probe.eos_token_id, 3] if probe.eos_is_zero else probe.eos_token_id


def config_of(probe: Probe) -> Any:
    """The transformers config of a probe."""
    config = transformers.AutoConfig.for_model(probe.architecture, **options_of(probe), architectures=[class_of(probe)])
    if probe.head_name is not None:
        config.num_labels = 1
        config.mean, config.std = probe.mean, probe.std
    return config


def build(probe: Probe, folder: Path) -> None:
    """Write the checkpoint into `folder`."""
    from safetensors.torch import save_file

    weights = dict(_weights(probe.architecture))
    if probe.is_tied or probe.head_name is not None:
        del weights["lm_head.weight"]
    if probe.head_name is not None:
        weights.pop("lm_head.bias", None)
    if probe.head_name is not None and not probe.headless:
        scaled = _draw("score", torch.empty(1, HIDDEN_SIZE)) * probe.head_scale
        weights[f"{probe.head_name}.weight"] = scaled.bfloat16().float()
        if probe.head_bias:
            weights[f"{probe.head_name}.bias"] = torch.tensor([HEAD_BIAS])
    config = config_of(probe)
    if probe.on_disk == "bfloat16":
        config.dtype = "bfloat16"
        weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
    config.save_pretrained(folder)
    if probe.on_disk == "shards":
        _write_shards(weights, folder)
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if probe.head_name is None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config_of(probe)))


@functools.cache
def _weights(architecture: str) -> Mapping[str, torch.Tensor]:
    """The weights of a causal LM by name; float32. They depend on nothing else of a probe."""
    with torch.device("meta"):  # only the names and the shapes
        skeleton = transformers.AutoModelForCausalLM.from_config(config_of(Probe(architecture)))
    return {name: _draw(name, tensor) for name, tensor in sorted(skeleton.state_dict().items())}


def module_of(probe: Probe, folder: Path) -> Any:
    """What `build` wrote, as a module of transformers in float32 and in eval mode: what `Checkpoint.module` gives, in
    less than half of the time.

    Raises KeyError where the file lacks the head, RuntimeError where it lacks any other weight or holds one too many.
    """
    causal = probe.head_name is None
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    options = {**in_dtype(torch.float32), **attention_of(probe.architecture)}
    module = kind.from_config(transformers.AutoConfig.from_pretrained(folder), **options)
    weights = read_weights(folder)
    if probe.head_name is not None:
        weights["score.weight"] = weights.pop(f"{probe.head_name}.weight")
        if probe.head_bias:  # the layer of a sequence classifier has none
            module.score.bias = torch.nn.Parameter(torch.empty(1))
            weights["score.bias"] = weights.pop(f"{probe.head_name}.bias")
    elif probe.is_tied:
        weights["lm_head.weight"] = module.get_output_embeddings().weight
    module.load_state_dict(weights)
    return module.eval()


def _write_shards(weights: dict[str, Any], folder: Path, count: int = 3) -> None:
    """As transformers writes a large model: one file after the other, and an index of which weight is where."""
    from safetensors.torch import save_file

    names = list(weights)
    where: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        own = names[number::count]
        save_file({name: weights[name] for name in own}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(own, file)
    size = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _draw(name: str, like: torch.Tensor) -> torch.Tensor:
    """The weight called `name`: normal, with a spread that keeps activations near 1 and attention sharp."""
    generator = torch.Generator().manual_seed(SEED + sum(ord(c) * 31**i % 1_000_003 for i, c in enumerate(name)))
    noise = torch.randn(like.shape, generator=generator)
    if like.ndim == 1:
        return (1.0 + 0.2 * noise if name.endswith("weight") else 0.2 * noise).bfloat16().float()
    spread = 1.0 if ("embed" in name or "wte" in name or "wpe" in name) else 1.25 / HIDDEN_SIZE**0.5
    return (spread * noise).bfloat16().float()


@dataclass(frozen=True)
class ProbeStore:
    """The folder in which the probes of a run lie; each is made once, by whichever process needs it first."""

    root: Path

    def path(self, probe: Probe) -> Path:
        """The folder of a probe, built if it is not there yet (safe with several processes)."""
        target = self.root / probe.folder
        if not target.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=self.root))
            build(probe, draft)
            with contextlib.suppress(OSError):  # another process was faster: its copy is the same
                os.rename(draft, target)
        return target

    def checkpoint(
        self, probe: Probe, *, dtype: torch.dtype, device: str, temperature: float = 1.0, normalize: bool = False
    ) -> Checkpoint:
        """What the adapter is handed for a probe."""
        return Checkpoint(
            path=str(self.path(probe)),
            architecture=probe.architecture,
            head_name=probe.head_name,
            dtype=dtype,
            device=device,
            pad_token_id=probe.pad_token_id,
            eos_token_id=probe.eos_token_id,
            temperature=temperature,
            normalize=normalize,
            mean=probe.mean,
            std=probe.std,
            new_head=probe.new_head,
            head_bias=probe.head_bias,
        )

"""Stand-ins for what OpenRLHF wants of a CUDA machine and its model layer does not compute with. All are here.

- `flash_attn_2_cuda`, the CUDA extension of flash-attn: an empty module, so that `flash_attn` can be imported. What
  pads and unpads (`flash_attn.bert_padding`) is flash-attn's own, pure torch; attention is transformers' sdpa or eager.
- `torch.compile` of `compute_entropy`: the function as written, since compiling takes half a minute in each process.
- the barrier at the end of `DeepspeedStrategy.save_model`: nothing, since there is one process and no process group.
- the tokenizer that `save_model` saves beside the weights: one that saves nothing.

Import this module before anything of OpenRLHF. deepspeed and peft are real; the model layer imports no ray and no vllm.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import peft  # noqa: F401  (before the stand-in, so that no probe for flash-attn meets it)
import torch
import transformers  # noqa: F401

if importlib.util.find_spec("flash_attn_2_cuda") is None:
    sys.modules["flash_attn_2_cuda"] = ModuleType("flash_attn_2_cuda")
torch.compiler.set_stance("force_eager")

from openrlhf.models import PolicyLoss  # noqa: E402

TAKES_COUNTS = "batch_num_tokens" in inspect.signature(PolicyLoss.forward).parameters
"""Whether losses can be divided by counts of the whole step: since 0.10.3."""


def counts(options: Any) -> dict[str, Any]:
    """The counts of the whole step, as the trainers hand them to the losses."""
    both = {"batch_num_tokens": options.global_count, "global_batch_size": options.global_count}
    return both if TAKES_COUNTS else {}


def save_model(model: Any, folder: Path) -> None:
    """OpenRLHF's own `DeepspeedStrategy.save_model` at ZeRO stage 2, in one process: weights and config in `folder`."""
    from openrlhf.utils.deepspeed import deepspeed as strategies

    strategies.torch_dist_barrier_and_cuda_sync = lambda: None
    ds = {"param_dtype": "bf16", "zero_stage": 2, "tensor_parallel_size": 1}
    flat = {**ds, "ds_tensor_parallel_size": 1}  # where they stood before 0.10.2
    args = SimpleNamespace(**flat, ds=SimpleNamespace(**ds), train=SimpleNamespace())
    strategy = strategies.DeepspeedStrategy(zero_stage=2, args=args)
    strategy.save_model(model, SimpleNamespace(save_pretrained=lambda folder: None), str(folder))

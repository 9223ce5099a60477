"""Token log-probs and entropies from logits, chunk by chunk.

The logits of a language model are the largest tensor of a training step: 8 sequences of 4096 tokens over 150 000
words are 20 GB in fp32. `logits.float().log_softmax(-1)` makes a second one, and autograd keeps it until the
backward pass. Here a chunk of `chunk_size` positions is upcast at a time; what is kept for the backward pass is the
logits themselves, which exist anyway, and the labels. The backward pass computes each chunk's softmax again and
writes it into the gradient, the one tensor of the logits' size that there must be. Plain slices under autograd would
not do: the backward of every slice allocates a whole gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_log_probs(
    logits: Tensor, labels: Tensor, *, temperature: float = 1.0, chunk_size: int = 1024, ignore_index: int = -100
) -> Tensor:
    """The log-prob of each label: `log softmax(logits / temperature)[label]`, in nats.

    logits      (..., V), any floating dtype, any strides; upcast to fp32 chunk by chunk (float64 stays float64)
    labels      (...), integer; the caller has shifted them, so that `labels[t]` is the token that `logits[t]`
                predicts
    returns     (...), fp32 (float64 for float64 logits), never above 0; exactly 0.0, with zero gradient, at
                `ignore_index`
    raises      ValueError if the shapes do not fit or the temperature is not positive; a label outside the
                vocabulary is the gather's error

    Working memory: `chunk_size * V` numbers. The temperature is that of sampling: it belongs to the policy (Ziegler
    et al. 2019, section 2), so old, new and reference log-probs all take the same one.
    """
    _check(logits, labels, temperature)
    log_probs: Tensor = _TokenLogProbs.apply(logits, labels, temperature, chunk_size, ignore_index)  # type: ignore[no-untyped-call]
    return log_probs


def token_entropy(logits: Tensor, *, temperature: float = 1.0, chunk_size: int = 1024) -> Tensor:
    """The entropy of `softmax(logits / temperature)` at each position, `-sum p log p`, in nats.

    logits      (..., V), any floating dtype; -inf (a word that is ruled out) counts 0
    returns     (...), fp32 (float64 for float64 logits)
    raises      ValueError if the temperature is not positive

    The same temperature as the log-probs: it is the entropy of the policy that is sampled from.
    """
    _check(logits, None, temperature)
    entropy: Tensor = _TokenEntropy.apply(logits, temperature, chunk_size)  # type: ignore[no-untyped-call]
    return entropy


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, temperature: float, chunk_size: int, ignore_index: int
    ) -> Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.options = temperature, chunk_size, ignore_index
        result = torch.zeros(labels.shape, dtype=_at_least_float32(logits), device=logits.device)
        for where in _chunks(labels.shape, chunk_size, logits.device):
            log_softmax = _log_softmax(logits[where], temperature)
            label, kept = _kept(labels[where], ignore_index)
            result[where] = log_softmax.gather(-1, label).squeeze(-1).where(kept, 0.0)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, labels = ctx.saved_tensors
        temperature, chunk_size, ignore_index = ctx.options
        grad_logits = torch.empty_like(logits)
        for where in _chunks(labels.shape, chunk_size, logits.device):
            softmax = _log_softmax(logits[where], temperature).exp_()
            label, kept = _kept(labels[where], ignore_index)
            scale = grad[where].where(kept, 0.0).unsqueeze(-1) / temperature
            # d log p[label] / d z = (onehot - p) / T; an ignored row is selected to be 0, whatever its logits hold
            chunk = softmax.mul_(-scale).scatter_add_(-1, label, scale)
            grad_logits[where] = chunk.where(kept.unsqueeze(-1), 0.0).to(logits.dtype)
        return grad_logits, None, None, None, None


class _TokenEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float, chunk_size: int) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.options = temperature, chunk_size
        result = torch.empty(logits.shape[:-1], dtype=_at_least_float32(logits), device=logits.device)
        for where in _chunks(result.shape, chunk_size, logits.device):
            result[where] = _entropy(_log_softmax(logits[where], temperature))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (logits,) = ctx.saved_tensors
        temperature, chunk_size = ctx.options
        grad_logits = torch.empty_like(logits)
        for where in _chunks(grad.shape, chunk_size, logits.device):
            log_p = _log_softmax(logits[where], temperature)
            scale = grad[where].unsqueeze(-1) / temperature
            # dH / dz = -p (log p + H) / T, and 0 in the limit p = 0
            chunk = -log_p.exp() * (log_p + _entropy(log_p).unsqueeze(-1)) * scale
            grad_logits[where] = chunk.where(log_p > -torch.inf, 0.0).to(logits.dtype)
        return grad_logits, None, None


def _log_softmax(chunk: Tensor, temperature: float) -> Tensor:
    """(n, V) logits to log softmax(z / T). The maximum is taken off first, so that no division overflows."""
    z = chunk.to(_at_least_float32(chunk))
    return ((z - z.amax(-1, keepdim=True)) / temperature).log_softmax(-1)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).where(log_p > -torch.inf, 0.0).sum(-1)


def _kept(label: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels (n, 1) that can be gathered, and (n,) where they count."""
    kept = label != ignore_index
    return label.where(kept, 0).long().unsqueeze(-1), kept


def _chunks(shape: torch.Size, chunk_size: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Index tuples that visit every position of `shape` once, `chunk_size` at a time, the last chunk shorter.

    Indices and not slices of a flattened view: flattening `logits[:, :-1]` would copy all of it.
    """
    for flat in torch.arange(shape.numel(), device=device).split(chunk_size):
        yield torch.unravel_index(flat, shape)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check(logits: Tensor, labels: Tensor | None, temperature: float) -> None:
    if logits.dim() < 2:
        raise ValueError(f"logits are (..., V) with at least one position axis, not {tuple(logits.shape)}")
    if labels is not None and labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; it must be positive")

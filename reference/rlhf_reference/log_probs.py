"""Token log-probs and entropies from logits, chunk by chunk.

The logits of a language model are the largest tensor of a training step: 8 sequences of 4096 tokens over 150 000
words are 20 GB in fp32. `logits.float().log_softmax(-1)` makes a second one, and autograd keeps it until the
backward pass. Here a few positions are upcast at a time, so few that they stay in the cache; what is kept for the
backward pass is the logits themselves, which exist anyway, and the labels. The backward pass computes each chunk's
softmax again and writes it into the gradient, the one tensor of the logits' size that there must be. Plain slices
under autograd would not do: the backward of every slice allocates a whole gradient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_log_probs(
    logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """The log-prob of each label: `log softmax(logits / temperature)[label]`, in nats.

    logits      (..., V), any floating dtype, any strides; upcast to fp32 chunk by chunk (float64 stays float64)
    labels      (...), integer; the caller has shifted them, so that `labels[t]` is the token that `logits[t]`
                predicts
    chunk_bytes size of a chunk after the upcast, at least one position; None: 2 MiB for each thread on the CPU, which
                stay in the cache, 64 MiB elsewhere, where smaller chunks take longer to launch than to compute
    returns     (...), fp32 (float64 for float64 logits), never above 0; exactly 0.0, with zero gradient, at
                `ignore_index`
    raises      ValueError if the shapes do not fit or the temperature is not positive; a label outside the
                vocabulary is the gather's error

    Working memory: three chunks, whatever the strides. The temperature is that of sampling: it belongs to the policy
    (Ziegler et al. 2019, section 2), so old, new and reference log-probs all take the same one.
    """
    _check(logits, labels, temperature)
    log_probs: Tensor = _TokenLogProbs.apply(logits, labels, temperature, chunk_bytes, ignore_index)  # type: ignore[no-untyped-call]
    return log_probs


def token_entropy(logits: Tensor, *, temperature: float = 1.0, chunk_bytes: int | None = None) -> Tensor:
    """The entropy of `softmax(logits / temperature)` at each position, `-sum p log p`, in nats.

    logits      (..., V), any floating dtype, any strides; -inf (a word that is ruled out) counts 0
    chunk_bytes as in `token_log_probs`
    returns     (...), fp32 (float64 for float64 logits)
    raises      ValueError if the temperature is not positive

    The same temperature as the log-probs: it is the entropy of the policy that is sampled from.
    """
    _check(logits, None, temperature)
    entropy: Tensor = _TokenEntropy.apply(logits, temperature, chunk_bytes)  # type: ignore[no-untyped-call]
    return entropy


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, temperature: float, chunk_bytes: int | None, ignore_index: int
    ) -> Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.options = temperature, chunk_bytes, ignore_index
        label, kept = _kept(labels, ignore_index)
        result = torch.empty(label.shape, dtype=_at_least_float32(logits), device=logits.device)
        for where in _chunks(logits, chunk_bytes):
            result[where] = _scaled(logits[where], temperature).log_softmax(-1).gather(-1, label[where])
        return result.where(kept, 0.0).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, labels = ctx.saved_tensors
        temperature, chunk_bytes, ignore_index = ctx.options
        label, kept = _kept(labels, ignore_index)
        scale, minus_one = -grad.unsqueeze(-1) / temperature, grad.new_tensor(-1.0).expand(label.shape)
        grad_logits = torch.empty_like(logits)
        for where in _chunks(logits, chunk_bytes):
            # d log p[label] / d z = (onehot - p) / T
            grad_logits[where] = (
                _scaled(logits[where], temperature)
                .softmax(-1)
                .scatter_add_(-1, label[where], minus_one[where])
                .mul_(scale[where])
            )
        # set to 0, whatever the logits of an ignored label hold
        grad_logits[(~kept.squeeze(-1)).nonzero(as_tuple=True)] = 0.0
        return grad_logits, None, None, None, None


class _TokenEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float, chunk_bytes: int | None) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.options = temperature, chunk_bytes
        result = torch.empty(logits.shape[:-1], dtype=_at_least_float32(logits), device=logits.device)
        for where in _chunks(logits, chunk_bytes):
            result[where] = _entropy(_finite_log_p(logits[where], temperature))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (logits,) = ctx.saved_tensors
        temperature, chunk_bytes = ctx.options
        scale = grad.unsqueeze(-1) / temperature
        grad_logits = torch.empty_like(logits)
        for where in _chunks(logits, chunk_bytes):
            grad_logits[where] = _entropy_gradient(_finite_log_p(logits[where], temperature)).mul_(scale[where])
        return grad_logits, None, None


def _scaled(chunk: Tensor, temperature: float) -> Tensor:
    """(..., V) logits to z / T, upcast. The maximum is taken off first, so that no division overflows."""
    z = chunk.to(_at_least_float32(chunk))
    return z if temperature == 1 else (z - z.amax(-1, keepdim=True)).div_(temperature)


def _finite_log_p(chunk: Tensor, temperature: float) -> Tensor:
    """(..., V) logits to log p, where -inf becomes the least finite number, since 0 * -inf is NaN. NaN stays NaN."""
    log_p = _scaled(chunk, temperature).log_softmax(-1)
    return log_p.nan_to_num_(nan=torch.nan, neginf=torch.finfo(log_p.dtype).min)


def _entropy(log_p: Tensor) -> Tensor:
    return log_p.exp().mul_(log_p).sum(-1).neg_()


def _entropy_gradient(log_p: Tensor) -> Tensor:
    """dH / d(z / T) = -p (log p + H), which is 0 in the limit p = 0."""
    return log_p.exp().mul_(log_p + _entropy(log_p).unsqueeze(-1)).neg_()


def _kept(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels (..., 1) that can be gathered, and (..., 1) where they count."""
    kept = labels != ignore_index
    return labels.where(kept, 0).long().unsqueeze(-1), kept.unsqueeze(-1)


def _chunks(logits: Tensor, chunk_bytes: int | None) -> Iterator[tuple[int | slice, ...]]:
    """Indices that visit every position once, some steps along one axis at a time, with all that the later axes hold.

    Integers and slices, so that a chunk is a view: flattening `logits[:, :-1]`, or picking positions by a tensor of
    indices, would copy.
    """
    *shape, vocabulary = logits.shape
    budget = chunk_bytes or (2**21 * torch.get_num_threads() if logits.device.type == "cpu" else 2**26)
    positions = max(1, budget // (vocabulary * _at_least_float32(logits).itemsize))
    sizes = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    axis = next(axis for axis, size in enumerate(sizes) if size <= positions)
    step = positions // max(1, sizes[axis])
    for outer in itertools.product(*map(range, shape[:axis])):
        for start in range(0, shape[axis], step):
            yield *outer, slice(start, start + step)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check(logits: Tensor, labels: Tensor | None, temperature: float) -> None:
    if logits.dim() < 2:
        raise ValueError(f"logits are (..., V) with at least one position axis, not {tuple(logits.shape)}")
    if labels is not None and labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; it must be positive")

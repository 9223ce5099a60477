"""From logits to tokens: the most probable one, or one drawn from the whole distribution or the best part of it."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_tokens(
    logits: Tensor, *, do_sample: bool, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """One token for each row of logits.

    logits       (B, V)
    do_sample    False: the most probable token; the rest does not matter
    temperature  T of softmax(z / T)
    top_k        only the k most probable tokens, and those that are as probable as the k-th; None: all
    top_p        of those, the fewest most probable ones whose probabilities make up at least p (Holtzman et al. 2020)
    returns      (B,) int64
    raises       ValueError unless temperature > 0, top_k >= 1 and 0 < top_p <= 1
    """
    if not temperature > 0 or (top_k is not None and top_k < 1) or not 0 < top_p <= 1:
        raise ValueError(f"wanted temperature > 0, top_k >= 1 and 0 < top_p <= 1, not {temperature}, {top_k}, {top_p}")
    if not do_sample:
        return logits.argmax(-1)
    scaled = logits.float() / temperature
    if top_k is not None:
        least = scaled.topk(min(top_k, scaled.shape[-1])).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if top_p < 1:
        probabilities, order = scaled.softmax(-1).sort(descending=True)
        better = probabilities.cumsum(-1) - probabilities  # what all better tokens make up
        scaled = scaled.masked_fill((better >= top_p).gather(-1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(scaled.softmax(-1), 1).squeeze(1)

"""Generated sequences: which tokens the model may look at, and which of them were its actions.

A row holds a prompt, padded on the left, and a response, padded on the right. A response ends with its first stop
token, which is an action like the others; what follows it is padding. Lengths decide, never the look of an id: a
prompt may hold stop and pad ids, the pad id may be the stop id, and the policy may sample the pad id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def first_stop(response: Sequence[int], stop_token_ids: Collection[int]) -> int | None:
    """The index of the first stop token in the response, or None where it was cut off before it stopped.

    >>> first_stop([7, 2, 9, 2], stop_token_ids={2})
    1
    >>> first_stop([7, 8, 9], stop_token_ids={2}) is None
    True
    >>> first_stop([7, 0, 2], stop_token_ids={0, 2})  # any id of the set stops, and 0 is an id like any other
    1
    """
    for index, token in enumerate(response):
        if token in stop_token_ids:
            return index
    return None


def response_length(response: Sequence[int], stop_token_ids: Collection[int], generated: int | None = None) -> int:
    """The number of actions, in tokens: up to and including the first stop token, or all of them where there is none.

    ``generated`` is the number of tokens that were generated, where that is known: behind them nothing is an action,
    and nothing ends the response.

    >>> response_length([7, 2, 0, 0], stop_token_ids={2})
    2
    >>> response_length([7, 8, 9], stop_token_ids={2})
    3
    >>> response_length([7, 8, 2, 2], stop_token_ids={2}, generated=2)  # pads that look like a stop
    2
    """
    if generated is not None:
        response = response[:generated]
    stop = first_stop(response, stop_token_ids)
    return len(response) if stop is None else stop + 1


def action_mask(response: Sequence[int], stop_token_ids: Collection[int], generated: int | None = None) -> list[int]:
    """1 for each action and 0 for the padding after it: ``(T,) -> (T,)``.

    >>> action_mask([7, 2, 0, 0], stop_token_ids={2})
    [1, 1, 0, 0]
    >>> action_mask([7, 2, 2, 2], stop_token_ids={2})  # pad id == stop id: the first is the stop, the others are pads
    [1, 1, 0, 0]
    >>> action_mask([7, 0, 9, 2], stop_token_ids={2})  # a pad id (0) that was sampled is an action
    [1, 1, 1, 1]
    >>> action_mask([7, 8, 2, 2], stop_token_ids={2}, generated=2)
    [1, 1, 0, 0]
    """
    length = response_length(response, stop_token_ids, generated)
    return [1] * length + [0] * (len(response) - length)


def attention_mask(
    prompt_mask: Sequence[int], response: Sequence[int], stop_token_ids: Collection[int], generated: int | None = None
) -> list[int]:
    """1 from the first real token of the row to the last: ``(P,), (T,) -> (P + T,)``.

    ``prompt_mask`` says which cells of the prompt are real, as a tokenizer that pads left returns it. Raises ValueError
    where it is not zeros followed by at least one 1: such a prompt has no first token, or a hole.

    >>> attention_mask([0, 1, 1], [7, 2, 0], stop_token_ids={2})
    [0, 1, 1, 1, 1, 0]
    """
    pads = prompt_mask_pads(prompt_mask)
    return [0] * pads + [1] * (len(prompt_mask) - pads) + action_mask(response, stop_token_ids, generated)


def prompt_mask_pads(prompt_mask: Sequence[int]) -> int:
    """The number of pads on the left of a prompt. Raises ValueError as ``attention_mask`` does.

    >>> prompt_mask_pads([0, 0, 1])
    2
    """
    pads = 0
    while pads < len(prompt_mask) and prompt_mask[pads] == 0:
        pads += 1
    tokens = prompt_mask[pads:]
    if not tokens or any(cell != 1 for cell in tokens):
        raise ValueError(f"a left-padded prompt's mask is zeros, then ones, at least one; not {list(prompt_mask)}")
    return pads

"""The actor: the policy that is trained, and the log-probs of its own actions.

An action is a generated token. With ``P`` tokens of prompt and ``T`` of response, ``L = P + T``, the actions are the
tokens ``P .. L - 1``, and each is predicted by the logits of the position before it: ``P - 1 .. L - 2``.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_spec.log_probs import entropy, next_token_log_probs


def action_positions(prompt_length: int, response_length: int) -> list[int]:
    """The positions whose logits predict the actions: ``P - 1 .. P + T - 2``, ``(T,)``.

    Raises ValueError for a prompt without a token, which leaves nothing to predict the first action from.

    >>> action_positions(prompt_length=5, response_length=3)
    [4, 5, 6]
    """
    if prompt_length < 1:
        raise ValueError(f"a prompt has at least one token, not {prompt_length}")
    if response_length < 0:
        raise ValueError(f"a response cannot have {response_length} tokens")
    return [prompt_length - 1 + action for action in range(response_length)]


def of_actions(per_token: Sequence[float], action_mask: Sequence[int]) -> list[float]:
    """Of numbers for the tokens of a response those of its actions: ``(T,), (T,) -> (A,)``, ``A`` ones in the mask.

    A response of several turns holds observations as well: what a tool or a user said, which the next turn attends and
    the policy did not choose. Raises ValueError where the lengths differ.

    >>> of_actions([-0.1, -0.2, -7.0, -0.3], [1, 1, 0, 1])
    [-0.1, -0.2, -0.3]
    """
    return [number for number, is_action in zip(per_token, action_mask, strict=True) if is_action]


def action_log_probs(
    logits_rows: Sequence[Sequence[float]], tokens: Sequence[int], prompt_length: int, temperature: float = 1.0
) -> list[float]:
    """The log-prob of each action of one unpadded sequence, in nats: ``(L, V), (L,) -> (T,)``.

    Raises ValueError where there is not one row of logits for each token, or the prompt is empty or longer than that.

    >>> from math import log
    >>> rows = [[0.0, 0.0], [log(1), log(3)], [0.0, 0.0]]
    >>> [round(x, 4) for x in action_log_probs(rows, tokens=[0, 1, 1], prompt_length=2)]  # log(3/4)
    [-0.2877]
    """
    log_probs = next_token_log_probs(logits_rows, tokens, temperature)
    return [log_probs[position] for position in action_positions(prompt_length, len(tokens) - prompt_length)]


def action_entropies(
    logits_rows: Sequence[Sequence[float]], prompt_length: int, temperature: float = 1.0
) -> list[float]:
    """The entropy of the distribution that each action was drawn from, in nats: ``(L, V) -> (T,)``.

    >>> [round(x, 4) for x in action_entropies([[9.0, 0.0], [5.0, 5.0], [9.0, 0.0]], prompt_length=2)]  # log(2)
    [0.6931]
    """
    positions = action_positions(prompt_length, len(logits_rows) - prompt_length)
    return [entropy(logits_rows[position], temperature) for position in positions]

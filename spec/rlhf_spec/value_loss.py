"""The value loss: half the squared error of the critic, with a clip that keeps it near its old answers.

``0.5 max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2)``: of the new value and the one held within ``eps`` of
the old, the worse counts. So a step past the band toward the return earns nothing more, and a step away from it is
punished in full. Without a clip it is ``0.5 (V - R)^2``. Source: the PPO of openai/baselines, described by Huang et
al., "The 37 Implementation Details of Proximal Policy Optimization", 2022, and in Engstrom et al. 2020,
arXiv:2005.12729, section 3.
"""

from __future__ import annotations

from rlhf_spec.aggregation import Masks, Rows, Steps, aggregate, map_actions, scale, weights


def token_value_loss(
    value: float, old_value: float, return_: float, clip_eps: float | None = None, *, steps: Steps | None = None
) -> float:
    """The loss of one value, in squared units of reward. Raises ValueError for a negative ``clip_eps``.

    The numbers on the way are added to ``steps``, each with its name.

    >>> token_value_loss(5.0, 0.0, 2.0)  # 0.5 * 3^2
    4.5
    >>> token_value_loss(5.0, 0.0, 2.0, clip_eps=1.0)  # 0.5 * max(3^2, (1 - 2)^2)
    4.5
    >>> token_value_loss(3.0, 0.0, 4.0, clip_eps=1.0)  # 0.5 * max((3 - 4)^2, (1 - 4)^2)
    4.5
    """
    _check_clip(clip_eps)
    unclipped = (value - return_) ** 2
    if steps is not None:
        steps.append((f"(value {value:.7g} - return {return_:.7g}) squared", unclipped))
    if clip_eps is None:
        return 0.5 * unclipped
    held = _clipped_value(value, old_value, clip_eps)
    clipped = (held - return_) ** 2
    if steps is not None:
        steps += [
            (f"value {value:.7g} held within {clip_eps:.7g} of the old value {old_value:.7g}", held),
            (f"(that - return {return_:.7g}) squared", clipped),
            ("the greater of the two squares", max(unclipped, clipped)),
        ]
    return 0.5 * max(unclipped, clipped)


def token_value_loss_gradient(value: float, old_value: float, return_: float, clip_eps: float | None = None) -> float:
    """The derivative of ``token_value_loss`` with respect to ``value``: ``V - R``, and 0 where the clip binds.

    The clip binds where the value has left the band and the clipped error is the greater. Where both errors are alike
    the loss has a corner and the derivative of the unclipped one is given.

    >>> token_value_loss_gradient(5.0, 0.0, 2.0, clip_eps=1.0)  # past the return: pulled back
    3.0
    >>> token_value_loss_gradient(3.0, 0.0, 4.0, clip_eps=1.0)  # past the band, toward the return: flat
    0.0
    """
    _check_clip(clip_eps)
    if clip_eps is not None:
        clipped_value = _clipped_value(value, old_value, clip_eps)
        if clipped_value != value and (clipped_value - return_) ** 2 > (value - return_) ** 2:
            return 0.0
    return value - return_


def value_loss(
    values: Rows,
    old_values: Rows,
    returns: Rows,
    action_mask: Masks,
    *,
    clip_eps: float | None = None,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
) -> float:
    """The losses of all actions' values, aggregated: ``B rows of (T,) -> ()``. Cells under the mask are never read.

    Raises ValueError where the shapes differ, and as ``token_value_loss`` and ``aggregate`` do.

    >>> value_loss([[5.0, 3.0]], [[0.0, 0.0]], [[2.0, 1.0]], [[1, 1]])  # (4.5 + 2) / 2
    3.25
    """
    losses = map_actions(
        lambda value, old_value, return_: token_value_loss(value, old_value, return_, clip_eps),
        action_mask,
        values,
        old_values,
        returns,
    )
    return aggregate(losses, action_mask, aggregation, global_count=global_count, count_empty_rows=count_empty_rows)


def value_loss_gradient(
    values: Rows,
    old_values: Rows,
    returns: Rows,
    action_mask: Masks,
    *,
    clip_eps: float | None = None,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
) -> list[list[float]]:
    """The gradient of ``value_loss`` with respect to the new values: rows shaped like them, 0 under the mask.

    >>> value_loss_gradient([[5.0, 3.0]], [[0.0, 0.0]], [[2.0, 1.0]], [[1, 1]])
    [[1.5, 1.0]]
    """
    gradients = map_actions(
        lambda value, old_value, return_: token_value_loss_gradient(value, old_value, return_, clip_eps),
        action_mask,
        values,
        old_values,
        returns,
    )
    token_weights = weights(action_mask, aggregation, global_count=global_count, count_empty_rows=count_empty_rows)
    return scale(gradients, token_weights)


def _clipped_value(value: float, old_value: float, clip_eps: float) -> float:
    """``V_old + clip(V - V_old, -eps, eps)``, written so that a value inside the band comes back unrounded."""
    return min(max(value, old_value - clip_eps), old_value + clip_eps)


def _check_clip(clip_eps: float | None) -> None:
    if clip_eps is not None and not clip_eps >= 0:
        raise ValueError(f"the clip bound must not be negative, but is {clip_eps}")

"""The whole path from a score to advantages, as PPO for language models goes it.

The KL of each action from the reference becomes a penalty, penalties and the score become rewards, rewards and values
become advantages and returns. Nothing is new here: it is the chapters ``kl``, ``token_rewards`` and ``advantages`` in a
row, for trainers that do it all in one place. Source: Stiennon et al. 2020, arXiv:2009.01325, appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_spec.advantages import advantages, critic_returns
from rlhf_spec.aggregation import Masks, Rows
from rlhf_spec.kl import kl
from rlhf_spec.token_rewards import token_rewards
from rlhf_spec.whitening import whiten


def path_rewards(
    scores: Sequence[float],
    log_probs: Rows,
    ref_log_probs: Rows,
    action_mask: Masks,
    *,
    estimator: str = "k1",
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    kl_coef: float,
    score_clip: float | None = None,
    score_position: str = "last-action",
) -> list[list[float]]:
    """The rewards on the way: the score where it lands, less the penalties. ``(B,), B rows of (T,) -> B rows of (T,)``.

    >>> path_rewards([1.0], [[-1.0, -2.0]], [[-1.5, -1.0]], [[1, 1]], kl_coef=0.5)  # penalties 0.25 and -0.5
    [[-0.25, 1.5]]
    """
    estimates = kl(
        log_probs, ref_log_probs, action_mask, estimator=estimator, log_ratio_clamp=log_ratio_clamp, clamp=clamp
    )
    return token_rewards(
        scores, estimates, action_mask, kl_coef=kl_coef, score_clip=score_clip, score_position=score_position
    )


def _whitened(found: list[list[float]], action_mask: Masks, ddof: int, eps: float, eps_place: str) -> list[list[float]]:
    """By its own name where `whiten` is an option."""
    return whiten(found, action_mask, ddof=ddof, eps=eps, eps_place=eps_place)


def path_advantages(
    scores: Sequence[float],
    log_probs: Rows,
    ref_log_probs: Rows,
    values: Rows,
    action_mask: Masks,
    *,
    estimator: str = "k1",
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    kl_coef: float,
    score_clip: float | None = None,
    score_position: str = "last-action",
    gamma: float,
    lam: float,
    observations: str = "skipped",
    after_last: str = "nothing",
    whiten: bool = False,
    ddof: int = 1,
    eps: float = 1e-8,
    eps_place: str = "variance",
) -> list[list[float]]:
    """The advantages at the end of the path, 0 where there is no action: ``B rows of (T,)``; with ``whiten`` as the
    chapter on whitening has them, over the actions of the batch.

    >>> tables = [[-1.0, -2.0]], [[-1.5, -1.0]], [[0.5, 0.25]], [[1, 1]]
    >>> path_advantages([1.0], *tables, kl_coef=0.5, gamma=1.0, lam=1.0)  # -0.25 + 1.5 - 0.5, and 1.5 - 0.25
    [[0.75, 1.25]]
    >>> path_advantages([1.0], *tables, kl_coef=0.5, gamma=1.0, lam=1.0, whiten=True, ddof=0, eps=0.0)  # 1 -+ 0.25
    [[-1.0, 1.0]]
    """
    rewards = path_rewards(
        scores,
        log_probs,
        ref_log_probs,
        action_mask,
        estimator=estimator,
        log_ratio_clamp=log_ratio_clamp,
        clamp=clamp,
        kl_coef=kl_coef,
        score_clip=score_clip,
        score_position=score_position,
    )
    found = advantages(
        rewards, values, action_mask, gamma=gamma, lam=lam, observations=observations, after_last=after_last
    )
    return _whitened(found, action_mask, ddof, eps, eps_place) if whiten else found


def path_returns(
    scores: Sequence[float],
    log_probs: Rows,
    ref_log_probs: Rows,
    values: Rows,
    action_mask: Masks,
    *,
    estimator: str = "k1",
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    kl_coef: float,
    score_clip: float | None = None,
    score_position: str = "last-action",
    gamma: float,
    lam: float,
    observations: str = "skipped",
    after_last: str = "nothing",
    whiten: bool = False,
) -> list[list[float]]:
    """The returns at the end of the path, 0 where there is no action: ``B rows of (T,)``. They are made of advantages
    that are not whitened, whatever ``whiten`` says.

    >>> tables = [[-1.0, -2.0]], [[-1.5, -1.0]], [[0.5, 0.25]], [[1, 1]]
    >>> path_returns([1.0], *tables, kl_coef=0.5, gamma=1.0, lam=1.0)
    [[1.25, 1.5]]
    """
    rewards = path_rewards(
        scores,
        log_probs,
        ref_log_probs,
        action_mask,
        estimator=estimator,
        log_ratio_clamp=log_ratio_clamp,
        clamp=clamp,
        kl_coef=kl_coef,
        score_clip=score_clip,
        score_position=score_position,
    )
    return critic_returns(
        rewards, values, action_mask, gamma=gamma, lam=lam, observations=observations, after_last=after_last
    )

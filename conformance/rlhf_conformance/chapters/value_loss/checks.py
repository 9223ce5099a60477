"""The checks of the value loss."""

from __future__ import annotations

from typing import Any

import rlhf_spec.value_loss as spec
from rlhf_conformance.chapters._losses import loss as losses
from rlhf_conformance.chapters._losses.loss import Loss
from rlhf_conformance.judging.checks import declares, use
from rlhf_conformance.oracle import budgets


def _token(token: tuple[float, float, float], options: Any, steps: spec.Steps | None = None) -> float:
    value, old_value, return_ = token
    return spec.token_value_loss(value, old_value, return_, options.clip_eps, steps=steps)


VALUE = Loss(
    kind="value-loss",
    token=_token,
    token_gradient=lambda token, options: spec.token_value_loss_gradient(*token, options.clip_eps),
    token_budget=lambda token, options, dtype: budgets.value_token(*token, options.clip_eps, dtype),
    gradient_budget=lambda token, options, dtype: budgets.value_token_gradient(*token, options.clip_eps, dtype),
    ending="half of that",
)
has_clip = declares("value_clip", "value_clip = False: the value loss cannot be clipped")
has_none = declares("unclipped_value", "unclipped_value = False: the value loss always clips")

use("value-loss.clip", losses.value_of_tokens(VALUE, has_clip, zones=("inside", "outside")))
use(
    "value-loss.bounds-as-given",
    losses.value_of_tokens(VALUE, has_clip, gradient=True, zones=("outside", "inside"), edges=True),
)
use("value-loss.unclipped", losses.value_of_tokens(VALUE, has_none, clipped=False))
use("value-loss.half", losses.value_of_tokens(VALUE, zones=("inside",)))
use("value-loss.aggregation", losses.value_of(VALUE, unequal_rows=True))
use("value-loss.token-mean", losses.mean(VALUE, "token-mean"))
use("value-loss.sequence-mean", losses.mean(VALUE, "sequence-mean"))
use("value-loss.micro-batches", losses.micro_batches(VALUE))
use("value-loss.mask", losses.mask(VALUE))
use("value-loss.nan-under-mask", losses.nan_under_mask(VALUE))
use("value-loss.empty-row", losses.empty_row(VALUE))
use("value-loss.empty-batch", losses.empty_batch(VALUE))
use("value-loss.mask-dtype", losses.mask_dtype(VALUE))
use("value-loss.gradient", losses.gradient_of(VALUE, zones=("inside",)))
use(
    "value-loss.clipped-gradient",
    losses.gradient_of(VALUE, has_clip, zones=("outside", "inside"), dual=None, unequal_eps=None),
)
use("value-loss.scalar", losses.scalar(VALUE))
use("value-loss.padding-invariance", losses.padding_invariance(VALUE))
use("value-loss.batch-order", losses.batch_order(VALUE))
use("value-loss.inputs-unwritten", losses.inputs_unwritten(VALUE))
use("value-loss.side-effects", losses.side_effects(VALUE))

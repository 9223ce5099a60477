"""Conventions that a trainer may follow without its adapter declaring them: the reference, doing the other thing.

One row for each: what an adapter may declare, what the trainer does instead, and the reference made to do that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter, PackedSequences
from rlhf_conformance.adapters.reference import Reference


@dataclass(frozen=True)
class Convention:
    """A convention, and the reference that follows it.

    name        as the user would declare it
    declared    what an adapter declares that does not follow it, as words; None where it may well follow it
    methods     those that it concerns, where the reference follows it as it is
    """

    name: str
    declared: Callable[[Adapter], str | None]
    adapter: type[Adapter]
    methods: tuple[str, ...] = ()


def conventions() -> tuple[Convention, ...]:
    """All of them, whatever an adapter declares."""
    return _CONVENTIONS


def _instead_of(attribute: str, value: Any) -> Callable[[Adapter], str | None]:
    """Words for a declaration of `value`, None for any other."""
    return lambda adapter: f"{attribute} = {value!r}" if getattr(adapter, attribute) == value else None


def _only_mean(aggregation: str) -> Callable[[Adapter], str | None]:
    """`aggregation`, where no other is declared: a trainer with two means that takes the wrong one has a fault."""
    return lambda adapter: aggregation if tuple(adapter.aggregations) == (aggregation,) else None


def _taking(aggregation: str) -> type[Adapter]:
    """The reference with this mean, whatever it is asked for."""

    class Taking(Reference):
        def policy_loss(self, new, old, advantages, mask, options):
            return super().policy_loss(new, old, advantages, mask, replace(options, aggregation=aggregation))

        def value_loss(self, values, old, returns, mask, options):
            return super().value_loss(values, old, returns, mask, replace(options, aggregation=aggregation))

    return Taking


class _EmptyRowsCounted(Reference):
    """A row without actions counts in the sequence mean's denominator."""

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask, _counting_rows(mask, options))

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, _counting_rows(mask, options))


def _counting_rows(mask: Any, options: Any) -> Any:
    counted = options.aggregation == "sequence-mean" and options.global_count is None
    return replace(options, global_count=len(mask)) if counted else options


def _estimating(estimate: Callable[[Any], Any]) -> type[Adapter]:
    """The reference whose approx_kl is the mean of an estimate made of the log-ratio."""

    class Estimating(Reference):
        def policy_loss(self, new, old, advantages, mask, options):
            right = super().policy_loss(new, old, advantages, mask, options)
            return replace(right, approx_kl=_masked_mean(estimate(_log_ratio(new, old, mask)), mask))

    return Estimating


_K1 = _estimating(lambda log_r: -log_r)
_K2 = _estimating(lambda log_r: 0.5 * log_r**2)
_K3 = _estimating(lambda log_r: log_r.expm1() - log_r)


def _log_ratio(new: Any, old: Any, mask: Any) -> Any:
    wide = torch.promote_types(new.dtype, torch.float32)
    return (new.detach().to(wide) - old.to(wide)).masked_fill(~mask.bool(), 0.0)


def _masked_mean(per_token: Any, mask: Any) -> Any:
    return per_token.sum() / mask.bool().sum().clamp(min=1)


class _Unshifted(Reference):
    """labels[i] = ids[i], -100 on the first token of each sequence."""

    def pack_sequences(self, sequences):
        pack = super().pack_sequences(sequences)
        labels = torch.full_like(pack.labels, -100)
        labels[:, 1:] = pack.labels[:, :-1]
        return PackedSequences(pack.input_ids, pack.position_ids, labels)


class _FirstStop(Reference):
    """Only the first of the stop ids ends a response."""

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        first = stop_token_ids[:1]
        return super().process_sequences(sequences, prompt_length, prompt_attention_mask, first, pad_token_id)

    def generate(self, actor, prompts):
        return super().generate(actor, replace(prompts, stop_token_ids=prompts.stop_token_ids[:1]))


class _MaskFromPads(Reference):
    """The mask is taken to be wherever the id is not the pad id."""

    def _inputs(self, batch):
        if batch.attention_mask is not None:
            batch = replace(batch, attention_mask=(batch.input_ids != batch.pad_token_id).long())
        return super()._inputs(batch)


class _NoTemperature(Reference):
    """Every log-prob and entropy at temperature 1."""

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, 1.0)

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits, 1.0)

    def load_actor(self, checkpoint):
        return super().load_actor(replace(checkpoint, temperature=1.0))


class _IgnoredLabelScored(Reference):
    """Label -100 is clamped to token 0, whose log-prob comes out."""

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels.clamp(min=0), temperature)


class _RawRewards(Reference):
    def load_reward_model(self, checkpoint):
        return super().load_reward_model(replace(checkpoint, normalize=False))


class _RawValues(Reference):
    def load_critic(self, checkpoint):
        return super().load_critic(replace(checkpoint, normalize=False))


class _OneClipRange(Reference):
    def policy_loss(self, new, old, advantages, mask, options):
        same = replace(options, clip_eps_high=options.clip_eps_low)
        return super().policy_loss(new, old, advantages, mask, same)


class _NoDualClip(Reference):
    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask, replace(options, dual_clip=None))


class _NoGlobalCount(Reference):
    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(new, old, advantages, mask, replace(options, global_count=None))

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, replace(options, global_count=None))


class _NoValueClip(Reference):
    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(values, old, returns, mask, replace(options, clip_eps=None))


def _flag(attribute: str, adapter: type[Adapter]) -> Convention:
    """The trainer does not do what `attribute` = True says that it does."""
    return Convention(f"{attribute} = False", _instead_of(attribute, True), adapter)


_CONVENTIONS = (
    Convention("token-mean", _only_mean("sequence-mean"), _taking("token-mean")),
    Convention("sequence-mean", _only_mean("token-mean"), _taking("sequence-mean")),
    Convention("count_empty_rows = True", _instead_of("count_empty_rows", False), _EmptyRowsCounted),
    Convention(
        "count_empty_rows = False", _instead_of("count_empty_rows", True), Reference, ("policy_loss", "value_loss")
    ),
    Convention("kl_metric = 'k3'", _instead_of("kl_metric", "k1"), _K3),
    Convention("kl_metric = 'k1'", _instead_of("kl_metric", "k3"), _K1),
    Convention("the KL estimator k2, half the squared log-ratio", _instead_of("kl_metric", "k1"), _K2),
    Convention("the KL estimator k2, half the squared log-ratio", _instead_of("kl_metric", "k3"), _K2),
    Convention("packed_labels = 'unshifted'", _instead_of("packed_labels", "shifted"), _Unshifted),
    Convention("packed_labels = 'shifted'", _instead_of("packed_labels", "unshifted"), Reference, ("pack_sequences",)),
    Convention("stop_ids = 'one'", _instead_of("stop_ids", "set"), _FirstStop),
    Convention("ignored_label = None", _instead_of("ignored_label", "zero"), _IgnoredLabelScored),
    _flag("takes_attention_mask", _MaskFromPads),
    _flag("temperature", _NoTemperature),
    _flag("reward_normalization", _RawRewards),
    _flag("critic_normalization", _RawValues),
    _flag("asymmetric_clip", _OneClipRange),
    _flag("dual_clip", _NoDualClip),
    _flag("global_count", _NoGlobalCount),
    _flag("value_clip", _NoValueClip),
)

"""Honest variants of both losses, and adapters that have several formulas."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.averaging import averaged
from rlhf_conformance.chapters.log_probs.twins import at_labels, upcast
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossResult
from rlhf_conformance.chapters.policy_loss.twins import TextbookPolicyLoss
from rlhf_conformance.chapters.value_loss.twins import TextbookValueLoss
from rlhf_conformance.twins import twin


class _Converted(Reference):
    """The reference's losses on inputs of another dtype."""

    def _converted(self, x):
        raise NotImplementedError

    def policy_loss(self, new, old, advantages, mask, options):
        return super().policy_loss(*(self._converted(x) for x in (new, old, advantages)), mask, options)

    def value_loss(self, values, old, returns, mask, options):
        return super().value_loss(*(self._converted(x) for x in (values, old, returns)), mask, options)


@twin
class LossesInFloat64(_Converted):
    "float64 inside."

    def _converted(self, x):
        return x.double()


@twin
class LossesInFloat32(_Converted):
    "float32 inside, also for float64 inputs."

    def _converted(self, x):
        return x.float()


@twin
class LossesInOwnDtype(Reference):
    "Everything in the dtype that comes in, bfloat16 included, but for the mean, which is taken in float32."

    surrogates = ("ppo",)

    def policy_loss(self, new, old, advantages, mask, options):
        new, old, advantages = (x.where(mask.bool(), 0.0) for x in (new, old, advantages))
        ratio = (new - old).clamp(-20.0, 20.0).exp()
        clipped = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        surrogate = torch.min(ratio * advantages, clipped * advantages)
        if options.dual_clip is not None:
            surrogate = torch.where(advantages < 0, torch.max(surrogate, options.dual_clip * advantages), surrogate)
        return averaged(upcast(-surrogate), mask, options)


@twin
class LossesBackwards(Reference):
    "Rows and columns in reverse order, padded on both sides, with a mask of floats."

    def policy_loss(self, *arguments):
        return super().policy_loss(*self._turned(arguments))

    def value_loss(self, *arguments):
        return super().value_loss(*self._turned(arguments))

    def _turned(self, arguments):
        *tensors, mask, options = arguments
        tensors = [torch.nn.functional.pad(x.flip(0, 1), (2, 1)) for x in (*tensors, mask.float())]
        return (*tensors, options)


class _MicroBatches(Reference):
    """Row by row with the global count, added up."""

    def _summed(self, loss, arguments):
        *tensors, options = arguments
        mask = arguments[3].bool()
        count = mask.sum() if options.aggregation == "token-mean" else mask.any(1).sum()
        options = replace(options, global_count=options.global_count or max(1.0, float(count)))
        rows = zip(*(x.split(1) for x in tensors), strict=True)
        return sum(loss(*row, options) for row in rows)


@twin
class LossesInMicroBatches(_MicroBatches):
    "One row at a time with the global count, added up."

    def policy_loss(self, *arguments):
        return self._summed(lambda *row: Reference.policy_loss(self, *row).loss, arguments)

    def value_loss(self, *arguments):
        return self._summed(lambda *row: Reference.value_loss(self, *row), arguments)


@twin
class PackedLosses(Reference):
    "Actions are picked out of the rectangle first, then weighted one by one, so that the loss is a weighted sum."

    surrogates = ("ppo",)
    constant_length = token_sum = False

    def policy_loss(self, new, old, advantages, mask, options):
        picked = mask.bool()
        new, old, advantages = (upcast(x)[picked] for x in (new, old, advantages))
        log_ratio = new - old
        ratio = log_ratio.clamp(max=20.0).exp()
        clipped = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        losses = -torch.minimum(ratio * advantages, clipped * advantages)
        if options.dual_clip is not None:
            losses = torch.where(advantages < 0, losses.minimum(-options.dual_clip * advantages), losses)
        return (losses * self._weights(picked, options)).sum()

    def value_loss(self, values, old, returns, mask, options):
        picked = mask.bool()
        values, old, returns = (upcast(x)[picked] for x in (values, old, returns))
        far = torch.nn.functional.mse_loss(values, returns, reduction="none") / 2
        if options.clip_eps is not None:
            near = torch.maximum(torch.minimum(values, old + options.clip_eps), old - options.clip_eps)
            far = torch.maximum(far, (near - returns).pow(2) / 2)
        return (far * self._weights(picked, options)).sum()

    def _weights(self, picked, options):
        """(number of actions,): what each action weighs."""
        lengths = picked.sum(1)
        if options.aggregation == "token-mean":
            return 1 / (options.global_count or lengths.sum())
        count = options.global_count or (lengths > 0).sum()
        return (1 / (lengths.clamp(min=1) * count))[:, None].expand_as(picked)[picked]


@twin
class SmallNumberInTheCount(Reference):
    "Means over the count plus 1e-8, so that an empty batch needs no case of its own."

    def policy_loss(self, *arguments):
        mask, options = arguments[3].bool(), arguments[4]
        return Reference.policy_loss(self, *arguments[:4], self._summing(mask, options))

    def value_loss(self, *arguments):
        mask, options = arguments[3].bool(), arguments[4]
        return Reference.value_loss(self, *arguments[:4], self._summing(mask, options))

    def _summing(self, mask, options):
        count = mask.sum() if options.aggregation == "token-mean" else mask.any(1).sum()
        return replace(options, global_count=(options.global_count or float(count)) + 1e-8)


@twin
class Compiled(Reference):
    "Log-probs and losses traced by torch.compile and run by its eager backend."

    surrogates = ("ppo",)

    def token_log_probs(self, logits, labels, temperature):
        return _compiled(_scaled_log_softmax)(logits, labels, temperature)

    def policy_loss(self, new, old, advantages, mask, options):
        return _compiled(TextbookPolicyLoss.policy_loss)(self, new, old, advantages, mask, options)

    def value_loss(self, new, old, returns, mask, options):
        return _compiled(TextbookValueLoss.value_loss)(self, new, old, returns, mask, options)


def _scaled_log_softmax(logits, labels, temperature):
    return at_labels((upcast(logits) / temperature).log_softmax(-1), labels)


@cache
def _compiled(function):
    """With sizes as symbols, and a trace for each combination of options and dtypes."""
    compiled = torch.compile(function, backend="eager", dynamic=True)

    def call(*args):
        with torch._dynamo.config.patch(recompile_limit=100):
            return compiled(*args)

    return call


@twin
class LossesOnly(Adapter):
    "A trainer that has nothing but a plain policy and value loss: token mean, one bound for both sides."

    asymmetric_clip = False
    kl_metric = "k3"

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        mask = action_mask.bool()
        log_ratio = (upcast(log_probs).where(mask, 0.0) - upcast(old_log_probs).where(mask, 0.0)).clamp(-20.0, 20.0)
        advantages = upcast(advantages).where(mask, 0.0)
        ratio = log_ratio.exp()
        surrogate = torch.min(
            ratio * advantages,
            ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high) * advantages,
        )
        estimate = self.estimate(log_ratio, ratio)
        return PolicyLossResult(averaged(-surrogate, mask, options), approx_kl=averaged(estimate, mask, options))

    def estimate(self, log_ratio, ratio):
        return ratio - log_ratio - 1

    def value_loss(self, values, old_values, returns, action_mask, options):
        return TextbookValueLoss.value_loss(self, values, old_values, returns, action_mask, options)


@twin
class SquaredKL(LossesOnly):
    "The same, and the metric is half the squared log-ratio."

    kl_metric = "k2"

    def estimate(self, log_ratio, ratio):
        return 0.5 * log_ratio**2

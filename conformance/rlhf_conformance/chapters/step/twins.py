"""Honest variants of a step: cut, laid out, run and added up by other ways."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import rlhf_reference as ref
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference, Stepping
from rlhf_conformance.chapters.step import bending
from rlhf_conformance.twins import twin


class _Cut(Reference):
    """A trainer that cuts its steps by a way of its own, whatever it is asked for."""

    def load_trainer(self, checkpoint, options):
        return _CutStepping(super().load_trainer(checkpoint, options).trainer, options, parts=self._parts)

    def load_critic_trainer(self, checkpoint, options):
        return _CutStepping(super().load_critic_trainer(checkpoint, options).trainer, options, parts=self._parts)

    def _parts(self, samples):
        raise NotImplementedError


@dataclass(frozen=True)
class _CutStepping(Stepping):
    parts: Any = None

    def cut(self, samples):
        return self.parts(samples)


@twin
class StepOneByOne(_Cut):
    "Each sample is a micro-batch of its own."

    def _parts(self, samples):
        return ref.by_rows(samples, 1)


@twin
class StepAllAtOnce(_Cut):
    "There is one micro-batch, however many are asked for."

    def _parts(self, samples):
        return [range(len(samples))]


@twin
class StepInDynamicBatches(_Cut):
    "Micro-batches of as many samples as fit into three quarters of all tokens."

    def _parts(self, samples):
        return ref.by_tokens(samples, math.ceil(0.75 * sum(len(s.prompt) + len(s.response) for s in samples)))


@twin
class StepPacked(Reference):
    "Every micro-batch is packed."

    def load_trainer(self, checkpoint, options):
        return super().load_trainer(checkpoint, replace(options, layout="packed"))

    def load_critic_trainer(self, checkpoint, options):
        return super().load_critic_trainer(checkpoint, replace(options, layout="packed"))


@twin
class StepCheckpointed(Reference):
    "Layers are recomputed in the backward pass."

    def __init__(self):
        super().__init__(checkpointing=True)

    def load_trainer(self, checkpoint, options):
        return super().load_trainer(checkpoint, options)


@twin
class StepSampleBySample(bending.Stepping):
    "Samples are run one by one, and put into a rectangle for their loss."


@twin
class CriticStepSampleBySample(bending.CriticStepping):
    "Samples of a critic are run one by one, and put into a rectangle for their loss."


@twin
class StepDividedAtTheEnd(bending.Stepping):
    "Losses are summed over the actions, and the gradient is divided by their number once, as in SkyRL."

    aggregations, constant_length, token_sum = ("token-mean",), False, False
    kl_aggregation = entropy_aggregation = "as-policy"

    def count(self, t, samples):
        t.kept["count"] = super().count(t, samples)
        return 1

    def accumulate(self, t, samples):
        logged = super().accumulate(t, samples)
        for p in t.trained:
            if p.grad is not None:
                p.grad /= t.kept["count"]
        return replace(
            logged, **{name: x / t.kept["count"] for name in _LOGGED if (x := getattr(logged, name)) is not None}
        )


_LOGGED = ("loss", "policy_loss", "kl", "entropy")


@twin
class StepWithoutEmptyMicroBatches(_Cut):
    "Samples without an action are left out before the step is cut."

    def _parts(self, samples):
        acting = [i for i, sample in enumerate(samples) if sample.mask.any()]
        return [*([i] for i in acting), [i for i in range(len(samples)) if i not in acting]]


@twin
class StepCompiled(Reference):
    "The layers of the model are compiled, with the backend that runs them as they are."

    def load_trainer(self, checkpoint, options):
        stepping = super().load_trainer(checkpoint, options)
        module = stepping.actor.model
        module.forward = torch.compile(module.forward, backend="eager", dynamic=True)
        return stepping


@twin
class StepUnderDdp(Reference):
    "Calls with a graph go through DistributedDataParallel, with one rank."

    def load_trainer(self, checkpoint, options):
        stepping = super().load_trainer(checkpoint, options)
        module = stepping.actor.model
        own = module.forward
        parallel = torch.nn.parallel.DistributedDataParallel(module, process_group=_alone())
        inside: list[bool] = []

        def forward(*args, **given):
            if inside or not torch.is_grad_enabled():
                return own(*args, **given)
            inside.append(True)
            try:
                return parallel(*args, **given)
            finally:
                inside.pop()

        module.forward = forward
        return stepping


def _alone():
    """A group of one."""
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return torch.distributed.group.WORLD

"""The weights of a loaded model as those of its checkpoint: their names, what adapters of LoRA add to them, and what
becomes of answers and gradients when they move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._models.lora import is_adapters
from rlhf_conformance.judging.isolation import AdapterError
from rlhf_conformance.judging.questions import Fact, Loaded
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.probes import Probe

Tensors = dict[str, Any]

STEP, FIRST_STEP = 1 / 16, 1 / 8
"""How far an entry moves: of any weight, and of one that is zero throughout, as LoRA's B is at first."""
FINE = 1 + 1 / 1000
"""What takes a number off the grid of bfloat16."""
SHOWN = 3
"""The most names that a message lists."""


@dataclass(frozen=True)
class Weights:
    """The parameters of a loaded model, and the weights of its checkpoint that they stand for.

    probe       what it was loaded from
    model       the model itself, or the trainer that holds it
    parameters  what `Adapter.parameters` says, by the adapter's names
    """

    subject: Subject
    probe: Probe
    model: Any
    parameters: Tensors

    @classmethod
    def of(cls, subject: Subject, loaded: Loaded) -> Weights:
        """Of a model that is remembered within the clause."""
        model = subject.model(loaded.load, loaded.probe, loaded.temperature, loaded.normalize)
        return cls.of_model(subject, loaded.probe, model)

    @classmethod
    def of_model(cls, subject: Subject, probe: Probe, model: Any) -> Weights:
        return cls(subject, probe, model, subject.uncopied("parameters", model))

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained, and the weights below them are frozen on purpose."""
        return any(is_adapters(name) for name in self.parameters)

    @property
    def judged(self) -> Tensors:
        """All parameters that have a gradient to be judged: a frozen one has one of zero, and with adapters only
        theirs need one."""
        return {
            name: p
            for name, p in self.parameters.items()
            if p.is_floating_point() and (p.requires_grad or not self.adapted or is_adapters(name))
        }

    @cached_property
    def truth(self) -> Tensors:
        """The checkpoint's weights, float64. The bias of a head that has none there is zero."""
        return self.subject.truth.weights(self.probe)

    def leaves(self) -> Tensors:
        """The parameters as they are now, in float64, each a leaf; one that has two names is one leaf."""
        made: dict[int, Any] = {}
        for p in self.parameters.values():
            if p.is_floating_point() and id(p) not in made:
                made[id(p)] = p.detach().double().cpu().clone().requires_grad_()
        return {name: made[id(p)] for name, p in self.parameters.items() if id(p) in made}

    def found(self, leaves: Tensors) -> Tensors:
        """Made of leaves: the weights under the checkpoint's names, where the adapter's end like those."""
        mapped = self.subject.uncopied("checkpoint_weights", self.model, dict(leaves))
        return {name: mapped[mine] for mine, name in match_by_name(mapped, self.truth)}

    def drawn_head(self) -> Tensors:
        """The weights of a head that the checkpoint lacks, under the names that they would have."""
        whole = self.subject.truth.weights(replace(self.probe, headless=False, new_head=False))
        mapped = self.subject.uncopied("checkpoint_weights", self.model, self.leaves())
        pairs = match_by_name(mapped, whole)
        return {name: mapped[mine].detach() for mine, name in pairs if name.startswith("score.")}

    def covered(self, found: Tensors) -> Fact:
        """Is every weight of the checkpoint among what was found? With adapters those that are frozen may be left
        out."""
        may_lack = () if self.probe.head_bias else ("score.bias",)
        missing = [name for name in self.truth if name not in found and name not in may_lack]
        return Fact(
            bool(found) and (not missing or self.adapted),
            "parameters of the model",
            expected="every weight of the checkpoint, under a name that ends as there and in its shape, so that "
            "gradients can be compared: else map them with Adapter.checkpoint_weights (or override "
            "Adapter.parameters)",
            actual=f"nothing for {_listed(missing)}; there are {_listed(list(self.parameters))}",
        )

    def misplaced(self, leaves: Tensors) -> str:
        """What can be said where the model, as it was loaded with these leaves, does not hold the checkpoint's
        weights."""
        found = self.found(leaves)
        wrong = [name for name, weight in found.items() if not self._holds(weight.detach(), self.truth[name])]
        return (
            f"{_listed(wrong)} of the model: not what the checkpoint holds under that name; where it is stored in "
            "another layout, map it with Adapter.checkpoint_weights"
            if wrong
            else ""
        )

    def _holds(self, weight: Any, truth: Any) -> bool:
        allowed = budgets.weight(float(truth.abs().max()), self.subject.dtype)
        return bool((weight - truth).abs().max() <= allowed)

    @contextlib.contextmanager
    def moved(self) -> Iterator[None]:
        """As after a step of training: every trainable weight is another, in place, and comes back at the end."""
        before = {name: p.detach().clone() for name, p in self.parameters.items() if p.requires_grad}
        move_weights(self.parameters, STEP, FIRST_STEP)
        try:
            self.subject.uncopied("weights_moved", self.model)
            yield
        finally:
            with torch.no_grad():
                for name, values in before.items():
                    self.parameters[name].copy_(values)
            with contextlib.suppress(AdapterError):
                self.subject.uncopied("weights_moved", self.model)

    def now(self, found: Tensors) -> Subject:
        """The subject, with the oracle of a checkpoint that holds what was found."""
        return replace(self.subject, truth=self.subject.truth.with_weights(self.probe, found))


def pulled_back(found: Tensors, gradients: Mapping[str, Any], leaves: Tensors) -> Tensors:
    """The chain rule: from gradients with respect to the checkpoint's weights to those with respect to the leaves that
    the weights were made of."""
    parts = [(w * gradients[name].double().cpu()).sum() for name, w in found.items() if name in gradients]
    total = torch.stack(parts).sum() if parts else torch.zeros(())
    if not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), grads, strict=True)}


def match_by_name(found: Mapping[str, Any], truth: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(adapter's name, checkpoint's name) of the weights whose names end alike and whose shapes agree.

    Names that are whole come before those that end alike, and of a name of two parts (`score.weight`) the end alone
    counts only where a weight is left that stands for no other: a head may be called anything.
    """
    pairs: dict[str, str] = {}
    for least in (2, 1):
        for name in (n for n in truth if n not in pairs):
            tails = (name, name.split(".", 1)[-1])
            for tail in (t for t in tails if t.count(".") + 1 >= least):
                mine = [n for n, p in found.items() if (n == tail or n.endswith("." + tail))]
                mine = [n for n in mine if found[n].shape == truth[name].shape and n not in pairs.values()]
                mine = [tail] if tail in mine else mine
                if len(mine) == 1:
                    pairs[name] = mine[0]
                    break
    return [(mine, name) for name, mine in pairs.items()]


def move_weights(
    parameters: Mapping[str, Any], step: float = 1 / 64, first_step: float = 1 / 64, exact: bool = True
) -> None:
    """What a training step does: every trainable weight moves a little.

    step        how far an entry moves, up or down or not at all
    first_step  the same of a weight that is zero throughout
    exact       to a number that bfloat16 holds; if not, to one that it mostly does not hold
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            if parameter.requires_grad and parameter.is_floating_point():
                wide = step if parameter.any() else first_step
                change = torch.randint(-1, 2, parameter.shape, generator=generator) * wide
                moved = parameter + change.to(parameter)
                parameter.copy_(moved.bfloat16().to(parameter) if exact else moved * FINE)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "none"


ALIKE = 1e-3
"""Errors that differ by less, relatively, are taken for equal."""


def furthest_off(error: Any) -> int:
    """The place of the largest of these errors, NaN the largest of all; of several that are nearly equal the first, so
    that a rounding does not decide between them."""
    sizes = error.reshape(-1).nan_to_num(nan=float("inf"))
    return int((sizes >= (1 - ALIKE) * sizes.max()).nonzero()[0])

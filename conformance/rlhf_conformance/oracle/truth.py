"""The oracle: what every sequence gives when it runs alone, unpadded, in float64 on the CPU.

Formulas come from the specification (`rlhf_spec`), the forward pass from transformers, called in the plainest way
there is: one row, explicit positions 0, 1, 2, ..., no mask, no cache. The backbone is shared with what is judged,
layouts and index arithmetic are not. Beside each truth stands the answer of the same plain call in the dtype and on
the device under test, from which budgets take their sampled part, and which tells whether a difference comes from
the device.

transformers computes norms and rotary tables in float32 whatever the dtype, hence a float32 floor in the budgets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rlhf_spec.actor
import rlhf_spec.critic
import rlhf_spec.reward
from rlhf_conformance._lazy import torch
from rlhf_conformance.oracle import probes
from rlhf_conformance.oracle.layouts import Sample
from rlhf_conformance.oracle.probes import Probe, ProbeStore

Rows = list[list[float]]


@dataclass
class Truth:
    """Answers for one probe store, remembered for each distinct sequence."""

    store: ProbeStore
    dtype: torch.dtype
    device: str
    _models: dict[Any, Any] = field(default_factory=dict)
    _outputs: dict[Any, Rows] = field(default_factory=dict)
    _others: dict[torch.dtype, Truth] = field(default_factory=dict)

    def in_dtype(self, dtype: torch.dtype) -> Truth:
        """The same with plain answers in another dtype, for models that are not loaded in the run's."""
        if dtype is self.dtype:
            return self
        return self._others.setdefault(dtype, Truth(self.store, dtype, self.device))

    def logits(self, probe: Probe, tokens: Sequence[int], *, plain: bool = False) -> Rows:
        """(L, V) logits of a causal LM; with `plain`, in the dtype and on the device under test."""
        return self._remembered(probe, tokens, plain)

    def scores(self, probe: Probe, tokens: Sequence[int], *, plain: bool = False) -> list[float]:
        """(L,) scores of the scalar head, not normalized."""
        return [row[0] for row in self._remembered(probe, tokens, plain)]

    def hidden_states(self, probe: Probe, tokens: Sequence[int], *, plain: bool = False) -> Rows:
        """(L, hidden) what the head of the model reads."""
        key = (probe, tuple(tokens), plain, "hidden")
        if key not in self._outputs:
            with torch.no_grad():
                self._outputs[key] = self._model(probe, plain).hidden(tokens).double().tolist()
        return self._outputs[key]

    def action_log_probs(self, probe: Probe, sample: Sample, temperature: float, *, plain: bool = False) -> list[float]:
        logits = self.logits(probe, sample.tokens, plain=plain)
        rows = rlhf_spec.actor.action_log_probs(logits, list(sample.tokens), len(sample.prompt), temperature)
        return rlhf_spec.actor.of_actions(rows, sample.acts)

    def action_entropies(self, probe: Probe, sample: Sample, temperature: float, *, plain: bool = False) -> list[float]:
        logits = self.logits(probe, sample.tokens, plain=plain)
        entropies = rlhf_spec.actor.action_entropies(logits, len(sample.prompt), temperature)
        return rlhf_spec.actor.of_actions(entropies, sample.acts)

    def action_values(self, probe: Probe, sample: Sample, *, plain: bool = False) -> list[float]:
        scores = self.scores(probe, sample.tokens, plain=plain)
        return rlhf_spec.actor.of_actions(rlhf_spec.critic.action_values(scores, len(sample.prompt)), sample.acts)

    def reward(self, probe: Probe, sample: Sample, *, plain: bool = False) -> float:
        scores = self.scores(probe, sample.tokens, plain=plain)
        return rlhf_spec.reward.reward(scores, [1] * len(scores))

    def scale(self, probe: Probe, samples: Sequence[Sample], *, head: bool) -> float:
        """The largest magnitude of what the answers to some samples are read from: scores of the head, or logits."""
        if head:
            largest = max(abs(x) for s in samples for x in self.scores(probe, s.tokens))
            # A score near 0 is a sum of terms that cancel: it rounds as one of the head's usual size does.
            return max(largest, 2.0 * probe.head_scale)
        return max(abs(x) for s in samples for row in self.logits(probe, s.tokens) for x in row)

    def greedy(
        self, probe: Probe, prompt: Sequence[int], max_new_tokens: int, stop_token_ids: Sequence[int]
    ) -> list[int]:
        """The greedy continuation of one prompt, its stop token included."""
        tokens = list(prompt)
        for _ in range(max_new_tokens):
            last = self.logits(probe, tokens)[-1]
            tokens.append(max(range(len(last)), key=last.__getitem__))
            if tokens[-1] in stop_token_ids:
                break
        return tokens[len(prompt) :]

    def gradients(
        self,
        probe: Probe,
        samples: Sequence[Sample],
        weights: Rows,
        *,
        answer: str,
        temperature: float = 1.0,
        plain: bool = False,
    ) -> dict[str, Any]:
        """Gradient of the weighted sum of the answers ("log_probs", "entropies", "values" or "rewards") with respect to
        every parameter that has one, by name: the sum over the sequences, each run alone."""
        model = self._model(probe, plain)
        model.module.zero_grad(set_to_none=True)
        for sample, row in zip(samples, weights, strict=True):
            answers = _ANSWERS[answer](model(sample.tokens), sample, temperature)
            (answers.double() * torch.tensor(row, dtype=torch.float64, device=answers.device)).sum().backward()
        found = {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}
        model.module.zero_grad(set_to_none=True)
        return found

    def chained(
        self,
        probe: Probe,
        samples: Sequence[Sample],
        slopes: Callable[[dict[str, Rows]], dict[str, Rows]],
        *,
        answers: Sequence[str],
        temperature: float = 1.0,
        plain: bool = False,
    ) -> dict[str, Any]:
        """Gradient of a number that depends on the `answers` to all samples together, by the chain rule: `slopes` is
        told them, a row for each sample, by their names, and says the slope of the number at each."""
        model = self._model(probe, plain)
        model.module.zero_grad(set_to_none=True)
        outputs = [model(sample.tokens) for sample in samples]
        rows = {
            name: [_ANSWERS[name](x, sample, temperature).double() for x, sample in zip(outputs, samples, strict=True)]
            for name in answers
        }
        due = slopes({name: [row.tolist() for row in own] for name, own in rows.items()})
        parts = [
            (row * torch.tensor(slope, dtype=torch.float64, device=row.device)).sum()
            for name, own in rows.items()
            for row, slope in zip(own, due[name], strict=True)
        ]
        torch.stack(parts).sum().backward()
        found = {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}
        model.module.zero_grad(set_to_none=True)
        return found

    def alone(self, probe: Probe) -> Alone:
        """The model itself, in float64, for whoever asks what it would say to something else."""
        return self._model(probe, False)

    def weights(self, probe: Probe) -> dict[str, Any]:
        """The weights of a probe by their names, float64."""
        return {name: p.detach() for name, p in self._model(probe, False).module.named_parameters()}

    def with_weights(self, probe: Probe, weights: Mapping[str, Any]) -> Truth:
        """The truth about this probe where it holds other weights under some of its names."""
        other = Truth(self.store, self.dtype, self.device)
        for plain in (False, True):
            other._models[probe, plain] = self._model(probe, plain).with_weights(weights)
        return other

    def _remembered(self, probe: Probe, tokens: Sequence[int], plain: bool) -> Rows:
        key = (probe, tuple(tokens), plain)
        if key not in self._outputs:
            with torch.no_grad():
                self._outputs[key] = self._model(probe, plain)(tokens).double().tolist()
        return self._outputs[key]

    def _model(self, probe: Probe, plain: bool) -> Alone:
        key = (probe, plain)
        if key not in self._models:
            if plain:  # a copy of the exact one, whose numbers were float32's: that is cheaper than to load it again
                module = copy.deepcopy(self._model(probe, False).module)
                self._models[key] = Alone(module.to(self.dtype).to(self.device), self.device)
            else:
                self._models[key] = Alone.load(self.store, probe, torch.float64, "cpu")
        return self._models[key]


def _states(outputs: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Of outputs (L, ...) those at the positions that predict the response, (T, ...)."""
    return outputs[len(sample.prompt) - 1 : -1]


def _acted(per_token: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Of entries (T,) for the tokens of the response those of the actions."""
    return per_token[torch.tensor(sample.acts, dtype=torch.bool, device=per_token.device)]


def _log_probs(logits: torch.Tensor, sample: Sample, temperature: float) -> torch.Tensor:
    tokens = torch.tensor(sample.response, device=logits.device)[:, None]
    return _acted((_states(logits, sample) / temperature).log_softmax(-1).gather(1, tokens)[:, 0], sample)


def _entropies(logits: torch.Tensor, sample: Sample, temperature: float) -> torch.Tensor:
    log_probs = (_states(logits, sample) / temperature).log_softmax(-1)
    return _acted(-(log_probs.exp() * log_probs).sum(-1), sample)


_ANSWERS = {
    "log_probs": _log_probs,
    "entropies": _entropies,
    "values": lambda scores, sample, _: _acted(_states(scores, sample)[:, 0], sample),
    "rewards": lambda scores, sample, _: scores[-1],
}


@dataclass(frozen=True)
class Alone:
    """A probe that runs one sequence alone: tokens -> (L, V) logits or (L, 1) scores."""

    module: Any
    device: str

    @classmethod
    def load(cls, store: ProbeStore, probe: Probe, dtype: torch.dtype, device: str) -> Alone:
        with torch.random.fork_rng(devices=[]):
            module = probes.module_of(probe, store.path(probe))
        if probe.head_name is not None and module.score.bias is None:
            # What a trainer's head may have though the file has none: it is zero, and can be trained.
            module.score.bias = torch.nn.Parameter(torch.zeros(1))
        return cls(module.to(dtype).to(device), device)

    def with_weights(self, weights: Mapping[str, Any]) -> Alone:
        """The same with other weights under some of its names; its own stay as they are."""
        module = copy.deepcopy(self.module)
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, values in weights.items():
                parameters[name].copy_(values)
        return Alone(module, self.device)

    def hidden(self, tokens: Sequence[int]) -> torch.Tensor:
        """(L, hidden) what the head reads."""
        return self.module.base_model(**self._inputs(tokens))[0][0]

    def __call__(self, tokens: Sequence[int]) -> torch.Tensor:
        if hasattr(self.module, "score"):
            return self.module.score(self.hidden(tokens))
        return self.module(**self._inputs(tokens)).logits[0]

    def _inputs(self, tokens: Sequence[int]) -> dict[str, Any]:
        ids = torch.tensor([list(tokens)], device=self.device)
        positions = torch.arange(len(tokens), device=self.device)[None]
        return {"input_ids": ids, "position_ids": positions, "use_cache": False}

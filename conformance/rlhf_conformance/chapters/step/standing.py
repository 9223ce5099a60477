"""A trainer as it stands, and what its next step is to be: the truth is that of the objective on ragged samples.

What the samples are given as old log-probs is made of the probe's own, in float64. So is the gradient that is due: the
specification says what an objective's slope is at each log-prob and at each entropy, and the chain rule of the samples,
each run alone, does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._masked import Rows, exactly
from rlhf_conformance.chapters._models.weights import Tensors, Weights, pulled_back
from rlhf_conformance.chapters.corrected_loss.cases import CorrectedLossCase, declared
from rlhf_conformance.chapters.corrected_loss.interface import CorrectedLossOptions
from rlhf_conformance.chapters.corrected_loss.loss import CORRECTED
from rlhf_conformance.chapters.objective.cases import ObjectiveCase
from rlhf_conformance.chapters.objective.interface import ObjectiveOptions
from rlhf_conformance.chapters.objective.terms import OBJECTIVE
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions
from rlhf_conformance.chapters.step.cases import StepCase
from rlhf_conformance.chapters.step.relations import Share
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.batch import StepSample

LEAVES = {"log_probs": "", "entropies": "entropies", "values": "values"}
"""What a model answers that an objective has a slope with respect to, and what that leaf is called there."""


AnyCase = ObjectiveCase | CorrectedLossCase


def _loss(case: AnyCase) -> Any:
    """What the call is one of."""
    return CORRECTED if isinstance(case, CorrectedLossCase) else OBJECTIVE


@dataclass(frozen=True)
class Known:
    """What was known when the samples were drawn, rows of response tokens: it stays while the weights move."""

    old: Rows
    ref: Rows
    values: Rows
    returns: Rows
    engine: Rows

    def rows(self, order: Sequence[int]) -> Known:
        """Of the samples in this order, in which some may be missing."""
        return Known(**{name: tuple(table[i] for i in order) for name, table in vars(self).items()})


@dataclass(frozen=True)
class Standing:
    """A trainer's weights at one moment.

    subject     with the oracle of a checkpoint that holds these weights
    found       the checkpoint's weights, made of `leaves`, the parameters
    """

    subject: Subject
    case: StepCase
    weights: Weights
    leaves: Tensors
    found: Tensors

    @classmethod
    def of(cls, weights: Weights, case: StepCase, *, moved: bool = False) -> Standing:
        """Of a trainer that was just loaded, or of one whose weights have `moved` since."""
        leaves = weights.leaves()
        found = weights.found(leaves)
        return cls(weights.now(found) if moved or weights.adapted else weights.subject, case, weights, leaves, found)

    # --- what is known -----------------------------------------------------------------------------------------------

    @cached_property
    def fine(self) -> bool:
        """Whether a plain pass in the dtype under test is so near to the truth that nothing is to be learned of it."""
        return budgets.is_fine(self.subject.dtype)

    def answers(self, name: str, *, plain: bool = False) -> list[list[float]]:
        """Of the actions, by one of the names of `LEAVES`: a row for each sample."""
        truth, case = self.subject.truth, self.case
        if name == "values":
            return [truth.action_values(case.probe, sample, plain=plain) for sample in case.samples]
        ask = truth.action_entropies if name == "entropies" else truth.action_log_probs
        return [ask(case.probe, sample, case.temperature, plain=plain) for sample in case.samples]

    def of_responses(self, rows: Sequence[Sequence[float]]) -> Rows:
        """Of rows of actions rows of response tokens, 0 under the mask."""
        found = []
        for sample, row in zip(self.case.samples, rows, strict=True):
            of_actions = iter(row)
            found.append(tuple(next(of_actions) if acts else 0.0 for acts in sample.acts))
        return tuple(found)

    @cached_property
    def _exact(self) -> Rows:
        return self.of_responses(self.answers(self.asked[0]))

    def known(self) -> Known:
        """What the case holds of the samples, away from the kinks of its clip. Of an actor the values are any, and of a
        critic the log-probs."""
        values, errors = (
            tuple(tuple(exactly(sign * x, self.subject.dtype) for x in row) for row in rows)
            for sign, rows in ((-1, self.case.value_moves), (1, self.case.errors))
        )
        if self.case.critic:
            own = self._exact
            values, errors = (
                tuple(
                    tuple(exactly(v + x, self.subject.dtype) for v, x in zip(*pair, strict=True))
                    for pair in zip(own, rows, strict=True)
                )
                for rows in (values, errors)
            )
            return Known(self.case.log_ratios, self.case.kl_ratios, values, errors, self.case.log_ratios)
        old, ref = self._log_probs_known()
        engine = tuple(
            tuple(exactly(x - d, self.subject.dtype) for x, d in zip(*pair, strict=True))
            for pair in zip(old, self.case.apart, strict=True)
        )
        return Known(old, ref, values, errors, engine)

    def _log_probs_known(self) -> tuple[Rows, Rows]:
        exact = self._exact
        rough = exact if self.fine else self.of_responses(self.answers("log_probs", plain=True))
        old, ref = [], []
        for i, sample in enumerate(self.case.samples):
            slack = max((abs(a - b) for a, b in zip(exact[i], rough[i], strict=True)), default=0.0)
            apart = self._clear(i, max(0.01, budgets.PLAIN * slack))
            places = range(len(sample.response))
            old.append(tuple(self._apart(i, j, apart[j]) for j in places))
            ref.append(tuple(self._apart(i, j, self.case.kl_ratios[i][j]) for j in places))
        return tuple(old), tuple(ref)

    def _clear(self, i: int, guard: float) -> list[float]:
        """The log-ratios of a sample, as far from the kinks of the clip as no rounding may bridge: of each token, or
        where the ratio is that of the sequence of their mean over the actions."""
        o, drawn, sample = self.case.options, list(self.case.log_ratios[i]), self.case.samples[i]
        clear = _away(_bounds(o), guard)
        acts = [j for j, marked in enumerate(sample.acts) if marked]
        if o.surrogate != "gspo":
            return [clear(d) for d in drawn]
        mean = math.fsum(drawn[j] for j in acts) / max(1, len(acts))
        return [d + clear(mean) - mean for d in drawn]

    def _apart(self, i: int, j: int, d: float) -> float:
        """The log-prob that lies d below the one of a token, as the dtype holds it."""
        sample = self.case.samples[i]
        return exactly((self._exact[i][j] if sample.acts[j] else -1.0) - d, self.subject.dtype)

    def samples(self, known: Known) -> list[StepSample]:
        """What the adapter is handed."""
        subject, case = self.subject, self.case
        kind = torch.float64 if subject.dtype is torch.float64 else torch.float32

        def numbers(row: tuple[float, ...]) -> Any:
            return subject.tensor(row, kind)

        return [
            StepSample(
                prompt=subject.tensor(list(sample.prompt)),
                response=subject.tensor(list(sample.response)),
                action_mask=subject.tensor(list(sample.acts)),
                old_log_probs=numbers(known.old[i]),
                advantages=numbers(case.advantages[i]),
                ref_log_probs=numbers(known.ref[i]),
                old_values=numbers(known.values[i]),
                returns=numbers(known.returns[i]),
                rollout_log_probs=numbers(known.engine[i]),
            )
            for i, sample in enumerate(case.samples)
        ]

    # --- what is due -------------------------------------------------------------------------------------------------

    def objective(self, known: Known, answers: Mapping[str, Sequence[Sequence[float]]]) -> AnyCase:
        """The call of the objective, or of the corrected loss, that the step is where the models give these answers for
        the actions, all of its samples in one rectangle."""
        case = self.case
        width = max(len(s.response) for s in case.samples)

        def rectangle(rows: Any) -> Any:
            return tuple((*row, *(0.0,) * (width - len(row))) for row in rows)

        zeros = rectangle([()] * len(case.samples))
        given = {name: rectangle(self.of_responses(rows)) for name, rows in answers.items()}
        mask = tuple((*s.acts, *(0,) * (width - len(s.response))) for s in case.samples)
        tables = {
            "log_probs": given.get("log_probs", zeros),
            "old_log_probs": zeros if case.critic else rectangle(known.old),
            "advantages": zeros if case.critic else rectangle(case.advantages),
        }
        if case.options.correction is not None:
            policy = {row.name: getattr(case.options, row.name) for row in fields(PolicyLossOptions)}
            weights = {**vars(case.options.correction), **declared(self.subject.adapter)}
            options = CorrectedLossOptions(**policy, **weights)
            return CorrectedLossCase(
                **tables, rollout_log_probs=rectangle(known.engine), action_mask=mask, options=options
            )
        own = {row.name: getattr(case.options, row.name) for row in fields(ObjectiveOptions)}
        return ObjectiveCase(
            **tables,
            entropies=given.get("entropies", zeros),
            ref_log_probs=rectangle(known.ref),
            values=given.get("values", zeros),
            old_values=rectangle(known.values),
            returns=rectangle(known.returns),
            action_mask=mask,
            options=ObjectiveOptions(**own),
        )

    def shares(self, whole: AnyCase, of: str = "") -> list[tuple[float, AnyCase]]:
        """The objectives whose weighted sum is minimised: one for all samples, or the mean over the micro-batches.

        of      which of the terms is asked for, or which of the answers that they depend on: the entropy may be divided
                by other counts than the rest
        """
        adapter = self.subject.adapter
        own = adapter.step_entropy_denominators if of in ("entropy", "entropies") else "as-policy"
        if (adapter.step_denominators if own == "as-policy" else own) == "step":
            return [(1.0, whole)]
        parts = self.case.parts
        return [(1.0 / len(parts), whole.rows(part)) for part in parts]

    @property
    def asked(self) -> tuple[str, ...]:
        """What the model answers that the objective depends on."""
        if self.case.critic:
            return ("values",)
        return ("log_probs", "entropies") if self.case.options.entropy_coef else ("log_probs",)

    @property
    def counted(self) -> bool:
        return bool(self.subject.adapter.count_empty_rows)

    def logged(self, known: Known, term: str = "", *, plain: bool = False) -> tuple[float, float]:
        """What the step minimises, or one of its terms before its coefficient, and how far it may be off."""
        of = {name: self.answers(name, plain=plain) for name in self.asked}
        whole: Any = self.objective(known, of)
        coef = 0.0 if term else whole.options.entropy_coef
        values, errors = [], []
        case: Any
        for share, case in self.shares(whole if term else whole.with_options(entropy_coef=0.0), term):
            if case.actions and term:
                values.append(share * OBJECTIVE.term(case, term, self.counted))
                errors.append(share * OBJECTIVE.term_budget(case, term, self.subject.dtype))
            elif case.actions:
                values.append(share * OBJECTIVE.value(case, self.counted))
                errors.append(share * OBJECTIVE.value_budget(case, self.subject.dtype))
        if coef:  # the bonus may have counts of its own
            entropy, error = self.logged(known, "entropy", plain=plain)
            values.append(-coef * entropy)
            errors.append(coef * error)
        return math.fsum(values), math.fsum(errors)

    def gradient(self, known: Known, *, plain: bool = False) -> Tensors:
        """The gradient that is due, by the adapter's names, before any clipping; float64."""
        case = self.case

        def slopes(answers: dict[str, list[list[float]]]) -> dict[str, list[list[float]]]:
            whole = self.objective(known, answers)
            return {name: self._slopes(self.shares(whole, name), LEAVES[name]) for name in answers}

        asked: dict[str, Any] = {"answers": self.asked, "temperature": case.temperature, "plain": plain}
        return pulled_back(
            self.found, self.subject.truth.chained(case.probe, case.samples, slopes, **asked), self.leaves
        )

    def _slopes(self, shares: list[tuple[float, AnyCase]], leaf: str) -> list[list[float]]:
        """Of what is minimised at the answer for each action: a row for each sample."""
        rows = [
            [share * x for x in row] for share, case in shares for row in _loss(case).gradient(case, self.counted, leaf)
        ]
        return [s.of_actions(row[: len(s.response)]) for s, row in zip(self.case.samples, rows, strict=True)]

    def contributions(self, known: Known, scale: float) -> list[Share]:
        """What each sample adds to the gradient by each term, times the scale."""
        case, found = self.case, []
        whole = self.objective(known, {name: self.answers(name) for name in self.asked})
        of_terms = self._of_critic(whole) if case.critic else self._of_actor(whole)
        for term, slopes in of_terms.items():
            for i, sample in enumerate(case.samples):
                if any(sample.acts):
                    gradient = self._pulled(i, slopes, scale)
                    found.append(Share(i, term, sum(sample.acts), gradient))
        return found

    def _of_critic(self, whole: AnyCase) -> dict[str, dict[str, list[list[float]]]]:
        return {"value loss": {"values": self._slopes(self.shares(whole), "values")}}

    def _of_actor(self, whole: AnyCase) -> dict[str, dict[str, list[list[float]]]]:
        """The slopes of each term."""
        shares = self.shares(whole)
        if self.case.options.correction is not None:
            return {"policy loss": {"log_probs": self._slopes(shares, "")}}
        alone = [(share, one.with_options(kl_coef=0.0, entropy_coef=0.0)) for share, one in shares]
        policy, both = self._slopes(alone, ""), self._slopes(shares, "")
        found = {"policy loss": {"log_probs": policy}}
        if self.case.options.kl_coef:
            pairs = zip(both, policy, strict=True)
            found["KL"] = {"log_probs": [[a - b for a, b in zip(*rows, strict=True)] for rows in pairs]}
        if self.case.options.entropy_coef:
            found["entropy"] = {"entropies": self._slopes(self.shares(whole, "entropy"), "entropies")}
        return found

    def _pulled(self, i: int, slopes: dict[str, list[list[float]]], scale: float) -> Tensors:
        """The gradient of one sample at these slopes."""
        case = self.case
        own = {name: [[scale * x for x in rows[i]]] for name, rows in slopes.items()}
        asked: dict[str, Any] = {"answers": tuple(own), "temperature": case.temperature}
        found = self.subject.truth.chained(case.probe, [case.samples[i]], lambda _: own, **asked)
        return pulled_back(self.found, found, self.leaves)

    def due(self, known: Known) -> Due:
        """The gradient as the optimizer is to be given it, and how far it may be off."""
        judged = self.weights.judged
        exact = self.gradient(known)
        rough = exact if self.fine else self.gradient(known, plain=True)
        trained = {name: p for name, p in judged.items() if p.requires_grad}
        norm, apart = (
            math.sqrt(math.fsum(float(x.square().sum()) for x in unique(some, trained)))
            for some in (exact, {name: exact[name] - rough[name] for name in trained})
        )
        bound = self.case.options.max_norm
        scale = 1.0 if bound is None else min(1.0, bound / (norm + 1e-6))
        largest = max(float(exact[name].abs().max()) for name in judged)
        sampled = max(float((exact[name] - rough[name]).abs().max()) for name in judged)
        parts = len(self.case.parts)
        allowed = scale * budgets.accumulated(largest, sampled, parts, self.subject.dtype)
        return Due(
            gradient={name: scale * x for name, x in exact.items()},
            allowed=allowed,
            shares=lambda: self.contributions(known, scale),
            norm=norm,
            norm_allowed=budgets.norm(norm, apart, self.subject.dtype),
        )


@dataclass(frozen=True)
class Due:
    """A gradient by the names of parameters, how far an entry may be off, what each sample and each term adds to it,
    its norm before clipping, and how far that may be."""

    gradient: Mapping[str, Any]
    allowed: float
    shares: Callable[[], list[Share]]
    norm: float
    norm_allowed: float


def unique(tensors: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[Any]:
    """Those of the parameters, of one that has two names once."""
    return list({id(p): tensors[name] for name, p in parameters.items()}.values())


def _bounds(options: Any) -> list[float]:
    """The log-ratios at which the loss of an action has a kink."""
    low, high = 1 - options.clip_eps_low, 1 + options.clip_eps_high
    if (options.surrogate, options.cispo_bounds) == ("cispo", "cap"):
        low, high = 0.0, options.clip_eps_high
    ratios = () if options.surrogate == "reinforce" else (low, high, options.dual_clip or 0.0)
    return [math.log(x) for x in ratios if x > 0]


def _away(kinks: list[float], guard: float) -> Callable[[float], float]:
    """Moves a log-ratio to the nearest place that lies further from all kinks than the guard."""

    def moved(d: float) -> float:
        places = [d, 0.0, *(kink + side * 1.5 * guard for kink in kinks for side in (-1.0, 1.0))]
        clear = [x for x in places if all(abs(x - kink) > guard for kink in kinks)]
        return min(clear, key=lambda x: abs(x - d))

    return moved


@contextmanager
def moved_adapters(weights: Weights) -> Iterator[None]:
    """Weights as they were loaded, or with adapters of LoRA moved: else B is zero, and no gradient reaches A."""
    if not weights.adapted:
        yield
        return
    with weights.moved():
        yield

"""Honest variants of the objective."""

from __future__ import annotations

from dataclasses import fields, replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.averaging import averaged
from rlhf_conformance.chapters.log_probs.twins import upcast
from rlhf_conformance.chapters.objective.interface import ObjectiveResult
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions
from rlhf_conformance.chapters.value_loss.interface import ValueLossOptions
from rlhf_conformance.twins import twin


def _estimate(d, estimator):
    return {"k1": lambda: d, "k2": lambda: 0.5 * d**2, "k3": lambda: (-d).exp() - 1 + d, "abs": lambda: d.abs()}[
        estimator
    ]()


@twin
class TermsSummedByToken(Reference):
    "The terms are added token by token, and the sum is aggregated once, as in verl's and TRL's losses with one mean."

    surrogates = ("ppo",)
    kl_log_ratio_clamp = kl_clamp = None

    def objective(self, new, old, advantages, entropies, ref, values, old_values, returns, mask, options):
        tables = (new, old, advantages, entropies, ref, values, old_values, returns)
        new, old, advantages, entropies, ref, values, old_values, returns = (
            upcast(x).where(mask.bool(), 0.0) for x in tables
        )
        ratio = (new - old).clamp(max=20.0).exp()
        losses = -torch.min(
            ratio * advantages, ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high) * advantages
        )
        if options.dual_clip is not None:
            losses = torch.where(advantages < 0, torch.min(losses, -options.dual_clip * advantages), losses)
        if options.kl_coef:
            losses = losses + options.kl_coef * _estimate(new - ref, options.estimator)
        if options.entropy_coef:
            losses = losses - options.entropy_coef * entropies
        if options.value_coef:
            squares = (values - returns) ** 2
            if options.value_clip_eps is not None:
                held = old_values + (values - old_values).clamp(-options.value_clip_eps, options.value_clip_eps)
                squares = torch.max(squares, (held - returns) ** 2)
            losses = losses + 0.5 * options.value_coef * squares
        return averaged(losses, mask, options)


@twin
class KlOfTheNewPolicy(Reference):
    "As in TRL's GRPO: the KL is multiplied by the ratio of the policy loss, with its graph, and added token by token."

    surrogates, objective_terms = ("ppo", "gspo"), ("kl", "entropy")
    kl_estimators, kl_gradient, kl_correction = ("k3",), "weighted", "ratio"
    kl_log_ratio_clamp = kl_clamp = None
    aggregations, entropy_aggregation = ("token-mean",), "token-mean"
    constant_length = token_sum = False

    def objective(self, new, old, advantages, entropies, ref, values, old_values, returns, mask, options):
        new, old, advantages, entropies, ref = (
            upcast(x).where(mask.bool(), 0.0) for x in (new, old, advantages, entropies, ref)
        )
        counts, log_ratio = mask.bool().sum(-1, keepdim=True).clamp(min=1), new - old
        if options.surrogate == "gspo":
            log_ratio = log_ratio.sum(-1, keepdim=True) / counts
        ratio = log_ratio.exp()
        held = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        capped = ratio if options.dual_clip is None else ratio.where(advantages > 0, ratio.clamp(max=options.dual_clip))
        losses = -torch.min(capped * advantages, held * advantages)
        if options.kl_coef:
            losses = losses + options.kl_coef * (torch.exp(ref - new) - (ref - new) - 1) * ratio
        loss = averaged(losses, mask, options)
        if options.entropy_coef:
            loss = loss - options.entropy_coef * averaged(entropies, mask, options)
        return loss


@twin
class TermsOfOwnMethods(Reference):
    "The policy loss and the value loss are those of the adapter's own methods; KL and entropy stand beside them."

    constant_length = token_sum = False
    kl_gradient = "weighted"

    def objective(self, new, old, advantages, entropies, ref, values, old_values, returns, mask, options):
        own = {row.name: getattr(options, row.name) for row in fields(PolicyLossOptions)}
        policy = self.policy_loss(new, old, advantages, mask, PolicyLossOptions(**own)).loss
        loss, value, kl, entropy = policy, None, None, None
        if options.value_coef > 0:
            of_value = ValueLossOptions(options.value_clip_eps, options.aggregation, options.global_count)
            value = self.value_loss(values, old_values, returns, mask, of_value)
            loss = torch.add(loss, value, alpha=options.value_coef)
        if options.entropy_coef > 0:
            entropy = averaged(upcast(entropies), mask, options)
            loss = loss - entropy * options.entropy_coef
        if options.kl_coef > 0:
            new, ref = (upcast(x).where(mask.bool(), 0.0) for x in (new, ref))
            kl = averaged(self._held(new - ref, options.estimator) * (new - new.detach()).exp(), mask, options)
            loss = loss + kl * options.kl_coef
        return ObjectiveResult(loss, *(None if x is None else float(x) for x in (policy, value, kl, entropy)))

    def _held(self, d, estimator):
        if estimator not in self.kl_clamped:
            return _estimate(d, estimator)
        held = _estimate(d.clamp(-self.kl_log_ratio_clamp, self.kl_log_ratio_clamp), estimator)
        return held.clamp(-self.kl_clamp, self.kl_clamp)


@twin
class TermsWithMeansOfTheirOwn(Reference):
    "As in OpenRLHF and SkyRL: a token mean of the entropy, a sequence mean of the KL, whatever the policy loss has."

    entropy_aggregation, kl_aggregation, value_aggregation = "token-mean", "sequence-mean", "token-mean"
    kl_gradient = "k2"

    def objective(self, new, old, advantages, entropies, ref, values, old_values, returns, mask, options):
        whole = super().objective(
            new,
            old,
            advantages,
            entropies,
            ref,
            values,
            old_values,
            returns,
            mask,
            replace(options, entropy_coef=0.0),
        )
        if not options.entropy_coef:
            return whole.loss
        chosen = upcast(entropies).where(mask.bool(), 0.0)
        return whole.loss - options.entropy_coef * chosen.sum() / mask.bool().sum().clamp(min=1)


@twin
class EntropyBonusAlone(Reference):
    "An actor without critic and reference: the only term beside its loss is the entropy, by rows in a loop."

    objective_terms = ("entropy",)
    surrogates = ("cispo", "reinforce")
    aggregations, constant_length, token_sum = ("token-mean",), False, False

    def objective(self, new, old, advantages, entropies, ref, values, old_values, returns, mask, options):
        assert (options.kl_coef, options.value_coef) == (0.0, 0.0), "no other term is declared"
        own = {row.name: getattr(options, row.name) for row in fields(PolicyLossOptions)}
        loss = self.policy_loss(new, old, advantages, mask, PolicyLossOptions(**own)).loss
        count = options.global_count or mask.bool().sum().clamp(min=1)
        if options.entropy_coef:
            for row, marks in zip(entropies, mask.bool(), strict=True):
                loss = loss - options.entropy_coef * upcast(row)[marks].sum() / count
        return ObjectiveResult(loss)


@twin
class ActorAndCriticApart(Reference):
    "The loss of the actor and that of the critic are made in two places, in float64, and added last."

    kl_estimators = ("k3", "k2")

    def objective(self, new, old, advantages, entropies, ref, values, old_values, returns, mask, options):
        tables = (x.double() for x in (new, old, advantages, entropies, ref, values, old_values, returns))
        new, old, advantages, entropies, ref, values, old_values, returns = tables
        rest = (ref, values, old_values, returns, mask)
        actor = super().objective(new, old, advantages, entropies, *rest, replace(options, value_coef=0.0))
        if not options.value_coef:
            return actor
        nothing = torch.zeros_like(new)
        alone = replace(options, kl_coef=0.0, entropy_coef=0.0, surrogate="reinforce")
        critic = super().objective(nothing, nothing, nothing, entropies, *rest, alone)
        return replace(actor, loss=actor.loss + critic.loss, value_loss=critic.value_loss)

"""What a PPO trainer minimises, and the adapter that puts it to the test.

Check it with `rlhf-conformance check examples/objective_only.py:InHouse`.
"""

from __future__ import annotations

import torch

from rlhf_conformance import Adapter, ObjectiveResult

# --- the trainer: in your repository this is an import ---------------------------------------------------------------


def masked_mean(x, mask):
    """The mean over the actions; 0 with a graph where there are none."""
    return x.where(mask, 0.0).sum() / mask.sum().clamp(min=1)


def ppo_objective(batch, mask, eps, value_eps, value_coef, kl_coef, entropy_coef):
    """The clipped surrogate loss, the value loss, the KL from the reference (k3) and the entropy bonus; all (B, T)."""
    mask = mask.bool()
    batch = {name: x.float().where(mask, 0.0) for name, x in batch.items()}
    ratio = (batch["log_probs"] - batch["old_log_probs"]).clamp(max=80.0).exp()
    clipped = ratio.clamp(1 - eps[0], 1 + eps[1])
    surrogate = torch.minimum(ratio * batch["advantages"], clipped * batch["advantages"])
    terms = {"policy": masked_mean(-surrogate, mask)}
    loss = terms["policy"]
    if value_coef:
        errors = (batch["values"] - batch["returns"]) ** 2
        if value_eps is not None:
            held = batch["old_values"] + (batch["values"] - batch["old_values"]).clamp(-value_eps, value_eps)
            errors = torch.maximum(errors, (held - batch["returns"]) ** 2)
        terms["value"] = masked_mean(0.5 * errors, mask)
        loss = loss + value_coef * terms["value"]
    if kl_coef:
        d = batch["log_probs"] - batch["ref_log_probs"]
        terms["kl"] = masked_mean(torch.expm1(-d) + d, mask)
        loss = loss + kl_coef * terms["kl"]
    if entropy_coef:
        terms["entropy"] = masked_mean(batch["entropies"], mask)
        loss = loss - entropy_coef * terms["entropy"]
    return loss, {name: term.item() for name, term in terms.items()}


# --- the adapter -----------------------------------------------------------------------------------------------------


class InHouse(Adapter):
    objective_terms = ("value", "kl", "entropy")
    kl_estimators = ("k3",)

    def objective(
        self,
        log_probs,
        old_log_probs,
        advantages,
        entropies,
        ref_log_probs,
        values,
        old_values,
        returns,
        action_mask,
        options,
    ):
        batch = {"log_probs": log_probs, "old_log_probs": old_log_probs, "advantages": advantages}
        batch |= {"entropies": entropies, "ref_log_probs": ref_log_probs}
        batch |= {"values": values, "old_values": old_values, "returns": returns}
        eps = options.clip_eps_low, options.clip_eps_high
        coefs = options.value_coef, options.kl_coef, options.entropy_coef
        loss, terms = ppo_objective(batch, action_mask, eps, options.value_clip_eps, *coefs)
        logged = (terms.get(name) for name in ("policy", "value", "kl", "entropy"))
        return ObjectiveResult(loss, *logged)

"""An in-house GRPO step and its adapter: micro-batches by rows, one token mean over the step, a KL, a clipped norm.

rlhf-conformance check examples/step_only.py:InHouse --only step
"""

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from rlhf_conformance import Adapter, StepResult


class GrpoTrainer:
    """What a team might have: a model, an optimizer, and a step on a list of samples."""

    def __init__(self, path, dtype, device, temperature, options):
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=options.learning_rate)
        self.temperature, self.options = temperature, options

    def log_probs(self, samples):
        """(B, T) for responses padded right, 0 behind them."""
        rows = [torch.cat([s.prompt, s.response]) for s in samples]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        logits = self.model(ids, attention_mask=mask, use_cache=False).logits[:, :-1].float() / self.temperature
        every = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        first = [len(s.prompt) - 1 for s in samples]
        own = [row[a : a + len(s.response)] for row, a, s in zip(every, first, samples, strict=True)]
        return pad_sequence(own, batch_first=True)

    def loss(self, samples, actions):
        """The share of a micro-batch in the loss of a step with so many actions."""
        names = ("action_mask", "old_log_probs", "advantages", "ref_log_probs")
        mask, old, advantages, ref = (pad_sequence([getattr(s, n) for s in samples], batch_first=True) for n in names)
        new, o = self.log_probs(samples), self.options
        ratio = (new - old).exp()
        held = ratio.clamp(1 - o.clip_eps_low, 1 + o.clip_eps_high)
        losses = -torch.min(ratio * advantages, held * advantages)
        losses = losses + o.kl_coef * (torch.expm1(ref - new) - (ref - new))
        return losses.masked_fill(mask == 0, 0.0).sum() / actions

    def accumulate(self, samples):
        self.optimizer.zero_grad()
        actions = max(1, sum(int(s.action_mask.sum()) for s in samples))
        size, total = self.options.micro_batch_size, 0.0
        for start in range(0, len(samples), size):
            loss = self.loss(samples[start : start + size], actions)
            loss.backward()
            total += loss.item()
        bound = float("inf") if self.options.max_norm is None else self.options.max_norm
        return total, torch.nn.utils.clip_grad_norm_(self.model.parameters(), bound)

    def step(self, samples):
        self.accumulate(samples)
        self.optimizer.step()


class InHouse(Adapter):
    name = "in-house GRPO step"
    aggregations = ("token-mean",)
    asymmetric_clip = True
    kl_estimators, kl_gradient = ("k3",), "plain"
    step_terms = ("policy", "kl")
    step_remainder = True
    turns = True

    def load_trainer(self, checkpoint, options):
        return GrpoTrainer(checkpoint.path, checkpoint.dtype, checkpoint.device, checkpoint.temperature, options)

    def step_gradients(self, trainer, samples):
        loss, norm = trainer.accumulate(samples)
        found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
        return StepResult(found, loss=loss, grad_norm=norm)

    def step_update(self, trainer, samples):
        trainer.step(samples)

    def step_log_probs(self, trainer, samples):
        with torch.no_grad():
            rows = trainer.log_probs(samples)
        return [row[: len(sample.response)] for row, sample in zip(rows, samples, strict=True)]

"""PPO on a toy reward with the parts of the reference: a tiny actor and a tiny critic, from scores to a step.

    python examples/toy_training.py --plot rewards.png      (needs matplotlib)

A prompt is one token. A response has up to six, and is scored by the share of them that are the prompt's token; token
1 ends it. An untrained policy gets about one in twelve right.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from rlhf_reference import (
    Actor,
    CriticModel,
    Objective,
    PolicyLoss,
    Sample,
    Trainer,
    process_sequences,
)
from rlhf_reference.credit import credited

VOCABULARY, STOP, PAD, LONGEST = 12, 1, 0, 6
TINY = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
ROLLOUTS, EPOCHS, MICRO_BATCHES = 64, 3, 2
KL_COEF, LEARNING_RATE = 0.02, 1e-2


def score(prompt, response):
    """The share of LONGEST tokens that are the prompt's."""
    return float((response == prompt[-1]).sum()) / LONGEST


def rollout(trainer, reference, generator, sign):
    """Samples of the policy as it is, with advantages and returns, and the mean of their scores."""
    prompts = torch.randint(2, VOCABULARY, (ROLLOUTS, 1), generator=generator)
    rows = trainer.actor.generate(
        prompts,
        torch.ones_like(prompts),
        max_new_tokens=LONGEST,
        stop_token_ids=[STOP],
        pad_token_id=PAD,
        do_sample=True,
    )
    mask = process_sequences(rows, 1, stop_token_ids=[STOP], pad_token_id=PAD).action_mask
    responses = [row[1:][actions] for row, actions in zip(rows, mask, strict=True)]
    asked = [Sample(p, r, *[torch.zeros(len(r))] * 2) for p, r in zip(prompts, responses, strict=True)]

    log_probs, values = trainer.log_probs(asked), trainer.values(asked)
    ref_log_probs = trainer.log_probs(asked, reference)
    scores = torch.tensor([score(sample.prompt, sample.response) for sample in asked])

    actions = pad_sequence([torch.ones(len(r)) for r in responses], batch_first=True)
    tables = (pad_sequence(x, batch_first=True) for x in (log_probs, ref_log_probs, values))
    advantages, returns = credited(scores, *tables, actions, kl_coef=KL_COEF, lam=0.95, whitening={})
    samples = [
        Sample(a.prompt, a.response, lp, sign * adv[: len(lp)], old_values=v, returns=ret[: len(lp)])
        for a, lp, v, adv, ret in zip(asked, log_probs, values, advantages, returns, strict=True)
    ]
    return samples, float(scores.mean())


def train(steps=40, seed=0, sign=1.0):
    """The mean score of the rollouts, step by step. With `sign` -1 the advantages are negated."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = LlamaConfig(**TINY, num_attention_heads=2, pad_token_id=PAD, eos_token_id=STOP, bos_token_id=None)
    actor, reference = Actor(LlamaForCausalLM(config)), Actor(LlamaForCausalLM(config))
    reference.load_state_dict(actor.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        LlamaModel(config).save_pretrained(folder)
        critic = CriticModel(folder, init_head=True)
    objective = Objective(PolicyLoss(0.2, 0.2), value_coef=0.5, value_clip_eps=0.2)
    weights = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    trainer = Trainer(actor, objective, optimizer, critic=critic, max_norm=1.0, layout="packed")
    rewards = []
    for _ in range(steps):
        samples, reward = rollout(trainer, reference, generator, sign)
        rewards.append(reward)
        for _ in range(EPOCHS):
            order = torch.randperm(ROLLOUTS, generator=generator).tolist()
            trainer.step(samples, [order[i::MICRO_BATCHES] for i in range(MICRO_BATCHES)])
    return rewards


def plot(path, seeds=(0, 1, 2)):
    """The rewards of some seeds over the steps, as a picture."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for seed in seeds:
        axes.plot(train(seed=seed), label=f"seed {seed}")
    axes.set(xlabel="step", ylabel="mean reward of the rollouts", ylim=(0, 1))
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="FILE", help="train three times, and draw the rewards")
    arguments = parser.parse_args()
    if arguments.plot:
        plot(arguments.plot)
        return
    for step, reward in enumerate(train()):
        print(f"step {step}: mean reward {reward:.3f}", flush=True)


if __name__ == "__main__":
    main()

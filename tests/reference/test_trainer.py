"""A step: the same gradient however it is cut, and nothing left over."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

import rlhf_reference as ref
from rlhf_spec import objective as spec

COEFS = {"value_coef": 0.5, "kl_coef": 0.3, "entropy_coef": 0.1}
MEANS = {"token-mean": {}, "sequence-mean": {}, "constant-length": {"constant_length": 9}, "token-sum": {}}
CUTS = [[[0, 1, 2, 3, 4]], [[i] for i in range(5)], [[4, 0], [3], [2, 1]], [[3], [], [0, 1, 2, 4]]]
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
"""A Llama takes its norms in float32, whatever its dtype."""
BAND = {"clip_eps_low": 0.2, "clip_eps_high": 0.3}


@pytest.fixture
def models(tmp_path):
    """A new actor and a new critic, the same each time."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.4)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "actor")
    LlamaModel(config).save_pretrained(tmp_path / "critic")
    critic = ref.CriticModel(tmp_path / "critic", init_head=True, dtype=torch.float64)

    def new(**options):
        return ref.Actor(tmp_path / "actor", dtype=torch.float64, **options), copy.deepcopy(critic)

    return new


@pytest.fixture
def samples():
    """Of unequal lengths, one with a hole in its mask, one without an action, one without a response."""
    generator = torch.Generator().manual_seed(1)

    def numbers(n):
        return torch.randn(n, generator=generator, dtype=torch.float64)

    found = []
    for prompt, response in ((1, 5), (4, 2), (2, 7), (3, 3), (2, 0)):
        ids = torch.randint(2, 16, (prompt + response,), generator=generator)
        tables = {"ref_log_probs": numbers(response) - 3, "old_values": numbers(response), "returns": numbers(response)}
        known = numbers(response) / 9 - 3, numbers(response)
        found.append(ref.Sample(ids[:prompt], ids[prompt:], *known, **tables))
    found[2] = replace(found[2], action_mask=torch.tensor([1, 1, 0, 0, 1, 1, 0]))
    found[3] = replace(found[3], action_mask=torch.zeros(3))
    return found


def trainer_of(actor, critic, aggregation="token-mean", lr=1.0, coefs=COEFS, **options):
    policy = ref.PolicyLoss(0.2, 0.3, aggregation=aggregation, **MEANS[aggregation])
    objective = ref.Objective(policy, value_clip_eps=0.2, **coefs)
    weights = [w for model in (actor, critic) for w in model.parameters() if w.requires_grad]
    return ref.Trainer(actor, objective, torch.optim.SGD(weights, lr=lr), critic=critic, **options)


def gradients(*found):
    return {
        f"{i}.{n}": w.grad.clone() for i, m in enumerate(found) for n, w in m.named_parameters() if w.grad is not None
    }


def weights(*found):
    return {f"{i}.{name}": w.detach().clone() for i, m in enumerate(found) for name, w in m.named_parameters()}


def alike(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or CLOSE))


def truth(actor, critic, samples, aggregation):
    """The gradient by the specification, from each sample alone, without padding."""
    answers = []
    for sample in samples:
        ids, n = torch.cat([sample.prompt, sample.response])[None], len(sample.response)
        logits = actor.model(ids).logits[0, len(sample.prompt) - 1 : -1].log_softmax(-1)
        own = logits.gather(1, sample.response[:, None])[:, 0], -(logits.exp() * logits).sum(-1)
        answers.append((*own, critic(ids)[0, len(sample.prompt) - 1 : -1] if n else own[0]))
    wide = max(len(sample.response) for sample in samples)

    def table(rows):
        return [[*(float(x.detach()) for x in row), *[0.0] * (wide - len(row))] for row in rows]

    named = {name: table(rows) for name, rows in zip(("log_probs", "entropies", "values"), zip(*answers, strict=True))}
    named |= {
        name: table([getattr(sample, name) for sample in samples])
        for name in ("old_log_probs", "advantages", "ref_log_probs", "old_values", "returns")
    }
    named["action_mask"] = [[int(x) for x in row] for row in table([sample.mask for sample in samples])]
    mean = {"aggregation": aggregation, **MEANS[aggregation]}
    policy = ("log_probs", "old_log_probs", "advantages", "ref_log_probs", "action_mask")
    slopes = (
        spec.objective_gradient(*(named[x] for x in policy), **BAND, kl_coef=0.3, **mean),
        spec.objective_gradient_of_entropies(named["action_mask"], entropy_coef=0.1, **mean),
        spec.objective_gradient_of_values(
            *(named[x] for x in ("values", "old_values", "returns", "action_mask")),
            value_coef=0.5,
            value_clip_eps=0.2,
            **mean,
        ),
    )
    for i, own in enumerate(answers):
        for answer, slope in zip(own, slopes, strict=True):
            if len(answer):
                answer.backward(torch.tensor(slope[i][: len(answer)], dtype=torch.float64), retain_graph=True)
    order = ("log_probs", "old_log_probs", "advantages", "entropies", *policy[3:4], "values", "old_values", "returns")
    return spec.objective(*(named[x] for x in order), named["action_mask"], **BAND, value_clip_eps=0.2, **COEFS, **mean)


@pytest.mark.parametrize("aggregation", MEANS)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_gradient_is_that_of_the_specification_however_it_is_cut(models, samples, aggregation, layout):
    plain = models()
    loss = truth(*plain, samples, aggregation)
    for cut in CUTS:
        actor, critic = models()
        metrics = trainer_of(actor, critic, aggregation, layout=layout).accumulate(samples, cut)
        alike(gradients(actor, critic), gradients(*plain), **CLOSE)
        assert metrics.loss == pytest.approx(loss, rel=1e-5)
        assert metrics.actions == 5 + 2 + 4


def test_the_order_of_the_samples_changes_nothing(models, samples):
    first, second = models(), models()
    trainer_of(*first).accumulate(samples)
    trainer_of(*second).accumulate(samples[::-1])
    alike(gradients(*first), gradients(*second), **CLOSE)


def test_the_metrics_are_those_of_the_whole_step(models, samples):
    found = [trainer_of(*models()).accumulate(samples, cut) for cut in CUTS]
    for metrics in found[1:]:
        assert vars(metrics) == pytest.approx(vars(found[0]), rel=1e-5)
    assert all(vars(found[0]).values())


def test_a_step_without_an_action_moves_nothing(models, samples):
    actor, critic = models()
    before = weights(actor, critic)
    assert trainer_of(actor, critic).step([samples[3], samples[4]]) == ref.StepMetrics()
    alike(weights(actor, critic), before, rtol=0, atol=0)


def test_nothing_is_left_over_from_a_step_nor_from_an_evaluation(models, samples):
    actor, critic = models()
    trainer = trainer_of(actor, critic, lr=0.0)
    trainer.step(samples)
    trainer.log_probs(samples)
    trainer.values(samples)
    assert gradients(actor, critic) == {}
    trainer.accumulate(samples)
    other = models()
    trainer_of(*other).accumulate(samples)
    alike(gradients(actor, critic), gradients(*other))


def test_what_others_left_in_the_gradients_is_gone(models, samples):
    actor, critic = models()
    other = models()
    for weight in actor.parameters():
        weight.grad = torch.ones_like(weight)
    for found in ((actor, critic), other):
        trainer_of(*found, lr=0.1).step(samples)
    alike(weights(actor, critic), weights(*other))


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_the_norm_is_clipped_once_over_all_weights(models, samples, max_norm):
    plain = models()
    trainer_of(*plain).accumulate(samples)
    due = gradients(*plain)
    norm = torch.stack([gradient.norm() for gradient in due.values()]).norm()
    actor, critic = models()
    before = weights(actor, critic)
    trainer_of(actor, critic, max_norm=max_norm).step(samples, CUTS[2])
    moved = {name: before[name] - after for name, after in weights(actor, critic).items()}
    factor = min(1.0, max_norm / float(norm))
    assert (factor < 1) == (max_norm == 0.5)
    alike({name: moved[name] for name in due}, {name: x * factor for name, x in due.items()}, **CLOSE)


def test_frozen_weights_stay_and_all_others_move(models, samples):
    actor, critic = models()
    actor.model.model.embed_tokens.weight.requires_grad_(False)
    before = weights(actor, critic)
    trainer_of(actor, critic).step(samples)
    stayed = [name for name, after in weights(actor, critic).items() if torch.equal(after, before[name])]
    assert stayed == ["0.model.model.embed_tokens.weight"]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_with_lora_every_weight_of_the_adapter_gets_its_gradient(models, samples, gradient_checkpointing):
    lora = ref.LoraOptions(rank=2, alpha=4, target_modules=("q_proj", "v_proj"))
    actor, critic = models(lora=lora, gradient_checkpointing=gradient_checkpointing)
    for name, weight in actor.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    before = weights(actor)
    trainer_of(actor.train(), critic).step(samples, CUTS[2])
    moved = {name for name, after in weights(actor).items() if not torch.equal(after, before[name])}
    assert moved == {name for name in before if "lora_" in name} != set()


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_ratio_is_one_before_an_update(models, samples, layout):
    """Old log-probs are taken in one layout and in other company than the new ones."""
    actor, critic = models()
    olds = [trainer_of(actor, critic, layout="packed").log_probs([sample])[0] for sample in samples]
    known = [replace(sample, old_log_probs=old) for sample, old in zip(samples, olds, strict=True)]
    metrics = trainer_of(actor, critic, layout=layout, coefs={}).accumulate(known, CUTS[2])
    actions = torch.cat([sample.advantages[sample.mask] for sample in samples])
    assert metrics.policy_loss == pytest.approx(-float(actions.mean()), rel=1e-5)


def test_after_an_update_log_probs_and_values_are_those_of_the_new_weights(models, samples):
    actor, critic = models()
    trainer = trainer_of(actor, critic, lr=0.1)
    before = [*trainer.log_probs(samples[:1]), *trainer.values(samples[:1])]
    trainer.step(samples)
    fresh = trainer_of(copy.deepcopy(actor), copy.deepcopy(critic))
    after = [*trainer.log_probs(samples[:1]), *trainer.values(samples[:1])]
    for old, new, again in zip(before, after, [*fresh.log_probs(samples[:1]), *fresh.values(samples[:1])], strict=True):
        assert not torch.allclose(old, new)
        torch.testing.assert_close(new, again)


def test_the_schedule_moves_on_once_a_step_however_it_is_cut(models, samples):
    actor, critic = models()
    trainer = trainer_of(actor, critic)
    trainer.scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 0.5**step)
    trainer.step(samples, CUTS[1])
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.5]


def test_a_step_that_is_resumed_is_the_step_that_would_have_been(models, samples):
    def adam(actor, critic):
        made = trainer_of(actor, critic)
        made.optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=0.01)
        made.scheduler = torch.optim.lr_scheduler.LambdaLR(made.optimizer, lambda step: 0.5**step)
        return made

    first, second = models(), models()
    through, resumed = adam(*first), adam(*second)
    through.step(samples)
    state = copy.deepcopy(through.state_dict())
    through.step(samples)
    resumed.load_state_dict(state)
    resumed.step(samples)
    alike(weights(*first), weights(*second), rtol=0, atol=0)


def test_a_critic_alone_has_the_gradient_that_it_has_beside_an_actor(models, samples):
    _, beside = found = models()
    trainer_of(*found).accumulate(samples)
    _, alone = models()
    trainer = trainer_of(torch.nn.Module(), alone)
    trainer.actor = None
    metrics = trainer.accumulate(samples, CUTS[2])
    alike(gradients(alone), gradients(beside), **CLOSE)
    assert metrics.loss == pytest.approx(0.5 * metrics.value_loss)
    with pytest.raises(ValueError, match="without an actor"):
        ref.Trainer(None, ref.Objective(ref.PolicyLoss(0.2)), trainer.optimizer)

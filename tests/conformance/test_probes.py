"""Probe checkpoints, and the oracle that runs them: repeatable, exact in bfloat16, and right by a second account."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_conformance.chapters._models import backbones
from rlhf_conformance.chapters._models.cases import WITHOUT_CLASSIFIER
from rlhf_conformance.oracle import probe_files
from rlhf_conformance.oracle.layouts import Sample
from rlhf_conformance.oracle.probes import CONFIGS, HIDDEN_SIZE, VOCAB_SIZE, Probe, ProbeStore, build, module_of
from rlhf_conformance.oracle.truth import Truth

from .plain_models import hidden_states

ARCHITECTURES = ("llama", "gpt2")
PROBES = [Probe(a, **changes) for a in ARCHITECTURES for changes in ({}, {"head_name": "score"})]
TOKENS = [5, 0, 17, 1, 5, 40, 2, 5]
SAMPLE = Sample(tuple(TOKENS[:5]), tuple(TOKENS[5:]))
FLOAT32_FLOOR = {"llama": 2e-5, "gpt2": 1e-12}  # transformers computes Llama's norms and rotary tables in float32


@pytest.fixture(scope="module")
def truth(store) -> Truth:
    return Truth(store, torch.float32, "cpu")


def weights_of(store: ProbeStore, probe: Probe) -> dict[str, torch.Tensor]:
    return load_file(store.path(probe) / "model.safetensors")


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.folder)
def test_a_probe_is_the_same_bytes_every_time(probe, tmp_path):
    """Whatever the process has drawn before, and without drawing anything from its generator."""
    for name, seed in (("once", 1), ("again", 2)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        (tmp_path / name).mkdir()
        build(probe, tmp_path / name)
        assert torch.equal(torch.get_rng_state(), before)
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.folder)
def test_weights_are_exact_in_bfloat16(probe, store):
    for name, tensor in weights_of(store, probe).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.bfloat16().float(), tensor), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("changes", [{"pad_is_eos": True}, {"dropout": True}], ids=str)
def test_what_is_only_in_the_config_changes_no_weight(architecture, changes, store):
    plain, changed = (weights_of(store, probe) for probe in (Probe(architecture), Probe(architecture, **changes)))
    assert plain.keys() == changed.keys()
    assert all(torch.equal(plain[name], changed[name]) for name in plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_headless_probe_lacks_its_head_and_nothing_else(architecture, store):
    with_head = weights_of(store, Probe(architecture, head_name="score"))
    headless = weights_of(store, Probe(architecture, head_name="score", headless=True))
    assert with_head.keys() - headless.keys() == {"score.weight"}
    assert with_head["score.weight"].shape == (1, HIDDEN_SIZE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_head_of_another_name_is_the_same_head(architecture, store):
    a, b = (weights_of(store, Probe(architecture, head_name=name))[f"{name}.weight"] for name in ("score", "v_head"))
    assert torch.equal(a, b)


BACKBONES = [Probe(a, head) for a in CONFIGS for head in (None, "score") if head is None or a not in WITHOUT_CLASSIFIER]
BACKBONES += [Probe("llama", tied=True), Probe("gpt2", tied=True), Probe("llama", eos_is_zero=True, pad_is_eos=True)]


@pytest.mark.parametrize("probe", BACKBONES, ids=lambda p: p.folder)
def test_the_names_and_shapes_that_a_script_writes_are_those_of_the_file(probe, store):
    wanted = {name: tuple(tensor.shape) for name, tensor in weights_of(store, probe).items()}
    head = {} if probe.head_name is None else {f"{probe.head_name}.weight": (1, HIDDEN_SIZE)}
    assert {**probe_files.shapes(probe), **head} == wanted


@pytest.mark.parametrize("probe", BACKBONES, ids=lambda p: p.folder)
def test_the_config_that_a_script_writes_is_read_like_that_of_the_file(probe, store, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(probe_files.config(probe)))
    written, own = (AutoConfig.from_pretrained(folder).to_dict() for folder in (tmp_path, store.path(probe)))
    versions = {"transformers_version", "dtype", "_name_or_path"}
    assert {k: v for k, v in written.items() if k not in versions} == {
        k: v for k, v in own.items() if k not in versions
    }


@pytest.mark.parametrize("probe", BACKBONES, ids=lambda p: p.folder)
def test_a_backbone_is_loaded_with_nothing_missing(probe, store):
    module = store.checkpoint(probe, dtype=torch.float32, device="cpu").module()
    kind = AutoModelForCausalLM if probe.head_name is None else AutoModelForSequenceClassification
    _, info = kind.from_pretrained(store.path(probe), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    if probe.head_name is None:
        output, embedding = module.get_output_embeddings().weight, module.get_input_embeddings().weight
        assert (output is embedding) == probe.is_tied


@pytest.mark.parametrize(
    "probe",
    [*BACKBONES, *(replace(p, on_disk=kind) for p in PROBES for kind in ("bfloat16", "shards"))]
    + [replace(p, head_bias=True) for p in PROBES if p.head_name],
    ids=lambda p: p.folder,
)
def test_the_oracle_reads_a_probe_as_transformers_loads_it(probe, store):
    """To the bit, settings of attention included, though by fewer steps."""
    loaded, read = (
        store.checkpoint(probe, dtype=torch.float32, device="cpu").module(),
        module_of(probe, store.path(probe)),
    )
    weights, own = loaded.state_dict(), read.state_dict()
    assert list(weights) == list(own)
    assert all(torch.equal(weights[name], own[name]) and own[name].dtype is torch.float32 for name in weights)
    ids = {"input_ids": torch.tensor([TOKENS])}
    assert torch.equal(loaded(**ids).logits, read(**ids).logits)
    assert not read.training
    assert loaded.config._attn_implementation == read.config._attn_implementation


def test_a_probe_without_its_head_is_not_read(store):
    probe = Probe(head_name="score", headless=True)
    with pytest.raises(KeyError, match=r"score\.weight"):
        module_of(probe, store.path(probe))


@pytest.mark.parametrize("on_disk", ["bfloat16", "shards"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_another_file_holds_the_same_weights(architecture, on_disk, store):
    one, other = (
        store.checkpoint(Probe(architecture, on_disk=kind), dtype=torch.float32, device="cpu").module().state_dict()
        for kind in ("float32", on_disk)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


# What a fast path may forget of a backbone, and how the model looks without it.
FORGOTTEN = {
    "gemma3_text": lambda m: setattr(m.config, "final_logit_softcapping", None),
    "granite": lambda m: setattr(m.config, "logits_scaling", 1.0),
    "phi": lambda m: m.lm_head.bias.data.zero_(),
    "mistral": backbones.without_window,
    "qwen2": backbones.without_input_biases,
    "gemma2": backbones.without_attention_cap,
}


@pytest.mark.parametrize("architecture", FORGOTTEN)
def test_what_a_backbone_has_beside_a_plain_transformer_is_in_the_truth(architecture, store, truth):
    probe = Probe(architecture)
    module = store.checkpoint(probe, dtype=torch.float64, device="cpu").module()
    right = torch.tensor(truth.logits(probe, TOKENS), dtype=torch.float64)
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        torch.testing.assert_close(module(ids, use_cache=False).logits[0], right, rtol=1e-4, atol=1e-4)
        FORGOTTEN[architecture](module)
        without = module(ids, use_cache=False).logits[0].log_softmax(-1)
    assert float((without - right.log_softmax(-1)).abs().max()) > 0.05


def test_an_eos_of_zero_is_in_the_config_beside_a_second_one(store):
    config = store.checkpoint(Probe(eos_is_zero=True), dtype=torch.float32, device="cpu").module().config
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == ([0, 3], 0, VOCAB_SIZE - 1)


def test_different_probes_lie_in_different_folders():
    probes = [
        Probe(a, head, pad, dropout, scale, mean)
        for a in ARCHITECTURES
        for head in (None, "score", "v_head")
        for pad in (False, True)
        for dropout in (False, True)
        for scale in (1.0, 64.0)
        for mean in (0.0, 0.5)
    ]
    assert len({probe.folder for probe in probes}) == len(probes)


def test_a_probe_is_made_once(store):
    path = store.path(Probe())
    stamp = (path / "model.safetensors").stat().st_mtime_ns
    assert store.path(Probe()) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == stamp
    assert not [p for p in store.root.iterdir() if p.name.startswith("tmp")], "drafts are left behind"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_it_with_nothing_missing(architecture, dtype, store):
    model, info = AutoModelForCausalLM.from_pretrained(
        store.path(Probe(architecture)), dtype=dtype, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    loaded = dict(model.named_parameters())
    for name, tensor in weights_of(store, Probe(architecture)).items():
        assert torch.equal(loaded[name].float(), tensor), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("head_name", ["score", "v_head"])
def test_a_checkpoint_hands_out_its_module_with_its_own_head(architecture, head_name, store):
    probe = Probe(architecture, head_name=head_name)
    module = store.checkpoint(probe, dtype=torch.float32, device="cpu").module()
    assert torch.equal(module.score.weight, weights_of(store, probe)[f"{head_name}.weight"])
    assert not module.training


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_own_classifier_loads_a_head_called_score(architecture, store):
    folder = store.path(Probe(architecture, head_name="score"))
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]


def test_the_config_says_what_the_checkpoint_says(store):
    probe = Probe("gpt2", head_name="score", pad_is_eos=True, mean=0.5, std=2.0)
    checkpoint = store.checkpoint(probe, dtype=torch.float32, device="cpu", normalize=True)
    config = checkpoint.module().config
    assert config.pad_token_id == config.eos_token_id == checkpoint.pad_token_id == checkpoint.eos_token_id
    assert (config.mean, config.std) == (checkpoint.mean, checkpoint.std) == (0.5, 2.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_probe_with_dropout_answers_at_random_in_train_mode(architecture, store):
    module = store.checkpoint(Probe(architecture, dropout=True), dtype=torch.float32, device="cpu").module().train()
    ids = torch.tensor([TOKENS])
    with torch.random.fork_rng():
        assert not torch.equal(module(ids).logits, module(ids).logits)
    module.eval()
    assert torch.equal(module(ids).logits, module(ids).logits)


# --- the oracle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_oracle_agrees_with_a_forward_pass_that_is_written_out(architecture, store, truth):
    probe = Probe(architecture)
    states, weights = hidden_states(store.path(probe), TOKENS)
    wanted = states @ weights["lm_head.weight"].T
    found = torch.tensor(truth.logits(probe, TOKENS), dtype=torch.float64)
    assert (found - wanted).abs().max() < FLOAT32_FLOOR[architecture] * wanted.abs().max()
    log_probs = wanted.log_softmax(-1)
    actions = [float(log_probs[i - 1, TOKENS[i]]) for i in range(len(SAMPLE.prompt), len(TOKENS))]
    assert truth.action_log_probs(probe, SAMPLE, 1.0) == pytest.approx(actions, abs=1e-4)
    log_p = (wanted / 0.7).log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1)[len(SAMPLE.prompt) - 1 : -1]
    assert truth.action_entropies(probe, SAMPLE, 0.7) == pytest.approx(entropies.tolist(), abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_so_do_its_rewards_and_values(architecture, store, truth):
    probe = Probe(architecture, head_name="score")
    states, weights = hidden_states(store.path(probe), TOKENS)
    scores = (states @ weights["score.weight"].T)[:, 0].tolist()
    assert truth.reward(probe, SAMPLE) == pytest.approx(scores[-1], abs=1e-4)
    assert truth.action_values(probe, SAMPLE) == pytest.approx(scores[4:7], abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("answer", ["log_probs", "values", "rewards"])
def test_so_do_its_gradients(architecture, answer, store, truth):
    """Two sequences, run alone and added up, with respect to the weights of the second layer."""
    probe = Probe(architecture, head_name=None if answer == "log_probs" else "score")
    samples = [SAMPLE, Sample((9,), (3, 3))]
    weights = [[0.5] * (1 if answer == "rewards" else len(s.response)) for s in samples]
    name = "model.layers.1.mlp.down_proj.weight" if architecture == "llama" else "transformer.h.1.mlp.c_proj.weight"
    found = truth.gradients(probe, samples, weights, answer=answer, temperature=0.7)[name]
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def total(step: float) -> float:
        module = truth._model(probe, False).module
        parameter = dict(module.named_parameters())[name]
        with torch.no_grad():
            parameter.add_(step * direction)
            fresh = Truth(store, torch.float32, "cpu", _models=truth._models)
            rows = {
                "log_probs": lambda s: fresh.action_log_probs(probe, s, 0.7),
                "values": lambda s: fresh.action_values(probe, s),
                "rewards": lambda s: [fresh.reward(probe, s)],
            }[answer]
            value = math.fsum(w * x for s, row in zip(samples, weights, strict=True) for w, x in zip(row, rows(s)))
            parameter.sub_(step * direction)
        return value

    step = 1e-3
    slope = (total(step) - total(-step)) / (2 * step)
    assert float((found * direction).sum()) == pytest.approx(slope, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_position_and_every_token_answers_differently(architecture, truth):
    """Were two outputs the same, a shift by one could hide between them."""
    rows = truth.logits(Probe(architecture), [7] * 6 if architecture == "gpt2" else [7, 8, 7, 9, 8, 7])
    numbers = sorted(x for row in rows for x in row)
    gaps = [b - a for a, b in itertools.pairwise(numbers)]
    assert max(abs(x) for x in numbers) > 0.5, "large enough to be seen"
    assert sorted(gaps)[len(gaps) // 20] > 1e-5
    scores = truth.scores(Probe(architecture, head_name="score"), list(range(2, VOCAB_SIZE)))
    assert len({round(x, 4) for x in scores}) == len(scores)


def test_learned_positions_are_seen_and_rotary_ones_only_relatively(store):
    """What the two backbones are for: a constant shift of the positions shows in GPT-2 alone."""
    moved = {}
    for architecture in ARCHITECTURES:
        module = store.checkpoint(Probe(architecture), dtype=torch.float64, device="cpu").module().double()
        ids, positions = torch.tensor([TOKENS]), torch.arange(len(TOKENS))[None]
        with torch.no_grad():
            logits = [module(ids, position_ids=positions + shift, use_cache=False).logits for shift in (0, 3)]
        moved[architecture] = float((logits[0] - logits[1]).abs().max())
    assert moved["gpt2"] > 0.1
    assert moved["llama"] < 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_the_largest_logit_until_a_stop(architecture, truth):
    probe, prompt = Probe(architecture), [5, 6, 7]
    free = truth.greedy(probe, prompt, 5, ())
    assert len(free) == 5
    for i, token in enumerate(free):
        last = truth.logits(probe, prompt + free[:i])[-1]
        assert last[token] == max(last)
    assert truth.greedy(probe, prompt, 5, (free[0],)) == free[:1]


def test_plain_answers_can_be_had_in_another_dtype(truth):
    half = truth.in_dtype(torch.bfloat16)
    assert half.logits(Probe(), TOKENS) == truth.logits(Probe(), TOKENS)
    assert half.logits(Probe(), TOKENS, plain=True) != truth.logits(Probe(), TOKENS, plain=True)
    assert truth.in_dtype(torch.float32) is truth


def test_plain_answers_are_those_of_the_dtype_under_test(store):
    half = Truth(store, torch.bfloat16, "cpu")
    exact, plain = (half.logits(Probe(), TOKENS, plain=p) for p in (False, True))
    worst = max(abs(a - b) for x, y in zip(exact, plain, strict=True) for a, b in zip(x, y, strict=True))
    assert 1e-3 < worst < 1.0


# Each answer of the oracle, with and without `plain`.
ANSWERS = {
    "logits": lambda truth, **plain: truth.logits(Probe(), TOKENS, **plain),
    "scores": lambda truth, **plain: truth.scores(Probe(head_name="score"), TOKENS, **plain),
    "action_log_probs": lambda truth, **plain: truth.action_log_probs(Probe(), SAMPLE, 0.7, **plain),
    "action_entropies": lambda truth, **plain: truth.action_entropies(Probe(), SAMPLE, 0.7, **plain),
    "action_values": lambda truth, **plain: truth.action_values(Probe(head_name="score"), SAMPLE, **plain),
    "reward": lambda truth, **plain: [truth.reward(Probe(head_name="score"), SAMPLE, **plain)],
    "gradients": lambda truth, **plain: (
        truth.gradients(Probe(), [SAMPLE], [[1.0] * 3], answer="log_probs", **plain)["lm_head.weight"].double().tolist()
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_exact_unless_a_plain_one_is_asked_for(name, store):
    """Of a plain answer comes the sampled part of a budget: an exact one in its place would leave no room."""
    half = Truth(store, torch.bfloat16, "cpu")
    exact, plain = ANSWERS[name](half), ANSWERS[name](half, plain=True)
    assert exact == ANSWERS[name](half, plain=False)
    assert plain == ANSWERS[name](Truth(store, torch.bfloat16, "cpu"), plain=True)
    assert exact == ANSWERS[name](Truth(store, torch.float32, "cpu"))
    assert exact != plain


def test_a_gradient_holds_nothing_of_the_one_before(truth):
    ask = {"answer": "log_probs", "temperature": 1.0}
    first = truth.gradients(Probe(), [SAMPLE], [[1.0] * 3], **ask)
    again = truth.gradients(Probe(), [SAMPLE], [[1.0] * 3], answer="log_probs")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_weights_are_not_rounded(truth):
    """In GPT-2, which is float64 throughout."""
    probe = Probe("gpt2")
    whole, tenth = (truth.gradients(probe, [SAMPLE], [[w] * 3], answer="log_probs") for w in (1.0, 0.1))
    for name, gradient in whole.items():
        torch.testing.assert_close(tenth[name], 0.1 * gradient, rtol=1e-10, atol=1e-13)


def test_a_weight_for_each_answer_or_none(truth):
    with pytest.raises(ValueError):
        truth.gradients(Probe(), [SAMPLE], [], answer="log_probs")


def test_the_oracles_model_is_the_one_in_float64_on_the_cpu(truth):
    probe = Probe()
    alone = truth.alone(probe)
    assert {(p.dtype, p.device.type) for p in alone.module.parameters()} == {(torch.float64, "cpu")}
    assert alone(TOKENS).tolist() == truth.logits(probe, TOKENS)
    assert truth.alone(probe) is alone

"""The weights of a loaded model as those of its checkpoint: names, LoRA's products, what moves, and what is named where
one is missing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from proof.trying import attempt
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.lora import decomposed, merged
from rlhf_conformance.chapters._models.weights import match_by_name, move_weights, pulled_back
from rlhf_conformance.faults import faults
from rlhf_conformance.oracle.probes import Probe, ProbeStore
from rlhf_conformance.oracle.truth import Truth
from rlhf_conformance.results import ERROR, FAIL, PASS
from rlhf_conformance.twins import twins


def shaped(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2, 2) for name in names}


MATCHES = {
    "whole": (("model.a.weight",), ("model.a.weight",), {"model.a.weight": "model.a.weight"}),
    "a longer one": (("actor.model.a.weight",), ("model.a.weight",), {"model.a.weight": "actor.model.a.weight"}),
    "a shorter one": (("a.weight",), ("model.a.weight",), {"model.a.weight": "a.weight"}),
    "not half of a name": (("ba.weight",), ("model.a.weight",), {}),
    "a copy beside it": (("ref.a.b", "a.b"), ("a.b",), {"a.b": "a.b"}),
    "two alike": (("x.a.b", "y.a.b"), ("a.b",), {}),
    "a head of any name": (("m.a.weight", "v.weight"), ("m.a.weight", "score.weight"), {"score.weight": "v.weight"}),
    "no head": (("m.a.weight",), ("m.a.weight", "score.weight"), {"score.weight": None}),
}


@pytest.mark.parametrize("row", MATCHES)
def test_names_are_matched_by_their_ends(row):
    found, truth, wanted = MATCHES[row]
    pairs = {name: mine for mine, name in match_by_name(shaped(*found), shaped(*truth))}
    assert {name: pairs.get(name) for name in wanted} == wanted
    assert wanted or not pairs


def test_the_shape_has_to_be_the_same():
    assert match_by_name({"a.b": torch.zeros(2, 3)}, {"a.b": torch.zeros(3, 2)}) == []


# --- LoRA -----------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """A layer as peft makes it."""

    def __init__(self, *, transposed=False, scaling=0.5, active=("default",)):
        super().__init__()
        base = torch.arange(6.0).reshape(2, 3)  # 3 in, 2 out
        self.base_layer = nn.Linear(3, 2)
        self.base_layer.weight = nn.Parameter(base.T.clone() if transposed else base)
        self.lora_A, self.lora_B = (
            nn.ModuleDict({"default": nn.Linear(i, o, bias=False)}) for i, o in ((3, 1), (1, 2))
        )
        self.scaling, self.fan_in_fan_out, self.active_adapters = {"default": scaling}, transposed, list(active)


def weights_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    model = nn.Module()
    model.layer = layer
    parameters = dict(model.named_parameters())
    return merged(model, parameters, parameters)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_of_lora_is_added_with_its_scale(transposed):
    layer = Layer(transposed=transposed)
    change = 0.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    found = weights_of(layer)
    assert set(found) == {"layer.weight", "layer.bias"}
    expected = layer.base_layer.weight + (change.T if transposed else change)
    torch.testing.assert_close(found["layer.weight"], expected)


def with_magnitudes(layer: nn.Module) -> nn.Module:
    layer.lora_magnitude_vector = nn.ModuleDict({"default": nn.Linear(2, 1, bias=False)})
    layer.lora_magnitude_vector["default"].weight = nn.Parameter(torch.tensor([3.0, 0.5]))
    return layer


@pytest.mark.parametrize("transposed", [False, True])
def test_a_magnitude_of_dora_is_the_norm_of_an_output(transposed):
    layer = with_magnitudes(Layer(transposed=transposed))
    found, lora = weights_of(layer)["layer.weight"], weights_of(Layer(transposed=transposed))["layer.weight"]
    rows = found.T if transposed else found
    torch.testing.assert_close(rows.norm(dim=1), torch.tensor([3.0, 0.5]))
    assert found.shape == lora.shape


def test_the_gradient_takes_the_norm_of_dora_as_a_constant():
    v = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    m = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    decomposed(v, m)[0, 0].backward()
    assert v.grad.tolist() == [[2 / 5, 0.0]]
    assert m.grad.tolist() == [3 / 5]


@pytest.mark.parametrize("layer", [Layer(active=()), with_magnitudes(Layer(active=()))], ids=["LoRA", "DoRA"])
def test_an_adapter_that_is_not_in_use_adds_nothing(layer):
    torch.testing.assert_close(weights_of(layer)["layer.weight"], layer.base_layer.weight)


def test_weights_that_are_trained_whole_stand_for_the_originals():
    names = shaped("m.score.original_module.weight", "m.score.modules_to_save.default.weight")
    names["m.score.modules_to_save.default.weight"] += 1
    found = merged(nn.Module(), names, names)
    assert {name: float(weight[0, 0]) for name, weight in found.items()} == {"m.score.weight": 1.0}


def test_a_scale_that_is_not_found_is_asked_for():
    layer = Layer()
    del layer.scaling
    with pytest.raises(TypeError, match=r"no scale of LoRA is found for layer: say in Adapter\.checkpoint_weights"):
        weights_of(layer)


def test_an_adapter_that_is_no_plain_lora_is_asked_for():
    layer = Layer()
    layer.lora_E = nn.ParameterDict({"default": nn.Parameter(torch.ones(1, 1))})  # AdaLoRA
    with pytest.raises(TypeError, match=r"is no matrix A or B of LoRA"):
        weights_of(layer)


def test_the_chain_rule():
    a, b = (torch.randn(n, m, dtype=torch.float64, requires_grad=True) for n, m in ((2, 3), (4, 2)))
    g = torch.randn(4, 3, dtype=torch.float64)
    found = pulled_back({"w": 0.5 * b @ a}, {"w": g}, {"a": a, "b": b})
    torch.testing.assert_close(found["a"], 0.5 * b.detach().T @ g)
    torch.testing.assert_close(found["b"], 0.5 * g @ a.detach().T)


# --- what moves -----------------------------------------------------------------------------------------------------


def test_a_frozen_weight_does_not_move_and_one_of_zeros_moves_farther():
    frozen, zero = nn.Parameter(torch.ones(40), requires_grad=False), nn.Parameter(torch.zeros(40))
    one = nn.Parameter(torch.ones(40))
    move_weights({"frozen": frozen, "zero": zero, "one": one}, 1 / 16, 1 / 8)
    assert set(frozen.tolist()) == {1.0}
    assert set(zero.tolist()) == {-1 / 8, 0.0, 1 / 8}
    assert set(one.tolist()) == {15 / 16, 1.0, 17 / 16}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return Truth(ProbeStore(tmp_path_factory.mktemp("probes")), torch.float32, "cpu")


def test_the_oracle_of_other_weights_leaves_the_first_alone(truth):
    probe, tokens = Probe(), (5, 9, 7)
    before = truth.logits(probe, tokens)
    other = truth.with_weights(probe, {"lm_head.weight": 2 * truth.weights(probe)["lm_head.weight"]})
    for plain, tolerance in ((False, 1e-12), (True, 1e-4)):
        doubled = [2 * x for row in truth.logits(probe, tokens, plain=plain) for x in row]
        assert [x for row in other.logits(probe, tokens, plain=plain) for x in row] == pytest.approx(
            doubled, abs=tolerance
        )
    assert Truth(truth.store, torch.float32, "cpu").logits(probe, tokens) == before
    truth._outputs.clear()
    assert truth.logits(probe, tokens) == before


# --- what the clauses say -------------------------------------------------------------------------------------------

CAUGHT = {
    "lora-gradient-doubled": "actor.gradient",
    "first-lora-matrix-frozen": "actor.gradient",
    "lora-of-the-last-layer-only": "actor.gradient",
    "dora-magnitude-frozen": "actor.gradient",
    "dora-norm-of-the-frozen-weight": "actor.gradient",
    "dora-saved-without-magnitudes": "actor.round-trip",
    "checkpointing-over-frozen-embeddings": "actor.gradient",
    "output-layer-filtered": "actor.gradient",
    "reward-lora-frozen": "reward.gradient",
    "critic-checkpointing-over-frozen-embeddings": "critic.gradient",
    "entropy-without-gradient": "actor.entropy-gradient",
    "output-layer-copied": "actor.follows-weights",
    "stale-engine": "actor.generate-follows-weights",
    "engine-without-adapter": "actor.generate-follows-weights",
    "reward-head-copied": "reward.follows-weights",
    "critic-backbone-copied": "critic.follows-weights",
    "no-grad-path-by-column": "actor.no-grad",
    "critic-train-mode-squashed": "critic.train-mode",
    "values-over-temperature": "critic.temperature",
    "new-critic-head-unset": "critic.new-head",
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_liar_is_caught(name):
    assert faults()[name].clause == CAUGHT[name]
    assert attempt(faults()[name].adapter(), CAUGHT[name]).result.verdict == FAIL


HONEST = {
    "lora-checkpointed": ("actor.gradient", "reward.gradient", "critic.gradient"),
    "dora-models": ("actor.gradient", "critic.gradient", "reward.follows-weights", "actor.round-trip"),
    "dora-with-gradient-of-the-norm": ("actor.gradient", "critic.gradient", "reward.gradient"),
    "lora-with-dropout": ("actor.gradient", "actor.train-mode", "critic.train-mode"),
    "fused-projections": ("actor.gradient", "actor.follows-weights", "actor.generate-follows-weights"),
    "engine-of-its-own": ("actor.follows-weights", "actor.generate-follows-weights"),
    "new-heads": ("reward.new-head", "critic.new-head"),
}


@pytest.mark.parametrize(("name", "slug"), [(name, slug) for name, slugs in HONEST.items() for slug in slugs])
def test_an_honest_one_passes(name, slug):
    assert attempt(twins()[name](), slug).result.verdict == PASS


def test_a_weight_that_is_missing_is_named_with_the_mend():
    result = attempt(faults()["last-layer-not-listed"].adapter(), "actor.gradient").result
    assert "1.ln_1.bias" in result.reason or "model.layers.1.self_attn.k_proj.weight" in result.reason
    assert "map them with Adapter.checkpoint_weights" in result.reason


class SilentAboutTheNorm(twins()["dora-with-gradient-of-the-norm"]):
    """Its gradient goes through the norm, and it does not say so."""

    checkpoint_weights = Reference.checkpoint_weights


def test_a_gradient_through_the_norm_of_dora_has_to_be_said():
    assert attempt(SilentAboutTheNorm(), "actor.gradient").result.verdict == FAIL


class Unmapped(twins()["fused-projections"]):
    """Its weights lie otherwise, and it does not say so."""

    checkpoint_weights = Adapter.checkpoint_weights


def test_a_fused_weight_has_to_be_mapped():
    result = attempt(Unmapped(), "actor.gradient").result
    assert result.verdict == FAIL
    assert "nothing for model.layers.0.self_attn.q_proj.weight" in result.reason


class Permuted(Reference):
    """Output rows are stored backwards; what it answers is right."""

    layouts = ("padded",)

    def load_actor(self, checkpoint):
        actor = super().load_actor(checkpoint)
        head = actor.model.get_output_embeddings()
        if head.weight is actor.model.get_input_embeddings().weight:  # tied: it lies as it is
            return actor
        head.weight = nn.Parameter(head.weight.detach().flip(0).contiguous())
        head.forward = lambda x: torch.nn.functional.linear(x, head.weight.flip(0))
        return actor


def test_a_weight_in_another_layout_is_said_to_be_one():
    failure = attempt(Permuted(), "actor.gradient").result.failure
    assert failure is not None
    assert "lm_head.weight of the model: not what the checkpoint holds under that name" in failure.note
    assert "map it with Adapter.checkpoint_weights" in failure.note


def test_a_map_of_rows_is_enough():
    class Mapped(Permuted):
        def checkpoint_weights(self, model, tensors):
            return {n: t.flip(0) if n.endswith("lm_head.weight") else t for n, t in tensors.items()}

    for slug in ("actor.gradient", "actor.follows-weights"):
        assert attempt(Mapped(), slug).result.verdict == PASS


class NoModes:
    """A handle that is no module, as of a trainer whose model lives elsewhere."""

    def __init__(self, model):
        self.model = model


def test_a_model_without_modes_stays_as_it_is():
    handle = NoModes(nn.Linear(1, 1))
    Adapter().set_training(handle, True)
    Adapter().weights_moved(handle)
    assert Adapter().checkpoint_weights(handle, {"a": torch.ones(1)}) == {"a": torch.ones(1)}


def test_a_call_may_be_made_without_a_graph():
    seen = []

    class Watched(Reference):
        def action_log_probs(self, actor, batch):
            seen.append(torch.is_grad_enabled())
            return super().action_log_probs(actor, batch)

    assert attempt(Watched(), "actor.no-grad", profile="smoke").result.verdict == PASS
    assert set(seen) == {False}
    assert torch.is_grad_enabled()


def test_an_entropy_that_is_a_metric_is_not_asked_for_a_gradient():
    kind = faults()["entropy-without-gradient"].adapter
    adapter = kind()
    adapter.entropy_gradient = False
    result = attempt(adapter, "actor.entropy-gradient").result
    assert result.verdict not in (FAIL, ERROR, PASS)
    assert "entropy_gradient = False" in result.reason


def test_a_new_head_is_no_missing_one():
    adapter = twins()["new-heads"]()
    assert 'critic_new_head = "always"' in attempt(adapter, "critic.missing-head").result.reason
    adapter.critic_new_head = False
    assert "critic_new_head is not declared" in attempt(adapter, "critic.new-head").result.reason


def test_a_wrong_gradient_of_one_action_has_a_diagnosis():
    from rlhf_conformance import check

    result = check(faults()["actor-gradient-doubled"].adapter(), profile="smoke", only=["actor.gradient"]).result(
        "actor.gradient"
    )
    assert "the diagnosis itself failed" not in result.failure.note

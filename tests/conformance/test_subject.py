"""The adapter behind glass: it gets copies, global state is put back, and answers of the wrong kind are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.utils._python_dispatch

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.cases import ModelCase
from rlhf_conformance.chapters.packing.interface import PackedSequences
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions, PolicyLossResult
from rlhf_conformance.chapters.sequences.interface import ProcessedSequences
from rlhf_conformance.judging.isolation import AdapterError, settings
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.oracle.batch import Prompts
from rlhf_conformance.oracle.layouts import Presentation, Sample, present, present_prompts
from rlhf_conformance.oracle.probes import Probe

CASE = ModelCase(Probe(), (Sample((5, 6), (7,)), Sample((8,), (9, 10))), Presentation("padded"))
LOSS = (
    torch.tensor([[-1.0]], requires_grad=True),
    torch.tensor([[-1.0]]),
    torch.tensor([[0.5]]),
    torch.tensor([[1]]),
    PolicyLossOptions(),
)
BATCH = present(CASE.samples, CASE.how, pad_token_id=0)


def subject_of(**methods) -> Subject:
    """A subject whose adapter has these methods, given without `self`."""
    adapter = type("Some", (Adapter,), {name: staticmethod(method) for name, method in methods.items()})()
    return Subject.make(adapter, device="cpu", dtype="float32", store=SimpleNamespace())


# --- copies -------------------------------------------------------------------------------------------------------


def test_an_adapter_that_writes_writes_into_copies():
    def token_log_probs(logits, labels, temperature):
        logits.fill_(3.0)
        labels.fill_(1)
        return torch.zeros(labels.shape)

    subject = subject_of(token_log_probs=token_log_probs)
    logits, labels = torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64)
    subject.call("token_log_probs", logits, labels, 1.0)
    assert not logits.any()
    assert not labels.any()
    assert subject.record.written == ["logits", "labels"]


def test_an_input_left_alone_is_not_called_written():
    def token_log_probs(logits, labels, temperature):
        logits = logits + 1
        return torch.zeros(labels.shape)

    subject = subject_of(token_log_probs=token_log_probs)
    logits = torch.tensor([[[float("nan"), float("inf"), 0.0]]])
    subject.call("token_log_probs", logits, torch.zeros(1, 1, dtype=torch.int64), 1.0)
    assert subject.record.written == []


@pytest.mark.parametrize("garbage", [0.0, torch.finfo(torch.float32).max], ids=["zero", "the largest number"])
def test_a_nan_that_is_overwritten_is_seen(garbage):
    """`nan_to_num` makes a NaN a zero, so that a zero in its place would look the same."""

    def token_log_probs(logits, labels, temperature):
        logits[..., 0] = garbage
        return torch.zeros(labels.shape)

    subject = subject_of(token_log_probs=token_log_probs)
    poison = float("nan") if garbage == 0.0 else float("inf")
    subject.call("token_log_probs", torch.tensor([[[poison, 1.0]]]), torch.zeros(1, 1, dtype=torch.int64), 1.0)
    assert subject.record.written == ["logits"]


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "action_mask"])
def test_writing_into_a_batch_is_seen_and_reaches_no_later_call(name):
    untouched = getattr(BATCH, name)

    def action_log_probs(model, batch):
        assert torch.equal(getattr(batch, name), untouched)
        getattr(batch, name).add_(1)
        return torch.zeros(batch.action_mask.shape)

    subject = subject_of(action_log_probs=action_log_probs)
    subject.call("action_log_probs", object(), BATCH)
    assert [written.rpartition(".")[2] for written in subject.record.written] == [name]
    subject.call("action_log_probs", object(), BATCH)
    assert [written.rpartition(".")[2] for written in subject.record.written] == [name]


def test_a_list_of_tensors_that_is_emptied_is_seen():
    def pack_sequences(sequences):
        row = torch.cat(sequences)[None]
        sequences.clear()
        return PackedSequences(row)

    subject = subject_of(pack_sequences=pack_sequences)
    given = [torch.tensor([1, 2]), torch.tensor([3])]
    subject.call("pack_sequences", given)
    assert len(given) == 2
    assert subject.record.written != []


def test_prompts_are_copied_too():
    def generate(model, prompts):
        assert isinstance(prompts, Prompts)
        prompts.input_ids.fill_(0)
        return torch.zeros(1, 3, dtype=torch.int64)

    subject = subject_of(generate=generate)
    prompts = present_prompts([(5, 6)], max_new_tokens=2, stop_token_ids=(), pad_token_id=0)
    subject.call("generate", object(), prompts)
    assert prompts.input_ids.tolist() == [[5, 6]]
    assert subject.record.written != []


# --- global state -------------------------------------------------------------------------------------------------


class Watching(torch.overrides.TorchFunctionMode):
    """Does nothing, but with everything."""


class Dispatching(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def _same(x):
    return x


ENTERED = []
"""Modes that would be left as soon as they are forgotten."""


def _enter(mode) -> None:
    ENTERED.append(mode)
    mode.__enter__()


DISTURBANCES = {
    "random number generator": lambda: torch.rand(1),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "inference mode": lambda: _enter(torch.inference_mode()),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
    "torch function modes": lambda: Watching().__enter__(),
    "torch dispatch modes": lambda: Dispatching().__enter__(),
    "precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "kernels of attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "detection of anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "hooks of saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(_same, _same).__enter__(),
}


def state() -> tuple:
    rng = torch.get_rng_state().tolist()
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return rng, *modes, *(setting.get() for setting in settings())


def test_whatever_is_put_back_with_a_verdict_is_disturbed_here():
    told = [setting.name for setting in settings() if setting.name]
    assert [name for name in told if not any(short in name for short in DISTURBANCES)] == []


@pytest.mark.parametrize("name", DISTURBANCES)
@pytest.mark.parametrize("raises", [False, True])
def test_a_disturbance_is_named_and_undone(name, raises):
    def position_ids(attention_mask):
        DISTURBANCES[name]()
        if raises:
            raise ValueError("after the deed")
        return attention_mask

    subject, before = subject_of(position_ids=position_ids), state()
    mask = torch.ones(1, 3, dtype=torch.int64)
    if raises:
        with pytest.raises(AdapterError):
            subject.call("position_ids", mask)
    else:
        subject.call("position_ids", mask)
    assert state() == before
    assert len(subject.record.disturbed) == 1
    assert name in subject.record.disturbed[0]


def test_a_call_that_disturbs_nothing_has_a_clean_record():
    subject = subject_of(position_ids=lambda attention_mask: attention_mask)
    subject.call("position_ids", torch.ones(1, 3, dtype=torch.int64))
    assert (subject.record.disturbed, subject.record.written) == ([], [])


# --- answers of the wrong kind ------------------------------------------------------------------------------------

ONES = torch.ones(2, 3, dtype=torch.int64)


def ask_log_probs(answer):
    subject = subject_of(token_log_probs=lambda *_: answer)
    return subject.call("token_log_probs", torch.zeros(2, 3, 5), ONES, 1.0)


def ask_masks(answer):
    return subject_of(process_sequences=lambda *_: answer).call("process_sequences", ONES, 1, ONES[:, :1], (1,), 0)


def ask_pack(answer):
    return subject_of(pack_sequences=lambda *_: answer).call("pack_sequences", [ONES[0], ONES[1]])


def ask_actions(answer):
    return subject_of(action_log_probs=lambda *_: answer).call("action_log_probs", object(), BATCH)


def ask_rewards(answer):
    return subject_of(rewards=lambda *_: answer).call("rewards", object(), BATCH)


def ask_generate(answer):
    prompts = present_prompts([(5, 6)], max_new_tokens=2, stop_token_ids=(), pad_token_id=0)
    return subject_of(generate=lambda *_: answer).call("generate", object(), prompts)


def ask_values(answer):
    return subject_of(values=lambda *_: answer).call("values", object(), BATCH)


def ask_loss(answer):
    return subject_of(policy_loss=lambda *_: answer).ask("policy_loss", *LOSS)


def ask_position_ids(answer):
    return subject_of(position_ids=lambda *_: answer).call("position_ids", ONES)


WIRED_WRONG = [
    (ask_log_probs, None, "token_log_probs returned None"),
    (ask_log_probs, [[0.0] * 3] * 2, "a list of 2; wanted a tensor of shape (2, 3)"),
    (ask_log_probs, torch.zeros(3, 2), "shape (3, 2); wanted a tensor of shape (2, 3)"),
    (ask_log_probs, torch.zeros(2, 3, 1), "shape (2, 3, 1)"),
    (ask_log_probs, ONES, "an int64 tensor"),
    (ask_log_probs, torch.zeros(2, 3, dtype=torch.complex64), "a complex64 tensor"),
    (ask_position_ids, torch.zeros(2, 3), "a float32 tensor of shape (2, 3); wanted integers"),
    (ask_position_ids, torch.arange(3), "shape (3,)"),
    (ask_masks, None, "process_sequences returned None"),
    (ask_masks, (ONES, ONES), "a tuple of 2; wanted a ProcessedSequences"),
    (ask_masks, ProcessedSequences(action_mask=ONES), "action_mask = an int64 tensor of shape (2, 3)"),
    (ask_masks, ProcessedSequences(attention_mask=ONES[:, :2]), "attention_mask = an int64 tensor of shape (2, 2)"),
    (ask_pack, ONES[:1], "an int64 tensor of shape (1, 3); wanted a PackedSequences"),
    (ask_pack, PackedSequences(ONES), "input_ids = an int64 tensor of shape (2, 3)"),
    (ask_pack, PackedSequences(ONES[:1], ONES[:1, :2]), "position_ids = an int64 tensor of shape (1, 2)"),
    (ask_actions, None, "action_log_probs returned None"),
    (ask_actions, torch.zeros(2, 3), "shape (2, 3); wanted (2, 2)"),
    (ask_actions, [torch.zeros(1)], "a list of shapes [(1,)]; wanted [(1,), (2,)]"),
    (ask_actions, [0.5, 0.25], "a list of 2; wanted a tensor, or a list of 1-D tensors"),
    (ask_actions, torch.zeros(2, 2, dtype=torch.int64), "int64"),
    (ask_actions, [torch.zeros(1).long(), torch.zeros(2).long()], "wanted floating-point numbers"),
    (ask_rewards, torch.zeros(2, 1), "shape (2, 1); wanted a tensor of shape (2,)"),
    (ask_rewards, [0.5, 0.5], "a list of 2"),
    (ask_generate, torch.zeros(1, 2, dtype=torch.int64), "wanted token rows (1, more than 2)"),
    (ask_generate, torch.zeros(3, dtype=torch.int64), "shape (3,)"),
    (ask_values, torch.zeros(2, 4, 1), "shape (2, 4, 1); wanted a tensor of shape (2, 4)"),
    (ask_loss, 0.5, "policy_loss returned a float; wanted the loss"),
    (ask_loss, torch.zeros(2), "shape (2,)"),
    (ask_loss, torch.tensor(1), "an int64 tensor"),
    (ask_loss, torch.tensor(1j), "a complex64 tensor"),
    (ask_loss, PolicyLossResult(None), "None"),
    (ask_loss, PolicyLossResult(torch.tensor(0.5), torch.zeros(2, 3)), "clip_fraction = a float32 tensor"),
    (ask_loss, PolicyLossResult(torch.tensor(0.5), approx_kl="0"), "approx_kl = a str"),
]


def name_of(value) -> str:
    """Short ids: the question's name, or what the message must say."""
    return getattr(value, "__name__", value if isinstance(value, str) else type(value).__name__)


@pytest.mark.parametrize("ask, answer, says", WIRED_WRONG, ids=name_of)
def test_an_answer_of_the_wrong_kind_names_the_method_and_what_was_wanted(ask, answer, says):
    with pytest.raises(WiringError) as error:
        ask(answer)
    assert says in str(error.value)
    assert "; wanted " in str(error.value)


WIRED_RIGHT = [
    (ask_log_probs, torch.zeros(2, 3)),
    (ask_log_probs, torch.zeros(2, 3, dtype=torch.bfloat16)),
    (ask_position_ids, ONES.int()),
    (ask_masks, (ONES, ONES, ONES[:, 1:])),
    (ask_masks, ProcessedSequences(action_mask=ONES[:, 1:].bool())),
    (ask_pack, PackedSequences(torch.ones(1, 8, dtype=torch.int64))),
    (ask_actions, torch.zeros(2, 2)),
    (ask_actions, (torch.zeros(1), torch.zeros(2))),
    (ask_rewards, torch.zeros(2)),
    (ask_generate, torch.zeros(1, 3, dtype=torch.int64)),
    (ask_values, torch.zeros(2, 4)),
    (ask_loss, torch.tensor(0.5)),
    (ask_loss, torch.tensor([0.5])),
    (ask_loss, PolicyLossResult(torch.tensor(0.5), torch.tensor(0.1), 0.0)),
]


@pytest.mark.parametrize("ask, answer", WIRED_RIGHT, ids=name_of)
def test_every_documented_kind_of_answer_is_taken(ask, answer):
    ask(answer)


def test_an_error_names_the_method_the_kind_the_text_and_the_line():
    def position_ids(attention_mask):
        raise ValueError("two\n   lines")

    with pytest.raises(AdapterError, match=r"position_ids raised ValueError: two lines \(test_subject.py:\d+ in"):
        subject_of(position_ids=position_ids).call("position_ids", ONES)


def test_a_backward_pass_that_raises_is_an_error_of_the_method():
    class Refuse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise KeyError("no kernel")

    subject = subject_of(policy_loss=lambda new, *_: Refuse.apply(new.sum()))
    answer = subject.ask("policy_loss", *LOSS)
    with pytest.raises(AdapterError, match=r"policy_loss .*backward.* raised KeyError"):
        answer.gradient(subject)


def test_a_loss_without_a_graph_has_a_gradient_of_zero():
    subject = subject_of(policy_loss=lambda *_: torch.tensor(2.0))
    assert subject.ask("policy_loss", *LOSS).gradient(subject) == [[0.0]]


def test_models_are_loaded_once_a_clause():
    loads = []
    subject = subject_of(load_actor=lambda checkpoint: loads.append(checkpoint) or object())
    subject.store.checkpoint = lambda probe, **_: probe
    first = subject.model("load_actor", Probe())
    assert subject.model("load_actor", Probe()) is first
    assert subject.model("load_actor", Probe("gpt2")) is not first
    subject.forget_models()
    assert subject.model("load_actor", Probe()) is not first
    assert len(loads) == 3


def test_a_model_is_loaded_in_the_dtype_that_a_call_asks_for(store):
    subject = Subject.make(Reference(), device="cpu", dtype="float32", store=store)
    assert subject.model("load_actor", Probe(), dtype="bfloat16").model.dtype is torch.bfloat16
    assert subject.model("load_actor", Probe()).model.dtype is torch.float32


def test_a_backbone_that_is_not_loaded_is_named_with_what_to_declare(store):
    def load_actor(checkpoint):
        raise KeyError(checkpoint.architecture)

    subject = subject_of(load_actor=load_actor)
    subject.store = store
    with pytest.raises(AdapterError, match=r"the probe is a granite: .* left out of `architectures`"):
        subject.load("load_actor", Probe("granite"))


def test_a_generated_id_beyond_the_vocabulary_is_refused():
    with pytest.raises(WiringError, match="token ids from 0 to"):
        ask_generate(torch.tensor([[5, 6, 4711]]))


def test_memory_that_a_trainer_never_sets_is_nan_after_loading(store):
    class Unset(Reference):
        def load_critic(self, checkpoint):
            model = super().load_critic(checkpoint)
            model.unset = torch.empty(64)
            return model

    subject = Subject.make(Unset(), device="cpu", dtype="float32", store=store)
    assert subject.load("load_critic", Probe(head_name="score")).unset.isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()

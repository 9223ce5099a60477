"""Token log-probs and entropies: against the plain-Python spec, by finite differences, and what they allocate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_reference import token_entropy, token_log_probs
from rlhf_spec import log_probs as spec

V = 11
THREE = 3 * V * 8  # bytes of three positions in float64


def logits_and_labels(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(*shape, V, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(V, shape, generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_log_prob_is_that_of_the_spec(temperature: float) -> None:
    logits, labels = logits_and_labels(2, 5)
    expected = [
        [spec.token_log_prob(z, label, temperature) for z, label in zip(*rows, strict=True)]
        for rows in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    actual = token_log_probs(logits, labels, temperature=temperature, chunk_bytes=THREE)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-13, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_entropy_is_that_of_the_spec(temperature: float) -> None:
    logits, _ = logits_and_labels(2, 5)
    expected = [[spec.entropy(z, temperature) for z in row] for row in logits.tolist()]
    actual = token_entropy(logits, temperature=temperature, chunk_bytes=THREE)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-13, rtol=0)


def test_the_temperature_is_1_unless_it_is_said() -> None:
    logits, labels = logits_and_labels(4)
    assert torch.equal(token_entropy(logits), token_entropy(logits, temperature=1.0))
    assert torch.equal(token_log_probs(logits, labels), token_log_probs(logits, labels, temperature=1.0))


def test_gradient_of_a_log_prob_is_that_of_the_spec() -> None:
    logits, labels = logits_and_labels(4)
    logits.requires_grad_()
    token_log_probs(logits, labels, temperature=0.7).sum().backward()
    expected = [spec.token_log_prob_gradient(z, y, 0.7) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    torch.testing.assert_close(logits.grad, torch.tensor(expected, dtype=torch.float64), atol=1e-13, rtol=0)


def test_gradient_of_log_probs_by_finite_differences() -> None:
    logits, labels = logits_and_labels(2, 5)
    labels[1, 2] = -100
    torch.autograd.gradcheck(
        lambda z: token_log_probs(z[:, :-1], labels[:, 1:], temperature=0.7, chunk_bytes=THREE), logits.requires_grad_()
    )


def test_gradient_of_the_entropy_by_finite_differences() -> None:
    logits, _ = logits_and_labels(2, 5)
    torch.autograd.gradcheck(
        lambda z: token_entropy(z[:, :-1], temperature=0.7, chunk_bytes=THREE), logits.requires_grad_()
    )


@pytest.mark.parametrize("positions", range(1, 10))
def test_no_position_is_dropped_whatever_the_chunk_size(positions: int) -> None:
    logits, labels = logits_and_labels(positions)
    expected = logits.log_softmax(-1)[torch.arange(positions), labels]
    for size in range(1, 11):
        torch.testing.assert_close(token_log_probs(logits, labels, chunk_bytes=size * V * 8), expected)


def test_a_slice_of_the_logits_gives_what_its_copy_gives() -> None:
    logits, labels = logits_and_labels(3, 6)
    view, copy = logits[:, :-1], logits[:, :-1].clone()
    torch.testing.assert_close(token_log_probs(view, labels[:, 1:]), token_log_probs(copy, labels[:, 1:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_upcast_first(dtype: torch.dtype) -> None:
    logits, labels = logits_and_labels(3, 6, dtype=dtype)
    exact = logits.double().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    actual = token_log_probs(logits, labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), exact, atol=3e-6, rtol=0)


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    logits, labels = logits_and_labels(3, 6)
    torch.testing.assert_close(
        token_log_probs(logits + 1e4, labels), token_log_probs(logits, labels), atol=1e-11, rtol=0
    )


def test_logits_near_the_end_of_float32_stay_finite_below_temperature_1() -> None:
    logits = torch.tensor([[3e38, 2.9e38, -3e38]])
    assert token_log_probs(logits, torch.tensor([0]), temperature=0.5).item() == 0.0


def test_a_position_is_not_rounded_by_the_logits_of_another() -> None:
    logits, labels = logits_and_labels(2, dtype=torch.float32)
    alone = token_log_probs(logits[1:], labels[1:]), token_entropy(logits[1:])
    logits[0] += 1e6
    assert torch.equal(token_log_probs(logits, labels)[1:], alone[0])
    assert torch.equal(token_entropy(logits)[1:], alone[1])


def test_a_log_prob_is_never_above_0() -> None:
    logits = 30 * torch.randn(2000, V, generator=torch.Generator().manual_seed(0))
    assert token_log_probs(logits, logits.argmax(-1)).max() <= 0


def test_an_ignored_label_gives_0_and_no_gradient_even_from_nan() -> None:
    logits, labels = logits_and_labels(3)
    logits[1], labels[1] = torch.nan, -100
    log_probs = token_log_probs(logits.requires_grad_(), labels)
    log_probs.sum().backward()
    assert log_probs[1].item() == 0.0
    assert logits.grad is not None
    assert logits.grad[1].eq(0).all()
    assert logits.grad[0].ne(0).all()


def test_a_ruled_out_word_counts_nothing_in_the_entropy() -> None:
    logits, _ = logits_and_labels(3)
    ruled_out = torch.cat([logits, torch.full((3, 1), -torch.inf, dtype=logits.dtype)], dim=1).requires_grad_()
    entropy = token_entropy(ruled_out)
    torch.testing.assert_close(entropy, token_entropy(logits))
    entropy.sum().backward()
    assert ruled_out.grad is not None
    assert ruled_out.grad.isfinite().all()


def test_inputs_are_not_written_forward_or_backward() -> None:
    logits, labels = logits_and_labels(2, 5)
    labels[0, 0] = -100
    before = logits.clone(), labels.clone()
    logits.requires_grad_()
    (token_log_probs(logits, labels).sum() + token_entropy(logits).sum()).backward()
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    logits, labels = logits_and_labels(2)
    with pytest.raises(ValueError, match="temperature"):
        token_log_probs(logits, labels, temperature=temperature)


def test_logits_of_one_position_need_their_axis() -> None:
    with pytest.raises(ValueError, match="position axis, not \\(11,\\)"):
        token_entropy(torch.zeros(V))


def test_labels_of_another_shape_are_refused() -> None:
    logits, labels = logits_and_labels(2, 5)
    with pytest.raises(ValueError, match="do not fit"):
        token_log_probs(logits, labels[:, 1:])


class LargeTensors(TorchDispatchMode):
    """Keeps every tensor of at least `size` numbers that an operation returns, by storage, views counted once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.by_storage: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().size() >= self.size * leaf.element_size():
                self.by_storage[leaf.untyped_storage().data_ptr()] = leaf  # held, so that no address comes twice
        return result


def large_tensors(compute: Any, leaf: torch.Tensor) -> tuple[int, int]:
    """How many tensors of half the leaf's size or more the forward and the backward pass allocate."""
    with LargeTensors(leaf.numel() // 2) as forward:
        result = compute(leaf).sum()
    with LargeTensors(leaf.numel() // 2) as backward:
        torch.autograd.grad(result, leaf)  # not backward(): .grad would copy a tensor that is held here
    own = leaf.untyped_storage().data_ptr()
    return len(forward.by_storage.keys() - {own}), len(backward.by_storage.keys() - {own})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["log_probs", "entropy"])
def test_no_second_tensor_of_the_logits_size_and_one_gradient(what: str, dtype: torch.dtype) -> None:
    logits, labels = logits_and_labels(8, 9, dtype=dtype)
    compute = {
        "log_probs": lambda z: token_log_probs(z, labels, chunk_bytes=8 * V * 4),
        "entropy": lambda z: token_entropy(z, chunk_bytes=8 * V * 4),
    }[what]
    assert large_tensors(compute, logits.requires_grad_()) == (0, 1)


def test_the_count_of_large_tensors_sees_those_of_a_plain_log_softmax() -> None:
    logits, labels = logits_and_labels(8, 9, dtype=torch.float32)
    forward, backward = large_tensors(
        lambda z: z.log_softmax(-1).gather(-1, labels.unsqueeze(-1)), logits.requires_grad_()
    )
    assert (forward, backward) >= (1, 2)


def test_nothing_but_logits_and_labels_is_saved_for_the_backward_pass() -> None:
    logits, labels = logits_and_labels(8, 9)
    logits.requires_grad_()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        token_log_probs(logits, labels, chunk_bytes=8 * V * 4)
    assert {x.untyped_storage().data_ptr() for x in saved} == {x.untyped_storage().data_ptr() for x in (logits, labels)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nan_is_not_hidden_by_the_entropy(dtype: torch.dtype) -> None:
    logits, _ = logits_and_labels(3, dtype=dtype)
    logits[1, 2] = torch.nan
    assert token_entropy(logits).isnan().tolist() == [False, True, False]
    logits.requires_grad_()
    token_entropy(logits).sum().backward()
    assert logits.grad.isnan().any(-1).tolist() == [False, True, False]


def test_chunks_of_another_size_compute_the_same_numbers() -> None:
    """With -inf among the logits, in one chunk and in one for each position."""
    logits, labels = logits_and_labels(2, 3, 4, dtype=torch.float32)
    logits[..., 3] = -torch.inf
    labels[labels == 3] = 4
    logits.requires_grad_()
    for compute in (
        lambda size: token_log_probs(logits, labels, chunk_bytes=size),
        lambda size: token_entropy(logits, chunk_bytes=size),
    ):
        found = []
        for size in (1, 10**6):
            result = compute(size)
            found.append((result.detach(), *torch.autograd.grad(result.sum(), logits)))
        for one, whole in zip(*found, strict=True):
            assert one.isfinite().all()
            torch.testing.assert_close(one, whole)

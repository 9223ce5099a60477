"""What a call does besides answering: kept apart from the suite, noted, and undone.

A call gets copies of its inputs; whether it wrote to them, or disturbed global state, is noted and put back. Whatever
it raises becomes an `AdapterError`.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.judging import raised
from rlhf_conformance.oracle.batch import HANDED


class AdapterError(Exception):
    """A method of the adapter raised.

    behind  what stands behind its exception, in words: causes, the exceptions of a group; empty where nothing does

    The exception itself is not kept: nobody else shall read it, who may not expect what it does.
    """

    def __init__(self, method: str, cause: BaseException) -> None:
        self.method = method
        self.poisons = poisons(cause)
        self.behind = raised.story(cause)
        where = raised.place_of(cause, skipped=1)
        kind = f"raised {raised.kind_of(cause)}"
        if issubclass(type(cause), SystemExit):
            kind = "called sys.exit"
        text = raised.text_of(cause)[: raised.LONGEST]
        said = f"{method} {kind}: {text}" if text else f"{method} {kind}"
        super().__init__(f"{said} ({where})" if where else said)
        raised.let_go(cause)


@dataclass(frozen=True)
class Setting:
    """Something of the process that a forward pass or a loss has no business changing.

    name    as a verdict calls it; empty: it is put back without one
    """

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], None]


def _autocast() -> tuple[Any, ...]:
    """Whether it is on and in which dtype, by device, and how many are open."""
    torch.autocast_increment_nesting()
    open_ones = torch.autocast_decrement_nesting()
    devices = tuple((torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in _AUTOCASTING)
    return (*devices, torch.is_autocast_cache_enabled(), open_ones)


def _put_autocast(was: tuple[Any, ...]) -> None:
    *devices, caches, open_ones = was
    for name, (enabled, dtype) in zip(_AUTOCASTING, devices, strict=True):
        torch.set_autocast_enabled(name, enabled)
        torch.set_autocast_dtype(name, dtype)
    torch.set_autocast_cache_enabled(caches)
    while _autocast()[-1] > open_ones:
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


_AUTOCASTING = ("cpu", "cuda")


def _function_stack() -> tuple[Any, ...]:
    return tuple(torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack()))


def _put_function_stack(was: tuple[Any, ...]) -> None:
    for _ in range(torch._C._len_torch_function_stack()):
        torch._C._pop_torch_function_stack()
    for mode in was:
        torch._C._push_on_torch_function_stack(mode)


def _is_of_a_device(mode: Any) -> bool:
    from torch.utils._device import DeviceContext

    return isinstance(mode, DeviceContext)


def _function_modes() -> tuple[Any, ...]:
    """All but the one that stands for the default device."""
    return tuple(mode for mode in _function_stack() if not _is_of_a_device(mode))


def _put_function_modes(was: tuple[Any, ...]) -> None:
    _put_function_stack((*filter(_is_of_a_device, _function_stack()), *was))


def _dispatch_modes() -> tuple[Any, ...]:
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return tuple(_get_current_dispatch_mode_stack())


def _put_dispatch_modes(was: tuple[Any, ...]) -> None:
    from torch.utils._python_dispatch import _pop_mode, _push_mode

    for mode in reversed(_dispatch_modes()):
        _pop_mode(getattr(mode, "_mode_key", None))
    for mode in was:
        _push_mode(mode)


def _saved_tensor_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def _put_saved_tensor_hooks(was: Any) -> None:
    while _saved_tensor_hooks() not in (was, None):
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _attention_kernels() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()


def _put_attention_kernels(was: tuple[bool, ...]) -> None:
    cuda = torch.backends.cuda
    for put, value in zip(
        (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp), was, strict=True
    ):
        put(value)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@cache
def settings() -> tuple[Setting, ...]:
    """All of them but random numbers, grad mode and inference mode, in the order in which they are put back."""
    return (
        # First what sees all that follows, and may refuse it.
        Setting("the torch function modes", _function_modes, _put_function_modes),
        Setting("the torch dispatch modes", _dispatch_modes, _put_dispatch_modes),
        Setting(
            "",
            torch.get_default_device,
            lambda was: torch.set_default_device(None if was.type == "cpu" else was),
        ),
        Setting("", _function_stack, _put_function_stack),
        Setting("autocast", _autocast, _put_autocast),
        Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
        Setting(
            "the precision of float32 products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        Setting("the kernels of attention", _attention_kernels, _put_attention_kernels),
        Setting(
            "the detection of anomalies",
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda was: torch.set_anomaly_enabled(*was),
        ),
        Setting("the hooks of saved tensors", _saved_tensor_hooks, _put_saved_tensor_hooks),
        Setting("", _deterministic, lambda was: torch.use_deterministic_algorithms(was[0], warn_only=was[1])),
    )


DRAWN, DRAWN_ON_GPU = "the random number generator of the CPU", "the random number generator of the GPU"
SEEDED = "the random number generator of the CPU, which was seeded"
RANDOM_NUMBERS = (DRAWN, DRAWN_ON_GPU, SEEDED)


@dataclass(frozen=True)
class GlobalState:
    """What of torch belongs to the whole process, before a call."""

    rng: torch.Tensor
    seed: int
    cuda_rng: list[torch.Tensor]
    grad: bool
    inference: bool
    values: tuple[Any, ...]

    @classmethod
    def now(cls) -> GlobalState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        values = tuple(setting.get() for setting in settings())
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return cls(torch.get_rng_state(), torch.initial_seed(), cuda, *modes, values)

    def restore(self) -> list[str]:
        """Put everything back; the names of what had changed and is in the clauses."""
        inference, grad, changed = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), []
        for setting, was in zip(settings(), self.values, strict=True):
            if setting.get() != was:
                changed += [setting.name] * bool(setting.name)
                setting.put(was)
        rng = torch.get_rng_state()  # which a mode that was left would have seen
        if not torch.equal(rng, self.rng):
            changed.append(DRAWN if torch.initial_seed() == self.seed else SEEDED)
            torch.set_rng_state(self.rng)
        cuda = torch.cuda.get_rng_state_all() if self.cuda_rng else []
        if any(not torch.equal(a, b) for a, b in zip(cuda, self.cuda_rng, strict=True)):
            changed.append(DRAWN_ON_GPU)
            torch.cuda.set_rng_state_all(self.cuda_rng)
        if inference != self.inference:
            changed.append("the inference mode")
            mode = torch.inference_mode(self.inference)
            mode.__enter__()
            _ENTERED.append(mode)
        if grad != self.grad:
            if inference == self.inference:
                changed.append("the grad mode")
        torch.set_grad_enabled(self.grad)
        return changed


_ENTERED: list[Any] = []
"""Inference modes that were entered to undo an adapter's: one that is forgotten is left."""


@contextlib.contextmanager
def unset_memory_is_nan() -> Iterator[None]:
    """A parameter or a buffer that a trainer allocates and never sets is NaN, and not whatever lay in memory: what
    depends on it is found in every run, and not now and then. That is what torch does in its deterministic mode."""
    was, warns = _deterministic()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warns)


@contextlib.contextmanager
def surroundings_kept() -> Iterator[None]:
    """Put back what else of the process a clause must not leave to the next: the folder, variables, signal handlers,
    warning filters, and the random number generators of Python and numpy. That is no failure, since nothing that the
    clauses speak of depends on it; and variables that were added stay, since they belong to what an adapter sets up
    once in a process.
    """
    folder, variables = os.getcwd(), dict(os.environ)
    numpy = sys.modules.get("numpy")
    chance, numpy_chance = random.getstate(), numpy.random.get_state() if numpy is not None else None
    handlers, alarm = {number: signal.getsignal(number) for number in _SIGNALS}, _alarm()
    with warnings.catch_warnings():
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.chdir(folder)
            random.setstate(chance)
            if numpy is not None:
                numpy.random.set_state(numpy_chance)
            os.environ.update({key: value for key, value in variables.items() if os.environ.get(key) != value})
            if threading.current_thread() is threading.main_thread():
                if _alarm() and not alarm:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                for number, handler in handlers.items():
                    if handler is not None and signal.getsignal(number) != handler:
                        signal.signal(number, handler)


def _alarm() -> float:
    """Seconds until SIGALRM comes; 0: it does not."""
    return signal.getitimer(signal.ITIMER_REAL)[0] if hasattr(signal, "getitimer") else 0.0


_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGUSR1") if hasattr(signal, name)]

_STICKY = re.compile(
    r"(?:CUDA|HIP) error: .*(?:illegal|misaligned|device-side assert|launch failure|launch timed out|hardware|"
    r"invalid program counter|uncorrectable|address space)",
    re.IGNORECASE,
)
"""Errors after which every later call to CUDA in the process fails, other than a want of memory or of a kernel."""


def poisons(error: BaseException) -> bool:
    return issubclass(type(error), RuntimeError) and _STICKY.search(raised.text_of(error)) is not None


def copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, HANDED):
        return replace(value, **{f.name: copied(getattr(value, f.name)) for f in fields(value)})
    return value


DEEPEST = 20
"""Lists in lists that an answer may be."""


def owned(answer: Any, depth: int = 0) -> Any:
    """An answer whose tensors share no memory with anything: the adapter's may be views of its inputs, or a buffer
    that its next call writes. What is a tensor or a list is told by its type alone, since objects lie. Raises
    ValueError where it is lists in lists without end."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    kind = type(answer)
    if issubclass(kind, torch.Tensor):
        return plain(answer)
    if kind in (list, tuple):
        return kind(owned(item, depth + 1) for item in answer)
    if kind is dict:
        return {name: owned(item, depth + 1) for name, item in answer.items()}
    if is_dataclass(kind):
        return replace(answer, **{f.name: owned(getattr(answer, f.name), depth + 1) for f in fields(answer) if f.init})
    return answer


def plain(tensor: Any) -> Any:
    """A copy of a tensor. One of a subclass becomes a plain one where it can, and has to show its numbers now: whatever
    it raises when they are asked for is raised here."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        if is_freed(tensor):
            raise ValueError("its memory was freed")
        return tensor.clone()
    copy = tensor.clone()
    if type(copy) is not torch.Tensor and issubclass(type(copy), torch.Tensor):
        with contextlib.suppress(RuntimeError, TypeError), torch._C.DisableTorchFunctionSubclass():
            copy = copy.as_subclass(torch.Tensor)
    if type(copy) is not torch.Tensor and not copy.is_nested and copy.layout == torch.strided:
        copy.detach().cpu().double().tolist()
    return copy


def is_freed(tensor: torch.Tensor) -> bool:
    """Whether its numbers lie beyond the end of its storage, as where a trainer has freed that to save memory: reading
    them ends the process."""
    if tensor.layout != torch.strided or tensor.is_nested or not tensor.numel():
        return False
    last = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage().nbytes() < (last + 1) * tensor.element_size()


def differences(before: Any, after: Any, name: str) -> list[str]:
    """The names of the tensors in `before` that differ from those in `after`."""
    if isinstance(before, torch.Tensor):
        return [] if _identical(before, after) else [name]
    if isinstance(before, list):
        if type(after) is not list or len(before) != len(after):
            return [name]
        pairs = enumerate(zip(before, after, strict=True))
        return [n for i, (b, a) in pairs for n in differences(b, a, f"{name}[{i}]")]
    if isinstance(before, HANDED):
        names = [f.name for f in fields(before)]
        return [n for key in names for n in differences(getattr(before, key), getattr(after, key), f"{name}.{key}")]
    return []


def _identical(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Equal in kind, in shape and in every number, NaN being equal to itself."""
    kinds = [(type(x), x.layout, x.device, x.dtype, x.shape) for x in (before, after) if type(x) is type(before)]
    if len(kinds) < 2 or kinds[0] != kinds[1] or is_freed(after):
        return False
    if torch.equal(before, after):
        return True
    same = before == after
    return bool((same | (before.isnan() & after.isnan())).all() if before.is_floating_point() else same.all())

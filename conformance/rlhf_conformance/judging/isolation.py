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
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.oracle.batch import Batch, Prompts


class AdapterError(Exception):
    """A method of the adapter raised."""

    def __init__(self, method: str, cause: BaseException) -> None:
        self.method = method
        self.poisons = poisons(cause)
        frames = traceback.extract_tb(cause.__traceback__)[1:]
        self.where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
        kind = "called sys.exit" if isinstance(cause, SystemExit) else f"raised {type(cause).__name__}"
        text = _text(cause)[:400]
        said = f"{method} {kind}: {text}" if text else f"{method} {kind}"
        super().__init__(f"{said} ({self.where})" if self.where else said)
        _let_go(cause)


@dataclass(frozen=True)
class GlobalState:
    """Process-wide settings of torch that a forward pass or a loss has no business changing."""

    rng: torch.Tensor
    cuda_rng: list[torch.Tensor]
    grad: bool
    inference: bool
    dtype: torch.dtype
    threads: int
    device: torch.device
    deterministic: bool
    warn_only: bool

    @classmethod
    def now(cls) -> GlobalState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(
            torch.get_rng_state(),
            cuda,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.get_default_device(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    def restore(self) -> list[str]:
        """Put everything back; the names of what had changed and is in the clauses."""
        after, changed = GlobalState.now(), []
        if not torch.equal(after.rng, self.rng):
            changed.append("the random number generator of the CPU")
            torch.set_rng_state(self.rng)
        if self.cuda_rng and any(not torch.equal(a, b) for a, b in zip(after.cuda_rng, self.cuda_rng, strict=True)):
            changed.append("the random number generator of the GPU")
            torch.cuda.set_rng_state_all(self.cuda_rng)
        if after.inference != self.inference:
            changed.append("the inference mode")
            mode = torch.inference_mode(self.inference)
            mode.__enter__()
            _ENTERED.append(mode)
        if torch.is_grad_enabled() != self.grad:
            if after.inference == self.inference:
                changed.append("the grad mode")
            torch.set_grad_enabled(self.grad)
        if after.dtype != self.dtype:
            changed.append("the default dtype")
            torch.set_default_dtype(self.dtype)
        if after.threads != self.threads:
            changed.append("the number of threads")
            torch.set_num_threads(self.threads)
        if after.device != self.device:
            torch.set_default_device(None if self.device.type == "cpu" else self.device)
        if (after.deterministic, after.warn_only) != (self.deterministic, self.warn_only):
            torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        return changed


_ENTERED: list[Any] = []
"""Inference modes that were entered to undo an adapter's: one that is forgotten is left."""


@contextlib.contextmanager
def unset_memory_is_nan() -> Iterator[None]:
    """A parameter or a buffer that a trainer allocates and never sets is NaN, and not whatever lay in memory: what
    depends on it is found in every run, and not now and then. That is what torch does in its deterministic mode."""
    was, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
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
    return isinstance(error, RuntimeError) and _STICKY.search(_text(error)) is not None


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold, which may be all of the memory. Its causes may lead back to itself."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, Batch | Prompts):
        return replace(value, **{f.name: copied(getattr(value, f.name)) for f in fields(value)})
    return value


def owned(answer: Any) -> Any:
    """An answer whose tensors share no memory with anything: the adapter's may be views of its inputs, or a buffer
    that its next call writes."""
    if isinstance(answer, torch.Tensor):
        return answer.clone()
    if type(answer) in (list, tuple):
        return type(answer)(owned(item) for item in answer)
    if is_dataclass(answer) and not isinstance(answer, type):
        return replace(answer, **{f.name: owned(getattr(answer, f.name)) for f in fields(answer) if f.init})
    return answer


def differences(before: Any, after: Any, name: str) -> list[str]:
    """The names of the tensors in `before` that differ from those in `after`."""
    if isinstance(before, torch.Tensor):
        return [] if _identical(before, after) else [name]
    if isinstance(before, list):
        if len(before) != len(after):
            return [name]
        pairs = enumerate(zip(before, after, strict=True))
        return [n for i, (b, a) in pairs for n in differences(b, a, f"{name}[{i}]")]
    if isinstance(before, Batch | Prompts):
        names = [f.name for f in fields(before)]
        return [n for key in names for n in differences(getattr(before, key), getattr(after, key), f"{name}.{key}")]
    return []


def _identical(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Equal in shape and in every number, NaN being equal to itself."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    if torch.equal(before, after):
        return True
    same = before == after
    return bool((same | (before.isnan() & after.isnan())).all() if before.is_floating_point() else same.all())


def _text(error: BaseException) -> str:
    """str(error) in one line, without what a terminal or a report could not show; an exception may refuse it."""
    try:
        text = str(error)
    except BaseException as second:
        return f"(its message cannot be read: {type(second).__name__})"
    words = " ".join(text[:100_000].split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words[:1000])

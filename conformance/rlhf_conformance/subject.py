"""The adapter under test, as the checks see it: every call isolated, every answer validated before it is judged.

A call hands the adapter copies of its inputs, notes whether it wrote to them or disturbed global state (and undoes
that), turns whatever it raises into `AdapterError`, and an answer of the wrong kind or shape into `WiringError`.
Checks only see answers that are wired right, so that a wrong number is told apart from a wrong plug.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import (
    Adapter,
    PackedSequences,
    PolicyLossResult,
    ProcessedSequences,
    provided,
)
from rlhf_conformance.batch import Batch, Prompts
from rlhf_conformance.cases.losses import LossCase
from rlhf_conformance.cases.models import ModelCase
from rlhf_conformance.layouts import present
from rlhf_conformance.probes import Checkpoint, Probe, ProbeStore
from rlhf_conformance.truth import Truth


class AdapterError(Exception):
    """A method of the adapter raised."""

    def __init__(self, method: str, cause: BaseException) -> None:
        self.method = method
        self.poisons = _poisons(cause)
        frames = traceback.extract_tb(cause.__traceback__)[1:]
        self.where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
        kind = "called sys.exit" if isinstance(cause, SystemExit) else f"raised {type(cause).__name__}"
        text = _text(cause)[:400]
        said = f"{method} {kind}: {text}" if text else f"{method} {kind}"
        super().__init__(f"{said} ({self.where})" if self.where else said)
        _let_go(cause)


class WiringError(Exception):
    """A method of the adapter returned something of the wrong kind: not wrong mathematics, but a wrong plug."""

    def __init__(self, method: str, came: str, wanted: str) -> None:
        self.method = method
        super().__init__(f"{method} returned {came}; wanted {wanted}")


@dataclass
class CallRecord:
    """What a call did besides answering."""

    written: list[str] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)


@dataclass
class Subject:
    """One adapter on one device in one dtype.

    interruptible   whether a KeyboardInterrupt is the user's; in a worker it can only be the adapter's
    poison          the error after which CUDA is of no more use in this process
    heard           is told of every call, before it is made
    """

    adapter: Adapter
    device: str
    dtype: torch.dtype
    store: ProbeStore
    truth: Truth
    record: CallRecord = field(default_factory=CallRecord)
    interruptible: bool = True
    poison: AdapterError | None = None
    _last: str = "the adapter"
    _models: dict[Any, Any] = field(default_factory=dict)
    _batch: tuple[ModelCase, Batch] | None = None
    heard: Callable[[str, tuple[Any, ...]], None] | None = None

    @classmethod
    def make(cls, adapter: Adapter, *, device: str, dtype: str, store: ProbeStore) -> Subject:
        torch_dtype = getattr(torch, dtype)
        return cls(adapter, device, torch_dtype, store, Truth(store, torch_dtype, device))

    @property
    def provided(self) -> tuple[str, ...]:
        return provided(self.adapter)

    def forget_models(self) -> None:
        """Drop the loaded models, so that no clause inherits what another one did to them."""
        self._models.clear()

    # --- calls ---------------------------------------------------------------------------------------------------

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the adapter on copies of `args`; see the module's docstring."""
        copies = [_copy(arg) for arg in args]
        with self._guarded(method):
            answer = _own(self._asked(method, copies))
        names = parameter_names(method)
        self.record.written = [
            written
            for name, arg, copy in zip(names, args, copies, strict=True)
            for written in _differences(arg, copy, name)
        ]
        return answer

    def uncopied(self, method: str, *args: Any) -> Any:
        """Call a method of the adapter on `args` themselves."""
        with self._guarded(method):
            return self._asked(method, args)

    def _asked(self, method: str, args: Sequence[Any]) -> Any:
        self.record = CallRecord()
        if self.heard is not None:
            self.heard(method, tuple(args))
        with _unset_memory_is_nan() if method in LOADING else contextlib.nullcontext():
            answer = getattr(self.adapter, method)(*args)
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)  # an error of its kernels is an error of this call
        return answer

    @contextlib.contextmanager
    def _guarded(self, method: str, *, recorded: bool = True) -> Iterator[None]:
        """Whatever is raised inside is the adapter's error, and whatever is changed is put back."""
        if self.poison is not None:
            raise self.poison
        self._last, process, before = method, os.getpid(), _GlobalState.now()
        try:
            yield
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and self.interruptible:
                raise
            raise self.blamed(method, error) from error
        finally:
            if os.getpid() != process:
                os._exit(0)  # a child of the adapter, which must not answer in our name
            changed = before.restore() if self.poison is None else []
            if recorded:
                self.record.disturbed = changed

    def blamed(self, method: str, error: BaseException) -> AdapterError:
        """The error of a method, remembered where it leaves CUDA beyond use."""
        blamed = AdapterError(method, error)
        if blamed.poisons:
            self.poison = blamed
        return blamed

    def late(self, error: BaseException) -> AdapterError | None:
        """What the adapter is to be blamed for although the suite met it: CUDA reports errors at some later call."""
        return self.blamed(f"{self._last} (or a call before it)", error) if _poisons(error) else None

    def gradients(self, method: str, total: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Gradients of `total`, which came from `method`, with respect to `inputs`; zeros where there is no graph."""
        if not total.requires_grad:
            return [torch.zeros_like(x) for x in inputs]
        with self._guarded(f"{method} (its backward pass)", recorded=False):
            grads = torch.autograd.grad(total, inputs, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]

    def tensor(self, values: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor on the device under test: int64 for integers, the dtype under test for floats, or as asked."""
        tensor = values if isinstance(values, torch.Tensor) else torch.tensor(values)
        if dtype is None and tensor.is_floating_point():
            dtype = self.dtype
        return tensor.to(device=self.device, dtype=dtype)

    def parameters(self, model: Any) -> dict[str, torch.Tensor]:
        """The adapter's parameters of a model, by name."""
        found = self.uncopied("parameters", model)
        if not isinstance(found, Mapping) or not all(isinstance(p, torch.Tensor) for p in found.values()):
            raise WiringError("parameters", _describe(found), "a mapping of names to parameters")
        return dict(found)

    # --- formulas ------------------------------------------------------------------------------------------------

    def token_log_probs(self, logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
        answer = self.call("token_log_probs", logits, labels, temperature)
        return _floats("token_log_probs", answer, tuple(labels.shape), "one log-prob for each label")

    def token_entropy(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        answer = self.call("token_entropy", logits, temperature)
        return _floats("token_entropy", answer, tuple(logits.shape[:-1]), "one entropy for each position")

    def process_sequences(self, *args: Any) -> ProcessedSequences:
        answer = self.call("process_sequences", *args)
        if isinstance(answer, tuple) and len(answer) == 3:
            answer = ProcessedSequences(*answer)
        if not isinstance(answer, ProcessedSequences):
            raise WiringError("process_sequences", _describe(answer), "a ProcessedSequences")
        rows, width = args[0].shape
        for name, shape in (
            ("sequences", (rows, width)),
            ("attention_mask", (rows, width)),
            ("action_mask", (rows, width - args[1])),
        ):
            part = getattr(answer, name)
            if part is not None:
                _tensor("process_sequences", part, shape, f"{name} of that shape", label=name)
        return answer

    def position_ids(self, attention_mask: torch.Tensor) -> torch.Tensor:
        answer = self.call("position_ids", attention_mask)
        return _integers("position_ids", answer, tuple(attention_mask.shape), "a position for each cell")

    def pack_sequences(self, sequences: list[torch.Tensor]) -> PackedSequences:
        answer = self.call("pack_sequences", sequences)
        if not isinstance(answer, PackedSequences):
            raise WiringError("pack_sequences", _describe(answer), "a PackedSequences")
        ids = answer.input_ids
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.shape[0] != 1:
            raise WiringError("pack_sequences", f"input_ids {_describe(ids)}", "a tensor of shape (1, N)")
        for name in ("position_ids", "labels"):
            part = getattr(answer, name)
            if part is not None:
                _tensor("pack_sequences", part, tuple(ids.shape), f"{name} shaped like input_ids", label=name)
        return answer

    # --- models --------------------------------------------------------------------------------------------------

    def checkpoint(self, probe: Probe, temperature: float = 1.0, normalize: bool = False) -> Checkpoint:
        return self.store.checkpoint(
            probe, dtype=self.dtype, device=self.device, temperature=temperature, normalize=normalize
        )

    def load(self, method: str, probe: Probe, temperature: float = 1.0, normalize: bool = False) -> Any:
        """A freshly loaded model."""
        model = self.call(method, self.checkpoint(probe, temperature, normalize))
        if model is None:
            raise WiringError(method, "None", "the model that later calls are to be given")
        return model

    def model(self, method: str, probe: Probe, temperature: float = 1.0, normalize: bool = False) -> Any:
        """A loaded model, remembered within the clause."""
        key = (method, probe, temperature, normalize)
        if key not in self._models:
            self._models[key] = self.load(*key)
        return self._models[key]

    def batch(self, case: ModelCase) -> Batch:
        """The case as it is presented. Whoever gives it to the adapter gives it a copy (`call`)."""
        if self._batch is None or self._batch[0] is not case:
            self._batch = case, self._present(case)
        return self._batch[1]

    def _present(self, case: ModelCase) -> Batch:
        return present(
            case.samples,
            case.how,
            pad_token_id=case.probe.pad_token_id,
            temperature=case.temperature,
            device=self.device,
        )

    def actions(self, method: str, model: Any, case: ModelCase) -> list[torch.Tensor]:
        """`action_log_probs`, `action_entropy` or `action_values` of a case, one 1-D tensor for each sample."""
        return self.actions_of(method, self.raw_actions(method, model, case), self.batch(case))

    def raw_actions(self, method: str, model: Any, case: ModelCase) -> Any:
        """The same as the adapter returns it."""
        return self.call(method, model, self.batch(case))

    def actions_of(self, method: str, answer: Any, batch: Batch) -> list[torch.Tensor]:
        if not isinstance(answer, torch.Tensor) and not (
            isinstance(answer, list | tuple) and all(isinstance(row, torch.Tensor) for row in answer)
        ):
            raise WiringError(method, _describe(answer), "a tensor, or a list of 1-D tensors, one for each sample")
        if not all(part.is_floating_point() for part in ([answer] if isinstance(answer, torch.Tensor) else answer)):
            raise WiringError(method, _describe(answer), "floating-point numbers, one for each action")
        try:
            return batch.actions_to_ragged(answer)
        except ValueError as error:
            came, _, wanted = str(error).partition("; wanted ")
            raise WiringError(method, came, wanted) from None

    def rewards(self, model: Any, case: ModelCase) -> list[torch.Tensor]:
        """One reward for each sample, as a list of 1-entry tensors."""
        answer = self.call("rewards", model, self.batch(case))
        answer = _floats("rewards", answer, (len(case.samples),), "one reward for each sequence")
        return list(answer.split(1))

    def whole_output(self, method: str, model: Any, case: ModelCase, *entry: int) -> list[torch.Tensor]:
        """`logits` or `values`, one tensor (length, *entry) for each sample."""
        batch = self.batch(case)
        answer = self.call(method, model, batch)
        shape = (*batch.input_ids.shape, *entry)
        return batch.to_ragged(_floats(method, answer, tuple(shape), "an entry for every position"))

    def generate(self, model: Any, prompts: Prompts) -> torch.Tensor:
        answer = self.call("generate", model, prompts)
        rows, width = prompts.input_ids.shape
        if (
            not isinstance(answer, torch.Tensor)
            or answer.ndim != 2
            or answer.shape[0] != rows
            or answer.shape[1] <= width
        ):
            raise WiringError("generate", _describe(answer), f"token rows ({rows}, more than {width})")
        return answer

    # --- losses --------------------------------------------------------------------------------------------------

    def loss(self, kind: str, case: LossCase, mask: torch.Tensor | None = None) -> LossAnswer:
        """The policy or value loss of a case, with a leaf for the new log-probs or values."""
        method = kind.replace("-", "_")
        new = self.tensor(case.new).requires_grad_()
        mask = self.tensor(case.mask) if mask is None else mask
        answer = self.call(method, new, self.tensor(case.old), self.tensor(case.target), mask, case.options)
        result = answer if isinstance(answer, PolicyLossResult) else PolicyLossResult(answer)
        if not isinstance(result.loss, torch.Tensor) or result.loss.numel() != 1:
            raise WiringError(method, _describe(result.loss), "the loss, a tensor with one number")
        if not result.loss.is_floating_point():
            raise WiringError(method, _describe(result.loss), "a floating-point loss")
        for name in ("clip_fraction", "approx_kl"):
            _number(method, name, getattr(result, name))
        return LossAnswer(self, method, new, result)


@dataclass(frozen=True)
class LossAnswer:
    """A loss with the leaf that it was computed from."""

    subject: Subject
    method: str
    new: torch.Tensor
    result: PolicyLossResult

    @property
    def value(self) -> float:
        return float(self.result.loss.detach())

    @cached_property
    def gradient(self) -> list[list[float]]:
        """(B, T) gradient with respect to the new log-probs or values; zeros where there is no graph."""
        (grad,) = self.subject.gradients(self.method, self.result.loss.sum(), [self.new])
        return grad.double().tolist()


@dataclass(frozen=True)
class _GlobalState:
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
    def now(cls) -> _GlobalState:
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
        after, changed = _GlobalState.now(), []
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


LOADING = ("load_actor", "load_reward_model", "load_critic", "restore")


@contextlib.contextmanager
def _unset_memory_is_nan() -> Iterator[None]:
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
    """Put back what else of the process a clause must not leave to the next: the folder, variables, signal handlers and
    warning filters. That is no failure, since nothing that the clauses speak of depends on it; and variables that
    were added stay, since they belong to what an adapter sets up once in a process.
    """
    folder, variables = os.getcwd(), dict(os.environ)
    handlers, alarm = {number: signal.getsignal(number) for number in _SIGNALS}, _alarm()
    with warnings.catch_warnings():
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.chdir(folder)
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


def _poisons(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and _STICKY.search(_text(error)) is not None


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold, which may be all of the memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@cache
def parameter_names(method: str) -> list[str]:
    """The names of what a method of an adapter is given."""
    return list(inspect.signature(getattr(Adapter, method)).parameters)[1:]


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, Batch | Prompts):
        return replace(value, **{f.name: _copy(getattr(value, f.name)) for f in fields(value)})
    return value


def _own(answer: Any) -> Any:
    """An answer whose tensors share no memory with anything: the adapter's may be views of its inputs, or a buffer
    that its next call writes."""
    if isinstance(answer, torch.Tensor):
        return answer.clone()
    if type(answer) in (list, tuple):
        return type(answer)(_own(item) for item in answer)
    if isinstance(answer, PackedSequences | ProcessedSequences | PolicyLossResult):
        return replace(answer, **{f.name: _own(getattr(answer, f.name)) for f in fields(answer)})
    return answer


def _differences(before: Any, after: Any, name: str) -> list[str]:
    """The names of the tensors in `before` that differ from those in `after`."""
    if isinstance(before, torch.Tensor):
        return [] if _identical(before, after) else [name]
    if isinstance(before, list):
        if len(before) != len(after):
            return [name]
        pairs = enumerate(zip(before, after, strict=True))
        return [n for i, (b, a) in pairs for n in _differences(b, a, f"{name}[{i}]")]
    if isinstance(before, Batch | Prompts):
        names = [f.name for f in fields(before)]
        return [n for key in names for n in _differences(getattr(before, key), getattr(after, key), f"{name}.{key}")]
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


def _number(method: str, name: str, value: Any) -> None:
    """A metric is a number, or a tensor that holds one."""
    if value is None or isinstance(value, int | float):
        return
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or value.is_complex():
        raise WiringError(method, f"{name} = {_describe(value)}", "a number, or a tensor that holds one")


def _describe(value: Any) -> str:
    if value is None:
        return "None (is a return statement missing?)"
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{'an' if dtype[0] == 'i' else 'a'} {dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _tensor(method: str, value: Any, shape: tuple[int, ...], wanted: str, *, label: str = "") -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
        came = f"{label} = {_describe(value)}" if label else _describe(value)
        raise WiringError(method, came, f"a tensor of shape {shape}: {wanted}")
    return value


def _floats(method: str, value: Any, shape: tuple[int, ...], wanted: str) -> torch.Tensor:
    if not _tensor(method, value, shape, wanted).is_floating_point():
        raise WiringError(method, _describe(value), f"floating-point numbers: {wanted}")
    return value


def _integers(method: str, value: Any, shape: tuple[int, ...], wanted: str) -> torch.Tensor:
    if _tensor(method, value, shape, wanted).is_floating_point():
        raise WiringError(method, _describe(value), f"integers: {wanted}")
    return value

"""The adapter under test, as the checks see it: every call isolated, every answer validated before it is judged.

Checks only see answers that are wired right, so that a wrong number is told apart from a wrong plug.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS, Adapter, provided
from rlhf_conformance.judging import raised
from rlhf_conformance.judging.isolation import (
    AdapterError,
    GlobalState,
    copied,
    differences,
    owned,
    poisons,
    unset_memory_is_nan,
)
from rlhf_conformance.judging.questions import Answered, Call, CallRecord, Loaded
from rlhf_conformance.judging.wiring import WiringError, describe
from rlhf_conformance.oracle.probes import Checkpoint, Probe, ProbeStore
from rlhf_conformance.oracle.truth import Truth

READABLE = "an answer that can be read: plain tensors"


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

    def answer(self, call: Call) -> Answered:
        """Make a call as a check asks for it: its models are loaded, its seed is set."""
        given = tuple(self._loaded(x) if isinstance(x, Loaded) else x for x in call.given)
        modes = _modes(given[0]) if call.watches_mode else []
        with contextlib.ExitStack() as around:
            if call.seed is not None:
                around.enter_context(torch.random.fork_rng())
                torch.manual_seed(call.seed)
            if not call.grad:
                around.enter_context(torch.no_grad())
            answered = self.ask(call.method, *given, copies=call.copies)
        left = sorted({part.training for part, mode in modes if part.training != mode})
        if left:
            ways = ("from train to eval", "from eval to train")
            answered.record.disturbed.append(f"the mode of the model, {' and '.join(ways[to] for to in left)}")
            for part, mode in modes:
                part.training = mode
        return replace(answered, given=call.given, call=call)

    def _loaded(self, wanted: Loaded) -> Any:
        asked = (wanted.load, wanted.probe, wanted.temperature, wanted.normalize, wanted.dtype)
        model = self.load(*asked) if wanted.fresh else self.model(*asked)
        if wanted.training is not None:
            self.uncopied("set_training", model, wanted.training)
        return model

    def ask(self, method: str, *given: Any, copies: bool = True) -> Answered:
        """Call a method of the adapter, on copies of what it is given; see the module's docstring.

        Raises AdapterError where it raises, WiringError where its answer is of another kind or shape than the method's
        row says.
        """
        row = METHODS[method]
        models = range(1 if row.model or row.arguments[:1] == ("model",) else 0)  # which are the adapter's own
        handed = [x if not copies or i in models else copied(x) for i, x in enumerate(given)]
        raw = self._guarded(method, lambda: self._called(method, handed))
        if copies and not row.loads:
            raw = self._read(method, raw, functools.partial(owned, raw))
        named = row.named(given)
        if copies:
            self.record.left = tuple(handed)
            self.record.written = [
                written
                for i, ((name, argument), copy) in enumerate(zip(named.items(), handed, strict=True))
                if i not in models
                for written in differences(argument, copy, name)
            ]
        value = raw
        if row.answer is not None:
            value = self._read(method, raw, lambda: row.answer.checked(method, raw, named, self.device))
        return Answered(method, tuple(given), value, raw, self.record)

    def _read(self, method: str, raw: Any, reading: Callable[[], Any]) -> Any:
        """What `reading` makes of an answer. Raises WiringError where the answer lets nobody read it: an object of the
        adapter may raise whenever it is touched, and tensors of some kinds do."""
        try:
            return reading()
        except WiringError:
            raise
        except BaseException as error:
            if issubclass(type(error), KeyboardInterrupt) and self.interruptible:
                raise
            if poisons(error):
                failed: Exception = self.blamed(method, error)
            else:
                why = f"{raised.kind_of(error)}: {raised.text_of(error)[: raised.LONGEST]}"
                failed = WiringError(method, f"{describe(raw)}, which cannot be read ({why})", READABLE)
        raise failed

    def call(self, method: str, *given: Any) -> Any:
        """The checked answer alone."""
        return self.ask(method, *given).value

    def uncopied(self, method: str, *given: Any) -> Any:
        """The same for a call that is given its arguments themselves."""
        return self.ask(method, *given, copies=False).value

    def _called(self, method: str, handed: Sequence[Any]) -> Any:
        self.record = CallRecord()
        if self.heard is not None:
            self.heard(method, tuple(handed))
        with unset_memory_is_nan() if METHODS[method].loads else contextlib.nullcontext():
            extras = METHODS[method].extras
            named = METHODS[method].named(handed)
            more = {name: named.pop(name) for name in extras if name in named}
            answer = getattr(self.adapter, method)(*named.values(), **more)
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)  # an error of its kernels is an error of this call
        return answer

    def _guarded(self, method: str, action: Callable[[], Any], *, recorded: bool = True) -> Any:
        """Whatever the action raises is the adapter's error, and whatever it changes is put back."""
        if self.poison is not None:
            raise self.poison
        self._last, process, before = method, os.getpid(), GlobalState.now()
        blamed = None
        try:
            value = action()
        except BaseException as error:
            if issubclass(type(error), KeyboardInterrupt) and self.interruptible:
                raise
            blamed = self.blamed(method, error)
        finally:
            if os.getpid() != process:
                os._exit(0)  # a child of the adapter, which must not answer in our name
            changed = before.restore() if self.poison is None else []
            if recorded:
                self.record.disturbed = changed
        if blamed is not None:
            raise blamed  # here, where it has no context: the adapter's exception may lead whoever reads it in circles
        return value

    def blamed(self, method: str, error: BaseException) -> AdapterError:
        """The error of a method, remembered where it leaves CUDA beyond use."""
        blamed = AdapterError(method, error)
        if blamed.poisons:
            self.poison = blamed
        return blamed

    def late(self, error: BaseException) -> AdapterError | None:
        """What the adapter is to be blamed for although the suite met it: CUDA reports errors at some later call, and
        an object of the adapter's may raise when it is looked at."""
        if poisons(error):
            return self.blamed(f"{self._last} (or a call before it)", error)
        if raised.passes_through(error, self._home):
            return self.blamed(f"{self._last} returned something that, looked at later,", error)
        return None

    @functools.cached_property
    def _home(self) -> tuple[str, ...]:
        """The files of the adapter's classes, unless they are the suite's own."""
        kinds = [kind for kind in type(self.adapter).__mro__ if not kind.__module__.startswith(("rlhf_", "builtins"))]
        files = (getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in kinds)
        return tuple(file for file in files if file)

    def gradients(self, method: str, total: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Gradients of `total`, which came from `method`, with respect to `inputs`; zeros where there is no graph."""
        if not total.requires_grad:
            return [torch.zeros_like(x) for x in inputs]
        backward = functools.partial(torch.autograd.grad, total, inputs, allow_unused=True)
        grads = self._guarded(f"{method} (its backward pass)", backward, recorded=False)
        return [torch.zeros_like(x) if g is None else _dense(g) for x, g in zip(inputs, grads, strict=True)]

    def trained(self, method: str, total: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """The same with respect to parameters of a model, by a backward pass as in training: reentrant checkpointing
        knows no other. What a parameter holds as its gradient is put back."""
        held = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        try:
            self._guarded(f"{method} (its backward pass)", total.backward, recorded=False)
            return [torch.zeros_like(p) if p.grad is None else _dense(p.grad.clone()) for p in parameters]
        finally:
            for p, grad in zip(parameters, held, strict=True):
                p.grad = grad

    def tensor(self, values: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor on the device under test: int64 for integers, the dtype under test for floats, or as asked."""
        tensor = values if isinstance(values, torch.Tensor) else torch.tensor(values)
        if dtype is None and tensor.is_floating_point():
            dtype = self.dtype
        return tensor.to(device=self.device, dtype=dtype)

    # --- models --------------------------------------------------------------------------------------------------

    def checkpoint(
        self, probe: Probe, temperature: float = 1.0, normalize: bool = False, dtype: str | None = None
    ) -> Checkpoint:
        wanted = self.dtype if dtype is None else getattr(torch, dtype)
        return self.store.checkpoint(
            probe, dtype=wanted, device=self.device, temperature=temperature, normalize=normalize
        )

    def load(
        self, method: str, probe: Probe, temperature: float = 1.0, normalize: bool = False, dtype: str | None = None
    ) -> Any:
        """A freshly loaded model. An AdapterError says what to declare where it is the backbone that is not loaded."""
        checkpoint = self.checkpoint(probe, temperature, normalize, dtype)
        try:
            return self.call(method, checkpoint)
        except AdapterError as error:
            named = (
                f"the probe is a {probe.architecture}: what the trainer does not load is left out of `architectures`"
            )
            error.args = (f"{error}; {named}",)
            raise

    def model(
        self, method: str, probe: Probe, temperature: float = 1.0, normalize: bool = False, dtype: str | None = None
    ) -> Any:
        """A loaded model, remembered within the clause."""
        key = (method, probe, temperature, normalize, dtype)
        if key not in self._models:
            self._models[key] = self.load(*key)
        return self._models[key]


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    """A gradient with all its zeros: that of a table whose rows were looked up may be sparse."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _modes(model: Any) -> list[tuple[torch.nn.Module, bool]]:
    """The modules of a model, or of what it holds, and whether each is in train mode."""
    held = [model, *getattr(model, "__dict__", {}).values()]
    return [(part, part.training) for one in held if isinstance(one, torch.nn.Module) for part in one.modules()]

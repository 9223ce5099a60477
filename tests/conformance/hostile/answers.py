"""Adapters that answer in the wrong way: a wrong plug, a wrong number, an exception. All of them end up as verdicts."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import warnings

import torch

from rlhf_conformance import Adapter, PackedSequences, PolicyLossResult, ProcessedSequences


class Honest(Adapter):
    """The plainest right answers; every other class here lies about one of them."""

    def token_log_probs(self, logits, labels, temperature):
        log_probs = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
        return log_probs.gather(-1, labels[..., None])[..., 0]

    def position_ids(self, attention_mask):
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        mask = action_mask.bool()
        log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(max=50)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - options.clip_eps_low, 1 + options.clip_eps_high)
        loss = torch.where(mask, -torch.min(ratio * advantages, clipped * advantages), 0.0)
        return loss.sum() / mask.sum().clamp(min=1)


class ReturnsNone(Honest):
    """Forgets to return."""

    def token_log_probs(self, logits, labels, temperature):
        super().token_log_probs(logits, labels, temperature)


class WrongShape(Honest):
    """Keeps the vocabulary axis."""

    def token_log_probs(self, logits, labels, temperature):
        return (logits / temperature).log_softmax(-1)


class WrongDtype(Honest):
    """Answers in integers."""

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, temperature).long()


class FloatForTensor(Honest):
    """Calls .item() on the loss."""

    def policy_loss(self, *args):
        return super().policy_loss(*args).item()


class LossOfEveryToken(Honest):
    """Does not aggregate."""

    def policy_loss(self, log_probs, *args):
        return super().policy_loss(log_probs, *args) * torch.ones(2, 3)


class Raises(Honest):
    """Refuses what it is asked."""

    def token_log_probs(self, logits, labels, temperature):
        raise ValueError("only contiguous logits are supported")


class RaisesTheSame(Honest):
    """Raises one error again and again, as a trainer does that remembers why a kernel could not be imported."""

    error = ImportError("no kernel for this device")

    def token_log_probs(self, *args):
        raise self.error


class RaisesInACircle(Honest):
    """Raises an error that is the cause of its own cause."""

    def token_log_probs(self, *args):
        first, second = ValueError("wrong"), ValueError("because wrong")
        first.__cause__, second.__cause__ = second, first
        raise first


class Unprintable(Exception):
    """Refuses to be printed."""

    def __str__(self):
        raise RuntimeError("no message")


class RaisesUnprintable(Honest):
    """Raises an error whose message cannot be read."""

    def token_log_probs(self, logits, labels, temperature):
        raise Unprintable


class RaisesInterrupt(Honest):
    """Raises what Ctrl-C raises."""

    def position_ids(self, attention_mask):
        raise KeyboardInterrupt


class CallsExit(Honest):
    """Ends the program from within a method."""

    def token_log_probs(self, logits, labels, temperature):
        sys.exit("world size is 1")


class RaisesInBackward(Honest):
    """The forward pass is right, the backward pass refuses."""

    class _Refuse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise NotImplementedError("this kernel has no backward pass")

    def policy_loss(self, *args):
        return self._Refuse.apply(super().policy_loss(*args))

    def token_log_probs(self, *args):
        return self._Refuse.apply(super().token_log_probs(*args))


class TypeErrorInBackward(RaisesInBackward):
    """The backward pass trips over a type."""

    class _Refuse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise TypeError("unsupported operand")


class NoGraph(Honest):
    """Computes the loss under no_grad."""

    @torch.no_grad()
    def policy_loss(self, *args):
        return super().policy_loss(*args)


class ReturnsNan(Honest):
    """Divides zero by zero."""

    def policy_loss(self, *args):
        return super().policy_loss(*args) * float("nan")


class MetricOfEveryToken(Honest):
    """Reports the clip fraction as a mask, not as a number."""

    def policy_loss(self, log_probs, *args):
        return PolicyLossResult(super().policy_loss(log_probs, *args), torch.zeros_like(log_probs))


class MetricIsWord(Honest):
    """Reports the KL as text for the progress bar."""

    def policy_loss(self, *args):
        return PolicyLossResult(super().policy_loss(*args), approx_kl="0.00 nats")


class Alternates(Honest):
    """Is right every other time."""

    def __init__(self):
        self.calls = itertools.count()

    def token_log_probs(self, *args):
        return super().token_log_probs(*args) + next(self.calls) % 2


class WrongOnce(Honest):
    """Is wrong at its first call, before some cache is warm."""

    def __init__(self):
        self.calls = itertools.count()

    def token_log_probs(self, *args):
        return super().token_log_probs(*args) + (next(self.calls) == 0)


class AddsNoise(Honest):
    """Draws from the generator of torch, and answers a little differently each time."""

    def token_log_probs(self, *args):
        answer = super().token_log_probs(*args)
        return answer + 1e-3 * torch.randn_like(answer)


class CountsItsCalls(Honest):
    """Answers a little differently each time without a random number."""

    def __init__(self):
        self.calls = itertools.count()

    def token_log_probs(self, *args):
        return super().token_log_probs(*args) + 1e-3 * next(self.calls)


class WritesInputs(Honest):
    """Divides the caller's logits by the temperature in place."""

    def token_log_probs(self, logits, labels, temperature):
        logits.data.mul_(2.0).mul_(0.25)
        return super().token_log_probs(logits, labels, temperature)


class WritesAdvantages(Honest):
    """Whitens the caller's advantages in place."""

    def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
        advantages.sub_(advantages.mean() + 1)
        return super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)


class WritesMask(Honest):
    """Numbers the positions in the caller's attention mask."""

    def position_ids(self, attention_mask):
        return attention_mask.copy_(super().position_ids(attention_mask))


class SeedsTorch(Honest):
    """Seeds the generator of torch."""

    def token_log_probs(self, *args):
        torch.manual_seed(0)
        return super().token_log_probs(*args)


class LeavesGradOff(Honest):
    """Switches gradients off and leaves them so."""

    def token_log_probs(self, *args):
        answer = super().token_log_probs(*args)
        torch.set_grad_enabled(False)
        return answer


class LeavesDefaultDtype(Honest):
    """Sets the default dtype and leaves it so."""

    def token_log_probs(self, *args):
        torch.set_default_dtype(torch.float64)
        return super().token_log_probs(*args)


class LeavesThreads(Honest):
    """Sets the number of threads and leaves it so."""

    def token_log_probs(self, *args):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().token_log_probs(*args)


class LeavesAutocast(Honest):
    """Switches autocast on and leaves it so."""

    def token_log_probs(self, *args):
        answer = super().token_log_probs(*args)
        torch.autocast("cpu", torch.bfloat16).__enter__()
        return answer


class Mixed(Honest):
    """Right and wrong in several ways, for a report that has something of everything; `factor` scales a gradient."""

    def __init__(self, factor=2):
        self.factor = factor

    def policy_loss(self, *args):
        loss = super().policy_loss(*args)
        return loss.detach() + self.factor * (loss - loss.detach())

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, 1.0)

    def value_loss(self, values, old_values, returns, action_mask, options):
        raise RuntimeError(f"cannot broadcast a mask of shape {tuple(action_mask.shape)}")


class ShortPack(Honest):
    """Loses the last sequence."""

    def pack_sequences(self, sequences):
        return PackedSequences(torch.cat(sequences[:-1])[None])


class FlatPack(Honest):
    """Returns the pack without a row axis."""

    def pack_sequences(self, sequences):
        return PackedSequences(torch.cat(sequences))


class PairForMasks(Honest):
    """Returns a pair, as OpenRLHF's older versions did, where three parts are due."""

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        return sequences, sequences != pad_token_id


class OpaqueModel(Honest):
    """Its parameters live elsewhere and cannot be reached."""

    architectures = ("llama",)
    temperature = False

    def load_actor(self, checkpoint):
        return checkpoint.module()

    def action_log_probs(self, actor, batch):
        logits = actor(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        return self.token_log_probs(logits, batch.input_ids[:, 1:], 1.0)[:, -batch.num_actions :]

    def parameters(self, model):
        raise ConnectionError("the worker holds the parameters")


class NoModel(OpaqueModel):
    """Loads into an attribute and returns nothing."""

    def load_actor(self, checkpoint):
        self.actor = checkpoint.module()


class OneActionOff(OpaqueModel):
    """The slice of the actions begins one position too early."""

    def action_log_probs(self, actor, batch):
        logits = actor(batch.input_ids, attention_mask=batch.attention_mask).logits
        log_probs = super().token_log_probs(logits[:, :-1], batch.input_ids[:, 1:], 1.0)
        return torch.nn.functional.pad(log_probs, (1, 1))[:, -batch.num_actions - 1 : -1].roll(1, dims=1)


class StaticBuffer(Honest):
    """Answers from one buffer, which every call writes again, as a captured graph does."""

    def __init__(self):
        self.buffer = torch.empty(0)

    def token_log_probs(self, *args):
        answer = super().token_log_probs(*args)
        if not answer.requires_grad:
            with torch.no_grad():
                self.buffer.resize_(answer.shape).copy_(answer)
            return self.buffer
        return answer


class ReturnsItsInput(Honest):
    """Hands back the very tensor that it was given, and writes to it at the next call."""

    held = None

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        if self.held is not None:
            self.held.zero_()
        self.held = sequences
        return ProcessedSequences(sequences=sequences)


class EntersInferenceMode(Honest):
    """Enters the inference mode and stays in it."""

    def token_log_probs(self, *args):
        answer = super().token_log_probs(*args)
        self.mode = torch.inference_mode()
        self.mode.__enter__()
        return answer


class LeavesDevice(Honest):
    """Makes every new tensor one without numbers."""

    def token_log_probs(self, *args):
        answer = super().token_log_probs(*args)
        torch.set_default_device("meta")
        return answer


class LeavesDeterministic(Honest):
    """Asks for deterministic algorithms, for everyone."""

    def token_log_probs(self, *args):
        torch.use_deterministic_algorithms(True)
        return super().token_log_probs(*args)


class LeavesFolder(Honest):
    """Changes into another folder and leaves the process there."""

    def token_log_probs(self, *args):
        os.chdir("/")
        return super().token_log_probs(*args)


class LeavesVariables(Honest):
    """Empties the environment."""

    def token_log_probs(self, *args):
        os.environ.clear()
        return super().token_log_probs(*args)


class LeavesSignals(Honest):
    """Ignores Ctrl-C from now on, and sets an alarm that would kill the process a little later."""

    def token_log_probs(self, *args):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.alarm(30)
        return super().token_log_probs(*args)


class LeavesFilters(Honest):
    """Makes errors of all warnings."""

    def token_log_probs(self, *args):
        warnings.simplefilter("error")
        return super().token_log_probs(*args)


class RaisesControls(Honest):
    """Raises an error that clears the screen, and that is no text."""

    def token_log_probs(self, logits, labels, temperature):
        raise ValueError("\x1b[2J\ud800 is not a token")


class RaisesMegabytes(Honest):
    """Puts the whole tensor into the message."""

    def token_log_probs(self, logits, labels, temperature):
        raise ValueError("0.0, " * 1_000_000)


class PoisonsCuda(Honest):
    """Breaks the CUDA context, as far as that can be had without a GPU."""

    def token_log_probs(self, logits, labels, temperature):
        raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")


class RunsOutOfCudaMemory(Honest):
    """Wants more memory than the GPU has, which leaves CUDA as it was."""

    def token_log_probs(self, logits, labels, temperature):
        raise RuntimeError("CUDA error: out of memory")


class ReallyPoisonsCuda(Honest):
    """Reads beyond the end of a table on the GPU, which every later call to CUDA has to answer for."""

    def token_log_probs(self, logits, labels, temperature):
        table = torch.zeros(4, device=logits.device)
        return super().token_log_probs(logits, labels, temperature) + table[labels + 2**30]

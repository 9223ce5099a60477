"""One clause tried on one adapter, many times over: what the measurements of this package are made of."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.faults import changed
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.trying import PROFILES, Tried, try_clause
from rlhf_conformance.results import ERROR, FAIL, NOT_PROVIDED, PASS
from rlhf_conformance.run.folders import OwnFolder, own_folder
from rlhf_conformance.run.keeper import PR_SET_PDEATHSIG, prctl
from rlhf_conformance.run.suite import uncollected

Answer = TypeVar("Answer")
RED = (FAIL, ERROR)
REMEMBERED = 20_000
"""The most outputs of the oracle that are kept, which every adapter of the same dtype is compared with."""


def attempt(
    adapter: Adapter,
    slug: str,
    *,
    profile: str = "gate",
    dtype: str = "float32",
    seed: int = 0,
    shrinking: float | None = 0.0,
) -> Tried:
    """Try a clause in this process. `shrinking`: seconds, None as the profile has it."""
    return attempt_on(_subject(adapter, dtype), slug, profile=profile, seed=seed, shrinking=shrinking)


def attempt_on(
    subject: Any, slug: str, *, profile: str = "gate", seed: int = 0, shrinking: float | None = None
) -> Tried:
    """The same on a subject, which what was found can then be looked into with."""
    chosen = PROFILES[profile]
    if shrinking is not None:
        chosen = replace(chosen, shrinking=shrinking)
    return try_clause(slug, subject, chosen, seed, to_the_end=False)


def is_red(tried: Tried) -> bool:
    return tried.result.verdict in RED


def is_odd(tried: Tried) -> bool:
    """Neither red nor green, where it should be either."""
    return tried.result.verdict not in (*RED, PASS, NOT_PROVIDED)


def excess(tried: Tried) -> float | None:
    """Where it failed on a number: error over budget of the first one shown."""
    failure = tried.result.failure
    return failure.error / failure.budget if failure and failure.error is not None and failure.budget else None


@cache
def _store() -> Any:
    from rlhf_conformance.oracle.probes import ProbeStore

    return ProbeStore(Path(os.environ.get(PROBES) or _own_folder().name))


@cache
def _own_folder() -> OwnFolder:
    """Of a process that shares no probes; it goes when the process does."""
    return OwnFolder("rlhf-proof-")


@cache
def _truth(dtype: str) -> Any:
    import torch

    from rlhf_conformance.oracle.truth import Truth

    return Truth(_store(), getattr(torch, dtype), "cpu")


def _subject(adapter: Adapter, dtype: str) -> Any:
    """The adapter, with an oracle that remembers what it was asked for other adapters."""
    import torch

    from rlhf_conformance.judging.subject import Subject

    truth = _truth(dtype)
    if len(truth._outputs) > REMEMBERED:
        truth._outputs.clear()
    return Subject(adapter, "cpu", getattr(torch, dtype), _store(), truth)


def size_of(case: Any) -> tuple[int, int]:
    """How many samples (or rows) a case has, and how many tokens (or numbers of a loss) in all of them."""
    inner = getattr(case, "case", case)
    found: tuple[int, int] = getattr(inner, "size", (0, 0))  # a checkpoint alone has neither
    return found


# --- which clauses an adapter can be told from the reference by --------------------------------------------------


def touched(kind: type[Adapter]) -> list[str]:
    """The clauses that can tell this adapter from the reference's: those that ask a method that it changes.

    The other clauses see the reference itself. An adapter that is no variant of the reference is asked everything.
    """
    from rlhf_conformance.adapters.reference import Reference

    if not issubclass(kind, Reference):
        return list(checks())
    return [slug for slug, check in checks().items() if changed(kind) & check.concerns]


# --- many at once -------------------------------------------------------------------------------------------------

PROBES = "RLHF_CONFORMANCE_PROOF_PROBES"


def each(function: Callable[..., Answer], tasks: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Answer]:
    """The answers of `function(*task)`, as they come, from processes of one thread each with shared probes."""
    with own_folder("rlhf-proof-") as folder:
        os.environ[PROBES] = folder
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=settle) as pool:
            try:
                for done in as_completed([pool.submit(function, *task) for task in tasks]):
                    yield done.result()
            except BaseException:  # where one has failed, or the whole is ended, nobody waits for the rest
                for process in list((pool._processes or {}).values()):
                    process.kill()
                pool.shutdown(cancel_futures=True)
                raise


def die_with_parent() -> None:
    """End this worker of a pool when the process that measures is gone, however it went: a queue of multiprocessing has
    no end that its readers could see, and what runs now would go on, too."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def settle() -> None:
    """Make a process of a pool one thread wide, quiet, and mortal."""
    import warnings

    with uncollected():
        import torch
        from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401
        from transformers.utils import logging

    die_with_parent()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

"""One clause tried on one adapter, many times over: what the measurements of this package are made of."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rlhf_conformance.adapter import METHODS, Adapter
from rlhf_conformance.checks import Check, checks
from rlhf_conformance.probes import Probe
from rlhf_conformance.results import ERROR, FAIL, NOT_PROVIDED, PASS
from rlhf_conformance.runner import PROFILES, Tried, try_clause

Answer = TypeVar("Answer")
RED = (FAIL, ERROR)
REMEMBERED = 20_000
"""So many outputs of the oracle are kept, which every adapter of the same dtype is compared with."""


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
    chosen = PROFILES[profile]
    if shrinking is not None:
        chosen = replace(chosen, shrinking=shrinking)
    return try_clause(slug, _subject(adapter, dtype), chosen, seed)


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
    from rlhf_conformance.probes import ProbeStore

    return ProbeStore(Path(os.environ.get(PROBES) or _own_folder().name))


@cache
def _own_folder() -> tempfile.TemporaryDirectory:
    """Of a process that shares no probes; it goes when the process does."""
    return tempfile.TemporaryDirectory(prefix="rlhf-proof-")


@cache
def _truth(dtype: str) -> Any:
    import torch

    from rlhf_conformance.truth import Truth

    return Truth(_store(), getattr(torch, dtype), "cpu")


def _subject(adapter: Adapter, dtype: str) -> Any:
    """The adapter, with an oracle that remembers what it was asked for other adapters."""
    import torch

    from rlhf_conformance.subject import Subject

    truth = _truth(dtype)
    if len(truth._outputs) > REMEMBERED:
        truth._outputs.clear()
    return Subject(adapter, "cpu", getattr(torch, dtype), _store(), truth)


def size_of(case: Any) -> tuple[int, int]:
    """How many samples (or rows) a case has, and how many tokens (or numbers of a loss) in all of them."""
    if hasattr(case, "case"):
        return size_of(case.case)
    if hasattr(case, "samples"):
        return len(case.samples), sum(len(sample.tokens) for sample in case.samples)
    if hasattr(case, "batch_size"):
        return case.batch_size, case.batch_size * case.length
    for name in ("new", "prompts", "sequences"):
        if hasattr(case, name):
            rows = getattr(case, name)
            return len(rows), sum(len(row) for row in rows)
    if hasattr(case, "spans"):
        return len(case.spans), sum(sum(span) for span in case.spans)
    if isinstance(case, Probe):  # a checkpoint alone
        return 0, 0
    raise TypeError(f"the size of a {type(case).__name__} is not known: {dataclasses.fields(case)}")


# --- which clauses an adapter can be told from the reference by --------------------------------------------------


def touched(kind: type[Adapter]) -> list[str]:
    """The clauses that can tell this adapter from the reference's: those that need a method that it changes.

    The other clauses see the reference itself. A change to something that several methods use counts for all of them:
    for every formula, or for every model. An adapter that is no variant of the reference is asked everything.
    """
    from rlhf_conformance.adapters.reference import Reference

    if not issubclass(kind, Reference):
        return list(checks())
    bases = kind.__mro__[: kind.__mro__.index(Reference)]
    own = {name for base in bases for name in vars(base) if not name.startswith("__")} - {"name"}
    changed = own & set(METHODS)
    if own - set(METHODS):
        models = {name for check in checks().values() if _is_of_models(check) for name in check.needs}
        of_models = not changed or bool(changed & models)
        changed |= {name for check in checks().values() if _is_of_models(check) == of_models for name in check.needs}
    return [slug for slug, check in checks().items() if changed & set(check.needs)]


def _is_of_models(check: Check) -> bool:
    return any(name.startswith("load_") for name in check.needs)


# --- many at once -------------------------------------------------------------------------------------------------

PROBES = "RLHF_CONFORMANCE_PROOF_PROBES"


def each(function: Callable[..., Answer], tasks: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Answer]:
    """The answers of `function(*task)`, as they come, from processes of one thread each with shared probes."""
    import multiprocessing

    with tempfile.TemporaryDirectory(prefix="rlhf-proof-") as folder:
        os.environ[PROBES] = folder
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=settle) as pool:
            try:
                for done in as_completed([pool.submit(function, *task) for task in tasks]):
                    yield done.result()
            finally:
                pool.shutdown(cancel_futures=True)  # where one has failed, nobody waits for the rest


def settle() -> None:
    import warnings

    import torch
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

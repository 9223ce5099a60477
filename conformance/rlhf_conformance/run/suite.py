"""The clauses of a plan, tried one by one: the one object that both pytest and the command use."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rlhf_spec.clauses
from rlhf_conformance.adapter import Adapter, declarations, provided
from rlhf_conformance.escaping import line
from rlhf_conformance.results import LOST, Result
from rlhf_conformance.run.borrowed import borrowed, imported_files
from rlhf_conformance.run.folders import OwnFolder
from rlhf_conformance.run.known import KnownFailure, rows_with_a_case, stale_rows, storable, with_known_failures
from rlhf_conformance.run.loading import UsageError, load_adapter, validate
from rlhf_conformance.run.plan import Plan, planned, selected

if TYPE_CHECKING:
    from rlhf_conformance.judging.trying import Tried

Found = Callable[[Result], None]
Count = Callable[[int], None]
Alive = Callable[[], None]


class Suite:
    """The clauses of a plan and the subject that they are tried on, made when the first clause needs it."""

    def __init__(self, plan: Plan, adapter: Adapter | None = None) -> None:
        self.plan = plan
        self._adapter = adapter
        self._subject: Any = None
        self._probes: OwnFolder | None = None
        self._until: float | None = None
        self.import_seconds = 0.0
        self.told = False

    @property
    def slugs(self) -> tuple[str, ...]:
        return selected(self.plan.only)

    @property
    def adapter(self) -> Adapter:
        if self._adapter is None:
            assert self.plan.adapter is not None
            self._adapter = load_adapter(self.plan.adapter, self.plan.options)
        return self._adapter

    @property
    def subject(self) -> Any:
        if self._subject is None:
            from rlhf_conformance.judging.subject import Subject
            from rlhf_conformance.oracle.probes import ProbeStore

            started = time.perf_counter()
            with uncollected() if self.plan.folder else contextlib.nullcontext():
                _settle_numerics()
                adapter = self.adapter
                missing = self.not_provided()
                _import_libraries([slug for slug in self.slugs if slug not in missing])
                require_device(self.plan.device)
            self.import_seconds = time.perf_counter() - started
            store = ProbeStore(self._folder())
            self._subject = Subject.make(adapter, device=self.plan.device, dtype=self.plan.dtype, store=store)
            self._subject.interruptible = not self.plan.folder
        return self._subject

    @property
    def poisoned(self) -> bool:
        """Whether the adapter has left CUDA beyond use in this process."""
        return self._subject is not None and self._subject.poison is not None

    @property
    def provides_nothing(self) -> bool:
        """Whether no selected clause can be tried on the adapter."""
        return len(self.not_provided()) == len(self.slugs)

    def prepare(self) -> None:
        """Import what is needed and construct the adapter, unless that is done."""
        assert self.subject is not None

    def run(
        self, slug: str, found: Found | None = None, count: Count | None = None, alive: Alive | None = None
    ) -> Result:
        """Try one clause. `found` is told of a failure before it is looked into, `count` of how many cases were tried,
        and `alive` of each step that is taken to look into a failure.

        In the caller's own process it ends with the budget, which runs from the first clause on; a worker is ended.
        """
        from rlhf_conformance.diagnosis.looking import diagnosed
        from rlhf_conformance.diagnosis.work import Work

        until = self._end_of_budget()
        if time.monotonic() > until and slug not in self.not_provided():
            return Result(
                slug, rlhf_spec.clauses.clause(slug).level, LOST, reason=f"not begun: {self.plan.over_budget}"
            )
        beside = {"count": count, "until": until, "over": self.plan.over_budget}
        if self.plan.accepting:
            tried = self._to_accept(slug, found, beside)
        elif slug in self.plan.cases:
            tried = self._replay(slug, self.plan.cases[slug], beside)
        else:
            tried = self._try(slug, found, beside)
        # What is known is not looked into again.
        stale = stale_rows(self._rows_to_try(slug), tried.shown) if slug not in self.plan.cases else ()
        result = with_known_failures(tried.result, self.plan, stale)
        if time.monotonic() > until:
            return result
        work = Work() if alive is None else Work(alive=alive)
        work.alive()
        return diagnosed(result, tried.case, self.subject, self.plan.seed, work)

    def _end_of_budget(self) -> float:
        """Of `time.monotonic()`."""
        if self._until is None:
            limited = self.plan.budget and not self.plan.folder
            self._until = time.monotonic() + self.plan.budget if limited else math.inf
        return self._until

    def cases_to_try(self) -> dict[str, int]:
        """How many cases are tried of each clause that the adapter provides."""
        from rlhf_conformance.judging.checks import checks
        from rlhf_conformance.judging.trying import PROFILES

        profile, missing = PROFILES[self.plan.profile], self.not_provided()
        slugs = (slug for slug in self.slugs if slug not in missing)
        return {slug: 1 if slug in self.plan.cases else profile.examples_of(checks()[slug]) for slug in slugs}

    def not_provided(self) -> dict[str, str]:
        """The clauses that the adapter does not provide, with why."""
        from rlhf_conformance.judging.checks import checks

        reasons = {slug: checks()[slug].not_provided(self.adapter) for slug in self.slugs}
        return {slug: reason for slug, reason in reasons.items() if reason}

    def close(self) -> None:
        """Remove what lies in a folder of its own. The suite makes it again if it is used again."""
        if self._probes is not None:
            self._probes.close()
            self._probes = self._subject = None

    def _replay(self, slug: str, stored: Any, beside: dict[str, Any]) -> Tried:
        """Try a stored case, and nothing else."""
        from rlhf_conformance.judging import storing
        from rlhf_conformance.judging.trying import PROFILES, try_clause

        profile, case = PROFILES[self.plan.profile], storing.from_json(stored)
        return try_clause(slug, self.subject, profile, self.plan.seed, replayed=case, **beside)

    def _try(self, slug: str, found: Found | None, beside: dict[str, Any]) -> Tried:
        """Try the cases of known failures, those that failed before, and those that are drawn."""
        from hypothesis.database import DirectoryBasedExampleDatabase

        from rlhf_conformance.judging import storing
        from rlhf_conformance.judging.trying import PROFILES, try_clause

        profile = PROFILES[self.plan.profile]
        folder = Path(self.plan.database or ".rlhf-conformance") / slug  # Hypothesis takes all clauses for one test
        database = None if profile.deterministic else DirectoryBasedExampleDatabase(folder)
        first = [storing.from_json(row.counterexample) for row in self._rows_to_try(slug)]
        return try_clause(slug, self.subject, profile, self.plan.seed, database, found=found, first=first, **beside)

    def _rows_to_try(self, slug: str) -> list[KnownFailure]:
        """The known failures whose cases are tried first: a case that the adapter does not declare itself ready for was
        found in another mode of it, and is no question to this one."""
        from rlhf_conformance.judging import storing
        from rlhf_conformance.judging.declared import is_declared

        rows = rows_with_a_case(slug, self.plan)
        return [row for row in rows if is_declared(storing.from_json(row.counterexample), self.adapter)]

    def _to_accept(self, slug: str, found: Found | None, beside: dict[str, Any]) -> Tried:
        """Try a clause for `--accept`: a case is kept only where it fails in the same way again."""
        tried = self._try(slug, found, beside)

        def again(stored: Any) -> Result:
            return self._replay(slug, stored, beside).result

        return replace(tried, result=storable(tried.result, again))

    def unseen(self) -> str:
        """What shows that the judge of this process cannot be relied on any more; empty where it can, and where no
        clause was tried."""
        from rlhf_conformance.run import planted

        if self._subject is None or self.poisoned:
            return ""
        return planted.unseen(self._subject, self.plan.seed)

    def describe(self) -> dict[str, Any]:
        """The adapter, for a report."""
        adapter, imports = self.adapter, borrowed(self.adapter)
        files = imported_files(adapter)
        return {
            "adapter": self.plan.adapter or f"{type(adapter).__module__}:{type(adapter).__qualname__}",
            "name": line(str(adapter.name or type(adapter).__name__))[:200],
            "options": dict(self.plan.options),
            "provides": list(provided(adapter)),
            "declares": declarations(adapter),
            **({"files": files} if files else {}),
            **({"imports": list(imports)} if imports else {}),
        }

    def _folder(self) -> Path:
        if self.plan.folder:
            return Path(self.plan.folder) / "probes"
        if self._probes is None:
            self._probes = OwnFolder("rlhf-conformance-")
        return Path(self._probes.name)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """What is made in the body lives as long as the process, and the garbage collector never walks over it.

    Imports make a million objects, and each walk over them costs a tenth of a second. Only for a process of one's own.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def require_device(device: str) -> None:
    """Raises UsageError where there is no such device."""
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"no device {device!r} on this machine: {str(error).splitlines()[0]}") from error


def _import_libraries(slugs: Sequence[str]) -> None:
    """What the checks of these clauses will need, now, so that no clause's time has an import in it."""
    from rlhf_conformance.judging.checks import checks

    if any(checks()[slug].loads for slug in slugs):
        from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401
        from transformers.utils import logging

        logging.disable_progress_bar()


def _settle_numerics() -> None:
    """One thread, no TF32: what moves numbers is fixed, and stands in the report."""
    import torch

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def light_environment(plan: Plan) -> dict[str, Any]:
    """What is known of the environment without importing torch."""
    import importlib.metadata

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    packages = ("torch", "transformers", "peft", "hypothesis", "rlhf-conformance")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        **{name: version(name) for name in packages},
        "device": plan.device,
        "dtype": plan.dtype,
    }


def environment(plan: Plan) -> dict[str, Any]:
    """What moves numbers, for the head of a report."""
    import torch

    cuda = plan.device.startswith("cuda")
    return {
        **light_environment(plan),
        "torch": str(torch.__version__),
        "device_name": torch.cuda.get_device_name(plan.device) if cuda else platform.machine(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def conformance_suite(
    adapter: Adapter,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    profile: str = "gate",
    only: Iterable[str] = (),
    strict: bool = False,
    seed: int = 0,
    known_failures: Path | str | Iterable[KnownFailure] = (),
    budget: float = 0.0,
) -> Suite:
    """The suite for a pytest file of one's own: `test_conformance = conformance_suite(MyTrainer())`.

    pytest collects it as one item for each clause, `clause[device-dtype]`. A broken SHOULD is an expected failure
    unless `strict`, and so are `known_failures` (a TOML file as for the command, or rows). After `budget`
    seconds, counted from the first clause in each process, no further clause is tried: those that are left fail, with
    that reason; 0: all are tried, however long it takes. Raises LoadError or
    UsageError for what cannot be run.
    """
    validate(adapter)
    asked = {"device": device, "dtype": dtype, "profile": profile, "strict": strict, "seed": seed, "budget": budget}
    return Suite(planned(known_failures, only, **asked), adapter)

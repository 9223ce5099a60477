"""What a run consists of: which adapter, how much, on what. And the one object that both pytest and the command use."""

from __future__ import annotations

import datetime
import difflib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance.adapter import Adapter, declarations, provided
from rlhf_conformance.borrowed import borrowed
from rlhf_conformance.known import (
    DTYPES,
    KnownFailure,
    row_for,
    rows_of,
    storable,
    with_known_failures,
)
from rlhf_conformance.loading import UsageError, load_adapter, validate
from rlhf_conformance.results import ERROR, FAIL, Result

Found = Callable[[Result], None]
PROFILES = ("smoke", "gate", "full")


@dataclass(frozen=True)
class Plan:
    """Everything that a run is asked for, as plain data that can be sent to a worker process.

    adapter     what the user named, or None if the adapter is an object
    only        slug prefixes; empty: all clauses
    time_limit  seconds for a clause; 0: the profile's
    folder      where probes and the example database lie
    cases       stored cases by slug, which are tried in place of what could be drawn; empty: nothing is replayed
    known_file  where the known failures were read, or an empty string
    accepting   the run is to write the known failures anew: none is excused
    today       the day of the run, as 2030-12-31
    command     what runs the same again, for messages; empty where the run was not begun by a command
    """

    adapter: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    profile: str = "gate"
    only: tuple[str, ...] = ()
    strict: bool = False
    seed: int = 0
    time_limit: float = 0.0
    folder: str = ""
    database: str = ""
    known_failures: tuple[KnownFailure, ...] = ()
    cases: dict[str, Any] = field(default_factory=dict)
    known_file: str = ""
    accepting: bool = False
    today: str = field(default_factory=lambda: datetime.date.today().isoformat())
    command: str = ""

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "known_failures": [row.to_json() for row in self.known_failures]})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        data = json.loads(text)
        known = tuple(KnownFailure.from_json(row) for row in data.pop("known_failures"))
        return cls(**{**data, "only": tuple(data["only"])}, known_failures=known)

    @property
    def limit(self) -> float:
        """Seconds that a clause may take."""
        from rlhf_conformance.runner import PROFILES

        return self.time_limit or PROFILES[self.profile].time_limit

    @property
    def where(self) -> str:
        """What stands behind a clause in ids and reports."""
        return f"{self.device}-{self.dtype}"


def validate_plan(plan: Plan) -> None:
    """Raises UsageError for a clause, profile, dtype or device that there is not (or cannot be)."""
    selected(plan.only)
    for what, value, choices in (("dtype", plan.dtype, DTYPES), ("profile", plan.profile, PROFILES)):
        if value not in choices:
            raise UsageError(f"there is no {what} {value!r}; there are {', '.join(choices)}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", plan.device):
        raise UsageError(f"there is no device {plan.device!r}; there are cpu, cuda, cuda:0, ...")


def selected(only: Sequence[str]) -> tuple[str, ...]:
    """The slugs that are asked for, in the order of the specification: a whole slug means that clause alone, anything
    else all that begin with it. Raises UsageError for a prefix that fits none.
    """
    slugs = tuple(clause.slug for clause in rlhf_spec.clauses.clauses())
    chosen: set[str] = set()
    for prefix in only:
        fitting = {prefix} & set(slugs) or {slug for slug in slugs if slug.startswith(prefix)}
        if not fitting:
            near = difflib.get_close_matches(prefix, slugs, n=2)
            hint = f"; is {' or '.join(near)} meant?" if near else "; `rlhf-conformance list` shows them"
            raise UsageError(f"no clause begins with {prefix!r}{hint}")
        chosen |= fitting
    return tuple(slug for slug in slugs if not only or slug in chosen)


class Suite:
    """The clauses of a plan and the subject that they are tried on, made when the first clause needs it."""

    def __init__(self, plan: Plan, adapter: Adapter | None = None) -> None:
        self.plan = plan
        self._adapter = adapter
        self._subject: Any = None
        self._probes: tempfile.TemporaryDirectory[str] | None = None
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
            from rlhf_conformance.probes import ProbeStore
            from rlhf_conformance.subject import Subject

            started = time.perf_counter()
            _settle_numerics()
            adapter = self.adapter
            _import_libraries(adapter)
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
        from rlhf_conformance.checks import checks

        return all(checks()[slug].not_provided(self.adapter) for slug in self.slugs)

    def prepare(self) -> None:
        """Import what is needed and construct the adapter, unless that is done."""
        assert self.subject is not None

    def run(self, slug: str, found: Found | None = None) -> Result:
        """Try one clause. `found` is told of a failure before it is looked into."""
        from hypothesis.database import DirectoryBasedExampleDatabase

        from rlhf_conformance.cases import storing
        from rlhf_conformance.diagnosis import diagnosed
        from rlhf_conformance.runner import PROFILES, try_clause

        profile = PROFILES[self.plan.profile]
        database = (
            None if profile.deterministic else DirectoryBasedExampleDatabase(self.plan.database or ".rlhf-conformance")
        )
        row = row_for(slug, self.plan)
        stored = self.plan.cases.get(slug, row.counterexample if row is not None else None)
        replayed = storing.from_json(stored) if stored is not None else None
        tried = try_clause(slug, self.subject, profile, self.plan.seed, database, found=found, replayed=replayed)
        if self.plan.accepting and replayed is not None and not _still_fails(tried.result, row):
            tried = try_clause(slug, self.subject, profile, self.plan.seed, database, found=found)
        if self.plan.accepting and tried.case is not None:
            again = try_clause(slug, self.subject, profile, self.plan.seed, replayed=tried.case)
            tried = replace(tried, result=storable(tried.result, again.result))
        # What is known is not looked into again.
        result = with_known_failures(tried.result, self.plan)
        return diagnosed(result, tried.case, self.subject, self.plan.seed)

    def describe(self) -> dict[str, Any]:
        """The adapter, for a report."""
        adapter, imports = self.adapter, borrowed(self.adapter)
        return {
            "adapter": self.plan.adapter or f"{type(adapter).__module__}:{type(adapter).__qualname__}",
            "name": adapter.name or type(adapter).__name__,
            "options": dict(self.plan.options),
            "provides": list(provided(adapter)),
            "declares": declarations(adapter),
            **({"imports": list(imports)} if imports else {}),
        }

    def _folder(self) -> Path:
        if self.plan.folder:
            return Path(self.plan.folder) / "probes"
        if self._probes is None:
            self._probes = tempfile.TemporaryDirectory(prefix="rlhf-conformance-")
        return Path(self._probes.name)


def _still_fails(result: Result, row: KnownFailure | None) -> bool:
    """Whether a row's counterexample still shows the failure that the row accepts."""
    return row is not None and result.verdict in (FAIL, ERROR) and row.excuses(result)


def require_device(device: str) -> None:
    """Raises UsageError where there is no such device."""
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"no device {device!r} on this machine: {str(error).splitlines()[0]}") from error


def _import_libraries(adapter: Adapter) -> None:
    """What the checks of this adapter will need, now, so that no clause's time has an import in it."""
    from rlhf_conformance.checks import checks

    checks()
    if any(name.startswith("load_") for name in provided(adapter)):
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
) -> Suite:
    """The suite for a pytest file of one's own: `test_conformance = conformance_suite(MyTrainer())`.

    pytest collects it as one item for each clause, `clause[device-dtype]`. A broken SHOULD is an expected failure
    unless `strict`, and so are `known_failures` (a TOML file as for the command, or rows). Raises LoadError or
    UsageError for what cannot be run.
    """
    validate(adapter)
    known, known_file = rows_of(known_failures)
    plan = Plan(
        device=device,
        dtype=dtype,
        profile=profile,
        only=tuple(only),
        strict=strict,
        seed=seed,
        known_failures=known,
        known_file=known_file,
    )
    validate_plan(plan)
    return Suite(plan, adapter)

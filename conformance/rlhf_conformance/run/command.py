"""Running a plan: through pytest and its workers for a named adapter, in this process for an object."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.results import LOST, Report, Result
from rlhf_conformance.run.known import KnownFailure, with_known_failures
from rlhf_conformance.run.loading import LoadError, UsageError, validate
from rlhf_conformance.run.plan import Plan, planned, selected
from rlhf_conformance.run.planted import doubted
from rlhf_conformance.run.plugin import (
    ENTRY,
    LOADING_LIMIT,
    PLAN_OPTION,
    PROPERTY,
    UNSEEN,
    UNUSABLE,
    found_file,
    loaded_marker,
    stack_file,
)
from rlhf_conformance.run.suite import Suite, environment, light_environment
from rlhf_conformance.run.workers import ENDED, Watch, innermost

Progress = Callable[[Result, int, int], None]
"""Called with each result, how many there are so far, and how many there will be."""


def check(
    adapter: Adapter | str,
    *,
    options: dict[str, Any] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    profile: str = "gate",
    only: tuple[str, ...] | list[str] = (),
    strict: bool = False,
    seed: int = 0,
    workers: int = 1,
    known_failures: Path | str | Iterable[KnownFailure] = (),
) -> Report:
    """Check an adapter and return the report.

    An adapter object is tried in this process, one clause after the other; a name ("package.module:Name", a path or
    a short name) in `workers` processes, in which the adapter may hang or die without taking the report along.
    Raises LoadError where the adapter cannot be loaded, UsageError where there is no such device or clause.
    """
    plan = planned(
        known_failures,
        only,
        adapter=adapter if isinstance(adapter, str) else None,
        options=dict(options or {}),
        device=device,
        dtype=dtype,
        profile=profile,
        strict=strict,
        seed=seed,
    )
    if isinstance(adapter, str):
        return run_plan(plan, workers)
    validate(adapter)
    return _run_here(Suite(plan, adapter))


def _run_here(suite: Suite) -> Report:
    started = time.perf_counter()
    results = tuple(suite.run(slug) for slug in suite.slugs)
    why = suite.unseen()
    results = tuple(doubted(result, why) if why else result for result in results)
    run = _run_of(suite.plan, started, suite.import_seconds, workers=0)
    return Report(results, suite.describe(), environment(suite.plan), run, suite.plan.strict)


def _run_of(plan: Plan, started: float, import_seconds: float, *, workers: int) -> dict[str, Any]:
    return {
        "command": plan.command,
        "report": "",
        "profile": plan.profile,
        "seed": plan.seed,
        "only": list(plan.only),
        "clauses": len(selected(())),
        "replayed": list(plan.cases),
        "strict": plan.strict,
        "workers": workers,
        "time_limit": plan.limit if workers else None,
        "seconds": round(time.perf_counter() - started, 2),
        "import_seconds": round(import_seconds, 2),
    }


def run_plan(plan: Plan, workers: int, progress: Progress | None = None) -> Report:
    """Run a plan in worker processes under pytest and xdist. Raises LoadError, UsageError."""
    import pytest

    started = time.perf_counter()
    slugs = selected(plan.only)
    with tempfile.TemporaryDirectory(prefix="rlhf-conformance-", ignore_cleanup_errors=True) as folder:
        plan = replace(plan, folder=folder, path=tuple(str(Path(entry).absolute()) for entry in sys.path))
        gathered = _Gathered(plan, len(slugs), progress, environment=light_environment(plan))
        ini = Path(folder) / "pytest.ini"
        ini.write_text("[pytest]\n")
        entry = Path(folder) / ENTRY
        entry.touch()
        arguments = [
            str(entry),
            *("-c", str(ini), "--rootdir", folder, "--noconftest", "-s", "-p", "no:faulthandler"),
            *("-p", "xdist.plugin", "-p", "rlhf_conformance.run.plugin", "-p", "no:cacheprovider", "-p", "no:terminal"),
            *("-n", str(max(1, min(workers, len(slugs)))), "--dist", "load", "--maxschedchunk", "1"),
            *("--max-worker-restart", str(len(slugs))),
            *(PLAN_OPTION, plan.to_json()),
        ]
        with _worker_environment(), gathered.watch.over():
            pytest.main(arguments, plugins=[gathered])
        if gathered.unusable is not None:
            raise LoadError(gathered.unusable)
        results = tuple(gathered.result(slug) for slug in slugs)
        gathered.read_what_was_run()
    subject = gathered.subject or {"adapter": plan.adapter, "name": plan.adapter, "options": plan.options}
    run = _run_of(plan, started, gathered.import_seconds, workers=workers)
    return Report(results, subject, gathered.environment, run, plan.strict)


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """What workers inherit: no foreign pytest plugins or options, quiet libraries, one thread each."""
    wanted = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
        "PYTEST_PLUGINS": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@dataclass(eq=False)  # a plugin has to be hashable: pytest keeps those that it has looked through in a set
class _Gathered:
    """A pytest plugin of the controlling process: collects what the workers send, and survives their death."""

    plan: Plan
    total: int
    progress: Progress | None
    results: dict[str, Result] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    subject: dict[str, Any] = field(default_factory=dict)
    unusable: str | None = None
    import_seconds: float = 0.0
    config: Any = None
    ends: dict[str, str] = field(default_factory=dict)
    judges: dict[str, str] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self.watch = Watch(Path(self.plan.folder))

    def pytest_configure(self, config: Any) -> None:
        self.config = config

    def pytest_configure_node(self, node: Any) -> None:
        self.watch.add(node.gateway)

    def pytest_keyboard_interrupt(self) -> None:
        """Workers are in process groups of their own, so that Ctrl-C does not reach them."""
        self.interrupted = True
        self.watch.end_all()

    def pytest_runtest_logreport(self, report: Any) -> None:
        slug = report.nodeid.rsplit("::", 1)[-1].partition("[")[0]
        for key, value in report.user_properties:
            if key == UNUSABLE:
                self._give_up(value)
            if key == PROPERTY and slug not in self.results:
                self._add(Result.from_json(value))
                self.judges[slug] = self._name_of(report)
        if report.failed and slug not in self.results and self.unusable is None:
            if not loaded_marker(self.plan).exists() and "crashed" in str(report.longrepr):
                end = self._end_of_loading(slug, self._end_of(report))
                self._give_up(f"importing or constructing {self.plan.adapter} ended its process: {end}")
            else:
                self._add(self.lost(slug, str(report.longrepr), self._end_of(report)))

    def _give_up(self, reason: str) -> None:
        """The adapter cannot be loaded: no other clause has to find that out."""
        self.unusable = self.unusable or reason
        session = self.config.pluginmanager.getplugin("dsession")
        session.shouldstop = session.shouldstop or reason

    def _end_of(self, report: Any) -> str:
        """How the worker ended that a crash is reported of."""
        return self.ends.get(self._name_of(report), "")

    def _name_of(self, report: Any) -> str:
        """Of the worker that reports."""
        node = getattr(report, "node", None)
        return str(node.gateway.id) if node is not None else ""

    def result(self, slug: str) -> Result:
        """What is known of a clause in the end."""
        found = self.results.get(slug) or self.lost(slug)
        why = self.unseen.get(self.judges.get(slug, ""), "")
        return doubted(found, why) if why else found

    def _end_of_loading(self, slug: str, end: str) -> str:
        text = self._stack(slug)
        if "Timeout" in text:
            return f"it took longer than {LOADING_LIMIT:g} s, {innermost(text)}"
        return f"{end}, {innermost(text)}" if "Fatal" in text else end

    def _stack(self, slug: str) -> str:
        stack = stack_file(self.plan, slug)
        return stack.read_text(errors="replace") if stack.exists() else ""

    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        self.unseen[str(node.gateway.id)] = str(getattr(node, "workeroutput", {}).get(UNSEEN, ""))
        if error is not None:
            self.ends[node.gateway.id] = self.watch.end_of(node.gateway.id)

    def read_what_was_run(self) -> None:
        """What the workers wrote of themselves, if any came so far."""
        marker = loaded_marker(self.plan)
        if marker.exists():
            said = json.loads(marker.read_text())
            self.environment, self.subject = said["environment"], said["subject"]
            self.import_seconds = said["import_seconds"]

    def _add(self, result: Result) -> None:
        self.results[result.clause] = result
        if self.progress is not None:
            self.progress(result, len(self.results), self.total)

    def lost(self, slug: str, said: str = "", end: str = "") -> Result:
        """The verdict on a clause whose worker died under it: the failure that it had found, or else the reason."""
        kept, cause = found_file(self.plan, slug), self._cause(slug, said, end)
        if kept.exists():
            found = _and_then(Result.from_json(json.loads(kept.read_text())), cause)
            return with_known_failures(found, self.plan)
        clause = rlhf_spec.clauses.clause(slug)
        return Result(slug, clause.level, LOST, reason=cause)

    def _cause(self, slug: str, said: str, end: str) -> str:
        text = self._stack(slug)
        if "Timeout" in text:
            return f"the adapter took longer than {self.plan.limit:g} s and was ended, {innermost(text)}"
        if slug in self.watch.overdue:
            return f"the adapter took longer than {self.plan.limit:g} s and was ended"
        if self.interrupted:
            return "the run was interrupted"
        if "crashed" in said:
            return f"{ENDED}: {end}, {innermost(text)}" if "Fatal" in text else f"{ENDED}: {end}"
        return f"the suite itself failed here, please report it: {said.strip()[-1500:]}" if said else "never started"


def _and_then(found: Result, cause: str) -> Result:
    """A failure after which the worker died, while a smaller case or the reason was looked for."""
    then = f"while this was looked into, {cause}"
    failure = found.failure
    if failure is not None:
        failure = replace(failure, note="; ".join(part for part in (failure.note, then) if part))
    return replace(found, reason=f"{found.reason}; {then}", failure=failure)


__all__ = ["LoadError", "UsageError", "check", "run_plan"]

"""Running a plan: through pytest and its workers for a named adapter, in this process for an object."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pytest

import rlhf_spec.clauses
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.results import FAIL, LOST, NOT_PROVIDED, Report, Result
from rlhf_conformance.run import ending, inheriting
from rlhf_conformance.run.folders import own_folder
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
    count_file,
    found_file,
    loaded_marker,
    stack_file,
)
from rlhf_conformance.run.progress import Standing, seconds_left
from rlhf_conformance.run.suite import Suite, environment, light_environment
from rlhf_conformance.run.workers import ENDED, Watch, innermost

BUDGET = "budget"
"""What ended a run that was ended by no signal."""


class Progress(Protocol):
    """Whoever wants to know how a run goes."""

    def result(self, result: Result, done: int, total: int) -> None:
        """There is a result: how many there are so far, and how many there will be."""

    def standing(self, standing: Standing) -> None:
        """Called twice a second, from a thread of its own."""


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
    budget: float = 0.0,
) -> Report:
    """Check an adapter and return the report.

    An adapter object is tried in this process, one clause after the other; a name ("package.module:Name", a path or
    a short name) in `workers` processes, in which the adapter may hang or die without taking the report along. After
    `budget` seconds (0: none) what has no verdict is `lost`; a call that hangs is ended in a process of its own only.
    A signal that ends this process ends the run first.
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
        budget=budget,
    )
    if isinstance(adapter, str):
        report = run_plan(plan, workers)
        ended_by = report.run["ended_by"]
        if ended_by.startswith("SIG") and ended_by != signal.SIGINT.name:
            signal.raise_signal(signal.Signals[ended_by])  # what was done about it here is done
        return report
    validate(adapter)
    with contextlib.closing(Suite(plan, adapter)) as suite:
        return _run_here(suite)


def _run_here(suite: Suite) -> Report:
    started = time.perf_counter()
    results = tuple(suite.run(slug) for slug in suite.slugs)
    why = suite.unseen()
    results = tuple(doubted(result, why) if why else result for result in results)
    over = any(r.verdict == LOST and suite.plan.over_budget in r.reason for r in results)
    run = _run_of(suite.plan, started, suite.import_seconds, workers=0, ended_by=BUDGET if over else "")
    return _named(Report(results, suite.describe(), environment(suite.plan), run, suite.plan.strict))


def _named(report: Report) -> Report:
    """With the names that its failures have in common, unless somebody or a budget has ended the run."""
    if report.run["ended_by"] or not any(result.verdict == FAIL for result in report.results):
        return report
    from rlhf_conformance.diagnosis.across import named_across  # which imports what a run without failures does not

    return named_across(report)


def _run_of(plan: Plan, started: float, import_seconds: float, *, workers: int, ended_by: str) -> dict[str, Any]:
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
        "budget": plan.budget or None,
        "ended_by": ended_by,
        "seconds": round(time.perf_counter() - started, 2),
        "import_seconds": round(import_seconds, 2),
    }


def run_plan(plan: Plan, workers: int, progress: Progress | None = None) -> Report:
    """Run a plan in worker processes under pytest and xdist. Raises LoadError, UsageError."""
    started = time.perf_counter()
    slugs = selected(plan.only)
    with own_folder("rlhf-conformance-") as folder:
        plan = replace(plan, folder=folder, path=tuple(str(Path(entry).absolute()) for entry in sys.path))
        workers = max(1, min(workers, len(slugs)))
        gathered = _Gathered(plan, len(slugs), workers, progress, environment=light_environment(plan))
        ini = Path(folder) / "pytest.ini"
        ini.write_text("[pytest]\n")
        entry = Path(folder) / ENTRY
        entry.touch()
        python = inheriting.command(Path(folder), plan.pass_env)
        arguments = [
            str(entry),
            *(
                "-c",
                str(ini),
                "--rootdir",
                folder,
                "--basetemp",
                str(Path(folder) / "pytest"),
                "--noconftest",
                "-s",
                "-p",
                "no:faulthandler",
            ),
            *("-p", "xdist.plugin", "-p", "rlhf_conformance.run.plugin", "-p", "no:cacheprovider", "-p", "no:terminal"),
            *("--tx", f"{workers}*popen//python={python}", "--dist", "load", "--maxschedchunk", "1"),
            *("--max-worker-restart", str(len(slugs))),
            *(PLAN_OPTION, plan.to_json()),
        ]
        with _own_pytest(), ending.signals_to(gathered.signalled), gathered.watch.over():
            pytest.main(arguments, plugins=[gathered])
        if gathered.unusable is not None:
            raise LoadError(gathered.unusable + inheriting.hint(gathered.unusable, plan.pass_env))
        gathered.read_what_was_run()
        results = tuple(gathered.result(slug) for slug in slugs)
    subject = gathered.subject or {"adapter": plan.adapter, "name": plan.adapter, "options": plan.options}
    run = _run_of(plan, started, gathered.import_seconds, workers=workers, ended_by=gathered.ended_by)
    report = Report(results, subject, gathered.environment, run, plan.strict)
    return report if plan.accepting else _named(report)


@contextlib.contextmanager
def _own_pytest() -> Iterator[None]:
    """In the body, pytest in this process knows no foreign plugins or options."""
    before = {key: os.environ.get(key) for key in inheriting.OWN_PYTEST}
    os.environ.update(inheriting.OWN_PYTEST)
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
    workers: int
    progress: Progress | None
    results: dict[str, Result] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    subject: dict[str, Any] = field(default_factory=dict)
    unusable: str | None = None
    import_seconds: float = 0.0
    config: Any = None
    ends: dict[str, str] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    cases: dict[str, int] = field(default_factory=dict)
    not_provided: dict[str, str] = field(default_factory=dict)
    ended_by: str = ""
    looping: bool = False
    judges: dict[str, str] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watch = Watch(Path(self.plan.folder), self._tick)
        self.begun = time.monotonic()
        self.loaded = 0.0

    def pytest_configure(self, config: Any) -> None:
        self.config = config

    def signalled(self, number: signal.Signals) -> None:
        """Workers are in sessions of their own, so that Ctrl-C does not reach them."""
        self.stop(number.name)

    def stop(self, ended_by: str) -> None:
        """End the run in order, for a signal or the budget: called from another thread, or in the middle of anything.

        The workers that end wake up the loop of xdist, which calls `pytest_testnodedown` below.
        """
        if not self.ended_by:
            self.ended_by = ended_by
            if self.looping:
                self.watch.end_all()

    def _end_if_stopped(self) -> None:
        if self.ended_by:
            self.watch.end_all()
            raise KeyboardInterrupt

    def pytest_configure_node(self, node: Any) -> None:
        self.watch.add(node.gateway)
        self._end_if_stopped()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        self.looping = True
        self._end_if_stopped()

    def _tick(self) -> None:
        """Twice a second: end the run where its budget is used up, and tell how it stands."""
        spent = time.monotonic() - self.begun
        if self.plan.budget and spent > self.plan.budget:
            self.stop(BUDGET)
        if not self.loaded and loaded_marker(self.plan).exists():
            self.read_what_was_run()
            self.loaded = time.monotonic()
        if self.progress is not None and self.looping and not self.ended_by:
            since = dict(self.running)
            running = tuple(sorted(since, key=since.__getitem__))
            budget_left = self.plan.budget - spent if self.plan.budget else None
            self.progress.standing(Standing(len(self.results), self.total, running, self._left(), budget_left))

    def _left(self) -> float | None:
        if not self.loaded:
            return None
        done = list(self.results)
        tried = {slug: self._tried(slug) for slug in (*done, *self.running)}
        spent = time.monotonic() - self.loaded
        return seconds_left(self.cases, tried, done, spent, self.workers, self.plan.limit)

    def _tried(self, slug: str) -> int:
        """How many cases of a clause were tried, as far as it is known."""
        if slug in self.results and self.results[slug].verdict != LOST:
            return self.cases.get(slug, 0)
        try:
            return int(count_file(self.plan, slug).read_text())
        except (OSError, ValueError):
            return 0

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running[_slug_of(nodeid)] = time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        slug = _slug_of(report.nodeid)
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
        found = self.results.get(slug) or self.not_come_to(slug)
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
        self._end_if_stopped()
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
            self.cases, self.not_provided = said["cases"], said["not_provided"]

    def _add(self, result: Result) -> None:
        self.results[result.clause] = result
        self.running.pop(result.clause, None)
        if self.progress is not None:
            self.progress.result(result, len(self.results), self.total)

    def not_come_to(self, slug: str) -> Result:
        """The verdict on a clause that no worker sent one on."""
        if slug not in self.not_provided or slug in self.running:
            return self.lost(slug)
        clause = rlhf_spec.clauses.clause(slug)
        return Result(slug, clause.level, NOT_PROVIDED, reason=self.not_provided[slug])

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
        if self.ended_by:
            return self._stopped(slug)
        if "crashed" in said:
            return f"{ENDED}: {end}, {innermost(text)}" if "Fatal" in text else f"{ENDED}: {end}"
        return f"the suite itself failed here, please report it: {said.strip()[-1500:]}" if said else "never started"

    def _stopped(self, slug: str) -> str:
        if self.ended_by == BUDGET:
            why = self.plan.over_budget
            return f"{why} while this clause was tried" if slug in self.running else f"not begun: {why}"
        return "the run was interrupted" if self.ended_by == "SIGINT" else f"the run was ended by {self.ended_by}"


def _slug_of(nodeid: str) -> str:
    return nodeid.rsplit("::", 1)[-1].partition("[")[0]


def _and_then(found: Result, cause: str) -> Result:
    """A failure after which the worker died, while a smaller case or the reason was looked for."""
    then = f"while this was looked into, {cause}"
    failure = found.failure
    if failure is not None:
        failure = replace(failure, note="; ".join(part for part in (failure.note, then) if part))
    return replace(found, reason=f"{found.reason}; {then}", failure=failure)


__all__ = ["LoadError", "UsageError", "check", "run_plan"]

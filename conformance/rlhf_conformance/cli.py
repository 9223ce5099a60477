"""The command: `rlhf-conformance check | list | explain | init | matrix | diff`."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rlhf_spec.clauses
from rlhf_conformance.escaping import logged
from rlhf_conformance.results import BROKEN_STATUS, CONFORMANT_STATUS, FAILED_STATUS, INCOMPLETE_STATUS, USAGE_STATUS
from rlhf_conformance.run.known import DTYPES
from rlhf_conformance.run.plan import PROFILES, Plan

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_conformance.results import Report
    from rlhf_conformance.run.known import KnownFailure


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="rlhf-conformance",
        description="Check an RLHF trainer against the specification of its log-probs, masks, models and losses.",
        epilog="exit status: 0 conformant (what was accepted, and what was not asked, stands beside the verdict), "
        "1 not conformant, 2 bad usage or unusable adapter, 3 incomplete, 4 the suite itself failed",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_check(commands)
    _add_list(commands)
    _add_explain(commands)
    _add_init(commands)
    _add_matrix(commands)
    _add_diff(commands)
    return parser


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser("check", help="check a trainer through its adapter")
    check.add_argument("adapter", metavar="ADAPTER", help="package.module:Name, path/to/file.py:Name, or a short name")
    check.add_argument(
        "-o", dest="options", metavar="NAME=VALUE", action="append", default=[], help="a mode of the adapter"
    )
    check.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    check.add_argument("--dtype", default="float32", choices=DTYPES, help="default: float32")
    check.add_argument("--profile", default="gate", choices=PROFILES, help="how much is tried (default: gate)")
    check.add_argument("--only", metavar="SLUG-PREFIX", action="append", default=[], help="only these clauses")
    check.add_argument("--strict", action="store_true", help="a broken SHOULD is not conformant either")
    check.add_argument(
        "-n", dest="workers", metavar="WORKERS", type=int, help="processes (default: one a core, at most 4)"
    )
    check.add_argument(
        "--report", metavar="DIR", type=Path, help="write report.html, report.json, junit.xml, ... into DIR"
    )
    check.add_argument("--known-failures", metavar="FILE", type=Path, help="TOML file of accepted failures")
    check.add_argument("--accept", action="store_true", help="accept what fails: write the file of --known-failures")
    check.add_argument(
        "--replay", metavar="FILE", type=Path, help="try the failing cases of a report again, or one stored case"
    )
    check.add_argument("--time-limit", metavar="SECONDS", type=float, help="for a clause (default: by profile)")
    check.add_argument("--budget", metavar="SECONDS", type=float, help="for the run: what is left then is lost")
    check.add_argument(
        "--pass-env",
        metavar="NAME",
        action="append",
        default=[],
        help="a variable that the adapter needs although it looks like a secret",
    )
    check.add_argument("--seed", metavar="N", type=int, help="of the cases (default: 0; drawn and printed for full)")
    check.add_argument("--verbose", action="store_true", help="show every failure in full, not only as far as fits")
    check.set_defaults(run=run_check)


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = commands.add_parser("list", help="the clauses, and which of them an adapter would run")
    listing.add_argument("adapter", metavar="ADAPTER", nargs="?")
    listing.add_argument("-o", dest="options", metavar="NAME=VALUE", action="append", default=[])
    listing.set_defaults(run=run_list)


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    explain = commands.add_parser(
        "explain", help="a name that a document or a report prints: a clause, chapter, decision, known bug, fault, ..."
    )
    explain.add_argument("name", metavar="NAME", nargs="+")
    explain.set_defaults(run=run_explain)


def _add_init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    init = commands.add_parser("init", help="an adapter to fill in, a test file and a CI workflow for your repository")
    init.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=Path(), help="its root (default: .)")
    init.set_defaults(run=run_init)


def _add_matrix(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    matrix = commands.add_parser("matrix", help="reports side by side, as Markdown: trainers against clauses")
    matrix.add_argument("reports", metavar="REPORT", nargs="+", type=Path, help="a report.json, or its folder")
    matrix.add_argument("--html", metavar="FILE", type=Path, help="write it as a page, too")
    matrix.set_defaults(run=run_matrix)


def _add_diff(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    diff = commands.add_parser(
        "diff", help="what became of each clause between two reports; exit status 1 where one regressed"
    )
    diff.add_argument("old", metavar="OLD", type=Path, help="a report.json, or its folder")
    diff.add_argument("new", metavar="NEW", type=Path)
    diff.add_argument(
        "--margin",
        metavar="FRACTION",
        type=float,
        default=0.1,
        help="a clause whose error leaves less of its budget than this, and less than before, regressed (default: 0.1)",
    )
    diff.set_defaults(run=run_diff)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    from rlhf_conformance.names import UnknownName
    from rlhf_conformance.reporting import ReportError
    from rlhf_conformance.run.loading import LoadError, UsageError

    _settle_streams()
    try:
        arguments = build_parser().parse_args(argv)
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except (LoadError, ReportError, UsageError, UnknownName, rlhf_spec.clauses.UnknownClause) as error:
        print(logged(f"rlhf-conformance: {error}"), file=sys.stderr)
        return USAGE_STATUS
    except BrokenPipeError:
        _leave_stdout()
        return CONFORMANT_STATUS
    except Exception as error:
        return _own_failure(error)


def _settle_streams() -> None:
    """A stream that cannot show a character shows its escape; one that is closed shows nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _leave_stdout() -> None:
    """Whoever read it has gone, or its disk is full: Python shall not fail again when it ends."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _own_failure(error: Exception) -> int:
    """Say that the suite itself failed, and how: no verdict on the adapter."""
    if isinstance(error, OSError):
        _leave_stdout()
    with contextlib.suppress(Exception):
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        said = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}{where}"
        print(logged("".join(traceback.format_exception(error))), file=sys.stderr)
        print(logged(f"rlhf-conformance: the suite itself failed, please report it: {said}"), file=sys.stderr)
    return BROKEN_STATUS


def run_check(arguments: argparse.Namespace) -> int:
    from rich.markup import escape

    from rlhf_conformance import reporting
    from rlhf_conformance.reporting import github, progress, terminal
    from rlhf_conformance.run.command import run_plan
    from rlhf_conformance.run.loading import UsageError, parse_options
    from rlhf_conformance.run.plan import validate_plan
    from rlhf_conformance.run.suite import require_device

    seed = arguments.seed
    if seed is None:
        seed = random.SystemRandom().randrange(2**31) if arguments.profile == "full" else 0
    if arguments.time_limit is not None and arguments.time_limit <= 0:
        raise UsageError(f"--time-limit {arguments.time_limit:g}: wanted a number of seconds above 0")
    if arguments.budget is not None and not 0 < arguments.budget < math.inf:
        raise UsageError(f"--budget {arguments.budget:g}: wanted a number of seconds above 0")
    if arguments.report is not None:
        _check_folder(arguments.report)
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError(f"-n {arguments.workers}: at least one worker is needed")
    known_failures = _known_failures(arguments)
    cases = _replayed(arguments)
    plan = Plan(
        adapter=arguments.adapter,
        options=parse_options(arguments.options),
        device=arguments.device,
        dtype=arguments.dtype,
        profile=arguments.profile,
        only=tuple(cases or arguments.only),
        strict=arguments.strict,
        seed=seed,
        time_limit=arguments.time_limit or 0.0,
        budget=arguments.budget or 0.0,
        pass_env=tuple(arguments.pass_env),
        database=str(Path(".rlhf-conformance").resolve()),
        known_failures=known_failures,
        known_file=str(arguments.known_failures or ""),
        accepting=arguments.accept,
        cases=cases,
    )
    plan = replace(plan, command=_repeat(plan))
    validate_plan(plan)
    require_device(plan.device)
    console = terminal.Screen(soft_wrap=False)
    asked = f"checking {plan.adapter} on {plan.device} in {plan.dtype}, profile {plan.profile}, seed {plan.seed}"
    console.print(escape(logged(asked)))
    with progress.Shown(console) as shown:
        report = run_plan(plan, arguments.workers or _cores(), shown)
    if plan.accepting:
        return _accept(console, report, plan, arguments)
    written = ""
    if arguments.report is not None:  # files first: whatever becomes of the printing, they are there
        report = reporting.placed(report, arguments.report)
        written = _written(report, arguments.report)
    unwritten = github.summarize(report, os.environ)
    try:
        terminal.show_report(console, report, verbose=arguments.verbose)
        if written:
            console.print(logged(f"report: {written}"), highlight=False, markup=False, soft_wrap=True)
        github.annotate(report, os.environ)
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_stdout()
    if unwritten:
        print(logged(f"rlhf-conformance: {unwritten}"), file=sys.stderr)
        return BROKEN_STATUS
    return report.exit_status


def _check_folder(folder: Path) -> None:
    """Raises UsageError where no report could be written: known before a run that takes minutes."""
    from rlhf_conformance.run.loading import UsageError

    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--report {folder}: wanted a folder, this is a file")
        above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UsageError(f"--report {folder}: nothing can be written into {above}; name another folder")
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL in it
        raise UsageError(f"--report {folder}: this cannot be a folder: {error}") from error


def _known_failures(arguments: argparse.Namespace) -> tuple[KnownFailure, ...]:
    from rlhf_conformance.run import known
    from rlhf_conformance.run.loading import UsageError

    path = arguments.known_failures
    if arguments.accept:
        if path is None:
            raise UsageError("--accept writes the file of --known-failures FILE: say which")
        if arguments.replay is not None:
            raise UsageError("--accept looks for the failures itself: leave out --replay")
        known.check_writable(path)
        return known.read_known_failures(path) if path.exists() else ()
    return known.read_known_failures(path) if path is not None else ()


def _accept(console: Console, report: Report, plan: Plan, arguments: argparse.Namespace) -> int:
    """Write the known failures of a run, and say what became of each row."""
    from rlhf_conformance import reporting
    from rlhf_conformance.reporting import parts, terminal
    from rlhf_conformance.run import known

    if parts.tested_nothing(report):
        terminal.show_report(console, report)
        return INCOMPLETE_STATUS
    accepted = known.accept(report, plan)
    known.write(accepted.rows, arguments.known_failures)
    written = ""
    if arguments.report is not None:
        after = replace(plan, accepting=False, known_failures=accepted.rows)
        judged = replace(report, results=tuple(known.with_known_failures(r, after) for r in report.results))
        written = _written(reporting.placed(judged, arguments.report), arguments.report)
    for result in report.results:
        if result.clause in (*accepted.added, *accepted.updated, *accepted.unfinished):
            console.print(f"\n{terminal.describe(result)}", highlight=False, markup=False, soft_wrap=True)
    console.print()
    for line in (*accepted.lines(plan.known_file), *([f"report: {written}"] if written else [])):
        console.print(logged(line), highlight=False, markup=False, soft_wrap=True)
    return INCOMPLETE_STATUS if accepted.unfinished else CONFORMANT_STATUS


def _replayed(arguments: argparse.Namespace) -> dict[str, Any]:
    """The stored cases that are asked for, by slug; none where nothing is replayed."""
    from rlhf_conformance.reporting.replaying import ReplayError, check_cases, read_cases
    from rlhf_conformance.run.loading import UsageError
    from rlhf_conformance.run.plan import selected

    if arguments.replay is None:
        return {}
    try:
        cases = read_cases(arguments.replay)
    except ReplayError as error:
        raise UsageError(f"--replay: {error}") from error
    asked = {slug: cases[slug] for slug in selected(arguments.only) if slug in cases}
    if not asked:
        raise UsageError(f"--replay {arguments.replay}: it holds cases of {', '.join(cases)} only")
    try:
        check_cases(asked, arguments.replay)
    except ReplayError as error:
        raise UsageError(f"--replay: {error}") from error
    return asked


def _written(report: Report, folder: Path) -> str:
    """The files for people first."""
    from rlhf_conformance import reporting
    from rlhf_conformance.run.loading import UsageError

    try:
        path = reporting.write(report, folder)
    except OSError as error:
        raise UsageError(f"cannot write the report: {error}") from error
    return f"{path.with_name('report.html')}, {path}"


def _repeat(plan: Plan) -> str:
    """The command that runs the same cases again; `--only` is added for one clause."""
    from rlhf_conformance.reporting.parts import spelled
    from rlhf_conformance.reporting.terminal import command_line

    assert plan.adapter is not None
    arguments = ["check", plan.adapter]
    for key, value in plan.options.items():
        arguments += ["-o", f"{key}={spelled(value)}"]
    for flag, value, default in (
        ("--device", plan.device, "cpu"),
        ("--dtype", plan.dtype, "float32"),
        ("--profile", plan.profile, "gate"),
        ("--seed", str(plan.seed), "0"),
        ("--time-limit", f"{plan.time_limit:g}", "0"),
    ):
        if value != default:
            arguments += [flag, value]
    if plan.strict:
        arguments.append("--strict")
    if plan.known_file:
        arguments += ["--known-failures", plan.known_file]
    return command_line(arguments)


def _cores() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, count))


def run_list(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rlhf_conformance.reporting import terminal

    clauses = rlhf_spec.clauses.clauses()
    remarks = dict.fromkeys((c.slug for c in clauses), "")
    if arguments.adapter:
        from rlhf_conformance.judging.checks import checks
        from rlhf_conformance.run.loading import load_adapter, parse_options

        adapter = load_adapter(arguments.adapter, parse_options(arguments.options))
        reasons = {slug: check.not_provided(adapter) for slug, check in checks().items()}
        remarks = {slug: f"not provided: {reason}" if reason else "runs" for slug, reason in reasons.items()}
    console = Console()
    terminal.show_clauses(console, ((c.slug, c.level, remarks[c.slug]) for c in clauses))
    levels = [c.level for c in clauses]
    counts = ", ".join(f"{levels.count(level)} {level}" for level in ("MUST", "SHOULD", "CONVENTION"))
    chapters = len(rlhf_spec.clauses.chapters())
    console.print(f"{len(clauses)} clauses in {chapters} chapters: {counts}", highlight=False)
    if arguments.adapter and "runs" not in remarks.values():
        print("rlhf-conformance: the adapter provides nothing that a clause needs", file=sys.stderr)
        return INCOMPLETE_STATUS
    return CONFORMANT_STATUS


def run_explain(arguments: argparse.Namespace) -> int:
    from rlhf_conformance import names

    print(names.explained(" ".join(arguments.name)))
    return CONFORMANT_STATUS


def run_init(arguments: argparse.Namespace) -> int:
    from rlhf_conformance.run import starting

    for path in starting.write(arguments.folder):
        print(f"wrote {path}")
    print(starting.next_steps(arguments.folder))
    return CONFORMANT_STATUS


def run_matrix(arguments: argparse.Namespace) -> int:
    from rlhf_conformance import files
    from rlhf_conformance.reporting import markdown, matrix
    from rlhf_conformance.run.loading import UsageError

    found = matrix.combined([(path, _read(path)) for path in arguments.reports])
    if arguments.html is not None:
        from rlhf_conformance.reporting import page

        try:
            files.write_whole(arguments.html, page.matrix(found))
        except OSError as error:
            raise UsageError(f"cannot write {arguments.html}: {error.strerror}") from error
    sys.stdout.write(markdown.matrix(found))
    return CONFORMANT_STATUS


def run_diff(arguments: argparse.Namespace) -> int:
    from rlhf_conformance.reporting import diff
    from rlhf_conformance.run.loading import UsageError

    if not 0 <= arguments.margin <= 1:
        raise UsageError(f"--margin {arguments.margin:g}: wanted a fraction from 0 to 1")
    old, new = _read(arguments.old), _read(arguments.new)
    found = diff.changes(old, new, arguments.margin)
    bad = sum(change.kind in diff.BAD for change in found)
    said = f"{bad} regressed" if bad else "nothing regressed"
    print(*diff.heading(old, new), "", *found, *([""] if found else []), said, sep="\n")
    return FAILED_STATUS if bad else CONFORMANT_STATUS


def _read(path: Path) -> Report:
    from rlhf_conformance import reporting

    return reporting.read(path / reporting.FILE_NAME if path.is_dir() else path)


if __name__ == "__main__":
    sys.exit(main())

"""Known failures: what a maintainer has accepted, each with the case on which it fails.

A row of the file says which clause fails, why that is accepted, and on which stored case it does. The case is tried
before those that are drawn, so that the row holds in every run. It excuses that failure, of that quantity and on that
backbone, and no other of the clause; and it has to go as soon as it has nothing to excuse.
`rlhf-conformance check ... --accept` writes the file.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import rlhf_spec.clauses
from rlhf_conformance import files
from rlhf_conformance.results import (
    ERROR,
    FAIL,
    INCONCLUSIVE,
    KNOWN_FAILURE,
    NOT_FINISHED,
    PASS,
    UNEXPECTED_PASS,
    Failure,
    Report,
    Result,
    without_numbers,
)
from rlhf_conformance.run.loading import UsageError

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float64", "bfloat16", "float16")
TABLE = "known-failure"
SCHEMA_FILE = "known-failures.schema.json"


class Run(Protocol):
    """What the rows have to know about a run: `run.plan.Plan` says what each is."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def today(self) -> str: ...
    @property
    def command(self) -> str: ...
    @property
    def accepting(self) -> bool: ...
    @property
    def known_file(self) -> str: ...
    @property
    def known_failures(self) -> tuple[KnownFailure, ...]: ...
    @property
    def cases(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class KnownFailure:
    """A failure that the maintainer has accepted.

    device, dtype   the row counts only in runs on that device ("cpu" or "cuda") and in that dtype; empty: in all
    expires         from that day on it excuses nothing
    fails           the signature of the failure that is accepted; empty: any
    hypothesis      the version of Hypothesis with which the row was written; empty: not told
    counterexample  the stored case on which it fails; None: whichever case that is drawn
    """

    clause: str
    reason: str
    issue: str = ""
    device: str = ""
    dtype: str = ""
    expires: datetime.date | None = None
    fails: str = ""
    hypothesis: str = ""
    counterexample: Any = None

    def applies(self, plan: Run) -> bool:
        """Whether the row counts in such a run."""
        return self.device in ("", plan.device.partition(":")[0]) and self.dtype in ("", plan.dtype)

    def expired(self, plan: Run) -> bool:
        return self.expires is not None and plan.today >= self.expires.isoformat()

    @property
    def backbone(self) -> str:
        """The backbone on which the failure is accepted; empty: any."""
        from rlhf_conformance.judging import storing

        return storing.backbone(storing.from_json(self.counterexample)) if self.counterexample is not None else ""

    def excuses(self, failure: Failure | None) -> bool:
        """Whether this is the failure that was accepted."""
        if failure is None:
            return self.fails == ""
        return self.fails in ("", signature(failure)) and self.backbone in ("", _backbone(failure))

    @property
    def drawn_otherwise(self) -> str:
        """That other cases may be drawn now than when the row was written, as the end of a sentence; empty where its
        case is stored, or where the version is the same."""
        now = hypothesis_version()
        if self.counterexample is not None or self.hypothesis in ("", now):
            return ""
        return f" (the row was written with Hypothesis {self.hypothesis}, and {now} may draw other cases)"


def hypothesis_version() -> str:
    """The version that this run has."""
    return importlib.metadata.version("hypothesis")


def signature(failure: Failure) -> str:
    """A failure in words that stay the same from run to run: "fail: loss". Numbers in it become "#"."""
    return f"{ERROR if failure.is_error else FAIL}: {without_numbers(failure.what)}"


def _backbone(failure: Failure) -> str:
    from rlhf_conformance.judging import storing

    return storing.backbone(storing.from_json(failure.stored)) if failure.stored is not None else ""


def storable(result: Result, again: Callable[[Any], Result]) -> Result:
    """The result; each of its failures without its case where that, tried again, does not fail in the same way: a row
    with it would flip."""

    def kept(failure: Failure) -> Failure:
        if failure.stored is None:
            return failure
        found = again(failure.stored)
        same = signature(failure) in {signature(f) for f in failures(found)}
        return failure if same else replace(failure, stored=None)

    if result.failure is None:
        return result
    return replace(result, failure=kept(result.failure), others=tuple(map(kept, result.others)))


def failures(result: Result) -> list[Failure]:
    """All that is wrong with a clause that is broken."""
    return [result.failure, *result.others] if result.failure is not None else []


def _found(result: Result) -> list[Failure | None]:
    """The same; None for one of which no more is known than that."""
    return [*failures(result)] or [None]


def rows_for(clause: str, plan: Run) -> list[KnownFailure]:
    """The rows that concern a clause in this run."""
    return [row for row in plan.known_failures if row.clause == clause and row.applies(plan)]


def rows_with_a_case(clause: str, plan: Run) -> list[KnownFailure]:
    """Those of them whose case is tried before others."""
    return [row for row in rows_for(clause, plan) if row.counterexample is not None]


def stale_rows(tried: Sequence[KnownFailure], shown: Sequence[Sequence[Failure]]) -> list[KnownFailure]:
    """The rows whose own case does not show their failure: `shown` is what each of the cases showed."""
    pairs = zip(tried, shown, strict=False)
    return [row for row, found in pairs if not any(row.excuses(failure) for failure in found)]


def with_known_failures(result: Result, plan: Run, stale: Sequence[KnownFailure] = ()) -> Result:
    """The verdict in the light of the accepted failures; as it is in a run that writes them anew.

    stale   rows whose own case shows their failure no more: they excuse nothing
    """
    rows = rows_for(result.clause, plan)
    if not rows or plan.accepting:
        return result
    if result.verdict in (FAIL, ERROR):
        return _failed(result, rows, stale, plan)
    if result.verdict == PASS and result.clause not in plan.cases:
        return _needless(result, rows[0], plan)
    if result.verdict == INCONCLUSIVE and any(row.counterexample is not None for row in rows):
        reason = f"the stored counterexample no longer puts the clause to the test: {_removal(rows[0], plan)}"
        return replace(result, reason=reason)
    return result


def _needless(result: Result, row: KnownFailure, plan: Run) -> Result:
    """The verdict where a row has nothing to excuse."""
    what = f" (of {row.fails})" if row.fails and result.failure is not None else ""
    said = f"accepted as a known failure ({row.reason}), but it passes{what}{row.drawn_otherwise}"
    reason = f"{said}: {_removal(row, plan)}"
    return replace(result, verdict=UNEXPECTED_PASS, reason=reason, failure=None, others=())


def _failed(result: Result, rows: Sequence[KnownFailure], stale: Sequence[KnownFailure], plan: Run) -> Result:
    """What no row excuses comes first."""
    found = _found(result)
    valid = [row for row in rows if row not in stale]
    excused = {i: row for i, failure in enumerate(found) for row in valid if row.excuses(failure)}
    left = [failure for i, failure in enumerate(found) if i not in excused]
    if left:
        return _unexcused(_led_by(result, left[0]), valid if excused else rows, stale)
    row = next((row for row in excused.values() if row.expired(plan)), None)
    if row is not None:
        renew = f"set another day in {plan.known_file or 'the row'}, or mend the failure and remove the row"
        return replace(result, reason=f"accepted ({row.reason}) until {row.expires}: {renew}. {result.reason}")
    shown = [row for row in valid if row.counterexample is not None]
    needless = [row for row in rows if row not in excused.values() and row not in shown]
    if needless and result.clause not in plan.cases:
        return _needless(result, needless[0], plan)
    said = "; ".join(dict.fromkeys(row.reason for row in excused.values()))
    return replace(result, verdict=KNOWN_FAILURE, reason=f"accepted: {said}. {result.reason}")


def _led_by(result: Result, failure: Failure | None) -> Result:
    """The result with this of its failures as the one that is looked into."""
    if failure is None or failure is result.failure:
        return result
    others = tuple(other for other in failures(result) if other is not failure)
    verdict = ERROR if failure.is_error else FAIL
    return replace(result, verdict=verdict, reason=failure.sentence, failure=failure, others=others)


def _unexcused(result: Result, rows: Sequence[KnownFailure], stale: Sequence[KnownFailure]) -> Result:
    now = signature(result.failure) if result.failure is not None else result.reason
    said = "; ".join(dict.fromkeys(row.reason for row in rows))
    if any(row in stale and row.excuses(result.failure) for row in rows):
        accepted = f"accepted ({said}), but the case that was accepted passes now, and another one fails"
    elif any(row.excuses(failure) for row in rows for failure in result.others):
        accepted = f"beside what is accepted ({said})"
    else:
        fails = "; ".join(row.fails for row in rows)
        accepted = f"accepted for another failure ({fails}; {said}), now {now}{rows[0].drawn_otherwise}"
        return replace(result, reason=f"{accepted}. {result.reason}")
    return replace(result, reason=f"{accepted}: {now}. {result.reason}")


def _removal(row: KnownFailure, plan: Run) -> str:
    """How to remove a row: by the command that does it, where there is one."""
    if plan.command and plan.known_file:
        return f"remove the row with `{plan.command} --only {row.clause} --accept`"
    return f"remove the row from {plan.known_file}" if plan.known_file else "remove the row"


# --- accepting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accepted:
    """What `--accept` makes of a run.

    rows        the rows of the new file
    added, updated, kept, removed, untried      clauses whose row is so; an updated one had another counterexample or
                none, an untried one was asked for, but its clause was not tried
    warnings    clauses that are broken, but a SHOULD: they are green without a row, and get none
    expired     clauses whose row is kept, and excuses nothing since its day has come
    unfinished  clauses that cannot be accepted: whether they fail is not known
    """

    rows: tuple[KnownFailure, ...]
    added: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()

    def lines(self, file: str) -> list[str]:
        """What was done to the file, for the one who asked for it."""
        said = (
            ("added", self.added, "say in each row why it is accepted"),
            ("updated", self.updated, "they had no case, or fail in another way or on another case"),
            ("kept", self.kept, ""),
            ("removed", self.removed, "they pass now"),
            ("kept, but not tried", self.untried, "the adapter does not provide what they need"),
            ("kept, but expired", self.expired, "they stay red until their row has another day"),
            ("not accepted", self.warnings, "a broken SHOULD is a warning; with --strict it gets a row"),
            ("cannot be accepted", self.unfinished, "lost or inconclusive, so that it is not known whether they fail"),
        )
        lines = [
            f"{what}: {', '.join(clauses)}" + (f" ({remark})" if remark else "")
            for what, clauses, remark in said
            if clauses
        ]
        return [*lines, f"{file} has {len(self.rows)} known failures" if self.rows else f"{file} has no known failure"]


def accept(report: Report, plan: Run) -> Accepted:
    """The rows that make all failures of a run known ones, and drop those that have nothing left to excuse.

    Rows of clauses that were not in the run, and those for another device or dtype, stay as they are.
    """
    done: dict[str, dict[str, None]] = {
        field.name: {} for field in dataclasses.fields(Accepted) if field.name != "rows"
    }
    rows: dict[int, KnownFailure | None] = dict(enumerate(plan.known_failures))
    for result in report.results:
        for kind, before, after in _accepted(result, rows_for(result.clause, plan), result in report.broken, plan):
            done[kind][result.clause] = None
            if before is not None or after is not None:
                rows[plan.known_failures.index(before) if before is not None else len(rows)] = after
            if after is not None and after.expired(plan):
                done["expired"][result.clause] = None
    left = tuple(row for row in rows.values() if row is not None)
    return Accepted(left, **{name: tuple(clauses) for name, clauses in done.items()})


Change = tuple[str, "KnownFailure | None", "KnownFailure | None"]
"""The word for what becomes of a row, the row before and afterwards."""


def _accepted(result: Result, rows: Sequence[KnownFailure], red: bool, plan: Run) -> list[Change]:
    """What becomes of the rows of one clause."""
    if result.verdict in NOT_FINISHED:
        return [("unfinished", row, row) for row in rows] or [("unfinished", None, None)]
    if result.verdict == PASS:
        return [("removed", row, None) for row in rows]
    if result.verdict not in (FAIL, ERROR):
        return [("untried", row, row) for row in rows]
    if not rows and not red:
        return [("warnings", None, None)]
    left, changes, new = list(rows), list[Change](), list["Failure | None"]()
    for failure in _found(result):
        row = next((row for row in left if row.excuses(failure)), None)
        if row is None:
            new.append(failure)
        else:
            left.remove(row)
            changes.append(_renewed(row, failure))
    for failure in new:  # a row whose failure has become another one keeps its story
        changes.append(_renewed(left.pop(0), failure) if left else _added(result, failure, plan))
    return [*changes, *(("removed", row, None) for row in left)]


def _renewed(row: KnownFailure, failure: Failure | None) -> Change:
    after = replace(row, **_of_failure(failure))
    if after != row:
        after = replace(after, hypothesis=hypothesis_version())
    return ("kept" if after == row else "updated"), row, after


def _added(result: Result, failure: Failure | None, plan: Run) -> Change:
    row = replace(_new_row(result, plan), hypothesis=hypothesis_version(), **_of_failure(failure))
    return "added", None, row


def _of_failure(failure: Failure | None) -> dict[str, Any]:
    """The fields of a row that say which failure it accepts: none where no case shows it each time."""
    stored = failure.stored if failure is not None else None
    fails = signature(failure) if failure is not None and stored is not None else ""
    return {"fails": fails, "counterexample": stored}


def _new_row(result: Result, plan: Run) -> KnownFailure:
    """A row without a story: for runs like this one only, unless it is on the CPU in float32, where all begin."""
    others = any(row.clause == result.clause and not row.applies(plan) for row in plan.known_failures)
    device, dtype = plan.device.partition(":")[0], plan.dtype
    return KnownFailure(
        result.clause,
        f"accepted on {plan.today}, not yet explained",
        device=device if others or device != DEVICES[0] else "",
        dtype=dtype if others or dtype != DTYPES[0] else "",
    )


# --- the file ---------------------------------------------------------------------------------------------------------


def rows_of(known_failures: Path | str | Iterable[KnownFailure]) -> tuple[tuple[KnownFailure, ...], str]:
    """Rows, and the file that they come from, of a file or of rows. Raises UsageError."""
    if isinstance(known_failures, str | Path):
        return read_known_failures(known_failures), str(known_failures)
    rows = tuple(known_failures)
    _refuse_overlaps(rows, "known_failures")
    return rows, ""


def read_known_failures(path: Path | str) -> tuple[KnownFailure, ...]:
    """The rows `[[known-failure]]` of a file. Raises UsageError, which names the file, the row and what is wanted."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        hint = "; --accept makes a new one" if isinstance(error, FileNotFoundError) else ""
        raise UsageError(f"cannot read {path}: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: it is not UTF-8 text") from error
    return _parsed(text, path)


def _parsed(text: str, path: Path | str) -> tuple[KnownFailure, ...]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:  # the others: too deep, a number too long
        raise UsageError(f"{path} is not TOML with rows [[{TABLE}]]: {error}") from error
    found = tables.pop(TABLE, [])
    if tables:
        raise UsageError(f"{path}: unknown {', '.join(tables)}; wanted rows [[{TABLE}]] and nothing else")
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UsageError(f"{path}: wanted rows, each under [[{TABLE}]] with two brackets")
    rows = tuple(_row(row, f"{path}: row {i}") for i, row in enumerate(found, 1))
    _refuse_overlaps(rows, str(path))
    return rows


def _row(data: dict[str, Any], where: str) -> KnownFailure:
    where += f" ({data['clause']})" if isinstance(data.get("clause"), str) else ""
    keys = [field.name for field in dataclasses.fields(KnownFailure)]
    unknown = [key for key in data if key not in keys]
    if unknown:
        raise UsageError(f"{where}: unknown {', '.join(unknown)}; there are {', '.join(keys)}")
    missing = [key for key in ("clause", "reason") if key not in data]
    if missing:
        raise UsageError(f"{where}: {' and '.join(missing)} missing; each row has a clause and a reason")
    for key, value in data.items():
        if key != "expires" and not isinstance(value, str):
            raise UsageError(f"{where}: {key} = {value!r}: wanted a string")
    for key, choices in (("device", DEVICES), ("dtype", DTYPES)):
        if data.get(key, choices[0]) not in choices:
            raise UsageError(f"{where}: {key} = {data[key]!r}: wanted one of {', '.join(choices)}, or no such line")
    day = data.get("expires")
    # A date with a time of day is a date to Python too.
    if day is not None and (not isinstance(day, datetime.date) or isinstance(day, datetime.datetime)):
        raise UsageError(f"{where}: expires = {day!r}: wanted a day without quotes, as expires = 2030-12-31")
    try:
        rlhf_spec.clauses.clause(data["clause"])
    except rlhf_spec.clauses.UnknownClause as error:
        raise UsageError(f"{where}: {error} (correct it, or remove the row)") from error
    said = files.misfit({TABLE: [{**data, "expires": str(day)} if day is not None else data]}, SCHEMA_FILE)
    if said:
        raise UsageError(f"{where} does not fit {SCHEMA_FILE}: {said}")
    if "counterexample" in data:
        data = {**data, "counterexample": _counterexample(data["counterexample"], where)}
    return KnownFailure(**data)


def _counterexample(text: str, where: str) -> Any:
    """The stored case of a row, as `cases.storing` makes a case of it."""
    from rlhf_conformance.judging import storing

    mend = "; write the row anew with --accept, or remove its counterexample"
    try:
        stored = files.from_text(text, "it")
        if not isinstance(stored, dict):
            raise storing.StoredCaseError(f"not a case but a {type(stored).__name__}")
        storing.from_json(stored)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{where}: counterexample is not a stored case: {error}{mend}") from error
    return stored


def _refuse_overlaps(rows: Sequence[KnownFailure], where: str) -> None:
    """Raises UsageError where two rows could excuse the same failure of a clause in the same run."""
    for i, row in enumerate(rows):
        for j, other in enumerate(rows[:i]):
            pairs = ((row.device, other.device), (row.dtype, other.dtype), (row.fails, other.fails))
            if row.clause != other.clause or not all("" in pair or len(set(pair)) == 1 for pair in pairs):
                continue
            if "" in (row.backbone, other.backbone) or row.backbone == other.backbone:
                raise UsageError(
                    f"{where}: {row.clause} stands in it twice, in the rows {j + 1} and {i + 1}, for the same runs: "
                    "remove one, or tell them apart by device, dtype, or what fails"
                )


def check_writable(path: Path) -> None:
    """Raises UsageError where `write` could not write: known before a run that takes a minute."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")


def write(rows: Sequence[KnownFailure], path: Path) -> None:
    """Write the file. What the user has written around the rows and behind their values stays: a comment right above
    a row is that row's, and goes with it. Raises UsageError where it cannot be written."""
    before = path.read_text(encoding="utf-8") if path.exists() else new_head()
    text = _rewritten(before, rows, path)
    if _parsed(text, path) != tuple(rows):
        raise AssertionError(f"the rows of {path} are not read as they are written")
    try:
        files.write_whole(path, text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def new_head() -> str:
    """The comment at the top of a new file, which explains it."""
    return resources.files("rlhf_conformance").joinpath("templates/init/known-failures.toml").read_text("utf-8")


@dataclass(frozen=True)
class _Block:
    """A row as it stands in the file.

    above   paragraphs of comments before it, each by itself, that stay when the row goes
    text    the row, with the comment right above it
    """

    above: tuple[str, ...]
    text: str


def _rewritten(before: str, rows: Sequence[KnownFailure], path: Path) -> str:
    """The text of the file with these rows instead of those that it has."""
    old = _parsed(before, path)
    after = _afterwards(old, rows)
    blocks, end = _blocks(before)
    parts: list[str] = []
    for i, row in enumerate(old):
        block = blocks[i] if i < len(blocks) else _Block((), _toml(row))
        parts += block.above
        if after[i] is not None:
            parts.append(block.text if after[i] == row else _edited(block.text, after[i]))
    if blocks or not old:
        parts += end
    else:
        parts = [*end, *parts]
    parts += [_toml(row) for row in rows if row not in after]
    return "\n\n".join(parts) + "\n" if parts else ""


def _afterwards(old: Sequence[KnownFailure], new: Sequence[KnownFailure]) -> list[Any]:
    """What each of the old rows has become, None where it has gone: itself where it is still there, else a row of the
    same clause and the same runs."""
    left = [row for row in new if row not in old]
    after: list[KnownFailure | None] = []
    for row in old:
        next_best = (r for r in left if (r.clause, r.device, r.dtype) == (row.clause, row.device, row.dtype))
        found = row if row in new else next(next_best, None)
        if found in left:
            left.remove(found)
        after.append(found)
    return after


def _blocks(text: str) -> tuple[list[_Block], tuple[str, ...]]:
    """The rows of the file as they stand in it, and the comments behind the last one. Where no row has a place of its
    own, which those of an array of inline tables have not, the comments at the top."""
    import tomlkit
    from tomlkit.items import AoT

    document = tomlkit.parse(text)
    tables = document.get(TABLE)
    if not isinstance(tables, AoT):
        return [], _all_paragraphs(_comments_at_the_top(text))
    before = _comments_at_the_top(text)
    found = []
    for table in tables:
        body = table.value.body
        last = max(i for i, (key, _) in enumerate(body) if key is not None)
        behind = "".join(item.as_string() for _, item in body[last + 1 :])
        values = table.value.as_string().removesuffix(behind)
        own, after = _parted(behind, is_last=table is tables[-1])
        loose, near = _paragraphs(before)
        header = f"[[{TABLE}]]{table.trivia.comment_ws}{table.trivia.comment}".rstrip()
        lines = (near, header, values.strip("\n"), own.strip("\n"))
        found.append(_Block(loose, "\n".join(line for line in lines if line)))
        before = after
    return found, _all_paragraphs(before)


def _comments_at_the_top(text: str) -> str:
    lines = text.splitlines(keepends=True)
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")), len(lines))
    return "".join(lines[:end])


def _parted(comments: str, *, is_last: bool) -> tuple[str, str]:
    """The comments between the values of a row and the next row: its own, up to an empty line, and what comes then.
    Without an empty line they are the next row's."""
    own, empty, after = comments.partition("\n\n")
    if comments.startswith("\n") or not (empty or is_last):
        return "", comments
    return own, after


def _paragraphs(comments: str) -> tuple[tuple[str, ...], str]:
    """The paragraphs of some comments, and apart from them one that no empty line parts from what follows."""
    parts = _all_paragraphs(comments)
    if parts and not comments.endswith("\n\n"):
        return parts[:-1], parts[-1]
    return parts, ""


def _all_paragraphs(comments: str) -> tuple[str, ...]:
    return tuple(part.strip("\n") for part in comments.split("\n\n") if part.strip())


def _edited(text: str, row: KnownFailure) -> str:
    """A row as it stands in the file with other values, and with the comments that stand in it."""
    import tomlkit

    document = tomlkit.parse(text + "\n")
    table: Any = document[TABLE][0]  # type: ignore[index]
    values = {key: tomlkit.value(value) for key, value in _values(row)}
    for key in [key for key in table if key not in values]:
        table.remove(key)
    for key, value in values.items():
        if key not in table or table[key] != value:
            table[key] = value
    return tomlkit.dumps(document).rstrip("\n")


def _toml(row: KnownFailure) -> str:
    return "\n".join([f"[[{TABLE}]]", *(f"{key} = {value}" for key, value in _values(row))])


def _values(row: KnownFailure) -> list[tuple[str, str]]:
    """The keys of a row and their values, as TOML."""
    values: list[tuple[str, str]] = [
        (name, _string(text))
        for name in ("clause", "reason", "issue", "device", "dtype")
        if (text := getattr(row, name)) or name in ("clause", "reason")
    ]
    if row.expires is not None:
        values.append(("expires", row.expires.isoformat()))
    if row.fails:
        values.append(("fails", _string(row.fails)))
    if row.hypothesis:
        values.append(("hypothesis", _string(row.hypothesis)))
    if row.counterexample is not None:
        # A literal string, in which nothing is escaped and which no apostrophe may end.
        values.append(("counterexample", "'" + json.dumps(row.counterexample).replace("'", r"\u0027") + "'"))
    return values


def _string(text: str) -> str:
    """A basic string of TOML, whose escapes are those of JSON, and one more character has to be escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")

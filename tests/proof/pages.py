"""The documents that are made from the measurements, those of `pages` in docs, and the tables that are made from the
specification (`tables`).

python -m tests.proof pages
"""

from __future__ import annotations

import collections
import json
import math
import statistics
from collections.abc import Iterable, Sequence

import rlhf_spec.clauses
from rlhf_conformance.faults import faults

from . import bugs, mutation, speed, survivors, tables
from . import diagnoses as naming
from . import faults as matrix
from . import twins as alarms
from .files import DOCS, table


def write() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text)
    tables.write()


def pages() -> dict[str, str]:
    """The documents by file name, from what lies in docs/proof."""
    return {
        "faults.md": faults_page(matrix.read()),
        "twins.md": twins_page(alarms.read()),
        "diagnosis.md": diagnosis_page(naming.read()),
        "fresh-bugs.md": bugs.page(),
        "mutation.md": mutation_page(json.loads(mutation.NUMBERS.read_text())),
        "speed.md": speed.page(json.loads(speed.NUMBERS.read_text())),
    }


# --- faults -------------------------------------------------------------------------------------------------------


def faults_page(rows: dict[str, matrix.Row]) -> str:
    return (
        "\n\n".join(
            [
                "# What the suite catches",
                FAULTS_INTRODUCTION,
                "## In numbers",
                table(("what", "measured"), _numbers(rows)),
                "## Known bugs, and what stops them",
                table(("known bug", "re-enacted by", "stopped by"), _known_bugs(rows)),
                "## Clauses, and what they catch",
                CLAUSES_INTRODUCTION,
                table(("clause", "own faults", "all", "smallest error / budget"), _clauses(rows)),
                *_chapters(rows),
            ]
        )
        + "\n"
    )


FAULTS_INTRODUCTION = """\
A *fault* is the reference with one lie in it: one overridden method, a line that says the lie, and the clause that
must catch it. Any of them can be checked like a trainer, and fails: `rlhf-conformance check
fault:critic-values-shifted`.

This page is made by `python -m nox -s faults`, which tries every fault on every clause that could tell it from the
reference, in the gate in float32 on the CPU, and its own clause again with each of the seeds below. The session is
red if a fault survives, if its own clause misses it with any seed, or if a clause catches nothing. Rows, with the
shrunk cases: `docs/proof/faults.json`."""

CLAUSES_INTRODUCTION = """\
*Own faults* name the clause as the one that must catch them; *all* counts every fault that turns it red. The last
column is how far off the first wrong number was, as a multiple of what the clause allows, for the own fault and the
seed where that was least. Where it is empty the clause compares exactly, or judges something else than numbers."""


def _numbers(rows: dict[str, matrix.Row]) -> Iterable[tuple[str, str]]:
    found = [after for row in rows.values() for after in row["found_after"]]
    hits = [after for after in found if after is not None]
    low, high = wilson(len(hits), len(found))
    seeds = max(len(row["found_after"]) for row in rows.values())
    small = sum(row["samples"] <= 2 and row["tokens"] <= 6 for row in rows.values())
    seconds = [row["seconds"] for row in rows.values()]
    slowest = max(rows, key=lambda name: _worst(rows[name]))
    largest = max(rows, key=lambda name: rows[name]["tokens"])
    yield "faults", str(len(rows))
    yield "clauses that catch at least one", str(len({slug for row in rows.values() for slug in row["killed_by"]}))
    yield "clauses that catch a fault (median, most)", _spread([len(row["killed_by"]) for row in rows.values()])
    yield f"found by the own clause, over {seeds} seeds", f"{len(hits)} of {len(found)}"
    yield "of these, with the 95 % interval (Wilson)", f"{len(hits) / len(found):.4f} ({low:.4f} to {high:.4f})"
    yield "faults missed with some seed", str(sum(None in row["found_after"] for row in rows.values()))
    yield "examples until found (median, most)", f"{_spread(hits)} (`{slowest}`)"
    yield "seconds until found, on one core (median, most)", f"{statistics.median(seconds):.2f}, {max(seconds):.2f}"
    yield "shrunk to two samples and six tokens or less", f"{small} of {len(rows)} ({small / len(rows):.1%})"
    yield "tokens of the shrunk case (median, most)", f"{_spread([r['tokens'] for r in rows.values()])} (`{largest}`)"


def _worst(row: matrix.Row) -> int:
    return max(after or 0 for after in row["found_after"])


def _spread(numbers: Sequence[float]) -> str:
    return f"{statistics.median(numbers):g}, {max(numbers):g}"


def wilson(hits: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of Wilson (1927) for a proportion.

    >>> [round(bound, 3) for bound in wilson(9, 10)]
    [0.596, 0.982]
    """
    share, spread = hits / trials, z * z / trials
    middle = share + spread / 2
    reach = z * math.sqrt(share * (1 - share) / trials + spread / trials / 4)
    return (middle - reach) / (1 + spread), min(1.0, (middle + reach) / (1 + spread))


def _known_bugs(rows: dict[str, matrix.Row]) -> Iterable[tuple[str, str, str]]:
    """Only the clauses that the faults name: what else turns red is in the rows."""
    enacted = collections.defaultdict(list)
    for name, fault in faults().items():
        if fault.bug:
            enacted[fault.bug].append(name)
    for bug in sorted(enacted):
        stopped = sorted(
            {faults()[name].clause for name in enacted[bug] if faults()[name].clause in rows[name]["killed_by"]}
        )
        yield bug, _codes(enacted[bug]), _codes(stopped)


def _clauses(rows: dict[str, matrix.Row]) -> Iterable[tuple[str, str, str, str]]:
    for clause in rlhf_spec.clauses.clauses():
        own = [row for row in rows.values() if row["clause"] == clause.slug]
        every = [row for row in rows.values() if clause.slug in row["killed_by"]]
        excesses = [row["excess"] for row in own if row["excess"] is not None]
        yield f"`{clause.slug}`", str(len(own)), str(len(every)), f"{min(excesses):.3g}" if excesses else ""


def _chapters(rows: dict[str, matrix.Row]) -> Iterable[str]:
    for chapter in rlhf_spec.clauses.chapters():
        yield f"## Faults of {chapter.slug}"
        yield table(
            ("fault", "the lie", "must be caught by", "also", "examples (median, most)", "shrunk to"),
            (_fault(name, row) for name, row in rows.items() if row["clause"].startswith(chapter.slug + ".")),
        )


def _fault(name: str, row: matrix.Row) -> tuple[str, ...]:
    found = [after for after in row["found_after"] if after is not None]
    size = f"{row['samples']} x {row['tokens']}" if row["samples"] == 1 else f"{row['samples']}, {row['tokens']} in all"
    lie = faults()[name].lie.rstrip(".")
    return f"`{name}`", lie, f"`{row['clause']}`", str(len(row["killed_by"]) - 1), _spread(found), size


# --- twins --------------------------------------------------------------------------------------------------------


def twins_page(numbers: dict[str, dict[str, dict]]) -> str:
    dtypes = list(numbers)
    margins = {dtype: alarms.margins(numbers[dtype]) for dtype in dtypes}
    slugs = [c.slug for c in rlhf_spec.clauses.clauses() if any(margins[d].get(c.slug) for d in dtypes)]
    excess = collections.defaultdict(list)
    for row in matrix.read().values():
        if row["excess"] is not None:
            excess[row["clause"]].append(row["excess"])
    return (
        "\n\n".join(
            [
                "# What the suite lets pass",
                TWINS_INTRODUCTION,
                table(
                    (
                        "dtype",
                        "twins",
                        "of them in the gate",
                        "seeds",
                        "examples",
                        "false alarms",
                        "largest error / budget",
                    ),
                    (
                        (
                            dtype,
                            str(len(numbers[dtype])),
                            str(sum(row["profile"] == "gate" for row in numbers[dtype].values())),
                            _span([len(row["seeds"]) for row in numbers[dtype].values()]),
                            f"{sum(row['examples'] for row in numbers[dtype].values()):,}",
                            str(sum(len(row["alarms"]) for row in numbers[dtype].values())),
                            f"{max(margins[dtype].values()):.2f}",
                        )
                        for dtype in dtypes
                    ),
                ),
                "## Budgets from both sides",
                BUDGETS_INTRODUCTION,
                table(
                    ("clause", *(f"twins, {dtype}" for dtype in dtypes), "faults, float32"),
                    (
                        (
                            f"`{slug}`",
                            *(f"{margins[d][slug]:.2g}" if margins[d].get(slug) else "" for d in dtypes),
                            f"{min(excess[slug]):.3g}" if excess[slug] else "",
                        )
                        for slug in slugs
                    ),
                ),
            ]
        )
        + "\n"
    )


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


TWINS_INTRODUCTION = """\
A *twin* does what the reference does by another way: another order of summation, chunks, another layout, float64
inside, half precision with float32 accumulation. Whatever the suite says against one is a false alarm.
`rlhf-conformance check twin:textbook`.

This page is made by `python -m nox -s twins`, which takes every twin through the clauses that could tell it from
the reference: every twin with one seed, in the gate or with the fewer cases of smoke, and those that are quick in the
gate with one seed after the other, until at least so many examples were tried in each dtype."""

BUDGETS_INTRODUCTION = """\
Errors as a share of what a clause allows: the largest of any twin, which has to stay below 1, and the smallest at
which a fault of the clause was found, which is above 1. Clauses that compare exactly are left out, and where no
fault of a clause is about numbers the last column is empty."""


# --- mutation -----------------------------------------------------------------------------------------------------


def mutation_page(rows: dict[str, dict]) -> str:
    return (
        "\n\n".join(
            [
                "# Slips that no test sees",
                MUTATION_INTRODUCTION,
                table(("kind", "what it means"), survivors.KINDS.items()),
                *(part for target in mutation.TARGETS.values() for part in _target(target, rows)),
            ]
        )
        + "\n"
    )


MUTATION_INTRODUCTION = """\
A *mutant* is the source with one slip in it that [mutmut](https://github.com/boxed/mutmut) makes: an operator
exchanged, an argument left out or `None`, a number one larger, a text in other letters. One that every test passes
is either no slip, or shows what the tests do not see. So each of those is listed here, with the reason why it is
harmless, or as open.

This page is made by `python -m nox -s mutation` (`-- reference` or `-- suite` for one of its two parts, `-- suite
--left` to try once more what was left). The numbers and the edits are in `docs/proof/mutation.json`, the reasons in
`tests/proof/survivors.py`. A mutant that makes the tests run for ever, or ends their process, counts as killed. What
is *not tried* had no turn yet: a run can be ended at any time and goes on from there. Asked are the tests during which
the function was called, so a fixture that several tests share speaks for the first of them only."""

MUTATION_TARGETS = {
    "rlhf_reference": """\
The tests are the clauses: the reference through its own adapter, in the profile `gate`, in float32, strict, where
anything but a pass counts as caught. What they let live is tried on `tests/reference`, where saving, loading, LoRA,
errors and what else no clause asks for have their tests. So the first column of kills is the suite's own, and a
mutant that is *not reached* runs in no clause. The gate is not asked about messages and devices, and was not asked
about most of what every model goes through (`checkpoint`, `loading`, `regression.RegressionModel.__init__`,
`inputs.ModelInputs.of`), which takes it a minute for each mutant: *not asked* counts all of these.

What no clause asks for, and `tests/reference` does: the gradient of the entropy, a clip band that is empty on one side
or reaches below 0, rows without an action, sampling, errors, LoRA, and restoring on another base.""",
    "rlhf_conformance": """\
Of the suite, what decides over others: comparisons, budgets, verdicts, choices, layouts and the oracle, with the
tests of `tests/conformance` that run in one process. Its other modules have not been tried.""",
}


def _target(target: mutation.Target, rows: dict[str, dict]) -> Iterable[str]:
    own = {name: row for name, row in rows.items() if name.startswith(target.name + ".")}
    modules = collections.defaultdict(list)
    for name, row in own.items():
        modules[_module(name)].append((name, row))
    trials = [trial.name for trial in target.trials]
    kinds = [kind for kind in survivors.KINDS if any(kind in _kinds(name, row) for name, row in own.items())]
    first, *others = trials
    head = ["module", "mutants", f"not reached by {first}", "not asked of it", f"killed by {first}"]
    head += [*(f"killed by {trial}" for trial in others), *kinds, "not tried"]
    counts = {
        module.removeprefix(target.name + "."): _counts(functions, trials, kinds)
        for module, functions in modules.items()
    }
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    yield f"## `{target.name}`"
    yield MUTATION_TARGETS[target.name]
    yield table(head, ((module, *map(str, numbers)) for module, numbers in counts.items()))
    yield f"mutmut leaves decorated functions alone: {_codes(mutation.untouched(target))}."
    for module, functions in modules.items():
        left = [(name, edit) for name, row in functions for edit in row["left"]]
        if left:
            yield f"### `{module}`"
            yield table(("where", "old -> new", "kind", "why"), _reasons(module, left))


def _counts(functions: list[tuple[str, dict]], trials: list[str], kinds: list[str]) -> list[int]:
    left = collections.Counter(kind for name, row in functions for kind in _kinds(name, row))
    rows = [row for _, row in functions]
    return [
        *(sum(row[what] for row in rows) for what in ("mutants", "unreached", "unasked")),
        *(sum(row["killed"].get(trial, 0) for row in rows) for trial in trials),
        *(left[kind] for kind in kinds),
        sum(row["untried"] for row in rows),
    ]


def _kinds(name: str, row: dict) -> list[str]:
    return [survivors.reason(name, edit).kind for edit in row["left"]]


def _reasons(module: str, left: list[tuple[str, str]]) -> Iterable[tuple[str, ...]]:
    """One row for each reason of a function: edits that have the same one stand together."""
    together = collections.defaultdict(list)
    for name, edit in left:
        together[name.removeprefix(module + "."), survivors.reason(name, edit)].append(edit)
    for (name, why), edits in together.items():
        shown = "; ".join(f"`{edit}`" for edit in edits) if why.shown else f"{len(edits)} edit{'s' * (len(edits) > 1)}"
        yield f"`{name}`", shown, why.kind, why.why


def _module(function: str) -> str:
    """
    >>> _module("rlhf_reference.actor.Actor.save"), _module("rlhf_conformance.judging.picks.Picks.of")
    ('rlhf_reference.actor', 'rlhf_conformance.judging.picks')
    """
    parts = function.split(".")
    return ".".join(parts[:3] if parts[1] in ("cases", "checks") else parts[:2])


# --- diagnoses ----------------------------------------------------------------------------------------------------


def diagnosis_page(numbers: dict[str, dict]) -> str:
    rows = numbers["faults"]
    return (
        "\n\n".join(
            [
                "# What a failure is called",
                DIAGNOSIS_INTRODUCTION,
                "## How to read it",
                DIAGNOSIS_READING,
                "## In numbers",
                table(("what", "measured"), _named(numbers)),
                "## By chapter",
                table(("chapter", "faults", *naming.WORDS.values()), _by_chapter(rows)),
                "## Not named, or not first",
                NOT_FIRST_INTRODUCTION,
                table(("fault", "clause", "what is said", "why"), _not_first(rows)),
                "## Named by the error itself",
                BY_ERROR_INTRODUCTION,
                table(("fault", "what is said"), _by_error(rows)),
                "## The same lie under two names",
                ALIASES_INTRODUCTION,
                table(("fault", "also"), ((f"`{n}`", _codes(also)) for n, also in sorted(naming.ALIASES.items()))),
            ]
        )
        + "\n"
    )


DIAGNOSIS_INTRODUCTION = """\
Where a clause fails, the suite looks for what is wrong. This page is about one of its ways: it puts every fault of
the library (`docs/faults.md`) that may fail the clause, and the reference made to follow every convention that the
adapter does not declare, in the place of the adapter, and gives them the cases on which it failed and a dozen others.
One that gives the same answers to within the budget, fails where the adapter fails and passes where it passes, is
named:

    agrees with `half-dropped` on 13 cases, 13 of them failing: the factor 1/2 is left out (known bug half-dropped:
    verl #1340, #2016)

    agrees with the convention sequence-mean on 13 cases, 12 of them failing: you declared token-mean

This page is made by `python -m nox -s diagnoses`, which lets every fault fail its own clause, in the gate in float32
on the CPU. Every answer and every gradient of the fault carries a rounding or two that those of the library do not,
so that no name is owed to agreement in the last bit. The session is red if a wrong name is given, if a near miss gets
one, or if fewer than nine faults in ten get their own name first."""

DIAGNOSIS_READING = """\
A name means: the trainer cannot be told from this fault on the cases that were tried. It does not mean that the
trainer's source has the same slip in it, only that it computes the same. Nothing is named where the agreement might
be a coincidence: an adapter that returns one number whatever it is asked agrees with any fault that returns this
number where it is looked at. There, and where several candidates agree, the adapter and the candidates are asked
more cases of the clause and some of the other clauses of the chapter. Candidates that cannot be told apart after
that are all named, or, where they are more than three, counted.

Where nothing of the library agrees, the reference is compared with one thing spoiled that goes in or comes out: a
tensor that is rolled, shifted, negated or rounded, a mask with one more or less, an option that is not honored, a
factor, an offset, another denominator, a mask by ids:

    on 13 cases, 12 of them failing: the answer is what it would be if `action_mask` were shifted by one to the left,
    with a zero behind

And where none of these agrees either, it is said where the failure shows and where it does not, as a fact about the
cases that were tried:

    of 25 cases tried, 25 fail: all that differ are in row 0 and at the actions; in each of the 43 numbers that differ 0
    came

What a diagnosis costs is counted in calls of the adapter and in candidates, and not in seconds: a busy machine gives
the same names as an idle one. Where a search was cut, the note of the failure says after how many candidates, and how
many were not tried; who was not compared with all of the cases is not named."""

NOT_FIRST_INTRODUCTION = """\
Each fault that is not called by its own name first, and why."""

BY_ERROR_INTRODUCTION = """\
These faults do not answer wrongly, they raise, or return something of the wrong kind. The verdict is *error*, and its
message names the method and what came from it; there is nothing to compare."""

ALIASES_INTRODUCTION = """\
Some faults do to the letter what another entry does; either name counts as right."""


def _named(numbers: dict[str, dict]) -> Iterable[tuple[str, str]]:
    rows, misses = numbers["faults"], numbers["near misses"].values()
    judged = [row for row in rows.values() if row["outcome"] not in (naming.BY_ERROR, naming.MISSED)]
    seconds = [row["seconds"] for row in judged]
    yield "faults", str(len(rows))
    for outcome, count in naming.counts(rows).items():
        yield naming.WORDS[outcome], str(count)
    yield "right name first, of those whose clause fails on an answer", f"{naming.share(rows):.1%}"
    yield "with a place in the batch named as well", str(sum(bool(row["places"]) for row in rows.values()))
    yield "processor seconds for a diagnosis (median, most)", _spread(seconds)
    tried = sum(row["clauses"] for row in misses)
    yield (
        "twins pushed just over the budget: failures made, names given",
        f"{tried}, {sum(len(r['named']) for r in misses)}",
    )


def _by_chapter(rows: dict[str, naming.Row]) -> Iterable[tuple[str, ...]]:
    for chapter in rlhf_spec.clauses.chapters():
        own = {name: row for name, row in rows.items() if row["clause"].startswith(chapter.slug + ".")}
        yield chapter.slug, str(len(own)), *(str(count) for count in naming.counts(own).values())


def _not_first(rows: dict[str, naming.Row]) -> Iterable[tuple[str, ...]]:
    for name, row in rows.items():
        if row["outcome"] in (naming.AMONG, naming.WRONG, naming.SILENT, naming.MISSED):
            said = _codes(row["named"]) + (f" of {row['alike']}" if row["alike"] > len(row["named"]) else "")
            yield f"`{name}`", f"`{row['clause']}`", said or "nothing", naming.reason(name, row)


def _by_error(rows: dict[str, naming.Row]) -> Iterable[tuple[str, str]]:
    for name, row in rows.items():
        if row["outcome"] == naming.BY_ERROR:
            yield f"`{name}`", row["said"]


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)

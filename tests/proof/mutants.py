"""Mutations of real trainers: one slip in a copy of the installed package, and the clause that catches it.

    PYTHONPATH=tests python -m proof.mutants TRAINER [MUTANT ...]

runs in the trainer's environment (not as `tests.proof`, since OpenRLHF installs a package `tests`) and writes
docs/proof/mutants-TRAINER.json, from which docs/mutants.md is made. Red where a mutant goes uncaught that no reason is
given for, or one with a reason is caught. With names only those rows are made anew. The mutants are tables of data:
mutants_TRAINER.py.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_conformance.results import Result
from rlhf_conformance.run.folders import own_folder
from rlhf_conformance.run.known import failures, signature

from .files import DOCS, MEASURED, ROOT, by_line, table
from .trainers import NAMES, titled
from .trying import RED, attempt, settle

HOLE = re.compile(r"_[a-z]")
Row = dict[str, Any]
Wrong = dict[str, list[str]]
"""By clause, what is wrong, in the words of a row of known failures."""


class MutationError(Exception):
    """A mutant cannot be made, or what is asked is not the mutant."""


@dataclass(frozen=True)
class Edit:
    """In the function, the `nth` of the `of` places that look like `find` becomes `replace`.

    Both are expressions; in them `_a`, `_b` and so on stand for any expression, the same in both.
    """

    find: str
    replace: str
    nth: int = 1
    of: int = 1

    def __str__(self) -> str:
        which = f" (place {self.nth} of {self.of})" if self.of > 1 else ""
        return f"`{self.find}` becomes `{self.replace}`{which}"


@dataclass(frozen=True)
class Mutant:
    """One slip.

    function    "package.module:Class.method"; a function inside of a function is written with a dot as well
    clause      the clause that is asked first
    options     of the adapter, where its default mode does not come to the function
    declares    attributes of the adapter, where a failure that is known of other cases hides the mutant
    why         it is not caught, for this reason
    """

    name: str
    function: str
    edit: Edit
    clause: str
    options: Mapping[str, Any] = field(default_factory=dict)
    declares: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def mode(self) -> str:
        """Options and declarations as JSON, by which baselines are kept."""
        return json.dumps([dict(self.options), dict(self.declares)], sort_keys=True)


# --- the edit -----------------------------------------------------------------------------------------------------


def mutate(source: str, function: str, edit: Edit) -> str:
    """The module's source with the edit in the function, which is a dotted path. Raises MutationError."""
    tree = ast.parse(source)
    found = definition(tree, function)
    find, replace = (ast.parse(text, mode="eval").body for text in (edit.find, edit.replace))
    if isinstance(find, ast.Name) and HOLE.fullmatch(find.id):
        raise MutationError(f"{edit.find} looks like everything")
    if unfilled := _holes(replace) - _holes(find):
        raise MutationError(f"nothing stands for {', '.join(sorted(unfilled))} in {edit.replace}")
    places = [(node, holes) for node in ast.walk(found) if (holes := _match(find, node)) is not None]
    if len(places) != edit.of:
        raise MutationError(f"{len(places)} places in {function} look like {edit.find}, not {edit.of}")
    if not 1 <= edit.nth <= edit.of:
        raise MutationError(f"{function} has no place {edit.nth} of {edit.of}")
    place, holes = sorted(places, key=lambda pair: _position(pair[0]))[edit.nth - 1]
    changed = _Swap(place, _filled(replace, holes, place)).visit(tree)
    mutated = ast.unparse(ast.fix_missing_locations(changed))
    if mutated == ast.unparse(ast.parse(source)):
        raise MutationError(f"{edit} changes nothing in {function}")
    return mutated


def definition(tree: ast.AST, path: str) -> ast.AST:
    """The one class or function of this dotted path. Raises MutationError."""
    for name in path.split("."):
        found = [node for node in _definitions(tree) if node.name == name]
        if len(found) != 1:
            raise MutationError(f"{len(found)} definitions of {name} in {path}, not one")
        tree = found[0]
    return tree


def _definitions(tree: ast.AST) -> Iterator[Any]:
    """Classes and functions of a body, also under an `if`, but not those inside of other definitions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from _definitions(node)


def _holes(pattern: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(pattern) if isinstance(node, ast.Name) and HOLE.fullmatch(node.id)}


def _match(pattern: ast.AST, node: ast.AST) -> dict[str, ast.expr] | None:
    """What the holes stand for if the node looks like the pattern, else None."""
    holes: dict[str, ast.expr] = {}
    return holes if _alike(pattern, node, holes) else None


def _alike(pattern: Any, node: Any, holes: dict[str, ast.expr]) -> bool:
    if isinstance(pattern, ast.Name) and HOLE.fullmatch(pattern.id):
        return isinstance(node, ast.expr) and ast.dump(holes.setdefault(pattern.id, node)) == ast.dump(node)
    if type(pattern) is not type(node):
        return False
    if isinstance(pattern, list):
        return len(pattern) == len(node) and all(_alike(p, n, holes) for p, n in zip(pattern, node, strict=True))
    if isinstance(pattern, ast.AST):
        names = [name for name in pattern._fields if name not in ("ctx", "kind")]
        return all(_alike(getattr(pattern, name), getattr(node, name), holes) for name in names)
    return pattern == node


def _position(node: Any) -> tuple[int, int, int, int]:
    """In the order of reading; what begins at the same place, the longest first."""
    return node.lineno, node.col_offset, -node.end_lineno, -node.end_col_offset


def _filled(replace: ast.expr, holes: Mapping[str, ast.expr], place: Any) -> ast.expr:
    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return copy.deepcopy(holes[node.id]) if node.id in holes else node

    filled = Fill().visit(copy.deepcopy(replace))
    if hasattr(place, "ctx") and hasattr(filled, "ctx"):
        filled.ctx = place.ctx
    return filled


class _Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


# --- the mutant's own process -------------------------------------------------------------------------------------


@contextmanager
def copied(package: str) -> Iterator[Path]:
    """A folder that holds a copy of the installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MutationError(f"{package} is not installed here: run this in its environment")
    (installed,) = spec.submodule_search_locations
    with own_folder("rlhf-mutant-") as folder:
        shutil.copytree(installed, Path(folder, package), ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder)


def judged(
    adapter: str,
    mutant: Mutant,
    clauses: Sequence[str],
    known: Mapping[str, Sequence[str]] | None = None,
    *,
    original: bool = False,
) -> Wrong:
    """What is wrong by clause, as far as the first that has something that is not `known`; of all of them where the
    package is `original`."""
    module, _, path = mutant.function.partition(":")
    package = module.split(".")[0]
    task = {
        "adapter": adapter,
        "options": dict(mutant.options),
        "declares": dict(mutant.declares),
        "module": module,
        "outermost": path.split(".")[0],
        "clauses": list(clauses),
        "known": dict(known or {}),
        "all": original,
    }
    with copied(package) as folder:
        file = _module_file(folder, module)
        source = file.read_text() if original else mutate(file.read_text(), path, mutant.edit)
        file.write_text(source)
        task |= {"folder": str(folder), "source": ast.unparse(definition(ast.parse(source), task["outermost"]))}
        return _in_its_process(task)


def _module_file(folder: Path, module: str) -> Path:
    path = folder.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _in_its_process(task: dict[str, Any]) -> Wrong:
    answer = Path(task["folder"], "answer.json")
    paths = [task["folder"], *(str(ROOT / floor) for floor in ("spec", "reference", "conformance", "tests"))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "proof.mutants", "--answer", str(answer)]
    settings: dict[str, Any] = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 1800}
    ended = subprocess.run(command, input=json.dumps(task), **settings)
    if ended.returncode or not answer.exists():
        raise MutationError(f"the mutant's process ended with {ended.returncode}: {ended.stderr.strip()[-1500:]}")
    return json.loads(answer.read_text())


def ask(task: Mapping[str, Any]) -> Wrong:
    """In the mutant's own process: load the adapter, see that it drives the mutant, and try the clauses."""
    from rlhf_conformance.run.loading import load_adapter

    settle()
    adapter = load_adapter(task["adapter"], task["options"])
    for name, value in task["declares"].items():
        setattr(adapter, name, tuple(value) if isinstance(value, list) else value)
    module = importlib.import_module(task["module"])
    if not Path(str(module.__file__)).resolve().is_relative_to(Path(task["folder"]).resolve()):
        raise MutationError(f"{task['module']} was imported from elsewhere")
    loaded = inspect.getsource(inspect.unwrap(getattr(module, task["outermost"])))
    if ast.dump(ast.parse(loaded)) != ast.dump(ast.parse(task["source"])):
        raise MutationError(f"{task['outermost']} that was imported is not the mutated one")
    wrong: Wrong = {}
    for slug in task["clauses"]:
        wrong[slug] = signatures(attempt(adapter, slug).result)
        if new_in(wrong[slug], task["known"].get(slug, ())) and not task["all"]:
            break
    return wrong


def signatures(result: Result) -> list[str]:
    """Of each failure of a clause, in the words that rows of known failures have; none of a green one."""
    if result.verdict not in RED:
        return []
    return sorted({signature(failure) for failure in failures(result)}) or [result.verdict]


def new_in(wrong: Iterable[str], known: Collection[str]) -> bool:
    """Whether something is wrong that is not known; an empty line stands for anything."""
    return "" not in known and bool(set(wrong) - set(known))


# --- all of them --------------------------------------------------------------------------------------------------


def mutants_of(trainer: str) -> tuple[Mutant, ...]:
    return importlib.import_module(f"{__package__}.mutants_{trainer}").MUTANTS


def rows_file(trainer: str) -> Path:
    return MEASURED / f"mutants-{trainer}.json"


def measure(trainer: str, mutant: Mutant, baseline: Mapping[str, Sequence[str]]) -> Row:
    """One mutant: its own clause, then every other one, until something is wrong that is not wrong without it."""
    from rlhf_conformance.judging.checks import checks

    others = [slug for slug in checks() if slug != mutant.clause]
    wrong = judged(trainer, mutant, [mutant.clause, *others], baseline)
    return {
        "function": mutant.function,
        "edit": str(mutant.edit),
        "options": dict(mutant.options),
        "declares": dict(mutant.declares),
        "clause": mutant.clause,
        "caught_by": next((slug for slug, found in wrong.items() if new_in(found, baseline.get(slug, ()))), None),
        "why": mutant.why or None,
    }


def documented(trainer: str) -> Wrong:
    """What the trainer is known to fail in its adapter's default mode, by clause."""
    from rlhf_conformance.run.known import read_known_failures

    rows = read_known_failures(DOCS / "known-failures" / f"{trainer}.toml")
    return {clause: sorted({row.fails for row in rows if row.clause == clause}) for clause in {r.clause for r in rows}}


def red_without(trainer: str, mutant: Mutant) -> Wrong:
    """What is wrong in the mutant's mode without the mutant, or known to be in the default mode, by clause.

    Raises if something is wrong there that is not known. What is known and was not wrong this time (what it reads may
    be uninitialized memory) cannot tell of a mutant either.
    """
    from rlhf_conformance.judging.checks import checks

    found = judged(trainer, mutant, list(checks()), original=True)
    wrong = {slug: said for slug, said in found.items() if said}
    if mutant.options or mutant.declares:
        return dict(sorted(wrong.items()))
    known = documented(trainer)
    if differing := sorted(slug for slug, said in wrong.items() if new_in(said, known.get(slug, ()))):
        said = ", ".join(differing)
        raise MutationError(f"{trainer} without a mutant fails what docs/known-failures does not say: {said}")
    both = {slug: sorted({*wrong.get(slug, ()), *known.get(slug, ())}) for slug in {*wrong, *known}}
    return dict(sorted(both.items()))


def run(trainer: str, names: Sequence[str]) -> int:
    """Measure, write, and say what is wrong; the exit status."""
    mutants = {mutant.name: mutant for mutant in mutants_of(trainer)}
    if set(names) - set(mutants):
        raise SystemExit(f"no such mutant: {', '.join(sorted(set(names) - set(mutants)))}")
    known = read(trainer)
    baselines = known["without"] if names else {}
    rows = {
        name: {**row, "why": mutants[name].why or None} for name, row in known["mutants"].items() if name in mutants
    }
    for name in names or mutants:
        mutant = mutants[name]
        if mutant.mode not in baselines:
            baselines[mutant.mode] = red_without(trainer, mutant)
            print(f"without a mutant, {mutant.mode}: {len(baselines[mutant.mode])} clauses fail", flush=True)
        rows[name] = measure(trainer, mutant, baselines[mutant.mode])
        caught = rows[name]["caught_by"]
        other = "" if caught in (None, mutant.clause) else f", not by {mutant.clause}"
        print(f"{name}: {f'caught by {caught}{other}' if caught else 'NOT CAUGHT'}", flush=True)
        write(trainer, baselines, {name: rows[name] for name in mutants if name in rows})
    wrong = complaints(trainer, rows)
    print("\n".join(wrong) or f"{sum(bool(row['caught_by']) for row in rows.values())} of {len(rows)} caught")
    return 1 if wrong else 0


def complaints(trainer: str, rows: Mapping[str, Row]) -> list[str]:
    """What makes the command red."""
    said = [f"{mutant.name} has no row" for mutant in mutants_of(trainer) if mutant.name not in rows]
    for name, row in rows.items():
        if not row["caught_by"] and not row["why"]:
            said.append(f"{name} goes uncaught, and no reason is given")
        if row["caught_by"] and row["why"]:
            said.append(f"{name} is caught by {row['caught_by']}, and a reason is given why it is not")
    return said


def read(trainer: str) -> dict[str, Any]:
    file = rows_file(trainer)
    return json.loads(file.read_text()) if file.exists() else {"without": {}, "mutants": {}}


def write(trainer: str, baselines: Mapping[str, Wrong], rows: Mapping[str, Row]) -> None:
    rows_file(trainer).write_text(f'{{"without": {by_line(baselines)},\n"mutants": {by_line(rows)}}}\n')


# --- the document -------------------------------------------------------------------------------------------------


INTRODUCTION = """\
A *mutant* is a real trainer with one slip in it: a sign turned round, a mask forgotten, a slice that begins one column
late. The installed package is copied to a temporary folder, one expression of one function is exchanged there, and the
bundled adapter drives the copy in a process of its own, which makes sure that it imported the copy and the exchanged
function. Then clauses are asked, in the profile `gate`, in float32 on the CPU, with seed 0, until one is red: first the
one that ought to catch the slip, then all others.

What is wrong without the mutant cannot tell of it: a clause that is red then counts where another of its quantities is
wrong with the mutant. Where a failure of [trainers.md](trainers.md) would hide a
mutant, or the adapter's default mode does not come to its function, it is tried in another mode, which the table names,
and what is red in that mode without a mutant is found out first.

In the edits `_a`, `_b` stand for whatever expression is there, and places are counted from the top of the function.

Made by `python -m nox -s mutants`, which makes an environment for each trainer. The mutants of a trainer are in
`tests/proof` (mutants_NAME.py), the results in `docs/proof` (mutants-NAME.json)."""


def page() -> str:
    """docs/mutants.md, from what lies in docs/proof."""
    rows = {trainer: read(trainer)["mutants"] for trainer in NAMES}
    parts = [
        "# Slips in real trainers",
        INTRODUCTION,
        table(("trainer", "mutations", "caught", "why the rest is not"), (_summary(t, rows[t]) for t in NAMES)),
    ]
    for trainer in NAMES:
        parts.append(f"## {titled(trainer)}")
        parts.append(table(("mutation", "caught by"), (_line(*item) for item in rows[trainer].items())))
    return "\n\n".join(parts) + "\n"


def _summary(trainer: str, rows: Mapping[str, Row]) -> tuple[str, ...]:
    caught = sum(bool(row["caught_by"]) for row in rows.values())
    rest = ". ".join(
        f"`{name}`: {row['why'] or 'a gap in the suite'}" for name, row in rows.items() if not row["caught_by"]
    )
    return titled(trainer), str(len(rows)), str(caught), rest


def _line(name: str, row: Row) -> tuple[str, str]:
    path = row["function"].partition(":")[2]
    mode = ", ".join(f"`{key}={_shown(value)}`" for key, value in {**row["options"], **row["declares"]}.items())
    caught = f"`{row['caught_by']}`" if row["caught_by"] else "not caught"
    return f"`{name}`: in `{path}`, {row['edit']}", f"{caught}, with {mode}" if mode else caught


def _shown(value: Any) -> str:
    return "+".join(value) if isinstance(value, list | tuple) else json.dumps(value).strip('"')


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proof.mutants", description=__doc__)
    parser.add_argument("trainer", nargs="?", choices=NAMES)
    parser.add_argument("names", nargs="*", metavar="MUTANT")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        arguments.answer.write_text(json.dumps(ask(json.load(sys.stdin))))
        return 0
    if not arguments.trainer:
        parser.error(f"which trainer? {' or '.join(NAMES)}")
    status = run(arguments.trainer, arguments.names)
    (DOCS / "mutants.md").write_text(page())
    return status


if __name__ == "__main__":
    raise SystemExit(main())

"""The house seen as files: who imports whom, where each slug stands, where tolerances come from."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import rlhf_conformance
import rlhf_spec.clauses

Sources = Mapping[str, str]
"""Modules by their dotted names, each with its source; a package stands under its own name."""
SUITE = "rlhf_conformance"
BUDGETS = f"{SUITE}.oracle.budgets"
SMALL = 1e-2
"""A number below it, other than zero, that something is compared with is a tolerance."""


@pytest.fixture(scope="module")
def sources(modules: dict[str, Path]) -> Sources:
    return {name: file.read_text(encoding="utf-8") for name, file in modules.items()}


@pytest.fixture(scope="module")
def checks(sources: Sources) -> Sources:
    """The files of checks, `chapters/CHAPTER/checks*.py`."""
    found = {}
    for name, text in sources.items():
        parts = name.split(".")
        if len(parts) == 4 and parts[:2] == [SUITE, "chapters"] and parts[3].startswith("checks"):
            found[name] = text
    return found


# --- the rules, as functions of sources ------------------------------------------------------------------------------


def imports(name: str, sources: Sources) -> set[str]:
    """The modules among `sources` that one imports, at its top, in functions, or for annotations alone. From a package
    comes the module that is named, not the package that it lies in; from the suite itself the one that holds the name,
    which alone is loaded when it is asked for."""
    found = set()
    for node in ast.walk(ast.parse(sources[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            homes = rlhf_conformance._HOME_OF if node.module == SUITE else {}
            members = {f"{node.module}.{homes.get(alias.name, alias.name)}" for alias in node.names}
            inner = members & sources.keys()
            found |= inner | ({str(node.module)} if inner != members else set())
    return (found & sources.keys()) - {name}


def circles(sources: Sources) -> list[set[str]]:
    """Sets of modules that import each other, directly or by others."""
    edges = {name: imports(name, sources) for name in sources}
    reached = {name: _reached(name, edges) for name in sources}
    found: list[set[str]] = []
    for name in sources:
        circle = {other for other in reached[name] if name in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def _reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    """The modules that one imports, at any remove; itself only where it is one of them."""
    reached: set[str] = set()
    waiting = set(edges[start])
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= edges[name] - reached
    return reached


def forbidden_imports(sources: Sources, below: str, forbidden: Iterable[str]) -> set[tuple[str, str]]:
    """Imports, in the modules below a package, of a forbidden one or of what lies in it, known or not."""
    found = set()
    for name in sources:
        if not _within(name, below):
            continue
        for target in _targets(sources[name]):
            if any(_within(target, other) for other in forbidden):
                found.add((name, target))
    return found


def _targets(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def slugs_not_once(slugs: Iterable[str], sources: Sources) -> dict[str, list[str]]:
    """Slugs that do not stand literally in exactly one of some files, and in which they do."""
    strings = {name: _strings(text) for name, text in sources.items()}
    found = {slug: [name for name in sources if slug in strings[name]] for slug in slugs}
    return {slug: names for slug, names in found.items() if len(names) != 1}


def _strings(source: str) -> set[str]:
    return {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def tolerances(source: str) -> list[str]:
    """What decides in a module how far numbers may lie apart, line by line: the unit round-off, a dtype's precision
    (`finfo(dtype).min` and `.max` are none: masks are filled with them), `rtol`, `atol`, and small numbers that are
    compared with or handed over as `allowed`."""
    found = []
    tree = ast.parse(source)
    extremes = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("min", "max")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in extremes and _callee(node) in ("budgets.unit", "torch.finfo"):
            found.append(f"{node.lineno}: {_callee(node)}")
        if isinstance(node, ast.keyword) and node.arg in ("rtol", "atol"):
            found.append(f"{node.value.lineno}: {node.arg}")
        if isinstance(node, ast.Name | ast.arg) and (getattr(node, "id", "") or getattr(node, "arg", "")) in _NAMES:
            found.append(f"{node.lineno}: {getattr(node, 'id', '') or getattr(node, 'arg', '')}")
        if isinstance(node, ast.Compare):
            found += _small(node)
        if isinstance(node, ast.keyword) and node.arg == "allowed":
            found += _small(node.value)
    return sorted(set(found))


_NAMES = ("rtol", "atol", "finfo")


def _callee(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _small(node: ast.expr) -> list[str]:
    numbers = (n for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, float))
    return [f"{n.lineno}: {n.value!r}" for n in numbers if 0 < n.value < SMALL]


# --- what holds ------------------------------------------------------------------------------------------------------


def test_no_module_imports_one_that_imports_it(sources):
    assert circles(sources) == []


def test_the_diagnosis_knows_no_chapter(sources):
    folders = {name for name in sources if name.startswith(f"{SUITE}.chapters.") and len(name.split(".")) == 3}
    assert len(folders) > 9  # each chapter's, and what several share
    assert forbidden_imports(sources, f"{SUITE}.diagnosis", folders) == set()


def test_the_oracle_knows_nobody_who_is_judged_or_judges(sources):
    above = {f"{SUITE}.{name}" for name in ("judging", "chapters", "adapter", "adapters", "diagnosis", "run")}
    assert f"{SUITE}.oracle.truth" in sources
    assert forbidden_imports(sources, f"{SUITE}.oracle", {*above, "rlhf_reference"}) == set()


def test_each_slug_stands_in_one_file_of_checks(checks):
    slugs = [clause.slug for clause in rlhf_spec.clauses.clauses()]
    assert slugs_not_once(slugs, checks) == {}


def test_a_slug_stands_in_the_checks_of_its_own_chapter(checks):
    own = {c.slug: f"{SUITE}.chapters.{c.slug.split('.')[0].replace('-', '_')}." for c in rlhf_spec.clauses.clauses()}
    strings = {name: _strings(text) for name, text in checks.items()}
    assert [s for s, start in own.items() for n in checks if s in strings[n] and not n.startswith(start)] == []


def test_tolerances_come_from_the_budgets_alone(sources):
    suite = {name: text for name, text in sources.items() if _within(name, SUITE) and name != BUDGETS}
    assert {name: found for name, text in suite.items() if (found := tolerances(text))} == {}


# --- and would not hold ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second",
    [
        "from p import first",
        "import p.first",
        "from p.first import thing",
        "def f():\n    from p.first import thing",
        "if TYPE_CHECKING:\n    from p.first import Thing",
    ],
)
def test_a_circle_is_seen(second):
    sources = {"p": "", "p.first": "from p.between import x", "p.between": "import p.second", "p.second": second}
    assert circles(sources) == [{"p.first", "p.between", "p.second"}]
    assert circles({**sources, "p.second": ""}) == []


def test_a_package_that_imports_its_module_is_a_circle_only_if_that_imports_the_package():
    sources = {"p": "from p.inner import x", "p.inner": "from p import y"}
    assert circles(sources) == [{"p", "p.inner"}]
    assert circles({**sources, "p.inner": "from p import other", "p.other": ""}) == []


@pytest.mark.parametrize("source", ["from a.chapters.one import x", "def f():\n    from a.chapters import one"])
def test_an_import_of_a_chapter_is_seen(source):
    sources = {"a.diagnosis.steps": source, "a.run.suite": source, "a.diagnosis.legs": "from a import chapters"}
    assert {name for name, _ in forbidden_imports(sources, "a.diagnosis", ["a.chapters.one"])} == {"a.diagnosis.steps"}


def test_a_slug_that_is_made_up_or_stands_twice_is_seen():
    sources = {"one": "use('a.first', x)\nuse(f'{chapter}.second', x)", "two": "use('a.first', x)\nuse('a.third', x)"}
    wrong = {"a.first": ["one", "two"], "a.second": []}
    assert slugs_not_once(["a.first", "a.second", "a.third"], sources) == wrong


@pytest.mark.parametrize(
    "source",
    [
        "x = 8 * budgets.unit(dtype)",
        "x = torch.finfo(dtype).eps",
        "torch.allclose(a, b, rtol=r)",
        "def f(a, b, atol): ...",
        "ok = abs(a - b) < 1e-4",
        "ok = abs(a - b) <= max(1e-6, c)",
        "yield Question('x', call, expected=e, allowed=[1e-5] * n)",
    ],
)
def test_a_tolerance_is_seen(source):
    assert len(tolerances(source)) == 1


@pytest.mark.parametrize(
    "source",
    ["x = torch.finfo(dtype).min", "std = 1e-4", "ok = abs(a - b) < budgets.log_prob(z, t, dtype)", "ok = x > 0.0"],
)
def test_what_is_no_tolerance_is_not_taken_for_one(source):
    assert tolerances(source) == []

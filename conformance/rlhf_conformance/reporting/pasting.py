"""Functions taken out of a module as source, with all that they use, for a script of its own."""

from __future__ import annotations

import ast
import copy
import importlib.util
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@dataclass
class Paste:
    """Source that stands by itself.

    definitions     in an order in which each stands behind what it uses, by name
    modules         of the standard library that are imported whole
    """

    definitions: dict[str, str] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)

    def take(self, full_name: str) -> None:
        """Add a function, "package.module.function", and what it uses from its module or from others like it."""
        module, _, name = full_name.rpartition(".")
        if name in self.definitions:
            return
        here = _module(module)
        node = here.nodes[name]
        self.definitions[name] = ""  # so that a function may use itself
        for used in _names(node):
            if used in here.nodes:
                self.take(f"{module}.{used}")
            elif used in here.imported:
                self.take(here.imported[used])
            elif used in here.modules:
                self.modules.add(used)
        del self.definitions[name]
        self.definitions[name] = _source(node)


@dataclass(frozen=True)
class _Module:
    """The definitions of a module, what it imports from others like it, and the modules that it imports whole."""

    nodes: dict[str, ast.stmt]
    imported: dict[str, str]
    modules: set[str]


@cache
def _module(name: str) -> _Module:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise LookupError(f"there is no module {name}")
    text = Path(spec.origin).read_text(encoding="utf-8")
    nodes: dict[str, ast.stmt] = {}
    imported: dict[str, str] = {}
    modules: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            nodes[node.targets[0].id] = node
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not _is_standard(node.module):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return _Module(nodes, imported, modules)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in {*sys.stdlib_module_names, "__future__"}


def _names(node: ast.stmt) -> list[str]:
    """The names that a definition uses, those of its annotations left out: nobody evaluates them."""
    annotations = {id(inner) for part in ast.walk(node) for inner in _annotations(part)}
    waiting: list[ast.AST] = [node]
    found: dict[str, None] = {}
    while waiting:
        part = waiting.pop(0)
        if id(part) in annotations:
            continue
        if isinstance(part, ast.Name):
            found[part.id] = None
        waiting += ast.iter_child_nodes(part)
    return list(found)


def _annotations(node: ast.AST) -> list[ast.expr]:
    parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return [part for part in parts if part is not None]


class _Bare(ast.NodeTransformer):
    """Without annotations, and with the first sentence alone of each docstring."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        for argument in (*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg):
            if argument is not None:
                argument.annotation = None
        text = ast.get_docstring(node)
        if text is not None:
            sentence = " ".join(text.split("\n\n")[0].split()).partition(": ``")[0]
            node.body[0] = ast.Expr(ast.Constant(sentence))
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is None:
            return node
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def _source(node: ast.stmt) -> str:
    """The definition as source. The tree is a copy, which nobody else has."""
    return ast.unparse(ast.fix_missing_locations(_Bare().visit(copy.deepcopy(node))))

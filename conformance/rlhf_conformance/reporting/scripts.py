"""The standalone script of a failure: the case written out, the expected numbers as literals, torch and nothing else.

Something to paste into a bug report: it prints expected and returned numbers side by side and ends with status 1 where
they differ. Whoever mends the trainer puts the call into `candidate` and runs it again. All of it follows from what was
exchanged (`results.Exchange`) and from the rows of the methods. This module imports no torch.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance.adapter import METHODS
from rlhf_conformance.escaping import line
from rlhf_conformance.judging import storing
from rlhf_conformance.literals import literal, tensor
from rlhf_conformance.oracle import probe_files, probes
from rlhf_conformance.reporting.pasting import Paste
from rlhf_conformance.results import Call, Exchange, Failure, Report, Result

WIDTH = 110
PREPARED, JUDGED, EXPECTED = "prepared", "judged", "expected"


def script(result: Result, report: Report) -> str | None:
    """The script of a failure as text; None where no case has been kept."""
    failure = result.failure
    if failure is None or failure.stored is None:
        return None
    return _Script(result, failure, failure.exchange or Exchange(()), report).text()


@dataclass(frozen=True)
class _Script:
    """What a script is made from."""

    result: Result
    failure: Failure
    exchange: Exchange
    report: Report

    @cached_property
    def asked(self) -> list[Call]:
        """The calls that answered."""
        return [call for call in self.exchange.calls if not _prepares(call)]

    @cached_property
    def judged(self) -> list[int]:
        """Which of these gave the numbers that are judged; the last where an earlier version did not say."""
        return [i for i, call in enumerate(self.asked) if call.role == JUDGED] or [len(self.asked) - 1]

    @property
    def method(self) -> str:
        """The method whose answer is judged."""
        return self.asked[self.judged[-1]].method if self.asked else ""

    @property
    def leaf(self) -> str:
        """The argument that a gradient is taken with respect to; empty where none is."""
        if self.method not in METHODS or "LEAF" not in self.exchange.reading:
            return ""
        return self.exchange.leaf or METHODS[self.method].leaf

    @property
    def is_against(self) -> bool:
        """Whether answers of the trainer are compared with each other."""
        return any(call.role == EXPECTED for call in self.asked)

    def text(self) -> str:
        probe = _probe(self.failure.stored)
        parts = [self._calls()]
        if probe is not None:
            parts.append(_checkpoint(probe))
        parts.append(self._numbers() if self.exchange.numbers else self._fact())
        body = "\n\n".join(part.strip("\n") for part in parts if part)
        end = self._main(with_checkpoint=probe is not None)
        whole = f"{body}\n\n\n{end}"
        return f"{_comment(self._head(probe is not None))}\n{_imports(whole)}\n\n{whole}"

    # --- the head ----------------------------------------------------------------------------------------------------

    def _head(self, with_checkpoint: bool) -> list[str]:
        failure, result = self.failure, self.result
        sentence = rlhf_spec.clauses.clause(result.clause).sentence
        lines = [f"{result.clause} ({result.level}): {sentence}", "", f"What was found: {_finding(failure)}"]
        if failure.note:
            lines.append(f"Note: {failure.note}")
        if not _agrees(failure, self.exchange):
            lines.append("Asked once more for this script, the trainer answered with other numbers than those above.")
        lines += [f"Diagnosis: {row.sentence}" for row in failure.diagnoses]
        lines += ["", _tested(self.report), ""]
        usage = "It needs torch alone, and ends with status 1 where the numbers differ, 0 where they agree. "
        usage += "To try a mended trainer, put its call into candidate()."
        if with_checkpoint:
            usage += " Its model is written by the option --write-checkpoint DIR."
        return [*lines, usage]

    # --- what the trainer was given ----------------------------------------------------------------------------------

    def _calls(self) -> str:
        if not self.exchange.calls:
            case = json.dumps(self.failure.stored)
            return f"# The case. What the trainer was given of it is not on record.\nCASE = {literal(json.loads(case))}"
        prepared = [call for call in self.exchange.calls if _prepares(call)]
        lines = [_comment([f"Before that: {call.method}({_settings(call)})"]) for call in prepared]
        made = ", then ".join(call.method for call in self.asked) or "nothing but that"
        lines.append(_comment([f"What the trainer was given: {made}."]))
        if any(call.method == "save" for call in prepared):
            lines.append("# Before it was saved, a training step had moved its weights.")
        for name, value in self.exchange.beside.items():
            lines += [f"# The {name} that belong to the comparison.", f"{name.upper()} = {literal(value)}"]
        if any("manual_seed" in str(value) for call in self.asked for value in call.arguments.values()):
            lines.append("# Drawn from a seed: with another version of torch the numbers may be others.")
        calls = "".join(self._remark(i) + self._arguments(call) for i, call in enumerate(self.asked))
        judged = [f"# Which of these calls are judged.\nJUDGED = {literal(self.judged)}"] if self.asked else []
        return "\n".join([*lines, f"CALLS = [\n{calls}]", *judged])

    def _remark(self, index: int) -> str:
        return "    # RETURNED is what came of this call.\n" if self.is_against and index in self.judged else ""

    def _arguments(self, call: Call) -> str:
        lines = []
        for name, value in _flattened(call.arguments).items():
            lines.append(f"        {literal(name)}: {_argument(value, name == self.leaf)},\n")
        return f"    {{\n{''.join(lines)}    }},\n"

    # --- the numbers -------------------------------------------------------------------------------------------------

    def _numbers(self) -> str:
        rows = self.exchange.numbers
        write = _whole if all(float(row.allowed) == 0 for row in rows) else _number
        partly = f"# Which of the {self.exchange.total} numbers these are.\nOFFSETS = {literal(self._offsets)}"
        return "\n".join(
            [
                _comment([f"What was compared: {self.failure.what}. {self._expectation()}"]),
                f"PLACES = {_column(literal(row.place) for row in rows)}",
                f"EXPECTED = {_column(write(row.expected) for row in rows)}",
                "# What the trainer returned.",
                f"RETURNED = {_column(write(row.actual) for row in rows)}",
                "# By how much an honest implementation may differ, for rounding.",
                f"ALLOWED = {_column(_number(row.allowed) for row in rows)}",
                *([] if self._is_whole else [partly]),
            ]
        )

    @property
    def _offsets(self) -> list[int]:
        return [row.offset for row in self.exchange.numbers]

    @property
    def _is_whole(self) -> bool:
        """Whether all numbers that were compared are kept."""
        return self._offsets == list(range(self.exchange.total))

    def _expectation(self) -> str:
        if self.is_against:
            return "Expected is what the trainer itself returned for another call."
        name = self.exchange.formula.rpartition(".")[2]
        return f"Expected is what {name}() below gives in float64." if name else ""

    def _fact(self) -> str:
        failure = self.failure
        lines = [_comment(["No numbers were compared: this is a plain fact."])]
        lines.append(f"WHAT = {literal(failure.what)}")
        if failure.expected or failure.actual:
            lines += [f"EXPECTED = {literal(failure.expected)}", f"RETURNED = {literal(failure.actual)}"]
        else:
            lines += ['EXPECTED = "an answer"', "RETURNED = WHAT"]
        return "\n".join(lines)

    # --- the functions -----------------------------------------------------------------------------------------------

    def _main(self, *, with_checkpoint: bool) -> str:
        functions = [self._candidate()]
        if with_checkpoint:
            functions += [_source("checkpoint", name) for name in ("write_checkpoint", "draw")]
        if self.exchange.numbers:
            helpers = ["flat", "differs", "compare", "answers"]
            if self.exchange.formula:
                functions += [*_pasted(self.exchange.formula).definitions.values(), self._formula()]
                helpers.append("plain")
            if self.leaf:
                helpers.append("gradient")
            functions += [_source("comparing", name) for name in helpers]
            functions.append(self._compared("numbers", "All that was compared", self.exchange.reading))
            if self.exchange.formula:
                functions.append(self._compared("of_formula", "The same", self.exchange.of_formula))
        functions.append(self._entry(with_checkpoint))
        return "\n\n\n".join(functions) + '\n\n\nif __name__ == "__main__":\n    sys.exit(main())\n'

    def _candidate(self) -> str:
        names = [tuple(_flattened(call.arguments)) for call in self.asked]
        parameters = ", ".join(names[0]) if len(set(names)) == 1 else "**arguments"
        wanted = "its answer"
        if self.exchange.numbers:
            wanted = self.exchange.wanted or (METHODS[self.method].returns if self.method in METHODS else "")
            wanted = wanted or "the numbers that were compared, in the order of PLACES"
        asked = self.method or (self.exchange.calls[-1].method if self.exchange.calls else "the trainer")
        said = f"Put the call of {asked} here and return {wanted}. While it returns None, RETURNED stands for it."
        text = textwrap.fill(said, WIDTH - 4, subsequent_indent="    ")
        if len(parameters) > WIDTH - 20:
            parameters = "\n" + "".join(f"    {name},\n" for name in parameters.split(", "))
        return f'def candidate({parameters}):\n    """{text}"""'

    def _formula(self) -> str:
        """The function that calls the formula as the adapter was called."""
        name = self.exchange.formula.rpartition(".")[2]
        taken = _parameters(self.exchange.formula)
        given = [key for key in _flattened(self.asked[self.judged[-1]].arguments) if key in taken]
        arguments = [f"{key}=plain(call[{literal(key)}])" for key in given]
        arguments += [f"{key}={literal(value)}" for key, value in self.exchange.options.items() if key in taken]
        inner = ", ".join(arguments)
        if len(inner) > WIDTH - 30:
            inner = "\n        " + ",\n        ".join(arguments) + ",\n    "
        return f'def formula(call):\n    """What the specification gives for a call."""\n    return {name}({inner})'

    def _compared(self, name: str, what: str, reading: str) -> str:
        """The function that takes the compared numbers from the answers, or from what the formula gives for them."""
        more = f" from {'the answers' if name == 'numbers' else 'what the formula gives'}"
        body = reading.replace("LEAF", literal(self.leaf))
        if not self._is_whole:
            *rest, last = body.splitlines()
            body = "\n".join([*rest, last.replace("return ", "found = ", 1), "return [found[i] for i in OFFSETS]"])
        head = f'def {name}(answers, calls):\n    """{what},{more}."""\n'
        return head + textwrap.indent(body, "    ")

    def _entry(self, with_checkpoint: bool) -> str:
        lines = ["def main():", '    """Show the difference; the exit status."""']
        if with_checkpoint:
            lines += [
                '    if sys.argv[1:2] == ["--write-checkpoint"]:',
                "        write_checkpoint(Path(sys.argv[2]))",
                "        return 0",
            ]
        if not self.exchange.numbers:
            return "\n".join([*lines, *_FACT.strip("\n").splitlines()])
        lines.append("    judged = [CALLS[i] for i in JUDGED]")
        if self.exchange.formula:
            lines.append("    right = of_formula([formula(call) for call in judged], judged)")
            if self.is_against:
                lines.append('    print("by the formula, in float64:", *right)')
            else:
                lines += [
                    "    for wanted, found in zip(EXPECTED, right):",
                    "        assert not differs(wanted, found, 1e-9 * max(1.0, abs(wanted))), (wanted, found)",
                ]
        lines += [
            "    found = answers(candidate)",
            "    return compare(RETURNED if found is None else numbers([found[i] for i in JUDGED], judged))",
        ]
        return "\n".join(lines)


_FACT = """
    found = [candidate(**call) for call in CALLS] if "CALLS" in globals() else []
    print(f"what: {WHAT}\\nexpected: {EXPECTED}\\nreturned: {RETURNED}")
    if any(answer is not None for answer in found):
        print(f"candidate: {found}\\nThis is no number: judge by eye whether it is what is expected.")
        return 2
    return 1
"""


def _prepares(call: Call) -> bool:
    return call.role == PREPARED or (call.method in METHODS and METHODS[call.method].prepares)


@cache
def _pasted(formula: str) -> Paste:
    found = Paste()
    found.take(formula)
    return found


@cache
def _parameters(formula: str) -> tuple[str, ...]:
    """The names of a formula's parameters, read off its source."""
    source = _pasted(formula).definitions[formula.rpartition(".")[2]]
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    return tuple(a.arg for a in (*node.args.args, *node.args.kwonlyargs))


def _probe(stored: Any) -> probes.Probe | None:
    """The checkpoint of a case, where it has one."""
    if not isinstance(stored, dict):
        return None
    if stored.get(storing.TYPE) == "Probe":
        found: probes.Probe = storing.from_json(stored)
        return found
    return next((p for value in stored.values() if (p := _probe(value)) is not None), None)


def _flattened(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with the fields of a batch, of options or of a checkpoint in their place."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, dict) and storing.TYPE in value:
            flat |= {key: item for key, item in value.items() if key != storing.TYPE}
        else:
            flat[name] = value
    return flat


def _argument(value: Any, leaf: bool = False) -> str:
    if isinstance(value, dict) and "made" in value:
        return value["made"] + (".requires_grad_()" if leaf else "")
    if _is_tensor(value):
        if value["tensor"] is None:  # as an earlier version kept those that are large
            return f"None,  # a {value['dtype']} tensor of shape {tuple(value['shape'])}, not kept"
        return tensor(value, leaf=leaf)
    if isinstance(value, list) and value and all(_is_tensor(item) for item in value):
        return "[" + ", ".join(tensor(item) for item in value) + "]"
    return literal(value)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and "tensor" in value


def _settings(call: Call) -> str:
    return ", ".join(f"{name}={literal(value)}" for name, value in _flattened(call.arguments).items())


def _finding(failure: Failure) -> str:
    return f"{failure.sentence} ({failure.count})." if failure.count else f"{failure.sentence}."


def _agrees(failure: Failure, exchange: Exchange) -> bool:
    """Whether the numbers hold the one that the failure shows."""
    found = {(f"{float(row.expected):.7g}", f"{float(row.actual):.7g}") for row in exchange.numbers}
    return not found or (failure.expected, failure.actual) in found


def _tested(report: Report) -> str:
    env, subject = report.environment, report.subject
    options = "".join(f", {key}={value}" for key, value in subject.get("options", {}).items())
    versions = ", ".join(f"{name} {env[name]}" for name in ("torch", "transformers", "peft") if env.get(name))
    made = f"rlhf-conformance {env['rlhf-conformance']}" if env.get("rlhf-conformance") else "rlhf-conformance"
    return (
        f"Trainer: {subject.get('name', 'unknown')} ({subject.get('adapter', 'unknown')}{options}), with {versions}, "
        f"Python {env.get('python')}, on {env.get('device')} in {env.get('dtype')}. Found by {made}."
    )


def _comment(paragraphs: Iterable[str]) -> str:
    lines = [row for text in paragraphs for row in (textwrap.wrap(line(text), WIDTH) or [""])]
    return "\n".join(f"# {row}".rstrip() for row in lines)


def _column(values: Iterable[str]) -> str:
    """A list as source, one value on a line."""
    return "[\n" + "".join(f"    {value},\n" for value in values) + "]"


def _number(text: str) -> str:
    return literal(float(text))


def _whole(text: str) -> str:
    """Of numbers that must agree exactly: ids and masks without a point."""
    return repr(int(float(text))) if float(text).is_integer() else _number(text)


_MODULES = ("itertools", "json", "math", "sys")


def _imports(text: str) -> str:
    used = [f"import {name}" for name in _MODULES if re.search(rf"\b{name}\.", text)]
    named = {
        "collections.abc": ("Callable", "Collection", "Iterable", "Sequence"),
        "pathlib": ("Path",),
        "typing": ("Any", "TypeVar"),
    }
    lines = ["from __future__ import annotations", "", *used]
    for module, names in named.items():
        wanted = [name for name in names if re.search(rf"\b{name}\b", text)]
        if wanted:
            lines.append(f"from {module} import {', '.join(wanted)}")
    return "\n".join([*lines, "", "import torch"]) if "torch." in text else "\n".join(lines)


@cache
def _functions(module: str) -> dict[str, str]:
    text = resources.files("rlhf_conformance.reporting.standalone").joinpath(f"{module}.py").read_text(encoding="utf-8")
    nodes = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    return {node.name: ast.get_source_segment(text, node) or "" for node in nodes}


def _source(module: str, name: str) -> str:
    """The source of a function of `standalone`."""
    return _functions(module)[name]


def _checkpoint(probe: probes.Probe) -> str:
    head = None if probe.headless else probe.head_name
    generation = probes.generation_config_of(probe) if probe.head_name is None else {}
    return "\n".join(
        [
            _comment(["The model: random weights from a seed. See write_checkpoint()."]),
            f"CONFIG = {_dictionary(probe_files.config(probe))}",
            f"GENERATION_CONFIG = {literal(generation)}",
            f"SHAPES = {_dictionary(probe_files.shapes(probe))}",
            f"HEAD_NAME = {literal(head)}",
            f"HEAD_SCALE = {literal(probe.head_scale)}",
            f"HEAD_BIAS = {literal(probes.HEAD_BIAS if probe.head_bias else None)}",
            f"HIDDEN_SIZE = {probes.HIDDEN_SIZE}",
            f"SEED = {probes.SEED}",
        ]
    )


def _dictionary(items: dict[str, Any]) -> str:
    return "{\n" + "".join(f"    {literal(key)}: {literal(value)},\n" for key, value in items.items()) + "}"

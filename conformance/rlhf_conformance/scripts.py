"""The standalone script of a failure: the case written out, the expected numbers as literals, torch and nothing else.

Something to paste into a bug report: it prints expected and returned numbers side by side and ends with status 1 where
they differ. Whoever mends the trainer puts the call into `candidate` and runs it again. This module imports no torch.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import rlhf_spec.clauses
import rlhf_spec.policy_loss
import rlhf_spec.value_loss
from rlhf_conformance import probe_files, probes
from rlhf_conformance.adapter import PREPARING
from rlhf_conformance.cases import storing
from rlhf_conformance.literals import literal, tensor
from rlhf_conformance.results import Call, Exchange, Failure, Report, Result

WIDTH = 110
CASE_NAMES = {
    "policy_loss": {"log_probs": "new", "old_log_probs": "old", "advantages": "target", "action_mask": "mask"},
    "value_loss": {"values": "new", "old_values": "old", "returns": "target", "action_mask": "mask"},
}
"""The arguments of the losses, as a case calls them."""
LEAF = {"policy_loss": "log_probs", "value_loss": "values", "token_log_probs": "logits"}
"""The argument that gradients are taken with respect to."""
RETURNS = {
    "policy_loss": "the loss, a tensor with one number",
    "value_loss": "the loss, a tensor with one number",
    "token_log_probs": "the log-prob of each label, a tensor shaped like labels",
    "token_entropy": "the entropy of each position",
}
"""What a candidate returns for a method; of the others, the numbers that were compared."""


ANSWERED_FIRST = (
    *("actor.padding-invariance", "reward.padding-invariance", "critic.padding-invariance"),
    *("actor.garbage-under-mask", "reward.garbage-under-mask", "critic.garbage-under-mask"),
    "sequences.rows-independent",
)
"""Clauses that judge the first of their calls by the others; all others judge the last."""


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

    @property
    def asked(self) -> list[Call]:
        """The calls that answered."""
        return [call for call in self.exchange.calls if call.method not in PREPARING]

    @property
    def method(self) -> str:
        """The method that answered last."""
        return self.asked[-1].method if self.asked else ""

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

    @property
    def _judged(self) -> int:
        """Which of the calls gave the numbers that are judged."""
        return 0 if self.result.clause in ANSWERED_FIRST else -1

    @property
    def _is_pair(self) -> bool:
        """Whether answers of the trainer are compared with each other."""
        methods = [call.method for call in self.asked]
        return len(methods) > 1 and len(set(methods)) == 1 and not self._is_split

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
        prepared = [call for call in self.exchange.calls if call.method in PREPARING]
        lines = [_comment([f"Before that: {call.method}({_settings(call)})"]) for call in prepared]
        made = ", then ".join(call.method for call in self.asked) or "nothing but that"
        lines.append(_comment([f"What the trainer was given: {made}."]))
        seeds = self._from_seed()
        calls = "".join(self._remark(i) + self._arguments(call) for i, call in enumerate(self.asked))
        if any(call.method == "save" for call in prepared):
            lines.append("# Before it was saved, a training step had moved its weights.")
        if "weights" in self.failure.stored:
            seeds.append("# The answers' weights in the sum whose gradient is compared, a row for each sample.")
            seeds.append(f"WEIGHTS = {literal(self.failure.stored['weights'])}")
        return "\n".join([*lines, *seeds, f"CALLS = [\n{calls}]"])

    def _remark(self, index: int) -> str:
        is_judged = index == self._judged % len(self.asked)
        return "    # RETURNED is what came of this call.\n" if self._is_pair and is_judged else ""

    def _arguments(self, call: Call) -> str:
        lines = []
        for name, value in _flattened(call.arguments).items():
            leaf = self._is_gradient and LEAF.get(call.method) == name
            lines.append(f"        {literal(name)}: {self._value(call, name, value, leaf)},\n")
        return f"    {{\n{''.join(lines)}    }},\n"

    def _value(self, call: Call, name: str, value: Any, leaf: bool = False) -> str:
        if _is_tensor(value):
            return tensor(value, leaf=leaf) if value["tensor"] is not None else self._large(call, name, value, leaf)
        if isinstance(value, list) and value and all(_is_tensor(item) for item in value):
            return "[" + ", ".join(tensor(item) for item in value) + "]"
        return literal(value)

    def _large(self, call: Call, name: str, value: dict[str, Any], leaf: bool) -> str:
        """A tensor that is too large to be written out: a few rows repeated, or made from a seed."""
        end = ".requires_grad_()" if leaf else ""
        if call.method in CASE_NAMES:
            rows = _plain_case(self.failure.stored)[CASE_NAMES[call.method][name]]
            times = value["shape"][1] // len(rows[0])
            small = tensor({"tensor": rows, "dtype": value["dtype"]})
            return f"{small}.repeat(1, {times}){end}"
        case = self.failure.stored
        shape = tuple(value["shape"])
        if name == "labels":
            generator = f"torch.Generator().manual_seed({case['seed'] + 1})"
            return f"torch.randint({case['vocab_size']}, {shape}, generator={generator})"
        noise = f"torch.randn({shape}, generator=torch.Generator().manual_seed({case['seed']}))"
        scaled = f"({noise} * {literal(case['scale'])} + {literal(case['offset'])})"
        return f"{scaled}.to(torch.{value['dtype']}){end}"

    def _from_seed(self) -> list[str]:
        large = any(_is_tensor(v) and v["tensor"] is None for call in self.asked for v in call.arguments.values())
        if large and self.method not in CASE_NAMES:
            return ["# Drawn from a seed: with another version of torch the numbers may be others."]
        return []

    # --- the numbers -------------------------------------------------------------------------------------------------

    @property
    def _is_gradient(self) -> bool:
        return self.failure.what.startswith("gradient ") and self.failure.what != "gradient at labels -100"

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
        formula = self._formula()
        if formula is None:
            return "Expected is what the trainer itself returned for another call." if self._is_pair else ""
        if formula.exact:
            return f"Expected is what {formula.name}() below gives in float64."
        return "Expected is what the trainer itself returned for another call."

    def _formula(self) -> _Formula | None:
        what, stored = self.failure.what, self.failure.stored
        if self.method in CASE_NAMES:
            return _loss_formula(self)
        if stored["type"] != "LogitsCase" or what.startswith(("answer of", "gradient at")):
            return None
        if what.startswith(("log-prob", "gradient")) and " in turn " not in what:
            return _Formula("token_log_probs", exact=True)
        return _Formula("token_entropy", exact=True) if what == "entropy" else None

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
        formula = self._formula() if self.exchange.numbers else None
        if self.exchange.numbers:
            helpers = ["flat", "differs", "compare", "answers"]
            if formula is not None:
                functions += [_source("formulas", name) for name in formula.functions]
                helpers += ["exact", "_double"]
            if self._is_gradient and self.method in LEAF:
                helpers.append("gradient")
            functions += [_source("comparing", name) for name in helpers]
            functions.append(self._compared())
        functions.append(self._entry(formula, with_checkpoint))
        return "\n\n\n".join(functions) + '\n\n\nif __name__ == "__main__":\n    sys.exit(main())\n'

    def _candidate(self) -> str:
        names = [tuple(_flattened(call.arguments)) for call in self.asked]
        parameters = ", ".join(names[0]) if len(set(names)) == 1 else "**arguments"
        wanted = "the numbers that were compared, in the order of PLACES"
        if not self.exchange.numbers:
            wanted = "its answer"
        elif len({call.method for call in self.asked}) == 1 and (self.method in LEAF or not self._is_gradient):
            wanted = RETURNS.get(self.method, wanted)
        asked = self.method or (self.exchange.calls[-1].method if self.exchange.calls else "the trainer")
        said = f"Put the call of {asked} here and return {wanted}. While it returns None, RETURNED stands for it."
        text = textwrap.fill(said, WIDTH - 4, subsequent_indent="    ")
        if len(parameters) > WIDTH - 20:
            parameters = "\n" + "".join(f"    {name},\n" for name in parameters.split(", "))
        return f'def candidate({parameters}):\n    """{text}"""'

    def _compared(self) -> str:
        """The function that takes the compared numbers from the answers."""
        text = self._compared_numbers()
        if self._is_whole:
            return text
        head, _, found = text.rpartition("    return ")
        return f"{head}    found = {found}\n    return [found[i] for i in OFFSETS]"

    def _compared_numbers(self) -> str:
        head = 'def numbers(answers, calls):\n    """All that was compared, from the answers to the calls."""\n'
        leaf = literal(LEAF.get(self.method, ""))
        if self._is_gradient and self.method == "token_log_probs":
            return (
                f"{head}    # The gradient of the sum of 1, 2, 3, ... times the log-probs.\n"
                "    weights = torch.arange(1.0, answers[-1].numel() + 1).reshape(answers[-1].shape)\n"
                f"    return flat(gradient((answers[-1] * weights).sum(), calls[-1][{leaf}]))"
            )
        if self._is_gradient and self.method in LEAF:
            if self._is_split:
                return (
                    f"{head}    return flat([gradient(answer, call[{leaf}]) for answer, call in zip(answers, calls)])"
                )
            flip = ".flip(0)  # the rows were given in reverse order" if self._is_reversed else ""
            found = f"gradient(answers[-1], calls[-1][{leaf}])"
            return f"{head}    gradients = {found}{flip}\n    return flat(gradients)"
        if self._is_split:
            return f"{head}    return [sum(float(answer) for answer in answers)]  # of the micro-batches"
        return f"{head}    return flat(answers[{self._judged}])"

    @property
    def _is_split(self) -> bool:
        return self.failure.stored["type"] == "SplitCase"

    @property
    def _is_reversed(self) -> bool:
        return self.result.clause.endswith(".batch-order") and self._is_gradient

    def _entry(self, formula: _Formula | None, with_checkpoint: bool) -> str:
        lines = ["def main():", '    """Show the difference; the exit status."""']
        if with_checkpoint:
            lines += [
                '    if sys.argv[1:2] == ["--write-checkpoint"]:',
                "        write_checkpoint(Path(sys.argv[2]))",
                "        return 0",
            ]
        if not self.exchange.numbers:
            return "\n".join([*lines, *_FACT.strip("\n").splitlines()])
        if formula is not None:
            more = ", count_empty_rows=True" if formula.count_empty_rows else ""
            lines += [
                "    calls = [exact(call) for call in CALLS]",
                f"    formula = numbers([{formula.name}(**call{more}) for call in calls], calls)",
            ]
            if formula.exact:
                lines += [
                    "    for wanted, found in zip(EXPECTED, formula):",
                    "        assert not differs(wanted, found, 1e-9 * max(1.0, abs(wanted))), (wanted, found)",
                ]
            else:
                lines.append('    print("by the formula, in float64:", *formula)')
        lines += [
            "    found = answers(candidate)",
            "    return compare(RETURNED if found is None else numbers(found, CALLS))",
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


@dataclass(frozen=True)
class _Formula:
    """Which function of `standalone.formulas` gives the numbers.

    exact   whether the expected numbers are the formula's; else they are the trainer's own for another call
    """

    name: str
    exact: bool
    count_empty_rows: bool = False

    @property
    def functions(self) -> list[str]:
        return [self.name, *(["aggregate"] if self.name in CASE_NAMES else [])]


def _loss_formula(made: _Script) -> _Formula | None:
    what = made.failure.what
    if what.startswith("answer of"):
        return None
    if what == "clip fraction":
        return _Formula("clip_fraction", exact=True)
    if what.startswith("approximate KL"):
        return _Formula("approx_kl_k3" if "(k3)" in what else "approx_kl_k1", exact=True)
    for counted in (False, True):
        truth = _loss_numbers(made, counted)
        if all(_near(truth[row.offset], float(row.expected)) for row in made.exchange.numbers):
            return _Formula(made.method, exact=True, count_empty_rows=counted)
    return _Formula(made.method, exact=False)


def _loss_numbers(made: _Script, counted: bool) -> list[float]:
    """What the specification gives for the calls."""
    calls = made.asked if made._is_split else made.asked[-1:]
    found: list[list[float]] = []
    total = 0.0
    for call in calls:
        tables, options = _loss_arguments(made, call)
        options = {**options, "count_empty_rows": counted}
        if call.method == "policy_loss":
            total += rlhf_spec.policy_loss.policy_loss(*tables, **options)
            found += rlhf_spec.policy_loss.policy_loss_gradient(*tables, **options)
        else:
            total += rlhf_spec.value_loss.value_loss(*tables, **options)
            found += rlhf_spec.value_loss.value_loss_gradient(*tables, **options)
    if not made._is_gradient:
        return [total]
    return [x for row in (found[::-1] if made._is_reversed else found) for x in row]


def _loss_arguments(made: _Script, call: Call) -> tuple[list[Any], dict[str, Any]]:
    tables = []
    for name, key in CASE_NAMES[call.method].items():
        value = call.arguments[name]
        rows = value["tensor"]
        if rows is None:
            small = _plain_case(made.failure.stored)[key]
            rows = [row * (value["shape"][1] // len(row)) for row in small]
        tables.append(storing.from_json(rows))
    options = {k: v for k, v in call.arguments["options"].items() if k != storing.TYPE}
    return tables, options


def _near(a: float, b: float) -> bool:
    return a == b or (a != a and b != b) or abs(a - b) <= 1e-9 * max(1.0, abs(b))


def _plain_case(stored: dict[str, Any]) -> dict[str, Any]:
    """The rectangle of a loss within whatever wraps it."""
    return _plain_case(stored["case"]) if "case" in stored else stored


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


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and "tensor" in value


def _settings(call: Call) -> str:
    return ", ".join(f"{name}={literal(value)}" for name, value in _flattened(call.arguments).items())


def _finding(failure: Failure) -> str:
    where = f" at {failure.place}" if failure.place else ""
    said = f"{failure.what}{where}"
    if failure.expected or failure.actual:
        said += f": expected {failure.expected}, got {failure.actual}"
    if failure.count:
        said += f" ({failure.count})"
    return said + "."


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
    lines = [line for text in paragraphs for line in (textwrap.wrap(" ".join(text.split()), WIDTH) or [""])]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _column(values: Iterable[str]) -> str:
    """A list as source, one value on a line."""
    return "[\n" + "".join(f"    {value},\n" for value in values) + "]"


def _number(text: str) -> str:
    return literal(float(text))


def _whole(text: str) -> str:
    """Of numbers that must agree exactly: ids and masks without a point."""
    return repr(int(float(text))) if float(text).is_integer() else _number(text)


_MODULES = ("json", "math", "sys")


def _imports(text: str) -> str:
    used = [f"import {name}" for name in _MODULES if re.search(rf"\b{name}\.", text)]
    typing = [name for name in ("Any",) if re.search(rf"\b{name}\b", text)]
    lines = ["from __future__ import annotations", "", *used]
    if "Callable" in text:
        lines.append("from collections.abc import Callable")
    if "Path(" in text:
        lines.append("from pathlib import Path")
    if typing:
        lines.append(f"from typing import {', '.join(typing)}")
    return "\n".join([*lines, "", "import torch"]) if "torch." in text else "\n".join(lines)


@cache
def _functions(module: str) -> dict[str, str]:
    text = resources.files("rlhf_conformance.standalone").joinpath(f"{module}.py").read_text(encoding="utf-8")
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
            f"HIDDEN_SIZE = {probes.HIDDEN_SIZE}",
            f"SEED = {probes.SEED}",
        ]
    )


def _dictionary(items: dict[str, Any]) -> str:
    return "{\n" + "".join(f"    {literal(key)}: {literal(value)},\n" for key, value in items.items()) + "}"

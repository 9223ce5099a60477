"""The mutants of real trainers: their engine on a toy package, their tables, and the document that they make."""

import ast
from pathlib import Path

import pytest

import rlhf_spec.clauses
from proof import mutants
from proof.mutants import Edit, Mutant, MutationError, mutate

TOY = """
class Low:
    def loss(self, a, b, mask):
        return (torch.min(a, b) * mask).sum() / mask.sum()

class High:
    def loss(self, a, b, mask):
        if mask is None:
            return torch.min(a, b).mean()
        return (torch.min(a, b) * mask).sum() / mask.sum()

def outer(rows):
    def inner(row):
        return row[:, :-1] - 1
    return [inner(row) for row in rows]

if True:
    def late(x):
        x[:, :-1] = 1
        return x - 1
"""
PACKAGES = {"torchtune": {"torchtune", "recipes"}}
"""Those of a trainer, where it has more than one of its own name."""
ALL = [(trainer, mutant) for trainer in mutants.NAMES for mutant in mutants.mutants_of(trainer)]


def changes(function, edit, source=TOY):
    """The lines that the edit changes, as (before, after)."""
    before, after = ast.unparse(ast.parse(source)).splitlines(), mutate(source, function, edit).splitlines()
    return [(b.strip(), a.strip()) for b, a in zip(before, after, strict=True) if b != a]


# --- the engine ---------------------------------------------------------------------------------------------------


def test_an_edit_changes_one_place():
    assert changes("Low.loss", Edit("_a / mask.sum()", "_a")) == [
        ("return (torch.min(a, b) * mask).sum() / mask.sum()", "return (torch.min(a, b) * mask).sum()")
    ]


def test_the_nth_of_several_places_is_counted_from_the_top():
    first, second = (changes("High.loss", Edit("torch.min", "torch.max", nth=n, of=2)) for n in (1, 2))
    assert first == [("return torch.min(a, b).mean()", "return torch.max(a, b).mean()")]
    assert second[0][1] == "return (torch.max(a, b) * mask).sum() / mask.sum()"


def test_the_class_decides_between_functions_of_one_name():
    tree = ast.parse(mutate(TOY, "Low.loss", Edit("torch.min", "torch.max")))
    text = {name: ast.unparse(mutants.definition(tree, f"{name}.loss")) for name in ("Low", "High")}
    assert "torch.max" in text["Low"]
    assert "torch.max" not in text["High"]


def test_a_function_inside_of_a_function_is_found():
    assert changes("outer.inner", Edit("_a - 1", "_a")) == [("return row[:, :-1] - 1", "return row[:, :-1]")]


def test_a_function_under_a_condition_is_found():
    assert changes("late", Edit("_a - 1", "_a + 1")) == [("return x - 1", "return x + 1")]


def test_the_target_of_an_assignment_can_be_changed():
    assert changes("late", Edit("x[:, :-1]", "x[:, 1:]")) == [("x[:, :-1] = 1", "x[:, 1:] = 1")]


def test_what_a_hole_stood_for_is_kept():
    assert changes("Low.loss", Edit("torch.min(_a, _b)", "torch.max(_b, _a)"))[0][1].startswith(
        "return (torch.max(b, a) * mask)"
    )


def test_the_same_hole_stands_for_the_same_expression():
    source = "def f(x, y):\n    return x * y + x * x"
    assert changes("f", Edit("_a * _a", "_a"), source) == [("return x * y + x * x", "return x * y + x")]


def test_a_number_is_not_a_truth_value():
    assert changes("f", Edit("1", "0"), "def f(x=True):\n    return x + 1") == [("return x + 1", "return x + 0")]


@pytest.mark.parametrize(
    ("function", "edit", "said"),
    [
        ("Low.loss", Edit("torch.max", "torch.min"), "0 places in Low.loss look like torch.max, not 1"),
        ("High.loss", Edit("torch.min", "torch.max"), "2 places in High.loss look like torch.min, not 1"),
        ("High.loss", Edit("torch.min", "torch.max", nth=3, of=2), "High.loss has no place 3 of 2"),
        ("Low.gain", Edit("torch.min", "torch.max"), "0 definitions of gain in Low.gain, not one"),
        ("Low.loss", Edit("torch.min", "torch.min"), "`torch.min` becomes `torch.min` changes nothing in Low.loss"),
        ("Low.loss", Edit("torch.min", "_a"), "nothing stands for _a in _a"),
        ("Low.loss", Edit("_a", "0"), "_a looks like everything"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_an_edit_that_does_not_fit_is_refused(function, edit, said):
    with pytest.raises(MutationError) as refused:
        mutate(TOY, function, edit)
    assert str(refused.value) == said


ADAPTER = """
import toy.losses
from rlhf_conformance.adapter import Adapter

class Toy(Adapter):
    def value_loss(self, values, old_values, returns, action_mask, options):
        return toy.losses.value_loss(values, returns, action_mask)
"""
VALUE_LOSS = """
def value_loss(values, returns, mask):
    return 0.5 * ((values - returns) ** 2 * mask).sum() / mask.sum().clamp(min=1)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The name of an adapter of a package that is installed: a value loss without a clip."""
    package = tmp_path / "installed" / "toy"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "losses.py").write_text(VALUE_LOSS)
    adapter = tmp_path / "adapter.py"
    adapter.write_text(ADAPTER)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return f"{adapter}:Toy"


def test_a_mutant_is_caught_in_a_copy(toy, tmp_path):
    mutant = Mutant("half", "toy.losses:value_loss", Edit("0.5 * _a", "_a"), "value-loss.half")
    assert mutants.judged(toy, mutant, ["value-loss.unclipped", "value-loss.half"], original=True) == {
        "value-loss.unclipped": [],
        "value-loss.half": [],
    }
    wrong = {"value-loss.half": ["fail: loss"]}
    assert mutants.judged(toy, mutant, ["value-loss.half", "value-loss.unclipped"]) == wrong
    both = {**wrong, "value-loss.unclipped": ["fail: loss"]}
    assert mutants.judged(toy, mutant, list(both), wrong) == both
    assert (tmp_path / "installed" / "toy" / "losses.py").read_text() == VALUE_LOSS


def test_another_quantity_of_a_clause_that_is_red_tells_of_a_mutant():
    assert mutants.new_in(["fail: loss"], ())
    assert mutants.new_in(["fail: loss"], ["fail: gradient"])
    assert not mutants.new_in(["fail: loss"], ["fail: gradient", "fail: loss"])
    assert not mutants.new_in(["fail: loss"], [""])
    assert not mutants.new_in([], ())


def test_a_package_that_is_not_the_copy_is_refused(toy, tmp_path):
    task = {"adapter": toy, "options": {}, "declares": {}, "module": "toy.losses", "folder": str(tmp_path / "copy")}
    with pytest.raises(MutationError, match=r"^toy\.losses was imported from elsewhere$"):
        mutants.ask(task)


# --- the tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", mutants.NAMES)
def test_a_trainer_has_enough_mutants_of_different_names(trainer):
    names = [mutant.name for mutant in mutants.mutants_of(trainer)]
    assert len(set(names)) == len(names) >= 22


@pytest.mark.parametrize("trainer", mutants.NAMES)
def test_no_mutation_is_made_twice(trainer):
    made = [(mutant.function, mutant.edit) for mutant in mutants.mutants_of(trainer)]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(("trainer", "mutant"), ALL, ids=lambda value: getattr(value, "name", value))
def test_a_mutant_is_well_said(trainer, mutant):
    assert mutant.function.split(".")[0] in PACKAGES.get(trainer, {trainer})
    assert mutant.clause in {clause.slug for clause in rlhf_spec.clauses.clauses()}
    for text in (mutant.edit.find, mutant.edit.replace):
        ast.parse(text, mode="eval")
        assert len(text) <= 80


@pytest.mark.parametrize("trainer", mutants.NAMES)
def test_a_table_is_data(trainer):
    tree = ast.parse(Path(mutants.__file__).with_name(f"mutants_{trainer}.py").read_text())
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in tree.body)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert calls == {"Mutant", "Edit"}


# --- what was measured --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", mutants.NAMES)
def test_every_mutant_was_tried_as_it_stands(trainer):
    rows = mutants.read(trainer)["mutants"]
    assert {name: (row["function"], row["edit"], row["clause"], row["why"]) for name, row in rows.items()} == {
        m.name: (m.function, str(m.edit), m.clause, m.why or None) for m in mutants.mutants_of(trainer)
    }


@pytest.mark.parametrize("trainer", mutants.NAMES)
def test_what_goes_uncaught_has_a_reason(trainer):
    assert mutants.complaints(trainer, mutants.read(trainer)["mutants"]) == []


def test_the_document_is_what_was_measured():
    assert (mutants.DOCS / "mutants.md").read_text() == mutants.page()

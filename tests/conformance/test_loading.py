"""From what is typed to an adapter. What is refused, and how, is in `test_hostile_adapters.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlhf_conformance.adapter import METHODS, Adapter, declarations, provided
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.interface import LAYOUTS, LOADED_BY_MOST
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.run.loading import LoadError, load_adapter, parse_options, short_names, validate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize(
    "pair, value",
    [
        ("packing=true", True),
        ("packing=False", False),
        ("path=none", None),
        ("rank=8", 8),
        ("rank=-1", -1),
        ("rate=1e-3", 1e-3),
        ("rate=0.5", 0.5),
        ("attention=eager", "eager"),
        ("query=a=b", "a=b"),
        ("name=", ""),
        ("version=1.2.3", "1.2.3"),
    ],
)
def test_the_value_of_an_option(pair, value):
    (found,) = parse_options([pair]).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("pair", ["packing", "=true", "my mode=1", "1st=2", "a.b=1", ""])
def test_an_option_needs_a_name_and_a_value(pair):
    with pytest.raises(LoadError, match="wanted NAME=VALUE"):
        parse_options([pair])


def test_options_reach_the_constructor(hostile):
    adapter = load_adapter(hostile("loading.py:Modes"), {"packing": True, "rank": 4})
    assert (adapter.packing, adapter.rank) == (True, 4)


def test_a_path_from_the_current_folder(hostile, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(Path(hostile("loading.py")).read_text())
    monkeypatch.chdir(tmp_path)
    assert type(load_adapter("mine.py:Modes")).__name__ == "Modes"
    assert type(load_adapter("./mine.py:Modes")).__name__ == "Modes"


def test_a_module_from_the_current_folder(hostile, monkeypatch, tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "mine_too.py").write_text(Path(hostile("loading.py")).read_text())
    monkeypatch.chdir(tmp_path)
    assert type(load_adapter("pkg.mine_too:Modes")).__name__ == "Modes"


def test_an_adapter_file_imports_its_neighbors(monkeypatch, tmp_path):
    (tmp_path / "a_neighbor_of_the_adapter.py").write_text("LAYOUTS = ('padded', 'packed')\n")
    (tmp_path / "with_neighbor.py").write_text(
        "from a_neighbor_of_the_adapter import LAYOUTS\n"
        "from rlhf_conformance import Adapter\n\n\nclass Mine(Adapter):\n    layouts = LAYOUTS\n"
    )
    assert load_adapter(str(tmp_path / "with_neighbor.py:Mine")).layouts == ("padded", "packed")


def test_an_instance_in_a_module_is_taken_as_it_is(hostile):
    assert load_adapter(hostile("loading.py:instance")).rank == 8


def test_the_short_names_are_those_of_the_entry_points():
    """From a source tree they are found as files, from an installation as entry points."""
    pyproject = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    entries = pyproject["project"]["entry-points"]["rlhf_conformance.adapters"]
    assert set(entries) <= set(short_names())
    for name, location in entries.items():
        assert short_names()[name].partition(":")[0] == location.partition(":")[0]


def test_the_reference_has_a_short_name_and_modes():
    assert isinstance(load_adapter("reference"), Reference)
    assert load_adapter("reference", {"attention": "eager", "lora": True}).lora is True


def test_the_reference_provides_everything():
    assert provided(Reference()) == tuple(name for name, row in METHODS.items() if not row.optional)


def test_a_bare_adapter_provides_nothing():
    assert provided(Adapter()) == ()


def test_a_method_of_a_base_class_counts_as_provided():
    class Base(Adapter):
        def value_loss(self, *args):
            return None

    class Mine(Base):
        pass

    assert provided(Mine()) == ("value_loss",)


def test_a_method_that_is_none_in_a_mode_is_not_provided():
    class Modal(Reference):
        def __init__(self, mode="all"):
            super().__init__()
            if mode == "losses":
                self.generate = None

    assert "generate" in provided(Modal())
    assert set(provided(Modal())) - set(provided(Modal("losses"))) == {"generate"}
    assert checks()["actor.generate"].not_provided(Modal("losses")) == "the adapter has no generate"


def test_the_defaults_are_valid_declarations():
    found = declarations(Adapter())
    assert found["layouts"] == ("padded",)
    assert found["architectures"] == LOADED_BY_MOST


@pytest.mark.parametrize(
    "name, value",
    [
        ("layouts", "padded"),
        ("layouts", ()),
        ("layouts", ("padded", "zigzag")),
        ("layouts", None),
        ("layouts", 3),
        ("layouts", {"left", "right"}),
        ("architectures", ("bert",)),
        ("aggregations", ("mean",)),
        ("aggregations", {}),
        ("head_names", "score"),
        ("head_names", ()),
        ("ignored_label", -100),
        ("stop_ids", "many"),
        ("count_empty_rows", 1.5),
        ("count_empty_rows", "no"),
        ("kl_metric", "k4"),
        ("packed_labels", None),
        ("temperature", 1.0),
        ("dual_clip", None),
        ("global_count", "yes"),
    ],
)
def test_a_declaration_that_there_is_not_is_refused_by_its_name(name, value):
    adapter = Adapter()
    setattr(adapter, name, value)
    with pytest.raises(LoadError, match=rf"Adapter\.{name} = "):
        validate(adapter)


@pytest.mark.parametrize("name, value", [("layouts", list(LAYOUTS)), ("head_names", ["v_head"])])
def test_a_list_will_do_for_a_tuple(name, value):
    adapter = Adapter()
    setattr(adapter, name, value)
    validate(adapter)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("token_logprobs", "token_log_probs"),
        ("policyloss", "policy_loss"),
        ("proces_sequences", "process_sequences"),
        ("load_reward", None),
        ("helper", None),
        ("aggregation", "aggregations"),
        ("layout", "layouts"),
        ("head_name", "head_names"),
        ("_token_logprobs", None),
    ],
)
def test_a_name_that_is_nearly_one_of_the_suite_is_asked_about(name, meant):
    adapter = type("Mine", (Adapter,), {name: lambda self: None})()
    if meant is None:
        validate(adapter)
    else:
        with pytest.raises(LoadError, match=f"Mine.{name} is unknown to the suite; is '{meant}' meant"):
            validate(adapter)

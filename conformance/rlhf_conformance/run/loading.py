"""From what a user types to an adapter: names, paths, options. Errors name the cause and the mend."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_conformance import adapters
from rlhf_conformance.adapter import DECLARATIONS, METHODS, Adapter, declarations, provided
from rlhf_conformance.methods import DeclarationError

ENTRY_POINTS = "rlhf_conformance.adapters"


class LoadError(Exception):
    """The adapter cannot be loaded: the message is for the user, no traceback is needed."""


class UsageError(Exception):
    """The run was asked for a device, a clause or a mode that does not exist; the message is for the user."""


def load_adapter(name: str, options: Mapping[str, Any] | None = None) -> Adapter:
    """The adapter called `name`, made with `options`.

    `name` is "package.module:Name", "path/to/file.py:Name", or a short name. Raises LoadError.
    """
    adapter = _construct(_find(name), name, dict(options or {}))
    validate(adapter)
    return adapter


def validate(adapter: Any) -> None:
    """Raises LoadError where something is not an adapter, declares what it may not, or misspells a name."""
    if isinstance(adapter, type) and issubclass(adapter, Adapter):
        raise LoadError(f"{adapter.__name__} is a class: pass an instance, {adapter.__name__}()")
    if not isinstance(adapter, Adapter):
        raise LoadError(f"{type(adapter).__name__} is not an adapter: subclass rlhf_conformance.Adapter")
    failed = None
    try:
        declarations(adapter)
        provided(adapter)
    except DeclarationError as error:
        failed = LoadError(str(error))
    except Exception as error:  # a property may do anything
        failed = LoadError(f"{type(adapter).__name__} cannot be looked into: {_said(error)}")
    if failed is not None:
        raise failed
    for name in _own_names(adapter):
        near = difflib.get_close_matches(name, [*METHODS, *DECLARATIONS], n=1, cutoff=0.85)
        if near and not hasattr(Adapter, name):
            raise LoadError(f"{type(adapter).__name__}.{name} is unknown to the suite; is {near[0]!r} meant?")


def _own_names(adapter: Adapter) -> list[str]:
    return [
        n for kind in type(adapter).__mro__ if issubclass(kind, Adapter) for n in vars(kind) if not n.startswith("_")
    ]


def short_names() -> dict[str, str]:
    """Short names of installed adapters and where they are; the bundled ones also from a source tree."""
    bundled = {
        path.stem: f"{adapters.__name__}.{path.stem}"
        for path in Path(str(adapters.__file__)).parent.glob("*.py")
        if not path.stem.startswith("_") and not path.stem.endswith(("_losses", "_standins"))
    }
    installed = {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    return {**bundled, **installed}


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """["packing=true", "rank=8"] -> {"packing": True, "rank": 8}. Raises LoadError for what is not NAME=VALUE."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise LoadError(f"option {pair!r}: wanted NAME=VALUE, as packing=true")
        options[key] = _value(text)
    return options


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _find(name: str) -> Any:
    if ":" not in name:
        return _by_short_name(name)
    if name.startswith(("fault:", "twin:")):
        return _from_library(*name.split(":", 1))
    location, _, attribute = name.rpartition(":")
    module = _from_file(location) if location.endswith(".py") else _from_module(location)
    return _attribute(module, attribute, location)


def _by_short_name(name: str) -> Any:
    known = short_names()
    if name not in known:
        hint = "wanted package.module:Name, path/to/file.py:Name or one of " + ", ".join(sorted(known))
        if name.endswith(".py") or Path(name).exists() or "." in name:
            hint = f"say which class: {name}:Name"
        raise LoadError(f"no adapter is called {name!r}: {hint}")
    location, _, attribute = known[name].partition(":")
    module = _from_module(location)
    if attribute:
        return _attribute(module, attribute, location)
    (found,) = (
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Adapter) and v.__module__ == module.__name__
    )
    return found


def _from_library(kind: str, name: str) -> Any:
    from rlhf_conformance.faults import faults
    from rlhf_conformance.twins import twins

    known = {n: f.adapter for n, f in faults().items()} if kind == "fault" else dict(twins())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise LoadError(f"there is no {kind} {name!r}" + (f"; is {' or '.join(near)} meant?" if near else ""))
    return known[name]


def _from_file(path: str) -> Any:
    file = Path(path).resolve()
    if not file.is_file():
        raise LoadError(f"there is no file {path} (looked for {file})")
    _look_first_in(file.parent)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    _import(lambda: loader.exec_module(module), path)
    return module


def _look_first_in(folder: Path) -> None:
    """Where Python itself would look first: beside the file that is run, or in the current folder for `python -m`."""
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))


def _from_module(name: str) -> Any:
    _look_first_in(Path.cwd())
    _import(lambda: importlib.import_module(name), name)
    return sys.modules[name]


def _import(action: Any, what: str) -> None:
    """Raises LoadError, which holds no exception of the module: whoever printed it would have to expect anything."""
    try:
        action()
        return
    except ModuleNotFoundError as error:
        said = f"no module named {error.name!r}; is it installed in this environment?"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = _said(error)
    raise LoadError(f"cannot import {what}: {said}")


def _attribute(module: Any, attribute: str, location: str) -> Any:
    if not hasattr(module, attribute):
        names = [
            n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Adapter) and v is not Adapter
        ]
        there = f"; it holds the adapters {', '.join(names)}" if names else "; it holds no adapter"
        raise LoadError(f"{location} has no {attribute!r}{there}")
    return getattr(module, attribute)


def _construct(found: Any, name: str, options: dict[str, Any]) -> Any:
    if isinstance(found, Adapter):
        if options:
            raise LoadError(f"{name} is an instance, which takes no options: name its class instead")
        return found
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise LoadError(f"{name} is a {type(found).__name__}, not a subclass of rlhf_conformance.Adapter")
    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        known = [p for p in inspect.signature(found).parameters if p != "self"]
        takes = f"it takes {', '.join(known)}" if known else "it takes no options"
        raise LoadError(f"{name} cannot be made with the options {options}: {error}; {takes}") from error
    try:
        return found(**options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = _said(error)
    raise LoadError(f"the constructor of {name} raised {said}")


def _said(error: BaseException) -> str:
    """An exception of the adapter's module or constructor, with what stands behind it."""
    from rlhf_conformance.judging import raised

    behind = raised.story(error)
    return f"{raised.said(error)}; {behind}" if behind else raised.said(error)

"""Everything that CI runs, and everything a contributor runs, by one name each: `nox -l` lists the sessions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nox
from nox.virtualenv import PassthroughEnv

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "tests", "conformance"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
WORKERS = str(min(4, os.cpu_count() or 1))

# One torch thread a process, since the processes are what runs in parallel; and no weights are ever fetched.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Trainer:
    """A real trainer that a bundled adapter drives, and how its environment is made, one pip call a line."""

    name: str
    installs: tuple[tuple[str, ...], ...]


TRAINERS = (
    Trainer("openrlhf", (("--no-deps", "-r", "requirements/openrlhf.txt"),)),
    Trainer("trl", (("--no-deps", "-r", "requirements/trl.txt"),)),
)


def install(session: nox.Session, *arguments: str) -> None:
    """pip install under the project's constraints; nothing with `--no-venv`, where the machine's own Python is used."""
    if not isinstance(session.virtualenv, PassthroughEnv):
        session.install("-c", str(CONSTRAINTS), *arguments)


def check(session: nox.Session, *arguments: str) -> None:
    """Run `rlhf-conformance check`, on every core unless the caller says how many."""
    workers = () if any(argument.startswith("-n") for argument in arguments) else ("-n", WORKERS)
    session.run("python", "-m", "rlhf_conformance", "check", *arguments, *workers, env=ENVIRONMENT)


@nox.session
def tests(session: nox.Session) -> None:
    """The project's own tests. `nox -s tests -- tests/project -x` runs some of them."""
    install(session, "-e", ".[bnb]", "hatchling", "editables", "jsonschema")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs, env=ENVIRONMENT)


@nox.session
def conformance(session: nox.Session) -> None:
    """The main job: the gate on the reference. `nox -s conformance -- ADAPTER [options]` checks any other adapter."""
    install(session, ".")
    check(session, *(session.posargs or ("reference", "--profile", "gate")))


@nox.session
@nox.parametrize("trainer", [nox.param(trainer, id=trainer.name) for trainer in TRAINERS])
def trainers(session: nox.Session, trainer: Trainer) -> None:
    """Judge the real trainers, each in an environment of its own; red where a verdict is not the documented one."""
    install(session, ".")
    for arguments in trainer.installs:
        session.install(*arguments)
    expected = ROOT / "docs" / "known-failures" / f"{trainer.name}.toml"
    known = ("--known-failures", str(expected)) if expected.exists() else ()
    check(session, trainer.name, "--report", f"reports/{trainer.name}", *known, *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """The gate and the device tests on a GPU, in float32 and bfloat16. With `--no-venv`: on the machine's own torch."""
    install(session, "-e", ".")
    probe = "import torch; print(torch.cuda.is_available())"
    if "True" not in (session.run("python", "-c", probe, silent=True) or ""):
        session.skip("no CUDA device")
    for dtype in ("float32", "bfloat16"):
        check(session, "reference", "--profile", "gate", "--device", "cuda", "--dtype", dtype, *session.posargs)
    session.run("python", "-m", "pytest", "-m", "cuda", env=ENVIRONMENT)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, its formatter and mypy; the project is installed so that types are those of the real torch."""
    install(session, "-e", ".", "ruff", "mypy")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """What is written down is true: doctests of the spec, links, and the commands that the documents show."""
    install(session, "-e", ".")
    session.run("python", "-m", "pytest", "--doctest-modules", "spec/rlhf_spec", "tests/project/test_docs.py")

"""Everything that CI runs, and everything a contributor runs, by one name each: `nox -l` lists the sessions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import nox
from nox.virtualenv import PassthroughEnv
from packaging.requirements import Requirement

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
    """A row of requirements/trainers.toml, which says what is in it; an older one has its `version`."""

    name: str
    title: str
    modes: dict[str, list[str]] = field(default_factory=dict)
    before: str = ""
    built_with: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.version}" if self.version else self.name


ROWS = nox.project.load_toml(ROOT / "requirements" / "trainers.toml")
TRAINERS = [Trainer(name, **row) for name, row in ROWS.items()]
OLDER = [replace(trainer, version=trainer.before) for trainer in TRAINERS if trainer.before]


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
    install(session, "-e", ".[bnb]", "hatchling", "editables", "matplotlib")
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "worksteal", *session.posargs, env=ENVIRONMENT)


def lowest(requirement: Requirement) -> str:
    """A requirement as its lowest version: "rich>=13" -> "rich==13"."""
    (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return f"{requirement.name}=={bound}"


def requirements() -> list[Requirement]:
    """What pyproject.toml says that the package needs here."""
    found = map(Requirement, nox.project.load_toml(ROOT / "pyproject.toml")["project"]["dependencies"])
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate()]


@nox.session
@nox.parametrize("which", ["lowest", "newest"])
def floors(session: nox.Session, which: str) -> None:
    """Every door of the package with the lowest version that each dependency is declared with, and with the newest.

    torch is the one of constraints.txt: an old one for Linux brings gigabytes of CUDA libraries. `-- torch` takes its
    lowest version, too.
    """
    own = requirements()
    with_torch = "torch" in session.posargs
    pins = [lowest(r) if which == "lowest" else r.name for r in own if r.name != "torch" or with_torch]
    torch = [] if with_torch else [next(line for line in CONSTRAINTS.read_text().splitlines() if line[:7] == "torch==")]
    session.install("--upgrade", *torch, *pins)
    session.install("--no-deps", ".")
    session.run("python", "tests/project/doors.py", env=ENVIRONMENT)


@nox.session
def conformance(session: nox.Session) -> None:
    """The main job: the gate on the reference. `nox -s conformance -- ADAPTER [options]` checks any other adapter."""
    install(session, ".")
    check(session, *(session.posargs or ("reference", "--profile", "gate")))


def named(all_of: list[Trainer]) -> list[nox.param]:
    """Sessions as `trainers(trl)`."""
    return [nox.param(trainer, id=str(trainer)) for trainer in all_of]


@nox.session
@nox.parametrize("trainer", named(TRAINERS))
def trainers(session: nox.Session, trainer: Trainer) -> None:
    """Judge the real trainers, each in an environment of its own; red where a verdict is not the documented one.

    In every documented mode. Writes docs/proof/verdicts.json, unless the command is given options.
    """
    judge(session, trainer)


@nox.session
@nox.parametrize("trainer", named(OLDER))
def older(session: nox.Session, trainer: Trainer) -> None:
    """The same of older versions, of which docs/trainers.md says what was mended since."""
    judge(session, trainer)


def judge(session: nox.Session, trainer: Trainer) -> None:
    """One trainer in its modes."""
    install_trainer(session, trainer)
    prove_in_its_environment(session, "verdicts", str(trainer))


def install_trainer(session: nox.Session, trainer: Trainer) -> None:
    """The project and the trainer, in an environment of the trainer's own. Only the modules that are imported are
    compiled."""
    session.env["PIP_NO_COMPILE"] = "1"
    install(session, ".")
    if trainer.built_with:
        session.install(*trainer.built_with)
    isolation = ("--no-build-isolation",) if trainer.built_with else ()
    session.install("--no-deps", *isolation, "-r", f"requirements/{trainer.name}.txt", env=trainer.settings)
    if trainer.version:
        session.install("--no-deps", f"{trainer.name}=={trainer.version}")


def prove_in_its_environment(session: nox.Session, module: str, *arguments: str) -> None:
    """Run a module of tests/proof beside a trainer. Not as `tests.proof`: OpenRLHF installs a package `tests`."""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "tests")}
    session.run("python", "-m", f"proof.{module}", *arguments, *session.posargs, env=environment)


@nox.session
@nox.parametrize("trainer", named(TRAINERS))
def mutants(session: nox.Session, trainer: Trainer) -> None:
    """One slip at a time in the source of a real trainer, each of which must be caught; writes docs/mutants.md."""
    install_trainer(session, trainer)
    prove_in_its_environment(session, "mutants", trainer.name)


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


def prove(session: nox.Session, what: str) -> None:
    """Measure the suite itself, and write it down: half an hour and more on four cores, so not part of CI."""
    install(session, "-e", ".")
    session.run("python", "-m", "tests.proof", what, *session.posargs, env=ENVIRONMENT)
    session.run("python", "-m", "tests.proof", "pages", env=ENVIRONMENT)


@nox.session
def faults(session: nox.Session) -> None:
    """Every fault against every clause that could see it, and 20 seeds of its own clause; writes docs/faults.md."""
    prove(session, "faults")


@nox.session
def twins(session: nox.Session) -> None:
    """200,000 examples of honest variants in each dtype, none of which may fail; writes docs/twins.md."""
    prove(session, "twins")


@nox.session
def diagnoses(session: nox.Session) -> None:
    """How often a failure is given its right name, for every fault and for near misses; writes docs/diagnosis.md."""
    prove(session, "diagnoses")


@nox.session
def bugs(session: nox.Session) -> None:
    """What is said of bugs that were written without a look at the library of faults; writes docs/fresh-bugs.md."""
    prove(session, "bugs")


@nox.session
def bench(session: nox.Session) -> None:
    """Where the gate's time goes, red where more than a quarter goes anywhere but into adapter and oracle; and how
    fast the reference takes token log-probs, in docs/speed.md."""
    install(session, ".")
    session.run("python", "-m", "tests.proof", "bench", *session.posargs, env=ENVIRONMENT)
    session.run("python", "-m", "tests.proof", "speed", env=ENVIRONMENT)
    session.run("python", "-m", "tests.proof", "pages", env=ENVIRONMENT)


@nox.session
def mutation(session: nox.Session) -> None:
    """mutmut on the reference and on the suite, and what no test sees; writes docs/mutation.md. `-- suite` for one."""
    install(session, "-e", ".[bnb]", "mutmut")
    prove(session, "mutation")


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, its formatter and mypy; the project is installed so that types are those of the real torch."""
    install(session, "-e", ".", "ruff", "mypy")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """What is written down is true: doctests of the spec, links, and the commands and examples that documents show."""
    install(session, "-e", ".")
    documents = ("spec/rlhf_spec", "tests/project/test_docs.py", "tests/docs")
    session.run("python", "-m", "pytest", "-n", "auto", "--doctest-modules", *documents, env=ENVIRONMENT)

"""What a worker inherits of the environment: all of it but what belongs to CI, and what the suite sets itself.

An adapter needs the environment: paths of libraries, settings of its trainer, the number of its GPU. It does not need
what lets whoever has it act in the name of the job. Three rules tell the two apart:

- the name says that it is a secret: one of its words is `TOKEN`, `PASSWORD`, `SECRET`, `KEY`, ... (`HF_TOKEN`; not
  `MAX_TOKENS`);
- the value is an address with a password in it (`https://user:password@host`);
- the name is in the namespace of a CI service, and the value is a file: those are read as commands by later steps
  (`GITHUB_ENV`, `GITHUB_OUTPUT`, ...), or hold the event. Facts such as `CI` and `GITHUB_REF` stay.

What a trainer needs all the same is named with `--pass-env`.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

OWN_PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": ""}
"""No foreign plugins or options of pytest."""
QUIET = {
    **OWN_PYTEST,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What is set in any case: quiet libraries besides, and one thread each."""
RUN = "RLHF_CONFORMANCE_RUN"
"""The folder of the run: by this variable, what descends from it can be found."""

_SECRET = re.compile(
    r"(?:TOKEN|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|PWD|CREDENTIALS?|CREDS?|APIKEY|WEBHOOK)$|^(?:KEYS?|AUTH|JWT|PAT|OIDC)$"
)
_NO_SECRET = frozenset({"PWD", "OLDPWD"})
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@]*:[^/\s@]+@", re.IGNORECASE)
_OF_CI = re.compile(
    r"^(?:GITHUB|RUNNER|GITEA|FORGEJO|CI|GITLAB|BUILDKITE|CIRCLE|BITBUCKET|DRONE|JENKINS|TEAMCITY|TRAVIS|APPVEYOR|"
    r"CODEBUILD|SEMAPHORE|WOODPECKER|CIRRUS|BASH)_"
)
"""What the variables of CI services begin with; `BASH_ENV` is a file of commands, too."""
_SERVICES = "ACTIONS_"
"""What GitHub calls the addresses of its own services, and what opens them."""


def withheld(environment: Mapping[str, str], passed: Iterable[str] = ()) -> tuple[str, ...]:
    """The variables that a worker does not get, but for those that are to be passed on by name."""
    kept = {*passed, *_NO_SECRET}
    return tuple(name for name, value in environment.items() if name not in kept and _belongs_to_ci(name, value))


def _belongs_to_ci(name: str, value: str) -> bool:
    upper = name.upper()
    if any(_SECRET.search(word) for word in re.split(r"[^A-Z0-9]+", upper)) or _ADDRESS.search(value):
        return True
    if upper.startswith(_SERVICES):
        return True
    return _OF_CI.match(upper) is not None and os.path.isabs(value) and not os.path.isdir(value)


def hint(said: str, passed: Iterable[str]) -> str:
    """What to do where an error names a variable that was withheld; empty where it names none."""
    names = [name for name in withheld(os.environ, passed) if re.search(rf"\b{re.escape(name)}\b", said)]
    return "".join(f"; {name} looks like a secret and was not passed on: --pass-env {name} does" for name in names)


def command(folder: Path, passed: Iterable[str]) -> str:
    """The Python of a worker, as a shell would read it: one below a keeper, with the environment that is its due.

    folder      of the run; what the adapter puts among temporary files goes with it
    passed      names of variables that reach the worker whatever they look like
    """
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    variables = {**QUIET, RUN: str(folder), "TMPDIR": str(scratch)}
    words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py")), str(os.getpid())]
    words += [name for name in withheld(os.environ, passed) if "=" not in name and name != "--"]
    words += [f"{name}={value}" for name, value in variables.items()]
    words += ["--", sys.executable]
    return shlex.join(words).replace("//", "/")  # two slashes would end the word for execnet

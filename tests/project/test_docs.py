"""What the documents say can be done: their links lead somewhere and their commands are ones that exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "spec", "reference", "conformance")
FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,}) *(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=fence) *$", re.M | re.S)
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(?P<target>\S+)", re.M)
SHELLS = {"console", "bash", "sh", "shell"}
CHECKED = {"rlhf-conformance", "nox", "python", "pytest"}
FIRST_SCREENFUL = 40
MAIN_COMMANDS = (
    "python -m pip install nox && python -m nox -s conformance",
    "python -m pip install nox && python -m nox -s tests",
)


def documents() -> list[Path]:
    """The Markdown files of the project: those at its root, and all below the folders of documents."""
    found = set(ROOT.glob("*.md"))
    for folder in FOLDERS:
        found |= set((ROOT / folder).rglob("*.md"))
    return sorted(found)


@dataclass(frozen=True)
class Command:
    """One command of a document, as words; `line` is the logical line that it stands on."""

    document: str
    line: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {self.line}"


def commands(document: Path) -> Iterator[Command]:
    """The commands of a document's shell blocks that this project can answer for."""
    name = document.relative_to(ROOT).as_posix()
    for block in FENCE.finditer(document.read_text(encoding="utf-8")):
        language = block["language"].lower()
        if language not in SHELLS:
            continue
        for line in block["body"].replace("\\\n", " ").splitlines():
            # In a console block the lines without a prompt are output.
            prompted = line.lstrip().startswith("$ ")
            if language == "console" and not prompted:
                continue
            for words in split(line.lstrip()[2:] if prompted else line):
                yield Command(name, line.strip(), words)


def split(line: str) -> Iterator[tuple[str, ...]]:
    """The simple commands of a shell line, without settings of variables before them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            if words and words[0] in CHECKED:
                yield tuple(words)
            words = []
        else:
            words.append(word)


ALL_COMMANDS = [command for document in documents() for command in commands(document)]


def nox_sessions() -> set[str]:
    """Names of the functions of noxfile.py that are sessions."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if any("nox.session" in ast.unparse(d) for d in node.decorator_list)}


def check_conformance(arguments: tuple[str, ...]) -> None:
    """Parse with the command's own parser."""
    from rlhf_conformance.cli import build_parser

    try:
        build_parser().parse_args(list(arguments))
    except SystemExit as stop:
        # --help and --version end with 0; argparse has said on stderr what it refuses.
        if stop.code:
            raise AssertionError("the command's parser refuses this") from stop


def check_nox(arguments: tuple[str, ...]) -> None:
    """Every session that is named exists; what follows `--` in the conformance session are options of `check`."""
    own, posargs = arguments, ()
    if "--" in arguments:
        cut = arguments.index("--")
        own, posargs = arguments[:cut], arguments[cut + 1 :]
    named = []
    for index, word in enumerate(own):
        if word in {"-s", "-e", "--session", "--sessions"}:
            following = own[index + 1 :]
            stop = next((i for i, other in enumerate(following) if other.startswith("-")), len(following))
            named += following[:stop]
    assert named or set(own) & {"-l", "--list", "--help", "--version"} or not own, "no session is named"
    unknown = {re.sub(r"[-(].*", "", name) for name in named} - nox_sessions()
    assert not unknown, f"noxfile.py has no session {', '.join(sorted(unknown))}"
    if posargs and named == ["conformance"]:
        check_conformance(("check", *posargs))


def check_python(arguments: tuple[str, ...]) -> None:
    """`python -m MODULE` of this project's modules and tools, or a script that exists."""
    if arguments[0] != "-m":
        assert arguments[0].startswith("-") or (ROOT / arguments[0]).exists(), f"there is no file {arguments[0]}"
        return
    tools = {"nox": check_nox, "rlhf_conformance": check_conformance, "pytest": check_pytest}
    tools.get(arguments[1], check_other_module)(arguments[2:])


def check_pytest(arguments: tuple[str, ...]) -> None:
    """Long options are ones that pytest and its plugins know; paths may be those of the reader's own repository."""
    command = [sys.executable, "-m", "pytest", "--help"]
    known = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    named = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    unknown = named - set(re.findall(r"--[\w-]+", known))
    assert not unknown, f"pytest has no option {', '.join(sorted(unknown))}"


def check_other_module(arguments: tuple[str, ...]) -> None:
    """Requirements files that are named exist: of pip and venv no more is checked."""
    files = [after for word, after in pairwise(arguments) if word in {"-r", "-c"}]
    missing = [file for file in files if not (ROOT / file).exists()]
    assert not missing, f"there is no {missing[0]}"


CHECKS = {
    "rlhf-conformance": check_conformance,
    "nox": check_nox,
    "python": check_python,
    "pytest": check_pytest,
}


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=str)
def test_the_command_exists(command):
    CHECKS[command.words[0]](command.words[1:])


@pytest.mark.parametrize("line", MAIN_COMMANDS)
def test_the_readme_opens_with_the_main_commands(line):
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:FIRST_SCREENFUL]
    assert any(line in candidate for candidate in lines)


@pytest.mark.parametrize("subcommand", ["check", "list", "explain", "init"])
def test_the_documents_show_the_subcommand(subcommand):
    assert ("rlhf-conformance", subcommand) in {command.words[:2] for command in ALL_COMMANDS}


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them, and those set by hand."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", text, re.M):
        plain = LINK.sub(lambda link: link[0].split("]")[0].lstrip("!["), heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = 0
        while (candidate := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(candidate)
    return found


def links(document: Path) -> set[str]:
    """Targets of a document's links, without those in code and those that lead out of the project."""
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", document.read_text(encoding="utf-8")))
    targets = {match["target"] for pattern in (LINK, REFERENCE) for match in pattern.finditer(text)}
    return {target for target in targets if not re.match(r"[a-z][a-z+.-]*:", target)}


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_links_lead_somewhere(document):
    broken = []
    for target in sorted(links(document)):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.is_relative_to(ROOT) or not file.exists():
            broken.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            broken.append(f"{target}: no such heading")
    assert broken == []

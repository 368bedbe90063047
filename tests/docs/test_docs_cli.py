"""The documentation names commands and options that exist, and its reference page is current."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from hashlens.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def _generator() -> ModuleType:
    path = ROOT / "docs" / "generate_cli_reference.py"
    spec = importlib.util.spec_from_file_location("generate_cli_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _command_lines(page: Path) -> list[list[str]]:
    """Words of each `hashlens ...` line in the page's shell blocks, continuations joined."""
    lines = []
    for block in re.findall(r"```(?:bash|sh|console|text)\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^\$ ", "", line.strip())
            line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)
            if line.startswith("hashlens ") and "..." not in line and "|" not in line.split("#")[0]:
                lines.append(shlex.split(line, comments=True)[1:])
    return lines


def _check(words: list[str]) -> str | None:
    """What is wrong with a command line, or None."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command.commands:
            return f"no command {name!r}"
        command = command.commands[name]
    known = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    known |= {"--help", "-h"}
    for word in rest:
        if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word) and word.split("=")[0] not in known:
            return f"no option {word!r}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_docs_exist(page: Path) -> None:
    wrong = [(words, _check(words)) for words in _command_lines(page)]
    assert [entry for entry in wrong if entry[1]] == []


def test_the_check_finds_what_is_wrong() -> None:
    assert _check(["no-such-command"]) == "no command 'no-such-command'"
    assert _check(["--no-such-option"]) == "no option '--no-such-option'"


def test_reference_pages_are_current() -> None:
    generator = _generator()
    assert generator.PAGE.read_text() == generator.page(), "run `make docs`"
    assert generator.TRAINING_PAGE.read_text() == generator.training_page(), "run `make docs`"


def test_every_command_shows_an_example() -> None:
    walk = _generator().commands(typer.main.get_command(app))
    silent = [
        path
        for path, command in walk
        if not hasattr(command, "commands")
        and "hashlens " + " ".join(path) not in (command.help or "")
    ]
    assert silent == []

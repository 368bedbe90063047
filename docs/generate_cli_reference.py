"""Write docs/reference/cli.md from the help pages of every command.

`make docs` runs this; tests/docs/test_docs_cli.py fails when the page has drifted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from hashlens.cli.main import app

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEADER = """# Commands

Generated from the help pages by `make docs`; edit the commands, not this page.
`--json` prints one JSON object and nothing else on standard output.
Exit codes: 0 done, 1 it could not be done, 2 wrong usage.
"""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group below ``command``, with its words after ``hashlens``."""
    yield path, command
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from commands(child, (*path, name))


def page() -> str:
    """The whole reference page."""
    runner = CliRunner(env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
    parts = [HEADER]
    for path, _ in commands(typer.main.get_command(app)):
        title = " ".join(("hashlens", *path))
        text = runner.invoke(app, [*path, "--help"], prog_name="hashlens").output
        lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
        parts.append(f"## {title}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"wrote {PAGE}")

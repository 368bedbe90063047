"""Running ``hashlens`` inside the test's own process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from hashlens.cli.main import app


def run(*arguments: object) -> Result:
    """What ``hashlens ARGUMENTS...`` prints and returns."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])

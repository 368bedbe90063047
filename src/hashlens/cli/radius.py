"""``--radius``: a number of bits, or the one that ``hashlens inspect`` stored with the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from hashlens.errors import ModelError

if TYPE_CHECKING:
    from hashlens.models.encoder import Encoder

RADIUS = typer.Option(
    None,
    metavar="BITS",
    help="hds and bcs: only images whose code differs in at most so many bits; a number, or "
    "proposed for the one that hashlens inspect stored with the model.",
)


def parse_radius(text: str | None) -> int | Literal["proposed"] | None:
    """What was written after ``--radius``; usage that is wrong ends the command."""
    if text is None:
        return None
    if text == "proposed":
        return "proposed"
    if not (text.isascii() and text.isdecimal()):
        raise typer.BadParameter(
            f"--radius: expected a number of bits from 0, or proposed, got {text!r}"
        )
    return int(text)


def stored_radius(encoder: Encoder, model: str | Path | None) -> int:
    """The radius that is stored with a model.

    Raises
    ------
    ModelError
        If there is none.
    """
    if encoder.radius is None:
        again = ", and export it again" if str(model).endswith(".onnx") else ""
        raise ModelError(
            f"{model}: no radius is stored with this model; run `hashlens inspect MODEL --data "
            f"SOURCE` with its folder{again}, or give --radius a number"
        )
    typer.echo(f"radius: {encoder.radius} bits, as stored with the model", err=True)
    return encoder.radius

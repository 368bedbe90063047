"""``hashlens bench encode``: images a second, stage by stage."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def encode_command(
    models: list[Path] = typer.Argument(
        ..., help="A model's folder or .onnx file; more of them are run in turns with it."
    ),
    data: str = typer.Option(..., "--data", help="Source of images, such as photos/."),
    images: int = typer.Option(1000, min=1, help="Images to measure with, drawn with a seed."),
    batch_size: int = typer.Option(32, min=1, help="Images in a run of the network."),
    rounds: int = typer.Option(5, min=1, help="Times that each network sees the images."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Measure how fast images are decoded, transformed, encoded and written.

    Example: hashlens bench encode model/ model.onnx --data photos/ --images 1000
    """
    from hashlens.cli.progress import progress_bar
    from hashlens.data.sources import open_source
    from hashlens.experiments.encoding_speed import measure_encoding
    from hashlens.models.encoder import Encoder

    source = open_source(data)
    encoders = {str(path): Encoder.load(path) for path in models}
    batches = -(-min(images, len(source)) // batch_size)
    with progress_bar("batches", rounds * batches) as done:
        speed = measure_encoding(
            encoders, source, n_images=images, batch_size=batch_size, rounds=rounds, progress=done
        )
    if as_json:
        typer.echo(json.dumps(speed.to_dict()))
        return
    typer.echo(
        f"{speed.n_images} images, batches of {speed.batch_size}, {speed.workers} decoding "
        f"threads, {speed.rounds} rounds; images a second (networks: median of batches):"
    )
    for stage in ("decode", "transform", "write", "together"):
        typer.echo(f"  {stage:10} {getattr(speed, stage):10,.0f}")
    for name, forward in speed.forward.items():
        typer.echo(
            f"  forward    {forward.images_per_second:10,.0f}  ({forward.slow:,.0f} to "
            f"{forward.fast:,.0f}), {forward.bits_equal:.3%} of bits equal  {name}"
        )

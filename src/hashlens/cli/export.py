"""``hashlens export``: a model as one file that answers without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def export_command(
    model: Path = typer.Argument(..., help="Folder of a model."),
    onnx: Path = typer.Option(..., "--onnx", help="File to write; its name ends in .onnx."),
    int8: bool = typer.Option(
        False, "--int8", help="Quantise the backbone to 8 bits: smaller, less exact codes."
    ),
    calibration: str | None = typer.Option(
        None, help="For --int8: a source of images like those to be searched."
    ),
    calibration_images: int = typer.Option(
        512, min=1, help="For --int8: how many of them to take, at random."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Export a model to ONNX, and check its answers against PyTorch's.

    The float32 file gives the model's own codes and searches its indexes; the int8 file needs
    indexes of its own.

    Example: hashlens export model/ --onnx model.onnx
    """
    if onnx.suffix != ".onnx":
        raise typer.BadParameter(f"the file's name must end in .onnx, got {onnx}")
    if int8 and calibration is None:
        raise typer.BadParameter("--int8 needs --calibration SOURCE, such as the training images")
    if calibration is not None and not int8:
        raise typer.BadParameter("--calibration is for --int8")
    from hashlens.models.export import calibration_pixels, export_onnx

    pixels = None
    if calibration is not None:
        from hashlens.data.opening import open_source

        pixels = calibration_pixels(model, open_source(calibration), calibration_images)
    report = export_onnx(model, onnx, calibration=pixels)
    if as_json:
        typer.echo(json.dumps({**report._asdict(), "path": str(report.path)}))
        return
    kind = "noise images" if pixels is None else "calibration images"
    typer.echo(
        f"{report.path}: {report.n_bytes / 1e6:.1f} MB, fingerprint {report.fingerprint[:12]}\n"
        f"against PyTorch on {report.n_compared} {kind}: {report.bits_equal:.2%} of bits equal, "
        f"features off by at most {report.feature_error:.1e} of the largest"
    )


def push_command(
    model: Path = typer.Argument(..., help="Folder of a model."),
    repo: str = typer.Argument(..., help="Repository on the hub, such as me/shop-codes."),
    endpoint: str | None = typer.Option(
        None, help="Address of the hub. [default: HF_ENDPOINT, or huggingface.co]"
    ),
    public: bool = typer.Option(False, "--public", help="A new repository is for all to see."),
) -> None:
    """Upload a model: description, weights and card, nothing else of the folder.

    Example: hashlens push model/ me/shop-codes
    """
    from hashlens.models.hub import push_model

    typer.echo(push_model(model, repo, endpoint=endpoint, private=not public))


def pull_command(
    repo: str = typer.Argument(..., help="Repository on the hub, such as me/shop-codes."),
    out: Path = typer.Option(..., "--out", help="Folder of the model."),
    revision: str | None = typer.Option(None, help="Branch, tag or commit. [default: main]"),
    endpoint: str | None = typer.Option(
        None, help="Address of the hub. [default: HF_ENDPOINT, or huggingface.co]"
    ),
) -> None:
    """Download a model; a model in --out is replaced once the new one is whole.

    Example: hashlens pull me/shop-codes --out model/
    """
    from hashlens.models.hub import pull_model

    pull_model(repo, out, revision=revision, endpoint=endpoint)
    typer.echo(f"{out}: model of {repo}")

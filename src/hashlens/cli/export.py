"""``hashlens export``, ``push`` and ``pull``: a model as one ONNX file, and on a hub."""

from __future__ import annotations

from pathlib import Path

import typer

from hashlens.cli.options import MODEL_FOLDER, Answer

_REPO = typer.Argument(..., help="Repository on the hub, such as me/shop-codes.")
_ENDPOINT = typer.Option(None, help="Address of the hub. [default: HF_ENDPOINT, or huggingface.co]")


def export_command(
    model: Path = MODEL_FOLDER,
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
) -> Answer:
    """Export a model to one ONNX file, and compare it with PyTorch.

    The file needs no PyTorch. The float32 file gives the model's own codes and searches its
    indexes; the int8 file needs indexes of its own.

    Example: hashlens export model/ --onnx model.onnx
    """
    if onnx.suffix != ".onnx":
        raise typer.BadParameter(f"the file's name must end in .onnx, got {onnx}")
    if int8 != (calibration is not None):
        raise typer.BadParameter("--int8 and --calibration SOURCE, such as photos/, go together")
    from hashlens.data.opening import open_source
    from hashlens.models.export import calibration_pixels, export_onnx

    pixels = None
    if calibration is not None:
        pixels = calibration_pixels(model, open_source(calibration), calibration_images)
    report = export_onnx(model, onnx, calibration=pixels)
    kind = "noise images" if pixels is None else "calibration images"
    text = (
        f"{report.path}: {report.n_bytes / 1e6:.1f} MB, fingerprint {report.fingerprint[:12]}\n"
        f"compared with PyTorch on {report.n_compared} {kind}: {report.bits_equal:.2%} of bits "
        f"equal, features off by at most {report.feature_error:.1e} of the largest"
    )
    return Answer({**report._asdict(), "path": str(report.path)}, text)


def push_command(
    model: Path = MODEL_FOLDER,
    repo: str = _REPO,
    endpoint: str | None = _ENDPOINT,
    public: bool = typer.Option(False, "--public", help="Make a new repository visible to all."),
) -> Answer:
    """Upload a model: description, weights and card, nothing else of the folder.

    Example: hashlens push model/ me/shop-codes
    """
    from hashlens.models.hub import push_model

    url = push_model(model, repo, endpoint=endpoint, private=not public)
    return Answer({"model": str(model), "repo": repo, "url": url}, url)


def pull_command(
    repo: str = _REPO,
    out: Path = typer.Option(..., "--out", help="Folder of the model."),
    revision: str | None = typer.Option(None, help="Branch, tag or commit. [default: main]"),
    endpoint: str | None = _ENDPOINT,
) -> Answer:
    """Download a model; a model in --out is replaced once the new one is whole.

    Example: hashlens pull me/shop-codes --out model/
    """
    from hashlens.models.hub import pull_model

    pulled = pull_model(repo, out, revision=revision, endpoint=endpoint)
    result = {"out": str(out), "repo": repo, "bits": pulled.bits, "fingerprint": pulled.fingerprint}
    return Answer(result, f"{out}: model of {repo}, {pulled.bits} bits")

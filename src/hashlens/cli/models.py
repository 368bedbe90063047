"""``hashlens train``, ``export``, ``push`` and ``pull``: models; and ``demo``, which uses one."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer

from hashlens.cli.opening import passed_over
from hashlens.cli.options import MODEL_FOLDER, READING, Answer, note
from hashlens.errors import InvalidInputError
from hashlens.training.config import Option, TrainingConfig
from hashlens.training.config import options as config_options

if TYPE_CHECKING:
    from hashlens.data.source import Source
    from hashlens.training.folder import TrainingResult


def _config_option(option: Option) -> tuple[Any, Any]:
    """The command's option for a field of ``TrainingConfig``."""
    help = f"{option.help}."
    if option.choices:
        help = f"{option.help}: {', '.join(option.choices)}."
    elif option.values:
        help = f"{option.help}. [{option.values}]"
    return option.kind | None, typer.Option(None, option.flag, help=help)


# The recipe has an option of its own, which also takes files.
_CONFIG = {one.name: _config_option(one) for one in config_options() if one.name != "recipe"}


def train_command(
    source: str | None = typer.Argument(
        None,
        help="A folder with one sub-folder per class, a parquet file, FOLDER#train, digits, or a "
        "hub name; or vectors: a .npy file, or a parquet file with a column embedding.",
    ),
    out: Path | None = typer.Option(None, "--out", help="Folder of the model."),
    recipe: str = typer.Option(
        "auto", help="auto, small, finetune, paper, vectors, or a .toml file."
    ),
    values: dict[str, Any] = _CONFIG,
    unsupervised: bool = typer.Option(
        False,
        "--unsupervised",
        help="Codes without labels: backbone features, or vectors, and ITQ.",
    ),
    devices: str = typer.Option("auto", help="Processes on this host, or auto."),
    nodes: int = typer.Option(1, help="Hosts (start the command on each, as for torchrun)."),
    resume: bool = typer.Option(False, "--resume", help="Continue the unfinished run in --out."),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Replace the model in --out once the new one is complete."
    ),
    reading: dict[str, Any] = READING,
    show_config: bool = typer.Option(
        False, "--show-config", help="Print the configuration as TOML and leave."
    ),
) -> Answer | None:
    """Train hash codes on labelled images, or on vectors.

    Options that are left out come from the recipe, or are chosen by images and hardware.

    Example: hashlens train photos/ --bits 48 --out model/
    """
    if not show_config and (source is None or out is None):
        raise typer.BadParameter("expected a SOURCE and --out FOLDER: hashlens train pics/ --out m")
    if devices != "auto" and not (devices.isdigit() and int(devices) > 0):
        raise typer.BadParameter(f"--devices: expected a number or auto, got {devices!r}")
    values = {name: value for name, value in values.items() if value is not None}
    try:
        from hashlens.data.opening import open_source

        images = None if source is None else open_source(source, **reading)
        if images is None or out is None or show_config:
            typer.echo(_configuration(images, recipe, values, unsupervised), nl=False)
            return None
        from hashlens.training.fit import is_first_process, train

        result = train(
            images,
            out,
            recipe=recipe,
            unsupervised=unsupervised,
            resume=resume,
            overwrite=overwrite,
            strict=reading["strict"],
            devices=devices if devices == "auto" else int(devices),
            nodes=nodes,
            **values,
        )
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from error
    return _answer(result, images) if is_first_process() else None


def _configuration(
    source: Source | None, recipe: str, values: dict[str, Any], unsupervised: bool
) -> str:
    """The configuration as TOML, complete and with its reasons where there is a source."""
    if unsupervised:
        from hashlens.training.unsupervised import OPTIONS, unsupervised_config

        lines = unsupervised_config(values).to_toml().splitlines(keepends=True)
        return "".join(line for line in lines if line.split(" = ")[0] in (*OPTIONS, "recipe"))
    from hashlens.training.recipes import configure, recipe_values

    if source is None:
        return TrainingConfig().with_values({**recipe_values(recipe), **values}).to_toml()
    config, reasons = configure(recipe, values, source)
    return "".join(f"# {reason}\n" for reason in reasons) + config.to_toml()


def _answer(result: TrainingResult, source: Source) -> Answer:
    from hashlens.training.folder import in_words

    config = result.config
    best = next((scores for scores in result.history if scores["epoch"] == result.best_epoch), None)
    answer = {
        "out": str(result.out),
        "fingerprint": result.fingerprint,
        "bits": config.bits,
        "backbone": config.backbone,
        "passed_over": dict(source.passed_over),
    }
    if best is None:
        from hashlens.models.description import read_config

        answer |= read_config(result.out)[0].training
        line = f"{config.bits} bits by ITQ on features of {config.backbone}, no labels"
    else:
        answer |= {
            "recipe": config.recipe,
            "objective": config.objective,
            "best_epoch": result.best_epoch,
            "epochs": config.epochs,
            "validation": best,
            "search": dict(result.search),
            "training_images": result.training_images,
            "validation_images": result.validation_images,
            "skipped": [one._asdict() for one in result.skipped],
            "warnings": list(result.warnings),
            "seconds": round(result.seconds, 1),
        }
        line = (
            f"{config.bits} bits, best epoch {result.best_epoch} of {config.epochs}, "
            f"validation {in_words(best)} ({result.validation_images} images), "
            f"{result.seconds:.0f} s"
        )
    then = f"hashlens index create INDEX {quote(source.spec)} --model {quote(str(result.out))}"
    text = f"{result.out}: {line}{passed_over(source.passed_over)}\nnext: {then}"
    return Answer(answer, text)


def demo_command(
    data: str = typer.Option(
        "digits", help="digits, mnist, cifar10, or a folder with one sub-folder per class."
    ),
    path: str | None = typer.Option(
        None,
        help="Folder of mnist or cifar10. [default: in $HASHLENS_DATA, else fetched from the hub]",
    ),
    out: Path = typer.Option(Path("hashlens-demo"), help="Folder for model, index and report."),
) -> Answer:
    """Train, index, evaluate and report on real images, in about a minute.

    Example: hashlens demo
    """
    from hashlens.workflows.demo import NEXT_COMMANDS, run_demo

    result = run_demo(data, out, path=path, say=note, progress=True)
    found = result.scored.evaluation
    lines = [
        f"\n{found.n_queries:,} held-out images searched {found.n_database:,}:\n",
        result.table().text(),
    ]
    if found.classification_error is not None:
        lines.append(f"\nclassification error {100 * found.classification_error:.2f} %")
    lines += [
        f"took {result.seconds:.0f} s; report: {result.page}",
        f"\nsearch it:       hashlens search {result.index} '{result.scored.queries.uris[0]}'",
        f"as a web page:   hashlens serve {result.index}",
        f"\nyour own photos, one sub-folder per class:\n\n{NEXT_COMMANDS}",
    ]
    return Answer(result.scored.to_dict(), "\n".join(lines))


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

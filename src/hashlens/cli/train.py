"""``hashlens train``: from labelled images to a model."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer

from hashlens.errors import InvalidInputError

if TYPE_CHECKING:
    from hashlens.training.config import TrainingConfig
    from hashlens.training.folder import TrainingResult


def train_command(
    source: str | None = typer.Argument(
        None,
        help="A folder with a sub-folder a class, a parquet file, FOLDER#train, digits, or a hub "
        "name.",
    ),
    out: Path | None = typer.Option(None, "--out", help="Folder of the model."),
    bits: int | None = typer.Option(None, help="Length of a code, 8 to 1024. [default: 48]"),
    recipe: str = typer.Option("auto", help="auto, small, finetune, paper, or a .toml file."),
    objective: str | None = typer.Option(
        None, help="latent, ssdh, greedyhash, csq, cnnh or cnnh+. [default: the recipe's]"
    ),
    backbone: str | None = typer.Option(
        None, help="smallcnn, resnet9, alexnet, caffenet or timm:NAME."
    ),
    weights: Path | None = typer.Option(None, help="File with the backbone's weights."),
    freeze_backbone: bool | None = typer.Option(
        None,
        "--freeze-backbone/--train-backbone",
        help="Train the latent layer and the classifier alone, on features computed once.",
    ),
    latent_normalisation: bool | None = typer.Option(
        None,
        "--latent-normalisation/--no-latent-normalisation",
        help="Normalise each latent unit before its sigmoid.",
    ),
    size: int | None = typer.Option(None, help="Side of the network's input in pixels."),
    epochs: int | None = typer.Option(None, help="Passes over the training images."),
    batch_size: int | None = typer.Option(None, help="Images a step, over all devices."),
    accumulate: int | None = typer.Option(
        None, help="Steps whose gradients are added up, when memory is short."
    ),
    learning_rate: float | None = typer.Option(None, help="Peak rate of the latent layer."),
    balanced: bool = typer.Option(False, "--balanced", help="Draw every class equally often."),
    validation: float | None = typer.Option(
        None, help="Share of the labelled images held out to choose the best epoch."
    ),
    precision: str | None = typer.Option(None, help="fp32 or bf16. [default: by the hardware]"),
    compile_network: bool = typer.Option(False, "--compile", help="Use torch.compile."),
    devices: str = typer.Option("auto", help="Processes on this host, or auto."),
    nodes: int = typer.Option(1, help="Hosts (start the command on each, as for torchrun)."),
    seed: int | None = typer.Option(None, help="Decides split, weights, order. [default: 0]"),
    resume: bool = typer.Option(False, "--resume", help="Continue the unfinished run in --out."),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Replace the model in --out once the new one is complete."
    ),
    strict: bool = typer.Option(False, "--strict", help="Stop at an unreadable image."),
    unsupervised: bool = typer.Option(
        False, "--unsupervised", help="Codes without labels: backbone features and ITQ."
    ),
    show_config: bool = typer.Option(
        False, "--show-config", help="Print the configuration as TOML and leave."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
) -> None:
    """Train hash codes on labelled images.

    Example: hashlens train photos/ --bits 48 --out model/
    """
    overrides: dict[str, Any] = {
        "bits": bits,
        "objective": objective,
        "backbone": backbone,
        "weights": str(weights) if weights is not None else None,
        "freeze_backbone": freeze_backbone,
        "latent_normalisation": latent_normalisation,
        "size": size,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "balanced": balanced or None,
        "validation": validation,
        "precision": precision,
        "compile": compile_network or None,
        "seed": seed,
    }
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if source is None and not show_config:
        raise typer.BadParameter("expected a SOURCE, for example: hashlens train photos/ --out m/")
    if source is not None and out is None and not show_config:
        raise typer.BadParameter("expected --out FOLDER for the model")
    if devices != "auto" and not (devices.isdigit() and int(devices) > 0):
        raise typer.BadParameter(f"--devices: expected a number or auto, got {devices!r}")
    try:
        _run(
            source,
            out,
            recipe,
            overrides,
            devices=devices if devices == "auto" else int(devices),
            nodes=nodes,
            resume=resume,
            overwrite=overwrite,
            strict=strict,
            unsupervised=unsupervised,
            show_config=show_config,
            as_json=as_json,
        )
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from error


def _run(
    source_spec: str | None,
    out: Path | None,
    recipe: str,
    overrides: dict[str, Any],
    *,
    show_config: bool,
    unsupervised: bool,
    as_json: bool,
    **options: Any,
) -> None:
    from hashlens.training.config import TrainingConfig
    from hashlens.training.recipes import configure, recipe_values

    if source_spec is None:
        values = {} if recipe == "auto" else recipe_values(recipe)
        typer.echo(TrainingConfig().with_values({**values, **overrides}).to_toml(), nl=False)
        return
    from hashlens.data.opening import open_source

    source = open_source(source_spec)
    if unsupervised:
        _unsupervised(source, out, overrides, as_json, options)
        return
    from hashlens.training.fit import image_facts, is_first_process, train

    facts = image_facts(source)
    config, reasons = configure(recipe, overrides, facts)
    if show_config:
        typer.echo("".join(f"# {reason}\n" for reason in reasons) + config.to_toml(), nl=False)
        return
    assert out is not None  # checked by the caller
    if is_first_process():
        for reason in reasons:
            typer.echo(reason, err=True)
    result = train(source, config, out, channels=facts.channels, **options)
    if is_first_process():
        _tell(result, config, source_spec, as_json)


def _tell(result: TrainingResult, config: TrainingConfig, source: str, as_json: bool) -> None:
    best = next(scores for scores in result.history if scores["epoch"] == result.best_epoch)
    if as_json:
        answer = {
            "out": str(result.out),
            "fingerprint": result.fingerprint,
            "bits": config.bits,
            "recipe": config.recipe,
            "objective": config.objective,
            "backbone": config.backbone,
            "best_epoch": result.best_epoch,
            "epochs": config.epochs,
            "validation": best,
            "training_images": result.training_images,
            "validation_images": result.validation_images,
            "skipped": [one._asdict() for one in result.skipped],
            "warnings": list(result.warnings),
            "seconds": round(result.seconds, 1),
        }
        typer.echo(json.dumps(answer))
        return
    typer.echo(
        f"{result.out}: {config.bits} bits, best epoch {result.best_epoch} of {config.epochs}, "
        f"validation mAP {best['map']:.4f}, accuracy {best['accuracy']:.4f} "
        f"({result.validation_images} images), {result.seconds:.0f} s"
    )
    _tell_next(source, result.out)


def _unsupervised(
    source: Any, out: Path | None, overrides: dict[str, Any], as_json: bool, options: dict[str, Any]
) -> None:
    from hashlens.training.unsupervised import train_unsupervised

    taken = {"bits", "backbone", "weights", "size", "seed"}
    if odd := sorted(set(overrides) - taken):
        raise InvalidInputError(f"--unsupervised does not use {', '.join(odd)}; leave it out")
    assert out is not None  # checked by the caller
    model = train_unsupervised(
        source,
        out,
        overwrite=options["overwrite"],
        strict=options["strict"],
        **overrides,
    )
    if as_json:
        answer = {"out": str(out), "fingerprint": model.fingerprint, "bits": model.bits}
        typer.echo(json.dumps({**answer, "backbone": model.backbone, **model.training}))
        return
    typer.echo(f"{out}: {model.bits} bits by ITQ on features of {model.backbone}, no labels")
    _tell_next(source.spec, out)


def _tell_next(source: str, out: Path) -> None:
    typer.echo(f"next: hashlens index create INDEX {quote(source)} --model {quote(str(out))}")

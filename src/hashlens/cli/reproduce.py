"""``hashlens reproduce``: the paper's tables and figures."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hashlens.cli.options import Answer, commands
from hashlens.errors import InvalidInputError

if TYPE_CHECKING:
    from hashlens.paper.runs import Piece

reproduce_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Run the paper's comparisons again."
)
reproduce = commands(reproduce_app)

_DATA = typer.Option(
    None, help="Folder with train.parquet and test.parquet, or a hub name. [default: the hub]"
)
_OUT = typer.Option(None, help="Where results are kept. [default: runs/reproduce-NAME[-quick]]")
_QUICK = typer.Option(False, "--quick", help="A subset, within five minutes on two cores.")
_PROTOCOL = typer.Option(
    "paper",
    help="paper: the data set's own parts; 54000: 1,000 queries, 5,000 training images, 54,000 "
    "searched; 59000: 1,000 queries, 59,000 searched, which include the 5,000 training images.",
)
_FEATURES = typer.Option(
    None, help="Input of the shallow methods: pixels, gist, or a model (its F7)."
)
_MODEL = typer.Option(
    None, "--model", help="A trained model to use as ours for its code length; may be repeated."
)
_EPOCHS = typer.Option(None, min=1, help="Passes of the deep methods' training.")
_METHODS = typer.Option(None, help="Only these methods, comma-separated. [default: all]")
_BITS = typer.Option(None, help="Only these code lengths, comma-separated. [default: all]")
_SEED = typer.Option(0, help="Seed of every split and method.")


def _comparison(name: str, about: str) -> None:
    """Register the command that compares all methods on one of the paper's data sets."""

    def command(
        data: str | None = _DATA,
        out: Path | None = _OUT,
        quick: bool = _QUICK,
        protocol: str = _PROTOCOL,
        features: str | None = _FEATURES,
        model: list[Path] | None = _MODEL,
        methods: str | None = _METHODS,
        bits: str | None = _BITS,
        epochs: int | None = _EPOCHS,
        seed: int = _SEED,
    ) -> Answer:
        from hashlens.data.opening import open_source
        from hashlens.models.encoder import Encoder
        from hashlens.paper.comparison import (
            Comparison,
            make_split,
            precision_table,
            spoken_time,
            write_comparison,
        )
        from hashlens.paper.runs import read_piece
        from hashlens.report.progress import say
        from hashlens.workflows.demo import known_data

        piece = _only(read_piece(name, quick=quick), methods, bits, epochs)
        spec = data or known_data(name)
        parts = open_source(f"{spec}#train"), open_source(f"{spec}#test")
        run = Comparison(
            piece,
            make_split(*parts, protocol, piece.amounts, seed),
            out or Path("runs") / f"reproduce-{name}{'-quick' if quick else ''}",
            features or piece.features,
            seed,
            {Encoder.load(path).bits: path for path in model or []},
        )
        if unused := sorted(set(run.models) - {job.bits for job in run.jobs()}):
            raise InvalidInputError(
                f"model: no part of this run has {unused[0]} bits; leave it out"
            )
        split = run.split.describe()
        say(run.console, split)
        say(
            run.console,
            f"{len(run.jobs())} runs, about {spoken_time(run.expected_seconds())} on two cores "
            f"without a GPU; results are kept in {run.out} and not computed again.",
        )
        kept = run.run()
        page = write_comparison(run, kept, _typed())
        results = [{"name": job.method, "bits": job.bits, **one} for job, one in kept.items()]
        result = {"piece": name, "split": split, "report": str(page), "results": results}
        text = f"{split}\n{precision_table(run, kept).text()}\nreport: {page}"
        return Answer(result, text)

    command.__doc__ = about
    reproduce(name)(command)


_comparison(
    "cifar10",
    """Compare all methods on CIFAR-10: precision at k, mean average precision, error.

    Example: hashlens reproduce cifar10 --data data/cifar10 --quick
    """,
)
_comparison(
    "mnist",
    """Compare all methods on MNIST: classification error, precision at k.

    Example: hashlens reproduce mnist --data data/mnist --quick
    """,
)


@reproduce("products")
def products_command(
    source: str = typer.Argument(help="A folder with one sub-folder per class, or a parquet file."),
    out: Path = typer.Option(Path("runs/reproduce-products"), help="Where results are kept."),
    quick: bool = _QUICK,
    model: Path | None = typer.Option(None, help="A trained model to use instead of training."),
    weights: Path | None = typer.Option(
        None, help="A backbone's published weights: train from them, and search its plain F7 too."
    ),
    without_h: Path | None = typer.Option(
        None, help="A model of hashlens train --objective softmax, whose F7 is searched too."
    ),
    backbone: str | None = typer.Option(None, help="As for hashlens train."),
    bits: int | None = typer.Option(None, help="Length of a code. [default: 128]"),
    epochs: int | None = _EPOCHS,
    scale: int | None = typer.Option(
        None,
        help="Grow the collection to this many images with changed copies; the paper: 1124087.",
    ),
    seed: int = _SEED,
) -> Answer:
    """Search a collection with some of its own images: accuracy, four modes, time, pictures.

    Example: hashlens reproduce products photos/ --quick
    """
    from hashlens.data.opening import open_source
    from hashlens.paper.products import ProductsRun, summary, write_products
    from hashlens.paper.runs import read_products, ways_table
    from hashlens.report.progress import say

    settings = read_products(quick=quick)
    changes = {"epochs": epochs, "backbone": backbone}
    training = {**settings.training, **{k: v for k, v in changes.items() if v is not None}}
    length = settings.bits if bits is None else bits
    settings = replace(settings, bits=length, training=training)
    run = ProductsRun(
        open_source(source), settings, out, model, weights, without_h, scale, seed
    ).prepared()
    say(run.console, run.describe())
    say(run.console, _PRODUCTS_TIME)
    kept = run.run()
    page = write_products(run, kept, _typed())
    scores = kept["scores"]
    table = ways_table(scores["ways"]).text()
    text = f"{summary(scores)}\n{table}\nreport: {page}"
    return Answer({"piece": "products", "report": str(page), **kept}, text)


@reproduce("field")
def field_command(
    database: str = typer.Argument(help="Images that are searched, and that methods learn from."),
    queries: str = typer.Argument(help="Images to search with."),
    out: Path = typer.Option(Path("runs/reproduce-field"), help="Where results are kept."),
    backbone: str = typer.Option("timm:tf_efficientnet_lite2", help="As for hashlens train."),
    weights: Path | None = typer.Option(None, help="The backbone's published weights."),
    size: int | None = typer.Option(None, help="Pixels of an image's side."),
    methods: str | None = _METHODS,
    bits: str = typer.Option("16,32,48,64", help="Code lengths, comma-separated."),
    seeds: int = typer.Option(3, min=1, help="Repetitions, with seeds 0, 1, ..."),
    images: int | None = typer.Option(None, min=2, help="Only the first so many of DATABASE."),
    asked: int | None = typer.Option(None, min=1, help="Only the first so many of QUERIES."),
    training: int | None = typer.Option(None, min=2, help="Images to learn from, drawn."),
    taught: str | None = typer.Option(None, help="Column of the labels that methods learn."),
    unseen: int = typer.Option(0, min=0, help="Classes left out of learning, then searched for."),
    tune: bool = typer.Option(False, "--tune", help="Train the whole network; for a GPU."),
    epochs: int | None = _EPOCHS,
) -> Answer:
    """Compare all objectives and shallow methods on one network, frozen or fine-tuned.

    Example: hashlens reproduce field grocery#train grocery#test --weights lite2.safetensors
    """
    import numpy as np

    from hashlens.data.opening import open_source
    from hashlens.paper.field import FieldRun, field_table, write_field
    from hashlens.report.progress import say

    searched, asking = open_source(database), open_source(queries)
    searched = searched.subset(np.arange(len(searched))[:images])
    asking = asking.subset(np.arange(len(asking))[:asked])
    learned = open_source(database, label_column=taught).labels[:images] if taught else None
    run = FieldRun(
        searched, asking, backbone, size, weights, out, methods.split(",") if methods else (),
        [int(each) for each in bits.split(",")], seeds, training, learned, unseen, tune, epochs,
    )  # fmt: skip
    say(run.console, run.describe())
    found = run.run()
    page = write_field(run, found, _typed())
    results = [{**cell._asdict(), **kept["scores"]} for cell, kept in found.items()]
    text = f"{field_table(found).text()}\nreport: {page}"
    return Answer({"piece": "field", "report": str(page), "results": results}, text)


_PRODUCTS_TIME = (
    "Expected on two cores without a GPU: training takes what `hashlens train` says; encoding "
    "about 1 ms per image of 32 px and 20 ms per image of 224 px. Results are kept."
)


def _typed() -> str:
    """The command line, as it was typed."""
    return "hashlens " + shlex.join(sys.argv[1:])


def _only(piece: Piece, methods: str | None, bits: str | None, epochs: int | None) -> Piece:
    """The piece with only the methods, code lengths and epochs that were asked for."""
    if methods is not None:
        chosen = _listed("methods", methods, piece.methods)
        piece = replace(piece, methods=tuple(name for name in piece.methods if name in chosen))
    if bits is not None:
        known = [str(number) for number in (*piece.bits, *piece.error_bits)]
        lengths = {int(number) for number in _listed("bits", bits, known)}
        if not lengths & set(piece.bits):
            raise typer.BadParameter(f"bits: expected one of {', '.join(map(str, piece.bits))}")
        piece = replace(
            piece,
            bits=tuple(number for number in piece.bits if number in lengths),
            error_bits=tuple(number for number in piece.error_bits if number in lengths),
        )
    if epochs is not None:
        piece = replace(piece, training={**piece.training, "epochs": epochs})
    return piece


def _listed(what: str, text: str, known: Sequence[str]) -> list[str]:
    chosen = [one.strip() for one in text.split(",")]
    if unknown := [one for one in chosen if one not in known]:
        raise typer.BadParameter(f"{what}: expected some of {', '.join(known)}, got {unknown[0]!r}")
    return chosen

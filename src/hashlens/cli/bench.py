"""``hashlens bench``: how fast, next to other libraries, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from hashlens.cli.options import READING, Answer, commands, note

if TYPE_CHECKING:
    from hashlens.data.preprocessing import Metric

bench_app = typer.Typer(
    no_args_is_help=True, help="Measure speed next to other libraries.", rich_markup_mode=None
)
bench = commands(bench_app)


@bench("search")
def search_command(
    quick: bool = typer.Option(False, "--quick", help="Fewer and smaller cells: about a minute."),
    out: Path | None = typer.Option(None, help="Folder for search.md, search.png and search.json."),
    seed: int = typer.Option(0, help="Seed of all data."),
) -> Answer:
    """Time Hamming search next to FAISS and USearch.

    Exact engines over 1,124,087 codes of several kinds, taking turns in the same run with the
    same threads.

    Example: hashlens bench search --quick --out results/
    """
    from hashlens.bench.search import Workload, run, text, write

    plan = Workload(seed=seed)
    results = run(plan.quick() if quick else plan, note)
    if out is not None:
        command = f"hashlens bench search{' --quick' if quick else ''} --seed {seed}"
        note(f"page: {write(results, out, command)}")
    return Answer(results, text(results))


@bench("encode")
def encode_command(
    models: list[Path] = typer.Argument(
        ..., help="A model's folder or .onnx file; more of them take turns with it."
    ),
    data: str = typer.Option(..., "--data", help="Source of images, such as photos/."),
    images: int = typer.Option(1000, min=1, help="Images to measure with, drawn at random."),
    batch_size: int = typer.Option(32, min=1, help="Images in one run of the network."),
    rounds: int = typer.Option(5, min=1, help="Times that each network sees the images."),
) -> Answer:
    """Measure how fast images are decoded, transformed, encoded and written.

    Example: hashlens bench encode model/ model.onnx --data photos/ --images 1000
    """
    from hashlens.bench.encode import measure_encoding
    from hashlens.data.opening import open_source
    from hashlens.models.encoder import Encoder
    from hashlens.report.progress import ProgressBar

    source = open_source(data)
    encoders = {str(path): Encoder.load(path) for path in models}
    batches = -(-min(images, len(source)) // batch_size)
    with ProgressBar("batches", rounds * batches) as done:
        speed = measure_encoding(
            encoders, source, n_images=images, batch_size=batch_size, rounds=rounds, progress=done
        )
    lines = [
        f"{speed['n_images']} images, batches of {speed['batch_size']}, {speed['workers']} "
        f"decoding threads, {speed['rounds']} rounds; images per second (networks: median of "
        "batches):"
    ]
    for stage in ("decode", "transform", "write", "together"):
        lines.append(f"  {stage:10} {speed[stage]:10,.0f}")
    for name, forward in speed["forward"].items():
        lines.append(
            f"  forward    {forward['images_per_second']:10,.0f}  ({forward['slow']:,.0f} to "
            f"{forward['fast']:,.0f}), {forward['bits_equal']:.3%} of bits equal  {name}"
        )
    return Answer(speed, "\n".join(lines))


@bench("shards")
def shards_command(
    folder: Path | None = typer.Option(
        None, help="Where the indexes are made and kept; by default a folder that is removed."
    ),
    images: int = typer.Option(1_000_000, min=1000, help="Images, in 1, 2, 4 and 8 shards."),
    out: Path | None = typer.Option(None, help="Folder for shards.md and shards.json."),
) -> Answer:
    """Measure search over shards in one process and on Ray Serve, next to one index.

    Example: hashlens bench shards --out results/
    """
    from hashlens.bench.shards import run, text, write

    results = run(folder, images)
    if out is not None:
        note(f"page: {write(results, out, f'hashlens bench shards --images {images}')}")
    return Answer(results, text(results))


_COLUMNS = {name: READING[name] for name in ("label_column", "vector_column")}


@bench("vectors")
def vectors_command(
    source: str | None = typer.Argument(
        None, help="Vectors: .npy, or parquet with a column of them. [default: made, in clusters]"
    ),
    made: int = typer.Option(200_000, min=1, help="Vectors to make where no source is given."),
    width: int = typer.Option(256, min=1, help="Values of a made vector."),
    size: list[int] = typer.Option(
        [8, 16, 32], "--bytes", min=1, help="Bytes of a vector's code; may be repeated."
    ),
    metric: str = typer.Option("cosine", help="cosine or euclidean: what near means."),
    queries: int = typer.Option(500, min=1, help="Vectors that are held out to search with."),
    seed: int = typer.Option(0, help="Seed of all draws."),
    out: Path | None = typer.Option(None, help="Folder for vectors.md, vectors.png and .json."),
    columns: dict[str, Any] = _COLUMNS,
) -> Answer:
    """Compare codes of vectors with PQ, OPQ, RaBitQ and scalar quantisation, by bytes.

    Recall of the true neighbours, precision where there are labels, and time on one thread; with
    and without ordering a pool by the vectors themselves.

    Example: hashlens bench vectors embeddings.parquet --bytes 16 --out results/
    """
    from hashlens.bench.vectors import hold_out, made_vectors, run, text, write
    from hashlens.data.opening import open_source
    from hashlens.errors import InvalidInputError

    if source is None:
        vectors, labels = made_vectors(made, width, seed)
    else:
        opened = open_source(source, **columns)
        if opened.vectors is None:
            raise InvalidInputError(
                f"{source}: expected vectors, got images; hashlens index create, then hashlens "
                "index export --format parquet, makes vectors of them"
            )
        vectors, labels = opened.vectors.gather(opened.rows), opened.targets
    sample = hold_out(vectors, labels, cast("Metric", metric), queries, seed)
    results = {"source": source or "made, in clusters", **run(sample, size, seed, note)}
    if out is not None:
        options = "".join(f" --bytes {each}" for each in size)
        command = f"hashlens bench vectors {source or f'--made {made} --width {width}'}" + options
        command += f" --metric {metric} --queries {queries} --seed {seed}"
        note(f"page: {write(results, out, command)}")
    return Answer(results, text(results))

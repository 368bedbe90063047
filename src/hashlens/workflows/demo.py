"""``hashlens demo``: train, index, evaluate and report on real images."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hashlens.data.labels import split_validation
from hashlens.data.opening import open_source
from hashlens.data.source import Source
from hashlens.errors import SourceError
from hashlens.index.hash_index import HashIndex
from hashlens.models.encoder import Encoder
from hashlens.report.page import Cell, Table
from hashlens.training.fit import train
from hashlens.types import EncodedImages
from hashlens.workflows.score import MODE_NAMES, ScoredModel, evaluate, write_report

BITS = 48
TEST_FRACTION = 0.2
HUB_NAMES = {"mnist": "hub:ylecun/mnist", "cifar10": "hub:uoft-cs/cifar10"}
NEXT_COMMANDS = """\
hashlens train photos/ --out my-model
hashlens index create my-index photos/ --model my-model
hashlens serve my-index"""


@dataclass(frozen=True)
class DemoResult:
    """The scores on held-out images, and where model, index and report page are."""

    scored: ScoredModel
    model: Path
    index: Path
    page: Path
    seconds: float

    def table(self) -> Table:
        """One row per way to search, as the demo prints it."""
        rows: list[list[Cell]] = []
        for mode, one in self.scored.evaluation.modes.items():
            scores = (one.precision[10], one.mean_average_precision)
            rows.append([MODE_NAMES[mode], *scores, f"{one.ms_per_query:.3f}"])
        return Table(["", "precision@10", "mAP@1000", "ms per query"], rows)


def run_demo(
    data: str,
    out: Path,
    *,
    path: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> DemoResult:
    """Train on some images, index them, and evaluate with held-out ones.

    An earlier demo's model, index and report in ``out`` are replaced.
    """
    started = time.monotonic()
    database, queries = demo_sources(data, path)
    model, index = out / "model", out / "index"
    say(f"1/4 train {BITS}-bit codes on {len(database):,} images of {database.spec}")
    train(database, model, BITS, overwrite=True, progress=progress)
    say(f"2/4 index them in {index}")
    encoder = Encoder.load(model)

    def on_disk(source: Source, encoded: EncodedImages) -> HashIndex:
        if (index / "index.sqlite").is_file():  # of an earlier demo
            shutil.rmtree(index)
        made = HashIndex.create(index, encoder, model=model)
        names = [source.label_name(position) for position in encoded.positions.tolist()]
        made.add_encoded(encoded.codes, encoded.features, encoded.uris, names)
        say(f"3/4 search it with {len(queries):,} held-out images of {queries.spec}")
        return made

    scored = evaluate(encoder, database, queries, make_searcher=on_disk, progress=progress)
    say(f"4/4 write the report in {out}")
    page = write_report(scored, out, title=f"Hashlens demo: {data}", commands=NEXT_COMMANDS)
    return DemoResult(scored, model, index, page, time.monotonic() - started)


def demo_sources(data: str, path: str | None = None) -> tuple[Source, Source]:
    """Images to train on and to search, and held-out ones to search with.

    A source with parts ``train`` and ``test`` is used with these; otherwise a fifth of each class
    is held out, with a fixed seed.
    """
    spec = path or known_data(data)
    if spec == "digits" or spec.startswith("hub:") or _has_parts(Path(spec)):
        return open_source(f"{spec}#train"), open_source(f"{spec}#test")
    source = open_source(spec)
    train_rows, test_rows = split_validation(source.labels, TEST_FRACTION, seed=0)
    if not len(test_rows):
        raise SourceError(
            f"{spec}: {len(source.labelled)} labelled images are too few to hold some out; the "
            "demo needs at least five of a class"
        )
    return source.subset(train_rows), source.subset(test_rows)


def known_data(data: str) -> str:
    """A data set by its name: ``$HASHLENS_DATA/NAME`` if it is there, or the hub; else as given."""
    if data not in HUB_NAMES:
        return data
    folder = os.environ.get("HASHLENS_DATA")
    if folder and _has_parts(Path(folder) / data):
        return str(Path(folder) / data)
    return HUB_NAMES[data]


def _has_parts(folder: Path) -> bool:
    return all((folder / f"{part}.parquet").is_file() for part in ("train", "test")) or all(
        (folder / part).is_dir() for part in ("train", "test")
    )

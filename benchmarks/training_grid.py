"""Training compared: recipes, objectives, bits and seeds on one source, one row per run.

``python benchmarks/training_grid.py SOURCE --queries SOURCE --out DIR ...``; finished
runs are kept in ``DIR/runs.jsonl`` and not repeated with the same images and configuration.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from hashlens import open_source, pack_bits
from hashlens.data.source import Source
from hashlens.evaluation.scoring import score_searcher, top_class_error
from hashlens.index.ranking import ArraySearcher
from hashlens.models.checkpoint import load_model
from hashlens.training.config import TrainingConfig
from hashlens.training.data import Inputs, decoded_inputs, feature_inputs
from hashlens.training.fit import fit
from hashlens.training.recipes import configure
from hashlens.types import EncodedImages


@dataclass(frozen=True)
class Trial:
    """One run: what differs between runs, as in ``TrainingConfig``."""

    recipe: str
    objective: str
    bits: int
    seed: int


def run_trial(
    trial: Trial, values: dict[str, Any], database: Source, queries: Source, folder: Path
) -> dict[str, Any]:
    """Train on the database, search it with the queries, and return the trial with its scores.

    All runs share ``values`` and, where the backbone is frozen, the features kept in ``folder``.
    """
    fields = asdict(trial)
    recipe = fields.pop("recipe")
    config, _ = configure(recipe, {**values, **fields}, database)
    out = folder / "model"
    result = fit(
        database,
        config,
        out,
        overwrite=True,
        progress=False,
        features=folder / "features" if config.freeze_backbone else None,
    )
    parts = [
        _encode(source, config, out, folder / f"features{place}")
        for place, source in (("", database), ("-queries", queries))
    ]
    (base, _), (asked, scores) = parts
    scored = score_searcher(
        ArraySearcher(base.codes, base.features), base, asked, bits=trial.bits, modes=("bcs",)
    ).modes["bcs"]
    best = result.history[result.best_epoch - 1]
    row = {
        **asdict(trial),
        "map@1000": scored.mean_average_precision,
        "map@1000_ties": scored.expected_mean_average_precision,
        "error": top_class_error(scores, asked.labels),
        "validation_map": best["map"],
        "stuck_bits": int(best["stuck_bits"]),
        "epochs": config.epochs,
        "warnings": list(result.warnings),
        "seconds": round(result.seconds, 1),
    }
    shutil.rmtree(out)
    return row


def _encode(
    source: Source, config: TrainingConfig, model: Path, cache: Path
) -> tuple[EncodedImages, Any]:
    """Codes, features and class scores of a source, from kept features where there are any."""
    net, saved = load_model(model)
    quiet = Console(quiet=True)
    inputs: Inputs
    if config.freeze_backbone:
        inputs = feature_inputs(
            source, saved.preprocessing, net.backbone, cache, strict=True, console=quiet
        )
    else:
        inputs = decoded_inputs(source, saved.preprocessing, strict=True, console=quiet)
    parts = []
    with torch.inference_mode():
        for rows in np.array_split(np.arange(len(inputs.rows)), -(-len(inputs.rows) // 500)):
            values, _ = inputs.pixels.gather(rows)
            if config.freeze_backbone:
                output = net.from_features(values)
            else:
                output = net(torch.from_numpy(saved.preprocessing.normalise(values.numpy())))
            parts.append((output.latent >= 0, output.features, output.scores))
    bits, features, scores = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return EncodedImages(pack_bits(bits), features, source.labels[inputs.rows]), scores


def main() -> None:
    """Run the grid that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--queries", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["auto"])
    parser.add_argument("--objectives", nargs="+", default=["latent", "ssdh", "greedyhash", "csq"])
    parser.add_argument("--bits", nargs="+", type=int, default=[48])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, help="only the first so many images")
    parser.add_argument("--query-images", type=int, help="only the first so many queries")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the configuration")
    asked = parser.parse_args()
    values = {}
    for pair in asked.set:
        key, _, value = pair.partition("=")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    database, queries = open_source(asked.source), open_source(asked.queries)
    database = database.subset(np.arange(min(len(database), asked.images or len(database))))
    queries = queries.subset(np.arange(min(len(queries), asked.query_images or len(queries))))
    asked.out.mkdir(parents=True, exist_ok=True)
    log = asked.out / "runs.jsonl"
    settings = {
        "source": asked.source,
        "queries": asked.queries,
        "images": len(database),
        "query_images": len(queries),
        "set": values,
    }
    kept = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    # Rows of older logs, which have no settings, count as runs with these.
    done = [row for row in kept if row.get("settings", settings) == settings]
    names = list(Trial.__dataclass_fields__)
    for trial in itertools.starmap(
        Trial, itertools.product(asked.recipes, asked.objectives, asked.bits, asked.seeds)
    ):
        if any({name: row[name] for name in names} == asdict(trial) for row in done):
            continue
        row = run_trial(trial, values, database, queries, asked.out) | {"settings": settings}
        done.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    print(table(done))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and spread over the seeds of each recipe, objective and number of bits."""
    lines = [
        "| recipe | objective | bits | mAP@1000 (BCS) | error | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["recipe"], row["objective"], row["bits"]) for row in rows):
        same = [row for row in rows if (row["recipe"], row["objective"], row["bits"]) == key]
        cells = [
            f"{np.mean(numbers):.4f} ± {np.std(numbers, ddof=1) if len(numbers) > 1 else 0:.4f}"
            for numbers in ([row[name] for row in same] for name in ("map@1000", "error"))
        ]
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {cells[0]} | {cells[1]} | {len(same)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""How well a model's held-out images find those that it was trained on; no test image is read.

    python benchmarks/held_out.py cifar10#train cifar48 cifar48-csq

Each model names in ``model.json`` the share and the seed of the images that validated it. They are
cut off again, and search the rest by codes alone: mAP@1000 and precision@1000, ties by id.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from hashlens import Encoder, hamming_topk
from hashlens.data.sources import open_source
from hashlens.evaluation.metrics import average_precision
from hashlens.models.checkpoint import read_config
from hashlens.models.encoding import encode_source
from hashlens.training.config import TrainingConfig
from hashlens.training.inputs import decoded_inputs
from hashlens.training.split import split_rows


def main() -> None:
    """Print a row a model."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("source", help="what the models were trained on")
    parser.add_argument("models", nargs="+", type=Path, help="folders of models")
    asked = parser.parse_args()
    source = open_source(asked.source)
    for model in asked.models:
        config, _ = read_config(model)
        inputs = decoded_inputs(
            source, config.preprocessing, strict=True, console=Console(stderr=True)
        )
        trained = TrainingConfig(**config.training["configuration"])
        split = split_rows(source.labels[inputs.rows], inputs.twins, trained)
        database, queries = inputs.rows[split.training], inputs.rows[split.validation]
        codes = encode_source(Encoder.load(model), source).codes
        _, found = hamming_topk(codes[database], codes[queries], 1000)
        relevant = source.labels[database][found] == source.labels[queries][:, None]
        print(
            f"{model}: {len(queries)} held-out images search {len(database)}: "
            f"mAP@1000 {average_precision(relevant).mean():.4f}, "
            f"precision@1000 {relevant.mean():.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
